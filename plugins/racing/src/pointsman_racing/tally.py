"""What races have come to, in whole numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one race name.

    Attributes:
        requests: Requests raced.
        answered: Of them, those with a winner.
        failed: Those without one.
        abandoned: Those whose client went away before there was a winner.
        not_repeatable: Those that were not hedged since they must not be made twice.
        attempts: Attempts made.
        extra: Of them, those that the budget paid: hedges, and all but the first of strategies that start all at once.
        replacements: Attempts made because another one had failed.
        denied: How often the budget had no extra attempt.
        overtaken: Requests whose winner was not the first attempt started.
        losers: Attempts that were given up for a winner.
        losers_usd_micros: What they cost, in millionths of a dollar, as far as is known.
        losers_tokens: Tokens of theirs, as far as is known.
        losers_estimated: Of them, those whose usage was estimated.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    abandoned: int = 0
    not_repeatable: int = 0
    attempts: int = 0
    extra: int = 0
    replacements: int = 0
    denied: int = 0
    overtaken: int = 0
    losers: int = 0
    losers_usd_micros: int = 0
    losers_tokens: int = 0
    losers_estimated: int = 0

    def merge(self, other: Tally) -> None:
        """Add another one."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def to_json(self) -> dict[str, int]:
        """Return it as JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Rebuild one; what is odd counts as 0."""
        found = document if isinstance(document, Mapping) else {}
        values = {one.name: found.get(one.name) for one in fields(cls)}
        return cls(**{name: value for name, value in values.items() if type(value) is int and value >= 0})

    @property
    def extra_ratio(self) -> float | None:
        """Extra attempts per request."""
        return self.extra / self.requests if self.requests else None
