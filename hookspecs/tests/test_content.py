"""Which answers have content, whole and as streams, in every format that is read."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.litellm.content import is_empty
from pointsman.litellm.stream import StreamReader
from pointsman.types import Endpoint

CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def chat(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return {"object": "chat.completion", "choices": [choice]}


def messages(*blocks: dict[str, Any], stop: str = "end_turn") -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": list(blocks), "stop_reason": stop}


def responses(*items: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"object": "response", "status": status, "output": list(items), "error": None, **more}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def embeddings(*vectors: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"embedding": v} for v in vectors], "usage": {"prompt_tokens": 1}}


EMPTY = {
    "text": chat(content=""),
    "white space": chat(content=" \n"),
    "null": chat(content=None),
    "no field": chat(),
    "no message": {"object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop"}]},
    "no choices": {"object": "chat.completion", "choices": []},
    "null choices": {"object": "chat.completion", "choices": None},
    "no tool calls": chat(content=None, tool_calls=[]),
    "completion": {"object": "text_completion", "choices": [{"text": "", "finish_reason": "stop"}]},
    "no blocks": messages(),
    "null blocks": {"type": "message", "content": None, "stop_reason": "end_turn"},
    "empty block": messages({"type": "text", "text": ""}),
    "empty thought": messages({"type": "thinking", "thinking": ""}),
    "no items": responses(),
    "item without parts": responses({"type": "message", "content": []}),
    "item with an empty part": responses(said("")),
    "reasoning without text": responses({"type": "reasoning", "summary": []}),
    "truncated before anything": responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    "failed response": responses(status="failed", error={"code": "server_error", "message": "no"}),
    "cancelled response": responses(status="cancelled"),
    "thought without text": chat(content="", thinking_blocks=[{"type": "thinking", "thinking": "", "signature": ""}]),
    "error of a messages API": {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
    "null vectors": {"object": "list", "data": None, "usage": {"prompt_tokens": 1}},
    "no vectors": embeddings(),
    "empty vectors": embeddings([]),
}
FULL = {
    "text": chat(content="yes"),
    "parts": chat(content=[{"type": "text", "text": "yes"}]),
    "second choice": {"choices": [chat()["choices"][0], chat(content="yes")["choices"][0]]},
    "tool call": chat("tool_calls", content=None, tool_calls=[CALL]),
    "function call": chat("function_call", content=None, function_call={"name": "weather"}),
    "refusal": chat(content=None, refusal="No."),
    "filtered": chat("content_filter", content=""),
    "reasoning": chat("length", content="", reasoning_content="Hm."),
    "hidden thought": chat(
        "length", content="", thinking_blocks=[{"type": "thinking", "thinking": "", "signature": "s"}]
    ),
    "failed after its beginning": responses(said("yes"), status="failed"),
    "hidden reasoning": {**chat("length", content=""), "usage": {"completion_tokens_details": {"reasoning_tokens": 9}}},
    "audio": chat(content=None, audio={"data": "UklGRg=="}),
    "image": chat(content="", images=[{"image_url": {"url": "data:"}}]),
    "completion": {"object": "text_completion", "choices": [{"text": "yes"}]},
    "block": messages({"type": "text", "text": "yes"}),
    "tool block": messages({"type": "tool_use", "name": "weather", "input": {}}, stop="tool_use"),
    "server tool": messages({"type": "server_tool_use", "name": "web_search", "input": {}}, stop="pause_turn"),
    "redacted": messages({"type": "redacted_thinking", "data": "x"}),
    "refused": messages(stop="refusal"),
    "item": responses(said("yes")),
    "refused item": responses({"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}),
    "function item": responses({"type": "function_call", "name": "weather", "arguments": "{}"}),
    "filtered response": responses(status="incomplete", incomplete_details={"reason": "content_filter"}),
    "background": responses(status="queued"),
    "vector": embeddings([0.1]),
    "base64 vector": embeddings("AAAA"),
    "not a generation": {"object": "list", "data": []},
    "unknown": {"pages": []},
    "nothing known": None,
}


@pytest.mark.parametrize("answer", EMPTY.values(), ids=EMPTY.keys())
def test_answers_without_content(answer: Any) -> None:
    assert is_empty(answer)
    assert is_empty(as_object(answer))


def test_an_object_without_a_field_is_no_answer() -> None:
    assert is_empty({})


@pytest.mark.parametrize("answer", FULL.values(), ids=FULL.keys())
def test_answers_with_content_or_of_unknown_kinds(answer: Any) -> None:
    assert not is_empty(answer)
    assert not is_empty(as_object(answer))


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


def chunk(finish: str | None = None, **delta: Any) -> Any:
    return SimpleNamespace(
        choices=[SimpleNamespace(index=0, finish_reason=finish, delta=as_object(delta))], model="m", usage=None
    )


def event(**data: Any) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def delta(**data: Any) -> bytes:
    return event(type="content_block_delta", index=0, delta=data)


def block(**data: Any) -> bytes:
    return event(type="content_block_start", index=0, content_block=data)


def stop(reason: str) -> bytes:
    return event(type="message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 1})


CHAT, MESSAGES, RESPONSES = Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES
STREAMS: dict[str, tuple[Endpoint, list[Any], bool]] = {
    "no chunk": (CHAT, [], True),
    "role and stop": (CHAT, [chunk(role="assistant", content=""), chunk("stop")], True),
    "white space": (CHAT, [chunk(content=" "), chunk(content="\n"), chunk("stop")], True),
    "no choices": (CHAT, [SimpleNamespace(choices=[], usage=None)], True),
    "text": (CHAT, [chunk(content="yes"), chunk("stop")], False),
    "filtered": (CHAT, [chunk(role="assistant"), chunk("content_filter")], False),
    "tool call": (CHAT, [chunk(tool_calls=[{"index": 0, **CALL}]), chunk("tool_calls")], False),
    "reasoning": (CHAT, [chunk(reasoning_content="Hm."), chunk("length")], False),
    "audio": (CHAT, [chunk(audio={"data": "UklGRg=="}), chunk("stop")], False),
    "no event": (MESSAGES, [], True),
    "empty message": (MESSAGES, [event(type="message_start", message={}), stop("end_turn")], True),
    "empty block": (MESSAGES, [block(type="text", text=""), delta(type="text_delta", text=""), stop("end_turn")], True),
    "block": (MESSAGES, [block(type="text", text=""), delta(type="text_delta", text="yes"), stop("end_turn")], False),
    "text at the start of its block": (MESSAGES, [block(type="text", text="yes"), stop("end_turn")], False),
    "hidden thought": (
        MESSAGES,
        [block(type="thinking", thinking="", signature=""), delta(type="signature_delta", signature="s")],
        False,
    ),
    "tool": (MESSAGES, [block(type="tool_use", name="weather", input={}), stop("tool_use")], False),
    "server tool": (MESSAGES, [block(type="web_search_tool_result", content=[]), stop("pause_turn")], False),
    "refused": (MESSAGES, [event(type="message_start", message={}), stop("refusal")], False),
    "only created": (RESPONSES, [{"type": "response.created", "response": {}}], True),
    "completed with nothing": (RESPONSES, [{"type": "response.completed", "response": responses()}], True),
    "empty delta": (RESPONSES, [{"type": "response.output_text.delta", "delta": ""}], True),
    "delta": (RESPONSES, [{"type": "response.output_text.delta", "delta": "yes"}], False),
    "completed": (RESPONSES, [{"type": "response.completed", "response": responses(said("yes"))}], False),
    "failed": (RESPONSES, [{"type": "response.failed", "response": responses(status="failed")}], False),
    "unknown": (Endpoint.OTHER, [], False),
}


@pytest.mark.parametrize(("endpoint", "pieces", "empty"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_without_content(endpoint: Endpoint, pieces: list[Any], empty: bool) -> None:
    reader = StreamReader()
    content = [reader.read(piece) for piece in pieces]
    assert reader.empty(endpoint) is empty
    assert not (empty and any(content))


def test_content_begins_with_the_first_piece_that_is_not_white_space() -> None:
    reader = StreamReader()
    assert [reader.read(chunk(content=text)) for text in ("\n", "Yes", " ", ".")] == [False, True, True, True]
    assert "".join(reader.text) == "\nYes ."
