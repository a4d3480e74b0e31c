"""The contract suite: a sound plugin passes it, and for each of its tests there is a plugin that fails that test."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import time
import types
import warnings
from collections import deque
from typing import ClassVar

import faulty_plugins as faulty
import pytest
from budget_plugin import Budget, BudgetConfig

from pointsman import PluginInfo, hookimpl
from pointsman.testing import ContractSuite
from pointsman.testing.contract import ContractViolation
from pointsman.testing.contract.base import SCENARIOS


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


@pytest.fixture(autouse=True)
def close_kept_files():
    yield
    while faulty.KEPT_FILES:
        faulty.KEPT_FILES.pop().close()


OK, STREAM, NO_USAGE, ERROR = (
    next(scenario for scenario in SCENARIOS if scenario.name == name)
    for name in ("success", "stream", "no usage", "error")
)


@pytest.mark.parametrize(
    ("factory", "test", "arguments", "says"),
    [
        (faulty.LeavesTask, "test_it_starts_and_stops_again_and_again", (), "task"),
        (faulty.LeavesFile, "test_it_starts_and_stops_again_and_again", (), "open file"),
        (faulty.FailsWithoutUsage, "test_it_settles_once", (NO_USAGE,), "settle"),
        (faulty.FailsOnErrors, "test_it_settles_once", (ERROR,), "on_error"),
        (faulty.FailsWithoutUsage, "test_it_survives_odd_but_legal_values", (), "settle"),
        (faulty.UsesModelAsKey, "test_it_survives_odd_but_legal_values", (), "pre_route"),
        (faulty.NeedsPrices, "test_it_survives_a_gateway_that_knows_nothing", (), "post_response"),
        (faulty.KeepsSessions, "test_its_keys_do_not_grow_with_the_requests", (), "keeps_request_keys"),
        (faulty.CountsTwice, "test_settling_again_changes_nothing", (OK,), "used/all"),
        (faulty.AnnouncesTwice, "test_settling_again_changes_nothing", (STREAM,), "events"),
        (faulty.LooksThenWrites, "test_settling_at_the_same_time_changes_nothing", (), "used/all"),
        (faulty.RemembersInMemory, "test_settling_again_in_another_life_changes_nothing", (), "used/all"),
        (faulty.LooksThenWrites, "test_an_interrupted_settlement_can_be_repeated", (), "cut off"),
        (faulty.SwallowsCancellation, "test_an_interrupted_settlement_can_be_repeated", (), "goes on"),
        (faulty.SwallowsCancellation, "test_a_cancelled_request_does_no_harm", ("pre_route", False), "goes on"),
        (faulty.LosesSlots, "test_a_cancelled_request_does_no_harm", ("before_attempt", True), "next request"),
        (faulty.LosesCallers, "test_a_cancelled_authentication_does_no_harm", (), "another"),
        (faulty.LeavesTaskOnEvent, "test_a_cancelled_event_does_no_harm", (), "left behind"),
        (
            faulty.LeavesTaskWhenStartIsCutOff,
            "test_a_cancelled_start_or_stop_leaves_nothing_behind",
            ("startup",),
            "task",
        ),
        (
            faulty.LeavesTaskWhenStopIsCutOff,
            "test_a_cancelled_start_or_stop_leaves_nothing_behind",
            ("shutdown",),
            "task",
        ),
        (faulty.LabelIsNoText, "test_it_settles_once", (OK,), "pre_route"),
        (faulty.ForgesTheTenant, "test_it_settles_once", (OK,), "pre_route"),
        (faulty.ReservesForAnother, "test_it_settles_once", (OK,), "pre_route"),
        (faulty.SplitsTheAnswer, "test_it_settles_once", (OK,), "pre_route"),
        (faulty.ReplacesTheBody, "test_it_settles_once", (OK,), "transform_request"),
        (
            faulty.BlocksTheLoop,
            "test_it_gives_the_event_loop_back",
            (),
            r"'pre_route' held the event loop in 5 of 5 calls, .*, in BlocksTheLoop.pre_route \(.*faulty_plugins.py:\d+\)",
        ),
        (
            faulty.KeepsEveryRequest,
            "test_its_memory_does_not_grow_with_the_requests",
            (),
            r"most of them in KeepsEveryRequest.all; .*remembers_requests",
        ),
        (
            faulty.KeepsEveryKey,
            "test_its_memory_does_not_grow_with_the_requests",
            (),
            r"most of them in KeepsEveryKey.all; .*remembers_requests",
        ),
        (faulty.KeepsWhatFails, "test_its_memory_does_not_grow_with_the_requests", (), "refused by the provider"),
        (
            faulty.CancelsItsTask,
            "test_it_settles_once",
            (OK,),
            r"budget.pre_route \(1 times\): SelfCancellationError: it cancelled the task that called it",
        ),
        (faulty.StatusIsNotJson, "test_its_status_is_json", (), "broken"),
        (faulty.StatusHasLines, "test_its_status_is_json", (), "one line"),
        (faulty.TrustsBodies, "test_its_routes_refuse_malformed_bodies", (), "500"),
        (faulty.IgnoresBodies, "test_its_routes_refuse_malformed_bodies", (), "200"),
        (faulty.TrustsPaths, "test_its_routes_survive_odd_paths_and_queries", (), "500"),
        (faulty.StoresPrompts, "test_it_keeps_no_secret", (), "store key budget/last"),
        (faulty.LogsHeaders, "test_it_keeps_no_secret", (), "log line"),
        (faulty.LogsProviderHeaders, "test_it_keeps_no_secret", (), "log line"),
        (faulty.LabelsPrompts, "test_it_keeps_no_secret", (), "span"),
        (faulty.ShowsKeys, "test_it_keeps_no_secret", (), "status"),
    ],
)
def test_who_breaks_the_contract_is_found(factory, test, arguments, says):
    """Each fault is found by the test that is there for it, and the message says what is wrong."""

    class Suite(Good):
        info = info_of(factory)
        memory_s = 0.2

    with pytest.raises(AssertionError, match=says):
        getattr(Suite(), test)(*arguments)


@pytest.mark.parametrize(
    "factory", [faulty.NeverReturns, faulty.WaitsForALock, faulty.MatchesForEver], ids=lambda one: one.__name__
)
def test_a_hook_that_never_returns_is_ended_once(factory):
    """Whichever test meets it first names its line; the others are skipped with the reason."""

    class Suite(Good):
        info = info_of(factory)

    says = r"'budget': the hook 'post_response' held the event loop for more than 0.5 s, in .*post_response \(.*faulty_plugins.py:\d+\)"
    with pytest.raises(ContractViolation, match=says):
        Suite().test_it_settles_once(OK)
    with pytest.raises(pytest.skip.Exception, match="not run, since 'budget': the hook 'post_response'"):
        Suite().test_it_gives_the_event_loop_back()


def test_a_hook_that_is_stopped_in_a_debugger_is_not_ended():
    """Nor once its author goes on."""
    stopped = types.ModuleType("pdb")  # as far as its frames tell
    exec("import time\ndef interaction():\n    time.sleep(0.8)\n", vars(stopped))  # noqa: S102  # a module of that name

    class Stopped(Budget):
        @hookimpl
        def first_token(self):
            stopped.interaction()
            time.sleep(0.06)  # seen once more

    class Suite(Good):
        info = info_of(Stopped)

    Suite().test_it_settles_once(STREAM)


@pytest.mark.parametrize(
    ("factory", "test", "says"),
    [
        (
            faulty.ForgetsToAwaitThePut,
            "test_it_settles_once",
            r"'budget': hook 'settle': \w+.put\(...\) is not awaited in settle \(.*faulty_plugins.py:{line}\)",
        ),
        (
            faulty.ForgetsToAwaitItsOwn,
            "test_it_settles_once",
            r"'budget': hook 'pre_route': ForgetsToAwaitItsOwn.look\(...\) is not awaited in helper \(.*faulty_plugins.py:{line}\)",
        ),
    ],
)
def test_what_is_not_awaited_is_named(factory, test, says):
    """The hook and the line, whether the coroutine is dropped at once or with its function."""

    class Suite(Good):
        info = info_of(factory)

    lines, first = inspect.getsourcelines(factory)
    line = first + next(number for number, text in enumerate(lines) if "# not awaited" in text)
    with pytest.raises(ContractViolation, match=says.format(line=line)):
        getattr(Suite(), test)(OK)


def test_warnings_of_others_go_on():
    """A warning of other code reaches the author's filters as without the suite."""

    class Suite(Good):
        async def work(self):
            warnings.warn("of somebody else", UserWarning, stacklevel=1)

    suite = Suite()
    with pytest.warns(UserWarning, match="of somebody else"):
        suite.run(suite.work())


def test_memory_may_be_used_where_the_suite_is_told():
    """A plugin that remembers so many requests passes once it says so."""

    class Remembers(Budget):
        def __init__(self, config):
            super().__init__(config)
            self.last = deque(maxlen=300)

        @hookimpl
        async def pre_route(self, ctx, route):
            self.last.append(ctx.request_id)

    class Suite(Good):
        info = info_of(Remembers)
        remembers_requests = 300

    Suite().test_its_memory_does_not_grow_with_the_requests()


async def test_memory_is_seen_wherever_it_is():
    """Whatever holds what a request leaves: containers, queues, caches, closures, classes, modules, texts, timers, tasks; the place is named."""

    class Suite(Good):
        info = info_of(faulty.Hoarder)

    async with Suite().worker() as h:
        for hoard, where in faulty.HOARDS.items():
            keep = hoard(h.plugin("budget"))
            keep("the first")
            before = Suite()._held(h)
            for number in range(100):
                keep(f"request-{number}")
            grown = Suite()._held(h)
            grown.subtract(before)
            faulty.throw_away()
            assert grown.total() >= 100, hoard.__name__
            assert grown.most_common(1)[0][0] == where, hoard.__name__


def test_a_call_that_nobody_cancels_is_found():
    """A plugin that leaves a call of its own running when its request is cancelled breaks the contract."""

    class Suite(Good):
        info = info_of(faulty.LeavesProbe)
        config: ClassVar = {"race": True}

    with pytest.raises(ContractViolation, match="still running"):
        Suite().test_a_cancelled_request_does_no_harm("execute", stream=False)


def test_many_keys_per_request_are_found():
    """Saying keeps_request_keys is no licence for any number of them."""

    class Suite(Good):
        info = info_of(faulty.KeepsManyKeys)
        keeps_request_keys = True

    with pytest.raises(ContractViolation, match="more than four"):
        Suite().test_its_keys_do_not_grow_with_the_requests()


def test_lax_configuration_is_found():
    """A model that takes unknown keys or bad values, and a suite without a bad configuration, break the contract."""

    class Suite(Good):
        info = info_of(Budget, faulty.LaxConfig)

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


@pytest.mark.parametrize("members", [{}, {"info": "my-plugin"}])
def test_a_suite_without_a_plugin_says_so_once(members):
    with pytest.raises(TypeError, match="TestContract needs the plugin under test"):
        type("TestContract", (ContractSuite,), members)
