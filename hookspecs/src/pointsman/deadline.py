"""Deadlines that do not count the time in which the event loop itself stood still.

LiteLLM's first requests import for seconds, and a full garbage collection stops everything. When the loop goes on, timers
are due before the answers that arrived meanwhile are read: a plain timer would report a store, or a plugin, that answered
at once as stuck. So a timer that is late runs for as long again as it is late, and for at least one turn of the loop: the slack of
the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


def after(loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[], object]) -> asyncio.TimerHandle:
    """Call ``expire`` after this time in which the loop could run.

    Args:
        loop: The running loop.
        seconds: How long to wait.
        expire: Called once; it has to check whether a caller still waits.

    Returns:
        What cancels it until the time has passed for the first time.
    """
    due = loop.time() + seconds

    def overdue() -> None:
        loop.call_later(max(0.0, loop.time() - due), expire)

    return loop.call_at(due, overdue)


def arm(limit: asyncio.Timeout, seconds: float) -> asyncio.TimerHandle:
    """Let a limit without a time, which has been entered, expire after this time in which the loop could run.

    Returns:
        What cancels it; to be called when the limit is left.
    """
    loop = asyncio.get_running_loop()
    return after(loop, seconds, lambda: _end(limit, loop))


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound a block by this time in which the loop could run.

    Raises:
        TimeoutError: it took longer; what it awaited is cancelled.
    """
    async with asyncio.timeout(None) as limit:
        timer = arm(limit, seconds)
        try:
            yield
        finally:
            timer.cancel()


class IdleLimit:
    """Limits the time that a block spends without a running step; each step has a limit of its own.

    Args:
        seconds: The longest such time in which the loop could run.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._limit: asyncio.Timeout | None = None
        #: One for the whole block, which looks at what is left when it is due: steps begin and end far more often.
        self._timer: asyncio.TimerHandle | None = None
        self._steps = 0
        self._idle_since = 0.0

    @asynccontextmanager
    async def within(self) -> AsyncIterator[None]:
        """Bound a block.

        Raises:
            TimeoutError: no step was under way for too long; what the block awaited is cancelled.
        """
        async with asyncio.timeout(None) as limit:
            self._limit = limit
            self._be_idle()
            try:
                yield
            finally:
                self._limit = None
                if self._timer is not None:
                    self._timer.cancel()

    def step_started(self) -> None:
        """Record that a step has started."""
        self._steps += 1

    def step_ended(self) -> None:
        """Record that a step has ended."""
        self._steps -= 1
        if not self._steps:
            self._be_idle()

    def _be_idle(self) -> None:
        if self._limit is not None:
            loop = asyncio.get_running_loop()
            self._idle_since = loop.time()
            if self._timer is None:
                self._timer = after(loop, self.seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        limit, loop = self._limit, asyncio.get_running_loop()
        if limit is None or self._steps:
            return
        left_s = self._idle_since + self.seconds - loop.time()
        if left_s > 0:
            self._timer = after(loop, left_s, self._look)
        else:
            _end(limit, loop)


def _end(limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
    try:
        limit.reschedule(loop.time())
    except RuntimeError:
        return  # the block has been left meanwhile
