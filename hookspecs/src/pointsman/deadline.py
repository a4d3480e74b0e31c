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


def _end(limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
    try:
        limit.reschedule(loop.time())
    except RuntimeError:
        return  # the block has been left meanwhile
