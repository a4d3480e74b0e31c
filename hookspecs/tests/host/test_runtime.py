"""What the host lends to plugins: events, background tasks, signals, ids, and a start and stop that leave nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
import weakref
from contextvars import ContextVar, copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman import hookimpl
from pointsman.errors import PluginLoadError, StoreUnavailable
from pointsman.host import runtime
from pointsman.host.host import Environment
from pointsman.host.isolation import Faults
from pointsman.host.runtime import EventBus, SignalBoard, SystemClock, TaskGroup, new_id
from pointsman.store.sqlite import Outcome, SqliteThread, unhurried
from pointsman.testing import FakeClock, FragileStore
from pointsman.types import Event, Signal, SignalStatus

pytestmark = pytest.mark.usefixtures("leak_check")


# -- events -----------------------------------------------------------------------------------------------------------


class Numbered(Event):
    """An event that its source identifies."""


async def bus(deliver, capacity=10_000):
    """Run an event bus; return it with its task."""
    made = EventBus(deliver, capacity)
    return made, asyncio.create_task(made.run())


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=20), st.integers(0, 3))
def test_events_arrive_in_the_order_they_were_announced(sources, waits):
    """One after another, however long each takes to deliver; an event announced by a delivery comes after them."""

    async def scenario():
        heard = []

        async def deliver(event):
            for _ in range(waits):
                await asyncio.sleep(0)
            heard.append(event.source)
            if event.source == "a":
                made.publish(Event(source="echo"))

        made, task = await bus(deliver)
        for source in sources:
            made.publish(Event(source=source))
        await made.drain(5.0)
        assert heard == sources + ["echo"] * sources.count("a")
        task.cancel()

    asyncio.run(scenario())


async def test_a_full_queue_drops_and_tells(caplog):
    """Announcing never waits and never raises: what does not fit is dropped, counted and logged."""
    heard = []

    async def deliver(event):
        heard.append(event)

    made, task = await bus(deliver, capacity=2)
    for _ in range(5):
        made.publish(Numbered())
    assert made.dropped == 3
    assert "event Numbered was dropped: the queue is full (3 so far)" in caplog.text
    await made.drain(5.0)
    assert len(heard) == 2
    task.cancel()


async def test_plugins_that_answer_each_others_events_end_and_requests_are_served(harness, plugin, caplog):
    """A row of answers is cut off; until then, and however full the queue is, the event loop is not held."""
    heard = []

    class Echo:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def on_event(self, event):
            heard.append(event)
            self.services.publish(Event())

    async with harness([plugin(Echo)]) as h:
        h.publish(Event())
        assert (await h.request()).status == 200
        await h.settled()
        assert len(heard) == runtime.MOST_ANSWERS
        assert h.host.events.dropped == 1
        assert "plugins answer one event with another; this one, of 'echo'," in caplog.text
        h.publish(Event())  # a new one is delivered
        await h.settled()
        assert len(heard) == 2 * runtime.MOST_ANSWERS


async def test_draining_waits_no_longer_than_it_may():
    made, task = await bus(lambda _: asyncio.sleep(3600))
    made.publish(Event())
    await made.drain(0.01)
    task.cancel()
    await asyncio.wait({task})


async def test_events_are_delivered_before_the_stop(harness, plugin):
    """What was announced a moment before the worker stops is heard, and heard before ``shutdown``."""
    heard = []

    class Hearing:
        @hookimpl
        async def on_event(self, event):
            await asyncio.sleep(0)
            heard.append(event.source)

        @hookimpl
        async def shutdown(self):
            heard.append("shutdown")

    async with harness([plugin(Hearing)]) as h:
        h.publish(Event(source="last words"))
    assert heard == ["last words", "shutdown"]


# -- background tasks -------------------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def group(clock):
    group = TaskGroup("owner", clock, Faults())
    yield group
    await group.cancel()


async def test_a_task_that_fails_is_counted_and_logged(group, caplog):
    async def fail():
        raise ValueError("broken")

    group.spawn(fail(), name="work")
    await group.wait(5.0)
    assert group._faults.of("owner") == {"task work": 1}
    assert "plugin 'owner': task work: ValueError: broken" in caplog.text


@pytest.mark.parametrize("how", [ValueError, asyncio.CancelledError])
async def test_repeated_work_goes_on_after_a_failure(group, clock, how):
    """Now, and then at the multiples of its interval, whatever became of the calls before."""
    rounds = []

    async def work():
        rounds.append(clock.monotonic())
        await clock.sleep(1.0)
        if len(rounds) == 2:
            raise how

    group.every(2.0, work, name="work")
    await clock.advance(8.5)
    assert rounds == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert group.names() == ["owner:work"]
    assert group._faults.of("owner") == {"task work": 1}


@pytest.mark.parametrize(
    ("starts_at", "takes_s", "rounds"),
    [
        (0.0, 0.0, [0.0, 2.0, 4.0, 6.0]),
        (0.5, 0.0, [0.5, 2.0, 4.0, 6.0]),
        (1.5, 0.0, [1.5, 2.5, 4.0, 6.0]),
        (0.0, 1.5, [0.0, 2.5, 6.0]),
        (0.0, 2.0, [0.0, 4.0, 8.0]),
    ],
    ids=["in time", "late", "just before its time", "slow", "for a whole interval"],
)
async def test_repeated_work_has_the_same_times_whenever_it_starts(group, clock, starts_at, takes_s, rounds):
    """What is done every two seconds wakes the worker together; what is slow pauses for half of the interval."""
    begun = []

    async def work():
        begun.append(clock.monotonic())
        await clock.sleep(takes_s)

    await clock.advance(starts_at)
    group.every(2.0, work, name="work")
    await clock.advance(8.4 - starts_at)
    assert begun[: len(rounds)] == rounds


async def test_intervals_are_counted_from_the_start_of_the_worker(clock):
    """So that workers of one machine do not all ask the store at the same moment."""
    group, begun = TaskGroup("owner", clock, Faults(), since=0.25), []

    async def work():
        begun.append(clock.monotonic())

    await clock.advance(1.0)
    group.every(0.5, work, name="work")
    await clock.advance(1.0)
    await group.cancel()
    assert begun == [1.0, 1.25, 1.75]


@pytest.mark.parametrize("interval_s", [0.1, 0.2, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("early_s", [0.0, 0.002], ids=["in time", "early"])
async def test_a_timer_that_is_early_or_rounded_is_not_one_more_call(group, clock, interval_s, early_s):
    begun = []

    async def work():
        begun.append(clock.monotonic())

    group._clock = Early(clock, early_s)
    group.every(interval_s, work, name="work")
    await clock.advance(100 * interval_s - 0.01)
    assert len(begun) == 100


class Early:
    """A clock whose timers end too early."""

    def __init__(self, clock, early_s):
        self.monotonic = clock.monotonic
        self._clock = clock
        self._early_s = early_s

    async def sleep(self, seconds):
        await self._clock.sleep(seconds - self._early_s)


@pytest.mark.parametrize("ends", ["fails", "returns", "is cancelled by itself"])
async def test_work_that_never_ends_is_restarted_with_growing_delays_and_is_a_problem(group, clock, ends):
    started = []

    async def work():
        started.append(clock.monotonic())
        if ends == "fails":
            raise ValueError("the third thing")
        if ends != "returns":
            raise asyncio.CancelledError

    group.forever(work, name="loop")
    for _ in range(40):
        await clock.advance(1)
    assert [round(later - earlier) for earlier, later in itertools.pairwise(started)] == [1, 2, 4, 8, 16]
    (problem,) = group.problems()
    assert "'loop' of owner failed" in problem
    assert ("the third thing" in problem) == (ends == "fails")
    await group.cancel()


async def test_problem_of_restarted_work_is_over_once_it_has_run(group, clock):
    failing = [True]

    async def work():
        if failing:
            failing.clear()
            raise ValueError
        await clock.sleep(10**6)

    group.forever(work, name="loop")
    await clock.advance(1)
    assert group.problems()
    await clock.advance(runtime.SHOWN_S)
    assert group.problems() == []
    await group.cancel()


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan")])
async def test_an_interval_must_be_positive(group, interval_s):
    async def work():
        """Never run."""

    with pytest.raises(ValueError, match=r"task 'x' of plugin 'owner': the interval must be more than 0"):
        group.every(interval_s, work, name="x")


async def test_cancelling_ends_everything(group, clock):
    """Running, sleeping and not yet begun: all end, their clean-up runs, and the group is empty."""
    cleaned = []

    async def work():
        try:
            await clock.sleep(60.0)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    group.spawn(work(), name="sleeping")
    await clock.quiet()
    group.spawn(work(), name="not begun")
    await group.cancel()
    assert (cleaned, group.names()) == ([True], [])


async def test_a_task_that_will_not_end_is_left_and_told(group, monkeypatch, caplog):
    """Shutdown does not wait forever for a task that ignores its cancellation."""
    monkeypatch.setattr(runtime, "CANCEL_DEADLINE_S", 0.02)
    let_go = asyncio.Event()

    async def stubborn():
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    group.spawn(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await group.cancel()
    assert "background task owner:stubborn ignores its cancellation and is abandoned" in caplog.text
    let_go.set()


async def test_tasks_end_with_the_worker(harness, plugin):
    """A plugin's tasks run until after its ``shutdown``, and are over when the worker has stopped."""
    log = []

    class Working:
        @hookimpl
        async def startup(self, services):
            async def work():
                try:
                    await asyncio.Event().wait()
                finally:
                    log.append("task")

            services.tasks.spawn(work(), name="work")

        @hookimpl
        async def shutdown(self):
            log.append("shutdown")

    async with harness([plugin(Working)]) as h:
        await h.request()
    assert log == ["shutdown", "task"]


# -- signals, ids, the real environment -------------------------------------------------------------------------------


def test_signals_are_the_latest_per_deployment():
    board = SignalBoard()
    first = Signal(deployment_id="a", status=SignalStatus.AVAILABLE, recorded_at=1.0)
    second = Signal(deployment_id="a", status=SignalStatus.EXHAUSTED, recorded_at=2.0)
    board.put(first)
    board.put(second)
    assert (board.get("a"), board.get("b"), dict(board.all())) == (second, None, {"a": second})
    with pytest.raises(TypeError):
        board.all()["a"] = first
    board.forget("a")
    board.forget("nobody")
    assert (board.get("a"), dict(board.all())) == (None, {})


def test_ids_are_unique_hexadecimal_and_in_order_of_time(monkeypatch):
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    at = iter([1_000_000, 2_000_000])
    monkeypatch.setattr(runtime.time, "time_ns", lambda: next(at))
    assert new_id() < new_id()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_makes_ids_of_its_own():
    """Digits that its parent has in store would come twice."""
    code = (
        "import os; from pointsman.host.runtime import new_id; new_id(); r, w = os.pipe()\n"
        "if os.fork() == 0: os.write(w, new_id()[12:].encode()); os._exit(0)\n"
        "os.wait(); print(os.read(r, 99).decode(), new_id()[12:])"
    )
    ran = subprocess.run(  # noqa: S603  # our own
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    child, parent = ran.stdout.split()
    assert child != parent


async def test_the_real_environment_is_real():
    """Workers have different names that can be part of a key; the clock goes on by itself and can wait."""
    names = {Environment.real().worker for _ in range(20)}
    assert len(names) == 20
    assert all("/" not in name for name in names)
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.01)
    assert clock.monotonic() > before
    assert clock.now() > 1_700_000_000


async def test_a_timer_of_the_systems_clock_keeps_nothing_of_its_callers_context():
    """The event loop keeps a timer that was cancelled until it would have been due."""

    class Body(dict):
        """A request's body."""

    held: ContextVar[Body | None] = ContextVar("held", default=None)
    rung = asyncio.get_running_loop().create_future()

    def request():
        body = Body()
        held.set(body)
        SystemClock().call_later(3600.0, rung.cancel).cancel()
        return weakref.ref(body)

    gone = copy_context().run(request)
    assert gone() is None
    SystemClock().call_later(0.0, lambda: rung.set_result(held.get()))
    assert await rung is None


# -- start and stop ---------------------------------------------------------------------------------------------------


async def test_a_start_that_fails_undoes_itself(harness, plugin):
    """The plugins that had started are shut down, their tasks end, the store is closed, and the reason is reported."""
    log = []

    class First:
        @hookimpl
        async def startup(self, services):
            services.tasks.every(1.0, lambda: asyncio.sleep(3600), name="work")
            log.append("first started")

        @hookimpl
        async def shutdown(self):
            log.append("first shut down")

    class Second:
        @hookimpl
        async def startup(self, services):
            raise OSError("no disk")

        @hookimpl
        async def shutdown(self):
            log.append("second shut down")

    class Third:
        @hookimpl
        async def startup(self, services):
            log.append("third started")

    h = harness([plugin(First), plugin(Second), plugin(Third)], store="disk")
    with pytest.raises(PluginLoadError, match="plugin 'second': its start-up failed: OSError: no disk"):
        await h.start()
    assert log == ["first started", "first shut down"]


async def test_routes_that_fail_stop_the_start(harness, plugin):
    class Broken:
        @hookimpl
        def routes(self):
            raise KeyError("x")

    with pytest.raises(PluginLoadError, match="plugin 'broken': its routes failed: KeyError"):
        await harness([plugin(Broken)]).start()

    class Odd:
        @hookimpl
        def routes(self):
            return [5]

    with pytest.raises(PluginLoadError, match=r"its routes contain int, not a route of starlette\.routing"):
        await harness([plugin(Odd)]).start()


async def test_a_store_that_is_down_stops_the_start(harness):
    class Down(FragileStore):
        def __init__(self):
            super().__init__(None)
            self.down = True

    with pytest.raises(StoreUnavailable, match="down"):
        await harness(store=Down()).start()


async def test_services_need_a_started_host(harness):
    h = harness()
    async with h:
        pass
    h.host._store = None
    with pytest.raises(RuntimeError, match="has not been started"):
        h.host.services("x")


async def test_each_plugin_has_keys_of_its_own(harness, plugin):
    """Two plugins that use the same key do not meet."""

    class First:
        @hookimpl
        async def startup(self, services):
            await services.store.put("x", services.plugin)

    class Second(First):
        pass

    async with harness([plugin(First), plugin(Second)]) as h:
        assert (await h.stored("first"), await h.stored("second")) == ({"x": "first"}, {"x": "second"})


async def test_a_start_is_announced(harness, plugin, caplog):
    class Mute:
        pass

    with caplog.at_level(logging.INFO, "pointsman"):
        async with harness([plugin(Mute)]):
            pass
    assert "is ready: plugins mute; store memory; tracing off" in caplog.text


class _Answering:
    """A database that answers with what it is asked for."""

    def carry_out(self, works):
        return [Outcome(work) for work in works]

    def close(self):
        pass


@pytest.mark.parametrize("begin", ["every", "forever"])
async def test_work_that_goes_on_is_in_a_hurry_also_where_a_settlement_begins_it(begin):
    database = SqliteThread(_Answering, name="answering", where="it", timeout_s=600, unavailable=StoreUnavailable)
    await database.open()
    group, done = TaskGroup("p", SystemClock(), Faults()), asyncio.Event()

    async def work():
        await database.ask("a")
        done.set()
        await asyncio.Event().wait()

    with unhurried(60):
        if begin == "every":
            group.every(60, work, name="look")
        else:
            group.forever(work, name="look")
    async with asyncio.timeout(20):
        await done.wait()
    await group.cancel()
    await database.close()
