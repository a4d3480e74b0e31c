"""How long the answers of a model usually are, for requests that do not say how long theirs may be. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from typing import Final

#: Upper bounds of the buckets in tokens: 16 to about two million, each the square root of 2 times the one before.
BOUNDS: Final = tuple(math.ceil(16 * 2 ** (step / 2)) for step in range(35))
MIN_SAMPLES: Final = 20
#: When this many have been seen their weight is halved, so that what is new counts more.
_FADE_AT: Final = 2000


class OutputLengths:
    """Histograms of output lengths, by tenant and model.

    Args:
        capacity: The most pairs of tenant and model to remember; the one unused for longest is forgotten.
    """

    def __init__(self, capacity: int = 2000) -> None:
        self._capacity = capacity
        self._counts: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, tenant: str, model: str, tokens: int) -> None:
        """Remember the length of an answer, in tokens."""
        counts = self._counts.setdefault((tenant, model), [0] * len(BOUNDS))
        self._counts.move_to_end((tenant, model))
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        counts[min(bisect_left(BOUNDS, tokens), len(BOUNDS) - 1)] += 1
        if sum(counts) >= _FADE_AT:
            counts[:] = [count // 2 for count in counts]

    def quantile(self, tenant: str, model: str, ratio: float) -> int | None:
        """Return a length in tokens that this share of the answers did not exceed; None before 20 were seen.

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
