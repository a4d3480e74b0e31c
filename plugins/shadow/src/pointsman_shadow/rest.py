"""When a challenger that keeps failing is left alone for a while.

A mirrored call takes the worker's processor whether it succeeds or not. One that fails every time tells nothing new
after the first few, so from then on the challenger is asked after 1 s, 2 s, 4 s and so on, at most a minute apart, once
each time, until it answers. Pure.
"""

from __future__ import annotations

from typing import Final

from pointsman.types import CALLERS_FAULT, ErrorClass

FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
#: Errors that say nothing about the challenger: the request's own fault, or nobody has asked it.
_NOT_ITS_FAULT: Final = CALLERS_FAULT | {ErrorClass.REFUSED}


class Rest:
    """Counts failures in a row, and says when the challenger may be asked.

    Args:
        after: So many failures in a row begin a rest; None: there are none.

    Attributes:
        failures: In a row.
        until: Monotonic seconds at which a resting challenger is asked next, at the latest.
        asking: Whether a resting challenger is being asked.
    """

    __slots__ = ("_after", "_pause_s", "asking", "failures", "until")

    def __init__(self, after: int | None) -> None:
        self._after = after
        self.failures = 0
        self.until = 0.0
        self.asking = False
        self._pause_s = FIRST_S

    @property
    def resting(self) -> bool:
        """Whether the challenger is left alone but for one call now and then."""
        return self._after is not None and self.failures >= self._after

    def asks(self, now: float) -> bool:
        """Say whether one more call is made at a time in monotonic seconds; what becomes of it has to be told."""
        if not self.resting:
            return True
        if now < self.until:
            return False
        self.asking = True
        # Not again before this call has ended, unless it takes for ever.
        self.until = now + LONGEST_S
        return True

    def unasked(self) -> None:
        """Note that a call was not made after all, or has told nothing: the next one may be."""
        if self.asking:
            self.asking = False
            self.until = 0.0

    def answered(self) -> None:
        """Note an answer: it is well."""
        self.failures = 0
        self.until = 0.0
        self.asking = False
        self._pause_s = FIRST_S

    def failed(self, error: str | None, now: float) -> bool:
        """Note a failure of this class at a time in monotonic seconds; say whether a rest begins with it."""
        if error in _NOT_ITS_FAULT:
            self.unasked()
            return False
        self.failures += 1
        begins = self.failures == self._after
        # Later failures of calls that were under way when it began say nothing about how long it has to be.
        if self.asking:
            self.asking = False
            self._pause_s = min(LONGEST_S, 2 * self._pause_s)
            self.until = now + self._pause_s
        elif begins:
            self.until = now + self._pause_s
        return begins
