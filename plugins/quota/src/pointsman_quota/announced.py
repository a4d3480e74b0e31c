"""What a billing plugin says that requests cost, kept for their settlements.

Whoever bills and the quota settle a request at the same time, each on its own: the word may come before it is asked for,
a moment later, or, when nobody bills, never.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman.plugin import Clock

_MOST_KEPT: Final = 10_000
#: After a word that did not come nobody is waited for, until one does come or so much time has passed.
_SILENCE_S: Final = 30.0


class Announced:
    """Amounts by request.

    Args:
        wait_ms: Longest wait for one of them, in milliseconds.
        clock: Time.

    Attributes:
        missed: Settlements that went on without a word.
    """

    def __init__(self, wait_ms: int, clock: Clock) -> None:
        self.missed = 0
        self._wait_s = wait_ms / 1000
        self._clock = clock
        self._amounts: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._silent_until = 0.0

    def hear(self, request_id: str, usd_micros: int) -> None:
        """Keep what a request cost."""
        self._silent_until = 0.0
        self._amounts[request_id] = usd_micros
        if len(self._amounts) > _MOST_KEPT:
            del self._amounts[next(iter(self._amounts))]
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(usd_micros)

    async def of(self, request_id: str) -> int | None:
        """Return what a request cost, waiting a moment for it; None when nobody says."""
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
        """Let go of a request that has been settled."""
        self._amounts.pop(request_id, None)
