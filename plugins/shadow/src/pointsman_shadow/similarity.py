"""How alike two answers are: as text, as JSON, as calls of tools, as embeddings. Numbers from 0 (nothing) to 1 (the same)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from math import fsum, isfinite, sqrt
from typing import Final

from rapidfuzz.distance import Indel

from pointsman.types import ToolCall

#: More than this of each text is not compared: the distance takes time with the square of it, 1 ms for these.
COMPARED_CHARS: Final = 8_000
#: Deeper JSON is compared as text.
_MAX_JSON_CHARS: Final = 1_000_000


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

    A text may have its JSON in a fenced block. The order of names, white space and the spelling of numbers do not count.
    """
    first, second = _parsed(one), _parsed(other)
    if first is None and second is None:
        return None
    return float(first is not None and second is not None and _equal(first, second))


def _parsed(text: str) -> Mapping[str, object] | Sequence[object] | None:
    text = text.strip()
    if text.startswith("```"):
        _, _, text = text.partition("\n")
        text = text.rstrip().removesuffix("```")
    text = text.strip()
    if not text.startswith(("{", "[")) or len(text) > _MAX_JSON_CHARS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _equal(one: object, other: object) -> bool:
    # Python holds True equal to 1, JSON does not.
    try:
        return one == other and json.dumps(one, sort_keys=True) == json.dumps(_like(other, one), sort_keys=True)
    except RecursionError:
        return False


def _like(value: object, model: object) -> object:
    """Return a value with its numbers spelt as in another, equal one."""
    if isinstance(value, dict) and isinstance(model, dict):
        return {name: _like(item, model.get(name)) for name, item in value.items()}
    if isinstance(value, list) and isinstance(model, list):
        return [_like(item, other) for item, other in zip(value, model, strict=True)]
    numbers = isinstance(value, int | float) and isinstance(model, int | float)
    return model if numbers and not isinstance(value, bool) and not isinstance(model, bool) else value


def same_tools(one: Sequence[ToolCall], other: Sequence[ToolCall]) -> float | None:
    """Return 1 when both call the same tools with equal arguments, in any order; None when neither calls one."""
    if not one and not other:
        return None
    if len(one) != len(other):
        return 0.0
    left = list(other)
    for call in one:
        match = next((i for i, each in enumerate(left) if each.name == call.name and _same_arguments(call, each)), None)
        if match is None:
            return 0.0
        left.pop(match)
    return 1.0


def _same_arguments(one: ToolCall, other: ToolCall) -> bool:
    # No arguments and an empty object are the same to a tool.
    first, second = one.arguments.strip() or "{}", other.arguments.strip() or "{}"
    return first == second or same_json(first, second) == 1.0


def cosine(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the cosine of two vectors, negative ones as 0; None when they cannot be compared."""
    if len(one) != len(other) or not one:
        return None
    length = sqrt(fsum(x * x for x in one)) * sqrt(fsum(x * x for x in other))
    if not length or not isfinite(length):
        return None
    return min(max(fsum(x * y for x, y in zip(one, other, strict=True)) / length, 0.0), 1.0)


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
        found[index if isinstance(index, int) else place] = [float(x) for x in vector]
    return [found[place] for place in sorted(found)]
