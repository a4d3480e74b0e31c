"""The ledger: what each scope has spent and what is set aside, and the one atomic step that changes it.

A *scope* is whatever has limits of its own: the gateway, a tenant, a key, a model pattern. A request takes from all its
scopes in one step or from none. What is taken is kept apart from what was spent:

- A *lease* is the estimate of a request that is running. It counts against every limit until the request is settled
  or until it expires; nothing is ever "given back", a lease just ends.
- Only real usage is *spent*, when the request is settled. So an estimate that was too high costs nothing, and
  spending itself stays within the limit.
- The *slot* of a request, its place among the concurrent ones, can be freed before that, when its answer is complete.

Money is counted exactly, what is reserved as well as what is spent: millionths of a dollar, and what is below one in
millionths of a millionth. A request that takes no tokens or no money is not refused for want of them.

Rates per minute follow the generic cell rate algorithm (ITU-T Recommendation I.371, Annex A; ATM Forum, Traffic
Management Specification 4.0, section 4.4.2) in its form as a continuous-state leaky bucket, which is equivalent to the
virtual-scheduling form and needs integers only: a bucket's level rises with every cell and drains steadily at the rate.
With a bucket ``burst`` deep, what is spent in any window of ``w`` seconds is at most ``burst + rate * w / 60``; there
is no edge at which it could be spent twice. Budgets per day and month are sums that restart with the calendar.

Time is the caller's. Where the clocks of several machines differ a little, a scope's levels and periods keep to the one
that is ahead, and leases end by the caller's own. A scope that is further ahead than that was touched by a clock that
has been set back since: it goes on from the caller's time with what it has.

Everything here is a pure function of its arguments. All numbers are integers below 2**53, so that the script for redis
(``lua.py``), which computes with doubles, gives the same results.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NotRequired, TypedDict, cast

from pointsman.store.protocol import JSON, AtomicOp, Put

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
#: Picodollars in a micro-dollar.
PICOS: Final = 1_000_000
#: Elements of a lease that an earlier version has written.
_FORMER_LEASE: Final = 3

Do = Literal["reserve", "settle", "free", "renew", "spend", "restore", "look"]


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
        leases: Unix seconds of expiry to how many requests, tokens, micro-dollars and further picodollars end then. A
            request whose slot is free is not one of them. Earlier versions wrote no picodollars.
        day_usd_picos: What was spent on that day below a micro-dollar, in picodollars.
        month_usd_picos: The same in that month.
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
    day_usd_picos: int = 0
    month_usd_picos: int = 0


class Hold(NamedTuple):
    """What is stored for a request in flight, as a JSON list.

    Attributes:
        expires_s: Unix seconds at which its lease ends; 0 marks a request that is settled, so that neither the same
            settlement nor a reservation that arrives late does anything.
        tokens: Reserved tokens.
        usd_micros: Reserved micro-dollars.
        slots: 1 until its slot is free, then 0; always 0 for a request that shares another's.
        usd_picos: Reserved in addition, in picodollars, less than a micro-dollar.
    """

    expires_s: int
    tokens: int
    usd_micros: int
    slots: int = 1
    usd_picos: int = 0

    @property
    def money(self) -> int:
        """Reserved picodollars."""
        return self.usd_micros * PICOS + self.usd_picos


_SETTLED: Final = Hold(0, 0, 0)


class Step(TypedDict):
    """The arguments of the atomic step.

    Attributes:
        do: ``reserve``: take from all scopes if all limits allow it. ``settle``: end the hold and spend the real usage.
            ``free``: free the hold's slot. ``renew``: move the hold's expiry. ``spend``: spend without a hold. ``restore``:
            add what was spent before to the sums of ``of_day`` and ``of_month``, and not to the levels, once for a hold
            that marks it. ``look``: change nothing.
        now_ms: Unix milliseconds.
        day: Number of the calendar day, growing.
        month: Number of the calendar month, growing.
        keep_s: Seconds for which an unused scope's state is kept.
        hold_keep_s: How long an unsettled hold is remembered, beyond its expiry, for a settlement that comes late.
        caps: The limits of each scope, in the order of the keys.
        tokens: Estimated (``reserve``) or real (``settle``, ``spend``) tokens.
        usd_micros: The same in micro-dollars.
        usd_picos: The same in addition, in picodollars, less than a micro-dollar.
        requests: Further requests that count against the rate (``settle``, ``spend``).
        expires_s: Unix seconds at which the lease ends (``reserve``, ``renew``).
        slots: 1; 0 where ``reserve`` is for a request that shares another's slot.
        force: ``reserve`` takes although a limit is exceeded.
        without_hold: It is not known whether there is a hold: ``settle`` spends also without one, and leaves a mark, so that
            it does so once.
        of_day: Number of the day that something was spent on before (``restore``); ``day`` is the present one.
        of_month: The same of the month.
        day_tokens: The part of ``tokens`` that was spent on that day (``restore``; the rest was spent earlier in the month).
        day_usd_micros: The part of ``usd_micros``.
        day_usd_picos: The part of ``usd_picos``.
    """

    do: Do
    now_ms: int
    day: int
    month: int
    keep_s: int
    hold_keep_s: int
    caps: list[Caps]
    tokens: int
    usd_micros: int
    usd_picos: int
    requests: int
    expires_s: int
    slots: int
    force: bool
    without_hold: bool
    of_day: NotRequired[int]
    of_month: NotRequired[int]
    day_tokens: NotRequired[int]
    day_usd_micros: NotRequired[int]
    day_usd_picos: NotRequired[int]


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
        return cls(done, fitting, [ScopeState(*scope) for scope in scopes])


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
        state.day_usd_picos if same_day else 0,
        state.month_usd_picos if same_month else 0,
    )


def lease_picos(lease: Sequence[int]) -> int:
    """Return the money of a lease, in picodollars."""
    return lease[2] * PICOS + (lease[3] if len(lease) > _FORMER_LEASE else 0)


def held(state: ScopeState) -> tuple[int, int, int]:
    """Return how many requests, tokens and picodollars are set aside."""
    requests = tokens = usd_picos = 0
    for lease in state.leases.values():
        requests += lease[0]
        tokens += lease[1]
        usd_picos += lease_picos(lease)
    return requests, tokens, usd_picos


def fits(state: ScopeState, caps: Caps, tokens: int, usd_picos: int, *, slots: int = 1) -> bool:
    """Return whether a scope can take one more request of this size."""
    held_requests, held_tokens, held_usd_picos = held(state)
    if ("requests" in caps and state.requests + LEVEL_UNIT > caps["requests_burst"] * LEVEL_UNIT) or (
        slots and "concurrent" in caps and held_requests + slots > caps["concurrent"]
    ):
        return False
    if tokens:
        tokens += held_tokens
        if (
            ("tokens" in caps and state.tokens + tokens * LEVEL_UNIT > caps["tokens_burst"] * LEVEL_UNIT)
            or ("day_tokens" in caps and state.day_tokens + tokens > caps["day_tokens"])
            or ("month_tokens" in caps and state.month_tokens + tokens > caps["month_tokens"])
        ):
            return False
    if usd_picos:
        usd_picos += held_usd_picos
        return not (
            ("day_usd_micros" in caps and day_spent_picos(state) + usd_picos > caps["day_usd_micros"] * PICOS)
            or ("month_usd_micros" in caps and month_spent_picos(state) + usd_picos > caps["month_usd_micros"] * PICOS)
        )
    return True


def day_spent_picos(state: ScopeState) -> int:
    """Return what was spent on the day, in picodollars."""
    return state.day_usd_micros * PICOS + state.day_usd_picos


def month_spent_picos(state: ScopeState) -> int:
    """Return what was spent in the month, in picodollars."""
    return state.month_usd_micros * PICOS + state.month_usd_picos


def _with_lease(leases: Mapping[str, Sequence[int]], hold: Hold) -> Mapping[str, Sequence[int]]:
    expiry = str(hold.expires_s)
    lease = leases.get(expiry, (0, 0, 0, 0))
    money = divmod(lease_picos(lease) + hold.money, PICOS)
    return {**leases, expiry: (lease[0] + hold.slots, lease[1] + hold.tokens, *money)}


def _released(state: ScopeState, hold: Hold) -> ScopeState:
    """Return the state without a hold; one that has expired is gone already."""
    expiry = str(hold.expires_s)
    if expiry not in state.leases:
        return state
    leases = dict(state.leases)
    lease = leases.pop(expiry)
    money = divmod(max(0, lease_picos(lease) - hold.money), PICOS)
    rest = (max(0, lease[0] - hold.slots), max(0, lease[1] - hold.tokens), *money)
    if any(rest):
        leases[expiry] = rest
    return state._replace(leases=leases)


def _taken(state: ScopeState, caps: Caps, hold: Hold) -> ScopeState:
    """Return the state with one more request: against its rate it counts from now on, whatever becomes of it."""
    return state._replace(requests=_requests(state, caps, 1), leases=_with_lease(state.leases, hold))


def _requests(state: ScopeState, caps: Caps, more: int) -> int:
    return min(MAX_AMOUNT, state.requests + more * LEVEL_UNIT) if "requests" in caps else state.requests


def _spent(state: ScopeState, caps: Caps, step: Step) -> ScopeState:
    tokens = step["tokens"]
    day_carry, day_picos = divmod(state.day_usd_picos + step["usd_picos"], PICOS)
    month_carry, month_picos = divmod(state.month_usd_picos + step["usd_picos"], PICOS)
    return state._replace(
        requests=_requests(state, caps, step["requests"]),
        tokens=min(MAX_AMOUNT, state.tokens + tokens * LEVEL_UNIT) if "tokens" in caps else state.tokens,
        day_tokens=min(MAX_AMOUNT, state.day_tokens + tokens),
        day_usd_micros=min(MAX_AMOUNT, state.day_usd_micros + step["usd_micros"] + day_carry),
        month_tokens=min(MAX_AMOUNT, state.month_tokens + tokens),
        month_usd_micros=min(MAX_AMOUNT, state.month_usd_micros + step["usd_micros"] + month_carry),
        day_usd_picos=day_picos,
        month_usd_picos=month_picos,
    )


def _restored(state: ScopeState, caps: Caps, step: Step) -> ScopeState:  # noqa: ARG001  # as ``_spent``
    """Return the state with what was spent before; what was spent in a period that is over counts no more."""
    if state.day == step["of_day"]:
        carry, picos = divmod(state.day_usd_picos + step["day_usd_picos"], PICOS)
        state = state._replace(
            day_tokens=min(MAX_AMOUNT, state.day_tokens + step["day_tokens"]),
            day_usd_micros=min(MAX_AMOUNT, state.day_usd_micros + step["day_usd_micros"] + carry),
            day_usd_picos=picos,
        )
    if state.month == step["of_month"]:
        carry, picos = divmod(state.month_usd_picos + step["usd_picos"], PICOS)
        state = state._replace(
            month_tokens=min(MAX_AMOUNT, state.month_tokens + step["tokens"]),
            month_usd_micros=min(MAX_AMOUNT, state.month_usd_micros + step["usd_micros"] + carry),
            month_usd_picos=picos,
        )
    return state


_ADDING: Final = {"spend": _spent, "restore": _restored}


def run(values: Sequence[JSON], args: JSON) -> tuple[Mapping[int, Put | None], JSON]:
    """Carry out the step; see ``Step`` and ``AtomicOp.python``. The first key is the hold, the others are scopes."""
    step = cast("Step", args)
    stored = cast("Sequence[Sequence[Any] | None]", values)
    hold = None if stored[0] is None else Hold(*stored[0])
    every_caps = step["caps"]
    before = [
        rolled(ScopeState(*state) if state is not None else ScopeState(), caps, step)
        for state, caps in zip(stored[1:], every_caps, strict=True)
    ]
    after: list[ScopeState] | None = None
    kept: Hold | None = None
    fitting = True
    match step["do"]:
        case "reserve" if hold is not None:  # again, after an answer that was lost, or after its settlement
            return {}, (True, True, before)
        case "reserve":
            kept = Hold(step["expires_s"], step["tokens"], step["usd_micros"], step["slots"], step["usd_picos"])
            asked = partial(fits, tokens=kept.tokens, usd_picos=kept.money, slots=kept.slots)
            fitting = all(map(asked, before, every_caps))
            if fitting or step["force"]:
                after = [_taken(state, caps, kept) for state, caps in zip(before, every_caps, strict=True)]
        case "settle" if hold.expires_s if hold is not None else step["without_hold"]:
            kept = _SETTLED if step["without_hold"] else None
            released = before if hold is None else [_released(state, hold) for state in before]
            after = [_spent(state, caps, step) for state, caps in zip(released, every_caps, strict=True)]
        case "free" if hold is not None and hold.expires_s and hold.slots:
            kept = hold._replace(slots=0)
            slot = Hold(hold.expires_s, 0, 0)
            after = [_released(state, slot) for state in before]
        case "renew" if hold is not None and hold.expires_s:
            kept = hold._replace(expires_s=step["expires_s"])
            released = [_released(state, hold) for state in before]
            after = [state._replace(leases=_with_lease(state.leases, kept)) for state in released]
        case ("spend" | "restore") as do if hold is None or do == "spend":
            kept = _SETTLED
            after = [_ADDING[do](state, caps, step) for state, caps in zip(before, every_caps, strict=True)]
        case _:
            pass
    if after is None:
        return {}, (False, fitting, before)
    writes: dict[int, Put | None] = {index: Put(state, step["keep_s"]) for index, state in enumerate(after, 1)}
    if step["do"] != "spend":
        writes[0] = None if kept is None else Put(kept, step["hold_keep_s"])
    return writes, (True, fitting, before)


LEDGER: Final = AtomicOp("quota ledger", run, SCRIPT, scanned=False)
