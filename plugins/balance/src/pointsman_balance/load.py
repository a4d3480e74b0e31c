"""What a worker itself sees of a deployment: what runs on it, how long it takes, how often it fails. Pure.

The averages are exponentially weighted by time. That of the waiting time is a *peak* average: it goes up at once and down
slowly, as in Twitter Finagle's ``PeakEwma`` load balancer, and what is still waiting counts as having waited so long already.
"""

from __future__ import annotations

from math import exp
from typing import Final

#: An attempt that has been running for so long has been lost, in seconds.
LOST_AFTER_S: Final = 6 * 3_600.0
#: A choice that no attempt has followed within this time will have none, in seconds.
PICK_S: Final = 5.0
#: A value counts for this much at least, however short the time since the one before.
MIN_GAIN: Final = 0.1
#: How far a longer wait moves the average up at once.
PEAK_GAIN: Final = 0.5
#: Weight of the latest value in what is usual, once there are more values than its inverse.
USUAL_GAIN: Final = 0.02
#: Up to this part of ``stale_s`` an average is as good as new.
FRESH: Final = 0.2
#: Fewer values than this are no habit: one slow answer at the start must not be held against it.
HABIT: Final = 5
#: A deployment that is slow as usual is tried again after so many times ``stale_s``.
LONG_STALE: Final = 6.0
#: So many attempts without an answer, and it is not believed any more that the next one will be quick.
PATIENCE: Final = 5
#: So often the time after which it is believed again doubles.
DOUBLINGS: Final = 7
#: Weight of the latest attempt in the error average.
ERROR_GAIN: Final = 0.15
#: A belief that fades ends here, in milliseconds: quicker than anybody is. Further down the product of a tactic would no
#: longer see the requests in flight, and the trace would show numbers that nobody can read.
MIN_WAIT_MS: Final = 0.01
#: A single token says nothing about speed.
MIN_SPEED_TOKENS: Final = 2


class Ewma:
    """A moving average, weighted by time.

    Args:
        peak_gain: Part of the way that a value above the average moves it up, at least; 0 treats up and down alike.
    """

    __slots__ = ("at", "count", "peak_gain", "usual", "value")

    def __init__(self, peak_gain: float = 0.0) -> None:
        self.peak_gain = peak_gain
        self.value = 0.0
        #: The same over a much longer time: what is usual here.
        self.usual = 0.0
        self.at = 0.0
        self.count = 0

    def add(self, value: float, now: float, tau_s: float) -> None:
        """Take in a value at ``now`` (seconds)."""
        if self.count == 0:
            self.value = value
            self.usual = self.usual or value
        else:
            gain = 1.0 - exp(-max(0.0, now - self.at) / tau_s)
            # At a high rate the time between two values is short; each counts for something all the same.
            gain = max(gain, MIN_GAIN, self.peak_gain if value > self.value else 0.0)
            self.value += gain * (value - self.value)
            self.usual += max(USUAL_GAIN, 1.0 / (self.count + 1)) * (value - self.usual)
        self.at = now
        self.count += 1

    def forget(self) -> None:
        """Begin anew with the next value."""
        self.count = 0

    def saved(self) -> tuple[float, float, float, int]:
        """Return everything, for ``restore``."""
        return self.value, self.usual, self.at, self.count

    def restore(self, saved: tuple[float, float, float, int]) -> None:
        """Go back to what was saved."""
        self.value, self.usual, self.at, self.count = saved


class Load:
    """One deployment in one model group, as this worker sees it.

    Args:
        tau_s: Time constant of the averages in seconds.
        stale_s: Time in which the belief that an unused deployment is slow fades, in seconds.
    """

    __slots__ = (
        "asked",
        "begun",
        "errors",
        "failed",
        "first_ms",
        "latency_ms",
        "picks",
        "running",
        "spent",
        "stale_s",
        "tau_s",
        "tokens",
        "tokens_at",
        "tokens_per_s",
        "tried",
        "unanswered",
        "used_at",
        "waiting",
    )

    def __init__(self, tau_s: float, stale_s: float) -> None:
        self.tau_s = tau_s
        self.stale_s = stale_s
        #: Attempt id to its start, Unix seconds; the oldest first.
        self.running: dict[str, float] = {}
        #: The part of ``running`` that are streams without a first token.
        self.waiting: dict[str, float] = {}
        #: Of streams that have begun to answer: what was known of the waiting time before.
        self.begun: dict[str, tuple[float, float, float, int]] = {}
        #: Requests that were sent here but whose attempt has not begun: request id to the time of the choice.
        self.picks: dict[str, float] = {}
        self.first_ms = Ewma(PEAK_GAIN)
        self.latency_ms = Ewma(PEAK_GAIN)
        self.tokens_per_s = Ewma()
        #: Part of the attempts that fail, 0 to 1: an average over the latest few.
        self.errors = 0.0
        #: Attempts and failures so far.
        self.tried = 0
        self.failed = 0
        self.used_at = 0.0
        #: Attempts since nothing is known of it: since the start, or the end of an outage.
        self.asked = 0
        #: Attempts in a row that ended with an error, whosever fault it was.
        self.unanswered = 0
        #: Tokens so far.
        self.spent = 0
        #: Tokens of the recent past: they fade with the time constant.
        self.tokens = 0.0
        self.tokens_at = 0.0

    @property
    def in_flight(self) -> int:
        """Attempts that run here, and those about to begin."""
        return len(self.running) + len(self.picks)

    # -- following attempts -------------------------------------------------------------------------------------------

    def pick(self, request_id: str, now: float) -> None:
        """Note that a request is sent here."""
        self.picks[request_id] = now

    def begin(self, attempt_id: str, request_id: str, started_at: float, *, stream: bool) -> None:
        """Note that an attempt begins."""
        self.picks.pop(request_id, None)
        self.running[attempt_id] = started_at
        if stream:
            self.waiting[attempt_id] = started_at
        self.tried += 1
        self.asked += 1
        self.used_at = started_at

    def first_token(self, attempt_id: str, first_ms: float, now: float) -> None:
        """Note the first token of a stream."""
        if self.waiting.pop(attempt_id, None) is not None:
            self.begun[attempt_id] = self.first_ms.saved()
            self.first_ms.add(first_ms, now, self.tau_s)

    def end(self, attempt_id: str, request_id: str, *, cached: bool = False) -> None:
        """Note that an attempt has ended, or that it was refused before it began.

        Args:
            attempt_id: It.
            request_id: The request's id.
            cached: Whether the gateway's own cache answered: how quickly it did says nothing about the deployment.
        """
        begun = self.begun.pop(attempt_id, None)
        if cached:
            self.asked -= 1
            if begun is not None:
                self.first_ms.restore(begun)
        self.picks.pop(request_id, None)
        self.running.pop(attempt_id, None)
        self.waiting.pop(attempt_id, None)

    def answered(self, duration_ms: float | None, tokens: int, speed_ms: float | None, now: float) -> None:
        """Learn from an answer.

        Args:
            duration_ms: Of a plain call; None for a stream, whose length says nothing about waiting.
            tokens: That came out.
            speed_ms: Time in which they came, without the wait for the first one of a stream; or None.
            now: Unix seconds.
        """
        self.errors -= ERROR_GAIN * self.errors
        self.unanswered = 0
        if duration_ms is not None:
            self.latency_ms.add(duration_ms, now, self.tau_s)
        if speed_ms and tokens >= MIN_SPEED_TOKENS:
            self.tokens_per_s.add(tokens / speed_ms * 1e3, now, self.tau_s)

    def failed_after(self, ms: float | None, now: float, *, timed_out: bool, stream: bool) -> None:
        """Learn from a failure by the deployment's own fault; a timeout is also a long wait."""
        self.failed += 1
        self.errors += ERROR_GAIN * (1.0 - self.errors)
        if timed_out and ms is not None:
            (self.first_ms if stream else self.latency_ms).add(ms, now, self.tau_s)

    def spend(self, tokens: int, now: float) -> None:
        """Count the tokens of an attempt."""
        self.spent += tokens
        self.tokens = self.tokens_now(now) + tokens
        self.tokens_at = now

    def tokens_now(self, now: float) -> float:
        """Return the tokens of the recent past."""
        return self.tokens * exp(-max(0.0, now - self.tokens_at) / self.tau_s) if self.tokens else 0.0

    def recover(self) -> None:
        """Forget how slow it was and how often it failed: an outage is over."""
        self.first_ms.forget()
        self.latency_ms.forget()
        self.errors = 0.0
        self.asked = self.unanswered = 0

    def sweep(self, now: float) -> list[str]:
        """Give up attempts and choices that have been lost; return the requests of lost choices."""
        for attempt_id in [one for one, at in self.running.items() if at < now - LOST_AFTER_S]:
            self.end(attempt_id, "")
        lost = [request_id for request_id, at in self.picks.items() if at < now - PICK_S]
        for request_id in lost:
            del self.picks[request_id]
        return lost

    # -- asking -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _believed(average: Ewma, idle: float) -> float:
        """Return what is believed of an average that nothing has been added to: it goes back to what is usual.

        An outage that nobody looks at may be over. What is usual is doubted too, only later.
        """
        value = average.value
        if average.count < HABIT:
            return value * exp(-idle)
        usual = average.usual
        known = usual + (value - usual) * exp(-idle) if value > usual else value
        return known if idle < LONG_STALE else known * exp(1.0 - idle / LONG_STALE)

    def explores(self, now: float, patience: int = PATIENCE) -> bool:
        """Return whether a request may find out what is not known of it.

        One at a time; and after so many in vain only when nobody has looked for long, each time for twice as long.
        """
        if self.running or self.picks:
            return False
        return not self._in_vain(max(self.asked, self.unanswered), patience, now)

    def _in_vain(self, attempts: int, patience: int, now: float) -> bool:
        if attempts < patience:
            return False
        return now < self.used_at + LONG_STALE * self.stale_s * (1 << min(attempts - patience, DOUBLINGS))

    def error_ratio(self, now: float) -> float:
        """Return the part of the attempts that fail, as far as it is believed: it fades when nobody looks."""
        if not self.errors or self.running:
            return self.errors
        idle = (now - self.used_at) / self.stale_s
        return self.errors * exp(-idle) if idle > FRESH else self.errors

    def measured_ms(self, *, stream: bool) -> float | None:
        """Return how long requests have waited here when it was last used, however long ago; None when not known.

        For people: ``wait_ms`` is what is believed of it, and fades while nobody looks.
        """
        average = self.first_ms if stream else self.latency_ms
        if average.count == 0:
            average = self.latency_ms if stream else self.first_ms
        return average.value if average.count else None

    def wait_ms(self, now: float, *, stream: bool) -> float | None:
        """Return how long a request is believed to wait here: for its first token, a plain one for its end; None when not known.

        Who has answered nothing lately is not known any more: it was quick once, and its quick errors are no answers.
        """
        if self.unanswered >= PATIENCE and self._in_vain(self.unanswered, PATIENCE, now):
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
            # What has been waiting for longer than usual says so before it is answered.
            waited_ms = (now - next(iter(self.waiting.values()))) * 1e3
            if known is None or waited_ms > known:
                return waited_ms if waited_ms > 0.0 else known
        return known
