"""A plugin that fails affects no other: its policy decides what happens instead, and the fault is counted."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from pointsman import PluginConfig, hookimpl
from pointsman.testing import error
from pointsman.types import Event, Identity, Outcome, Route, Status

pytestmark = pytest.mark.usefixtures("leak_check")


class Strict(PluginConfig):
    """A plugin whose failure must not let requests pass."""

    on_failure: str = "deny"


def misbehave(how):
    """Raise or return what a hook must not."""
    if isinstance(how, type) and issubclass(how, BaseException):
        raise how("on purpose")
    return how


#: What a hook can do wrong: errors of every kind, a cancellation that nobody asked for, values of the wrong type.
WRONG = pytest.mark.parametrize(
    "how",
    [ValueError, KeyError, AssertionError, RecursionError, TimeoutError, asyncio.CancelledError, "text", 7, [1]],
    ids=lambda how: getattr(how, "__name__", repr(how)),
)


@pytest.fixture
def neighbours(plugin):
    """Two plugins that do their work, to stand before and after one that does not."""

    class Before:
        def __init__(self, config):
            self.log = []

        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(before="yes")

        @hookimpl
        def select(self, candidates):
            self.log.append("select")

        @hookimpl
        async def before_attempt(self):
            self.log.append("before_attempt")

        @hookimpl
        def post_response(self):
            self.log.append("post_response")

        @hookimpl
        def on_error(self):
            self.log.append("on_error")

        @hookimpl
        async def settle(self):
            self.log.append("settle")

        @hookimpl
        async def on_event(self):
            self.log.append("on_event")

    class After(Before):
        def __init__(self, config):
            self.log = []

        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(after="yes")

    return plugin(Before), plugin(After)


def logs(h):
    return [h.plugin(name).log for name in ("before", "after")]


def bad(plugin, hook, function, config=PluginConfig):
    """Make a plugin with one hook."""
    function.__name__ = hook
    return plugin(type("Bad", (), {hook: hookimpl(function)}), config=config)


# -- before the answer ------------------------------------------------------------------------------------------------


@WRONG
async def test_a_fault_in_pre_route_is_passed_over(harness, plugin, neighbours, how):
    """With ``on_failure: allow`` the request goes on as if the plugin were not there."""

    async def pre_route(self, ctx):
        return misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, "pre_route", pre_route), after]) as h:
        result = await h.request()
        assert (result.outcome, result.route.labels) == (Outcome.OK, {"before": "yes", "after": "yes"})
        assert h.faults == {"bad.pre_route": 1}


@WRONG
async def test_a_fault_in_pre_route_denies(harness, plugin, neighbours, how):
    """With ``on_failure: deny`` the answer is 503 with the plugin's name, later plugins do not run, and it is settled."""

    async def pre_route(self, ctx):
        return misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, "pre_route", pre_route, Strict), after]) as h:
        result = await h.request()
        await h.settled()
        assert (result.status, result.denial.code, result.denial.plugin) == (503, "plugin_failed", "bad")
        assert result.headers["retry-after"] == "1"
        assert (result.route.labels, result.attempts) == ({"before": "yes"}, ())
        assert "on purpose" not in result.denial.message
        assert logs(h) == [["settle"], ["settle"]]


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 503)])
async def test_the_configuration_overrides_the_policy(harness, plugin, policy, status):
    """``on_failure`` in the plugin's section decides, whatever its own default is."""

    async def pre_route(self, ctx):
        raise ValueError

    async with harness([(bad(plugin, "pre_route", pre_route, Strict), {"on_failure": policy})]) as h:
        assert (await h.request()).status == status


@WRONG
async def test_a_fault_in_select_skips_the_plugin(harness, plugin, neighbours, how):
    def select(self, candidates):
        return misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, "select", select), after]) as h:
        result = await h.request()
        assert (result.outcome, h.faults) == (Outcome.OK, {"bad.select": 1})
        assert [len(turn) for turn in result.selections] == [2]
        assert all(log[0] == "select" for log in logs(h))


async def test_select_cannot_bring_in_others(harness, plugin, neighbours):
    """Deployments that were not among the candidates are refused, also from a generator, and the plugin is skipped."""

    def select(self, candidates):
        stranger = h.gateway.catalog.deployments("backup-a")[0]
        return (type(candidates[0])(deployment=stranger) for _ in range(1))

    async with harness([bad(plugin, "select", select)]) as h:
        result = await h.request()
        assert [a.deployment.id for a in result.attempts] == ["chat-a"]
        assert h.faults == {"bad.select": 1}


@WRONG
@pytest.mark.parametrize(("config", "attempts"), [(PluginConfig, 1), (Strict, 3)])
async def test_a_fault_in_before_attempt_follows_the_policy(harness, plugin, how, config, attempts):
    """``allow`` makes the attempt; ``deny`` refuses it, so that the gateway retries and at last gives up."""

    async def before_attempt(self, attempt):
        return misbehave(how)

    async with harness([bad(plugin, "before_attempt", before_attempt, config)]) as h:
        result = await h.request()
        assert len(result.attempts) == h.faults["bad.before_attempt"] == attempts
        assert result.outcome is (Outcome.OK if config is PluginConfig else Outcome.ERROR)


@WRONG
async def test_a_fault_in_authenticate_denies(harness, plugin, how):
    """A plugin that fails to authenticate denies the request, whatever its policy."""

    async def authenticate(self, credential):
        return misbehave(how)

    async def knows_all(self, credential):
        return Identity(tenant="t")

    knowing = bad(plugin, "authenticate", knows_all)
    knowing = type(knowing)(name="knowing", config=knowing.config, factory=knowing.factory)
    async with harness([bad(plugin, "authenticate", authenticate), knowing]) as h:
        result = await h.request(api_key="sk-x")
        assert (result.status, result.denial.plugin, h.faults) == (503, "bad", {"bad.authenticate": 1})


# -- after the answer -------------------------------------------------------------------------------------------------

RAISED = pytest.mark.parametrize("how", [ValueError, asyncio.CancelledError], ids=lambda how: how.__name__)


@RAISED
@pytest.mark.parametrize("hook", ["post_response", "on_error"])
async def test_a_fault_in_an_observer_affects_no_other_plugin(harness, plugin, neighbours, hook, how):
    def observe(self, attempt):
        misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, hook, observe), after]) as h:
        result = await h.request(script=error(400) if hook == "on_error" else None)
        await h.settled()
        assert result.status == (400 if hook == "on_error" else 200)
        assert h.faults == {f"bad.{hook}": 1}
        assert logs(h) == [["select", "before_attempt", hook, "settle"]] * 2


@RAISED
async def test_a_fault_in_settle_does_not_hold_up_the_others(harness, plugin, neighbours, how):
    """The others settle once, at once; the one that failed is asked again until it succeeds."""
    asked = []

    async def settle(self, settlement):
        asked.append(settlement.request_id)
        if len(asked) < 3:
            misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, "settle", settle), after]) as h:
        await h.request()
        await h.clock.advance(10.0)
        await h.settled()
        assert len(asked) == 3
        assert [log.count("settle") for log in logs(h)] == [1, 1]
        assert h.faults == {"bad.settle": 2}


@RAISED
async def test_a_fault_in_on_event_stops_neither_others_nor_later_events(harness, plugin, neighbours, how):
    async def on_event(self, event):
        misbehave(how)

    before, after = neighbours
    async with harness([before, bad(plugin, "on_event", on_event), after]) as h:
        h.publish(Event())
        h.publish(Event())
        await h.settled()
        assert logs(h) == [["on_event"] * 2] * 2
        assert h.faults == {"bad.on_event": 2}


@pytest.mark.parametrize(
    "how",
    [
        ValueError,
        asyncio.CancelledError,
        "text",
        Status(ok=True, summary="x", details={"x": object()}),
        Status(ok=True, summary="x", details={"x": float("nan")}),
    ],
    ids=["ValueError", "CancelledError", "wrong type", "no JSON", "not a number"],
)
async def test_a_fault_in_status_shows_the_plugin_as_broken(harness, plugin, how):
    """One plugin's status, however wrong, neither breaks the page of all nor hides that something is wrong."""

    def status(self):
        return misbehave(how)

    async with harness([bad(plugin, "status", status)]) as h:
        answer = await h.admin.get("/status")
        assert answer.status_code == 200
        (shown,) = answer.json()["plugins"]
        assert (shown["ok"], shown["details"]) == (False, {"faults": {"status": 1}})
        assert shown["summary"].startswith("broken: plugin 'bad': hook 'status'")


async def test_faults_are_shown_with_a_good_status(harness, plugin):
    """A plugin that is fine in its own words still shows how often its hooks have failed."""

    async def pre_route(self, ctx):
        raise ValueError

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        await h.request()
        assert h.status("bad") == Status(ok=True, summary="running", details={"faults": {"pre_route": 1}})
        page = (await h.admin.get("/status")).json()
        assert page["faults"] == [{"plugin": "bad", "hook": "pre_route", "count": 1}]


async def test_a_fault_in_shutdown_lets_the_others_shut_down(harness, plugin):
    ended = []

    class First:
        @hookimpl
        async def shutdown(self):
            ended.append("first")

    async def shutdown(self):
        raise ValueError

    h = harness([plugin(First), bad(plugin, "shutdown", shutdown)])
    async with h:
        pass
    assert (ended, h.faults) == (["first"], {"bad.shutdown": 1})


async def test_a_fault_that_repeats_is_counted_always_and_logged_once(harness, plugin, caplog):
    """The log names fault, hook and plugin; a flood of the same fault is one line."""

    async def pre_route(self, ctx):
        raise ValueError("broken in the same way")

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        results = [await h.request() for _ in range(5)]
        assert h.faults == {"bad.pre_route": 5}
    lines = [r for r in caplog.records if r.levelno == logging.ERROR]
    (line,) = lines
    assert line.getMessage().startswith(f"plugin 'bad': hook 'pre_route', request {results[0].request_id}: ValueError")
    assert line.exc_info is not None


async def test_order_is_that_of_the_configuration(harness, plugin):
    """The same plugins the other way round run the other way round, in every hook."""

    def make(letter):
        def pre_route(self, route):
            return route.to(route.target + letter)

        async def coloured(self, route):
            return pre_route(self, route)

        coloured.__name__ = "pre_route"
        return plugin(type(letter, (), {"pre_route": hookimpl(coloured)}), name=letter)

    for order in ("ab", "ba"):
        async with harness([make(letter) for letter in order]) as h:
            assert (await h.request()).route == Route(target=f"chat{order}")


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
async def test_an_error_of_a_hook_ends_with_its_request(harness, plugin, kind, waits):
    """Its traceback refers to the request and its body: they are gone at once, not when garbage is next collected."""
    raised = []

    class OwnError(kind):
        def __init__(self):
            raised.append(weakref.ref(self))

    class Faulty:
        @hookimpl
        async def pre_route(self):
            if waits:
                await asyncio.sleep(0)
            raise OwnError

    async with harness([plugin(Faulty)]) as h:
        await h.request()  # the log of the test keeps its error
        gc.disable()
        try:
            await h.request()
            await h.settled()
            assert raised[-1]() is None
        finally:
            gc.enable()
