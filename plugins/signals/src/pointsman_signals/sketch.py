"""A distribution in bounded memory that can be merged with another one.

A histogram whose buckets grow geometrically, so that every quantile is right to within ``RELATIVE_ERROR`` however the
values are spread (the idea of DDSketch: Masson, Rim, Lee, VLDB 2019). Merging adds the buckets: the result is what one
sketch over all values would have been. Pure.
"""

from __future__ import annotations

from math import ceil, log2
from typing import TYPE_CHECKING, Final

from pointsman.types import Quantiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RELATIVE_ERROR: Final = 0.02
MIN_VALUE: Final = 1e-2
MAX_VALUE: Final = 1e7

_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG2: Final = 1 / log2(_GAMMA)
_LOWEST: Final = ceil(log2(MIN_VALUE) * _PER_LOG2)
_HIGHEST: Final = ceil(log2(MAX_VALUE) * _PER_LOG2)
#: No sketch ever has more buckets than this.
MAX_BUCKETS: Final = _HIGHEST - _LOWEST + 1


class Sketch:
    """Positive numbers, counted in buckets. Values outside ``MIN_VALUE`` to ``MAX_VALUE`` count as the nearest of them."""

    __slots__ = ("buckets", "count")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        """Count a value."""
        if value <= MIN_VALUE:
            index = _LOWEST
        elif value < MAX_VALUE:
            index = ceil(log2(value) * _PER_LOG2)
        else:
            index = _HIGHEST
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1

    def merge(self, other: Sketch) -> None:
        """Add all values of another sketch."""
        buckets = self.buckets
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count
        self.count += other.count

    def quantiles(self) -> Quantiles | None:
        """Return p50, p95 and p99 (nearest rank), or None when empty."""
        if not self.count:
            return None
        p50, p95, p99 = self.at((0.5, 0.95, 0.99))
        return Quantiles(p50=p50, p95=p95, p99=p99, count=self.count)

    def at(self, ratios: Iterable[float]) -> list[float]:
        """Return the values at ascending ranks from 0 to 1 (nearest rank); the sketch must not be empty."""
        ranks = iter(ratios)
        found: list[float] = []
        rank = next(ranks, None)
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            while rank is not None and seen >= max(1, ceil(rank * self.count - 1e-9)):
                # The middle of the bucket, where the relative error to both of its ends is the same.
                found.append(2 * _GAMMA**index / (_GAMMA + 1))
                rank = next(ranks, None)
            if rank is None:
                break
        return found

    def to_json(self) -> dict[str, int]:
        """Return the buckets as JSON."""
        return {str(index): count for index, count in self.buckets.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Sketch:
        """Rebuild a sketch; buckets that none of ours can have are left out."""
        sketch = cls()
        for key, count in value.items():
            if (
                isinstance(count, int)
                and count > 0
                and key.removeprefix("-").isdecimal()
                and _LOWEST <= int(key) <= _HIGHEST
            ):
                sketch.buckets[int(key)] = count
                sketch.count += count
        return sketch
