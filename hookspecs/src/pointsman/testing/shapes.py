"""The JSON of requests, pieces and answers in the shapes of the APIs, and the text in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..host.transforms import is_file
from ..types import FIXED_FIELDS, Endpoint

#: What the gateway has translated already: settings, without content.
_TRANSLATED: Final = frozenset({"generationConfig"})


def sent_body(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """Return what the gateway sends of a client's body, without model and stream; files go beside it."""
    gone = FIXED_FIELDS | _TRANSLATED if endpoint is Endpoint.GENERATE_CONTENT else FIXED_FIELDS
    return {name: value for name, value in body.items() if name not in gone and not is_file(value)}


def stream_piece(endpoint: Endpoint, model: str, text: str) -> dict[str, Any]:
    """Return one piece of a stream with this text."""
    match endpoint:
        case Endpoint.MESSAGES:
            return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        case Endpoint.RESPONSES:
            return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text}
        case Endpoint.COMPLETIONS:
            choices = [{"index": 0, "text": text, "finish_reason": None}]
            return {"object": "text_completion", "model": model, "choices": choices}
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {"object": "chat.completion.chunk", "model": model, "choices": choices}


def text_of(body: Mapping[str, Any]) -> str:
    """Return the visible text of an answer or of a piece, in any of the shapes; empty without one."""
    parts: list[object] = []
    for choice in _list(body.get("choices")):
        parts += [
            choice.get("text"),
            _map(choice.get("message")).get("content"),
            _map(choice.get("delta")).get("content"),
        ]
    delta = body.get("delta")
    parts += [delta if isinstance(delta, str) else _map(delta).get("text")]
    parts += [block.get("text") for block in _list(body.get("content"))]
    parts += [part.get("text") for item in _list(body.get("output")) for part in _list(item.get("content"))]
    return "".join(part for part in parts if isinstance(part, str))


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
