"""Costs that a billing plugin announces, kept for the settlements of their requests.

The billing plugin and the quota settle a request at the same time, independently: the announcement may arrive before it
is needed, a moment later, or, without a billing plugin, never.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cachetools import FIFOCache

if TYPE_CHECKING:
    from decimal import Decimal

    from pointsman.plugin import Clock

_MOST_KEPT: Final = 10_000
#: After a missing announcement, seconds in which settlements do not wait, unless another announcement arrives.
_SILENCE_S: Final = 30.0


class CostEvents:
    """Announced costs by request.

    Args:
        wait_ms: Longest wait for an announcement, in milliseconds.
        clock: Time.

    Attributes:
        missed: Settlements that continued without an announcement.
    """

    def __init__(self, wait_ms: int, clock: Clock) -> None:
        self.missed = 0
        self._wait_s = wait_ms / 1000
        self._clock = clock
        self._amounts: FIFOCache[str, Decimal] = FIFOCache(_MOST_KEPT)
        self._waiting: dict[str, asyncio.Future[Decimal]] = {}
        self._silent_until = 0.0

    def hear(self, request_id: str, usd: Decimal) -> None:
        """Keep the announced cost of a request, in US dollars."""
        self._silent_until = 0.0
        self._amounts[request_id] = usd
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(usd)

    async def of(self, request_id: str) -> Decimal | None:
        """Return the announced cost of a request, waiting for it if need be; None if there is none in time."""
        if request_id in self._amounts:
            return self._amounts[request_id]
        if self._clock.monotonic() < self._silent_until:
            self.missed += 1
            return None
        future = self._waiting.setdefault(request_id, asyncio.get_running_loop().create_future())
        try:
            # Real time: the host's deadline for a settlement runs on it too.
            async with asyncio.timeout(self._wait_s):
                return await asyncio.shield(future)
        except TimeoutError:
            self.missed += 1
            self._silent_until = self._clock.monotonic() + _SILENCE_S
            return None
        finally:
            self._waiting.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """Drop a request that has been settled."""
        self._amounts.pop(request_id, None)
