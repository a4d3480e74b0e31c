"""Made-up data that fits: values for a JSON schema, and embedding vectors for a text."""

from __future__ import annotations

import math
import random
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_DEPTH = 16
_BY_TYPE: dict[object, object] = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "null": None}


def example(schema: Mapping[str, Any]) -> object:
    """Return a value that a JSON schema describes: the first choice everywhere, and only what is required.

    It knows what tool parameters and answer formats use: types, ``properties``, ``items``, ``enum``, ``const``,
    ``default``, ``anyOf``/``oneOf``/``allOf``, ``minItems`` and local ``$ref``. It gives null below 16 levels.
    """
    return _example(schema, schema, 0)


def _example(schema: object, root: Mapping[str, Any], depth: int) -> object:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    chosen = _resolve(schema["$ref"], root) if "$ref" in schema else _branch(schema)
    if chosen is not None:
        return _example(chosen, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "array":
        return [_example(schema.get("items"), root, depth + 1)] * max(1, schema.get("minItems", 1))
    if kind == "object":
        properties: dict[str, object] = schema.get("properties") or {}
        required: list[str] = schema.get("required", list(properties))
        return {name: _example(properties.get(name), root, depth + 1) for name in required}
    return _BY_TYPE.get(kind)


def _branch(schema: Mapping[str, Any]) -> object:
    """Return the first of the schemas that are combined in this one, or None."""
    return next((schema[key][0] for key in ("anyOf", "oneOf", "allOf") if schema.get(key)), None)


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    found: object = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


@lru_cache(maxsize=1024)
def vector(text: str, dimensions: int) -> array[float]:
    """Return the embedding of a text: 32-bit floats of length 1, always the same for the same text."""
    draw = random.Random(text)  # noqa: S311 - repeatable test data, no secrets
    raw = [draw.random() - 0.5 for _ in range(dimensions)]
    length = math.sqrt(sum(x * x for x in raw)) or 1.0
    return array("f", [x / length for x in raw])
