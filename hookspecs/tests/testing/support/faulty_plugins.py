"""One plugin for each way to break the contract. Everything else about them is sound."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import time
from collections import deque
from functools import lru_cache
from typing import ClassVar

from budget_plugin import Budget
from cachetools import FIFOCache
from pydantic import ConfigDict
from starlette.responses import JSONResponse

from pointsman import PluginConfig, hookimpl
from pointsman.events import BudgetSpent
from pointsman.types import AttemptKind, Refusal, Reservation, Status, UpstreamRequest

log = logging.getLogger("budget")


class LaxConfig(PluginConfig):
    """Takes anything."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class LeavesTask(Budget):
    @hookimpl
    async def startup(self, services):
        await Budget.startup(self, services)
        self.task = asyncio.create_task(asyncio.sleep(3600))


KEPT_FILES = []


class LeavesFile(Budget):
    @hookimpl
    async def startup(self, services):
        await Budget.startup(self, services)
        KEPT_FILES.append(open(__file__))  # noqa: ASYNC230, SIM115, PTH123  # this is what it does wrong


class FailsWithoutUsage(Budget):
    @hookimpl
    async def settle(self, settlement):
        for attempt in settlement.attempts:
            assert attempt.usage.total_tokens


class FailsOnErrors(Budget):
    @hookimpl
    def on_error(self, attempt):
        raise RuntimeError("unexpected")


class CountsTwice(Budget):
    @hookimpl
    async def settle(self, settlement):
        await self.services.store.add("used/all")


class AnnouncesTwice(Budget):
    @hookimpl
    async def settle(self, settlement):
        self.services.publish(BudgetSpent(tenant="t", cost_usd_micros=1, at=0.0))


class RemembersInMemory(Budget):
    @hookimpl
    async def settle(self, settlement):
        seen = self.__dict__.setdefault("seen", set())
        if settlement.request_id not in seen:
            seen.add(settlement.request_id)
            await self.services.store.add("used/all")


class LooksThenWrites(Budget):
    @hookimpl
    async def settle(self, settlement):
        done = f"done/{settlement.request_id}"
        if await self.services.store.get(done) is None:
            await self.services.store.add("used/all")
            await self.services.store.put(done, 1, ttl_s=60.0)


class SwallowsCancellation(Budget):
    @hookimpl
    async def settle(self, settlement):
        try:
            await Budget.settle(self, settlement)
        except asyncio.CancelledError:
            return

    @hookimpl
    async def pre_route(self, ctx, route):
        try:
            return await Budget.pre_route(self, ctx, route)
        except asyncio.CancelledError:
            return None


class LosesSlots(Budget):
    @hookimpl
    async def before_attempt(self, ctx, attempt):
        if self.free == 0:
            return Refusal(reason="no free slot")
        self.free -= 1
        await self.services.store.get("meta")
        self.free += 1
        return None

    @hookimpl
    def post_response(self, attempt):
        """Free nothing: it has been freed."""

    @hookimpl
    def on_error(self, attempt):
        """As above."""


class LeavesProbe(Budget):
    @hookimpl
    async def execute(self, ctx, route, upstream):
        self.services.upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PROBE, body={}, stream=True))
        return await Budget.execute(self, ctx, route, upstream)


class LosesCallers(Budget):
    @hookimpl
    async def authenticate(self, credential):
        if self.__dict__.setdefault("busy", False):
            return None
        self.busy = True
        answer = await Budget.authenticate(self, credential)
        self.busy = False
        return answer


class LeavesTaskOnEvent(Budget):
    @hookimpl
    async def on_event(self, event):
        task = asyncio.create_task(asyncio.sleep(3600))
        await self.services.store.get("meta")
        task.cancel()


class LeavesTaskWhenStartIsCutOff(Budget):
    @hookimpl
    async def startup(self, services):
        task = asyncio.create_task(asyncio.sleep(3600))
        await Budget.startup(self, services)
        await services.store.get("meta")
        task.cancel()


class LeavesTaskWhenStopIsCutOff(Budget):
    @hookimpl
    async def shutdown(self):
        task = asyncio.create_task(asyncio.sleep(3600))
        await Budget.shutdown(self)
        task.cancel()


class UsesModelAsKey(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        await self.services.store.get(f"model/{ctx.model}")


class NeedsPrices(Budget):
    @hookimpl
    def post_response(self, attempt):
        assert self.services.prices.get(attempt.deployment).input_usd > 0


class KeepsSessions(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        await self.services.store.add(f"sessions/{hashlib.sha256(repr(ctx.session_id).encode()).hexdigest()}")


class KeepsManyKeys(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        for number in range(9):
            await self.services.store.put(f"request/{ctx.request_id}/{number}", 1)


class LabelIsNoText(Budget):
    @hookimpl
    async def pre_route(self, route):
        return route.with_labels(arm=5)


class ForgesTheTenant(Budget):
    @hookimpl
    async def pre_route(self, route):
        return route.with_labels(tenant="somebody else")


class ReservesForAnother(Budget):
    @hookimpl
    async def pre_route(self, route):
        return route.with_reservation(Reservation(plugin="quota", id="1", expires_at=4e9))


class SplitsTheAnswer(Budget):
    @hookimpl
    async def pre_route(self, route):
        return route.with_headers({"x-budget": "1\r\nset-cookie: a=b"})


class ReplacesTheBody(Budget):
    @hookimpl
    async def transform_request(self, body):
        body["messages"] = []


class BlocksTheLoop(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        time.sleep(0.12)  # noqa: ASYNC251  # what it does wrong


class NeverReturns(Budget):
    @hookimpl
    def post_response(self, attempt):
        while True:
            pass


class WaitsForALock(Budget):
    @hookimpl
    def post_response(self, attempt):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


class MatchesForEver(Budget):
    @hookimpl
    def post_response(self, attempt):
        re.fullmatch(r"(a+)+b", "a" * 60)  # the interpreter is given to no other thread meanwhile


class ForgetsToAwaitThePut(Budget):
    @hookimpl
    async def settle(self, ctx, settlement):
        self.services.store.put("last", 1)  # not awaited


class ForgetsToAwaitItsOwn(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        await self.helper()

    async def helper(self):
        kept = self.look()  # not awaited
        return kept is None

    async def look(self):
        pass


class KeepsEveryRequest(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        self.__dict__.setdefault("all", []).append(ctx.request_id)


class KeepsEveryKey(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        self.__dict__.setdefault("all", {})[ctx.request_id] = True


class KeepsWhatFails(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        self.__dict__.setdefault("all", {})[ctx.request_id] = True

    @hookimpl
    def post_response(self, ctx):
        del self.__dict__["all"][ctx.request_id]


class CancelsItsTask(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        asyncio.current_task().cancel()


class Hoarder(Budget):
    """Keeps something for each request where ``HOARDS`` says."""


KEPT = []


class Slots:
    __slots__ = ("kept",)

    def __init__(self):
        self.kept = deque()


class Shared:
    kept: ClassVar = set()


def in_keys(plugin):
    plugin.kept = {}
    return lambda one: plugin.kept.setdefault(one, True)


def in_slots(plugin):
    plugin.kept = Slots()
    return plugin.kept.kept.append


def in_the_class(plugin):
    plugin.kept = None
    return Shared.kept.add


def in_the_module(plugin):
    plugin.kept = None
    return KEPT.append


def in_a_cache(plugin):
    plugin.kept = FIFOCache(10_000)
    return lambda one: plugin.kept.setdefault(one, 1)


def in_a_cached_function(plugin):
    plugin.kept = lru_cache(maxsize=None)(str.upper)
    return plugin.kept


def in_a_queue(plugin):
    plugin.kept = asyncio.Queue()
    return plugin.kept.put_nowait


def in_a_closure(plugin):
    kept = []
    plugin.kept = lambda: kept
    return kept.append


def in_a_text(plugin):
    plugin.kept = ""

    def keep(one):
        plugin.kept += f"{one} was here\n"

    return keep


def the_same_again_and_again(plugin):
    plugin.kept = []
    return lambda _: plugin.kept.append(True)


def in_timers(plugin):
    plugin.kept = None
    return lambda _: asyncio.get_running_loop().call_later(3600, int)


def in_tasks(plugin):
    plugin.kept = None
    return lambda _: plugin.services.tasks.spawn(asyncio.sleep(3600), name="kept")


HOARDS = {
    in_keys: "Hoarder.kept",
    in_slots: "Hoarder.kept",
    in_the_class: "faulty_plugins.Shared",
    in_the_module: "faulty_plugins.KEPT",
    in_a_cache: "Hoarder.kept._FIFOCache__order",
    in_a_cached_function: "Hoarder.kept",
    in_a_queue: "Hoarder.kept._queue",
    in_a_closure: "Hoarder.kept",
    in_a_text: "Hoarder.kept",
    the_same_again_and_again: "Hoarder.kept",
    in_timers: "timers",
    in_tasks: "tasks",
}


def throw_away():
    """Forget what modules and classes keep."""
    KEPT.clear()
    Shared.kept.clear()


class StatusIsNotJson(Budget):
    @hookimpl
    def status(self):
        return Status(ok=True, summary="running", details={"when": object()})


class StatusHasLines(Budget):
    @hookimpl
    def status(self):
        return Status(ok=True, summary="running\nfine")


class TrustsBodies(Budget):
    async def create(self, request):
        return JSONResponse((await request.json())["id"])


class IgnoresBodies(Budget):
    async def create(self, request):
        return JSONResponse({})


class TrustsPaths(Budget):
    async def get(self, request):
        return JSONResponse({"id": int(request.path_params["id"])})


class StoresPrompts(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        await self.services.store.put("last", json.dumps(ctx.body.get("messages")))


class LogsHeaders(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        log.debug("headers %s", dict(ctx.headers))


class LogsProviderHeaders(Budget):
    @hookimpl
    def on_error(self, attempt):
        log.warning("failed with %s", dict(attempt.headers))


class LabelsPrompts(Budget):
    @hookimpl
    async def pre_route(self, ctx, route):
        return route.with_labels(prompt=str(ctx.body.get("messages"))[:300])


class ShowsKeys(Budget):
    @hookimpl
    async def authenticate(self, credential):
        self.last = credential.api_key

    @hookimpl
    def status(self):
        return Status(ok=True, summary="running", details={"last": self.__dict__.get("last", "")})
