"""Whether Python and LiteLLM are the versions that this distribution asks for, by its own metadata."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .output import Finding, Level

_OURS: Final = "pointsman"
_LITELLM: Final = "litellm"


def check_versions() -> Iterator[Finding]:
    """Yield one finding for Python and one for LiteLLM, which is not imported."""
    python, wanted = platform.python_version(), SpecifierSet(metadata(_OURS)["Requires-Python"])
    if wanted.contains(python, prereleases=True):
        yield Finding(Level.OK, "python", f"{python} is supported ({wanted})")
    else:
        yield Finding(Level.FAILED, "python", f"{python} is not supported; install Python {wanted}")
    needed = litellm_requirement()
    try:
        found = version(_LITELLM)
    except PackageNotFoundError:
        yield Finding(Level.FAILED, _LITELLM, f"is not installed in this environment: pip install '{needed}'")
        return
    if needed.specifier.contains(found, prereleases=True):
        yield Finding(Level.OK, _LITELLM, f"{found} is supported ({needed.specifier})")
    else:
        yield Finding(Level.FAILED, _LITELLM, f"{found} is not supported: pip install '{needed}'")


def litellm_requirement() -> Requirement:
    """Return what our own metadata says about LiteLLM."""
    return next(
        needed for text in requires(_OURS) or () if (needed := Requirement(text)).name == _LITELLM and not needed.marker
    )
