"""A circuit breaker of one deployment in one model group. Pure: the time is an argument.

Closed, open, half-open as in M. Nygard, "Release It!"; what opens it is told by the error's class, never by its text:

* a 429 opens it until the provider's own reset,
* refused credentials, and a model that the provider does not have, open it at once,
* retryable errors open it after so many in a row, or at a ratio over a window,
* what is the caller's fault says nothing.

Open ends by itself in half-open: one probe at a time, and so many successes close it. Each further opening is longer, and
so is each rest after a probe without a verdict. After closing, the share of traffic grows over a ramp; a failure within the
ramp opens it again.

An attempt counts only for the state in which it began: a slow answer to a request from before the opening closes nothing.
Only a 429 may make an opening longer that has not ended yet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pointsman.types import ErrorClass

if TYPE_CHECKING:
    from .config import BreakerConfig

#: Errors that another attempt, elsewhere or later, may not meet; the deployment's own fault.
RETRYABLE: Final = frozenset({ErrorClass.TIMEOUT, ErrorClass.SERVER, ErrorClass.CONNECTION, ErrorClass.UNKNOWN})
#: A float cannot hold 10 ** 1000.
MAX_EXPONENT: Final = 64
MAX_WINDOW_ATTEMPTS: Final = 64

#: Answers of ``admits``: nobody, everybody, and one request that is the probe. What lies between 0 and 1 is a share.
NOBODY: Final = 0.0
ALL: Final = 1.0
PROBE: Final = 2.0


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


#: Looking a member up in its class takes ten times as long, and each candidate of each choice is asked for its state.
CLOSED: Final = BreakerState.CLOSED
OPEN: Final = BreakerState.OPEN
HALF_OPEN: Final = BreakerState.HALF_OPEN


class Cause(StrEnum):
    """What a breaker was opened by; also how bad that is, for choosing the least bad."""

    ERRORS = "errors"
    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    NOT_FOUND = "not_found"


#: What opens it at once, for ``auth_s``: nothing but an administrator mends it.
_MISCONFIGURED: Final = {
    ErrorClass.AUTH: (Cause.AUTH, "the provider refuses the credentials"),
    ErrorClass.NOT_FOUND: (Cause.NOT_FOUND, "the provider does not have this model or deployment"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of state, as workers tell it one another.

    Attributes:
        state: The new state, closed or open.
        at: Unix seconds.
        until: Unix seconds when an opening ends.
        openings: How many openings there have been in a row.
        cause: What opened it.
        reason: One phrase.
        ramp: Whether a closing is followed by a ramp.
    """

    state: BreakerState
    at: float
    until: float = 0.0
    openings: int = 0
    cause: Cause | None = None
    reason: str = ""
    ramp: bool = False


class Breaker:
    """One breaker.

    Args:
        rules: Its settings.
    """

    __slots__ = (
        "_errors",
        "_recent",
        "cause",
        "changed_at",
        "fruitless",
        "openings",
        "probe_at",
        "ramp_until",
        "reason",
        "rest_until",
        "rules",
        "state",
        "streak",
        "succeeded",
        "until",
    )

    def __init__(self, rules: BreakerConfig) -> None:
        self.rules = rules
        self.state = CLOSED
        self.cause: Cause | None = None
        self.reason = ""
        #: Unix seconds of the latest change of state; attempts from before it do not count.
        self.changed_at = 0.0
        self.until = 0.0
        self.ramp_until = 0.0
        self.openings = 0
        self.streak = 0
        self.succeeded = 0
        #: When the running probe was sent, Unix seconds; None when there is none.
        self.probe_at: float | None = None
        #: Probes without a verdict since the opening, and until when no further one is sent, Unix seconds.
        self.fruitless = 0
        self.rest_until = 0.0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=MAX_WINDOW_ATTEMPTS)
        self._errors = 0

    # -- asking -------------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether it is closed; also within a ramp."""
        return self.state is CLOSED

    def admits(self, now: float) -> float:
        """Return the share of the requests that may pass: ``NOBODY``, a share, ``ALL``, or ``PROBE``: this one only."""
        if self.state is CLOSED:
            return ALL if now >= self.ramp_until else self._ramp(now)
        if not self.rules.enabled:
            return ALL
        if self.state is OPEN and now < self.until:
            return NOBODY
        if self.probe_at is not None and now < self.probe_at + self.rules.probe_timeout_s:
            return NOBODY
        return NOBODY if now < self.rest_until else PROBE

    def _ramp(self, now: float) -> float:
        start, length_s = self.rules.ramp_start_ratio, self.rules.ramp_s
        passed = 1.0 - (self.ramp_until - now) / length_s if length_s > 0 else 1.0
        # A clock that was set back must not make the share negative.
        return min(1.0, max(start, start + (1.0 - start) * passed))

    def says(self, now: float) -> str:
        """Return why requests do not pass, for people."""
        if self.state is CLOSED:
            return f"ramping up, {self.admits(now):.0%}" if now < self.ramp_until else "closed"
        if self.state is OPEN and now < self.until:
            return f"breaker open for {self.until - now:.1f} s more: {self.reason}"
        return f"breaker half-open, {'being probed' if self.probe_at is not None else 'to be probed'}: {self.reason}"

    # -- time ---------------------------------------------------------------------------------------------------------

    def elapse(self, now: float) -> bool:
        """Let the time pass; say whether an opening has ended: it is half-open now, or closed where nothing probes."""
        if self.state is not OPEN or now < self.until:
            return False
        if self.rules.probe == "off":
            self._close(now, ramp=True)
        else:
            # Not a change that others must hear of: their openings end by themselves too.
            self.state, self.probe_at, self.succeeded = HALF_OPEN, None, 0
        return True

    def lend(self, now: float) -> None:
        """Note that a probe is on its way."""
        self.elapse(now)
        self.probe_at = now

    def give_back(self, started_at: float) -> None:
        """Note that an attempt begun at ``started_at`` ended without a verdict; if it was the probe, another may go."""
        if self.probe_at is not None and started_at >= self.probe_at:
            self.probe_at = None

    def _rest(self, now: float) -> None:
        """Wait before the next probe: this one's error says nothing, and the next one may well end in the same way."""
        rules = self.rules
        self.probe_at = None
        self.rest_until = now + min(
            rules.open_s * rules.backoff_factor ** min(self.fruitless, MAX_EXPONENT), rules.max_open_s
        )
        self.fruitless += 1

    # -- learning -----------------------------------------------------------------------------------------------------

    def succeeded_at(self, started_at: float, now: float) -> bool:
        """Learn of an answer to a request begun at ``started_at``; say whether the state has changed."""
        if started_at < self.changed_at:
            return False
        self._count(now, failed=False)
        self.streak = 0
        if self.state is CLOSED:
            if self.openings and now >= self.changed_at + self.rules.calm_s:
                self.openings = 0
            return False
        # Nobody is healthy, so it was asked although it is open: an answer is an answer.
        self.probe_at = None
        self.succeeded += 1
        if self.succeeded < self.rules.successes:
            return False
        self._close(now, ramp=True)
        return True

    def failed_at(self, kind: ErrorClass, started_at: float, now: float, comes_back_at: float | None = None) -> bool:
        """Learn of a failure; say whether the state has changed, or an opening became longer.

        Args:
            kind: The error's class.
            started_at: Unix seconds when the attempt began.
            now: Unix seconds.
            comes_back_at: Unix seconds when the provider will answer again, where it says so.
        """
        rules = self.rules
        if kind is ErrorClass.RATE_LIMIT:
            return self._limited(started_at, now, comes_back_at)
        if started_at < self.changed_at:
            return False
        if kind in _MISCONFIGURED:
            return self._open(now, rules.auth_s, *_MISCONFIGURED[kind])
        if kind not in RETRYABLE:
            # The caller's fault: neither ill nor healthy.
            if self.probe_at is not None and started_at >= self.probe_at:
                self._rest(now)
            return False
        self._count(now, failed=True)
        self.streak += 1
        reason = self._too_many(now)
        return reason is not None and self._open(now, rules.open_s, Cause.ERRORS, f"{reason}: {_words(kind)}")

    def _too_many(self, now: float) -> str | None:
        """Return why the errors are enough to open it, or None."""
        rules = self.rules
        if self.state is not CLOSED:
            return "the probe failed"
        if now < self.ramp_until:
            return "failed again"
        if rules.consecutive_errors is not None and self.streak >= rules.consecutive_errors:
            return f"{self.streak} errors in a row, last"
        attempts = len(self._recent)
        if rules.error_ratio is None or attempts < rules.min_attempts or self._errors / attempts < rules.error_ratio:
            return None
        return f"{self._errors} of {attempts} attempts failed, last"

    def _limited(self, started_at: float, now: float, comes_back_at: float | None) -> bool:
        rules = self.rules
        until = now + rules.rate_limit_s if comes_back_at is None else comes_back_at
        until = min(max(until, now), now + rules.max_rate_limit_s)
        if self.state is OPEN and now < self.until and until <= self.until:
            return False  # one of many requests that met the same limit
        if started_at < self.changed_at and (self.state is not OPEN or now >= self.until):
            return False  # from before the opening that has ended
        return self._open(now, until - now, Cause.RATE_LIMIT, "rate limited by the provider", grows=False)

    def _count(self, now: float, *, failed: bool) -> None:
        recent, from_ = self._recent, now - self.rules.window_s
        while recent and (recent[0][0] < from_ or len(recent) == MAX_WINDOW_ATTEMPTS):
            self._errors -= recent.popleft()[1]
        recent.append((now, failed))
        self._errors += failed

    # -- changing -----------------------------------------------------------------------------------------------------

    def _open(self, now: float, length_s: float, cause: Cause, reason: str, *, grows: bool = True) -> bool:
        rules = self.rules
        if not rules.enabled:
            return False
        if grows:
            if self.state is CLOSED and now >= self.changed_at + rules.calm_s:
                self.openings = 0
            length_s = min(length_s * rules.backoff_factor ** min(self.openings, MAX_EXPONENT), self._longest_s(cause))
            self.openings += 1
        self.state, self.cause, self.reason = OPEN, cause, reason
        self.changed_at, self.until = now, now + length_s
        self._forget()
        return True

    def _longest_s(self, cause: Cause | None) -> float:
        rules = self.rules
        if cause is Cause.RATE_LIMIT:
            return rules.max_rate_limit_s
        return rules.max_open_s if cause is Cause.ERRORS else max(rules.max_open_s, rules.auth_s)

    def _close(self, now: float, *, ramp: bool) -> None:
        self.state, self.cause, self.reason = CLOSED, None, ""
        self.changed_at, self.until = now, 0.0
        self.ramp_until = now + self.rules.ramp_s if ramp else 0.0
        self._forget()

    def _forget(self) -> None:
        self.probe_at, self.succeeded, self.streak, self._errors = None, 0, 0, 0
        self.fruitless, self.rest_until = 0, 0.0
        self._recent.clear()

    def reset(self, now: float) -> None:
        """Close it at once, without a ramp, and forget earlier openings."""
        self._close(now, ramp=False)
        self.openings = 0

    # -- sharing ------------------------------------------------------------------------------------------------------

    def change(self) -> Change:
        """Return the latest change, for other workers. Half-open is told as the opening that has ended."""
        opened = self.state is not CLOSED
        return Change(
            state=OPEN if opened else CLOSED,
            at=self.changed_at,
            until=self.until,
            openings=self.openings,
            cause=self.cause,
            reason=self.reason,
            ramp=self.ramp_until > self.changed_at,
        )

    def adopt(self, change: Change, now: float) -> bool:
        """Take over what another worker says, if it is newer; say whether the state has changed.

        Its clock may be wrong: nothing is taken to have happened later than ``now``, and no opening lasts for longer than
        one of our own.
        """
        if change.at <= self.changed_at or not self.rules.enabled:
            return False
        at = min(change.at, now)
        self.openings = change.openings
        if change.state is CLOSED:
            was_closed = self.healthy
            self._close(at, ramp=change.ramp)
            return not was_closed
        self.state, self.cause, self.reason = OPEN, change.cause, change.reason
        self.changed_at = at
        self.until = min(change.until - (change.at - at), now + self._longest_s(change.cause))
        self._forget()
        return True


def _words(kind: ErrorClass) -> str:
    return str(kind).replace("_", " ")
