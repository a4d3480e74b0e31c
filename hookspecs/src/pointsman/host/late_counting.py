"""Requests that have ended, and whose cost the gateway has not logged yet: they are counted when it is known, or after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

from .journal import COST_WAIT_S

if TYPE_CHECKING:
    from .exchange import Exchange
    from .isolation import Faults


class LateCounting:
    """Waits for the costs of requests that have ended.

    Args:
        count: Counts one.
        faults: Where its errors are counted.
    """

    def __init__(self, count: Callable[[Exchange], None], faults: Faults) -> None:
        self._count = count
        self._faults = faults
        #: In the order of their end: until when a cost is waited for, and in which context the request ended.
        self._waiting: dict[Exchange, tuple[float, Context | None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, exchange: Exchange) -> None:
        """Wait for the cost of a request that has ended."""
        loop = asyncio.get_running_loop()
        # What an own call publishes then is an answer to what is being delivered now.
        context = copy_context() if exchange.detached else None
        self._waiting[exchange] = (loop.time() + COST_WAIT_S, context)
        if self._timer is None:
            self._timer = loop.call_later(COST_WAIT_S, self._count_late, context=Context())

    def known(self, exchange: Exchange) -> None:
        """Count a request whose cost has become known, unless it has been counted."""
        late = self._waiting.pop(exchange, None)
        if late is None:
            return
        context = late[1]
        try:
            if context is None:
                self._count(exchange)
            else:
                context.run(self._count, exchange)
        except Exception as err:  # noqa: BLE001  # what counts has no caller to raise to
            self._faults.record("pointsman", "count", None, err)

    def end(self) -> None:
        """Count all of them as they are, and wait for none."""
        if self._timer is not None:
            self._timer.cancel()
        for exchange in tuple(self._waiting):
            self.known(exchange)

    def _count_late(self) -> None:
        """Count requests whose cost has not become known in time; the gateway never logs some."""
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        for exchange, (due, _) in tuple(self._waiting.items()):
            if due > now:
                self._timer = loop.call_at(due, self._count_late, context=Context())
                return
            self.known(exchange)
