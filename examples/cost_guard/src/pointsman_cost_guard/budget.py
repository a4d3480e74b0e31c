"""What a caller may spend, what is left, and what follows from that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pointsman.types import Attempt

Period = Literal["day", "month"]


class Level(StrEnum):
    """How much is left."""

    PLENTY = "plenty"
    LOW = "low"
    SPENT = "spent"


@dataclass(frozen=True, slots=True)
class Window:
    """The period that a moment lies in.

    Attributes:
        name: For keys and people, in UTC: ``2026-11-30`` or ``2026-11``.
        ends_at: Unix seconds at which the next one begins.
    """

    name: str
    ends_at: float


def window(period: Period, now: float) -> Window:
    """Return the day or the month of a moment (Unix seconds), in UTC."""
    start = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return Window(f"{start:%Y-%m-%d}", start.timestamp() + 86_400.0)
    first = start.replace(day=1)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return Window(f"{first:%Y-%m}", following.timestamp())


def level(spent_usd_micros: int, budget_usd_micros: int, low_ratio: float) -> Level:
    """Return how much is left of a budget.

    Args:
        spent_usd_micros: What is spent.
        budget_usd_micros: Of how much.
        low_ratio: The part of the budget from which on little is left, 0 to 1.
    """
    left = budget_usd_micros - spent_usd_micros
    if left <= 0:
        return Level.SPENT
    return Level.LOW if left <= budget_usd_micros * low_ratio else Level.PLENTY


def cheaper(model: str, ladder: Mapping[str, str], steps: int) -> str:
    """Return the model that answers instead: this many steps down the ladder, or its end."""
    seen = {model}
    for _ in range(steps):
        following = ladder.get(model)
        if following is None or following in seen:
            break
        model = following
        seen.add(model)
    return model


def charge(attempts: Iterable[Attempt], unknown_usd_micros: int) -> int:
    """Return what attempts have cost, in micro-dollars.

    Args:
        attempts: All attempts of a request.
        unknown_usd_micros: What an attempt counts that may have been paid for and whose cost is not known.
    """
    total = 0
    for attempt in attempts:
        if attempt.cost_usd_micros is not None:
            total += attempt.cost_usd_micros
        elif attempt.error is None and not attempt.cached:
            total += unknown_usd_micros
    return total
