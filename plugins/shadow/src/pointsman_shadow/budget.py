"""What a mirror may spend in a UTC day, counted in the store for all workers together and never on the request path.

Before a mirrored call its estimate is set aside; afterwards the difference to what it really took is booked. So all
workers together exceed a day's budget by no more than what the calls that run at that moment take beyond their estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pointsman.store.base import Update
from pointsman.store.ops import take

from .repository import budget_key

if TYPE_CHECKING:
    from pointsman.plugin import Clock
    from pointsman.store.base import StateStore
    from pointsman.types import Attempt, Price

    from .config import Mirror

#: A day's counters are kept for so long.
_TTL_S: Final = 3 * 86_400.0
#: After a counter was found full nobody asks the store again for this long.
_REST_S: Final = 5.0
_CHARS_PER_TOKEN: Final = 4
_SPENT: Final = {"tokens": "token_budget", "money": "money_budget"}
_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and millionths of a dollar."""

    tokens: int = 0
    usd_micros: int = 0

    @classmethod
    def of(cls, attempt: Attempt) -> Amount:
        """Return what an attempt took, as far as it is known."""
        tokens = 0 if attempt.usage is None else attempt.usage.total_tokens
        return cls(tokens, attempt.cost_usd_micros or 0)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.usd_micros + other.usd_micros)


def estimate(prompt_chars: int, completion_tokens: int, price: Price) -> Amount:
    """Return what a call may take: four characters a token, the most tokens the answer may have."""
    prompt_tokens = prompt_chars // _CHARS_PER_TOKEN + 1
    usd = prompt_tokens * (price.input_usd or 0) + completion_tokens * (price.output_usd or 0)
    return Amount(prompt_tokens + completion_tokens, round(usd * _MICROS))


def day_of(now: float) -> str:
    """Return the UTC day as ``YYYY-MM-DD``."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class Held:
    """What has been set aside for one call."""

    day: str
    amount: Amount


class Purse:
    """One mirror's budget in one worker.

    Args:
        mirror: Whose.
        store: The plugin's store.
        clock: Time.
    """

    def __init__(self, mirror: Mirror, store: StateStore, clock: Clock) -> None:
        self._name = mirror.name
        self._tokens = mirror.budget.tokens_per_day
        self._usd_micros = mirror.budget.usd_micros_per_day
        self._store = store
        self._clock = clock
        self._empty: str | None = None
        self._rests_until = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._tokens is not None or self._usd_micros is not None

    def empty(self) -> str | None:
        """Return which budget was last found full, while that is worth believing. A look at the clock, no more."""
        if self._empty is not None and self._clock.monotonic() >= self._rests_until:
            self._empty = None
        return self._empty

    async def hold(self, amount: Amount) -> Held | str:
        """Set an amount aside. One that is more than what is left is refused alone: a smaller one may still fit.

        Returns:
            What was set aside, or which budget does not have it: ``token_budget`` or ``money_budget``.

        Raises:
            StoreError: nobody knows what has been spent; the call must not be made.
        """
        day = day_of(self._clock.now())
        if self._tokens is not None and not await self._take("tokens", day, amount.tokens, self._tokens):
            return _SPENT["tokens"]
        if self._usd_micros is not None and not await self._take("money", day, amount.usd_micros, self._usd_micros):
            if self._tokens is not None:
                await self._store.add(budget_key(self._name, "tokens", day), -amount.tokens)
            return _SPENT["money"]
        return Held(day, amount)

    async def book(self, held: Held, spent: Amount) -> None:
        """Replace what was set aside by what was spent.

        Raises:
            StoreError: what was set aside stays so until the day is over.
        """
        adds = {}
        if self._tokens is not None and spent.tokens != held.amount.tokens:
            adds[budget_key(self._name, "tokens", held.day)] = spent.tokens - held.amount.tokens
        if self._usd_micros is not None and spent.usd_micros != held.amount.usd_micros:
            adds[budget_key(self._name, "money", held.day)] = spent.usd_micros - held.amount.usd_micros
        if adds:
            await self._store.update(Update(adds=adds))

    async def _take(self, what: str, day: str, amount: int, limit: int) -> bool:
        if amount > limit:
            return False  # it fits into no day at all, and may be more than a counter can hold
        granted, taken = await take(self._store, budget_key(self._name, what, day), amount, limit=limit, ttl_s=_TTL_S)
        if not granted and taken >= limit:
            self._empty = _SPENT[what]
            self._rests_until = self._clock.monotonic() + _REST_S
        return granted
