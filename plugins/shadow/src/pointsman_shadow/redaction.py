"""What is taken out of texts before they are kept: patterns first, then a function of the operator's."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from pointsman.errors import ConfigError

if TYPE_CHECKING:
    from .config import Redaction

GROUP: Final = "pointsman_shadow.redactors"


class Redactor:
    """Takes out of texts what must not be kept.

    Args:
        config: Patterns and the name of a function.

    Raises:
        ConfigError: the function cannot be found.
    """

    def __init__(self, config: Redaction) -> None:
        self._patterns = [re.compile(pattern) for pattern in config.patterns]
        self._replacement = config.replacement
        self._function = None if config.hook is None else load(config.hook)

    def __call__(self, text: str, max_chars: int) -> str:
        """Return the text without it, cut to ``max_chars``.

        Raises:
            Exception: whatever the operator's function raises; the text must not be kept then.
        """
        for pattern in self._patterns:
            # A replacement is text, never a template.
            text = pattern.sub(lambda _: self._replacement, text)
        if self._function is not None:
            text = self._function(text)
            if not isinstance(text, str):
                raise TypeError(f"the redactor returned {type(text).__name__}, not text")
        return text[:max_chars]


def load(name: str) -> Callable[[str], str]:
    """Return a function by the name of its entry point.

    Raises:
        ConfigError: none or several have the name, or it cannot be imported or called.
    """
    points = entry_points(group=GROUP, name=name)
    if len(points) != 1:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        what = "there is no" if not points else "several packages have a"
        raise ConfigError(f"redact.hook: {what} redactor {name!r} in the entry-point group {GROUP}; known: {known}")
    (point,) = points
    try:
        function = point.load()
    except Exception as err:
        raise ConfigError(f"redact.hook: {point.value!r} cannot be imported: {type(err).__name__}: {err}") from err
    if not callable(function):
        raise ConfigError(f"redact.hook: {point.value!r} is a {type(function).__name__}, not a function of text")
    found: Callable[[str], str] = function
    return found
