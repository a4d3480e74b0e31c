"""What a mirror may spend per UTC day, counted in the store across all workers and never on the request path.

Before a mirrored call its estimate is reserved; afterwards the difference to its usage is settled. So all workers
together exceed a day's budget by no more than what the running calls use beyond their estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pointsman.pricing import token_usd
from pointsman.store import Update, take
from pointsman.types import Outcome, Usage

from .repository import budget_key

if TYPE_CHECKING:
    from pointsman.plugin import Clock
    from pointsman.store import StateStore
    from pointsman.types import Attempt, Price

    from .config import MirrorConfig

#: Lifetime of a day's counters.
_TTL_S: Final = 3 * 86_400.0
#: A full counter is not read again for this long.
_BELIEVED_S: Final = 5.0
_CHARS_PER_TOKEN: Final = 4
_REASON: Final = {"tokens": "token_budget", "money": "money_budget"}
_UNPRICED: Final = "unpriced"
_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and millionths of a dollar; None where it is unknown how many."""

    tokens: int | None = 0
    usd_micros: int | None = 0

    @classmethod
    def of(cls, attempt: Attempt) -> Amount:
        """Return the usage of an attempt. One that failed without usage has used nothing."""
        if attempt.usage is None:
            unknown = attempt.outcome is Outcome.OK and not attempt.cached
            return cls(None if unknown else 0, None if unknown else attempt.cost_usd_micros or 0)
        return cls(attempt.usage.total_tokens, 0 if attempt.usage.is_empty else attempt.cost_usd_micros)

    def __add__(self, other: Amount) -> Amount:
        return Amount(_sum(self.tokens, other.tokens), _sum(self.usd_micros, other.usd_micros))


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def estimate(prompt_chars: int, completion_tokens: int, price: Price) -> Amount:
    """Return the most that a call may use: four characters per token, the longest answer that the request allows."""
    prompt_tokens = prompt_chars // _CHARS_PER_TOKEN + 1
    usd = token_usd(Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens), price)
    return Amount(prompt_tokens + completion_tokens, None if usd is None else round(usd * _MICROS))


def is_priced(price: Price) -> bool:
    """Return whether the tokens of prompts and answers have a price."""
    return price.input_usd is not None and price.output_usd is not None


def day_of(now: float) -> str:
    """Return the UTC day as ``YYYY-MM-DD``."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is reserved for one call."""

    day: str
    amount: Amount


class DailyBudget:
    """One mirror's budget in one worker.

    Args:
        config: The mirror's configuration.
        store: The plugin's store.
        clock: Time.
    """

    def __init__(self, config: MirrorConfig, store: StateStore, clock: Clock) -> None:
        self._name = config.name
        self._tokens = config.budget.tokens_per_day
        self._usd_micros = config.budget.usd_micros_per_day
        self._store = store
        self._clock = clock
        self._exhausted: str | None = None
        self._believed_until = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._tokens is not None or self._usd_micros is not None

    def exhausted(self) -> str | None:
        """Return the budget that was recently found full, else None. Reads the clock only."""
        if self._exhausted is not None and self._clock.monotonic() >= self._believed_until:
            self._exhausted = None
        return self._exhausted

    async def reserve(self, amount: Amount) -> Reservation | str:
        """Reserve an amount. One that exceeds the rest of the budget is refused alone: a smaller one may still fit.

        Returns:
            The reservation, or why it is refused: ``token_budget``, ``money_budget``, or ``unpriced``, when the amount
            of money is limited and unknown.

        Raises:
            StoreError: the spending is unknown; the call must not be made.
        """
        day = day_of(self._clock.now())
        tokens, usd_micros = amount.tokens or 0, amount.usd_micros
        if self._usd_micros is not None and usd_micros is None:
            return _UNPRICED
        if self._tokens is not None and not await self._take("tokens", day, tokens, self._tokens):
            return _REASON["tokens"]
        if self._usd_micros is not None and not await self._take("money", day, usd_micros or 0, self._usd_micros):
            if self._tokens is not None:
                await self._store.add(budget_key(self._name, "tokens", day), -tokens)
            return _REASON["money"]
        return Reservation(day, amount)

    async def settle(self, reserved: Reservation, spent: Amount) -> None:
        """Replace a reservation by the usage; what is unknown of it counts as reserved.

        Raises:
            StoreError: the reservation stays until the day is over.
        """
        sides = (
            ("tokens", self._tokens, spent.tokens, reserved.amount.tokens),
            ("money", self._usd_micros, spent.usd_micros, reserved.amount.usd_micros),
        )
        adds = {
            budget_key(self._name, what, reserved.day): used - (set_aside or 0)
            for what, limit, used, set_aside in sides
            if limit is not None and used is not None and used != set_aside
        }
        if adds:
            await self._store.update(Update(adds=adds))

    async def _take(self, what: str, day: str, amount: int, limit: int) -> bool:
        if amount > limit:
            return False  # more than a whole day's budget, and maybe more than a counter can hold
        granted, taken = await take(self._store, budget_key(self._name, what, day), amount, limit=limit, ttl_s=_TTL_S)
        if not granted and taken >= limit:
            self._exhausted = _REASON[what]
            self._believed_until = self._clock.monotonic() + _BELIEVED_S
        return granted
