"""From what an attempt cost and brought to numbers that can be compared.

Every observation is kept as a bucket index, so that the counts of all workers can be added and the state stays small:
for a rate or a score the thousandth it lies in, for the others its logarithm to the base 1.01 (a relative error of at
most 0.5 %; J. Masson et al., "DDSketch", VLDB 2019). Speed is kept as milliseconds per token: then more is worse, as everywhere.

A comparison turns both arms' counts into values from 0 to 1 (``evidence`` wants them so):

- rate, score: the harm itself; "worse by more than d" is tested by adding d to stable's;
- mean: the value divided by a cap, twice stable's 99th percentile so far; what is above the cap counts as the cap;
- quantile q: 1 above stable's q-quantile so far, else 0. "Worse by more than a share d" is tested by multiplying
  stable's values by 1 + d, and the quantile with them.

Caps and quantiles come from the reference, which holds earlier observations of stable only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import ceil, exp, floor, fsum, log, log1p
from typing import TYPE_CHECKING, Final, TypeAlias

from pointsman.types import Outcome

from .evidence import guess
from .experiment import BOUNDED, RATES, Metric, MetricName

if TYPE_CHECKING:
    from pointsman.types import Attempt

    from .evidence import Counts

#: Bucket index to how many observations it has.
Histogram: TypeAlias = Mapping[int, int]

_PER_UNIT: Final = 1000
#: Width of a bucket of what is kept as a logarithm.
LOG_STEP: Final = log1p(0.01)
_MS_PER_S: Final = 1000.0
_LEAST: Final = 1e-3
_MOST: Final = 1e15
_CAP_QUANTILE: Final = 0.99
_CAP_FACTOR: Final = 2.0
_USUAL_RATE: Final = {0: 49, _PER_UNIT: 1}
# Fewer tokens say more about rounding than about speed.
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


def observe(attempt: Attempt) -> dict[MetricName, int]:
    """Return the buckets of what one closed attempt shows; nothing for an answer out of the gateway's cache."""
    if attempt.cached or attempt.outcome is Outcome.CANCELLED or attempt.outcome is None:
        return {}
    seen = {MetricName.DISCONNECT_RATE: float(attempt.outcome is Outcome.DISCONNECTED)}
    if attempt.outcome is not Outcome.DISCONNECTED:
        seen[MetricName.ERROR_RATE] = float(attempt.outcome is not Outcome.OK)
    if attempt.outcome is Outcome.OK:
        if attempt.duration_ms is not None:
            seen[MetricName.LATENCY_MS] = attempt.duration_ms
        if attempt.first_token_ms is not None:
            seen[MetricName.FIRST_TOKEN_MS] = attempt.first_token_ms
        if (speed := _tokens_per_s(attempt)) is not None:
            seen[MetricName.TOKENS_PER_S] = speed
        if attempt.cost_usd_micros is not None:
            seen[MetricName.COST_USD_MICROS] = attempt.cost_usd_micros
    return {metric: index(metric, value) for metric, value in seen.items()}


def _tokens_per_s(attempt: Attempt) -> float | None:
    """Return the speed of generation: after the first token where that is known."""
    if attempt.usage is None or attempt.duration_ms is None or attempt.usage.completion_tokens < _LEAST_TOKENS:
        return None
    generating_ms = attempt.duration_ms - (attempt.first_token_ms or 0.0)
    return attempt.usage.completion_tokens * _MS_PER_S / generating_ms if generating_ms > 0 else None


def added(first: Histogram, second: Histogram) -> dict[int, int]:
    """Return the sum of two histograms."""
    total = dict(first)
    for bucket, count in second.items():
        total[bucket] = total.get(bucket, 0) + count
    return total


def halved(histogram: Histogram) -> dict[int, int]:
    """Return the histogram with all counts halved, rounded up."""
    return {bucket: (count + 1) // 2 for bucket, count in histogram.items()}


def quantile_bucket(histogram: Histogram, quantile: float) -> int:
    """Return the bucket of the quantile (nearest rank) of a histogram that is not empty."""
    rank = max(1, ceil(quantile * sum(histogram.values())))
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return bucket
    raise ValueError("an empty histogram has no quantile")


def _level(metric: Metric) -> float:
    """Return the quantile of the harm: a low quantile of the speed is a high one of the time per token."""
    quantile = metric.quantile or 0.0
    return 1 - quantile if metric.metric is MetricName.TOKENS_PER_S else quantile


def figure(metric: Metric, histogram: Histogram) -> float | None:
    """Return the metric's statistic in its own unit, or None when nothing was seen."""
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
    """Turns histograms of one metric into values from 0 to 1, fixed by what stable has shown so far.

    Args:
        metric: The comparison.
        reference: Earlier observations of stable; may be empty for a rate or a score only.
        excess: How much worse is granted to the canary: absolute for rates and scores, else relative.
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
            # Something to begin with, soon outweighed: the first requests of a bad canary count at once.
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
