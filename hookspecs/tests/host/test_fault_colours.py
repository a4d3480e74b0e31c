"""One rule for every fault, whatever a plugin raises and wherever: the request goes on by policy, and the process lives."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from pointsman import PluginConfig, hookimpl
from pointsman.errors import PluginLoadError
from pointsman.host.isolation import bounded
from pointsman.testing import error, ok
from pointsman.types import Denial, Event, Outcome, Route

pytestmark = pytest.mark.usefixtures("leak_check")


class Panic(BaseException):
    """As PyO3's ``PanicException``: an exception that is not an ``Exception``."""


COLOURS = {
    "exception": RuntimeError("a"),
    "panic": Panic("a"),
    "exit": SystemExit(1),
    "generator exit": GeneratorExit(),
    "stop": StopAsyncIteration(),
    "cancelled": asyncio.CancelledError(),
    "group": BaseExceptionGroup("a", [SystemExit(1)]),
    "recursion": RecursionError(),
    "memory": MemoryError(),
}
SYNC = ("select", "first_token", "post_response", "on_error", "answered", "status")
ASYNC = ("pre_route", "before_attempt", "execute", "settle", "on_event")


def failing(hook, err):
    """Return a class whose hook fails."""

    def fails(self):
        raise err

    async def fails_async(self):
        raise err

    function = fails_async if hook in ASYNC else fails
    function.__name__ = hook
    return type("Bad", (), {hook: hookimpl(function)})


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("hook", SYNC + ASYNC)
async def test_every_fault_in_every_hook(harness, plugin, hook, colour):
    """The client has its answer, later plugins get the hook, and the fault is counted against plugin and hook."""
    seen = []

    def sees(self):
        seen.append(hook)

    async def sees_async(self):
        seen.append(hook)

    function = sees_async if hook in ASYNC else sees
    function.__name__ = hook
    after = type("After", (), {hook: hookimpl(function)})

    class Naming:
        @hookimpl
        async def pre_route(self, route):
            return Route(target=route.target, executor="bad") if hook == "execute" else None

    async with harness([plugin(Naming), plugin(failing(hook, COLOURS[colour]), name="bad"), plugin(after)]) as h:
        script = [error(503), ok("text")] if hook == "on_error" else ok("text")
        result = await h.request(script=script, stream=hook == "first_token")
        h.publish(Event())
        await h.host.events.drain(5.0)
        h.host.describe()
        await h.clock.quiet()
        assert (result.status, result.text) == (200, "text")
        assert h.faults == {f"bad.{hook}": 1}
        assert seen == ([] if hook == "execute" else [hook])


@pytest.mark.parametrize("colour", ["exception", "panic", "exit"])
@pytest.mark.parametrize("hook", ["startup", "routes"])
async def test_a_fault_at_the_start_names_the_plugin(harness, plugin, hook, colour):
    """Whatever the start of a plugin raises, it is a ``PluginLoadError`` of this plugin, not the end of the process."""

    def fails(self):
        raise COLOURS[colour]

    async def fails_async(self):
        raise COLOURS[colour]

    function = fails_async if hook == "startup" else fails
    function.__name__ = hook
    with pytest.raises(PluginLoadError, match="'bad'"):
        async with harness([plugin(type("Bad", (), {hook: hookimpl(function)}), name="bad")]):
            pass


@pytest.mark.parametrize("colour", ["exception", "panic", "exit"])
async def test_a_background_task_may_raise_anything(harness, plugin, colour):
    """A task that ends with ``SystemExit`` or a panic is counted like any other; the loop goes on."""

    class Works:
        @hookimpl
        async def startup(self, services):
            async def work():
                raise COLOURS[colour]

            services.tasks.spawn(work(), name="once")
            services.tasks.every(60.0, work, name="often")
            services.tasks.forever(work, name="always")

    async with harness([plugin(Works)]) as h:
        await h.clock.advance(0.1)
        assert h.faults == {"works.task once": 1, "works.task often": 1, "works.task always": 1}
        assert (await h.request(script=ok("text"))).status == 200


async def _stubborn(log):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("cancelled")


async def test_a_swallowed_deadline_ends_the_hook(monkeypatch):
    """A coroutine that goes on after its deadline gets a moment to clean up and is then closed: it holds up nothing."""
    monkeypatch.setattr("pointsman.host.isolation.GRACE_S", 0.02)
    log = []
    with pytest.raises(TimeoutError):
        await bounded(_stubborn(log), 0.01)
    assert log == ["cancelled"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the running task is not left cancelled"
    await asyncio.sleep(0.03)


async def test_cleaning_up_after_a_deadline_is_allowed(monkeypatch):
    """What a plugin awaits in ``finally`` is waited for."""
    monkeypatch.setattr("pointsman.host.isolation.GRACE_S", 5.0)
    done = []

    async def cleans():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            done.append(True)

    with pytest.raises(TimeoutError):
        await bounded(cleans(), 0.01)
    assert done == [True]


@pytest.mark.parametrize("returns", [True, False])
async def test_a_request_is_cancelled_although_a_plugin_swallows_it(harness, plugin, monkeypatch, returns):
    """A client that has gone ends its request, also where a plugin catches the cancellation; the plugin is at fault."""
    monkeypatch.setattr("pointsman.host.isolation.GRACE_S", 0.02)
    entered = asyncio.Event()
    after = []

    class Swallows:
        @hookimpl
        async def pre_route(self):
            entered.set()
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if returns:
                        return

    class After:
        @hookimpl
        async def pre_route(self):
            after.append(True)

    async with harness([plugin(Swallows), plugin(After)]) as h:
        request = asyncio.create_task(h.request(moves_clock=False))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await h.settled()
        assert h.faults == {"swallows.pre_route": 1}
        assert (h.settlements[0].outcome, after) == (Outcome.CANCELLED, [])


async def test_waiting_does_not_count_as_holding_the_loop(harness, plugin):
    """Time spent waiting is not time on the event loop."""

    class Waits:
        @hookimpl
        async def pre_route(self):
            await asyncio.sleep(0.15)

    async with harness([plugin(Waits)]) as h:
        await h.request(script=ok("text"))
        (row,) = [row for row in h.host.describe()["hooks"] if row["plugin"] == "waits"]
        assert (row["blocked"], row["total_ms"] < 100.0) == (0, True)


async def test_no_plugin_is_charged_with_the_log_about_another(harness, plugin):
    """Of hooks that run one after another, each has its own time on the event loop."""
    written = []

    class SlowLog(logging.Handler):
        def emit(self, record):
            if "held the event loop" in record.getMessage():
                written.append(record)
                time.sleep(0.12)

    class Holds:
        @hookimpl
        async def pre_route(self):
            time.sleep(0.11)  # noqa: ASYNC251  # what it does wrong

        @hookimpl
        def select(self):
            time.sleep(0.11)

    class Quick:
        @hookimpl
        async def pre_route(self):
            pass

        @hookimpl
        def select(self):
            pass

    log, slow = logging.getLogger("pointsman"), SlowLog()
    log.addHandler(slow)
    try:
        async with harness([plugin(Holds), plugin(Quick)]) as h:
            await h.request()
            blocked = {(row["plugin"], row["hook"]): row["blocked"] for row in h.host.describe()["hooks"]}
    finally:
        log.removeHandler(slow)
    assert len(written) == 2
    assert {hook for hook, times in blocked.items() if times} == {("holds", "pre_route"), ("holds", "select")}


async def test_a_plugin_that_keeps_failing_is_switched_off_for_a_while(harness, plugin):
    """After ``suspend_after`` failures in a row it is not called for ``suspend_s``, says so, and is tried again."""
    calls = []

    class Broken:
        @hookimpl
        async def pre_route(self):
            calls.append(True)
            if len(calls) <= 4:
                raise RuntimeError("broken")

    section = {"suspend_after": 3, "suspend_s": 10.0}
    async with harness([(plugin(Broken), section)]) as h:
        for _ in range(6):
            assert (await h.request(script=ok("text"))).status == 200
        assert len(calls) == 3
        status = h.host.statuses()["broken"]
        assert (status.ok, "pre_route" in status.summary) == (False, True)
        await h.clock.advance(10.5)
        for _ in range(3):
            await h.request(script=ok("text"))
        assert len(calls) == 4, "the first call after the pause failed, so it is off again"
        await h.clock.advance(10.5)
        for _ in range(3):
            await h.request(script=ok("text"))
        assert len(calls) == 7
        assert h.host.statuses()["broken"].ok


async def test_a_plugin_whose_policy_is_to_deny_is_never_switched_off(harness, plugin):
    """What must not let requests pass is asked for each of them, however often it fails."""

    class Broken:
        @hookimpl
        async def pre_route(self):
            raise RuntimeError("broken")

    async with harness([(plugin(Broken), {"on_failure": "deny", "suspend_after": 1})]) as h:
        assert [(await h.request()).status for _ in range(3)] == [503] * 3
        assert h.faults == {"broken.pre_route": 3}


@pytest.mark.parametrize("hook", ["answered", "settle"])
async def test_what_must_not_miss_a_request_is_never_switched_off(harness, plugin, hook):
    """Hooks that free or account for what a request holds are called for each request."""
    calls = []

    def fails(self):
        calls.append(True)
        raise RuntimeError("broken")

    async def fails_async(self):
        calls.append(True)
        raise RuntimeError("broken")

    function = fails_async if hook == "settle" else fails
    function.__name__ = hook
    async with harness([(plugin(type("Broken", (), {hook: hookimpl(function)})), {"suspend_after": 1})]) as h:
        for _ in range(3):
            await h.request(script=ok("text"))
        await h.clock.quiet()
        assert len(calls) == 3


async def test_select_sees_the_route(harness, plugin):
    """``select`` and ``before_attempt`` see the finished route with its labels."""
    seen = []

    class Labels:
        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(region="eu")

    class Chooses:
        @hookimpl
        def select(self, route):
            seen.append(("select", route.labels["region"]))

        @hookimpl
        async def before_attempt(self, route):
            seen.append(("before_attempt", route.labels["region"]))

    async with harness([plugin(Labels), plugin(Chooses)]) as h:
        await h.request(script=ok("text"))
    assert seen == [("select", "eu"), ("before_attempt", "eu")]


class Denying(PluginConfig):
    on_failure: str = "deny"


async def test_select_follows_on_failure(harness, plugin):
    """A plugin that must not let requests pass leaves no candidate when its ``select`` fails."""

    class Broken:
        @hookimpl
        def select(self):
            raise RuntimeError("broken")

    async with harness([plugin(Broken, config=Denying)]) as h:
        result = await h.request(retries=0)
        assert (result.status, result.attempts, h.faults) == (429, (), {"broken.select": 1})


async def test_a_denial_is_not_a_fault(harness, plugin):
    """A plugin that denies as it should is not counted."""

    class Denies:
        @hookimpl
        async def pre_route(self):
            return Denial(status=403, code="no", message="No.")

    async with harness([plugin(Denies)]) as h:
        assert ((await h.request()).status, h.faults) == (403, {})
