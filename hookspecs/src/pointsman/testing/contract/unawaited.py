"""Finds the coroutines that a plugin makes and does not await: what they are to do is not done."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ...host.implementations import HOOK_NAMES

#: Callers that are kept of each place where a coroutine is made.
_CALLERS: Final = 30


@contextmanager
def unawaited(plugin: str, packages: frozenset[str]) -> Iterator[list[str]]:
    """Yield a list that says at the end which coroutines were never awaited, and where they were made.

    Other warnings go where they would have gone.

    Args:
        plugin: The plugin.
        packages: The top-level packages of its code.
    """
    found: list[str] = []
    depth = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(_CALLERS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", r"coroutine '.*' was never awaited", RuntimeWarning)
            yield found
    finally:
        sys.set_coroutine_origin_tracking_depth(depth)
    files = {
        file
        for name, module in tuple(sys.modules.items())
        if name.partition(".")[0] in packages and (file := getattr(module, "__file__", None))
    }
    for warning in caught:
        # The coroutine; the other warnings have no such origin.
        if own := [call for call in getattr(warning.source, "cr_origin", None) or () if call[0] in files]:
            found.append(_sentence(plugin, warning.source, own))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno, source=warning.source
            )


def _sentence(plugin: str, coroutine: Any, own: list[tuple[str, int, str]]) -> str:
    """Return what was not awaited.

    Args:
        plugin: The plugin.
        coroutine: The coroutine.
        own: The calls within the plugin that have led to it, innermost first: file, line and function.
    """
    (file, line, function), outermost = own[0], own[-1][2]
    within = f"hook {outermost!r}: " if outermost in HOOK_NAMES else ""
    return (
        f"{plugin!r}: {within}{coroutine.__qualname__}(...) is not awaited in {function} ({file}:{line}), so it does nothing; "
        "write await before it"
    )
