"""Which of LiteLLM's own filters has left a deployment out of a pick, for the trace.

Each of the router's filters gets the deployments that are left and returns fewer. A filter that is not watched leaves
deployments out without its name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

import litellm.router
import litellm.utils
from litellm.router_strategy import tag_based_routing

from .native_router import NATIVE_ROUTER

Entry = dict[str, Any]
Filter = Callable[..., Any]

COOLDOWN: Final = "in cooldown"
ORDER: Final = "another order comes first"
_PARAMETER: Final = "healthy_deployments"
_ROUTER: Final = litellm.router.Router
#: The native router imports it when it is needed.
_TAGS: Final = litellm.router if hasattr(litellm.router, "get_deployments_for_tag") else tag_based_routing
#: Where each filter is, and what it says about a deployment that it leaves out. In the router's own order.
_FILTERS: Final[tuple[tuple[Any, str, str], ...]] = (
    (litellm.router, "filter_team_based_models", "of another team"),
    (litellm.router, "filter_web_search_deployments", "does not support web search"),
    (_ROUTER, "_async_filter_health_check_unhealthy_deployments", "unhealthy by its health check"),
    (_ROUTER, "_filter_cooldown_deployments", COOLDOWN),
    (_ROUTER, "_filter_blocked_deployments", "blocked by an administrator"),
    (_ROUTER, "async_callback_filter_deployments", "another one by affinity, or left out by a callback"),
    (_ROUTER, "_pre_call_checks", "not fit for the request: its context window, region, rate limit or parameters"),
    (_TAGS, "get_deployments_for_tag", "its tags do not match the request's"),
    (_ROUTER, "_filter_by_routing_plugin_candidates", "left out by a routing plugin of LiteLLM's"),
    (litellm.utils, "get_order_filtered_deployments", ORDER),
    (litellm.utils, "get_excluded_filtered_deployments", "just tried by this request"),
)
#: The filters that the native router calls in Python.
_OF_NATIVE: Final = frozenset(
    {
        "async_callback_filter_deployments",
        "_pre_call_checks",
        "get_deployments_for_tag",
        "get_order_filtered_deployments",
        "get_excluded_filtered_deployments",
    }
)
#: The filters of this version's router.
FILTERS: Final = tuple(one for one in _FILTERS if not NATIVE_ROUTER or one[1] in _OF_NATIVE)
#: The deployments that the running pick has lost, by id, and why; None while no pick asks for them.
left_out: Final[ContextVar[dict[str, str] | None]] = ContextVar("pointsman_left_out", default=None)


_REFUSED: Final = "_pointsman_refused_pick"


def mark_refused_pick(err: Exception) -> None:
    """Note that an error is that of a pick without a deployment, and of no deployment's."""
    with contextlib.suppress(AttributeError):
        setattr(err, _REFUSED, True)


def is_refused_pick(err: object) -> bool:
    """Return whether an error is that of a pick without a deployment."""
    return getattr(err, _REFUSED, False) is True


def fault(filter_: Any) -> str | None:
    """Return why a filter cannot be watched, as the end of a sentence; None when it can."""
    if not callable(filter_):
        return "is not a function"
    known = inspect.signature(filter_).parameters
    return None if _PARAMETER in known else f"has no parameter {_PARAMETER!r}"


def watched(filter_: Filter, reason: str) -> Filter:
    """Return a filter that notes which deployments it leaves out, and why."""
    place = list(inspect.signature(filter_).parameters).index(_PARAMETER)

    if inspect.iscoroutinefunction(filter_):

        @wraps(filter_)
        async def filtering(*args: Any, **kwargs: Any) -> Any:
            if (lost := left_out.get()) is None:
                return await filter_(*args, **kwargs)
            given = kwargs[_PARAMETER] if _PARAMETER in kwargs else args[place] if len(args) > place else None
            # Some filters shorten the list that they get.
            before, left = [*given] if isinstance(given, list) else (), []
            try:
                left = await filter_(*args, **kwargs)
            finally:
                # Some filters raise an error instead of leaving none; a dict is the one deployment that the request names.
                if isinstance(left, list) and len(left) < len(before):
                    _note(lost, before, left, reason)
            return left

        return filtering

    @wraps(filter_)
    def filtering_at_once(*args: Any, **kwargs: Any) -> Any:
        if (lost := left_out.get()) is None:
            return filter_(*args, **kwargs)
        given = kwargs[_PARAMETER] if _PARAMETER in kwargs else args[place] if len(args) > place else None
        before, left = [*given] if isinstance(given, list) else (), []
        try:
            left = filter_(*args, **kwargs)
        finally:
            if isinstance(left, list) and len(left) < len(before):
                _note(lost, before, left, reason)
        return left

    return filtering_at_once


def _note(lost: dict[str, str], given: Iterable[Any], left: Iterable[Any], reason: str) -> None:
    ids = set(_ids(left))
    for name in _ids(given):
        if name not in ids:
            lost.setdefault(name, reason)


def _ids(entries: Iterable[Any]) -> Iterable[str]:
    return [str((entry.get("model_info") or {}).get("id")) for entry in entries if isinstance(entry, Mapping)]
