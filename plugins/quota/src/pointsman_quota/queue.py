"""A short fair queue of one worker: by priority, then by arrival, with a bounded wait."""

from __future__ import annotations

import asyncio
from bisect import insort
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pointsman.plugin import Clock

    from .config import Queue

T = TypeVar("T")


@dataclass(order=True, slots=True)
class _Ticket:
    """A place in a lane; the least is first."""

    rank: int
    number: int
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class FairQueue:
    """Requests that wait for a slot, one lane for each limit that has none free.

    Only the first of a lane tries: when this worker frees a slot, and every ``poll_ms`` for those that others freed.

    Args:
        config: How long and how many.
        clock: Time.

    Attributes:
        admitted: Requests that got a slot after waiting.
        gave_up: Requests that waited without getting a slot.
        turned_away: Requests that found the lane full.
    """

    def __init__(self, config: Queue, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._lanes: dict[str, list[_Ticket]] = {}
        self._numbers = count()
        self.admitted = 0
        self.gave_up = 0
        self.turned_away = 0

    def waiting(self) -> int:
        """Return how many requests wait."""
        return sum(map(len, self._lanes.values()))

    def lane_ahead(self, lanes: Iterable[str], priority: int) -> str | None:
        """Return a lane with a waiting request that one of this priority must not overtake, or None."""
        for lane in lanes:
            if (tickets := self._lanes.get(lane)) and tickets[0].rank <= -priority:
                return lane
        return None

    def freed(self, lanes: Sequence[str]) -> None:
        """Let the first of each lane try."""
        for lane in lanes:
            if tickets := self._lanes.get(lane):
                tickets[0].woken.set()

    async def wait(self, lane: str, priority: int, attempt: Callable[[], Awaitable[T | None]]) -> T | None:
        """Wait for a slot.

        Args:
            lane: The limit.
            priority: Higher goes first.
            attempt: Tries to get in; None means that there is still no slot.

        Returns:
            What ``attempt`` returned, or None when the lane is full or the time is over.
        """
        tickets = self._lanes.setdefault(lane, [])
        if len(tickets) >= self._config.max_waiting:
            self.turned_away += 1
            return None
        ticket = _Ticket(-priority, next(self._numbers))
        insort(tickets, ticket)
        ends_at = self._clock.monotonic() + self._config.max_wait_ms / 1000
        try:
            while (left_s := ends_at - self._clock.monotonic()) > 0:
                first = tickets[0] is ticket
                await self._nap(ticket, min(left_s, self._config.poll_ms / 1000) if first else left_s)
                if tickets[0] is ticket and (answer := await attempt()) is not None:
                    self.admitted += 1
                    return answer
        finally:
            tickets.remove(ticket)
            if tickets:
                tickets[0].woken.set()
            else:
                del self._lanes[lane]
        self.gave_up += 1
        return None

    async def _nap(self, ticket: _Ticket, seconds: float) -> None:
        """Wait until the ticket is woken, at most this long."""
        woken = asyncio.ensure_future(ticket.woken.wait())
        over = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((woken, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            over.cancel()
            ticket.woken.clear()
