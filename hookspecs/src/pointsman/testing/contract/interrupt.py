"""Cancels a coroutine at a chosen point where it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from ..calls import request_task


class CancelPoint:
    """Cancels the request when a coroutine waits for the ``at``-th time, as a client that goes away does.

    Where no request runs, the running task is cancelled instead.

    Args:
        at: 1 for the first time it waits.

    Attributes:
        at: As given.
        fired: The coroutine did wait that often, so it was cancelled.
        swallowed: It went on to a normal end nevertheless.
    """

    def __init__(self, at: int) -> None:
        self.fired = False
        self.swallowed = False
        self.at = at

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await the coroutine, cancelling at the chosen point."""
        value = await _Watched(coroutine, self.at, self)
        self.swallowed = self.fired
        return value


class _Watched:
    __slots__ = ("_at", "_coroutine", "_point")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, point: CancelPoint) -> None:
        self._coroutine = coroutine
        self._at = at
        self._point = point

    def __await__(self) -> Generator[Any, Any, Any]:
        waits = 0
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                yielded = self._coroutine.send(sent) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            waits += 1
            task = request_task.get() or asyncio.current_task()
            if waits == self._at and task is not None:
                self._point.fired = True
                # Between two steps, as a client that goes away: what a step itself cancels is its plugin's fault.
                asyncio.get_running_loop().call_soon(task.cancel)
            sent = thrown = None
            try:
                sent = yield yielded
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as err:  # noqa: BLE001  # whatever it is, it is the coroutine's to handle
                thrown = err
