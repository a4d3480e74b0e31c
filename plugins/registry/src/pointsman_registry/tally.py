"""Live metrics of one version: counts, and quantiles over the newest answers. Pure: no I/O, no clock.

Quantiles are exact (nearest rank) over a window of the newest ``WINDOW`` answers of all workers together. A window is
chosen over a sketch because it forgets: a version that became slow a minute ago shows it, however long it was fast.
What a worker has seen is a batch of ``Sample``; adding batches in any order gives the same tally.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pointsman.types import OWN_CALLS, Attempt, Deployment, ErrorClass, Outcome, Quantiles

WINDOW: Final = 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one answer took.

    Attributes:
        at: Unix seconds of its end, to the millisecond.
        latency_ms: From the call to its end.
        first_token_ms: From the call to the first piece of content; None for a plain answer.
    """

    at: float
    latency_ms: float
    first_token_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One closed attempt, as far as the tally needs it.

    Attributes:
        at: Unix seconds of its end.
        error: It failed.
        cancelled: It was given up, by a race or because the client went away.
        timing: Set for an answer that a provider gave.
    """

    at: float
    error: bool = False
    cancelled: bool = False
    timing: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a version's attempts.

    Attributes:
        since: Unix seconds from which attempts are counted: registration or the latest reset.
        updated_at: Unix seconds of the newest attempt; None before the first.
        requests: Attempts of client requests, whatever became of them.
        errors: Those that failed.
        cancelled: Those that were given up.
        window: The newest answers, oldest first.
    """

    since: float
    updated_at: float | None = None
    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    window: tuple[Timing, ...] = ()

    @property
    def error_ratio(self) -> float:
        """Errors over requests; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0

    def plus(self, samples: Iterable[Sample]) -> Tally:
        """Return the tally with these samples; those from before ``since`` do not count."""
        new = [sample for sample in samples if sample.at >= self.since]
        if not new:
            return self
        timings = [sample.timing for sample in new if sample.timing is not None]
        return replace(
            self,
            updated_at=max(self.updated_at or 0.0, *(sample.at for sample in new)),
            requests=self.requests + len(new),
            errors=self.errors + sum(sample.error for sample in new),
            cancelled=self.cancelled + sum(sample.cancelled for sample in new),
            window=tuple(sorted([*self.window, *timings], key=_order)[-WINDOW:]),
        )

    def latency_ms(self) -> Quantiles | None:
        """Return the quantiles of the whole calls in the window; None when it is empty."""
        return quantiles([timing.latency_ms for timing in self.window])

    def first_token_ms(self) -> Quantiles | None:
        """Return the quantiles of the streams' first tokens in the window; None when there was no stream."""
        return quantiles([timing.first_token_ms for timing in self.window if timing.first_token_ms is not None])


def quantiles(values: Sequence[float]) -> Quantiles | None:
    """Return p50, p95 and p99 by nearest rank: the smallest value with at least that share at or below it."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(percent: int) -> float:
        # Integers: 0.95 * n rounded up in floating point can be one too many.
        return ordered[(percent * len(ordered) + 99) // 100 - 1]

    return Quantiles(p50=rank(50), p95=rank(95), p99=rank(99), count=len(ordered))


def sample(attempt: Attempt, at: float) -> Sample | None:
    """Return what a closed attempt adds to its version's tally, or None when it does not count.

    Mirrors, probes and judges are no client traffic. A refused attempt never reached the version. An answer from the
    gateway's cache counts as a request, but says nothing about the version's speed.

    Args:
        attempt: The attempt, closed.
        at: Unix seconds.
    """
    if attempt.kind in OWN_CALLS or (attempt.error is not None and attempt.error.kind is ErrorClass.REFUSED):
        return None
    if attempt.outcome is not Outcome.OK:
        failed = attempt.outcome is Outcome.ERROR
        return Sample(at=at, error=failed, cancelled=not failed)
    if attempt.cached or attempt.duration_ms is None:
        return Sample(at=at)
    first = None if attempt.first_token_ms is None else round(attempt.first_token_ms, 3)
    return Sample(at=at, timing=Timing(round(at, 3), round(attempt.duration_ms, 3), first))


def serves(path: str, deployment: Deployment) -> bool:
    """Say whether a deployment is what a path names. A fallback to another group is not."""
    return path in {deployment.id, deployment.group}


def _order(timing: Timing) -> tuple[float, float, float]:
    # By all three, so that the window does not depend on the order in which batches came.
    return timing.at, timing.latency_ms, -1.0 if timing.first_token_ms is None else timing.first_token_ms
