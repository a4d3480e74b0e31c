"""When a challenger that keeps failing is left alone for a while.

A mirrored call takes the worker's processor whether it succeeds or not. One that fails every time tells nothing new
after the first few, so the challenger is asked again after 1 s, 2 s, 4 s and so on, at most a minute apart, until it
answers. Pure.
"""

from __future__ import annotations

from typing import Final

from pointsman.types import ErrorClass

FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
#: Errors that are the request's fault: they say nothing about the challenger.
_THE_REQUESTS: Final = frozenset({ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.CONTEXT_WINDOW})


class Rest:
    """Counts failures in a row.

    Args:
        after: So many failures in a row begin a rest; None: there are none.

    Attributes:
        failures: In a row.
        until: Monotonic seconds at which the challenger may be asked again; 0 before its first rest.
    """

    __slots__ = ("_after", "_next_s", "failures", "until")

    def __init__(self, after: int | None) -> None:
        self.failures = 0
        self.until = 0.0
        self._after = after
        self._next_s = FIRST_S

    def resting(self, now: float) -> bool:
        """Say whether the challenger is left alone at a time in monotonic seconds."""
        return now < self.until

    def answered(self) -> None:
        """Note an answer."""
        self.failures = 0
        self._next_s = FIRST_S

    def failed(self, error: str | None, now: float) -> bool:
        """Note a failure of this class at a time in monotonic seconds; say whether a rest begins with it."""
        if error in _THE_REQUESTS:
            return False
        self.failures += 1
        # What was under way when the rest began says nothing about how long it has to be.
        if self._after is None or self.failures < self._after or self.resting(now):
            return False
        self.until = now + self._next_s
        self._next_s = min(LONGEST_S, 2 * self._next_s)
        return True
