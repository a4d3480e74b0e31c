"""The wire formats of OpenAI's embeddings and of both providers' lists of models.

Source: the providers' API references, and recorded answers.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from .samples import vector
from .tokens import count_tokens
from .wire import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable

_EPOCH = "2025-01-01T00:00:00Z"


def inputs(body: dict[str, Any]) -> list[str]:
    """Return the texts to embed; token lists are written as text."""
    given = body.get("input")
    if isinstance(given, list) and not all(isinstance(item, int) for item in given):
        return [item if isinstance(item, str) else json.dumps(item) for item in given]
    return [given if isinstance(given, str) else json.dumps(given)]


def count_inputs(body: dict[str, Any]) -> int:
    """Return the tokens of the texts; a token list has as many as it is long."""
    given = body.get("input")
    items = given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    return sum(count_tokens(item) if isinstance(item, str) else len(item or ()) for item in items)


def embeddings(model: str, body: dict[str, Any], default_dimensions: int) -> bytes:
    """Return the body of an answer; vectors as base64 of little-endian 32-bit floats where the request says so."""
    wanted = body.get("dimensions")
    dimensions = wanted if isinstance(wanted, int) else default_dimensions
    packed = body.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(inputs(body)):
        values = vector(text, dimensions)
        shown = base64.b64encode(values.tobytes()).decode() if packed else values.tolist()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = count_inputs(body)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return dumps({"object": "list", "data": data, "model": model, "usage": usage})


def openai_models(names: Iterable[str]) -> dict[str, Any]:
    """Return OpenAI's list of models."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 1735689600, "owned_by": "system"} for name in names],
    }


def anthropic_models(names: Iterable[str]) -> dict[str, Any]:
    """Return Anthropic's list of models."""
    data = [{"type": "model", "id": name, "display_name": name, "created_at": _EPOCH} for name in names]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
