"""Turns requests into numbers that can be compared.

Every observation is kept as a bucket index, so that the counts of all workers can be added and the state stays small:
for a rate or a score the thousandth it lies in, for the others its logarithm to the base 1.01 (a relative error of at
most 0.5 %; J. Masson et al., "DDSketch", VLDB 2019). Speed is kept as milliseconds per token: then more is worse, as everywhere.

A comparison turns both arms' counts into values from 0 to 1 (as ``eprocess`` needs them):

- rate, score: the harm itself; "worse by more than d" is tested by adding d to stable's;
- mean: the value divided by a cap, twice stable's 99th percentile so far; what is above the cap counts as the cap;
- quantile q: 1 above stable's q-quantile so far, else 0. "Worse by more than a share d" is tested by multiplying
  stable's values by 1 + d, and the quantile with them.

Caps and quantiles come from the reference, which holds earlier observations of stable only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, exp, floor, fsum, log, log1p
from typing import TYPE_CHECKING, Final, TypeAlias

from pointsman.stats import quantile_indices
from pointsman.types import AttemptKind, ErrorClass, Outcome

from .eprocess import guess
from .experiment import BOUNDED, RATES, Metric, MetricName

if TYPE_CHECKING:
    from pointsman.types import Attempt, Settlement

    from .eprocess import Counts

#: Bucket index to how many observations it has.
Histogram: TypeAlias = Mapping[int, int]

_PER_UNIT: Final = 1000
#: Width of a bucket of logarithms. They are rounded to the nearest bucket, not up as in ``pointsman.stats.Buckets``:
#: stored histograms have this meaning.
LOG_STEP: Final = log1p(0.01)
_MS_PER_S: Final = 1000.0
_LEAST: Final = 1e-3
_MOST: Final = 1e15
_CAP_QUANTILE: Final = 0.99
_CAP_FACTOR: Final = 2.0
_USUAL_RATE: Final = {0: 49, _PER_UNIT: 1}
# With fewer tokens the speed is mostly rounding.
_LEAST_TOKENS: Final = 8


def index(metric: MetricName, value: float) -> int:
    """Return the bucket of a value in the metric's own unit (tokens per second for speed, 0 to 1 for a score)."""
    if metric in BOUNDED:
        harm = 1 - value if metric is MetricName.SCORE else value
        return round(min(max(harm, 0.0), 1.0) * _PER_UNIT)
    if metric is MetricName.TOKENS_PER_S:
        value = _MS_PER_S / max(value, 1 / _MOST)
    return round(log(min(max(value, _LEAST), _MOST)) / LOG_STEP)


@cache
def _harm(metric: MetricName, bucket: int) -> float:
    """Return the value of a bucket, more being worse."""
    return bucket / _PER_UNIT if metric in BOUNDED else exp(bucket * LOG_STEP)


def observe(settlement: Settlement, own: Sequence[Attempt]) -> dict[MetricName, int]:
    """Return the buckets of one request, as its client saw it.

    Latency and first token are those of the request: whatever races and retries the arm needed is in them. The error rate
    counts a request whose first attempt failed, since a retry that helps hides a failure; a race is one attempt. An answer
    without content is a failure like any other error class.

    Args:
        settlement: The request.
        own: The attempts that were the arm's own, not those of a fallback.

    Returns:
        Nothing for a request that says nothing about the arm: denied, one that only reads or opens a websocket, answered from the gateway's cache, or failed by its
        client's own fault.
    """
    answering = next((attempt for attempt in settlement.attempts if attempt.id == settlement.answered_by), None)
    if settlement.outcome in _NOT_COUNTED or not settlement.generates or (answering is not None and answering.cached):
        return {}
    made = [attempt for attempt in own if not _says_nothing(attempt)]
    if own and not made and any(attempt.error is not None and attempt.error.client_caused for attempt in own):
        return {}
    if settlement.outcome is Outcome.DISCONNECTED:
        seen = {MetricName.DISCONNECT_RATE: 1.0}
        if made and all(_failed(attempt) for attempt in made):
            seen[MetricName.ERROR_RATE] = 1.0
        return {metric: index(metric, value) for metric, value in seen.items()}
    answer = next((attempt for attempt in own if attempt is answering and not _failed(attempt)), None)
    raced = settlement.route.executor is not None or not made or made[0].outcome is Outcome.CANCELLED
    failed = not _won(made, answer) if raced else _failed(made[0])
    seen = {MetricName.DISCONNECT_RATE: 0.0, MetricName.ERROR_RATE: float(failed)}
    if answer is not None:
        seen |= _answer(settlement, answer, own)
    return {metric: index(metric, value) for metric, value in seen.items()}


def _won(made: Sequence[Attempt], answer: Attempt | None) -> bool:
    """Say whether the answer came from the first of the gateway's attempts, which is a whole race: a retry begins the next."""
    ends = (place for place, attempt in enumerate(made) if place and attempt.kind is AttemptKind.RETRY)
    first = made[: next(ends, len(made))]
    return answer is not None and (not made or any(attempt is answer for attempt in first))


_NOT_COUNTED: Final = frozenset({Outcome.DENIED, Outcome.CANCELLED})


def _failed(attempt: Attempt) -> bool:
    return attempt.outcome is Outcome.ERROR or attempt.empty


def _says_nothing(attempt: Attempt) -> bool:
    """Say whether an attempt never reached the provider, or failed by its client's fault."""
    error = attempt.error
    return error is not None and (error.client_caused or error.kind is ErrorClass.REFUSED)


def _answer(settlement: Settlement, answering: Attempt, own: Sequence[Attempt]) -> dict[MetricName, float]:
    duration_ms = settlement.duration_ms
    if duration_ms is None:
        duration_ms = max(settlement.finished_at - settlement.started_at, 0.0) * _MS_PER_S
    seen: dict[MetricName, float] = {}
    # The end of a background response is seen when it is looked at.
    if answering.duration_ms is not None:
        seen[MetricName.LATENCY_MS] = duration_ms
        first_token_ms = settlement.first_token_ms
        if first_token_ms is not None:
            seen[MetricName.FIRST_TOKEN_MS] = first_token_ms
        tokens = 0 if answering.usage is None else answering.usage.completion_tokens
        # After the first token where that is known.
        generating_ms = duration_ms - (first_token_ms or 0.0)
        if tokens >= _LEAST_TOKENS and generating_ms > 0:
            seen[MetricName.TOKENS_PER_S] = tokens * _MS_PER_S / generating_ms
    if answering.cost_usd_micros is not None:
        # What the arm's other attempts cost was spent for this answer as well.
        seen[MetricName.COST_USD_MICROS] = sum(attempt.cost_usd_micros or 0 for attempt in own)
    return seen


def halved(histogram: Histogram) -> dict[int, int]:
    """Return the histogram with all counts halved, rounded up."""
    return {bucket: (count + 1) // 2 for bucket, count in histogram.items()}


def quantile_bucket(histogram: Histogram, quantile: float) -> int:
    """Return the bucket of the quantile (nearest rank) of a histogram that is not empty."""
    (bucket,) = quantile_indices(histogram, [quantile])
    return bucket


def _level(metric: Metric) -> float:
    """Return the quantile of the harm: a low quantile of the speed is a high one of the time per token."""
    quantile = metric.quantile or 0.0
    return 1 - quantile if metric.metric is MetricName.TOKENS_PER_S else quantile


def figure(metric: Metric, histogram: Histogram) -> float | None:
    """Return the metric's statistic in its own unit, or None without observations."""
    if not histogram:
        return None
    name = metric.metric
    if metric.quantile is not None:
        harm = _harm(name, quantile_bucket(histogram, _level(metric)))
    else:
        total = fsum(_harm(name, bucket) * count for bucket, count in histogram.items())
        harm = total / sum(histogram.values())
    if name is MetricName.SCORE:
        return 1 - harm
    return _MS_PER_S / harm if name is MetricName.TOKENS_PER_S else harm


class Scale:
    """Turns histograms of one metric into values from 0 to 1, on a scale fixed by earlier observations of stable.

    Args:
        metric: The comparison.
        reference: Earlier observations of stable; may be empty for a rate or a score only.
        excess: Deterioration that the canary is granted: absolute for rates and scores, else relative.
        lenient: Whether the rounding to buckets may only help the canary at a quantile, or only harm it.
    """

    __slots__ = ("_bounded", "_cap", "_edge", "_excess", "_granted", "_name", "_reference")

    def __init__(self, metric: Metric, reference: Histogram, excess: float, *, lenient: bool) -> None:
        self._name = metric.metric
        self._reference = reference
        self._excess = excess
        self._bounded = metric.metric in BOUNDED
        self._edge: int | None = None
        self._granted = 0
        self._cap = 1.0
        if self._bounded:
            return
        if metric.quantile is not None:
            self._edge = quantile_bucket(reference, _level(metric))
            buckets = log1p(excess) / LOG_STEP
            self._granted = ceil(buckets) if lenient else floor(buckets)
        else:
            highest = _harm(self._name, quantile_bucket(reference, _CAP_QUANTILE))
            self._cap = (1 + excess) * _CAP_FACTOR * highest

    def stable(self, histogram: Histogram) -> Counts:
        """Return stable's observations, made worse by the excess."""
        if self._edge is not None:
            return self._above(histogram, self._edge)
        if self._bounded:
            return self._shares(histogram, 1.0, self._excess, 1 + self._excess)
        return self._shares(histogram, 1 + self._excess, 0.0, self._cap)

    def canary(self, histogram: Histogram) -> Counts:
        """Return the canary's observations on the same scale."""
        if self._edge is not None:
            return self._above(histogram, self._edge + self._granted)
        return self._shares(histogram, 1.0, 0.0, 1 + self._excess if self._bounded else self._cap)

    def guess(self) -> float:
        """Return a guess for the mean of stable's values, never 0 or 1."""
        seen = dict(self.stable(self._reference))
        if self._name in RATES:
            # A prior that is soon outweighed: with it the first requests of a bad canary count at once.
            for value, count in self.stable(_USUAL_RATE).items():
                seen[value] = seen.get(value, 0) + count
        return guess(seen)

    def _above(self, histogram: Histogram, edge: int) -> Counts:
        above = sum(count for bucket, count in histogram.items() if bucket > edge)
        return {value: count for value, count in ((0.0, sum(histogram.values()) - above), (1.0, above)) if count}

    def _shares(self, histogram: Histogram, factor: float, shift: float, whole: float) -> Counts:
        values: dict[float, int] = {}
        for bucket, count in histogram.items():
            value = min((factor * _harm(self._name, bucket) + shift) / whole, 1.0)
            values[value] = values.get(value, 0) + count
        return values
