"""Hours of the day. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time
from typing import Final

_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Curfew:
    """A part of each day, in UTC.

    Attributes:
        start_s: Seconds from midnight at which it begins.
        end_s: Seconds from midnight at which it ends; before ``start_s``: on the next day.
    """

    start_s: int
    end_s: int

    @classmethod
    def between(cls, start: time, end: time) -> Curfew:
        """Return the curfew from one time of the day to another."""
        return cls(*(t.hour * 3600 + t.minute * 60 + t.second for t in (start, end)))

    def left_s(self, now: float) -> float | None:
        """Return for how many more seconds it lasts at ``now`` (Unix seconds); None outside of it."""
        passed = (now - self.start_s) % _DAY_S
        length = (self.end_s - self.start_s) % _DAY_S
        return length - passed if passed < length else None
