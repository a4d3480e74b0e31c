"""What the host provides to plugins: time, background tasks, signals, events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, ContextVar, copy_context
from math import isclose
from types import MappingProxyType
from typing import Final

from opentelemetry import context as otel_context

from ..plugin import Clock
from ..store.sqlite import unhurried
from ..types import Event, Signal
from .isolation import Faults, is_stray, let_through

log: Final = logging.getLogger("pointsman")

CANCEL_DEADLINE_S: Final = 5.0
#: First and longest wait before a task that runs for ever is restarted, in seconds.
RESTART_FIRST_S: Final = 1.0
RESTART_MOST_S: Final = 60.0
#: How long a failure of such a task is a problem in the status, in seconds.
SHOWN_S: Final = 120.0
#: How much too early a timer may end, in seconds: event loops count in milliseconds.
_EARLY_S: Final = 0.003


class SystemClock:
    """Real time."""

    #: The wall clock in Unix seconds, and a clock in seconds that never goes back.
    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> Coroutine[object, object, None]:
        """Wait."""
        return asyncio.sleep(seconds)

    def call_later(self, seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """Call something later, unless that is cancelled."""
        # The event loop keeps cancelled timers for a while: not with the context, and so the request, of their caller.
        return asyncio.get_running_loop().call_later(seconds, call, context=Context())


#: Random digits that are not used yet. To ask the system for ten bytes at a time costs more than all the rest of an id.
_DIGITS: Final[list[str]] = []
_DIGITS_OF_ID: Final = 20
_IDS_AT_ONCE: Final = 64
# A process that is forked must not go on with the digits of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_DIGITS.clear)


def new_id() -> str:
    """Return a unique id of 32 hexadecimal digits: 48 bits of Unix milliseconds, 80 random bits (as RFC 9562's v7)."""
    try:
        digits = _DIGITS.pop()
    except IndexError:
        fresh = os.urandom(_IDS_AT_ONCE * _DIGITS_OF_ID // 2).hex()
        digits, *rest = (fresh[at : at + _DIGITS_OF_ID] for at in range(0, len(fresh), _DIGITS_OF_ID))
        _DIGITS.extend(rest)
    return f"{time.time_ns() // 1_000_000:012x}{digits}"


#: Events in a row that each are published while the one before is delivered.
MOST_ANSWERS: Final = 100
#: The place in such a row of the event that is being delivered.
_place: Final[ContextVar[int]] = ContextVar("place", default=0)


def _untraced() -> Context:
    """Return this context without its running span: what goes on in the background may outlive the request that began it."""
    context = copy_context()
    context.run(otel_context.attach, otel_context.Context())
    return context


class TaskGroup:
    """Background tasks of one plugin (or of the host); ended together.

    Args:
        owner: The plugin, or ``pointsman``.
        clock: Time.
        faults: Where errors are counted.
        since: Where the intervals of periodic work begin, in seconds of the monotonic clock: the same for all groups of a
            worker, so that one turn of the event loop does what is due at the same time.

    Attributes:
        owner: The plugin, or ``pointsman``.
    """

    def __init__(self, owner: str, clock: Clock, faults: Faults, since: float = 0.0) -> None:
        self.owner = owner
        self._clock = clock
        self._faults = faults
        self._since = since
        self._tasks: set[asyncio.Task[object]] = set()
        #: When a task that runs for ever last failed, on the monotonic clock, and why.
        self._failed: dict[str, tuple[float, str]] = {}

    def spawn(self, work: Coroutine[object, object, object], *, name: str) -> None:
        """Run a coroutine in the background, in no trace; an error is logged and counted under ``task <name>``."""
        task = asyncio.create_task(self.guard(work, name), name=f"{self.owner}:{name}", context=_untraced())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step never touches its coroutine.
        task.add_done_callback(lambda _: work.close())

    def every(self, interval_s: float, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """See ``Tasks.every``."""
        if not interval_s > 0:
            raise ValueError(f"task {name!r} of plugin {self.owner!r}: the interval must be more than 0 seconds")
        with unhurried(0.0):  # it outlives what begins it, such as a settlement
            self.spawn(self._repeat(interval_s, work, name), name=name)

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[object]], name: str) -> None:
        while True:
            try:
                await work()
            except BaseException as err:  # a task that ends with SystemExit ends the process
                let_through(err)
                if isinstance(err, GeneratorExit) and not is_stray():
                    raise
                # The next round may succeed.
                self._faults.record(self.owner, f"task {name}", None, err)
            await self._clock.sleep(self._pause_s(interval_s))

    def _pause_s(self, interval_s: float) -> float:
        """Return the time until the next multiple of the interval, or half of it if that is sooner: work may be slow."""
        left_s = interval_s - (self._clock.monotonic() - self._since) % interval_s
        if left_s < _EARLY_S:
            left_s += interval_s
        return interval_s if isclose(left_s, interval_s) else max(left_s, interval_s / 2)

    def forever(self, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Keep ``work``, which does not end by itself, running until ``cancel``."""
        with unhurried(0.0):
            self.spawn(self._supervise(work, name), name=name)

    async def _supervise(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        wait_s = RESTART_FIRST_S
        while True:
            started = self._clock.monotonic()
            err: BaseException
            try:
                await work()
                err = RuntimeError("it ended by itself")
            except BaseException as raised:  # a task that ends with SystemExit ends the process
                let_through(raised)
                if isinstance(raised, GeneratorExit) and not is_stray():
                    raise
                err = raised
            self._faults.record(self.owner, f"task {name}", None, err)
            now = self._clock.monotonic()
            if now - started >= RESTART_MOST_S:
                wait_s = RESTART_FIRST_S
            self._failed[name] = (now, f"{type(err).__name__}: {err}")
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, RESTART_MOST_S)

    def problems(self) -> list[str]:
        """Return which tasks that run for ever have failed within the last minutes."""
        now = self._clock.monotonic()
        return [
            f"the background task {name!r} of {self.owner} failed {now - at:.0f} s ago and is restarted: {why}"
            for name, (at, why) in sorted(self._failed.items())
            if now - at < SHOWN_S
        ]

    async def guard(self, work: Coroutine[object, object, object], name: str) -> object:
        """Await the work of a task; an error is logged and counted."""
        try:
            return await work
        except BaseException as err:  # a background task has no caller to raise to
            let_through(err)
            if isinstance(err, GeneratorExit) and not is_stray():
                raise
            self._faults.record(self.owner, f"task {name}", None, err)
            return None

    def names(self) -> list[str]:
        """Return the names of the running tasks."""
        return sorted(task.get_name() for task in self._tasks)

    async def wait(self, timeout_s: float) -> None:
        """Wait for the running tasks, at most this long."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_s)

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended. A task that ignores this is logged and abandoned."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=CANCEL_DEADLINE_S)
            for task in stuck:
                log.error("background task %s ignores its cancellation and is abandoned", task.get_name())


class SignalBoard:
    """The latest signal per deployment."""

    def __init__(self) -> None:
        self._signals: dict[str, Signal] = {}

    def get(self, deployment_id: str) -> Signal | None:
        """Return the latest signal, or None."""
        return self._signals.get(deployment_id)

    def put(self, signal: Signal) -> None:
        """Replace the deployment's signal."""
        self._signals[signal.deployment_id] = signal

    def forget(self, deployment_id: str) -> None:
        """Remove the deployment's signal; harmless when there is none."""
        self._signals.pop(deployment_id, None)

    def all(self) -> Mapping[str, Signal]:
        """Return all of them by deployment id, read-only."""
        return MappingProxyType(self._signals)


class EventBus:
    """Delivers events one after another, in the order of publication, off the request path."""

    def __init__(self, deliver: Callable[[Event], Awaitable[None]], capacity: int = 10_000) -> None:
        self._deliver = deliver
        #: Each with its place in a chain of events that plugins publish in answer to one another.
        self._queue: asyncio.Queue[tuple[Event, int]] = asyncio.Queue(capacity)
        self.dropped = 0

    def publish(self, event: Event) -> None:
        """Publish an event. When 10 000 are waiting, or it answers a hundredth answer, it is dropped, counted and logged."""
        place = _place.get() + 1
        if place > MOST_ANSWERS:
            self._drop(
                event,
                f"plugins answer one event with another; this one, of {event.source!r}, is number {place} in a row",
            )
            return
        try:
            self._queue.put_nowait((event, place))
        except asyncio.QueueFull:
            self._drop(event, "the queue is full")

    def _drop(self, event: Event, why: str) -> None:
        self.dropped += 1
        log.warning("event %s was dropped: %s (%d so far)", type(event).__name__, why, self.dropped)

    async def run(self) -> None:
        """Deliver events until cancelled."""
        while True:
            event, place = await self._queue.get()
            token = _place.set(place)
            try:
                await self._deliver(event)
            finally:
                _place.reset(token)
                self._queue.task_done()
            # A plugin may never wait, and requests are served in between.
            if not self._queue.empty():
                await asyncio.sleep(0)

    async def drain(self, timeout_s: float) -> None:
        """Wait until every event published so far has been delivered, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
