"""Distributions, counts and averages in little memory, for decisions on the request path. Pure: no I/O, no clock.

``Buckets`` grow geometrically, so that every quantile is right to within a relative error however the values are spread
(the idea of DDSketch: Masson, Rim, Lee, PVLDB 12, 2019). A *histogram* is a mapping of bucket to count or weight: two
are merged by adding them, and the result is what one over all values would have been. ``Sketch`` is a histogram that
can forget and can take censored values::

    BUCKETS = Buckets.accurate_to(0.02, least=0.1, most=1e7)
    latency_ms = Sketch(BUCKETS, half_life_s=600)
    latency_ms.add(230.0, at=now)
    latency_ms.add_censored(900.0, at=now)      # cancelled after 900 ms
    p50, p95 = latency_ms.quantiles((0.5, 0.95))

A persisted histogram is JSON, bucket to weight; buckets and weights of another base mean something else, so the base of
what is in a store never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, exp, log
from typing import Final, TypeVar

N = TypeVar("N", int, float)

#: Rounding of a rank: 0.95 * 20 may be a little more than 19.
_TOLERANCE: Final = 1e-9
#: Larger weights are not ours; their sums and products would not be finite.
_MOST_WEIGHT: Final = 1e15
#: Longest written name of a bucket.
_MOST_KEY_CHARS: Final = 12
#: Exponent of two at which weights are brought back to a new landmark, long before they overflow.
_MOST_DOUBLINGS: Final = 60.0
#: Weights below this are forgotten when a sketch that forgets is written down, in values of the moment.
_NEGLIGIBLE: Final = 1e-3


def nearest_rank(ordered: Sequence[float], ratio: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed.

    Args:
        ordered: The values, ascending, at least one.
        ratio: 0 to 1, 0.5 for the median.
    """
    return ordered[max(1, ceil(ratio * len(ordered) - _TOLERANCE)) - 1]


def merged(*histograms: Mapping[int, N]) -> dict[int, N]:
    """Return the sum of histograms."""
    total: dict[int, N] = {}
    for histogram in histograms:
        for index, weight in histogram.items():
            total[index] = total[index] + weight if index in total else weight
    return total


def quantile_indices(histogram: Mapping[int, float], ratios: Sequence[float]) -> list[int]:
    """Return the buckets of quantiles (nearest rank), one for each ratio; none when the histogram is empty.

    Args:
        histogram: Counts or weights.
        ratios: Ascending, 0 to 1.
    """
    ascending = sorted(histogram)
    total = sum(histogram.values())
    if total <= 0:
        return []
    found: list[int] = []
    seen, place = 0.0, -1
    for ratio in ratios:
        while place < 0 or (seen < ratio * total * (1 - _TOLERANCE) and place < len(ascending) - 1):
            place += 1
            seen += histogram[ascending[place]]
        found.append(ascending[place])
    return found


class Buckets:
    """Buckets whose ends lie a constant factor apart; bucket ``i`` holds what is above ``base ** (i - 1)`` up to ``base ** i``.

    Args:
        base: The factor, more than 1.
        least: Smaller values count as this one; more than 0.
        most: Larger values count as this one.

    Attributes:
        lowest: The first bucket.
        highest: The last one.
        per_log: Buckets for each unit of the natural logarithm.
    """

    __slots__ = ("base", "highest", "least", "lowest", "most", "per_log")

    def __init__(self, base: float, *, least: float, most: float) -> None:
        self.base = base
        self.least = least
        self.most = most
        self.per_log = 1 / log(base)
        self.lowest = ceil(log(least) * self.per_log)
        self.highest = ceil(log(most) * self.per_log)

    @classmethod
    def accurate_to(cls, relative_error: float, *, least: float, most: float) -> Buckets:
        """Return the buckets whose middle differs from each of their values by at most this share."""
        return cls((1 + relative_error) / (1 - relative_error), least=least, most=most)

    def index(self, value: float) -> int:
        """Return the bucket of a value."""
        if value <= self.least:
            return self.lowest
        return ceil(log(value) * self.per_log) if value < self.most else self.highest

    def middle(self, index: int) -> float:
        """Return the value that stands for a bucket: its relative distance to both ends is the same."""
        middle: float = 2 * self.base**index / (self.base + 1)
        return middle

    def quantiles(self, histogram: Mapping[int, float], ratios: Sequence[float]) -> list[float] | None:
        """Return quantiles (nearest rank); None when the histogram is empty.

        Args:
            histogram: Counts or weights.
            ratios: Ascending, 0 to 1.
        """
        return [self.middle(index) for index in quantile_indices(histogram, ratios)] or None


class Sketch:
    """A distribution of positive numbers.

    With a half-life it forgets: what was seen one half-life ago counts half. Weights grow instead of shrinking,
    ``2 ** ((at - landmark) / half_life)``, and only ratios are ever looked at (forward decay: Cormode, Shkapenyuk,
    Srivastava, Xu, ICDE 2009). So keeping up to date costs nothing, and two workers' sketches can be added. Without one
    it counts, and no moment (``at``, seconds) matters.

    Args:
        buckets: The buckets.
        half_life_s: Seconds, or None to count.
    """

    __slots__ = ("_landmark", "_sum", "_total", "_weights", "buckets", "half_life_s")

    def __init__(self, buckets: Buckets, half_life_s: float | None = None) -> None:
        self.buckets = buckets
        self.half_life_s = half_life_s
        self._landmark: float | None = None
        self._weights: dict[int, float] = {}
        self._total: float = 0
        self._sum = 0.0

    def __bool__(self) -> bool:
        return bool(self._weights)

    def add(self, value: float, at: float = 0.0) -> None:
        """Count a value seen at a moment."""
        # ``Buckets.index`` and ``_unit`` in place: this is called several times for each request, and calls cost most.
        unit = 1 if self.half_life_s is None else self._unit(at)
        buckets, weights = self.buckets, self._weights
        if value <= buckets.least:
            value, index = buckets.least, buckets.lowest
        elif value < buckets.most:
            index = ceil(log(value) * buckets.per_log)
        else:
            value, index = buckets.most, buckets.highest
        weights[index] = weights[index] + unit if index in weights else unit
        self._total += unit
        self._sum += unit * value

    def add_censored(self, at_least: float, at: float = 0.0) -> None:
        """Count a value that is only known to be larger than this, for example the time of an attempt that was cancelled.

        Its weight goes to what is known to lie beyond, in proportion (Efron's redistribution to the right, 1967, whose
        fixed point is the estimator of Kaplan and Meier). To leave such values out, or to count them as they are, would
        make a deployment that is often overtaken look quick. If nothing lies beyond, it counts as it is.
        """
        limit = self.buckets.index(at_least)
        beyond = {index: weight for index, weight in self._weights.items() if index > limit}
        mass = sum(beyond.values())
        if mass <= 0:
            self.add(at_least, at)
            return
        # A new landmark changes every weight in the same way: the proportions stay.
        unit = self._unit(at)
        for index, weight in beyond.items():
            share = unit * weight / mass
            self._weights[index] = self._weights.get(index, 0.0) + share
            self._sum += share * self.buckets.middle(index)
        self._total += unit

    def merge(self, other: Sketch, at: float = 0.0) -> None:
        """Add another one with the same buckets, both as they are at a moment."""
        if not other:
            return
        weights = self._weights
        if self.half_life_s is None and other.half_life_s is None:
            # Written out: counts are summed up every second, and mostly there is nothing yet to add them to.
            for index, weight in other._weights.items() if weights else ():
                weights[index] = weights[index] + weight if index in weights else weight
            self._weights = weights or other._weights.copy()
            self._total += other._total
            self._sum += other._sum
            return
        scale = self._unit(at) * other._scale(at)
        for index, weight in other._weights.items():
            weights[index] = weights.get(index, 0) + weight * scale
        self._total += other._total * scale
        self._sum += other._sum * scale

    def weight(self, at: float = 0.0) -> float:
        """Return how many values of this moment it is worth; without a half-life, how many values were added."""
        return self._total * self._scale(at)

    def weights(self, at: float = 0.0) -> dict[int, float]:
        """Return the histogram, in values of this moment."""
        scale = self._scale(at)
        return {index: weight * scale for index, weight in self._weights.items()}

    def mean(self) -> float | None:
        """Return the mean, or None when empty."""
        return self._sum / self._total if self._total > 0 else None

    def quantiles(self, ratios: Sequence[float]) -> list[float] | None:
        """Return quantiles (nearest rank) at ascending ratios from 0 to 1; None when empty."""
        return self.buckets.quantiles(self._weights, ratios)

    def to_json(self, at: float = 0.0) -> dict[str, float]:
        """Return the weights by bucket as they are at a moment; what is negligible is left out."""
        weights = sorted(self.weights(at).items())
        if self.half_life_s is None:
            return {str(index): weight for index, weight in weights}
        return {str(index): round(weight, 4) for index, weight in weights if weight > _NEGLIGIBLE}

    @classmethod
    def from_json(cls, document: object, buckets: Buckets, half_life_s: float | None = None, at: float = 0.0) -> Sketch:
        """Rebuild a sketch as it was at a moment; entries that none of ours can have are left out."""
        sketch = cls(buckets, half_life_s)
        sketch._landmark = at
        kinds = (int,) if half_life_s is None else (int, float)
        for key, weight in document.items() if isinstance(document, Mapping) else ():
            index = _index(key)
            if index is None or not buckets.lowest <= index <= buckets.highest:
                continue
            if type(weight) in kinds and 0 < weight <= _MOST_WEIGHT:
                sketch._weights[index] = weight
                sketch._total += weight
                sketch._sum += weight * buckets.middle(index)
        return sketch

    def _unit(self, at: float) -> float:
        """Return what one value of this moment weighs."""
        if self.half_life_s is None:
            return 1
        if self._landmark is None:
            self._landmark = at
        doublings = (at - self._landmark) / self.half_life_s
        if doublings > _MOST_DOUBLINGS:
            shrink = _doubled(-doublings)
            self._weights = {i: w * shrink for i, w in self._weights.items() if w * shrink > 0}
            self._total *= shrink
            self._sum *= shrink
            self._landmark, doublings = at, 0.0
        return _doubled(max(doublings, -_MOST_DOUBLINGS))

    def _scale(self, at: float) -> float:
        """Return the factor that makes the weights those of a moment."""
        if self.half_life_s is None or self._landmark is None:
            return 1
        return _doubled(-(at - self._landmark) / self.half_life_s)


class DecayingCount:
    """A number of events that halves every half-life.

    Args:
        half_life_s: Seconds.
        value: What it is at ``at``.
        at: Seconds.
    """

    __slots__ = ("_at", "_value", "half_life_s")

    def __init__(self, half_life_s: float, value: float = 0.0, at: float = 0.0) -> None:
        self.half_life_s = half_life_s
        self._value = value
        self._at = at

    def add(self, at: float, amount: float = 1.0) -> None:
        """Count events of a moment."""
        self._value = self.value(at) + amount
        self._at = max(self._at, at)

    def value(self, at: float) -> float:
        """Return the number at a moment; a clock that goes back does not make it grow."""
        return self._value * _doubled(-max(0.0, at - self._at) / self.half_life_s) if self._value else 0.0


class Ewma:
    """An average in which a value counts the less the longer ago it was seen; the first value is the average.

    Args:
        tau_s: Time constant in seconds: after it, what was seen before has the weight 1/e.
        min_gain: Part of the way that a value moves the average at least, however short the time since the one before.
        peak_gain: The same for a value above the average: more than ``min_gain`` makes a peak average, which goes up at
            once and down slowly (``PeakEwma`` of Twitter's Finagle).

    Attributes:
        value: The average; 0 before the first value.
        count: How many values were seen.
        at: Seconds of the latest.
    """

    __slots__ = ("at", "count", "min_gain", "peak_gain", "tau_s", "value")

    def __init__(self, tau_s: float, *, min_gain: float = 0.0, peak_gain: float = 0.0) -> None:
        self.tau_s = tau_s
        self.min_gain = min_gain
        self.peak_gain = peak_gain
        self.value = 0.0
        self.count = 0
        self.at = 0.0

    def add(self, value: float, at: float) -> None:
        """Take in a value seen at a moment, in seconds."""
        if self.count == 0:
            self.value = value
        else:
            gain = 1.0 - exp(-max(0.0, at - self.at) / self.tau_s)
            gain = max(gain, self.min_gain, self.peak_gain if value > self.value else 0.0)
            self.value += gain * (value - self.value)
        self.at = at
        self.count += 1


def _doubled(times: float) -> float:
    """Return two to this power, within what a float can hold: clocks go back, and workers sleep for months."""
    doubled: float = 2.0 ** min(_MOST_DOUBLINGS, max(-1000.0, times))
    return doubled


def _index(key: object) -> int | None:
    """Return the bucket of a name as it is written down, None for any other name."""
    # Longer digits are not a bucket's, and beyond some thousands Python refuses to convert them.
    if not isinstance(key, str) or len(key) > _MOST_KEY_CHARS or not key.removeprefix("-").isdecimal():
        return None
    index = int(key)
    return index if key == str(index) else None
