"""What the host lends to plugins: time, background tasks, signals, events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Final

from ..plugin import Clock
from ..types import Event, Signal
from .calls import Faults, is_stray

log: Final = logging.getLogger("pointsman")

CANCEL_DEADLINE_S: Final = 5.0


class SystemClock:
    """Real time."""

    def now(self) -> float:
        """Return the wall clock in Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return a clock in seconds that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def new_id() -> str:
    """Return a unique id of 32 hexadecimal digits: 48 bits of Unix milliseconds, 80 random bits (as RFC 9562's v7)."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


class TaskGroup:
    """Background tasks of one plugin (or of the host); ended together."""

    def __init__(self, owner: str, clock: Clock, faults: Faults) -> None:
        self._owner = owner
        self._clock = clock
        self._faults = faults
        self._tasks: set[asyncio.Task[object]] = set()

    def spawn(self, work: Coroutine[object, object, object], *, name: str) -> None:
        """Run a coroutine in the background; an error is logged and counted under ``task <name>``."""
        task = asyncio.create_task(self._guard(work, name), name=f"{self._owner}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step never touches its coroutine.
        task.add_done_callback(lambda _: work.close())
        # A task that is cancelled before its first step never gets to the work it was given.
        task.add_done_callback(lambda _: work.close())

    def every(self, interval_s: float, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Call ``work`` now and ``interval_s`` seconds after each call has ended."""
        if not interval_s > 0:
            raise ValueError(f"task {name!r} of plugin {self._owner!r}: the interval must be more than 0 seconds")
        self.spawn(self._repeat(interval_s, work, name), name=name)

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[object]], name: str) -> None:
        while True:
            try:
                await work()
            except (Exception, asyncio.CancelledError) as err:
                if isinstance(err, asyncio.CancelledError) and not is_stray():
                    raise
                # The next round may succeed.
                self._faults.record(self._owner, f"task {name}", None, err)
            await self._clock.sleep(interval_s)

    async def _guard(self, work: Coroutine[object, object, object], name: str) -> object:
        try:
            return await work
        except Exception as err:  # noqa: BLE001  # a background task has nobody to raise to
            self._faults.record(self._owner, f"task {name}", None, err)
            return None

    def names(self) -> list[str]:
        """Return the names of the running tasks."""
        return sorted(task.get_name() for task in self._tasks)

    async def wait(self, timeout_s: float) -> None:
        """Wait for the running tasks, at most this long."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_s)

    async def cancel(self) -> None:
        """End all tasks and wait until they have ended. One that will not end is logged and left behind."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=CANCEL_DEADLINE_S)
            for task in stuck:
                log.error("background task %s ignores its cancellation and is left behind", task.get_name())


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
    """Delivers events one after another, in the order they were announced, off the request path."""

    def __init__(self, deliver: Callable[[Event], Awaitable[None]], capacity: int = 10_000) -> None:
        self._deliver = deliver
        self._queue: asyncio.Queue[Event] = asyncio.Queue(capacity)
        self.dropped = 0

    def publish(self, event: Event) -> None:
        """Announce an event. When 10 000 are waiting it is dropped, counted and logged."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1
            log.warning("event %s was dropped: the queue is full (%d so far)", type(event).__name__, self.dropped)

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            event = await self._queue.get()
            try:
                await self._deliver(event)
            finally:
                self._queue.task_done()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything announced so far has been delivered, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
