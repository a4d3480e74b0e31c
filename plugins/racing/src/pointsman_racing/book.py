"""What is known about every deployment: this worker's own standings, and those of the others as last read.

Reading costs dict lookups: quantiles and scores are kept for a second. Pure but for the clock that is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .decayed import quantiles_ms
from .spread import Spread, usual
from .standing import TOTALS, Standing, blocked_until, healthy, score

if TYPE_CHECKING:
    from pointsman.types import Attempt, Deployment

    from .config import Delay

#: How long a quantile or a score that was computed is used.
FRESH_S: Final = 1.0
#: Deployments remembered at most; beyond that those that were not seen for longest are forgotten.
MAX_DEPLOYMENTS: Final = 2_000


@dataclass(frozen=True, slots=True)
class _Cached:
    at: float
    spread: Spread | None
    score: float


class Book:
    """All standings.

    Args:
        half_life_s: Seconds after which an event counts half.

    Attributes:
        own: What this worker has seen, by deployment id.
        others: What the others have seen, merged.
        changed: Deployments of which this worker knows something that is not in the store yet.
    """

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.own: dict[str, Standing] = {}
        self.others: Mapping[str, Standing] = {}
        self.changed: set[str] = set()
        self._cache: dict[tuple[str, bool, float, float], _Cached] = {}

    # -- learning -----------------------------------------------------------------------------------------------------

    def observe(self, attempt: Attempt, *, stream: bool, now: float) -> None:
        """Learn from a closed attempt."""
        if self._of(attempt.deployment.id).observe(attempt, stream=stream, now=now):
            self.changed.add(attempt.deployment.id)

    def decided(self, deployment_id: str, *, won: bool) -> None:
        """Count the outcome of a race for one of its legs."""
        self._of(deployment_id).totals["wins" if won else "losses"] += 1
        self.changed.add(deployment_id)

    def _of(self, deployment_id: str) -> Standing:
        found = self.own.pop(deployment_id, None) or Standing(self.half_life_s)
        if len(self.own) >= MAX_DEPLOYMENTS:
            del self.own[next(iter(self.own))]
        # The latest is the last, so the first was not seen for longest.
        self.own[deployment_id] = found
        return found

    # -- reading ------------------------------------------------------------------------------------------------------

    def parts(self, deployment_id: str) -> list[Standing]:
        """Return what is known about a deployment, here and elsewhere."""
        found = (self.own.get(deployment_id), self.others.get(deployment_id))
        return [standing for standing in found if standing is not None]

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
        """Return how long to wait for an answer before the next leg is started.

        Args:
            reached: Whom the leg may have reached; with several, the quickest of them counts.
            rivals: All deployments of the race, whose spread is leaned on.
            delay: The settings.
            stream: Whether a first token or a whole answer is waited for.
            now: Unix seconds.
            share: Of the quantile; a fixed value and the floor are as configured.
        """
        known = self._spreads(reached, delay, stream=stream, now=now)
        if not known:
            return max(delay.fixed_ms if stream else delay.fixed_plain_ms, delay.floor_ms)
        others = self._spreads(rivals, delay, stream=stream, now=now)
        quick = min(spread.quantile_ms(usual(spread, others), delay.quantile_ratio) for spread in known)
        return max(quick * share, delay.floor_ms)

    def score(self, deployment_id: str, delay: Delay, *, stream: bool, now: float) -> float:
        """Return a deployment's score; see ``pointsman_racing.standing``."""
        return self._cached(deployment_id, delay, stream=stream, now=now).score

    def blocked_until(self, deployment_id: str) -> float:
        """Return until when (Unix seconds) a deployment wants to be left alone; 0 when it does not."""
        return blocked_until(self.parts(deployment_id))

    def healthy(self, deployment_id: str, now: float) -> bool:
        """Say whether races have seen no reason to doubt it."""
        return healthy(self.parts(deployment_id), now)

    def _cached(self, deployment_id: str, delay: Delay, *, stream: bool, now: float) -> _Cached:
        key = (deployment_id, stream, delay.quantile_ratio, delay.min_samples)
        found = self._cache.get(key)
        if found is None or not 0 <= now - found.at < FRESH_S:
            parts = self.parts(deployment_id)
            times = [part.times(stream=stream) for part in parts]
            samples = sum(part.weight(now) for part in times)
            found_ms = quantiles_ms(times, (0.5, delay.quantile_ratio), now) if samples >= delay.min_samples else None
            if len(self._cache) > 4 * MAX_DEPLOYMENTS:
                self._cache.clear()
            spread = None if found_ms is None else Spread.of(samples, *found_ms)
            found = _Cached(now, spread, score(parts, stream=stream, now=now))
            self._cache[key] = found
        return found

    def _spreads(self, deployments: Sequence[Deployment], delay: Delay, *, stream: bool, now: float) -> list[Spread]:
        found = (self._cached(one.id, delay, stream=stream, now=now).spread for one in deployments)
        return [spread for spread in found if spread is not None]

    # -- showing ------------------------------------------------------------------------------------------------------

    def together(self, deployment_id: str, now: float) -> Standing:
        """Return what all workers know about a deployment."""
        made = Standing(self.half_life_s)
        for part in self.parts(deployment_id):
            made.merge(part, now)
        return made

    def known(self) -> list[str]:
        """Return the ids of all deployments of which something is known, sorted."""
        return sorted({*self.own, *self.others})

    def show(self, deployment_id: str, now: float) -> dict[str, Any]:
        """Return a deployment's figures as JSON."""
        one = self.together(deployment_id, now)
        return {
            "deployment_id": deployment_id,
            **{name: one.totals[name] for name in TOTALS},
            "first_token_ms": _figures(one, now, stream=True),
            "whole_ms": _figures(one, now, stream=False),
            "error_ratio": _ratio(one.failures.value(now), one.attempts.value(now)),
            "score": round(score([one], stream=True, now=now), 4),
            "score_plain": round(score([one], stream=False, now=now), 4),
            "healthy": self.healthy(deployment_id, now),
            "blocked_until": until if (until := self.blocked_until(deployment_id)) > now else None,
        }


def _figures(one: Standing, now: float, *, stream: bool) -> dict[str, float] | None:
    times = one.times(stream=stream)
    found = quantiles_ms([times], (0.5, 0.95, 0.99), now)
    mean_ms = times.mean_ms()
    if found is None or mean_ms is None:
        return None
    p50, p95, p99 = (round(value, 2) for value in found)
    return {"mean": round(mean_ms, 2), "p50": p50, "p95": p95, "p99": p99, "samples": round(times.weight(now), 2)}


def _ratio(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 4) if whole > 0 else None
