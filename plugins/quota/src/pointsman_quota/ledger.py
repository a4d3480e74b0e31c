"""The ledger: what each scope has spent and what is set aside, and the one atomic step that changes it.

A *scope* is whatever has limits of its own: the gateway, a tenant, a key, a model pattern. A request takes from all its
scopes in one step or from none. What is taken is kept apart from what was spent:

- A *lease* is the estimate of a request that is running. It counts against every limit until the request is settled
  or until it expires; nothing is ever "given back", a lease just ends.
- Only real usage is *spent*, when the request is settled. So an estimate that was too high costs nobody anything, and
  the spendings themselves keep to the limit.

Rates per minute follow the generic cell rate algorithm (ITU-T Recommendation I.371, Annex A; ATM Forum, Traffic
Management Specification 4.0, section 4.4.2) in its form as a continuous-state leaky bucket, which is equivalent to the
virtual-scheduling form and needs integers only: a bucket's level rises with every cell and drains steadily at the rate.
With a bucket ``burst`` deep, what is spent in any window of ``w`` seconds is at most ``burst + rate * w / 60``; there
is no edge at which it could be spent twice. Budgets per day and month are sums that begin anew with the calendar.

Time is the caller's. Where the clocks of several machines differ a little, a scope's levels and periods keep to the one
that is ahead, and leases end by the caller's own. A scope that is further ahead than that was touched by a clock that
has been set back since: it goes on from the caller's time with what it has.

Everything here is a pure function of its arguments. All numbers are integers below 2**53, so that the script for redis
(``lua.py``), which computes with doubles, gives the same results.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict, cast

from pointsman.store.base import JSON, AtomicOp, Put

from .lua import SCRIPT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: A level counts cells in 1/60 000: a rate of n a minute drains n of these a millisecond.
LEVEL_UNIT: Final = 60_000
#: Levels and sums end here, below 2**53, so that doubles stay exact.
MAX_AMOUNT: Final = 8_000_000_000_000_000
#: The most one request may take. More is a mistake or an attack.
MAX_REQUEST_TOKENS: Final = 1_000_000_000
MAX_REQUEST_USD_MICROS: Final = 1_000_000_000_000
#: By how much the clocks of two machines may differ. Beyond it, a clock has been set back.
MAX_AHEAD_MS: Final = 60_000
#: No lease taken now ends later, whatever the configuration: one that does is of a clock that has been set back.
LONGEST_LEASE_MS: Final = 3_960_000


class Caps(TypedDict, total=False):
    """The limits of one scope; a limit that is left out does not exist. Rates are a minute, bursts are depths."""

    requests: int
    requests_burst: int
    tokens: int
    tokens_burst: int
    concurrent: int
    day_tokens: int
    day_usd_micros: int
    month_tokens: int
    month_usd_micros: int


class ScopeState(NamedTuple):
    """What is stored for a scope, as a JSON list: it is written and read twice for every request.

    Attributes:
        at_ms: Unix milliseconds of the last change; the levels are those of that moment.
        requests: Level of the requests.
        tokens: Level of the tokens.
        day: Number of the calendar day that the next two sums belong to.
        day_tokens: Tokens spent on that day.
        day_usd_micros: Micro-dollars spent on that day.
        month: Number of the calendar month that the next two sums belong to.
        month_tokens: Tokens spent in that month.
        month_usd_micros: Micro-dollars spent in that month.
        leases: Unix seconds of expiry to how many requests, tokens and micro-dollars end then.
    """

    at_ms: int = 0
    requests: int = 0
    tokens: int = 0
    day: int = 0
    day_tokens: int = 0
    day_usd_micros: int = 0
    month: int = 0
    month_tokens: int = 0
    month_usd_micros: int = 0
    leases: Mapping[str, Sequence[int]] = MappingProxyType({})


class Hold(NamedTuple):
    """What is stored for a request in flight, as a JSON list.

    Attributes:
        expires_s: Unix seconds at which its lease ends; 0 marks a request that is settled, so that neither the same
            settlement nor a reservation that arrives late does anything.
        tokens: Reserved tokens.
        usd_micros: Reserved micro-dollars.
    """

    expires_s: int
    tokens: int
    usd_micros: int


_SETTLED: Final = Hold(0, 0, 0)


class Step(TypedDict):
    """The arguments of the atomic step.

    Attributes:
        do: ``reserve``: take from all scopes if all limits allow it. ``settle``: end the hold and spend the real usage.
            ``renew``: move the hold's expiry. ``spend``: spend without a hold. ``look``: change nothing.
        now_ms: Unix milliseconds.
        day: Number of the calendar day, growing.
        month: Number of the calendar month, growing.
        keep_s: How long a scope's state is kept when nobody touches it.
        hold_keep_s: How long an unsettled hold is remembered, beyond its expiry, for a settlement that comes late.
        caps: The limits of each scope, in the order of the keys.
        tokens: Estimated (``reserve``) or real (``settle``, ``spend``) tokens.
        usd_micros: The same in micro-dollars.
        expires_s: Unix seconds at which the lease ends (``reserve``, ``renew``).
        force: ``reserve`` takes although a limit is exceeded.
        anew: It is not known whether there is a hold: ``settle`` spends also without one, and leaves a mark, so that
            it does so once.
    """

    do: Literal["reserve", "settle", "renew", "spend", "look"]
    now_ms: int
    day: int
    month: int
    keep_s: int
    hold_keep_s: int
    caps: list[Caps]
    tokens: int
    usd_micros: int
    expires_s: int
    force: bool
    anew: bool


class Result(NamedTuple):
    """The answer of the atomic step, a JSON list.

    Attributes:
        done: Whether something was taken, settled, renewed or spent.
        fits: Whether every limit of every scope allows what was asked for.
        scopes: The states as they were before, brought up to ``now_ms``.
    """

    done: bool
    fits: bool
    scopes: Sequence[ScopeState]

    @classmethod
    def read(cls, value: JSON) -> Result:
        """Return the result that a store has returned."""
        done, fitting, scopes = cast("tuple[bool, bool, Sequence[Sequence[Any]]]", value)
        return cls(done, fitting, [ScopeState._make(scope) for scope in scopes])


def rolled(state: ScopeState, caps: Caps, step: Step) -> ScopeState:
    """Return a state brought up to the step's time: levels drained, old periods and leases gone.

    The level of a rate that has no limit at the moment stays, for the day it has one again.
    """
    now_ms = step["now_ms"]
    if state.at_ms > now_ms + MAX_AHEAD_MS:
        state = state._replace(at_ms=now_ms, day=min(state.day, step["day"]), month=min(state.month, step["month"]))
    at_ms = max(now_ms, state.at_ms)
    elapsed_ms = at_ms - state.at_ms
    same_day = step["day"] <= state.day
    same_month = step["month"] <= state.month
    return ScopeState(
        at_ms,
        max(0, state.requests - caps.get("requests", 0) * elapsed_ms),
        max(0, state.tokens - caps.get("tokens", 0) * elapsed_ms),
        state.day if same_day else step["day"],
        state.day_tokens if same_day else 0,
        state.day_usd_micros if same_day else 0,
        state.month if same_month else step["month"],
        state.month_tokens if same_month else 0,
        state.month_usd_micros if same_month else 0,
        {
            expiry: lease
            for expiry, lease in state.leases.items()
            if now_ms < int(expiry) * 1000 <= now_ms + LONGEST_LEASE_MS
        },
    )


def held(state: ScopeState) -> tuple[int, int, int]:
    """Return how many requests, tokens and micro-dollars are set aside."""
    requests = tokens = usd_micros = 0
    for lease in state.leases.values():
        requests += lease[0]
        tokens += lease[1]
        usd_micros += lease[2]
    return requests, tokens, usd_micros


def fits(state: ScopeState, caps: Caps, tokens: int, usd_micros: int) -> bool:
    """Say whether a scope can take one more request of this size."""
    held_requests, held_tokens, held_usd_micros = held(state)
    tokens += held_tokens
    usd_micros += held_usd_micros
    return (
        ("requests" not in caps or state.requests + LEVEL_UNIT <= caps["requests_burst"] * LEVEL_UNIT)
        and ("tokens" not in caps or state.tokens + tokens * LEVEL_UNIT <= caps["tokens_burst"] * LEVEL_UNIT)
        and ("concurrent" not in caps or held_requests + 1 <= caps["concurrent"])
        and ("day_tokens" not in caps or state.day_tokens + tokens <= caps["day_tokens"])
        and ("day_usd_micros" not in caps or state.day_usd_micros + usd_micros <= caps["day_usd_micros"])
        and ("month_tokens" not in caps or state.month_tokens + tokens <= caps["month_tokens"])
        and ("month_usd_micros" not in caps or state.month_usd_micros + usd_micros <= caps["month_usd_micros"])
    )


def _with_lease(leases: Mapping[str, Sequence[int]], hold: Hold) -> Mapping[str, Sequence[int]]:
    expiry = str(hold.expires_s)
    requests, tokens, usd_micros = leases.get(expiry, (0, 0, 0))
    return {**leases, expiry: (requests + 1, tokens + hold.tokens, usd_micros + hold.usd_micros)}


def _released(state: ScopeState, hold: Hold) -> ScopeState:
    """Return the state without a hold; one that has expired is gone already."""
    expiry = str(hold.expires_s)
    if expiry not in state.leases:
        return state
    leases = dict(state.leases)
    requests, tokens, usd_micros = leases.pop(expiry)
    if requests > 1:
        leases[expiry] = (requests - 1, max(0, tokens - hold.tokens), max(0, usd_micros - hold.usd_micros))
    return state._replace(leases=leases)


def _taken(state: ScopeState, caps: Caps, hold: Hold) -> ScopeState:
    """Return the state with one more request: against its rate it counts from now on, whatever becomes of it."""
    requests = min(MAX_AMOUNT, state.requests + LEVEL_UNIT) if "requests" in caps else state.requests
    return state._replace(requests=requests, leases=_with_lease(state.leases, hold))


def _spent(state: ScopeState, caps: Caps, step: Step) -> ScopeState:
    tokens, usd_micros = step["tokens"], step["usd_micros"]
    return state._replace(
        tokens=min(MAX_AMOUNT, state.tokens + tokens * LEVEL_UNIT) if "tokens" in caps else state.tokens,
        day_tokens=min(MAX_AMOUNT, state.day_tokens + tokens),
        day_usd_micros=min(MAX_AMOUNT, state.day_usd_micros + usd_micros),
        month_tokens=min(MAX_AMOUNT, state.month_tokens + tokens),
        month_usd_micros=min(MAX_AMOUNT, state.month_usd_micros + usd_micros),
    )


def run(values: Sequence[JSON], args: JSON) -> tuple[Mapping[int, Put | None], JSON]:
    """Carry out the step; see ``Step`` and ``AtomicOp.python``. The first key is the hold, the others are scopes."""
    step = cast("Step", args)
    stored = cast("Sequence[Sequence[Any] | None]", values)
    hold = None if stored[0] is None else Hold._make(stored[0])
    every_caps = step["caps"]
    before = [
        rolled(ScopeState._make(state) if state is not None else ScopeState(), caps, step)
        for state, caps in zip(stored[1:], every_caps, strict=True)
    ]
    after: list[ScopeState] | None = None
    kept: Hold | None = None
    fitting = True
    match step["do"]:
        case "reserve" if hold is not None:  # again, after an answer that was lost, or after its settlement
            return {}, (True, True, before)
        case "reserve":
            fitting = all(map(partial(fits, tokens=step["tokens"], usd_micros=step["usd_micros"]), before, every_caps))
            if fitting or step["force"]:
                kept = Hold(step["expires_s"], step["tokens"], step["usd_micros"])
                after = [_taken(state, caps, kept) for state, caps in zip(before, every_caps, strict=True)]
        case "settle" if hold is not None and hold.expires_s:
            kept = _SETTLED if step["anew"] else None
            after = [_spent(_released(state, hold), caps, step) for state, caps in zip(before, every_caps, strict=True)]
        case "settle" if hold is None and step["anew"]:
            kept = _SETTLED
            after = [_spent(state, caps, step) for state, caps in zip(before, every_caps, strict=True)]
        case "renew" if hold is not None and hold.expires_s:
            kept = hold._replace(expires_s=step["expires_s"])
            released = [_released(state, hold) for state in before]
            after = [state._replace(leases=_with_lease(state.leases, kept)) for state in released]
        case "spend":
            after = [_spent(state, caps, step) for state, caps in zip(before, every_caps, strict=True)]
        case _:
            pass
    if after is None:
        return {}, (False, fitting, before)
    writes: dict[int, Put | None] = {index: Put(state, step["keep_s"]) for index, state in enumerate(after, 1)}
    if step["do"] != "spend":
        writes[0] = None if kept is None else Put(kept, step["hold_keep_s"])
    return writes, (True, fitting, before)


LEDGER: Final = AtomicOp("quota ledger", run, SCRIPT)
