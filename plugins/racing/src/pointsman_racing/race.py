"""One race as a state machine: which leg to start when, who wins, when to stop. No I/O, no clock, no tasks.

Whoever drives it tells it what happens and when, starts the legs it asks for, and calls ``tick`` at the latest when
``due`` says so. Times are milliseconds on one clock that never goes back::

    race = Race(plan, delay_ms=..., allow=...)
    start = race.begin(0)                      one leg, or all of them
    start = race.tick(212)                     the hedging delay is over: one more
    start = race.failed(0, fault, 230)         its replacement, at once
    start = race.answered(1, 300)              []
    race.result                                Won(leg=1)

After the result nothing changes any more: every other leg is to be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Final, Literal

from pointsman.errors import UpstreamError
from pointsman.types import ErrorClass

from .faults import Fault, Verdict, verdict

MAX_ATTEMPTS: Final = 5
"""gRFC A6: larger values count as five."""

ASK_AGAIN_AFTER: Final = 0.25
"""Share of its delay after which a race that was refused an extra attempt asks the budget again."""

Strategy = Literal["hedge", "first_wins", "weighted", "quality"]
#: Strategies that start every candidate at once.
TOGETHER: Final = frozenset({"first_wins", "weighted", "quality"})
#: Strategies that go on collecting answers after the first.
COLLECTING: Final = frozenset({"weighted", "quality"})
_GATEWAY_TIMEOUT: Final = 504
#: A leg that fails so shortly before the deadline has met the deadline: it is not replaced.
_HAIR_MS: Final = 1.0


class Reason(StrEnum):
    """Why a leg is started."""

    FIRST = "first"
    HEDGE = "hedge"
    TOGETHER = "together"
    REPLACEMENT = "replacement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One place in the field: a call of a candidate. A model group has as many as it has deployments.

    Attributes:
        candidate: Which candidate of the race, from 0.
        target: What is called.
        blocked_until_ms: It has asked, in another request, to be left alone until then. Extra legs obey; a first leg
            that has no other entry does not, since nobody has told this request so.
        standing: Score of what is known about it; decides between equal scores.
    """

    candidate: int
    target: str
    blocked_until_ms: float = -inf
    standing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is raced, and how.

    Attributes:
        entries: In the order in which they are started; not empty.
        strategy: ``hedge``: one after another; the others: all candidates at once.
        max_attempts: Legs at most.
        timeout_ms: Longest time until the first answer, from the start of the race; None has no limit.
        grace_ms: How long ``weighted`` and ``quality`` go on after the first answer.
        wait_ms: Longest time to wait for the end of a push-back when nothing else runs.
        repeatable: Whether the request may be made more than once.
        same_candidate: Whether an extra leg may go to a candidate that runs already, when there is no other.
        own_credential: Whether the client brought the provider's key itself.
    """

    entries: tuple[Entry, ...]
    strategy: Strategy = "hedge"
    max_attempts: int = MAX_ATTEMPTS
    timeout_ms: float | None = None
    grace_ms: float = 1000.0
    wait_ms: float = 5000.0
    repeatable: bool = True
    same_candidate: bool = True
    own_credential: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """A leg to be started.

    Attributes:
        leg: Its number, from 0.
        entry: What to call.
        reason: Why.
    """

    leg: int
    entry: Entry
    reason: Reason


@dataclass(frozen=True, slots=True)
class Won:
    """The race has a winner."""

    leg: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The race has none; the fault's error is the client's answer."""

    fault: Fault


@dataclass(slots=True)
class _Leg:
    entry: Entry
    started_ms: float
    state: Literal["running", "answered", "failed"] = "running"
    answered_ms: float = inf
    score: float = 0.0


@dataclass(slots=True)
class Race:
    """The state of one race.

    Args:
        plan: What is raced.
        delay_ms: How long to wait for a leg before the next is started. Asked again when that time has come, since
            then more may be known about whom the leg has reached.
        allow: Asks for one extra attempt; False: the budget has none.
        patience: By what factor the delay is stretched. Asked again after each delay: the budget fills and empties
            meanwhile. From half of the race's time on nothing is stretched: whoever waits longer than that is sooner
            ended than helped.

    Attributes:
        result: Set when the race is over.
        denied: How often the budget had no extra attempt.
    """

    plan: Plan
    delay_ms: Callable[[int, Entry], float]
    allow: Callable[[], bool]
    patience: Callable[[], float] = lambda: 1.0
    result: Won | Lost | None = None
    denied: int = 0
    _legs: list[_Leg] = field(default_factory=list)
    _free: list[Entry] = field(default_factory=list)
    _begun_ms: float = 0.0
    _hedge_at_ms: float = inf
    _owed: int = 0
    _last: Fault | None = None

    @property
    def legs(self) -> int:
        """How many legs have been started."""
        return len(self._legs)

    # -- what happens -------------------------------------------------------------------------------------------------

    def begin(self, now_ms: float) -> list[Start]:
        """Start the race."""
        plan = self.plan
        self._begun_ms = now_ms
        self._free = list(plan.entries)
        first = self._take(now_ms) or self._take(inf)
        if first is None:
            raise ValueError("a race needs at least one entry")
        starts = [self._start(first, Reason.FIRST, now_ms)]
        if plan.strategy in TOGETHER and plan.repeatable:
            starts += self._start_others(now_ms)
        return starts

    def tick(self, now_ms: float) -> list[Start]:
        """Do what is due."""
        return self._go_on(now_ms)

    def answered(self, leg: int, now_ms: float, score: float = 0.0) -> list[Start]:
        """Note that a leg has its first content, or its whole answer when it is no stream."""
        one = self._legs[leg]
        if one.state == "running":
            one.state, one.answered_ms, one.score = "answered", now_ms, score
        return self._go_on(now_ms)

    def failed(self, leg: int, fault: Fault, now_ms: float) -> list[Start]:
        """Note that a leg has failed before it had content."""
        one = self._legs[leg]
        if one.state != "running" or self.result is not None:
            return []
        one.state = "failed"
        self._last = fault
        if verdict(fault.kind, own_credential=self.plan.own_credential) is Verdict.FATAL:
            if not self._answered():
                self.result = Lost(fault)
                return []
        elif self.plan.repeatable or fault.did_nothing:
            self._owed += 1
            if fault.retry_after_s is not None:
                # The one who pushes back may be asked again in this race, but not before.
                until_ms = now_ms + fault.retry_after_s * 1000
                self._free.append(
                    Entry(
                        candidate=one.entry.candidate,
                        target=one.entry.target,
                        blocked_until_ms=until_ms,
                        standing=one.entry.standing,
                    )
                )
        return self._go_on(now_ms)

    def due_ms(self) -> float | None:
        """Return when ``tick`` has something to do, or None when only an event can change anything."""
        if self.result is not None:
            return None
        answered = self._answered()
        if answered:
            return self._collect_until_ms(answered)
        moments = [self._deadline_ms()]
        if self._may_start():
            moments.append(self._hedge_due_ms())
            if self._owed:
                moments.append(self._earliest_ms())
        due_ms = min(moments)
        return None if due_ms == inf else due_ms

    def overdue(self, now_ms: float) -> bool:
        """Say whether its time has run out."""
        return now_ms >= self._deadline_ms() - _HAIR_MS

    # -- how it goes on -----------------------------------------------------------------------------------------------

    def _go_on(self, now_ms: float) -> list[Start]:
        if self.result is not None:
            return []
        answered = self._answered()
        if answered:
            self._choose(answered, now_ms)
            return []
        if self.overdue(now_ms):
            self.result = Lost(_timed_out(self.plan.timeout_ms))
            return []
        starts = self._replace(now_ms)
        starts += self._hedge(now_ms)
        if not starts and not self._running() and self._nothing_to_wait_for(now_ms):
            assert self._last is not None  # noqa: S101  # a leg that does not run has failed
            self.result = Lost(self._last)
        return starts

    def _choose(self, answered: list[int], now_ms: float) -> None:
        legs = self._legs
        if self.plan.strategy not in COLLECTING:
            self.result = Won(answered[0])
        elif not self._running() or now_ms >= self._collect_until_ms(answered):
            self.result = Won(
                max(answered, key=lambda leg: (legs[leg].score, legs[leg].entry.standing, -legs[leg].answered_ms))
            )

    def _replace(self, now_ms: float) -> list[Start]:
        starts = []
        while self._owed and self._may_start() and (entry := self._take(now_ms)) is not None:
            self._owed -= 1
            starts.append(self._start(entry, Reason.REPLACEMENT, now_ms))
        return starts

    def _hedge(self, now_ms: float) -> list[Start]:
        if not self._may_start() or now_ms < self._hedge_due_ms():
            return []
        newest = len(self._legs) - 1
        started_ms, delay_ms = self._legs[newest].started_ms, self._delay_ms(newest)
        stretched_ms = min(started_ms + delay_ms * self.patience(), self._half_time_ms)
        due_ms = max(started_ms + delay_ms, stretched_ms)
        if now_ms < due_ms:
            self._hedge_at_ms = min(due_ms, now_ms + max(1.0, delay_ms))
            return []
        if not self.allow():
            # The bucket fills with other requests: ask again later, not at every event.
            self.denied += 1
            self._hedge_at_ms = now_ms + max(1.0, self._delay_ms(newest) * ASK_AGAIN_AFTER)
            return []
        entry = self._take(now_ms) or self._again(now_ms)
        assert entry is not None  # noqa: S101  # otherwise no hedge would be due
        return [self._start(entry, Reason.HEDGE, now_ms)]

    def _start_others(self, now_ms: float) -> list[Start]:
        """Start one entry of every other candidate that is not blocked, as far as the budget goes."""
        starts: list[Start] = []
        taken = {self._legs[0].entry.candidate}
        for entry in tuple(self._free):
            if entry.candidate in taken or entry.blocked_until_ms > now_ms or not self._may_start():
                continue
            if not self.allow():
                self.denied += 1
                break
            taken.add(entry.candidate)
            self._free.remove(entry)
            starts.append(self._start(entry, Reason.TOGETHER, now_ms))
        return starts

    # -- what there is ------------------------------------------------------------------------------------------------

    def _start(self, entry: Entry, reason: Reason, now_ms: float) -> Start:
        leg = len(self._legs)
        self._legs.append(_Leg(entry, now_ms))
        if self.plan.strategy == "hedge":
            self._hedge_at_ms = now_ms + self._delay_ms(leg)
        return Start(leg, entry, reason)

    @property
    def _half_time_ms(self) -> float:
        """When half of the race's time has passed."""
        limit_ms = self.plan.timeout_ms
        return inf if limit_ms is None else self._begun_ms + limit_ms / 2

    def _delay_ms(self, leg: int) -> float:
        return self.delay_ms(leg, self._legs[leg].entry)

    def _take(self, now_ms: float) -> Entry | None:
        """Take the first free entry that is not blocked; for ``inf`` the one that is blocked for the shortest time."""
        if now_ms == inf:
            found = min(self._free, key=lambda entry: entry.blocked_until_ms, default=None)
        else:
            found = next((entry for entry in self._free if entry.blocked_until_ms <= now_ms), None)
        if found is not None:
            self._free.remove(found)
        return found

    def _again(self, now_ms: float) -> Entry | None:
        """Return the entry of a running leg, the same candidate once more, unless it pushes back."""
        if not self.plan.same_candidate:
            return None
        blocked = {entry.target for entry in self._free if entry.blocked_until_ms > now_ms}
        running = (leg.entry for leg in self._legs if leg.state == "running")
        return next((e for e in running if e.target not in blocked and e.blocked_until_ms <= now_ms), None)

    def _may_start(self) -> bool:
        return len(self._legs) < min(self.plan.max_attempts, MAX_ATTEMPTS)

    def _hedge_due_ms(self) -> float:
        """Return when the next hedge is due: after its delay, and when there is somebody who may be asked."""
        at_ms = self._hedge_at_ms
        if at_ms == inf or not self.plan.repeatable or not self._running():
            return inf
        return at_ms if self._again(at_ms) is not None else max(at_ms, self._earliest_ms())

    def _running(self) -> bool:
        return any(leg.state == "running" for leg in self._legs)

    def _answered(self) -> list[int]:
        """Return the legs that have answered, in the order in which they did."""
        found = [number for number, leg in enumerate(self._legs) if leg.state == "answered"]
        return sorted(found, key=lambda number: self._legs[number].answered_ms)

    def _deadline_ms(self) -> float:
        return inf if self.plan.timeout_ms is None else self._begun_ms + self.plan.timeout_ms

    def _collect_until_ms(self, answered: list[int]) -> float:
        if self.plan.strategy not in COLLECTING:
            return self._legs[answered[0]].answered_ms
        return min(self._legs[answered[0]].answered_ms + self.plan.grace_ms, self._deadline_ms())

    def _earliest_ms(self) -> float:
        return min((entry.blocked_until_ms for entry in self._free), default=inf)

    def _nothing_to_wait_for(self, now_ms: float) -> bool:
        if not self._owed or not self._may_start():
            return True
        limit_ms = min(now_ms + self.plan.wait_ms, self._deadline_ms())
        return self._earliest_ms() > limit_ms


def _timed_out(timeout_ms: float | None) -> Fault:
    message = f"no candidate of the race had content within {timeout_ms:.0f} ms"
    error = UpstreamError(message, status=_GATEWAY_TIMEOUT, error_class=str(ErrorClass.TIMEOUT))
    return Fault(kind=ErrorClass.TIMEOUT, error=error)
