"""Admin routes: what is resident; load, evict, pin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.admin import Input, Signed, read_body, read_query
from pointsman.errors import Conflict, InvalidInput, NotFound, nearest

from .pool import Unavailable
from .slots import ABSENT, State
from .views import model_json, pool_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from pointsman.plugin import Clock

    from .scheduler import Scheduler

_MAX_NAME_CHARS: Final = 256
_MAX_WAIT_S: Final = 600.0
#: Longest wait for the worker that decides, in seconds: another one may have to take over first.
_COMMAND_S: Final = 30.0


class PoolQuery(Input):
    """Query parameters that choose a pool, where several have a model of the same name."""

    pool: str | None = None


class LoadQuery(PoolQuery):
    """Query parameters of ``load``: how long to wait for it; 0 does not wait."""

    wait_s: float = Field(default=0.0, ge=0, le=_MAX_WAIT_S)


class EvictQuery(PoolQuery):
    """Query parameters of ``evict``: how long its requests may take to end, and whether to cut them."""

    wait_s: float = Field(default=30.0, ge=0, le=_MAX_WAIT_S)
    force: bool = False


class AdminRoutes:
    """The routes' handlers.

    Args:
        schedulers: Pool to its scheduler.
        clock: Time.
        problems: Returns the problems for an operator.
    """

    def __init__(self, schedulers: Mapping[str, Scheduler], clock: Clock, problems: Callable[[], list[str]]) -> None:
        self._schedulers = schedulers
        self._clock = clock
        self._problems = problems

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted under ``/pointsman/residency``."""
        return [
            Route("/", self.show, methods=["GET"]),
            Route("/{model:path}/load", self.load, methods=["POST"]),
            Route("/{model:path}/evict", self.evict, methods=["POST"]),
            Route("/{model:path}/pin", self.pin, methods=["POST"]),
            Route("/{model:path}/pin", self.unpin, methods=["DELETE"]),
        ]

    async def show(self, request: Request) -> Response:
        """``GET /``: the pools with their models; ``pool`` selects one. It asks no server."""
        wanted = read_query(PoolQuery, request).pool
        if wanted is not None and wanted not in self._schedulers:
            raise NotFound(
                f"there is no pool {wanted[:_MAX_NAME_CHARS]!r}{nearest(wanted[:_MAX_NAME_CHARS], self._schedulers)}",
                param="pool",
            )
        now = self._clock.now()
        pools = [pool_json(each, now) for name, each in self._schedulers.items() if wanted in {None, name}]
        return JSONResponse({"now": now, "pools": pools, "problems": self._problems()})

    async def load(self, request: Request) -> Response:
        """``POST /{model}/load``: load it, or mark it as just used; ``wait_s`` waits until it is resident."""
        query = read_query(LoadQuery, request)
        signed = await read_body(Signed, request)
        scheduler, model = self._find(request, query.pool)
        slot = scheduler.pool.slots[model]
        failures = slot.failures
        try:
            await scheduler.command("load", model, _reason("loaded", signed.by(request), signed.reason))
        except Unavailable as err:
            raise Conflict(str(err), param="model") from None
        if query.wait_s:
            await scheduler.until(
                lambda one: one.state is State.RESIDENT or one.failures > failures, model, query.wait_s
            )
            if slot.failures > failures and slot.state is not State.RESIDENT:
                raise Conflict(f"the model {model!r} could not be loaded: {slot.error}", param="model")
        return self._shown(scheduler, model)

    async def evict(self, request: Request) -> Response:
        """``POST /{model}/evict``: unload it when its requests have ended; 409 when they do not within ``wait_s``."""
        query = read_query(EvictQuery, request)
        signed = await read_body(Signed, request)
        scheduler, model = self._find(request, query.pool)
        slot = scheduler.pool.slots[model]
        if slot.state in ABSENT:
            return self._shown(scheduler, model)
        if slot.state is State.LOADING:
            raise Conflict(f"the model {model!r} is being loaded; evict it afterwards", param="model")
        what = "force" if query.force else "evict"
        evictions = slot.evictions
        await scheduler.command(what, model, _reason("evicted", signed.by(request), signed.reason))
        # At least as long as the server may take to confirm it.
        wait_s = max(query.wait_s, scheduler.config.confirm_s) if query.force else query.wait_s
        if not await scheduler.until(lambda one: one.evictions > evictions or one.state in ABSENT, model, wait_s):
            in_flight = scheduler.pool.in_flight(slot)
            await scheduler.command("keep", model, "")
            raise Conflict(
                f"the model {model!r} still has {in_flight} requests in flight and was kept; wait longer (wait_s) "
                "or cut them (force)"
                if in_flight and not query.force
                else f"the model {model!r} was not unloaded: {slot.error or f'it is {slot.state}'}",
                param="model",
            )
        return self._shown(scheduler, model)

    async def pin(self, request: Request) -> Response:
        """``POST /{model}/pin``: never evict it, until it is unpinned or the store is emptied."""
        return await self._pin(request, "pin")

    async def unpin(self, request: Request) -> Response:
        """``DELETE /{model}/pin``: let it be evicted again, also when the configuration pins it."""
        return await self._pin(request, "unpin")

    async def _pin(self, request: Request, what: str) -> Response:
        query = read_query(PoolQuery, request)
        scheduler, model = self._find(request, query.pool)
        await scheduler.command(what, model, "")
        if not await scheduler.until(lambda slot: slot.pinned == (what == "pin"), model, _COMMAND_S):
            raise Conflict(
                f"the worker that decides has not carried out the {what} of {model!r} within {_COMMAND_S:g} s; "
                "see whether the store answers, and ask again",
                param="model",
            )
        return self._shown(scheduler, model)

    def _find(self, request: Request, pool: str | None) -> tuple[Scheduler, str]:
        model = request.path_params["model"]
        found = [each for name, each in self._schedulers.items() if model in each.pool.slots and pool in {None, name}]
        if len(found) == 1:
            return found[0], found[0].pool.aliases.get(model, model)
        shown = model[:_MAX_NAME_CHARS]
        if found:
            raise InvalidInput(f"several pools have a model {shown!r}; choose one with pool", param="pool")
        known = {name for each in self._schedulers.values() for name in each.pool.slots}
        raise NotFound(f"no pool has a model {shown!r}{nearest(shown, known)}", param="model")

    def _shown(self, scheduler: Scheduler, model: str) -> Response:
        return JSONResponse(model_json(scheduler, scheduler.pool.slots[model], self._clock.now()))


def _reason(what: str, who: str, why: str) -> str:
    return f"{what} by {who}" + (f": {why}" if why else "")
