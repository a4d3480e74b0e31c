from __future__ import annotations

import anthropic
import pytest

from pointsman.testing.provider import Behaviour, count_tokens, filler

HELLO = [{"role": "user", "content": "Hello there"}]
TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_plain_answer_has_text_usage_and_request_id(claude):
    answer = claude.messages.create(model="claude-a", max_tokens=100, system="Be kind", messages=HELLO)
    assert answer.content[0].text == filler(16)
    assert (answer.model, answer.stop_reason) == ("claude-a", "end_turn")
    assert answer.usage.input_tokens == count_tokens("Hello there") + count_tokens("Be kind")
    assert answer.usage.output_tokens == 16
    assert answer._request_id.startswith("req_")


def test_cached_tokens_are_apart_from_input_tokens(claude, upstream):
    upstream.behave("claude-a", Behaviour(cached_prompt_tokens=2, reasoning_tokens=5))
    usage = claude.messages.create(model="claude-a", max_tokens=100, messages=HELLO).usage
    assert usage.cache_read_input_tokens == 2
    assert usage.input_tokens == count_tokens("Hello there") - 2
    assert usage.output_tokens == 21


def test_stream_has_the_providers_sequence_of_events(http):
    body = {"model": "claude-a", "max_tokens": 3, "messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/messages", json=body) as answer:
        names = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert names == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_streamed_message_is_the_plain_one_with_input_usage_first_and_output_usage_last(claude):
    with claude.messages.stream(model="claude-a", max_tokens=3, messages=HELLO) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert final.content[0].text == filler(3)
    assert final.stop_reason == "max_tokens"
    assert events[0].message.usage.input_tokens == count_tokens("Hello there")
    assert final.usage.output_tokens == 3


def test_tool_use_plain_and_streamed(claude):
    request = {
        "model": "claude-a",
        "max_tokens": 100,
        "messages": HELLO,
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    answer = claude.messages.create(**request)
    assert answer.stop_reason == "tool_use"
    assert (answer.content[0].name, answer.content[0].input) == ("weather", {"city": "text"})
    with claude.messages.stream(**request) as stream:
        final = stream.get_final_message()
    assert (final.content[0].name, final.content[0].input) == ("weather", {"city": "text"})
    assert final.usage == answer.usage


def test_free_choice_is_text_after_a_tools_result(claude, upstream):
    upstream.behave("claude-a", Behaviour(call_tools=1))
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42"}
    after = [*HELLO, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    kinds = [
        claude.messages.create(model="claude-a", max_tokens=100, messages=messages, tools=[TOOL]).content[0].type
        for messages in (HELLO, after)
    ]
    assert kinds == ["tool_use", "text"]


def test_missing_maximum_is_refused_as_anthropic_does(http):
    answer = http.post("/v1/messages", json={"model": "claude-a", "messages": HELLO})
    assert answer.status_code == 400
    assert answer.json()["error"] == {"type": "invalid_request_error", "message": "max_tokens: Field required"}
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_error_event_raises_the_providers_error_in_the_sdk(claude, upstream):
    upstream.behave("claude-a", Behaviour(fault="error_event", fault_after_events=5))
    seen = []
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded_error"),
        claude.messages.stream(model="claude-a", max_tokens=50, messages=HELLO) as stream,
    ):
        seen.extend(stream.text_stream)
    assert "".join(seen) == filler(2)
