"""How alike two answers are: as text, as JSON, as calls of tools, as embeddings. Numbers from 0 (nothing) to 1 (the same)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from math import fsum, isfinite, sqrt
from typing import Final

from rapidfuzz.distance import Indel

from pointsman.types import ToolCall

#: More than this of each text is not compared: the distance takes time with the square of it, 1 ms for these.
COMPARED_CHARS: Final = 8_000
#: Longer JSON is not read, and arguments of tools that are longer together are compared as text: it must not take long.
MAX_JSON_CHARS: Final = 50_000
_MOST_WHOLE: Final = 1e22


def exact(one: str, other: str) -> float:
    """Return 1 when the texts are the same but for white space at their ends."""
    return float(one.strip() == other.strip())


def edit(one: str, other: str) -> float:
    """Return 1 minus the normalised distance of insertions and deletions, over words that are spaced alike.

    Only the first 8000 characters of each count.
    """
    first, second = _spaced(one), _spaced(other)
    return float(Indel.normalized_similarity(first, second))


def _spaced(text: str) -> str:
    return " ".join(text[: 2 * COMPARED_CHARS].split())[:COMPARED_CHARS]


def same_json(one: str, other: str) -> float | None:
    """Return 1 when both texts hold equal JSON objects or arrays, 0 when only one does or they differ; None for none.

    None also when one has more than 50 000 characters. A text may have its JSON in a fenced block. The order of names, white space and the spelling of numbers do not count.
    """
    if max(len(one), len(other)) > MAX_JSON_CHARS:
        return None
    first, second = _canonical(one), _canonical(other)
    if first is None and second is None:
        return None
    return float(first == second)


def _canonical(text: str) -> str | None:
    """Return the object or array in a text, spelt in the one way that all equal ones are; None when there is none."""
    text = text.strip()
    if text.startswith("```"):
        _, _, text = text.partition("\n")
        text = text.rstrip().removesuffix("```")
    text = text.strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        return json.dumps(json.loads(text, parse_float=_number), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> float:
    value = float(text)
    # Whole numbers as JSON's integers; larger ones would become hundreds of digits.
    return int(value) if abs(value) < _MOST_WHOLE and value.is_integer() else value


def same_tools(one: Sequence[ToolCall], other: Sequence[ToolCall]) -> float | None:
    """Return 1 when both call the same tools with equal arguments, in any order; None when neither calls one."""
    if not one and not other:
        return None
    return float(len(one) == len(other) and _calls(one) == _calls(other))


def _calls(calls: Sequence[ToolCall]) -> Counter[tuple[str, str]]:
    # No arguments and an empty object are the same to a tool.
    arguments = [call.arguments.strip() or "{}" for call in calls]
    if sum(map(len, arguments)) <= MAX_JSON_CHARS:
        arguments = [_canonical(each) or each for each in arguments]
    return Counter(zip((call.name for call in calls), arguments, strict=True))


def cosine(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the cosine of two vectors, negative ones as 0; None when they cannot be compared."""
    if len(one) != len(other):
        return None
    first, second = _scaled(one), _scaled(other)
    if first is None or second is None:
        return None
    length = sqrt(fsum(x * x for x in first)) * sqrt(fsum(x * x for x in second))
    return min(max(fsum(x * y for x, y in zip(first, second, strict=True)) / length, 0.0), 1.0)


def _scaled(vector: Sequence[float]) -> list[float] | None:
    """Return a vector of the same direction whose largest part is 1, so that no square is too large or too small."""
    largest = max(map(abs, vector), default=0.0)
    if not largest or not all(map(isfinite, vector)):
        return None
    return [x / largest for x in vector]


def vectors(body: Mapping[str, object]) -> list[list[float]]:
    """Return the embeddings of an answer in OpenAI's shape, in the order of the inputs; empty for anything else."""
    data = body.get("data")
    if not isinstance(data, Sequence):
        return []
    found: dict[int, list[float]] = {}
    for place, item in enumerate(islice(data, 16)):
        get = item.get if isinstance(item, Mapping) else lambda name, item=item: getattr(item, name, None)
        vector, index = get("embedding"), get("index")
        if not isinstance(vector, Sequence) or isinstance(vector, str):
            return []
        if not all(isinstance(x, int | float) for x in vector):
            return []
        try:
            found[index if isinstance(index, int) else place] = [float(x) for x in vector]
        except OverflowError:
            return []
    return [found[place] for place in sorted(found)]
