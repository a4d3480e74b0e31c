"""Everything that the bridge relies on in LiteLLM beyond its documented callbacks: tables of patches.

Each patch names its target, what the target has to look like, and what is lost without it. All of them are checked before
the first is applied: where a target is missing that the accounting of requests depends on, the start stops; what else is
missing is reported in one error and left out.
"""

from __future__ import annotations

from .patch import Patch, a_function, an_async_function, anything, apply, faults, litellm_version, report
from .providers import of_providers
from .proxy import keep_denials_out_of_the_log, of_proxy, used
from .routers import (
    ROUTER_METHODS,
    Method,
    RouterParts,
    apply_to_router,
    apply_to_selection,
    of_filters,
    of_router,
    of_selection,
)

__all__ = [
    "ROUTER_METHODS",
    "Method",
    "Patch",
    "RouterParts",
    "a_function",
    "an_async_function",
    "anything",
    "apply",
    "apply_to_router",
    "apply_to_selection",
    "faults",
    "keep_denials_out_of_the_log",
    "litellm_version",
    "of_filters",
    "of_providers",
    "of_proxy",
    "of_router",
    "of_selection",
    "report",
    "used",
]
