"""The text in what providers answer, whole and in pieces."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": "a"}}], "usage": {"text": "no"}}, "a"),
        ({"choices": [{"message": {"content": "a", "reasoning_content": "b"}}]}, "ab"),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}, "{}"),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, "a"),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, "{"),
        ({"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f", "input": {}}}, ""),
        ({"type": "response.output_text.delta", "delta": "a"}, "a"),
        ({"type": "response.output_text.done", "text": "a"}, ""),
        ({"type": "response.completed", "response": {"output": [{"content": [{"text": "a"}]}]}}, ""),
        ({"candidates": [{"content": {"parts": [{"text": "a"}, {"functionCall": {"args": {"b": 1}}}]}}]}, 'a{"b": 1}'),
        ({"type": "content-delta", "delta": {"message": {"content": {"text": "a"}}}}, "a"),
        ({"message": {"role": "assistant", "content": "a"}, "done": False}, "a"),
        ({"contentBlockIndex": 0, "delta": {"text": "a"}}, "a"),
        ({"results": [{"document": {"relevance": 1}}], "documents": [{"text": "no"}], "error": {"text": "no"}}, ""),
        ({"text": ["a", {"text": {"text": 1}}], "delta": None}, ""),
    ],
)
def test_what_a_model_has_written_is_found_once(message: dict[str, object], found: str) -> None:
    texts = pytest.importorskip("pointsman.litellm.raw_texts").texts
    assert "".join(texts(message)) == found


def test_what_is_nested_too_deeply_is_left_out() -> None:
    texts = pytest.importorskip("pointsman.litellm.raw_texts").texts
    message: dict[str, object] = {"text": "deep"}
    for _ in range(2000):
        message = {"content": [message]}
    assert list(texts(message)) == []


@pytest.mark.parametrize(
    ("content_type", "pieces", "broken"),
    [
        ("text/event-stream", [b'data: {"a": 1}\n\n', b'data: {"error": {"code": 529}}'], True),
        ("text/event-stream", [b'data: {"error": null}'], False),
        ("application/json", [b'[{"a": 1},', b' {"error": {"code": 503}}]'], True),
        ("application/json", [b'[{"a": 1},'], False),
    ],
)
def test_an_error_in_what_has_come_without_the_end_of_its_line_breaks_a_stream(
    content_type: str, pieces: list[bytes], broken: bool
) -> None:
    raw_answers = pytest.importorskip("pointsman.litellm.raw_answers")
    listener = raw_answers.Listener(content_type, keeps_text=True)
    for piece in pieces:
        listener.hear(piece)
    assert raw_answers.is_broken([listener]) is broken
