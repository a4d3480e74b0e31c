"""Bills of the gateway's own calls (mirrors, probes, judges), buffered on the way to the outbox.

A client request is settled by the host, which retries. An own call is not: its bill waits here until the outbox takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from .errors import OutboxUnavailable

if TYPE_CHECKING:
    from pointsman.plugin import Clock
    from pointsman.types import Attempt, RequestContext

    from .bill import Bill
    from .recorder import Recorder

log: Final = logging.getLogger("pointsman.billing")

#: Bills that wait in memory while the outbox fails; further ones are lost, and counted.
MOST_WAITING: Final = 10_000
_RETRY_S: Final = 1.0
#: Longest wait for the gateway to log what a call cost; the host gives up a little earlier, and says so.
_LOGGED_S: Final = 3.0


class Unlogged:
    """Own calls that have ended and whose cost the gateway has not logged yet: a bill has both figures, or waited for them.

    Args:
        clock: Time.
        bill: Bills an attempt.
    """

    def __init__(self, clock: Clock, bill: Callable[[RequestContext, Attempt], None]) -> None:
        self._clock = clock
        self._bill = bill
        self._waiting: dict[str, tuple[float, RequestContext, Attempt]] = {}
        self._stopped = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Bill an attempt once its cost is logged; at once when none is awaited."""
        known = attempt.gateway_cost_usd is not None or attempt.cached or attempt.cut
        if known or self._stopped or len(self._waiting) >= MOST_WAITING:
            self._bill(ctx, attempt)
        else:
            self._waiting[attempt.id] = (self._clock.monotonic() + _LOGGED_S, ctx, attempt)

    def complete(self, attempts: Iterable[Attempt]) -> None:
        """Bill those of these attempts that wait; they have what the gateway has logged."""
        for attempt in attempts:
            found = self._waiting.pop(attempt.id, None)
            if found is not None:
                self._bill(found[1], attempt)

    async def give_up(self) -> None:
        """Bill what has waited too long."""
        now = self._clock.monotonic()
        late = [attempt for until, _, attempt in self._waiting.values() if until <= now]
        self.complete(late)

    def stop(self) -> None:
        """Bill all that waits, and from now on wait for nothing."""
        self._stopped = True
        self.complete([attempt for _, _, attempt in self._waiting.values()])


class OwnCalls:
    """A buffer of bills.

    Args:
        recorder: Writes them down.
        clock: Time.

    Attributes:
        lost: Bills that were given up.
    """

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock
        self._waiting: deque[Bill] = deque()
        self._more = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._stopped = False
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, bill: Bill) -> None:
        """Buffer a bill, or count it as lost when it cannot be buffered."""
        if self._stopped:
            self._lose(bill, "the worker has ended")
        elif len(self._waiting) >= MOST_WAITING:
            self._lose(bill, f"the outbox fails and {MOST_WAITING} bills are waiting")
        else:
            self._waiting.append(bill)
            self._more.set()

    async def run(self) -> None:
        """Write bills down as they arrive; never returns."""
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self.flush()
            except OutboxUnavailable:
                await self._clock.sleep(_RETRY_S)
                self._more.set()

    async def flush(self) -> None:
        """Write down everything that waits.

        Raises:
            OutboxUnavailable: not all of it was written; the rest still waits.
        """
        async with self._flushing:
            while self._waiting:
                bills = list(self._waiting)
                await self._recorder.record(bills, settled=False, own=True)
                # Bills may have been added behind these; only this method removes any.
                for _ in bills:
                    self._waiting.popleft()

    async def flush_if_possible(self) -> None:
        """Write down everything that waits, unless the outbox fails."""
        try:
            await self.flush()
        except OutboxUnavailable as err:
            log.warning("billing could not write own calls during shutdown: %s", err)

    def stop(self) -> None:
        """Give up what still waits and what is added from now on."""
        self._stopped = True
        for bill in self._waiting:
            self._lose(bill, "the worker has ended")

    def _lose(self, bill: Bill, reason: str) -> None:
        self.lost += 1
        log.error("billing lost the %s call %s: %s", bill.lines[0].kind, bill.request_id, reason)
