"""Where LiteLLM goes on after a model group, read from its own forms of fallbacks and written in them.

A route names groups to try first; LiteLLM has one list a request, which replaces the configuration's. So what LiteLLM would
have tried without the route is written after the route's groups: the client's own list, or the configured groups. Those
depend on the error, thus there are three lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from litellm.router_utils.fallback_event_handlers import check_non_standard_fallback_format

from ..types import ErrorClass
from .catalog import Fallbacks, router

if TYPE_CHECKING:
    from ..types import Route
    from .call import ClientCall
    from .catalog import RouterCatalog

#: LiteLLM's setting for errors without a setting of their own, also when such a setting is not there.
_ANY_ERROR: Final = "fallbacks"
#: LiteLLM's settings for what a request falls back to after certain errors.
_AFTER: Final[Mapping[ErrorClass, str]] = {
    ErrorClass.CONTEXT_WINDOW: "context_window_fallbacks",
    ErrorClass.CONTENT_POLICY: "content_policy_fallbacks",
}
_SETTINGS: Final = (_ANY_ERROR, *_AFTER.values())


def own_fallbacks(data: Mapping[str, Any]) -> object:
    """Return the fallbacks that a request brings along, itself or with its key or team; None leaves the configuration's."""
    # Written out: most requests bring none, and each is asked.
    if (found := data.get(_ANY_ERROR)) is not None:
        return found
    return _own(data, _ANY_ERROR) if data.get("router_settings_override") is not None else None


def follow_route(data: dict[str, Any], route: Route, *, asked: str, catalog: RouterCatalog) -> bool:
    """Let LiteLLM try the route's fallbacks first, and then what it would have tried without the route.

    Args:
        data: LiteLLM's request, its model being the route's; changed in place.
        route: The route.
        asked: The model that the client asked for; its fallbacks are those of a target that has none of its own.
        catalog: Knows what names stand for.

    Returns:
        Whether the route may have changed it.
    """
    target = str(data.get("model") or "")
    if not route.fallbacks and target == asked:
        return False
    llm_router = router()
    for setting in _SETTINGS:
        brought = _own(data, setting)
        known = brought if brought is not None else getattr(llm_router, setting, None)
        if not isinstance(known, list):
            if setting != _ANY_ERROR:
                # LiteLLM goes on with the fallbacks for any error.
                continue
            known = []
        if known and check_non_standard_fallback_format(known):
            if route.fallbacks:
                # LiteLLM takes a list of both forms for a third one.
                texts = isinstance(known[0], str)
                data[setting] = [*(name if texts else {"model": name} for name in route.fallbacks), *known]
            continue
        chain = _chain_of_route(known, route, target, asked, catalog)
        if chain and chain != _chain(known, target):
            data[setting] = [{target: chain}, *known]
    return True


def next_groups(fallbacks: object, *, asked: str, group: str) -> list[str]:
    """Return the model groups that LiteLLM tries after a group.

    Args:
        fallbacks: In one of LiteLLM's forms: ``[{group: [others]}]``, or the others themselves as text or as parameters.
        asked: The model that the request asked for.
        group: The group that is being tried: the model asked for, or one of its fallbacks.
    """
    if not isinstance(fallbacks, list) or not fallbacks:
        return []
    chain = _names(fallbacks if check_non_standard_fallback_format(fallbacks) else _chain(fallbacks, asked))
    if group != asked:
        if group not in chain:
            return []
        chain = chain[chain.index(group) + 1 :]
    return [name for name in chain if name not in {asked, group}]


def goes_on(call: ClientCall, group: str, depth: object, catalog: RouterCatalog) -> tuple[bool, bool]:
    """Return whether LiteLLM goes on when it finds no deployment, or its attempt fails; False in doubt.

    Args:
        call: The request.
        group: The model group, or an alias, of the attempt.
        depth: How many fallbacks LiteLLM has gone on to before; None or 0 for none.
        catalog: Knows what names stand for: a client may name any.

    Returns:
        Whether in another model group, and whether with another ``order`` of this one, where there is one.
    """
    llm_router = router()
    if llm_router is None or call.fallbacks_disabled:
        return False, False
    if isinstance(depth, int) and depth >= int(getattr(llm_router, "max_fallbacks", 0) or 0):
        return False, False
    fallbacks = call.fallbacks if call.fallbacks is not None else llm_router.fallbacks
    others = next_groups(fallbacks, asked=call.asked or group, group=group)
    return any(catalog.deployments(catalog.resolved(name)) for name in others), True


def fallback_rule(call: ClientCall, group: str) -> str:
    """Return which rule has led a request to a fallback group, for the trace.

    Args:
        call: The request.
        group: The model group of the attempt that is a fallback.
    """
    exchange, llm_router = call.exchange, router()
    assert exchange is not None  # noqa: S101  # an admitted request has one
    if group in exchange.route.fallbacks:
        named = [d.by for d in exchange.decisions if d.route is not None and group in d.route.fallbacks]
        return f"route ({named[0]})" if named else "route"
    if call.brings_fallbacks:
        return "fallbacks of the request"
    failed = [o.attempt.error.kind for o in exchange.attempts if o.closed and o.attempt.error is not None]
    origins = (call.asked, *exchange.route.fallbacks)
    for kind, setting in _AFTER.items():
        known = getattr(llm_router, setting, None)
        if kind in failed and any(group in next_groups(known, asked=name, group=name) for name in origins):
            return setting
    return _ANY_ERROR if group != call.asked else "order"


def _own(data: Mapping[str, Any], setting: str) -> object:
    if (found := data.get(setting)) is not None:
        return found
    # Settings of the key or the team.
    settings = data.get("router_settings_override")
    return settings.get(setting) if settings is not None and isinstance(settings, Mapping) else None


def _chain_of_route(known: list[Any], route: Route, target: str, asked: str, catalog: RouterCatalog) -> list[Any]:
    """Return the route's fallbacks, then theirs, then the target's or those of what the client asked for."""
    chain: list[Any] = list(route.fallbacks)
    for name in route.fallbacks:
        chain += _specific(known, name) or _specific(known, _group(name, catalog))
    chain += _specific(known, target) or _specific(known, asked) or _chain(known, target)
    return [other for place, other in enumerate(chain) if other != target and other not in chain[:place]]


def _group(name: str, catalog: RouterCatalog) -> str:
    """Return the model group that serves a name: of an alias or a deployment."""
    resolved = catalog.resolved(name)
    members = catalog.deployments(resolved)
    return members[0].group if members and not catalog.is_group(resolved) else resolved


def _specific(fallbacks: list[Any], group: str) -> list[Any]:
    """Return the fallbacks that are configured for a group, not those for all."""
    return _chain([entry for entry in fallbacks if isinstance(entry, Mapping) and "*" not in entry], group)


def _chain(fallbacks: list[Any], group: str) -> list[Any]:
    # A client may send anything.
    others = Fallbacks(entry for entry in fallbacks if entry and isinstance(entry, str | Mapping)).of(group)
    return list(others) if isinstance(others, list) else []


def _names(others: Sequence[Any]) -> list[str]:
    return [str(one.get("model")) if isinstance(one, Mapping) else str(one) for one in others]
