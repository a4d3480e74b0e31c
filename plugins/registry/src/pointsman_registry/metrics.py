"""Live metrics of one version: counts, and quantiles over the newest answers. Pure: no I/O, no clock.

Quantiles are exact (nearest rank) over a window of the newest ``WINDOW`` answers of all workers together. A window is
chosen over a sketch because it forgets: a version that became slow a minute ago shows it, however long it was fast.
A worker's observations are batches of ``Sample``; adding batches in any order gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pointsman.stats import nearest_rank
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
    """One closed attempt, as far as the metrics need it.

    Attributes:
        at: Unix seconds of its end.
        error: It failed, or was answered without content.
        cancelled: It was given up, by a race or because the client went away.
        timing: Set for an answer that a provider gave.
    """

    at: float
    error: bool = False
    cancelled: bool = False
    timing: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMetrics:
    """The results of a version's attempts.

    Attributes:
        since: Unix seconds from which attempts are counted: registration or the latest reset.
        updated_at: Unix seconds of the newest attempt; None before the first.
        requests: Attempts of client requests, whatever their result.
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

    def plus(self, samples: Iterable[Sample]) -> LiveMetrics:
        """Return the metrics with these samples added; those from before ``since`` do not count."""
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
    p50, p95, p99 = (nearest_rank(ordered, ratio) for ratio in (0.5, 0.95, 0.99))
    return Quantiles(p50=p50, p95=p95, p99=p99, count=len(ordered))


def sample(attempt: Attempt, at: float) -> Sample | None:
    """Return what a closed attempt adds to its version's metrics, or None when it does not count.

    Mirrors, probes and judges are not client traffic. A refused attempt never reached the version, and one that the client's
    own settings ended says nothing about it. A request that the provider refuses as wrong is a request and not an error; an
    answer without content is an error. An answer from the gateway's cache counts as a request, but carries no information
    about the version's speed.

    Args:
        attempt: The attempt, closed.
        at: Unix seconds.
    """
    error = attempt.error
    if attempt.kind in OWN_CALLS or (error is not None and (error.kind is ErrorClass.REFUSED or error.client_caused)):
        return None
    if attempt.outcome is not Outcome.OK:
        failed = attempt.outcome is Outcome.ERROR
        clients = error is not None and error.kind is ErrorClass.CLIENT
        return Sample(at=at, error=failed and not clients, cancelled=not failed)
    if attempt.empty:
        return Sample(at=at, error=not attempt.cached)
    if attempt.cached or attempt.duration_ms is None:
        return Sample(at=at)
    first = None if attempt.first_token_ms is None else round(attempt.first_token_ms, 3)
    return Sample(at=at, timing=Timing(round(at, 3), round(attempt.duration_ms, 3), first))


def serves(path: str, deployment: Deployment) -> bool:
    """Return whether a path names a deployment. A fallback to another group is not on the path."""
    return path in {deployment.id, deployment.group}


def _order(timing: Timing) -> tuple[float, float, float]:
    # By all three, so that the window does not depend on the order in which batches came.
    return timing.at, timing.latency_ms, -1.0 if timing.first_token_ms is None else timing.first_token_ms
