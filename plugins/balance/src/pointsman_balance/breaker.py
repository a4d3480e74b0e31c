"""A circuit breaker of one deployment in one model group. Pure: the time is an argument.

Closed, open and half-open as in M. Nygard, "Release It!". What opens it is derived from the error's class, never from its
message:

* a 429 opens it until the provider's own reset (30 s where none is told, ``rate_limit_s``; an hour at most),
* rejected credentials, and a model that the provider does not have, open it at once,
* retryable errors open it after a number in a row, or at a ratio over a window,
* errors that the caller caused, and answers without content, are ignored.

An open breaker becomes half-open when its time is over: one probe at a time, and a number of successes closes it. Each
further opening is longer, and so is each pause after an inconclusive probe. After closing, the share of traffic grows over
a ramp; a failure during the ramp opens it again.

An attempt counts only for the state in which it began: a slow answer to a request from before the opening closes nothing.
Requests that are let through for want of a better deployment are not counted as probes: their errors change nothing. Only a 429 that
names a later reset extends an opening that has not ended yet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticKnownError

from pointsman.config import Section
from pointsman.types import ErrorClass

#: Errors of the deployment that another attempt, elsewhere or later, may not meet.
RETRYABLE: Final = frozenset({ErrorClass.TIMEOUT, ErrorClass.SERVER, ErrorClass.CONNECTION, ErrorClass.UNKNOWN})
#: A float cannot hold 10 ** 1000.
MAX_EXPONENT: Final = 64
MAX_WINDOW_ATTEMPTS: Final = 64

#: Results of ``admits``: no request, every request, and one request as the probe. Anything between 0 and 1 is a share.
BLOCKED: Final = 0.0
ALL: Final = 1.0
PROBE: Final = 2.0


#: Named sets of breaker settings; the other keys override those of the preset.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "swift": {},
    "classic": {
        "consecutive_errors": 3,
        "error_ratio": None,
        "open_s": 300.0,
        "auth_s": 300.0,
        "backoff_factor": 1.0,
        "successes": 1,
        "probe": "call",
        "ramp_s": 0.0,
    },
}

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class BreakerConfig(Section):
    """When a circuit breaker opens, how it tries again, and how traffic comes back."""

    preset: Literal["swift", "classic"] = Field(
        default="swift",
        description="Defaults of the other settings: 'classic' opens after 3 errors for 300 s and probes with a call.",
    )
    enabled: bool = Field(
        default=True, description="Whether breakers open at all; false keeps every deployment in use."
    )
    consecutive_errors: int | None = Field(
        default=3,
        ge=1,
        le=1000,
        description="Consecutive retryable errors that open the breaker; null disables this trigger.",
    )
    error_ratio: float | None = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Share of failed attempts within window_s that opens the breaker, 0 to 1; null disables this trigger.",
    )
    min_attempts: int = Field(
        default=8, ge=2, le=64, description="Attempts within window_s below which error_ratio is not evaluated."
    )
    window_s: Seconds = Field(
        default=10.0, description="Window of error_ratio, in seconds; its latest 64 attempts count."
    )
    open_s: Seconds = Field(default=2.0, description="Seconds to stay open after the first opening by errors.")
    backoff_factor: float = Field(
        default=2.0, ge=1, le=10, description="Factor by which each further opening is longer."
    )
    max_open_s: Seconds = Field(
        default=60.0, description="Longest opening after errors, in seconds; raised to open_s unless set."
    )
    rate_limit_s: Seconds = Field(
        default=30.0, description="Seconds to stay open after a 429 without retry-after or a known reset time."
    )
    max_rate_limit_s: Seconds = Field(
        default=3_600.0,
        description="Longest opening after a 429, in seconds; raised to rate_limit_s unless set.",
    )
    auth_s: Seconds = Field(
        default=60.0,
        description="Seconds to stay open after rejected credentials or a model that is not found; grows like open_s.",
    )
    probe: Literal["request", "call", "off"] = Field(
        default="request",
        description="How a half-open breaker is probed: with a client's request, with a one-token call of the plugin's "
        "own, or not at all (it closes when its time is over).",
    )
    successes: int = Field(default=1, ge=1, le=100, description="Successful probes that close the breaker.")
    probe_timeout_s: Seconds = Field(default=30.0, description="Seconds after which an unanswered probe is given up.")
    ramp_s: float = Field(
        default=5.0,
        ge=0,
        le=86_400,
        description="Seconds in which the share of traffic grows back to the whole after closing; 0 disables the ramp.",
    )
    ramp_start_ratio: Ratio = Field(default=0.1, description="Share of traffic at the start of the ramp, 0 to 1.")
    calm_s: Seconds = Field(
        default=60.0, description="Seconds of staying closed after which earlier openings are forgotten."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        """Accept ``breaker: classic``, and apply the preset below the given settings."""
        if isinstance(value, str):
            if value not in PRESETS:
                # Checked here so that it is not reported under the key 'preset', which was not written.
                raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, PRESETS))})
            value = {"preset": value}
        if isinstance(value, dict) and isinstance(preset := value.get("preset"), str) and preset in PRESETS:
            return {**PRESETS[preset], **value}
        return value

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        """Adjust a time or its bound, whichever is not set, to the other; reject two that contradict each other."""
        for name, bound in (("open_s", "max_open_s"), ("rate_limit_s", "max_rate_limit_s")):
            length_s, most_s = getattr(self, name), getattr(self, bound)
            if length_s <= most_s:
                continue
            if bound not in self.model_fields_set:
                self.__dict__[bound] = length_s
            elif name not in self.model_fields_set:
                self.__dict__[name] = most_s
            else:
                raise ValueError(f"{name} ({length_s:g}) is above {bound} ({most_s:g})")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, explicitly or by a preset."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class BreakerState(StrEnum):
    """The state of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


#: Looking a member up in its class takes ten times as long, and the state of each candidate is read in each choice.
CLOSED: Final = BreakerState.CLOSED
OPEN: Final = BreakerState.OPEN
HALF_OPEN: Final = BreakerState.HALF_OPEN


class Cause(StrEnum):
    """What opened a breaker; also ranks open breakers when no deployment is healthy."""

    ERRORS = "errors"
    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    NOT_FOUND = "not_found"


#: What opens it at once, for ``auth_s``: only an administrator can fix it.
_MISCONFIGURED: Final = {
    ErrorClass.AUTH: (Cause.AUTH, "the provider rejects the credentials"),
    ErrorClass.NOT_FOUND: (Cause.NOT_FOUND, "the provider does not have this model or deployment"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of state, as workers share it.

    Attributes:
        state: The new state, closed or open.
        at: Unix seconds.
        until: Unix seconds when an opening ends.
        openings: Consecutive openings.
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
        "inconclusive",
        "named_until",
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
        #: When the provider accepts requests again by its own word, Unix seconds; None when it has not said.
        self.named_until: float | None = None
        self.ramp_until = 0.0
        self.openings = 0
        self.streak = 0
        self.succeeded = 0
        #: When the running probe was sent, Unix seconds; None when there is none.
        self.probe_at: float | None = None
        #: Inconclusive probes since the opening, and when the next one may be sent, Unix seconds.
        self.inconclusive = 0
        self.rest_until = 0.0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=MAX_WINDOW_ATTEMPTS)
        self._errors = 0

    # -- asking -------------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether it is closed; also within a ramp."""
        return self.state is CLOSED

    @property
    def open_until(self) -> float | None:
        """When its opening ends, Unix seconds; None unless it is open."""
        return self.until if self.state is OPEN else None

    def admits(self, now: float) -> float:
        """Return the share of requests that may pass: ``BLOCKED``, a share, ``ALL``, or ``PROBE`` (only this request)."""
        if self.state is CLOSED:
            return ALL if now >= self.ramp_until else self._ramp(now)
        if not self.rules.enabled:
            return ALL
        if self.state is OPEN and now < self.until:
            return BLOCKED
        if self.probe_at is not None and now < self.probe_at + self.rules.probe_timeout_s:
            return BLOCKED
        return BLOCKED if now < self.rest_until else PROBE

    def _ramp(self, now: float) -> float:
        start, length_s = self.rules.ramp_start_ratio, self.rules.ramp_s
        passed = 1.0 - (self.ramp_until - now) / length_s if length_s > 0 else 1.0
        # A clock that was set back must not make the share negative.
        return min(1.0, max(start, start + (1.0 - start) * passed))

    def describe(self, now: float) -> str:
        """Describe the state for people: why requests do not pass, and until when."""
        if self.state is CLOSED:
            return f"ramping up, {self.admits(now):.0%}" if now < self.ramp_until else "closed"
        if self.state is OPEN and now < self.until:
            return f"breaker open for {self.until - now:.1f} s more: {self.reason}"
        return f"breaker half-open, {'being probed' if self.probe_at is not None else 'to be probed'}: {self.reason}"

    # -- time ---------------------------------------------------------------------------------------------------------

    def elapse(self, now: float) -> bool:
        """Apply the passing of time; return whether an opening ended: half-open now, or closed when probing is off."""
        if self.state is not OPEN or now < self.until:
            return False
        if self.rules.probe == "off":
            self._close(now, ramp=True)
        else:
            # Other workers need not be informed: their openings end by themselves.
            self.state, self.probe_at, self.succeeded = HALF_OPEN, None, 0
        return True

    def apply(self, rules: BreakerConfig) -> None:
        """Take over new settings; a running opening gets the length that it would have had under them."""
        self.rules = rules
        if self.healthy:
            return
        if not rules.enabled:
            self.reset(self.changed_at)
        elif self.state is OPEN:
            self.until = self.changed_at + self._length_s()

    def _length_s(self) -> float:
        """Return how long the current opening lasts under the current settings, in seconds."""
        rules = self.rules
        longest_s = self._longest_s(self.cause)
        if self.cause is Cause.RATE_LIMIT:
            named = self.named_until
            return min(rules.rate_limit_s if named is None else max(0.0, named - self.changed_at), longest_s)
        first_s = rules.open_s if self.cause is Cause.ERRORS else rules.auth_s
        return min(first_s * rules.backoff_factor ** min(max(self.openings - 1, 0), MAX_EXPONENT), longest_s)

    def start_probe(self, now: float) -> None:
        """Record that a probe was sent."""
        self.elapse(now)
        self.probe_at = now

    def release_probe(self, started_at: float) -> None:
        """Record that an attempt started at ``started_at`` was inconclusive; if it was the probe, allow another one."""
        if self.probe_at is not None and started_at >= self.probe_at:
            self.probe_at = None

    def _rest(self, now: float) -> None:
        """Pause before the next probe: this one was inconclusive, and the next is likely to end in the same way."""
        rules = self.rules
        self.probe_at = None
        self.rest_until = now + min(
            rules.open_s * rules.backoff_factor ** min(self.inconclusive, MAX_EXPONENT), rules.max_open_s
        )
        self.inconclusive += 1

    # -- learning -----------------------------------------------------------------------------------------------------

    def record_success(self, started_at: float, now: float) -> bool:
        """Record an answer to an attempt started at ``started_at``; return whether the state changed."""
        if started_at < self.changed_at:
            return False
        self._count(now, failed=False)
        self.streak = 0
        if self.state is CLOSED:
            if self.openings and now >= self.changed_at + self.rules.calm_s:
                self.openings = 0
            return False
        # No deployment was healthy, so this one was used although it is open; an answer still counts.
        self.probe_at = None
        self.succeeded += 1
        if self.succeeded < self.rules.successes:
            return False
        self._close(now, ramp=True)
        return True

    def record_failure(
        self,
        kind: ErrorClass,
        started_at: float,
        now: float,
        comes_back_at: float | None = None,
        *,
        let_through: bool = False,
    ) -> bool:
        """Record a failure; return whether the state changed or an opening was extended.

        Args:
            kind: The error's class.
            started_at: Unix seconds when the attempt began.
            now: Unix seconds.
            comes_back_at: Unix seconds when the provider accepts requests again, if known.
            let_through: The request was sent here for want of a better deployment, not as the probe.
        """
        rules = self.rules
        if kind is ErrorClass.RATE_LIMIT:
            if let_through and self.state is not CLOSED and comes_back_at is None:
                return False
            return self._limited(started_at, now, comes_back_at)
        if started_at < self.changed_at:
            return False
        if self.state is not CLOSED and (let_through or (self.state is OPEN and now < self.until)):
            return False
        if kind in _MISCONFIGURED:
            return self._open(now, rules.auth_s, *_MISCONFIGURED[kind])
        if kind not in RETRYABLE:
            # Caused by the caller, or an answer without content: says nothing about the deployment.
            if self.probe_at is not None and started_at >= self.probe_at:
                self._rest(now)
            return False
        self._count(now, failed=True)
        self.streak += 1
        reason = self._too_many(now)
        return reason is not None and self._open(now, rules.open_s, Cause.ERRORS, f"{reason}: {_words(kind)}")

    def _too_many(self, now: float) -> str | None:
        """Return why the errors suffice to open it, or None."""
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
        guessed = comes_back_at is None and self.cause is Cause.RATE_LIMIT
        if self.state is OPEN and now < self.until and (until <= self.until or guessed):
            return False  # one of many requests that met the same limit
        if started_at < self.changed_at and (self.state is not OPEN or now >= self.until):
            return False  # from before the opening that has ended
        opened = self._open(now, until - now, Cause.RATE_LIMIT, "rate limited by the provider", grows=False)
        self.named_until = comes_back_at if opened else self.named_until
        return opened

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
        self.changed_at, self.until, self.named_until = now, now + length_s, None
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
        self.inconclusive, self.rest_until = 0, 0.0
        self._recent.clear()

    def reset(self, now: float) -> None:
        """Close it at once, without a ramp, and forget earlier openings."""
        self._close(now, ramp=False)
        self.openings = 0

    # -- sharing ------------------------------------------------------------------------------------------------------

    def change(self) -> Change:
        """Return the latest change, for other workers. Half-open is reported as the opening that ended."""
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
        """Apply another worker's change if it is newer; return whether the state changed.

        Its clock may be wrong: no change counts as later than ``now``, and no opening lasts longer than this worker's
        own bounds allow.
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
        self.named_until = self.until if change.cause is Cause.RATE_LIMIT else None
        self._forget()
        return True


def _words(kind: ErrorClass) -> str:
    return str(kind).replace("_", " ")
