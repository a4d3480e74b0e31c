from __future__ import annotations

import json

from pointsman.testing.provider import Behaviour, count_tokens, filler

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_plain_answer_has_text_and_usage(oai, upstream):
    upstream.behave("gpt-r", Behaviour(cached_prompt_tokens=1))
    answer = oai.responses.create(model="gpt-r", input="Hello there", instructions="Be kind")
    assert answer.output_text == filler(16)
    assert answer.status == "completed"
    assert answer.instructions == "Be kind"
    assert answer.usage.input_tokens == count_tokens("Hello there") + count_tokens("Be kind")
    assert (answer.usage.input_tokens_details.cached_tokens, answer.usage.output_tokens) == (1, 16)


def test_stream_has_the_whole_sequence_of_events_numbered_without_a_gap(oai):
    events = list(oai.responses.create(model="gpt-r", input="Hello", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 16,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("delta")) == filler(16)
    assert events[-1].response.output_text == filler(16)
    assert events[-1].response.usage.output_tokens == 16
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {events[2].item.id}


def test_sdk_stream_helper_accepts_the_stream(oai):
    with oai.responses.stream(model="gpt-r", input="Hello") as stream:
        assert stream.get_final_response().output_text == filler(16)


def test_reasoning_is_an_item_before_the_text(oai, upstream):
    upstream.behave("gpt-r", Behaviour(reasoning_tokens=40))
    events = list(oai.responses.create(model="gpt-r", input="Hello", stream=True))
    final = events[-1].response
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert {event.output_index for event in events if event.type == "response.output_text.delta"} == {1}
    assert (final.usage.output_tokens, final.usage.output_tokens_details.reasoning_tokens) == (56, 40)


def test_tool_call_plain_and_streamed(oai):
    request = {"model": "gpt-r", "input": "Hello", "tools": [TOOL], "tool_choice": "required"}
    (call,) = oai.responses.create(**request).output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "text"})
    events = list(oai.responses.create(**request, stream=True))
    assert "".join(event.delta for event in events if event.type.endswith("arguments.delta")) == call.arguments
    kinds = [event.type for event in events if not event.type.endswith("delta")]
    assert kinds[2:] == [
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output[0].arguments == call.arguments


def test_free_choice_is_text_after_a_tools_result(oai, upstream):
    upstream.behave("gpt-r", Behaviour(call_tools=1))
    question = [{"role": "user", "content": "Hello"}]
    result = [{"type": "function_call_output", "call_id": "c", "output": "42"}]
    first = oai.responses.create(model="gpt-r", input=question, tools=[TOOL])
    assert first.output[0].type == "function_call"
    assert oai.responses.create(model="gpt-r", input=question + result, tools=[TOOL]).output_text == filler(16)


def test_maximum_makes_it_incomplete(oai):
    answer = oai.responses.create(model="gpt-r", input="Hello", max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output_text == filler(4)
    events = list(oai.responses.create(model="gpt-r", input="Hello", max_output_tokens=4, stream=True))
    assert events[-1].type == "response.incomplete"


def test_json_mode_echoes_the_input(oai):
    answer = oai.responses.create(model="gpt-r", input="Hello", text={"format": {"type": "json_object"}})
    assert json.loads(answer.output_text) == {"echo": "Hello"}
