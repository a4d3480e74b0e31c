"""Deadlines that do not count the time in which the event loop itself stood still.

LiteLLM's first requests import for seconds, and a full garbage collection stops everything. When the loop goes on, timers
are due before anybody has looked at the answers that have come meanwhile: a plain timer would say of a store that has
answered at once that it is stuck. So whoever is late by some time gets as much again, and at least one turn of the loop.
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
        expire: Called once; it has to look whether anybody still waits.

    Returns:
        What cancels it until the time has passed for the first time.
    """
    due = loop.time() + seconds

    def overdue() -> None:
        loop.call_later(max(0.0, loop.time() - due), expire)

    return loop.call_at(due, overdue)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound a block by this time in which the loop could run.

    Raises:
        TimeoutError: it took longer; what it awaited is cancelled.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = after(loop, seconds, lambda: _end(limit, loop))
        try:
            yield
        finally:
            timer.cancel()


def _end(limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
    try:
        limit.reschedule(loop.time())
    except RuntimeError:
        return  # the block has been left meanwhile
