"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from ..plugin import Timer

T = TypeVar("T")

START_AT: Final = 1_750_000_000.0
"""Unix seconds at which a fake clock starts: a Sunday in June 2025."""

#: How often a run that waits for something real (a thread, a socket) looks again, in real seconds.
_POLL_S: Final = 0.002
#: Loop turns after which waiting for quiet gives up: something runs for ever without waiting.
_MOST_TURNS: Final = 10_000
#: Loop turns that must do on an event loop that does not show what is ready.
_BLIND_TURNS: Final = 50

#: Whether the running code, or the code that started its task, is moved on by ``FakeClock.run``.
_driven: Final[ContextVar[bool]] = ContextVar("pointsman_fake_clock_driven", default=False)


def let_runs_wait() -> None:
    """Make what the running task sleeps a reason for every ``FakeClock.run`` to move on, whoever started the task."""
    _driven.set(True)


@dataclass(order=True, slots=True)
class _Sleeper:
    due: float
    order: int
    future: asyncio.Future[None] = field(compare=False)
    driven: bool = field(compare=False)


class FakeClock:
    """A ``Clock`` that stands still until it is moved.

    Only what sleeps on this clock is moved. Real deadlines (the ones that the host sets for hook calls) still run on
    real time.

    Args:
        start_at: Unix seconds at which it starts.
    """

    def __init__(self, start_at: float = START_AT) -> None:
        self._start_at = start_at
        self._elapsed_s = 0.0
        self._sleepers: list[_Sleeper] = []
        self._order = 0
        self._waiting_for_quiet = 0

    def now(self) -> float:
        """Return the wall clock in Unix seconds."""
        return self._start_at + self._elapsed_s

    def monotonic(self) -> float:
        """Return the seconds that have passed on this clock."""
        return self._elapsed_s

    @property
    def sleeping(self) -> int:
        """How many sleepers there are."""
        return sum(not sleeper.future.done() for sleeper in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved this far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self._order += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, _Sleeper(self._elapsed_s + seconds, self._order, future, _driven.get()))
        await future

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call something when the clock has been moved this far, unless that is cancelled."""
        loop = asyncio.get_running_loop()
        if seconds <= 0:
            return loop.call_soon(call, context=Context())
        self._order += 1
        future: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda due: None if due.cancelled() else call(), context=Context())
        heapq.heappush(self._sleepers, _Sleeper(self._elapsed_s + seconds, self._order, future, _driven.get()))
        return future

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking sleepers in the order of their time, and let what they do come to rest.

        Before each step everything that can run does run. What waits for a thread or a socket is not waited for.

        Raises:
            ValueError: the clock cannot go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back; advance was given {seconds} s")
        target = self._elapsed_s + seconds
        await self.quiet()
        while (due := self._next_due()) is not None and due <= target:
            await self._wake(due)
        self._elapsed_s = max(self._elapsed_s, target)
        await self.quiet()

    async def skip(self, seconds: float) -> None:
        """Move the clock at once, as for a machine that slept: what was due meanwhile wakes late, and once.

        A loop that acts every second acts once, not 86 400 times for a day.

        Raises:
            ValueError: the clock cannot go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back; skip was given {seconds} s")
        await self.quiet()
        self._elapsed_s += seconds
        await self.advance(0)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, moving the clock on whenever it, or a task it has started, sleeps.

        Background work that was started elsewhere is woken on the way, but never the reason to move. Several runs at
        the same time share the time that passes.
        """
        context = copy_context()
        context.run(_driven.set, True)
        task = asyncio.get_running_loop().create_task(work, context=context)
        try:
            while not task.done():
                await self.quiet()
                if task.done():
                    break
                due = self._next_due(driven=True)
                if due is None:
                    await asyncio.wait({task}, timeout=_POLL_S)
                else:
                    await self._wake(due)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        return task.result()

    async def quiet(self) -> None:
        """Let every task run until all of them wait for something."""
        loop = asyncio.get_running_loop()
        ready = getattr(loop, "_ready", None)
        self._waiting_for_quiet += 1
        try:
            for _ in range(_BLIND_TURNS if ready is None else _MOST_TURNS):
                await asyncio.sleep(0)
                # Others that wait for quiet are ready too, and do nothing but wait.
                if ready is not None and len(ready) < self._waiting_for_quiet:
                    return
        finally:
            self._waiting_for_quiet -= 1

    def _next_due(self, *, driven: bool = False) -> float | None:
        while self._sleepers and self._sleepers[0].future.done():
            heapq.heappop(self._sleepers)
        waiting = (s.due for s in self._sleepers if not s.future.done() and (s.driven or not driven))
        return min(waiting, default=None)

    async def _wake(self, due: float) -> None:
        """Move to ``due`` and wake what is due, one after another."""
        while self._sleepers and self._sleepers[0].due <= due:
            sleeper = heapq.heappop(self._sleepers)
            self._elapsed_s = max(self._elapsed_s, sleeper.due)
            if not sleeper.future.done():
                sleeper.future.set_result(None)
                await self.quiet()
