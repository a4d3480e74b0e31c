"""Counts and distributions that forget: what happened one half-life ago counts half.

Forward decay (Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009): instead of shrinking everything as time passes, new
weights grow, ``2 ** ((at - landmark) / half_life)``, and only ratios are ever looked at. So a quantile costs nothing to
keep up to date, and two workers' distributions can be added. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log
from typing import Final

RELATIVE_ERROR: Final = 0.02
MIN_MS: Final = 0.1
MAX_MS: Final = 1e7

#: Larger numbers are nobody's; their sums and products would not be numbers any more.
_MOST: Final = 1e15

_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG: Final = 1 / log(_GAMMA)
_LOWEST: Final = ceil(log(MIN_MS) * _PER_LOG)
_HIGHEST: Final = ceil(log(MAX_MS) * _PER_LOG)
_KEYS: Final = frozenset(str(index) for index in range(_LOWEST, _HIGHEST + 1))
#: Exponent of two at which weights are brought back to a new landmark, long before they overflow.
_MOST_DOUBLINGS: Final = 60.0
#: Weights below this are forgotten when a distribution is written down.
_NEGLIGIBLE: Final = 1e-3


def number(value: object) -> float | None:
    """Return a number of a JSON document as we could have written it, or None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST:
        return float(value)
    return None


def _index(value_ms: float) -> int:
    if value_ms <= MIN_MS:
        return _LOWEST
    return ceil(log(value_ms) * _PER_LOG) if value_ms < MAX_MS else _HIGHEST


def _doubled(times: float) -> float:
    """Return two to this power, within what a float can hold: clocks go back, and workers sleep for months."""
    doubled: float = 2.0 ** min(_MOST_DOUBLINGS, max(-1000.0, times))
    return doubled


def _middle_ms(index: int) -> float:
    """Return the value whose relative distance to both ends of the bucket is the same."""
    middle: float = 2 * _GAMMA**index / (_GAMMA + 1)
    return middle


class Count:
    """A number of events that halves every half-life.

    Args:
        half_life_s: Seconds.
        value: What it is at ``at``.
        at: Unix seconds.
    """

    __slots__ = ("_at", "_value", "half_life_s")

    def __init__(self, half_life_s: float, value: float = 0.0, at: float = 0.0) -> None:
        self.half_life_s = half_life_s
        self._value = value
        self._at = at

    def add(self, at: float, amount: float = 1.0) -> None:
        """Count an event of this moment (Unix seconds)."""
        self._value = self.value(at) + amount
        self._at = max(self._at, at)

    def value(self, at: float) -> float:
        """Return the number at a moment; a clock that goes back does not make it grow."""
        return self._value * _doubled(-max(0.0, at - self._at) / self.half_life_s) if self._value else 0.0


class Distribution:
    """Milliseconds in buckets that grow geometrically, so that every quantile is right to within ``RELATIVE_ERROR``.

    Args:
        half_life_s: Seconds.
    """

    __slots__ = ("_buckets", "_landmark", "_sum_ms", "_total", "half_life_s")

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self._landmark: float | None = None
        self._buckets: dict[int, float] = {}
        self._total = 0.0
        self._sum_ms = 0.0

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def _unit(self, at: float) -> float:
        """Return what one event of this moment weighs."""
        if self._landmark is None:
            self._landmark = at
        doublings = (at - self._landmark) / self.half_life_s
        if doublings > _MOST_DOUBLINGS:
            shrink = _doubled(-doublings)
            self._buckets = {i: w * shrink for i, w in self._buckets.items() if w * shrink > 0}
            self._total *= shrink
            self._sum_ms *= shrink
            self._landmark, doublings = at, 0.0
        return _doubled(max(doublings, -_MOST_DOUBLINGS))

    def add(self, value_ms: float, at: float) -> None:
        """Count a value seen now (Unix seconds)."""
        unit, index = self._unit(at), _index(value_ms)
        self._buckets[index] = self._buckets.get(index, 0.0) + unit
        self._total += unit
        self._sum_ms += unit * min(max(value_ms, MIN_MS), MAX_MS)

    def add_censored(self, at_least_ms: float, at: float) -> None:
        """Count a value of which is only known that it is larger: whoever was waited for was cancelled.

        Its weight goes to what is known to lie beyond, in proportion (Efron's redistribution to the right, 1967, whose
        fixed point is the estimator of Kaplan and Meier). To leave such values out, or to count them as they are, would
        make a candidate that is often overtaken look quick. If nothing lies beyond, it counts as it is.
        """
        limit = _index(at_least_ms)
        beyond = {index: weight for index, weight in self._buckets.items() if index > limit}
        mass = sum(beyond.values())
        if mass <= 0:
            self.add(at_least_ms, at)
            return
        unit = self._unit(at)
        # A new landmark has changed every weight in the same way: the proportions are as before.
        for index, weight in beyond.items():
            share = unit * weight / mass
            self._buckets[index] = self._buckets.get(index, 0.0) + share
            self._sum_ms += share * _middle_ms(index)
        self._total += unit

    def weight(self, at: float) -> float:
        """Return how many values of this moment it is worth."""
        if self._landmark is None:
            return 0.0
        return self._total * _doubled(-(at - self._landmark) / self.half_life_s)

    def weights(self, at: float) -> dict[int, float]:
        """Return the weight of each bucket, in values of this moment (Unix seconds)."""
        if self._landmark is None:
            return {}
        scale = _doubled(-(at - self._landmark) / self.half_life_s)
        return {index: weight * scale for index, weight in self._buckets.items()}

    def mean_ms(self) -> float | None:
        """Return the mean, or None when empty."""
        return self._sum_ms / self._total if self._total > 0 else None

    def merge(self, other: Distribution, at: float) -> None:
        """Add another one, both as they are at a moment (Unix seconds)."""
        if other._landmark is None or other._total <= 0:
            return
        scale = self._unit(at) * _doubled(-(at - other._landmark) / other.half_life_s)
        for index, weight in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0.0) + weight * scale
        self._total += other._total * scale
        self._sum_ms += other._sum_ms * scale

    def to_json(self, at: float) -> dict[str, float]:
        """Return the weights by bucket as they are at a moment; what is negligible is left out."""
        return {str(index): round(w, 4) for index, w in sorted(self.weights(at).items()) if w > _NEGLIGIBLE}

    @classmethod
    def from_json(cls, document: object, at: float, half_life_s: float) -> Distribution:
        """Rebuild one as it was at a moment; entries that none of ours can have are left out."""
        made = cls(half_life_s)
        made._landmark = at
        for key, found in document.items() if isinstance(document, Mapping) else ():
            weight = number(found)
            if weight is not None and weight > 0 and key in _KEYS:
                made._buckets[int(key)] = weight
                made._total += weight
                made._sum_ms += weight * _middle_ms(int(key))
        return made


def quantiles_ms(parts: Iterable[Distribution], ratios: Sequence[float], at: float) -> list[float] | None:
    """Return quantiles over several distributions together.

    Args:
        parts: The distributions.
        ratios: Ascending, 0 to 1.
        at: Unix seconds: all are taken as they are then.

    Returns:
        Milliseconds for each ratio; None when there is nothing.
    """
    together: dict[int, float] = {}
    for part in parts:
        for index, weight in part.weights(at).items():
            together[index] = together.get(index, 0.0) + weight
    total = sum(together.values())
    if total <= 0:
        return None
    found: list[float] = []
    seen = 0.0
    index = _LOWEST
    wanted = iter(ratios)
    ratio = next(wanted, None)
    for index in sorted(together):
        seen += together[index]
        while ratio is not None and seen >= ratio * total * (1 - 1e-9):
            found.append(_middle_ms(index))
            ratio = next(wanted, None)
    while ratio is not None:
        # Rounding has left the last sum a little below the total.
        found.append(_middle_ms(index))
        ratio = next(wanted, None)
    return found
