"""Embeddings, kept in a byte for each dimension. Pure."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from operator import mul
from typing import Final

_MOST: Final = 127


def packed(vector: Sequence[float]) -> str | None:
    """Return a vector as text: its direction, a signed byte for each dimension; None where it has none.

    Rounding moves the similarity of two vectors of some hundred dimensions by less than 0.001.
    """
    largest = max(map(abs, vector), default=0.0)
    if not 0.0 < largest < math.inf:
        return None
    return base64.b64encode(array("b", [round(value / largest * _MOST) for value in vector]).tobytes()).decode()


def similarity(one: str, other: str) -> float:
    """Return the cosine of the angle between two packed vectors, -1 to 1; -1 for two of different lengths."""
    first, second = (array("b", base64.b64decode(text)) for text in (one, other))
    if len(first) != len(second):
        return -1.0
    norm = math.sqrt(sum(map(mul, first, first)) * sum(map(mul, second, second)))
    return sum(map(mul, first, second)) / norm if norm else -1.0
