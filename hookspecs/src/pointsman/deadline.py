"""Deadlines that do not count the time in which the event loop itself stood still.

LiteLLM's first requests import for seconds, and a full garbage collection stops everything. When the loop goes on, timers
are due before the answers that arrived meanwhile are read: a plain timer would report a store, or a plugin, that answered
at once as stuck. So a timer that is late runs for as long again as it is late, and for at least one turn of the loop: the slack of
the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self


class Timer:
    """Calls ``expire`` once, after a time in which the event loop could run, unless it is cancelled before.

    Args:
        loop: The running loop.
        seconds: How long to wait.
        expire: What is called.
    """

    __slots__ = ("_due", "_expire", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[], object]) -> None:
        self._loop = loop
        self._expire = expire
        self._due = loop.time() + seconds
        self._handle = loop.call_at(self._due, self._overdue)

    def _overdue(self) -> None:
        self._handle = self._loop.call_later(max(0.0, self._loop.time() - self._due), self._expire)

    def cancel(self) -> None:
        """Call nothing; harmless when it has been called."""
        self._handle.cancel()


class Limit:
    """Bounds a block by a time in which the event loop could run: ``with Limit(2.0):``.

    Otherwise as ``asyncio.timeout``, at a third of its cost.

    Args:
        seconds: That time.
        task: The task that runs the block; by default the one that runs when it is entered.

    Attributes:
        expired: Whether the time has passed within the block.

    Raises:
        TimeoutError: it took longer; what it awaited is cancelled.
    """

    __slots__ = ("_before", "_task", "_timer", "_within", "expired", "seconds")

    def __init__(self, seconds: float, task: asyncio.Task[object] | None = None) -> None:
        self.seconds = seconds
        self.expired = False
        self._task = task
        self._before = 0
        self._within = False
        self._timer: Timer | None = None

    def __enter__(self) -> Self:
        task = self._task = self._task or asyncio.current_task()
        if task is None:
            raise RuntimeError("a limit bounds what a task runs; none is running")
        self._before = task.cancelling()
        self._within = True
        self._start(self.seconds)
        return self

    def __exit__(self, _: object, err: BaseException | None, __: object) -> None:
        self._within = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Not kept: the task's context may lead back here, and nothing of a finished request is left to the garbage collector.
        task, self._task = self._task, None
        if not self.expired or task is None:
            return
        # Where more was asked of the task meanwhile, it is cancelled for that reason too.
        if task.uncancel() <= self._before and isinstance(err, asyncio.CancelledError):
            raise TimeoutError from err

    def _start(self, seconds: float) -> None:
        if self._within and not self.expired and self._task is not None:
            self._timer = Timer(self._task.get_loop(), seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.expired = True
        if self._task is not None:
            self._task.cancel()


class IdleLimit(Limit):
    """Limits the time that a block spends without a running step; each step has a limit of its own.

    It has one timer, which looks at what is left when it is due: steps begin and end far more often.

    Args:
        seconds: The longest such time in which the loop could run.
    """

    __slots__ = ("_idle_since", "_steps")

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._steps = 0
        self._idle_since = 0.0

    def step_started(self) -> None:
        """Record that a step has started."""
        self._steps += 1

    def step_ended(self) -> None:
        """Record that a step has ended."""
        self._steps -= 1
        if not self._steps:
            self._start(self.seconds)

    def _start(self, seconds: float) -> None:
        self._idle_since = asyncio.get_running_loop().time()
        if self._timer is None:
            super()._start(seconds)

    def _expire(self) -> None:
        self._timer = None
        if self._steps:
            return
        left_s = self._idle_since + self.seconds - asyncio.get_running_loop().time()
        if left_s > 0:
            super()._start(left_s)
        else:
            super()._expire()
