"""Answers in the shapes of the APIs, whole and in pieces. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman.types import Endpoint

Json = Mapping[str, Any]


def body(endpoint: Endpoint, answer_id: str, model: str, text: str, now: int) -> Json:
    """Return a whole answer; it has used nothing.

    Args:
        endpoint: Whose shape.
        answer_id: Its id.
        model: The model's name in it.
        text: What it says.
        now: Unix seconds.
    """
    match endpoint:
        case Endpoint.MESSAGES:
            return {
                **_message(answer_id, model),
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
            }
        case Endpoint.RESPONSES:
            return {**_response(answer_id, model, now), "status": "completed", "output": [_item(answer_id, text)]}
        case Endpoint.COMPLETIONS:
            choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
            return {**_head(answer_id, "text_completion", model, now), "choices": [choice], "usage": _NO_TOKENS}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**_head(answer_id, "chat.completion", model, now), "choices": [choice], "usage": _NO_TOKENS}


def pieces(endpoint: Endpoint, answer_id: str, model: str, text: str, now: int) -> tuple[Json, ...]:
    """Return the pieces of the same answer as a stream; the arguments are those of ``body``."""
    match endpoint:
        case Endpoint.MESSAGES:
            return (
                {"type": "message_start", "message": _message(answer_id, model)},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
                {"type": "content_block_stop", "index": 0},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 0},
                },
                {"type": "message_stop"},
            )
        case Endpoint.RESPONSES:
            return _events(answer_id, model, text, now)
        case Endpoint.COMPLETIONS:
            head = _head(answer_id, "text_completion", model, now)
            return (
                {**head, "choices": [{"index": 0, "text": text, "finish_reason": None}]},
                {**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
            )
    head = _head(answer_id, "chat.completion.chunk", model, now)
    delta = {"role": "assistant", "content": text}
    return (
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    )


_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _head(answer_id: str, kind: str, model: str, now: int) -> dict[str, Any]:
    return {"id": answer_id, "object": kind, "created": now, "model": model}


def _message(answer_id: str, model: str) -> dict[str, Any]:
    return {
        "id": answer_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _response(answer_id: str, model: str, now: int) -> dict[str, Any]:
    return {
        "id": answer_id,
        "object": "response",
        "created_at": now,
        "model": model,
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }


def _item(answer_id: str, text: str | None) -> dict[str, Any]:
    """Return the one message of a response; None: it has only begun."""
    return {
        "id": f"msg-{answer_id}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress" if text is None else "completed",
        "content": [] if text is None else [{"type": "output_text", "text": text, "annotations": []}],
    }


def _events(answer_id: str, model: str, text: str, now: int) -> tuple[Json, ...]:
    response, item = _response(answer_id, model, now), _item(answer_id, text)
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": _item(answer_id, None)},
        {"type": "response.content_part.added", **place, "part": part},
        {"type": "response.output_text.delta", **place, "delta": text},
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.content_part.done", **place, "part": {**part, "text": text}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**response, "status": "completed", "output": [item]}},
    ]
    return tuple({**event, "sequence_number": number} for number, event in enumerate(events))
