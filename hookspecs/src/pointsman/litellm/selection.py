"""``select`` runs last: the plugins choose among the deployments that LiteLLM would really serve.

LiteLLM's documented callback comes before its context-window and region checks, tags, ``order``, weighted failover and the
exclusion of what was just tried: to leave one deployment there is to overrule all of them. Up to 1.108 the router's
own methods are wrapped instead, and ``select`` gets what they return. From 1.109 the router is not Python any more; there
the callback asks the router for the deployments that a pick would choose among.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from litellm.router_utils.handle_error import async_raise_no_deployment_exception

from ..host.hooks import Dropped
from .call import Call, ClientCall, current_call
from .catalog import router
from .fallbacks import goes_on
from .native_router import NATIVE_ROUTER
from .router_filters import COOLDOWN, ORDER, left_out, mark_refused_pick

if TYPE_CHECKING:
    from ..types import Deployment
    from .catalog import RouterCatalog

Entry = dict[str, Any]
Method = Callable[..., Awaitable[Any]]

_GATEWAY: Final = "litellm"
_UNAVAILABLE: Final = "not offered by LiteLLM"
_OTHER_TEAM: Final = "of another team"


class _Pick:
    """One pick of the router.

    Attributes:
        model: The model group, or an alias, that LiteLLM picks from.
        pass_through: Whether only deployments for pass-through requests can be picked.
        available: The deployments before LiteLLM's later filters; None until they are known.
        left_out: Why LiteLLM has left deployments out, by id; None for what is no request of ours.
        asked: Whether the plugins have been asked.
    """

    __slots__ = ("asked", "available", "left_out", "model", "pass_through")

    def __init__(self, model: str, *, pass_through: bool) -> None:
        self.model = model
        self.pass_through = pass_through
        self.available: Sequence[Entry] | None = None
        self.asked = False
        call = current_call.get()
        self.left_out: dict[str, str] | None = {} if call is not None and call.exchange is not None else None


_pick: Final[ContextVar[_Pick | None]] = ContextVar("pointsman_pick", default=None)
#: Whether the router lists deployments without picking one: to upload a file to all of them, or because we asked.
_listing: Final[ContextVar[bool]] = ContextVar("pointsman_listing", default=False)


class Selection:
    """Runs the plugins' ``select`` for the router.

    Args:
        catalog: The deployments.

    Attributes:
        last: Whether the router's methods are wrapped, so that ``select`` runs after all filters.
    """

    def __init__(self, catalog: RouterCatalog) -> None:
        self._catalog = catalog
        self.last = False

    # -- around the router's methods ----------------------------------------------------------------------------------

    def around_pick(self, method: Method, *, pass_through: bool = False) -> Method:
        """Return the router's method that picks one deployment, with the pick known to what it calls."""

        async def picking(router_: Any, model: str, *args: Any, **kwargs: Any) -> Any:
            pick = _Pick(model, pass_through=pass_through)
            token, watching = _pick.set(pick), left_out.set(pick.left_out)
            try:
                return await method(router_, model, *args, **kwargs)
            except Exception as err:
                mark_refused_pick(err)
                # Telemetry never harms a request: the client gets LiteLLM's own error.
                with contextlib.suppress(Exception):
                    self._nothing_offered(pick, err)
                raise
            finally:
                left_out.reset(watching)
                _pick.reset(token)

        return picking

    def around_healthy(self, method: Method) -> Method:
        """Return the router's method that returns the deployments a pick chooses among, narrowed by the plugins."""

        async def narrowed(router_: Any, model: str, request_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
            found = await method(router_, model, request_kwargs, *args, **kwargs)
            pick, call = _pick.get(), current_call.get()
            # A dict is the one deployment that the request names.
            if pick is None or call is None or call.exchange is None or not isinstance(found, list):
                return found
            left = self._select(call, found, pick, request_kwargs or {})
            if not left:
                raise await async_raise_no_deployment_exception(
                    litellm_router_instance=router_, model=model, parent_otel_span=kwargs.get("parent_otel_span")
                )
            return left

        return narrowed

    def around_select(self, method: Method) -> Method:
        """Return the newer router's method that picks or lists deployments, with listings known to the callback."""

        async def selecting(router_: Any, *args: Any, **kwargs: Any) -> Any:
            token = _listing.set(kwargs.get("kind") == "healthy")
            try:
                return await method(router_, *args, **kwargs)
            finally:
                _listing.reset(token)

        return selecting

    def around_refused_pick(self, method: Callable[[Any, Mapping[str, Any]], Any]) -> Callable[..., Any]:
        """Return the native router's method that notes a pick without a deployment, with the reasons shown."""

        def refused(driver: Any, event: Mapping[str, Any]) -> Any:
            with contextlib.suppress(Exception):  # telemetry never harms a request
                call = current_call.get()
                if call is not None and not call.selecting:
                    model = str(event.get("failed_model") or event.get("model"))
                    self._nothing_offered(_Pick(model, pass_through=False))
            return method(driver, event)

        return refused

    # -- the callback -------------------------------------------------------------------------------------------------

    async def filter(self, model: str, entries: list[Entry], messages: Any, request_kwargs: Any) -> list[Entry]:
        """Answer LiteLLM's callback, which comes before its later filters."""
        call, pick = current_call.get(), _pick.get()
        if call is None or call.exchange is None or not entries or _listing.get():
            return entries
        call.select()
        if self.last:
            if pick is not None:
                pick.available = entries
            return entries
        pick = pick or _Pick(model, pass_through=False)
        pick.available = entries
        request = request_kwargs or {}
        if not NATIVE_ROUTER:
            return self._select(call, entries, pick, request)
        watching = left_out.set(pick.left_out)
        try:
            served = await router().select(
                model, dict(request), kind="healthy", messages=messages, input=request.get("input")
            )
        except Exception as err:  # noqa: BLE001  # whatever it is: LiteLLM meets it again at its own filters, and answers with it
            with contextlib.suppress(Exception):  # telemetry never harms a request
                self._nothing_offered(pick, err)
            return entries
        finally:
            left_out.reset(watching)
        if not isinstance(served, list):
            return entries
        ids = {_id(entry) for entry in served}
        return self._select(call, [entry for entry in entries if _id(entry) in ids], pick, request) or []

    # -- the choice ---------------------------------------------------------------------------------------------------

    def _select(self, call: Call, entries: list[Entry], pick: _Pick, request: Mapping[str, Any]) -> list[Entry]:
        if pick.pass_through:
            # LiteLLM looks at this after the pick, and refuses the request.
            entries = [e for e in entries if (e.get("litellm_params") or {}).get("use_in_pass_through")] or entries
        exchange = call.exchange
        assert exchange is not None  # noqa: S101  # the callers have looked
        if not entries:
            return entries
        pick.asked = True
        found = [self._catalog.serving(entry) for entry in entries]
        withheld = self._withheld(self._catalog.deployments(found[0].group), found, pick, exchange.ctx.identity.team_id)
        inactive = [Dropped(d.id, "pointsman", str(d.drained)) for d in found if d.info.get("active") is False]
        if len(inactive) == len(found) and self._goes_on(call, pick, entries, request)[1]:
            exchange.nothing_offered([*withheld, *inactive])
            return []
        left = exchange.select(
            found,
            key=call,
            has_fallback=bool(exchange.hooks.select) and any(self._goes_on(call, pick, entries, request)),
            withheld=withheld,
        )
        if len(left) == len(entries):
            return entries
        ids = {candidate.deployment.id for candidate in left}
        return [entry for entry, deployment in zip(entries, found, strict=True) if deployment.id in ids]

    def _nothing_offered(self, pick: _Pick, error: Exception | None = None) -> None:
        """Show why LiteLLM has left out every deployment, as when all are in cooldown: it asks no plugin then.

        Args:
            pick: The pick.
            error: What it ended with, where that is known: the reason that no filter has given.
        """
        call = current_call.get()
        exchange = None if call is None else call.exchange
        if exchange is None or pick.asked:
            return
        group = self._catalog.deployments(pick.model)
        withheld = self._withheld(group, (), pick, exchange.ctx.identity.team_id)
        if error is not None:
            unknown = f"{_UNAVAILABLE}: {type(error).__name__}"
            withheld = [replace(one, reason=unknown) if one.reason == _UNAVAILABLE else one for one in withheld]
        if withheld:
            exchange.nothing_offered(withheld)

    def _goes_on(
        self, call: Call, pick: _Pick, entries: Sequence[Entry], request: Mapping[str, Any]
    ) -> tuple[bool, bool]:
        """Return whether LiteLLM goes on when this pick, or the attempt that it is a part of, finds no deployment.

        Returns:
            Whether in another model group, and whether with a higher ``order`` of this one.
        """
        if isinstance(call, ClientCall):
            elsewhere, by_order = goes_on(call, pick.model, request.get("fallback_depth"), self._catalog)
        else:
            assert call.exchange is not None  # noqa: S101  # the caller has looked
            elsewhere, by_order = call.exchange.turn.elsewhere, call.exchange.turn.by_order
        orders = [order for entry in entries if (order := _order(entry)) is not None]
        higher = orders and any((_order(entry) or 0) > max(orders) for entry in pick.available or ())
        return elsewhere, bool(by_order and higher)

    def _withheld(
        self, group: Sequence[Deployment], found: Sequence[Deployment], pick: _Pick, team: str | None
    ) -> list[Dropped]:
        """Return what LiteLLM has left out itself of a group, of a caller in this team."""
        if len(group) <= len(found):
            return []
        ids = {deployment.id for deployment in found}
        available = {_id(entry): entry for entry in pick.available or ()}
        orders = [order for entry in available.values() if _id(entry) in ids and (order := _order(entry)) is not None]

        def why(one: Deployment) -> str:
            if one.info.get("team_id") not in {None, team}:
                # LiteLLM looks at the team when it collects a group's deployments, before its filters.
                return _OTHER_TEAM
            return _why_withheld(one.id, available.get(one.id), orders, (pick.left_out or {}).get(one.id))

        return [Dropped(one.id, _GATEWAY, why(one)) for one in group if one.id not in ids]


def _why_withheld(name: str, entry: Entry | None, orders: Sequence[int], filtered: str | None) -> str:
    """Return why LiteLLM has left a deployment out.

    Args:
        name: The deployment's id.
        entry: Its entry, where it came as far as LiteLLM's later filters.
        orders: The ``order`` of the deployments that are left.
        filtered: What the filter says that has left it out, where that is known.
    """
    if entry is not None and filtered in {None, ORDER}:
        order = _order(entry)
        if order is not None and orders and order > min(orders):
            return f"its order is {order}; those of order {min(orders)} come first"
    if filtered in {None, COOLDOWN}:
        return _cooldown(name) or filtered or _UNAVAILABLE
    return filtered or _UNAVAILABLE


def _cooldown(name: str) -> str | None:
    """Return why a deployment cools down, as far as this worker knows; None when it does not. Asks no shared cache."""
    found = _native_cooldown(name) if NATIVE_ROUTER else _cached_cooldown(name)
    if not isinstance(found, Mapping):
        return None
    until = float(found.get("timestamp") or 0) + float(found.get("cooldown_time") or 0)
    ends = datetime.fromtimestamp(until, UTC).strftime("%H:%M:%SZ")
    return f"in cooldown after status {found.get('status_code')}, until {ends}"


def _cached_cooldown(name: str) -> Any:
    cache = getattr(router(), "cooldown_cache", None)
    key_of = getattr(cache, "get_cooldown_cache_key", None)
    store = getattr(cache, "cooldown_store", None) or getattr(cache, "cache", None)
    memory = getattr(store, "in_memory_cache", None)
    return None if key_of is None or memory is None else memory.get_cache(key_of(name))


def _native_cooldown(name: str) -> Any:
    try:
        return router().health().cooldowns.cooldown_store.snapshot().get(f"deployment:{name}:cooldown")
    except AttributeError:
        return None  # another version's


def _id(entry: Mapping[str, Any]) -> str:
    return str((entry.get("model_info") or {}).get("id"))


def _order(entry: Mapping[str, Any]) -> int | None:
    order = (entry.get("litellm_params") or {}).get("order")
    return order if isinstance(order, int) else None
