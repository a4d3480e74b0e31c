"""The wire format of Anthropic's messages.

Source: Anthropic's API reference, and recorded answers.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from .failures import OVERLOADED
from .tokens import encoded_tokens
from .wire import SLOT, Stream, Turn, dumps, fill, named_event, new_id

if TYPE_CHECKING:
    from .content import Content, ToolCall

_STOP = {"stop": "end_turn", "length": "max_tokens", "tools": "tool_use"}


def plain(turn: Turn) -> bytes:
    """Return the body of a plain answer."""
    content = turn.content
    blocks: list[dict[str, Any]] = [{**_tool(call), "input": json.loads(call.arguments)} for call in content.tool_calls]
    return dumps(
        {
            **_message(content),
            "content": blocks or [{"type": "text", "text": content.text}],
            "stop_reason": _STOP[content.finish],
            "usage": usage(content),
        }
    )


def stream(turn: Turn) -> Stream:
    """Return a streamed answer: start with input usage, content blocks with a ping, delta with output usage, stop."""
    content = turn.content
    started = {**_message(content), "content": [], "usage": {**usage(content), "output_tokens": 1}}
    opening = [named_event({"type": "message_start", "message": started})]
    ping = named_event({"type": "ping"})
    if content.tool_calls:
        opening.append(ping)
        tokens = chain.from_iterable(_block(i, _tool(call), call) for i, call in enumerate(content.tool_calls))
        closing = []
    else:
        opening += [_block_start(0, {"type": "text", "text": ""}), ping]
        delta = {"type": "text_delta", "text": SLOT}
        tokens = chain(fill(_block_delta(0, delta), encoded_tokens(content.text)))
        closing = [_block_stop(0)]
    stop = {"stop_reason": _STOP[content.finish], "stop_sequence": None}
    closing += [
        named_event({"type": "message_delta", "delta": stop, "usage": usage(content)}),
        named_event({"type": "message_stop"}),
    ]
    return Stream(
        opening=opening,
        tokens=tokens,
        closing=closing,
        failure=lambda: [named_event({"type": "error", "error": OVERLOADED})],
    )


def usage(content: Content) -> dict[str, Any]:
    """Return the usage object; cached tokens are not among ``input_tokens``."""
    return {
        "input_tokens": content.prompt_tokens - content.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": content.cached_tokens,
        "output_tokens": content.output_tokens,
    }


def _message(content: Content) -> dict[str, Any]:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": content.model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _tool(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": {}}


def _block(index: int, block: dict[str, Any], call: ToolCall) -> chain[bytes]:
    delta = {"type": "input_json_delta", "partial_json": SLOT}
    pieces = fill(_block_delta(index, delta), encoded_tokens(call.arguments))
    return chain([_block_start(index, block)], pieces, [_block_stop(index)])


def _block_start(index: int, block: dict[str, Any]) -> bytes:
    return named_event({"type": "content_block_start", "index": index, "content_block": block})


def _block_delta(index: int, delta: dict[str, Any]) -> bytes:
    return named_event({"type": "content_block_delta", "index": index, "delta": delta})


def _block_stop(index: int) -> bytes:
    return named_event({"type": "content_block_stop", "index": index})
