"""Limits, and what the ledger's result means for a caller: which limits refuse, for how long, and what is left.

Pure. The atomic step returns yes or no only; the reasons are derived here from the states it returns, in one
implementation for all stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

from pydantic import Field

from pointsman.config import Section

from .ledger import LEVEL_UNIT, PICOS, Caps, ScopeState, day_spent_picos, held, lease_picos, month_spent_picos

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .periods import Period

Tokens = Annotated[int, Field(ge=1, le=10**14, strict=True)]
Usd = Annotated[Decimal, Field(gt=0, le=10**9, decimal_places=6)]


class Limits(Section):
    """What a tenant, a key or a model pattern may use. An omitted limit does not apply."""

    max_concurrent_requests: int | None = Field(
        default=None, ge=1, le=1_000_000, strict=True, description="Requests in flight at the same time."
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10_000_000, strict=True, description="Requests admitted per minute."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, strict=True, description="Tokens per minute, prompt and output together."
    )
    burst_s: float = Field(
        default=60.0,
        ge=0.1,
        le=3600.0,
        description="Depth of the two rates in seconds: how much may be used at once after a pause.",
    )
    tokens_per_day: Tokens | None = Field(default=None, description="Tokens per calendar day.")
    tokens_per_month: Tokens | None = Field(default=None, description="Tokens per calendar month.")
    usd_per_day: Usd | None = Field(default=None, description="US dollars per calendar day.")
    usd_per_month: Usd | None = Field(default=None, description="US dollars per calendar month.")

    @cached_property
    def caps(self) -> Caps:
        """The limits in the ledger's form."""
        caps: Caps = {}
        if self.max_concurrent_requests is not None:
            caps["concurrent"] = self.max_concurrent_requests
        if self.requests_per_minute is not None:
            caps["requests"] = self.requests_per_minute
            caps["requests_burst"] = max(1, int(self.requests_per_minute * self.burst_s / 60))
        if self.tokens_per_minute is not None:
            caps["tokens"] = self.tokens_per_minute
            caps["tokens_burst"] = max(1, int(self.tokens_per_minute * self.burst_s / 60))
        if self.tokens_per_day is not None:
            caps["day_tokens"] = self.tokens_per_day
        if self.tokens_per_month is not None:
            caps["month_tokens"] = self.tokens_per_month
        if self.usd_per_day is not None:
            caps["day_usd_micros"] = int(self.usd_per_day * 1_000_000)
        if self.usd_per_month is not None:
            caps["month_usd_micros"] = int(self.usd_per_month * 1_000_000)
        return caps


class LimitName(StrEnum):
    """The limits, as they are named in the configuration and in answers."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "max_concurrent_requests"
    TOKENS_PER_DAY = "tokens_per_day"
    USD_PER_DAY = "usd_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"
    USD_PER_MONTH = "usd_per_month"


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that refuses a request.

    Attributes:
        scope: Index of the scope.
        limit: Which limit.
        cap: The most it allows: a burst for the rates per minute, micro-dollars for money.
        wait_ms: After how long it would allow the request if nothing else happened, leases expiring included; None if
            never, because the request alone is larger than the limit.
        idle_wait_ms: The same if all requests in flight ended now and had used nothing. Where it is less than
            ``wait_ms``, the request waits for others to finish.
    """

    scope: int
    limit: LimitName
    cap: int
    wait_ms: int | None
    idle_wait_ms: int | None


class Left(NamedTuple):
    """What is left of the tightest limit of a kind, after the request itself.

    Attributes:
        limit: The most the limit allows.
        remaining: What could be taken now.
        reset_ms: Until all of it is there again, requests in flight apart.
    """

    limit: int
    remaining: int
    reset_ms: int


#: Moments and what is held from then on: (Unix ms, requests, tokens, picodollars), in the order of time.
_Epoch = tuple[int, int, int, int]


def breaches(
    states: Sequence[ScopeState],
    caps: Sequence[Caps],
    period_at: Callable[[int], Period],
    take: tuple[int, int],
    now_ms: int,
) -> list[Breach]:
    """Return the limits that refuse a request, the one with the longest wait first; empty if it fits.

    Args:
        states: The scopes' states, brought up to now or to what a clock that is a little ahead has made of it.
        caps: Their limits.
        period_at: Returns the day and month of a moment.
        take: Tokens and picodollars asked for.
        now_ms: Unix milliseconds of now.
    """
    found = []
    for index, (state, limits) in enumerate(zip(states, caps, strict=True)):
        epochs = list(_epochs(state, now_ms))
        for name, cap, when in _checks(state, limits, period_at(state.at_ms), take):
            at_ms = _earliest(epochs, when)
            if at_ms == now_ms:
                continue
            idle_ms = when((now_ms, 0, 0, 0))
            found.append(
                Breach(
                    scope=index,
                    limit=name,
                    cap=cap,
                    wait_ms=None if at_ms is None else at_ms - now_ms,
                    idle_wait_ms=None if idle_ms is None else idle_ms - now_ms,
                )
            )
    return sorted(found, key=lambda breach: -(_NEVER_MS if breach.wait_ms is None else breach.wait_ms))


_NEVER_MS: Final = 1 << 62


def others_first(scope: int, cap: int, state: ScopeState, now_ms: int) -> Breach:
    """Return the breach of a request behind others that wait for a slot: it lasts while any request is in flight."""
    first_s = min(map(int, state.leases), default=0)
    return Breach(scope, LimitName.CONCURRENT_REQUESTS, cap, max(0, first_s * 1000 - now_ms), 0)


def _epochs(state: ScopeState, now_ms: int) -> Iterator[_Epoch]:
    requests, tokens, usd_picos = held(state)
    yield now_ms, requests, tokens, usd_picos
    for expiry in sorted(state.leases, key=int):
        lease = state.leases[expiry]
        requests, tokens, usd_picos = requests - lease[0], tokens - lease[1], usd_picos - lease_picos(lease)
        yield int(expiry) * 1000, requests, tokens, usd_picos


def _earliest(epochs: Sequence[_Epoch], when: Callable[[_Epoch], int | None]) -> int | None:
    """Return the first moment at which a limit allows the request.

    Each epoch alone gives a moment that is right or too late, because less is held in the epochs after it: the least
    of them is exact.
    """
    return min((at_ms for epoch in epochs if (at_ms := when(epoch)) is not None), default=None)


def _checks(
    state: ScopeState, caps: Caps, period: Period, take: tuple[int, int]
) -> Iterator[tuple[LimitName, int, Callable[[_Epoch], int | None]]]:
    """Yield each limit of a scope with a function that says from when on it allows the request within an epoch.

    A request that takes no tokens, or no money, has none of their limits.
    """
    tokens, usd_picos = take
    if "requests" in caps:
        bucket = _Bucket(state.at_ms, state.requests, caps["requests"], caps["requests_burst"])
        yield LimitName.REQUESTS_PER_MINUTE, caps["requests_burst"], partial(bucket.allows, field=0, cells=1)
    if "concurrent" in caps:
        slots = _Sum(0, caps["concurrent"], 0)
        yield LimitName.CONCURRENT_REQUESTS, caps["concurrent"], partial(slots.allows, field=1, amount=1)
    if tokens and "tokens" in caps:
        bucket = _Bucket(state.at_ms, state.tokens, caps["tokens"], caps["tokens_burst"])
        yield LimitName.TOKENS_PER_MINUTE, caps["tokens_burst"], partial(bucket.allows, field=2, cells=tokens)
    if tokens and "day_tokens" in caps:
        budget = _Sum(state.day_tokens, caps["day_tokens"], period.day_ends_ms)
        yield LimitName.TOKENS_PER_DAY, budget.cap, partial(budget.allows, field=2, amount=tokens)
    if usd_picos and "day_usd_micros" in caps:
        cap = caps["day_usd_micros"]
        budget = _Sum(day_spent_picos(state), cap * PICOS, period.day_ends_ms)
        yield LimitName.USD_PER_DAY, cap, partial(budget.allows, field=3, amount=usd_picos)
    if tokens and "month_tokens" in caps:
        budget = _Sum(state.month_tokens, caps["month_tokens"], period.month_ends_ms)
        yield LimitName.TOKENS_PER_MONTH, budget.cap, partial(budget.allows, field=2, amount=tokens)
    if usd_picos and "month_usd_micros" in caps:
        cap = caps["month_usd_micros"]
        budget = _Sum(month_spent_picos(state), cap * PICOS, period.month_ends_ms)
        yield LimitName.USD_PER_MONTH, cap, partial(budget.allows, field=3, amount=usd_picos)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A rate: a level that drains."""

    at_ms: int
    level: int
    rate: int
    burst: int

    def allows(self, epoch: _Epoch, *, field: int, cells: int) -> int | None:
        taken = epoch[field] if field else 0
        over = self.level - (self.burst - taken - cells) * LEVEL_UNIT
        if over > self.level:
            return None
        return max(epoch[0], self.at_ms + -(-over // self.rate)) if over > 0 else epoch[0]


@dataclass(frozen=True, slots=True)
class _Sum:
    """A budget: a sum that restarts at ``ends_ms``; concurrency is one whose sum is always 0."""

    spent: int
    cap: int
    ends_ms: int

    def allows(self, epoch: _Epoch, *, field: int, amount: int) -> int | None:
        wanted = epoch[field] + amount
        if self.spent + wanted <= self.cap:
            return epoch[0]
        return max(epoch[0], self.ends_ms) if wanted <= self.cap else None


def left(
    states: Sequence[ScopeState],
    caps: Sequence[Caps],
    period_at: Callable[[int], Period],
    taken: tuple[int, int],
    now_ms: int,
) -> tuple[Left | None, Left | None]:
    """Return what is left of requests per minute and of tokens (per minute, day or month); None without a limit.

    Args:
        states: The scopes' states as they were before the request.
        caps: Their limits.
        period_at: Returns the day and month of a moment.
        taken: Requests and tokens that the request took.
        now_ms: Unix milliseconds of now.
    """
    requests: list[Left] = []
    tokens: list[Left] = []
    for state, limits in zip(states, caps, strict=True):
        in_use = held(state)[1] + taken[1]
        if "requests" in limits:
            level = state.requests + taken[0] * LEVEL_UNIT
            requests.append(_bucket_left(level, 0, limits["requests"], limits["requests_burst"]))
        if "tokens" in limits:
            tokens.append(_bucket_left(state.tokens, in_use, limits["tokens"], limits["tokens_burst"]))
        if "day_tokens" in limits:
            cap = limits["day_tokens"]
            tokens.append(
                Left(cap, max(0, cap - state.day_tokens - in_use), period_at(state.at_ms).day_ends_ms - now_ms)
            )
        if "month_tokens" in limits:
            cap = limits["month_tokens"]
            tokens.append(
                Left(cap, max(0, cap - state.month_tokens - in_use), period_at(state.at_ms).month_ends_ms - now_ms)
            )
    return min(requests, key=_remaining, default=None), min(tokens, key=_remaining, default=None)


def money_left(states: Sequence[ScopeState], caps: Sequence[Caps], taken_picos: int) -> int | None:
    """Return how many micro-dollars are left of the tightest budget; None without one.

    Args:
        states: The scopes' states as they were before the request.
        caps: Their limits.
        taken_picos: What the request took, in picodollars.
    """
    budgets: list[int] = []
    for state, limits in zip(states, caps, strict=True):
        in_use = held(state)[2] + taken_picos
        if "day_usd_micros" in limits:
            budgets.append(limits["day_usd_micros"] * PICOS - day_spent_picos(state) - in_use)
        if "month_usd_micros" in limits:
            budgets.append(limits["month_usd_micros"] * PICOS - month_spent_picos(state) - in_use)
    return max(0, min(budgets)) // PICOS if budgets else None


def remaining(
    states: Sequence[ScopeState],
    caps: Sequence[Caps],
    period_at: Callable[[int], Period],
    taken: tuple[int, int, int],
    now_ms: int,
) -> dict[str, int]:
    """Return what is left of the tightest limits by unit: ``requests``, ``tokens``, ``usd_micros``.

    Args:
        states: The scopes' states as they were before the request.
        caps: Their limits.
        period_at: Returns the day and month of a moment.
        taken: Requests, tokens and picodollars that the request took.
        now_ms: Unix milliseconds of now.
    """
    requests, tokens = left(states, caps, period_at, taken[:2], now_ms)
    found = {
        "requests": requests and requests.remaining,
        "tokens": tokens and tokens.remaining,
        "usd_micros": money_left(states, caps, taken[2]),
    }
    return {unit: amount for unit, amount in found.items() if amount is not None}


def _remaining(axis: Left) -> int:
    return axis.remaining


def _bucket_left(level: int, in_use: int, rate: int, burst: int) -> Left:
    remaining = (burst * LEVEL_UNIT - level) // LEVEL_UNIT - in_use
    return Left(burst, max(0, remaining), -(-level // rate))
