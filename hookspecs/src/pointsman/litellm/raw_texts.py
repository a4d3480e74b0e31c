"""Finds the text in a provider's answer, or in a message of its stream, in whichever of the common formats. Pure and total."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_MOST_DEPTH: Final = 8
#: The fields that hold what a model has written.
_TEXTS: Final = frozenset(
    {"arguments", "content", "delta", "partial_json", "reasoning", "reasoning_content", "refusal", "text", "thinking"}
)
#: Those that hold the arguments of a call as an object.
_ARGUMENTS: Final = frozenset({"args", "input"})
#: What is not written by the model.
_NOT_GENERATED: Final = frozenset({"citations", "documents", "error", "groundingMetadata", "usage"})


def texts(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts in an answer, or in a message of a stream.

    Of OpenAI's responses each text comes in pieces and then again whole: the pieces count.
    """
    kind = message.get("type")
    if not isinstance(kind, str) or not kind.startswith("response.") or kind.endswith(".delta"):
        yield from _in(message, _MOST_DEPTH)


def _in(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        for item in value if depth else ():
            yield from _in(item, depth - 1)
    elif isinstance(value, Mapping):
        for name, inner in value.items() if depth else ():
            if isinstance(inner, str):
                if name in _TEXTS:
                    yield inner
            elif name in _ARGUMENTS and isinstance(inner, Mapping):
                if inner:
                    yield json.dumps(inner, default=str)
            elif name not in _NOT_GENERATED:
                yield from _in(inner, depth - 1)
