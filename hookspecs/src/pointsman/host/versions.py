"""The versions of LiteLLM that Pointsman supports, and those that it was tested with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SUPPORTED: Final = "litellm[proxy]>=1.106,!=1.107.*"
#: Version to what was run with it; README has the same table.
TESTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.106.0": "every test with a proxy; those of reloads, several workers and the quickstart in part",
        "1.108.7": "every test",
        "1.110.2": (
            "matrix, executed routes, races, balance, shadow, canary, registry, billing, residency, faulty plugins and "
            "LiteLLM's router features, without its companion litellm-proxy"
        ),
    }
)


def untested(version: str) -> str | None:
    """Return what an operator should know about a version that was not tested; None for a tested one."""
    if version in TESTED:
        return None
    return f"LiteLLM {version} was not tested with this version of Pointsman; tested are {', '.join(TESTED)}"
