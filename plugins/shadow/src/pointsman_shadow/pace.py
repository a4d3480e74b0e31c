"""Whether the worker has time to spare for a mirror.

A mirrored call takes as much of the worker's processor as a client's own. A worker that is late with everything must
not take on work that nobody waits for, so before a mirror starts the dispatcher sleeps for a moment and looks how much
later than asked it was woken: that is how long a client's request would have waited.
"""

from __future__ import annotations

from math import exp
from typing import Final

#: How long the dispatcher sleeps to find out, in seconds; also the shortest time between two starts of one mirror.
PROBE_S: Final = 0.005
#: How quickly what was seen is forgotten, in seconds.
_MEMORY_S: Final = 0.25


class Pace:
    """A moving mean of how late the event loop is.

    Args:
        max_lag_s: Later than this is too busy, in seconds.

    Attributes:
        lag_s: The mean.
    """

    def __init__(self, max_lag_s: float) -> None:
        self.lag_s = 0.0
        self._max_lag_s = max_lag_s
        self._noted_at: float | None = None

    def note(self, lag_s: float, now: float) -> None:
        """Take in how late the dispatcher was woken, at a time in monotonic seconds."""
        share = 1.0 if self._noted_at is None else 1.0 - exp(-max(now - self._noted_at, PROBE_S) / _MEMORY_S)
        self.lag_s += share * (max(lag_s, 0.0) - self.lag_s)
        self._noted_at = now

    @property
    def busy(self) -> bool:
        """Whether no mirror should start now."""
        return self.lag_s > self._max_lag_s
