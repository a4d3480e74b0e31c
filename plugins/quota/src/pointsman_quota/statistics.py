"""What past requests teach: the lengths of a model's answers and the durations of a tenant's requests. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from cachetools import LRUCache

#: Upper bounds of the buckets in tokens: 16 to about two million, each the square root of 2 times the one before.
BOUNDS: Final = tuple(math.ceil(16 * 2 ** (step / 2)) for step in range(35))
MIN_SAMPLES: Final = 20
#: Number of answers at which all counts are halved, so that newer answers weigh more.
_FADE_AT: Final = 2000
#: Returned before a tenant's first request has ended, in milliseconds.
DEFAULT_MS: Final = 1000
_WEIGHT_RATIO: Final = 0.1


class OutputLengths:
    """Histograms of output lengths, by tenant and model.

    Not a ``pointsman.stats.Sketch``: a histogram forgets by the number of answers instead of by time, so that a rarely
    used model keeps what is known of it, and a quantile is the upper end of its bucket, because a reservation must not
    be too low.

    Args:
        capacity: The most pairs of tenant and model to remember; the least recently used one is forgotten.
    """

    def __init__(self, capacity: int = 2000) -> None:
        self._counts: LRUCache[tuple[str, str], list[int]] = LRUCache(capacity)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, tenant: str, model: str, tokens: int) -> None:
        """Add the length of an answer, in tokens."""
        counts = self._counts.setdefault((tenant, model), [0] * len(BOUNDS))
        counts[min(bisect_left(BOUNDS, tokens), len(BOUNDS) - 1)] += 1
        if sum(counts) >= _FADE_AT:
            counts[:] = [count // 2 for count in counts]

    def quantile(self, tenant: str, model: str, ratio: float) -> int | None:
        """Return a length in tokens that this share of the answers did not exceed; None before 20 answers.

        It is the upper bound of a bucket, so at most 1.42 times too high.
        """
        counts = self._counts.get((tenant, model))
        if counts is None or (total := sum(counts)) < MIN_SAMPLES:
            return None
        seen = 0
        for bound, count in zip(BOUNDS, counts, strict=True):
            seen += count
            if seen >= ratio * total:
                return bound
        return BOUNDS[-1]


class Durations:
    """A moving average by tenant.

    Args:
        capacity: The most tenants to remember; the least recently used one is forgotten.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._means_ms: LRUCache[str, float] = LRUCache(capacity)

    def add(self, tenant: str, duration_ms: float) -> None:
        """Add the duration of a request."""
        mean_ms = self._means_ms.get(tenant, duration_ms)
        self._means_ms[tenant] = mean_ms + _WEIGHT_RATIO * (max(0.0, duration_ms) - mean_ms)

    def typical_ms(self, tenant: str) -> int:
        """Return the usual duration in milliseconds; one second before the first request has ended."""
        return int(self._means_ms.get(tenant, DEFAULT_MS))
