"""The wire format of OpenAI's chat completions, also as Azure deployments serve it.

Source: OpenAI's API reference, and recorded answers of OpenAI and Azure.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from .failures import SERVER_ERROR
from .tokens import encoded_tokens
from .wire import DONE, SLOT, Stream, Turn, data_event, dumps, fill, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .content import Content

    Chunk = Callable[[dict[str, Any]], bytes]

_FINISH = {"stop": "stop", "length": "length", "tools": "tool_calls"}
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_SAFE = [
    {"prompt_index": 0, "content_filter_results": {**_SAFE, "jailbreak": {"filtered": False, "detected": False}}}
]


def plain(turn: Turn) -> bytes:
    """Return the body of a plain answer."""
    content = turn.content
    message: dict[str, Any] = {"role": "assistant", "content": content.text, "refusal": None, "annotations": []}
    if content.tool_calls:
        calls = [_call(call.name, call.arguments) for call in content.tool_calls]
        message |= {"content": None, "tool_calls": calls}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _FINISH[content.finish],
    }
    answer = {**_base(turn, "chat.completion"), "choices": [choice], "usage": usage(content)}
    if turn.dialect == "azure":
        choice["content_filter_results"] = _SAFE
        answer["prompt_filter_results"] = _PROMPT_SAFE
    return dumps(answer)


def stream(turn: Turn) -> Stream:
    """Return a streamed answer: an empty role chunk, a chunk per token, the finish, usage when asked for, ``[DONE]``."""
    content, azure = turn.content, turn.dialect == "azure"
    options = turn.body.get("stream_options")
    with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    base = _base(turn, "chat.completion.chunk") | ({"usage": None} if with_usage else {})

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if azure:
            choice["content_filter_results"] = {}
        return data_event({**base, "choices": [choice]})

    role = {"role": "assistant", "content": None if content.tool_calls else "", "refusal": None}
    opening = [chunk(role)] if turn.empty_role_chunk else []
    if azure:
        nameless = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        opening.insert(0, data_event({**nameless, "prompt_filter_results": _PROMPT_SAFE}))
    closing = [chunk({}, _FINISH[content.finish])]
    if with_usage:
        closing.append(data_event({**base, "choices": [], "usage": usage(content)}))
    return Stream(
        opening=opening,
        tokens=_tokens(content, chunk, {} if turn.empty_role_chunk else role),
        closing=[*closing, DONE],
        failure=lambda: [data_event({"error": SERVER_ERROR})],
    )


def usage(content: Content) -> dict[str, Any]:
    """Return the usage object."""
    return {
        "prompt_tokens": content.prompt_tokens,
        "completion_tokens": content.output_tokens,
        "total_tokens": content.prompt_tokens + content.output_tokens,
        "prompt_tokens_details": {"cached_tokens": content.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": content.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _base(turn: Turn, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": turn.created_at,
        "model": turn.content.model,
        "service_tier": "default",
        "system_fingerprint": "fp_bundled",
    }


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": new_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _tokens(content: Content, chunk: Chunk, first: dict[str, Any]) -> Iterator[bytes]:
    """Return the chunks that carry the answer; ``first`` is merged into the first one."""
    if not content.tool_calls:
        pieces = encoded_tokens(content.text)
        lead = fill(chunk({**first, "content": SLOT}), pieces[:1])
        return chain(lead, fill(chunk({"content": SLOT}), pieces[1:]))
    parts: list[Iterator[bytes]] = []
    for index, call in enumerate(content.tool_calls):
        head = {"tool_calls": [{"index": index, **_call(call.name, "")}]}
        more = {"tool_calls": [{"index": index, "function": {"arguments": SLOT}}]}
        parts += [
            iter([chunk(head if index else {**first, **head})]),
            fill(chunk(more), encoded_tokens(call.arguments)),
        ]
    return chain.from_iterable(parts)
