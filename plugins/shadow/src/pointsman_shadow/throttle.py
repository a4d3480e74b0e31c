"""When no mirror starts although one could: the challenger keeps failing, or the worker has no time to spare. Pure.

A mirrored call takes the worker's processor whether it succeeds or not. A challenger that fails every time shows
nothing new after the first few failures, so from then on one call is sent after 1 s, 2 s, 4 s and so on, at most a
minute apart, until it answers (``Backoff``).

A mirrored call takes as much of the processor as a client's own, and a busy worker must not take on work that no
client waits for. So before a mirror starts the dispatcher sleeps for a moment and measures how late it is woken: a
client's request would have waited for as long (``LoopLag``).
"""

from __future__ import annotations

from math import exp
from typing import Final

from pointsman.stats import Ewma
from pointsman.types import CALLERS_FAULT, ErrorClass

FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 60.0
#: Errors that say nothing about the challenger: the request's own fault, or the call was never sent.
_NOT_ITS_FAULT: Final = CALLERS_FAULT | {ErrorClass.REFUSED}

#: How long the dispatcher sleeps to measure the lag, in seconds; also the shortest time between two starts of one mirror.
PROBE_S: Final = 0.005
#: Time constant of the mean lag, in seconds.
_MEMORY_S: Final = 0.25


class Backoff:
    """Counts consecutive failures, and says when the challenger may be called.

    Args:
        after: Consecutive failures that begin a backoff; None: there is none.

    Attributes:
        failures: Consecutive failures.
        until: Monotonic seconds of the next trial call, at the latest.
        trying: Whether a trial call runs.
    """

    __slots__ = ("_after", "_pause_s", "failures", "trying", "until")

    def __init__(self, after: int | None) -> None:
        self._after = after
        self.failures = 0
        self.until = 0.0
        self.trying = False
        self._pause_s = FIRST_BACKOFF_S

    @property
    def active(self) -> bool:
        """Whether the challenger is left alone except for trial calls."""
        return self._after is not None and self.failures >= self._after

    def allows(self, now: float) -> bool:
        """Say whether a call is sent at a time in monotonic seconds; its end has to be reported by another method."""
        if not self.active:
            return True
        if now < self.until:
            return False
        self.trying = True
        # No other trial before this one has ended, unless it never ends.
        self.until = now + MAX_BACKOFF_S
        return True

    def abandoned(self) -> None:
        """Note that a call was not sent after all, or has shown nothing: the next one may be sent."""
        if self.trying:
            self.trying = False
            self.until = 0.0

    def answered(self) -> None:
        """Note an answer: the backoff is over."""
        self.failures = 0
        self.until = 0.0
        self.trying = False
        self._pause_s = FIRST_BACKOFF_S

    def failed(self, error: str | None, now: float) -> bool:
        """Note a failure of this class at a time in monotonic seconds; say whether a backoff begins with it."""
        if error in _NOT_ITS_FAULT:
            self.abandoned()
            return False
        self.failures += 1
        begins = self.failures == self._after
        # Later failures of calls that ran when the backoff began say nothing about how long it has to be.
        if self.trying:
            self.trying = False
            self._pause_s = min(MAX_BACKOFF_S, 2 * self._pause_s)
            self.until = now + self._pause_s
        elif begins:
            self.until = now + self._pause_s
        return begins


class LoopLag:
    """A moving mean of how late the event loop is.

    Args:
        max_lag_s: A larger mean counts as busy, in seconds.
    """

    def __init__(self, max_lag_s: float) -> None:
        self._max_lag_s = max_lag_s
        # Probes are at least PROBE_S apart, whatever the clock shows.
        self._mean_s = Ewma(_MEMORY_S, min_gain=1.0 - exp(-PROBE_S / _MEMORY_S))

    def note(self, lag_s: float, now: float) -> None:
        """Take in how late the dispatcher was woken, at a time in monotonic seconds."""
        self._mean_s.add(max(lag_s, 0.0), now)

    @property
    def lag_s(self) -> float:
        """The mean, in seconds."""
        return self._mean_s.value

    @property
    def busy(self) -> bool:
        """Whether no mirror should start now."""
        return self.lag_s > self._max_lag_s
