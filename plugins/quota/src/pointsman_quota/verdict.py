"""What the ledger's answer means for the caller: which limits refuse, how long, and what is left.

Pure. The atomic step only says yes or no; the reasons are worked out here from the states it returns, once for all
stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from .ledger import LEVEL_UNIT, Caps, ScopeState, held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .periods import Period


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


#: Moments and what is held from then on: (Unix ms, requests, tokens, micro-dollars), in the order of time.
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
        take: Tokens and micro-dollars asked for.
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
    """Return the breach of those who wait for a slot behind others: it lasts while anybody is in flight."""
    first_s = min(map(int, state.leases), default=0)
    return Breach(scope, LimitName.CONCURRENT_REQUESTS, cap, max(0, first_s * 1000 - now_ms), 0)


def _epochs(state: ScopeState, now_ms: int) -> Iterator[_Epoch]:
    requests, tokens, usd_micros = held(state)
    yield now_ms, requests, tokens, usd_micros
    for expiry in sorted(state.leases, key=int):
        lease = state.leases[expiry]
        requests, tokens, usd_micros = requests - lease[0], tokens - lease[1], usd_micros - lease[2]
        yield int(expiry) * 1000, requests, tokens, usd_micros


def _earliest(epochs: Sequence[_Epoch], when: Callable[[_Epoch], int | None]) -> int | None:
    """Return the first moment at which a limit allows the request.

    Each epoch alone gives a moment that is right or too late, because less is held in the epochs after it: the least
    of them is exact.
    """
    return min((at_ms for epoch in epochs if (at_ms := when(epoch)) is not None), default=None)


def _checks(
    state: ScopeState, caps: Caps, period: Period, take: tuple[int, int]
) -> Iterator[tuple[LimitName, int, Callable[[_Epoch], int | None]]]:
    """Yield each limit of a scope with a function that says from when on it allows the request within an epoch."""
    tokens, usd_micros = take
    if "requests" in caps:
        bucket = _Bucket(state.at_ms, state.requests, caps["requests"], caps["requests_burst"])
        yield LimitName.REQUESTS_PER_MINUTE, caps["requests_burst"], partial(bucket.allows, field=0, cells=1)
    if "tokens" in caps:
        bucket = _Bucket(state.at_ms, state.tokens, caps["tokens"], caps["tokens_burst"])
        yield LimitName.TOKENS_PER_MINUTE, caps["tokens_burst"], partial(bucket.allows, field=2, cells=tokens)
    if "concurrent" in caps:
        slots = _Sum(0, caps["concurrent"], 0)
        yield LimitName.CONCURRENT_REQUESTS, caps["concurrent"], partial(slots.allows, field=1, amount=1)
    if "day_tokens" in caps:
        budget = _Sum(state.day_tokens, caps["day_tokens"], period.day_ends_ms)
        yield LimitName.TOKENS_PER_DAY, budget.cap, partial(budget.allows, field=2, amount=tokens)
    if "day_usd_micros" in caps:
        budget = _Sum(state.day_usd_micros, caps["day_usd_micros"], period.day_ends_ms)
        yield LimitName.USD_PER_DAY, budget.cap, partial(budget.allows, field=3, amount=usd_micros)
    if "month_tokens" in caps:
        budget = _Sum(state.month_tokens, caps["month_tokens"], period.month_ends_ms)
        yield LimitName.TOKENS_PER_MONTH, budget.cap, partial(budget.allows, field=2, amount=tokens)
    if "month_usd_micros" in caps:
        budget = _Sum(state.month_usd_micros, caps["month_usd_micros"], period.month_ends_ms)
        yield LimitName.USD_PER_MONTH, budget.cap, partial(budget.allows, field=3, amount=usd_micros)


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
    """A budget: a sum that begins anew at ``ends_ms``; concurrency is one whose sum is always 0."""

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


def _remaining(axis: Left) -> int:
    return axis.remaining


def _bucket_left(level: int, in_use: int, rate: int, burst: int) -> Left:
    remaining = (burst * LEVEL_UNIT - level) // LEVEL_UNIT - in_use
    return Left(burst, max(0, remaining), -(-level // rate))
