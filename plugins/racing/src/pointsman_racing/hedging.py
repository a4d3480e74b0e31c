"""One race as a state machine: which attempt to start when, which one wins, when to stop. Pure: no I/O, no clock.

The caller reports what happens and when, starts the attempts that are returned, and calls ``tick`` at ``due_ms`` at the
latest. Times are milliseconds on one monotonic clock::

    race = Race(plan, delay_ms=..., allow=...)
    start = race.begin(0)                      one attempt, or all of them
    start = race.tick(212)                     the hedging delay has passed: one more
    start = race.failed(0, fault, 230)         its replacement, at once
    start = race.answered(1, 300)              []
    race.result                                Won(attempt=1)

After the result nothing changes any more; the caller cancels every other attempt.

An answer without content is replaced like a failure, and wins only when no attempt has content.

Failures follow gRFC A6 (gRPC's client-side hedging). There a status is fatal or not: a fatal one ends the call for all
attempts, since every server would return the same; any other starts the next attempt at once, while the running ones
continue. Here the *class* of the provider's error decides, never its message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Final, Literal

from pointsman.errors import UpstreamError
from pointsman.types import CALLERS_FAULT, ErrorClass

MAX_ATTEMPTS: Final = 5
"""gRFC A6: larger values count as five."""

RETRY_BUDGET_AFTER: Final = 0.25
"""Share of its delay after which a race that was refused an extra attempt asks the budget again."""

Strategy = Literal["hedge", "first_wins", "weighted", "quality"]
#: Strategies that start every candidate at once.
TOGETHER: Final = frozenset({"first_wins", "weighted", "quality"})
#: Strategies that continue to collect answers after the first.
COLLECTING: Final = frozenset({"weighted", "quality"})
_GATEWAY_TIMEOUT: Final = 504
#: An attempt that fails this shortly before the deadline has met the deadline: it is not replaced.
_DEADLINE_TOLERANCE_MS: Final = 1.0
#: The provider rejected the request before it did anything, so even one with side effects may be sent elsewhere.
_NOTHING_DONE: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.AUTH, ErrorClass.NOT_FOUND, ErrorClass.REFUSED})
_ERROR_CLASSES: Final = {str(kind): kind for kind in ErrorClass}


class Verdict(StrEnum):
    """What a failed attempt does to its race."""

    FATAL = "fatal"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt failed.

    Attributes:
        kind: The class of the error.
        error: What to raise if this becomes the client's answer.
        retry_after_s: Seconds for which the candidate must not be called again; None: the provider named none.
        reached: Whether the attempt reached a deployment; False: the gateway had none to call.
    """

    kind: ErrorClass
    error: UpstreamError
    retry_after_s: float | None = None
    reached: bool = True

    @classmethod
    def of(cls, error: UpstreamError, *, reached: bool = True) -> Fault:
        """Return the fault that an upstream error stands for; an unrecognised class is ``unknown``."""
        kind = _ERROR_CLASSES.get(error.error_class, ErrorClass.UNKNOWN)
        return cls(kind=kind, error=error, retry_after_s=error.retry_after_s, reached=reached)

    @property
    def did_nothing(self) -> bool:
        """Whether the provider is certain not to have begun."""
        return self.kind in _NOTHING_DONE


def verdict(kind: ErrorClass, *, own_credential: bool = False) -> Verdict:
    """Return whether a failure ends the race.

    Args:
        kind: The class of the error.
        own_credential: The client sent the provider's key itself, so a refused key is the client's error. Otherwise the
            key is the gateway's, and the next candidate has another one.
    """
    if kind in CALLERS_FAULT or (kind is ErrorClass.AUTH and own_credential):
        return Verdict.FATAL
    return Verdict.NEXT


class Reason(StrEnum):
    """Why an attempt is started."""

    FIRST = "first"
    HEDGE = "hedge"
    TOGETHER = "together"
    REPLACEMENT = "replacement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One possible call of a candidate. A model group has as many entries as deployments.

    Attributes:
        candidate: Index of the candidate in the race, from 0.
        target: The model group or deployment id to call.
        blocked_until_ms: End of a retry-after that another request was given. Extra attempts obey it; a first attempt
            that has no other entry does not, since this request was given none.
        score: Score of the candidate; decides between equal answers.
    """

    candidate: int
    target: str
    blocked_until_ms: float = -inf
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is raced, and how.

    Attributes:
        entries: In the order in which they are started; not empty.
        strategy: ``hedge``: one after another; the others: all candidates at once.
        max_attempts: Maximum number of attempts.
        timeout_ms: Longest time until the first answer, from the start of the race; None has no limit.
        grace_ms: How long ``weighted`` and ``quality`` collect answers after the first.
        wait_ms: Longest time to wait for the end of a retry-after when nothing else runs.
        repeatable: Whether the request may be sent more than once.
        same_candidate: Whether an extra attempt may go to a candidate that is already running when there is no other.
        own_credential: Whether the client sent the provider's key itself.
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
    """An attempt to start.

    Attributes:
        attempt: Its number, from 0.
        entry: What to call.
        reason: Why.
    """

    attempt: int
    entry: Entry
    reason: Reason


@dataclass(frozen=True, slots=True)
class Won:
    """The race has a winner."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The race has no winner; the fault's error is the client's answer."""

    fault: Fault


@dataclass(slots=True)
class _Attempt:
    entry: Entry
    started_ms: float
    state: Literal["running", "answered", "empty", "failed"] = "running"
    answered_ms: float = inf
    answer_score: float = 0.0


@dataclass(slots=True)
class Race:
    """The state of one race.

    Args:
        plan: What is raced.
        delay_ms: Returns the hedging delay of an attempt, from its number and entry. Asked again when the delay has
            passed: by then the deployment that the attempt reached may be known.
        allow: Takes one extra attempt from the budget; False: the budget is empty.
        delay_factor: Returns the factor that stretches the delay. Asked again after each delay, because the budget
            fills and empties meanwhile. Nothing is stretched beyond half of the race's time: a hedge that starts later
            rarely answers before the deadline.
        wanted: Whether the answer is still waited for; once not, no further attempt is started.

    Attributes:
        result: Set when the race is over.
        has_fallback: Whether the gateway goes on elsewhere when the race is lost, as far as is known from its
            attempts' candidates.
        denied: How often the budget had no extra attempt.
    """

    plan: Plan
    delay_ms: Callable[[int, Entry], float]
    allow: Callable[[], bool]
    delay_factor: Callable[[], float] = lambda: 1.0
    wanted: Callable[[], bool] = lambda: True
    result: Won | Lost | None = None
    has_fallback: bool = False
    denied: int = 0
    _attempts: list[_Attempt] = field(default_factory=list)
    _free: list[Entry] = field(default_factory=list)
    _begun_ms: float = 0.0
    _hedge_at_ms: float = inf
    _owed: int = 0
    _last: Fault | None = None

    @property
    def attempts(self) -> int:
        """How many attempts have been started."""
        return len(self._attempts)

    # -- events -------------------------------------------------------------------------------------------------------

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
        return self._proceed(now_ms)

    def answered(self, number: int, now_ms: float, score: float = 0.0) -> list[Start]:
        """Record the first content of an attempt, or its whole answer when it is not a stream."""
        attempt = self._attempts[number]
        if attempt.state == "running":
            attempt.state, attempt.answered_ms, attempt.answer_score = "answered", now_ms, score
        return self._proceed(now_ms)

    def empty(self, number: int, now_ms: float) -> list[Start]:
        """Record the end of an answer without content."""
        attempt = self._attempts[number]
        if attempt.state != "running" or self.result is not None:
            return []
        attempt.state, attempt.answered_ms = "empty", now_ms
        self._owed += self.plan.repeatable
        return self._proceed(now_ms)

    def failed(self, number: int, fault: Fault, now_ms: float) -> list[Start]:
        """Record that an attempt failed before it had content."""
        attempt = self._attempts[number]
        if attempt.state != "running" or self.result is not None:
            return []
        attempt.state = "failed"
        if fault.reached or self._last is None:
            # The provider's error tells more than that the gateway has no other deployment to call.
            self._last = fault
        if verdict(fault.kind, own_credential=self.plan.own_credential) is Verdict.FATAL:
            if not self._answered():
                self.result = self._without_content(fault)
                return []
        elif self.plan.repeatable or fault.did_nothing:
            self._owed += 1
            if fault.retry_after_s is not None:
                # The candidate may be called again in this race, but not before its retry-after has passed.
                self._free.append(replace(attempt.entry, blocked_until_ms=now_ms + fault.retry_after_s * 1000))
        return self._proceed(now_ms)

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
        """Return whether the deadline has passed."""
        return now_ms >= self._deadline_ms() - _DEADLINE_TOLERANCE_MS

    # -- decisions ----------------------------------------------------------------------------------------------------

    def _proceed(self, now_ms: float) -> list[Start]:
        if self.result is not None:
            return []
        answered = self._answered()
        if answered:
            self._choose(answered, now_ms)
            return []
        if self.overdue(now_ms):
            self.result = self._without_content(_timed_out(self.plan.timeout_ms))
            return []
        starts = self._replace(now_ms)
        starts += self._hedge(now_ms)
        if not starts and not self._running() and self._nothing_to_wait_for(now_ms):
            self.result = self._without_content(self._last)
        return starts

    def _without_content(self, fault: Fault | None) -> Won | Lost:
        """Return the result of a race without content: the first empty answer, or else the fault.

        With a provider's error, or the race's own timeout, the gateway goes on to its fallback, which may have content.
        """
        empties = self._in_state("empty")
        if empties and (fault is None or not (fault.reached and self.has_fallback)):
            return Won(empties[0])
        assert fault is not None  # noqa: S101  # an attempt that neither runs nor has answered has failed
        return Lost(fault)

    def _choose(self, answered: list[int], now_ms: float) -> None:
        if self.plan.strategy not in COLLECTING:
            self.result = Won(answered[0])
        elif not self._running() or now_ms >= self._collect_until_ms(answered):
            self.result = Won(max(answered, key=self._rank))

    def _rank(self, number: int) -> tuple[float, float, float]:
        attempt = self._attempts[number]
        return attempt.answer_score, attempt.entry.score, -attempt.answered_ms

    def _replace(self, now_ms: float) -> list[Start]:
        starts = []
        while self._owed and self._may_start() and (entry := self._take(now_ms)) is not None:
            self._owed -= 1
            starts.append(self._start(entry, Reason.REPLACEMENT, now_ms))
        return starts

    def _hedge(self, now_ms: float) -> list[Start]:
        if not self._may_start() or now_ms < self._hedge_due_ms():
            return []
        newest = len(self._attempts) - 1
        started_ms, delay_ms = self._attempts[newest].started_ms, self._delay_ms(newest)
        stretched_ms = min(started_ms + delay_ms * self.delay_factor(), self._half_time_ms)
        due_ms = max(started_ms + delay_ms, stretched_ms)
        if now_ms < due_ms:
            self._hedge_at_ms = min(due_ms, now_ms + max(1.0, delay_ms))
            return []
        if not self.allow():
            # The bucket fills with other requests: ask again later, not at every event.
            self.denied += 1
            self._hedge_at_ms = now_ms + max(1.0, self._delay_ms(newest) * RETRY_BUDGET_AFTER)
            return []
        entry = self._take(now_ms) or self._again(now_ms)
        assert entry is not None  # noqa: S101  # otherwise no hedge would be due
        return [self._start(entry, Reason.HEDGE, now_ms)]

    def _start_others(self, now_ms: float) -> list[Start]:
        """Start one entry of every other candidate that is not blocked, as far as the budget allows."""
        starts: list[Start] = []
        taken = {self._attempts[0].entry.candidate}
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

    # -- state --------------------------------------------------------------------------------------------------------

    def _start(self, entry: Entry, reason: Reason, now_ms: float) -> Start:
        number = len(self._attempts)
        self._attempts.append(_Attempt(entry, now_ms))
        if self.plan.strategy == "hedge":
            self._hedge_at_ms = now_ms + self._delay_ms(number)
        return Start(number, entry, reason)

    @property
    def _half_time_ms(self) -> float:
        limit_ms = self.plan.timeout_ms
        return inf if limit_ms is None else self._begun_ms + limit_ms / 2

    def _delay_ms(self, number: int) -> float:
        return self.delay_ms(number, self._attempts[number].entry)

    def _take(self, now_ms: float) -> Entry | None:
        """Take the first free entry that is not blocked; for ``inf`` the one that is blocked for the shortest time."""
        if now_ms == inf:
            entry = min(self._free, key=lambda entry: entry.blocked_until_ms, default=None)
        else:
            entry = next((entry for entry in self._free if entry.blocked_until_ms <= now_ms), None)
        if entry is not None:
            self._free.remove(entry)
        return entry

    def _again(self, now_ms: float) -> Entry | None:
        """Return the entry of a running attempt for a second call, unless its retry-after has not passed."""
        if not self.plan.same_candidate:
            return None
        blocked = {entry.target for entry in self._free if entry.blocked_until_ms > now_ms}
        running = (attempt.entry for attempt in self._attempts if attempt.state == "running")
        return next((e for e in running if e.target not in blocked and e.blocked_until_ms <= now_ms), None)

    def _may_start(self) -> bool:
        return len(self._attempts) < min(self.plan.max_attempts, MAX_ATTEMPTS) and self.wanted()

    def _hedge_due_ms(self) -> float:
        """Return when the next hedge is due: after its delay, and when an entry is available."""
        at_ms = self._hedge_at_ms
        if at_ms == inf or not self.plan.repeatable or not self._running():
            return inf
        return at_ms if self._again(at_ms) is not None else max(at_ms, self._earliest_ms())

    def _running(self) -> bool:
        return any(attempt.state == "running" for attempt in self._attempts)

    def _answered(self) -> list[int]:
        """Return the numbers of the attempts that have answered with content, in the order of their answers."""
        return self._in_state("answered")

    def _in_state(self, state: Literal["answered", "empty"]) -> list[int]:
        numbers = [number for number, attempt in enumerate(self._attempts) if attempt.state == state]
        if len(numbers) > 1:
            numbers.sort(key=lambda number: self._attempts[number].answered_ms)
        return numbers

    def _deadline_ms(self) -> float:
        return inf if self.plan.timeout_ms is None else self._begun_ms + self.plan.timeout_ms

    def _collect_until_ms(self, answered: list[int]) -> float:
        first_ms = self._attempts[answered[0]].answered_ms
        if self.plan.strategy not in COLLECTING:
            return first_ms
        return min(first_ms + self.plan.grace_ms, self._deadline_ms())

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
