"""What is read from the pieces of a stream: content, usage, model, finish reason, answer, failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.litellm import stream
from pointsman.litellm.stream import StreamReader
from pointsman.types import ToolCall, Usage


def chat(
    delta: Mapping[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **fields: Any
) -> SimpleNamespace:
    """Return one chunk of a chat stream with one choice."""
    choice = SimpleNamespace(index=index, finish_reason=finish, delta=SimpleNamespace(**(delta or {})))
    return SimpleNamespace(choices=[choice], **fields)


def function(name: str | None, arguments: str | None, index: Any = 0) -> SimpleNamespace:
    return SimpleNamespace(index=index, function=SimpleNamespace(name=name, arguments=arguments))


def counts(usage: Usage | None) -> Usage | None:
    """Return the usage without the provider's own words."""
    return None if usage is None else replace(usage, model=None, raw=None)


def sse(*events: Mapping[str, Any]) -> bytes:
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)


def read(*pieces: Any) -> StreamReader:
    reader = StreamReader()
    for piece in pieces:
        reader.read(piece)
    return reader


def block_delta(index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


# -- chat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "text", "hidden"),
    [
        ({"content": "Hi"}, ["Hi"], []),
        ({"content": None, "refusal": "No."}, ["No."], []),
        ({"reasoning_content": "Hm"}, [], ["Hm"]),
        ({"tool_calls": [function("weigh", "{")]}, [], ["weigh", "{"]),
        ({"function_call": SimpleNamespace(name="weigh", arguments="{}")}, [], ["weigh", "{}"]),
    ],
    ids=["content", "refusal", "reasoning", "tools", "function"],
)
def test_content_of_a_chat_stream(delta: Mapping[str, Any], text: list[str], hidden: list[str]) -> None:
    reader = StreamReader()
    assert reader.read(chat(delta)) is True
    assert (reader.text, reader.hidden) == (text, hidden)


@pytest.mark.parametrize("delta", [{}, {"content": ""}, {"role": "assistant"}, {"tool_calls": []}])
def test_a_chat_chunk_without_content(delta: Mapping[str, Any]) -> None:
    """The first chunk has the role only, the last one usage only: neither is the first token."""
    reader = StreamReader()
    assert reader.read(chat(delta)) is False
    assert reader.read(SimpleNamespace(choices=[])) is False
    assert (reader.text, reader.hidden) == ([], [])


def test_the_answer_of_a_chat_stream_is_the_first_choices() -> None:
    """Other choices are billed, too: they are generated but not the answer."""
    reader = read(
        chat({"content": "A"}),
        chat({"content": "B"}, index=1, finish="length"),
        chat({"tool_calls": [function("other", "{}")]}, index=1),
        chat({"content": "C"}, finish="stop"),
        chat({}),
    )
    answer = reader.answer()
    assert answer is not None
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("AC", "stop", ())
    assert reader.generated == "ACBother{}"


def test_tool_calls_of_a_chat_stream_are_put_together_by_their_index() -> None:
    reader = read(
        chat({"tool_calls": [function("weigh", '{"a"'), function("ask", "", 1)]}),
        chat({"tool_calls": [function(None, ":1}"), function(None, "{}", 1), function(None, "lost", 2)]}),
        chat({}, finish="tool_calls"),
    )
    answer = reader.answer()
    assert answer is not None
    assert answer.tool_calls == (ToolCall(name="weigh", arguments='{"a":1}'), ToolCall(name="ask", arguments="{}"))
    assert reader.hidden == ["weigh", '{"a"', "ask", ":1}", "{}", "lost"]


def test_usage_of_a_chat_stream_stands_on_the_chunk_or_is_hidden_on_it() -> None:
    """LiteLLM takes usage off the chunk where the client has not asked for it, and puts zeros on earlier ones."""
    counted = {"prompt_tokens": 3, "completion_tokens": 4}
    zeros = {"prompt_tokens": 0, "completion_tokens": 0}
    assert read(chat(usage=counted)).usage == Usage(prompt_tokens=3, completion_tokens=4)
    hidden = chat(usage=None, _hidden_params={"usage": counted})
    assert read(hidden).usage == Usage(prompt_tokens=3, completion_tokens=4)
    assert read(hidden, chat(usage=zeros)).usage == Usage(prompt_tokens=3, completion_tokens=4)
    assert read(chat(usage=zeros)).usage is None


def test_the_model_of_a_chat_stream_is_the_first_one_named() -> None:
    assert read(chat(), chat(model="gpt-a"), chat(model="gpt-b")).model == "gpt-a"


# -- responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "hidden"),
    [
        ("response.output_text.delta", ["x"], []),
        ("response.refusal.delta", ["x"], []),
        ("response.reasoning_summary_text.delta", [], ["x"]),
        ("response.function_call_arguments.delta", [], ["x"]),
    ],
)
def test_content_of_a_responses_stream(kind: str, text: list[str], hidden: list[str]) -> None:
    reader = StreamReader()
    assert reader.read({"type": kind, "delta": "x"}) is True
    assert reader.read(SimpleNamespace(type=SimpleNamespace(value=kind), delta={"no": "text"})) is True
    assert (reader.text, reader.hidden) == (text, hidden)
    assert reader.read({"type": "response.created", "delta": "x"}) is False


@pytest.mark.parametrize(
    ("kind", "failed"),
    [("response.completed", None), ("response.incomplete", None), ("response.failed", "response.failed")],
)
def test_the_last_event_of_a_responses_stream_has_the_answer(kind: str, failed: str | None) -> None:
    response = {
        "object": "response",
        "model": "gpt-a",
        "status": "completed",
        "usage": {"input_tokens": 5, "output_tokens": 6},
        "output": [{"type": "message", "content": [{"text": "Whole"}]}],
    }
    reader = read({"type": "response.output_text.delta", "delta": "Who"}, {"type": kind, "response": response})
    assert (reader.usage, reader.model, reader.failed) == (
        Usage(prompt_tokens=5, completion_tokens=6),
        "gpt-a",
        failed,
    )
    answer = reader.answer()
    assert answer is not None
    assert (answer.text, answer.finish_reason) == ("Whole", "stop")
    assert reader.read({"type": kind, "response": None}) is False
    assert (reader.usage, reader.model) == (Usage(prompt_tokens=5, completion_tokens=6), "gpt-a")


def test_events_within_a_responses_stream_have_no_answer_and_an_error_is_a_failure() -> None:
    started = {"type": "response.in_progress", "response": {"model": "m", "usage": {"input_tokens": 1}}}
    reader = read(started, {"type": "response.output_text.delta", "delta": "Who"})
    assert (reader.usage, reader.model, reader.failed) == (None, None, None)
    answer = reader.answer()
    assert answer is not None
    assert answer.text == "Who"
    assert read({"type": "error"}).failed == "error"


# -- messages ---------------------------------------------------------------------------------------------------------


def test_the_answer_of_a_messages_stream() -> None:
    """Text is visible; thinking and the input of tools are generated and billed, too."""
    reader = StreamReader()
    use = {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "name": "weigh"}}
    started = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "name": "no tool"}}
    assert reader.read(sse({"type": "message_start", "message": {"model": "claude"}}, started)) is False
    assert reader.read(sse(block_delta(thinking="Hm"), block_delta(thinking=""))) is True
    assert reader.read(sse(block_delta(1, text="Hi"), block_delta(1, text=""))) is True
    assert reader.read(sse(use)) is False
    assert reader.read(sse(block_delta(2, partial_json='{"a"'), block_delta(2, partial_json=":1}"))) is True
    assert reader.read(sse({"type": "message_delta", "delta": {"stop_reason": "tool_use"}})) is False
    assert reader.read(sse({"type": "message_delta", "delta": {}})) is False
    assert (reader.text, reader.hidden) == (["Hi"], ["Hm", "weigh", '{"a"', ":1}"])
    assert reader.generated == 'HiHmweigh{"a":1}'
    answer = reader.answer()
    assert answer is not None
    assert (answer.text, answer.finish_reason) == ("Hi", "tool_calls")
    assert answer.tool_calls == (ToolCall(name="weigh", arguments='{"a":1}'),)


def test_usage_of_a_messages_stream_is_put_together_from_its_start_and_its_end() -> None:
    """The end repeats the input's counts or leaves them out; null is no count."""
    usage = {"input_tokens": 25, "output_tokens": 1, "cache_read_input_tokens": 100}
    start = {"type": "message_start", "message": {"model": "claude", "usage": usage}}
    reader = read(sse(start))
    started = Usage(prompt_tokens=125, completion_tokens=1, cached_tokens=100)
    assert (reader.usage, counts(reader.partial_usage())) == (None, started)
    reader.read(sse({"type": "message_delta", "usage": {"output_tokens": 15, "cache_read_input_tokens": None}}))
    assert counts(reader.usage) == Usage(prompt_tokens=125, completion_tokens=15, cached_tokens=100)
    reader.read(sse({"type": "message_delta", "usage": {"input_tokens": 30}}))
    assert counts(reader.usage) == Usage(prompt_tokens=130, completion_tokens=15, cached_tokens=100)
    assert reader.model == "claude"
    assert StreamReader().partial_usage() is None


def test_a_messages_stream_that_reports_an_error_has_failed() -> None:
    assert read(sse({"type": "ping"})).failed is None
    assert read(sse({"type": "error", "error": {"type": "overloaded_error"}})).failed == "error"


def test_only_the_data_lines_of_an_event_stream_are_read() -> None:
    delta = json.dumps(block_delta(text="Hi"))
    reader = StreamReader()
    assert reader.read(f": {delta}\nid: {delta}\n") is False
    assert reader.read(f"data:{delta}\n") is True
    assert reader.text == ["Hi"]


def test_a_line_that_is_not_json_is_left_out() -> None:
    event = sse(block_delta(text="Hi"))
    assert read(event + b"data: {\n" + event + b"data: [1]\n").text == ["Hi", "Hi"]


def test_a_line_may_come_in_any_number_of_pieces() -> None:
    """It is put together once, at its end."""
    reader = StreamReader()
    whole = sse(block_delta(text="x" * 1_000))
    assert [reader.read(whole[n : n + 1]) for n in range(len(whole))].count(True) == 1
    assert reader.text == ["x" * 1_000]


def test_a_line_that_is_too_long_is_left_out_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    event = sse(block_delta(text="x"))
    longest = max(map(len, event.split(b"\n")))
    monkeypatch.setattr(stream, "_LONGEST_LINE", longest)
    reader = StreamReader()
    for _ in range(100):
        reader.read(b"y" * longest)
    assert sum(map(len, reader._line)) <= longest
    assert reader.read(b"\n" + event) is True
    assert reader.text == ["x"]
    assert reader.read(sse(block_delta(text="xy"))) is False
    assert reader.text == ["x"]
