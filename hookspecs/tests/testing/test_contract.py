"""The contract suite: a sound plugin passes it, and for each of its tests there is a plugin that fails that test."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ConfigDict
from starlette.responses import JSONResponse

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import ContractSuite
from pointsman.testing.contract import ContractViolation
from pointsman.testing.contract.base import SCENARIOS
from pointsman.types import AttemptKind, BudgetSpent, Refusal, Status, UpstreamRequest

_spec = importlib.util.spec_from_file_location("budget_plugin", Path(__file__).with_name("budget_plugin.py"))
budget_plugin = importlib.util.module_from_spec(_spec)
sys.modules["budget_plugin"] = budget_plugin
_spec.loader.exec_module(budget_plugin)
Budget, BudgetConfig = budget_plugin.Budget, budget_plugin.BudgetConfig

log = logging.getLogger("budget")


def info_of(factory, config=BudgetConfig):
    return PluginInfo(name="budget", config=config, factory=factory)


class Good(ContractSuite):
    """The suite with all that the sound plugin says about itself. Not collected by itself."""

    info = info_of(Budget)
    bad_configs = (({"limit_tokens": 0}, "limit_tokens"), ({"limit_tokens": "many"}, "limit_tokens"))
    api_key = "sk-known"
    routes_without_body = ("/reset",)
    streaming_routes = ("/live",)


class TestSound(Good):
    """A sound plugin passes."""


class TestSoundRacing(Good):
    """A sound plugin that makes the attempts itself passes."""

    config: ClassVar = {"race": True}


# -- for each test of the contract, who fails it ----------------------------------------------------------------------


class LaxConfig(PluginConfig):
    """Takes anything."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class LeavesTask(Budget):
    @hookimpl
    async def startup(self, services):
        await Budget.startup(self, services)
        self.task = asyncio.create_task(asyncio.sleep(3600))


KEPT_FILES = []


@pytest.fixture(autouse=True)
def close_kept_files():
    yield
    while KEPT_FILES:
        KEPT_FILES.pop().close()


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


OK, STREAM, NO_USAGE, ERROR = (
    next(scenario for scenario in SCENARIOS if scenario.name == name)
    for name in ("success", "stream", "no usage", "error")
)


@pytest.mark.parametrize(
    ("factory", "test", "arguments", "says"),
    [
        (LeavesTask, "test_it_starts_and_stops_again_and_again", (), "task"),
        (LeavesFile, "test_it_starts_and_stops_again_and_again", (), "open file"),
        (FailsWithoutUsage, "test_it_settles_once", (NO_USAGE,), "settle"),
        (FailsOnErrors, "test_it_settles_once", (ERROR,), "on_error"),
        (FailsWithoutUsage, "test_it_survives_odd_but_legal_values", (), "settle"),
        (UsesModelAsKey, "test_it_survives_odd_but_legal_values", (), "pre_route"),
        (NeedsPrices, "test_it_survives_a_gateway_that_knows_nothing", (), "post_response"),
        (KeepsSessions, "test_its_keys_do_not_grow_with_the_requests", (), "keeps_request_keys"),
        (CountsTwice, "test_settling_again_changes_nothing", (OK,), "used/all"),
        (AnnouncesTwice, "test_settling_again_changes_nothing", (STREAM,), "events"),
        (LooksThenWrites, "test_settling_at_the_same_time_changes_nothing", (), "used/all"),
        (RemembersInMemory, "test_settling_again_in_another_life_changes_nothing", (), "used/all"),
        (LooksThenWrites, "test_an_interrupted_settlement_can_be_repeated", (), "cut off"),
        (SwallowsCancellation, "test_an_interrupted_settlement_can_be_repeated", (), "goes on"),
        (SwallowsCancellation, "test_a_cancelled_request_does_no_harm", ("pre_route", False), "goes on"),
        (LosesSlots, "test_a_cancelled_request_does_no_harm", ("before_attempt", True), "next request"),
        (LosesCallers, "test_a_cancelled_authentication_does_no_harm", (), "another"),
        (LeavesTaskOnEvent, "test_a_cancelled_event_does_no_harm", (), "left behind"),
        (LeavesTaskWhenStartIsCutOff, "test_a_cancelled_start_or_stop_leaves_nothing_behind", ("startup",), "task"),
        (LeavesTaskWhenStopIsCutOff, "test_a_cancelled_start_or_stop_leaves_nothing_behind", ("shutdown",), "task"),
        (StatusIsNotJson, "test_its_status_is_json", (), "broken"),
        (StatusHasLines, "test_its_status_is_json", (), "one line"),
        (TrustsBodies, "test_its_routes_refuse_malformed_bodies", (), "500"),
        (IgnoresBodies, "test_its_routes_refuse_malformed_bodies", (), "200"),
        (TrustsPaths, "test_its_routes_survive_odd_paths_and_queries", (), "500"),
        (StoresPrompts, "test_it_keeps_no_secret", (), "store key budget/last"),
        (LogsHeaders, "test_it_keeps_no_secret", (), "log line"),
        (LogsProviderHeaders, "test_it_keeps_no_secret", (), "log line"),
        (LabelsPrompts, "test_it_keeps_no_secret", (), "span"),
        (ShowsKeys, "test_it_keeps_no_secret", (), "status"),
    ],
)
def test_who_breaks_the_contract_is_found(factory, test, arguments, says):
    """Each fault is found by the test that is there for it, and the message says what is wrong."""

    class Suite(Good):
        info = info_of(factory)

    with pytest.raises(AssertionError, match=says):
        getattr(Suite(), test)(*arguments)


def test_a_call_that_nobody_cancels_is_found():
    """A plugin that leaves a call of its own running when its request is cancelled breaks the contract."""

    class Suite(Good):
        info = info_of(LeavesProbe)
        config: ClassVar = {"race": True}

    with pytest.raises(ContractViolation, match="still running"):
        Suite().test_a_cancelled_request_does_no_harm("execute", stream=False)


def test_many_keys_per_request_are_found():
    """Saying keeps_request_keys is no licence for any number of them."""

    class Suite(Good):
        info = info_of(KeepsManyKeys)
        keeps_request_keys = True

    with pytest.raises(ContractViolation, match="more than four"):
        Suite().test_its_keys_do_not_grow_with_the_requests()


def test_lax_configuration_is_found():
    """A model that takes unknown keys or bad values, and a suite without a bad configuration, break the contract."""

    class Suite(Good):
        info = info_of(Budget, LaxConfig)

    with pytest.raises(ContractViolation, match="not refused"):
        Suite().test_an_unknown_key_is_refused()
    with pytest.raises(ContractViolation, match="not refused"):
        Suite().test_bad_configuration_is_refused()

    class Lazy(Good):
        bad_configs = ()

    with pytest.raises(ContractViolation, match="no bad_configs"):
        Lazy().test_bad_configuration_is_refused()


def test_a_message_without_the_key_is_found():
    """A refusal must say the word that the author promises."""

    class Suite(Good):
        bad_configs = (({"limit_tokens": 0}, "limit_usd"),)

    with pytest.raises(ContractViolation, match="does not say 'limit_usd'"):
        Suite().test_bad_configuration_is_refused()


def test_one_object_for_all_is_found():
    """A factory that returns the same object twice breaks the contract."""
    only = Budget(BudgetConfig())

    class Suite(Good):
        info = info_of(lambda _: only)

    with pytest.raises(ContractViolation, match="same object"):
        Suite().test_it_accepts_its_own_configuration()


@pytest.mark.parametrize(
    ("effect", "says"),
    [
        ("open({path!r}, 'w').close()", "writes"),
        ("import socket; socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True, name='x').start()", "thread"),
        ("import pointsman.host.host", "pointsman.host"),
        ("raise RuntimeError('no')", "cannot be imported"),
    ],
)
def test_an_import_with_effects_is_found(tmp_path, monkeypatch, effect, says):
    """Writing, connecting, starting threads, importing the host or failing at import breaks the contract."""
    file = tmp_path / "sinful_plugin.py"
    file.write_text("class Factory:\n    def __init__(self, config):\n        pass\n")
    spec = importlib.util.spec_from_file_location("sinful_plugin", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sinful_plugin", module)
    spec.loader.exec_module(module)
    file.write_text(effect.format(path=str(tmp_path / "written")) + "\n")

    class Suite(Good):
        info = info_of(module.Factory)

    with pytest.raises(ContractViolation, match=says):
        Suite().test_importing_it_has_no_effect()


def test_a_plugin_without_a_hook_skips_its_tests():
    """A plugin is not asked about hooks that it does not have."""

    class Nothing:
        def __init__(self, config):
            pass

    class Suite(Good):
        info = info_of(Nothing)
        api_key = None

    with pytest.raises(pytest.skip.Exception, match="has no settle"):
        Suite().test_an_interrupted_settlement_can_be_repeated()
    Suite().test_it_settles_once(OK)
