"""What is known about every deployment, and the score and hedging delay derived from it; counts of every race. Pure.

The score, between 0 and 1, higher is better::

    score       = reliability * speed
    reliability = (attempts - failures + 1) / (attempts + 1)
    speed       = 1000 / (1000 + expected_ms)
    expected_ms = mean_ms * samples / (samples + 2)

``attempts``, ``failures`` and ``samples`` are decayed: an observation counts half after one half-life. Cancelled
attempts count neither as attempts nor as failures here: they carry information about time only.

The two samples of 0 ms in ``expected_ms`` are optimism: a deployment that is new, or has not been called for long,
scores better than it is and so gets called, the more often the closer it is to the best. A candidate three times slower
than the best is explored about once per half-life, one that is twenty per cent slower about ten times. So a single
early win is worth little, and yesterday's champion has to win again.

The hedging delay is a high quantile, which is known late: of 40 samples, two lie beyond the 95th percentile, and whether
three of them were stragglers decides whether it is two seconds or six. The median is known soon. So while a deployment's
own samples are few, its quantile is its own median times a factor that is drawn towards the other candidates'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import exp, log
from statistics import median_low
from typing import TYPE_CHECKING, Any, Final, Self

from pointsman.stats import Buckets, DecayingCount, Sketch, merged
from pointsman.types import CALLERS_FAULT, OWN_CALLS, Attempt, ErrorClass, Outcome

if TYPE_CHECKING:
    from pointsman.types import Deployment

    from .config import Delay

#: Milliseconds to within 2 %. Rows in the store are written with these buckets, so they never change.
BUCKETS: Final = Buckets.accurate_to(0.02, least=0.1, most=1e7)

SPEED_SCALE_MS: Final = 1000.0
OPTIMISTIC_SAMPLES: Final = 2.0
#: Consecutive failures after which a deployment counts as unhealthy, and for how long after the last of them.
UNHEALTHY_STREAK: Final = 3
UNHEALTHY_FOR_S: Final = 60.0
#: The longest retry-after that is obeyed: one without end would exclude a deployment for ever.
MAX_RETRY_AFTER_S: Final = 3600.0
#: The factor of the other candidates weighs as much as this number of own samples beyond the quantile.
BORROWED_BEYOND: Final = 20.0
#: Seconds for which a computed quantile or score is reused.
FRESH_S: Final = 1.0
#: Most deployments remembered; beyond it, those that were not observed for the longest time are forgotten.
MAX_DEPLOYMENTS: Final = 2_000

TOTALS: Final = ("attempts", "wins", "losses", "cancelled", "failures")
#: Larger numbers in a stored row are not ours; their sums and products would not be finite.
_MOST: Final = 1e15
#: Errors that the deployment did not cause; and an empty answer, which is neither a success nor a failure.
_TEACHES_NOTHING: Final = CALLERS_FAULT | {ErrorClass.REFUSED, ErrorClass.EMPTY}


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counts of one race name.

    Attributes:
        requests: Requests raced.
        answered: Of them, those with a winner.
        failed: Those without one.
        abandoned: Those whose client left before there was a winner.
        not_repeatable: Those that were not hedged because they must not be sent twice.
        attempts: Attempts made.
        extra: Of them, those paid from the budget: hedges, and all but the first of strategies that start all at once.
        replacements: Attempts made because another one had failed.
        denied: How often the budget had no extra attempt.
        overtaken: Requests whose winner was not the first attempt started.
        losers: Attempts that were given up for a winner.
        losers_usd_micros: What they cost, in millionths of a dollar, as far as is known.
        losers_tokens: Their tokens, as far as is known.
        losers_estimated: Of them, those whose usage was estimated.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    abandoned: int = 0
    not_repeatable: int = 0
    attempts: int = 0
    extra: int = 0
    replacements: int = 0
    denied: int = 0
    overtaken: int = 0
    losers: int = 0
    losers_usd_micros: int = 0
    losers_tokens: int = 0
    losers_estimated: int = 0

    def merge(self, other: Counts) -> None:
        """Add the counts of another worker."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    def to_json(self) -> dict[str, int]:
        """Return the counts as JSON."""
        return {count.name: getattr(self, count.name) for count in fields(self)}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Rebuild counts; values that are not counts are 0."""
        row = document if isinstance(document, Mapping) else {}
        values = {count.name: row.get(count.name) for count in fields(cls)}
        return cls(**{name: value for name, value in values.items() if type(value) is int and value >= 0})

    @property
    def extra_ratio(self) -> float | None:
        """Extra attempts per request."""
        return self.extra / self.requests if self.requests else None


# -- one deployment ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class DeploymentStats:
    """What one worker, or several together, know about one deployment.

    Attributes:
        half_life_s: Half-life of observations, in seconds.
        first_token: Streams: milliseconds to the first token with content.
        whole: Plain requests: milliseconds to the whole answer.
        attempts: Attempts that were not cancelled, decayed.
        failures: Those that failed by the deployment's fault, decayed.
        totals: Whole numbers since the beginning: attempts, wins, losses, cancelled, failures.
        streak: Consecutive failures.
        failed_at: Unix seconds of the last failure.
        blocked_until: Unix seconds of the end of its retry-after, unless it has answered since.
        answered_at: Unix seconds at which the latest answered attempt had begun.
    """

    half_life_s: float
    first_token: Sketch = field(init=False)
    whole: Sketch = field(init=False)
    attempts: DecayingCount = field(init=False)
    failures: DecayingCount = field(init=False)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0))
    streak: int = 0
    failed_at: float = 0.0
    blocked_until: float = 0.0
    answered_at: float = 0.0

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.first_token = Sketch(BUCKETS, self.half_life_s)
        self.whole = Sketch(BUCKETS, self.half_life_s)
        self.attempts = DecayingCount(self.half_life_s)
        self.failures = DecayingCount(self.half_life_s)

    def observe(self, attempt: Attempt, *, stream: bool, now: float) -> bool:
        """Learn from a closed attempt; return whether there was anything to learn.

        Args:
            attempt: The attempt.
            stream: Whether a stream was requested.
            now: Unix seconds.
        """
        error = attempt.error
        if attempt.kind in OWN_CALLS or attempt.cached or attempt.duration_ms is None:
            return False
        if error is not None and (error.kind in _TEACHES_NOTHING or error.client_caused):
            return False
        times = self.times(stream=stream)
        self.totals["attempts"] += 1
        if attempt.outcome is Outcome.OK:
            self.attempts.add(now)
            self.streak = 0
            self.answered_at = max(self.answered_at, attempt.started_at)
            # An answer to an attempt that began before the retry-after does not end it.
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
                self.blocked_until = max(self.blocked_until, now + min(error.retry_after_s, MAX_RETRY_AFTER_S))
        else:
            self.totals["cancelled"] += 1
            if stream and attempt.first_token_ms is not None:
                times.add(attempt.first_token_ms, now)
            else:
                times.add_censored(attempt.duration_ms, now)
        return True

    def times(self, *, stream: bool) -> Sketch:
        """Return the times to the first token of a stream, or to the whole answer."""
        return self.first_token if stream else self.whole

    def failing(self, now: float) -> bool:
        """Return whether it has failed several times in a row recently."""
        return self.streak >= UNHEALTHY_STREAK and now - self.failed_at < UNHEALTHY_FOR_S

    def merge(self, other: DeploymentStats, now: float) -> None:
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
    def from_json(cls, document: object, half_life_s: float) -> DeploymentStats | None:
        """Rebuild one; None when the document is not one. Single values of a wrong type count as absent."""
        at = _number(document.get("at")) if isinstance(document, Mapping) else None
        if at is None or not isinstance(document, Mapping):
            return None
        stats = cls(half_life_s)
        stats.first_token = Sketch.from_json(document.get("first_token_ms"), BUCKETS, half_life_s, at)
        stats.whole = Sketch.from_json(document.get("whole_ms"), BUCKETS, half_life_s, at)
        stats.attempts = DecayingCount(half_life_s, _amount(document.get("attempts")), at)
        stats.failures = DecayingCount(half_life_s, _amount(document.get("failures")), at)
        totals = document.get("totals")
        if isinstance(totals, Mapping):
            stats.totals = {name: int(_amount(totals.get(name))) for name in TOTALS}
        stats.streak = int(_amount(document.get("streak")))
        stats.failed_at = _amount(document.get("failed_at"))
        stats.blocked_until = min(_amount(document.get("blocked_until")), at + MAX_RETRY_AFTER_S)
        stats.answered_at = _amount(document.get("answered_at"))
        return stats


def blocked_until(parts: Sequence[DeploymentStats]) -> float:
    """Return the end of a deployment's retry-after (Unix seconds) from what several workers know; 0 without one.

    An answer to one worker after another was rejected ends the retry-after for all.
    """
    answered_at = until = 0.0
    for part in parts:
        answered_at = max(answered_at, part.answered_at)
    for part in parts:
        if part.failed_at >= answered_at and part.blocked_until > until:
            until = part.blocked_until
    return until


def healthy(parts: Sequence[DeploymentStats], now: float) -> bool:
    """Return whether a deployment has no recent streak of failures and no retry-after that lasts."""
    return not any(part.failing(now) for part in parts) and blocked_until(parts) <= now


def score(parts: Sequence[DeploymentStats], *, stream: bool, now: float) -> float:
    """Return the score of a deployment from what several workers know, or of several deployments together.

    Args:
        parts: What is known; without any observation the score is the best, 1.
        stream: Whether first tokens or whole answers count.
        now: Unix seconds.
    """
    attempts = sum(part.attempts.value(now) for part in parts)
    failures = min(attempts, sum(part.failures.value(now) for part in parts))
    samples = total_ms = 0.0
    for part in parts:
        times = part.times(stream=stream)
        mean_ms, weight = times.mean(), times.weight(now)
        if mean_ms is not None:
            samples += weight
            total_ms += weight * mean_ms
    expected_ms = total_ms / (samples + OPTIMISTIC_SAMPLES)
    return (attempts - failures + 1) / (attempts + 1) * SPEED_SCALE_MS / (SPEED_SCALE_MS + expected_ms)


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST:
        return float(value)
    return None


def _amount(value: object) -> float:
    return max(0.0, _number(value) or 0.0)


# -- the hedging delay ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """How the times of a deployment are spread.

    Attributes:
        samples: How many were observed, decayed.
        median_ms: Their median.
        log_factor: The logarithm of quantile to median.
    """

    samples: float
    median_ms: float
    log_factor: float

    @classmethod
    def of(cls, samples: float, median_ms: float, quantile_ms: float) -> Spread:
        """Return the spread of times with this median and this quantile, both more than 0."""
        return cls(samples, median_ms, log(quantile_ms / median_ms))

    def quantile_ms(self, usual: float, ratio: float) -> float:
        """Return the quantile, in milliseconds, as far as own samples support it.

        Args:
            usual: The logarithm of the factor that is usual among the candidates.
            ratio: Which quantile, below 1.
        """
        borrowed = BORROWED_BEYOND / (1.0 - ratio)
        return self.median_ms * exp((self.samples * self.log_factor + borrowed * usual) / (self.samples + borrowed))


def usual_log_factor(own: Spread, rivals: Iterable[Spread]) -> float:
    """Return the logarithm of the factor that is usual among candidates.

    The lower median: while no more than half of the candidates are sick, they do not change the others' delays.

    Args:
        own: The candidate whose quantile is computed.
        rivals: All candidates. Those with less than half as many samples as ``own`` are left out: a newcomer's quantile
            is the guess that this is meant to correct.
    """
    factors = [spread.log_factor for spread in rivals if 2 * spread.samples >= own.samples]
    return median_low(factors or [own.log_factor])


# -- all deployments --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cached:
    at: float
    spread: Spread | None
    score: float


class Statistics:
    """What is known about all deployments: by this worker itself, and by the others as last read.

    Reading costs dictionary lookups: quantiles and scores are reused for ``FRESH_S``.

    Args:
        half_life_s: Half-life of observations, in seconds.

    Attributes:
        own: What this worker has observed, by deployment id.
        others: What the other workers have observed, merged.
        changed: Deployments of which this worker knows something that is not in the store yet.
    """

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.own: dict[str, DeploymentStats] = {}
        self.others: Mapping[str, DeploymentStats] = {}
        self.changed: set[str] = set()
        self._cache: dict[tuple[str, bool, float, float], _Cached] = {}

    def observe(self, attempt: Attempt, *, stream: bool, now: float) -> None:
        """Learn from a closed attempt."""
        if self._own(attempt.deployment.id).observe(attempt, stream=stream, now=now):
            self.changed.add(attempt.deployment.id)

    def decided(self, deployment_id: str, *, won: bool) -> None:
        """Count the result of a race for one of its attempts."""
        self._own(deployment_id).totals["wins" if won else "losses"] += 1
        self.changed.add(deployment_id)

    def _own(self, deployment_id: str) -> DeploymentStats:
        stats = self.own.pop(deployment_id, None) or DeploymentStats(self.half_life_s)
        if len(self.own) >= MAX_DEPLOYMENTS:
            del self.own[next(iter(self.own))]
        # The latest is the last, so the first was not observed for the longest time.
        self.own[deployment_id] = stats
        return stats

    def parts(self, deployment_id: str) -> list[DeploymentStats]:
        """Return what this worker and the others know about a deployment."""
        parts = (self.own.get(deployment_id), self.others.get(deployment_id))
        return [stats for stats in parts if stats is not None]

    def together(self, deployment_id: str, now: float) -> DeploymentStats:
        """Return what all workers know about a deployment."""
        together = DeploymentStats(self.half_life_s)
        for part in self.parts(deployment_id):
            together.merge(part, now)
        return together

    def known(self) -> list[str]:
        """Return the ids of all deployments that were observed, sorted."""
        return sorted({*self.own, *self.others})

    def delay_ms(
        self,
        reached: Sequence[Deployment],
        rivals: Sequence[Deployment],
        delay: Delay,
        *,
        stream: bool,
        now: float,
        share: float = 1.0,
    ) -> float:
        """Return the hedging delay: how long to wait for an answer before the next attempt is started.

        Args:
            reached: The deployments that the attempt may have reached; the fastest of several counts.
            rivals: All deployments of the race, whose spread counts while own samples are few.
            delay: The settings.
            stream: Whether a first token or a whole answer is waited for.
            now: Unix seconds.
            share: Of the quantile; a fixed value and the floor are as configured.
        """
        spreads = self._spreads(reached, delay, stream=stream, now=now)
        if not spreads:
            return max(delay.fixed_ms if stream else delay.fixed_plain_ms, delay.floor_ms)
        others = spreads if rivals is reached else self._spreads(rivals, delay, stream=stream, now=now)
        fastest_ms = min(s.quantile_ms(usual_log_factor(s, others), delay.quantile_ratio) for s in spreads)
        return max(fastest_ms * share, delay.floor_ms)

    def score(self, deployment_id: str, delay: Delay, *, stream: bool, now: float) -> float:
        """Return a deployment's score; see the module."""
        return self._cached(deployment_id, delay, stream=stream, now=now).score

    def blocked_until(self, deployment_id: str) -> float:
        """Return the end of a deployment's retry-after (Unix seconds); 0 without one."""
        return blocked_until(self.parts(deployment_id))

    def blocked_s(self, deployment_id: str, now: float) -> float:
        """Return the seconds until the end of a deployment's retry-after; 0 without one."""
        until = self.blocked_until(deployment_id)
        return until - now if until > now else 0.0

    def healthy(self, deployment_id: str, now: float) -> bool:
        """Return whether the attempts of this and the other workers give no reason to doubt a deployment."""
        return healthy(self.parts(deployment_id), now)

    def _cached(self, deployment_id: str, delay: Delay, *, stream: bool, now: float) -> _Cached:
        key = (deployment_id, stream, delay.quantile_ratio, delay.min_samples)
        cached = self._cache.get(key)
        if cached is None or not 0 <= now - cached.at < FRESH_S:
            parts = self.parts(deployment_id)
            times = [part.times(stream=stream) for part in parts]
            samples = sum(part.weight(now) for part in times)
            enough = samples >= delay.min_samples
            together = merged(*(part.weights(now) for part in times)) if enough else {}
            quantiles = BUCKETS.quantiles(together, (0.5, delay.quantile_ratio))
            if len(self._cache) > 4 * MAX_DEPLOYMENTS:
                self._cache.clear()
            spread = None if quantiles is None else Spread.of(samples, *quantiles)
            cached = _Cached(now, spread, score(parts, stream=stream, now=now))
            self._cache[key] = cached
        return cached

    def _spreads(self, deployments: Sequence[Deployment], delay: Delay, *, stream: bool, now: float) -> list[Spread]:
        return [
            spread
            for d in deployments
            if (spread := self._cached(d.id, delay, stream=stream, now=now).spread) is not None
        ]
