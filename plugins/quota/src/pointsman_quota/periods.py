"""Calendar days and months of a time zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Period:
    """The calendar day and month that a moment belongs to.

    Attributes:
        day: For example 20261121; grows.
        month: For example 202611; grows.
        begins_ms: Unix milliseconds at which the day began.
        day_ends_ms: Unix milliseconds of the next midnight.
        month_ends_ms: Unix milliseconds of the midnight before the next first.
        month_begins_ms: Unix milliseconds at which the month began.
    """

    day: int
    month: int
    begins_ms: int
    day_ends_ms: int
    month_ends_ms: int
    month_begins_ms: int


class Calendar:
    """Finds the period of a moment; the last one found is remembered.

    Args:
        zone: The time zone whose midnights count.
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._last = self._find(0)

    def at(self, now_ms: int) -> Period:
        """Return the period of a moment in Unix milliseconds."""
        if not self._last.begins_ms <= now_ms < self._last.day_ends_ms:
            self._last = self._find(now_ms)
        return self._last

    def _find(self, now_ms: int) -> Period:
        local = datetime.fromtimestamp(now_ms / 1000, self._zone)
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        first = midnight.replace(day=1)
        return Period(
            day=local.year * 10_000 + local.month * 100 + local.day,
            month=local.year * 100 + local.month,
            begins_ms=_ms(midnight),
            day_ends_ms=_ms(midnight + timedelta(days=1)),
            month_ends_ms=_ms((first + timedelta(days=32)).replace(day=1)),
            month_begins_ms=_ms(first),
        )


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
