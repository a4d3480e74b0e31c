"""How one deployment has fared in races and outside of them, and the score that comes of it.

The score, between 0 and 1, higher is better::

    score       = reliability * speed
    reliability = (attempts - failures + 1) / (attempts + 1)
    speed       = 1000 / (1000 + expected_ms)
    expected_ms = mean_ms * samples / (samples + 2)

All of it is decayed: ``attempts``, ``failures`` and ``samples`` are what is left of them after one half-life after the
other. Cancelled attempts count neither as attempts nor as failures here: they say something about time only.

The two samples of 0 ms in ``expected_ms`` are optimism: whoever is new, or has not been asked for long, looks better
than it is and so gets asked, the oftener the closer it is to the best. A candidate three times slower than the best is
explored about once per half-life, one that is twenty per cent slower about ten times. So a single early win is worth
little, and yesterday's champion has to win again. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pointsman.types import CALLERS_FAULT, OWN_CALLS, Attempt, ErrorClass, Outcome

from .decayed import Count, Distribution, number

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEED_SCALE_MS: Final = 1000.0
OPTIMISTIC_SAMPLES: Final = 2.0
#: Failures in a row after which a deployment counts as unhealthy, and for how long after the last of them.
UNHEALTHY_STREAK: Final = 3
UNHEALTHY_FOR_S: Final = 60.0
#: The longest push-back that is obeyed: one that never ends would take a deployment out for ever.
MOST_PUSH_BACK_S: Final = 3600.0

TOTALS: Final = ("attempts", "wins", "losses", "cancelled", "failures")
#: Errors that are no fault of the deployment.
_NOT_ITS_FAULT: Final = CALLERS_FAULT | {ErrorClass.REFUSED}


@dataclass(slots=True)
class Standing:
    """What is known about one deployment.

    Attributes:
        half_life_s: Seconds after which an event counts half.
        first_token: Streams: milliseconds to the first token with content.
        whole: Plain requests: milliseconds to the whole answer.
        attempts: Attempts that ended by themselves, decayed.
        failures: Those that failed by the deployment's fault, decayed.
        totals: Whole numbers since the beginning: attempts, wins, losses, cancelled, failures.
        streak: Failures in a row.
        failed_at: Unix seconds of the last failure.
        blocked_until: Unix seconds until which it wants to be left alone, unless it has answered since.
        answered_at: Unix seconds at which the latest attempt that was answered had begun.
    """

    half_life_s: float
    first_token: Distribution = field(init=False)
    whole: Distribution = field(init=False)
    attempts: Count = field(init=False)
    failures: Count = field(init=False)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0))
    streak: int = 0
    failed_at: float = 0.0
    blocked_until: float = 0.0
    answered_at: float = 0.0

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.first_token = Distribution(self.half_life_s)
        self.whole = Distribution(self.half_life_s)
        self.attempts = Count(self.half_life_s)
        self.failures = Count(self.half_life_s)

    def observe(self, attempt: Attempt, *, stream: bool, now: float) -> bool:
        """Learn from a closed attempt; say whether there was anything to learn.

        Args:
            attempt: The attempt.
            stream: Whether a stream was asked for.
            now: Unix seconds.
        """
        error = attempt.error
        if attempt.kind in OWN_CALLS or attempt.cached or attempt.duration_ms is None:
            return False
        if error is not None and error.kind in _NOT_ITS_FAULT:
            return False
        times = self.first_token if stream else self.whole
        self.totals["attempts"] += 1
        if attempt.outcome is Outcome.OK:
            self.attempts.add(now)
            self.streak = 0
            self.answered_at = max(self.answered_at, attempt.started_at)
            # Not one that was under way before it pushed back.
            if attempt.started_at > self.failed_at:
                self.blocked_until = 0.0
            value_ms = attempt.first_token_ms if stream else attempt.duration_ms
            # A stream without any content has no first token.
            if value_ms is not None:
                times.add(value_ms, now)
        elif attempt.outcome is Outcome.ERROR:
            self.attempts.add(now)
            self.failures.add(now)
            self.totals["failures"] += 1
            self.streak += 1
            self.failed_at = now
            if error is not None and error.retry_after_s:
                self.blocked_until = max(self.blocked_until, now + min(error.retry_after_s, MOST_PUSH_BACK_S))
        else:
            self.totals["cancelled"] += 1
            if stream and attempt.first_token_ms is not None:
                times.add(attempt.first_token_ms, now)
            else:
                times.add_censored(attempt.duration_ms, now)
        return True

    def times(self, *, stream: bool) -> Distribution:
        """Return the distribution that fits a request."""
        return self.first_token if stream else self.whole

    def failing(self, now: float) -> bool:
        """Say whether it has failed several times in a row just now."""
        return self.streak >= UNHEALTHY_STREAK and now - self.failed_at < UNHEALTHY_FOR_S

    def merge(self, other: Standing, now: float) -> None:
        """Add what another worker knows."""
        self.first_token.merge(other.first_token, now)
        self.whole.merge(other.whole, now)
        self.attempts.add(now, other.attempts.value(now))
        self.failures.add(now, other.failures.value(now))
        for name in TOTALS:
            self.totals[name] += other.totals[name]
        self.blocked_until = blocked_until((self, other))
        self.answered_at = max(self.answered_at, other.answered_at)
        if other.failed_at > self.failed_at:
            self.streak, self.failed_at = other.streak, other.failed_at

    def to_json(self, now: float) -> dict[str, Any]:
        """Return it as JSON, as it is at a moment (Unix seconds)."""
        return {
            "at": now,
            "first_token_ms": self.first_token.to_json(now),
            "whole_ms": self.whole.to_json(now),
            "attempts": round(self.attempts.value(now), 4),
            "failures": round(self.failures.value(now), 4),
            "totals": dict(self.totals),
            "streak": self.streak,
            "failed_at": self.failed_at,
            "blocked_until": self.blocked_until,
            "answered_at": self.answered_at,
        }

    @classmethod
    def from_json(cls, document: object, half_life_s: float) -> Standing | None:
        """Rebuild one; None when the document is nothing of ours. Single values that are odd count as absent."""
        at = number(document.get("at")) if isinstance(document, Mapping) else None
        if at is None or not isinstance(document, Mapping):
            return None
        made = cls(half_life_s)
        made.first_token = Distribution.from_json(document.get("first_token_ms"), at, half_life_s)
        made.whole = Distribution.from_json(document.get("whole_ms"), at, half_life_s)
        made.attempts = Count(half_life_s, _amount(document.get("attempts")), at)
        made.failures = Count(half_life_s, _amount(document.get("failures")), at)
        totals = document.get("totals")
        if isinstance(totals, Mapping):
            made.totals = {name: int(_amount(totals.get(name))) for name in TOTALS}
        made.streak = int(_amount(document.get("streak")))
        made.failed_at = _amount(document.get("failed_at"))
        made.blocked_until = min(_amount(document.get("blocked_until")), at + MOST_PUSH_BACK_S)
        made.answered_at = _amount(document.get("answered_at"))
        return made


def blocked_until(parts: Sequence[Standing]) -> float:
    """Return until when (Unix seconds) a deployment wants to be left alone, from what several workers know; 0: not at all.

    Who has answered one worker after it has turned another away need not be left alone any more.
    """
    answered_at = max((part.answered_at for part in parts), default=0.0)
    return max((part.blocked_until for part in parts if part.failed_at >= answered_at), default=0.0)


def healthy(parts: Sequence[Standing], now: float) -> bool:
    """Say whether a deployment has not failed several times in a row just now, and does not push back."""
    return not any(part.failing(now) for part in parts) and blocked_until(parts) <= now


def score(parts: Sequence[Standing], *, stream: bool, now: float) -> float:
    """Return the score of a deployment from what several workers know, or of several deployments together.

    Args:
        parts: What is known; nothing at all is the best score, 1.
        stream: Whether it is about first tokens or whole answers.
        now: Unix seconds.
    """
    attempts = sum(part.attempts.value(now) for part in parts)
    failures = min(attempts, sum(part.failures.value(now) for part in parts))
    samples = total_ms = 0.0
    for part in parts:
        times = part.times(stream=stream)
        mean_ms, weight = times.mean_ms(), times.weight(now)
        if mean_ms is not None:
            samples += weight
            total_ms += weight * mean_ms
    expected_ms = total_ms / (samples + OPTIMISTIC_SAMPLES)
    return (attempts - failures + 1) / (attempts + 1) * SPEED_SCALE_MS / (SPEED_SCALE_MS + expected_ms)


def _amount(value: object) -> float:
    return max(0.0, number(value) or 0.0)
