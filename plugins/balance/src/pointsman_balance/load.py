"""A deployment as one worker sees it: what runs on it, how long it takes, how often it fails. Pure.

The averages are exponentially weighted by time. The one of the waiting time is a *peak* average: it rises at once and falls
slowly, as in Twitter Finagle's ``PeakEwma`` load balancer, and a request that still waits counts with its wait so far.
"""

from __future__ import annotations

from math import exp, log
from typing import Final

from pointsman.stats import DecayingCount, Ewma

#: Seconds after which a running attempt counts as lost.
LOST_AFTER_S: Final = 6 * 3_600.0
#: Seconds after which a choice without an attempt is given up.
PICK_S: Final = 5.0
#: Least weight of a value, however short the time since the previous one.
MIN_GAIN: Final = 0.1
#: Share of the way that a longer wait moves the average up at once.
PEAK_GAIN: Final = 0.5
#: Weight of the latest value in the usual value, once there are more values than its inverse.
USUAL_GAIN: Final = 0.02
#: Share of ``stale_s`` up to which an average counts as fresh.
FRESH: Final = 0.2
#: Fewer values than this make no usual value: one slow answer at the start must not count against a deployment.
HABIT: Final = 5
#: Multiple of ``stale_s`` after which a usually slow deployment is tried again.
LONG_STALE: Final = 6.0
#: Consecutive attempts without an answer after which a deployment counts as unknown.
MAX_UNANSWERED: Final = 5
#: How often the time until such a deployment is tried again doubles at most.
DOUBLINGS: Final = 7
#: Weight of the latest attempt in the error average.
ERROR_GAIN: Final = 0.15
#: A wait fades down to this, in milliseconds: less than any real one. Below it the product of a tactic would no longer
#: reflect the requests in flight, and the trace would show unreadable numbers.
MIN_WAIT_MS: Final = 0.01
#: A single token gives no speed.
MIN_SPEED_TOKENS: Final = 2


class Average(Ewma):
    """A moving average that also knows the usual value, can be forgotten, and can be restored.

    Attributes:
        usual: Average over a much longer time; 0 before the first value.
    """

    __slots__ = ("usual",)

    def __init__(self, tau_s: float, peak_gain: float = 0.0) -> None:
        # At a high rate the time between two values is short; each of them still needs some weight.
        super().__init__(tau_s, min_gain=MIN_GAIN, peak_gain=peak_gain)
        self.usual = 0.0

    def add(self, value: float, at: float) -> None:
        """Take in a value seen at a moment, in seconds."""
        if self.count == 0:
            self.usual = self.usual or value
        else:
            self.usual += max(USUAL_GAIN, 1.0 / (self.count + 1)) * (value - self.usual)
        super().add(value, at)

    def forget(self) -> None:
        """Start again with the next value; the usual value is kept."""
        self.count = 0

    def saved(self) -> tuple[float, float, float, int]:
        """Return everything, for ``restore``."""
        return self.value, self.usual, self.at, self.count

    def restore(self, saved: tuple[float, float, float, int]) -> None:
        """Restore what was saved."""
        self.value, self.usual, self.at, self.count = saved


class Load:
    """One deployment in one model group, as this worker sees it.

    Args:
        tau_s: Time constant of the averages in seconds.
        stale_s: Time constant, in seconds, with which the measured wait of an unused deployment fades.
    """

    __slots__ = (
        "asked",
        "begun",
        "errors",
        "failed",
        "first_ms",
        "latency_ms",
        "let_through",
        "picks",
        "running",
        "spent",
        "stale_s",
        "tokens",
        "tokens_per_s",
        "tried",
        "unanswered",
        "used_at",
        "waiting",
    )

    def __init__(self, tau_s: float, stale_s: float) -> None:
        self.stale_s = stale_s
        #: Attempt id to its start, Unix seconds; the oldest first.
        self.running: dict[str, float] = {}
        #: Those of ``running`` that are streams without a first token.
        self.waiting: dict[str, float] = {}
        #: Attempt id of each stream that has begun to answer to the average before its first token.
        self.begun: dict[str, tuple[float, float, float, int]] = {}
        #: Requests that were sent here but whose attempt has not started: request id to the time of the choice.
        self.picks: dict[str, float] = {}
        #: Requests that were sent here although the breaker is open, for want of a better deployment.
        self.let_through: set[str] = set()
        self.first_ms = Average(tau_s, PEAK_GAIN)
        self.latency_ms = Average(tau_s, PEAK_GAIN)
        self.tokens_per_s = Average(tau_s)
        #: Share of failed attempts, 0 to 1: an average over the latest few.
        self.errors = 0.0
        #: Attempts and failures so far.
        self.tried = 0
        self.failed = 0
        self.used_at = 0.0
        #: Attempts since the start or the end of the latest outage.
        self.asked = 0
        #: Consecutive attempts that ended with an error, no matter whose fault.
        self.unanswered = 0
        #: Tokens so far.
        self.spent = 0
        #: Recent tokens: they fade with the time constant.
        self.tokens = DecayingCount(half_life_s=tau_s * log(2))

    def apply(self, tau_s: float, stale_s: float) -> None:
        """Apply other time constants to what comes from now on, in seconds."""
        self.stale_s = stale_s
        self.first_ms.tau_s = self.latency_ms.tau_s = self.tokens_per_s.tau_s = tau_s
        self.tokens.half_life_s = tau_s * log(2)

    @property
    def in_flight(self) -> int:
        """Attempts that run here or are about to start."""
        return len(self.running) + len(self.picks)

    # -- following attempts -------------------------------------------------------------------------------------------

    def pick(self, request_id: str, now: float, *, let_through: bool = False) -> None:
        """Record that a request is sent here; ``let_through`` if only for want of a better deployment."""
        self.picks[request_id] = now
        if let_through:
            self.let_through.add(request_id)
        elif self.let_through:
            self.let_through.discard(request_id)

    def begin(self, attempt_id: str, request_id: str, started_at: float, *, stream: bool) -> None:
        """Record that an attempt starts."""
        self.picks.pop(request_id, None)
        self.running[attempt_id] = started_at
        if stream:
            self.waiting[attempt_id] = started_at
        self.tried += 1
        self.asked += 1
        self.used_at = started_at

    def first_token(self, attempt_id: str, first_ms: float, now: float) -> None:
        """Record the first token of a stream."""
        if self.waiting.pop(attempt_id, None) is not None:
            self.begun[attempt_id] = self.first_ms.saved()
            self.first_ms.add(first_ms, now)

    def end(self, attempt_id: str, request_id: str, *, silent: bool = False) -> None:
        """Record that an attempt ended, or was refused before it started.

        Args:
            attempt_id: The attempt's id.
            request_id: The request's id.
            silent: Whether it says nothing about the deployment: the gateway's own cache answered, the client caused its
                end, or there was no content.
        """
        begun = self.begun.pop(attempt_id, None)
        if silent:
            self.asked -= 1
            if begun is not None:
                self.first_ms.restore(begun)
        self.picks.pop(request_id, None)
        self.let_through.discard(request_id)
        self.running.pop(attempt_id, None)
        self.waiting.pop(attempt_id, None)

    def answered(self, duration_ms: float | None, tokens: int, speed_ms: float | None, now: float) -> None:
        """Learn from an answer.

        Args:
            duration_ms: Duration of a plain call; None for a stream, whose length is not a wait.
            tokens: Completion tokens.
            speed_ms: Time in which they arrived, without the wait for the first one of a stream; or None.
            now: Unix seconds.
        """
        self.errors -= ERROR_GAIN * self.errors
        self.unanswered = 0
        if duration_ms is not None:
            self.latency_ms.add(duration_ms, now)
        if speed_ms and tokens >= MIN_SPEED_TOKENS:
            self.tokens_per_s.add(tokens / speed_ms * 1e3, now)

    def failed_after(self, ms: float | None, now: float, *, timed_out: bool, stream: bool) -> None:
        """Learn from a failure that the deployment caused; a timeout is also a long wait."""
        self.failed += 1
        self.errors += ERROR_GAIN * (1.0 - self.errors)
        if timed_out and ms is not None:
            (self.first_ms if stream else self.latency_ms).add(ms, now)

    def spend(self, tokens: int, now: float) -> None:
        """Count the tokens of an attempt."""
        self.spent += tokens
        self.tokens.add(now, tokens)

    def recover(self) -> None:
        """Forget waits and failures: an outage is over."""
        self.first_ms.forget()
        self.latency_ms.forget()
        self.errors = 0.0
        self.asked = self.unanswered = 0

    def sweep(self, now: float) -> list[str]:
        """Drop lost attempts and choices; return the requests of lost choices."""
        for attempt_id in [one for one, at in self.running.items() if at < now - LOST_AFTER_S]:
            self.end(attempt_id, "")
        lost = [request_id for request_id, at in self.picks.items() if at < now - PICK_S]
        for request_id in lost:
            del self.picks[request_id]
            self.let_through.discard(request_id)
        return lost

    # -- asking -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _believed(average: Average, idle: float) -> float:
        """Return an average as it counts after ``idle`` times ``stale_s`` without new values: it fades to the usual value.

        An unobserved outage may be over. The usual value fades too, only later.
        """
        value = average.value
        if average.count < HABIT:
            return value * exp(-idle)
        usual = average.usual
        known = usual + (value - usual) * exp(-idle) if value > usual else value
        return known if idle < LONG_STALE else known * exp(1.0 - idle / LONG_STALE)

    def explores(self, now: float, unanswered: int = MAX_UNANSWERED) -> bool:
        """Return whether a request may be sent here to measure the deployment.

        One at a time; after ``unanswered`` attempts without an answer only after a pause, which doubles each time.
        """
        if self.running or self.picks:
            return False
        return not self._paused(max(self.asked, self.unanswered), unanswered, now)

    def _paused(self, attempts: int, unanswered: int, now: float) -> bool:
        if attempts < unanswered:
            return False
        return now < self.used_at + LONG_STALE * self.stale_s * (1 << min(attempts - unanswered, DOUBLINGS))

    def error_ratio(self, now: float) -> float:
        """Return the share of failed attempts; it fades while the deployment is unused."""
        if not self.errors or self.running:
            return self.errors
        idle = (now - self.used_at) / self.stale_s
        return self.errors * exp(-idle) if idle > FRESH else self.errors

    def measured_ms(self, *, stream: bool) -> float | None:
        """Return how long requests waited here when it was last used, however long ago; None when unknown.

        For display: ``wait_ms``, which the tactics use, fades while the deployment is unused.
        """
        average = self.first_ms if stream else self.latency_ms
        if average.count == 0:
            average = self.latency_ms if stream else self.first_ms
        return average.value if average.count else None

    def wait_ms(self, now: float, *, stream: bool) -> float | None:
        """Return the expected wait of a request: for a stream's first token, or a plain call's end; None when unknown.

        A deployment without recent successes counts as unknown: old latencies are stale, and fast errors are not answers.
        """
        if self.unanswered >= MAX_UNANSWERED and self._paused(self.unanswered, MAX_UNANSWERED, now):
            return None
        average = self.first_ms if stream else self.latency_ms
        if average.count == 0:
            average = self.latency_ms if stream else self.first_ms
            known = average.value if average.count else None
        else:
            known = average.value
        if known is not None:
            idle = (now - average.at) / self.stale_s
            if idle > FRESH and not self.running:
                believed = self._believed(average, idle)
                if believed > MIN_WAIT_MS:
                    known = believed
                elif known > MIN_WAIT_MS:
                    known = MIN_WAIT_MS
        if stream and self.waiting:
            # A request that already waits longer than usual counts before it is answered.
            waited_ms = (now - next(iter(self.waiting.values()))) * 1e3
            if known is None or waited_ms > known:
                return waited_ms if waited_ms > 0.0 else known
        return known
