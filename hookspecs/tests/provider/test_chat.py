from __future__ import annotations

import json

import pydantic
import pytest

from pointsman.testing.provider import Behaviour, count_tokens, filler, split_tokens

HELLO = [{"role": "user", "content": "Hello there"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "news")
]


def test_plain_answer_has_text_usage_and_the_providers_headers(oai):
    raw = oai.chat.completions.with_raw_response.create(model="gpt-a", messages=HELLO)
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.model == "gpt-a"
    assert answer.choices[0].message.content == filler(16)
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (count_tokens("Hello there"), 16)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["openai-processing-ms"] == "0"
    assert raw.headers["content-type"] == "application/json"


def test_stream_is_role_then_a_chunk_per_token_then_finish(oai):
    chunks = list(oai.chat.completions.create(model="gpt-a", messages=HELLO, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == split_tokens(filler(16))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_usage_comes_last_and_only_when_asked_for(oai):
    stream = oai.chat.completions.create(
        model="gpt-a", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16


def test_stream_without_empty_role_chunk_has_text_in_its_first_chunk(oai, upstream):
    upstream.behave("gpt-a", Behaviour(empty_role_chunk=False))
    first, *_ = oai.chat.completions.create(model="gpt-a", messages=HELLO, stream=True)
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == "This"


def test_explicit_text_and_usage_details(oai, upstream):
    upstream.behave("gpt-a", Behaviour(text="Grüße, 世界!", cached_prompt_tokens=2, reasoning_tokens=30))
    answer = oai.chat.completions.create(model="gpt-a", messages=HELLO)
    assert answer.choices[0].message.content == "Grüße, 世界!"
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 30
    assert answer.usage.completion_tokens == 30 + count_tokens("Grüße, 世界!")
    streamed = oai.chat.completions.create(model="gpt-a", messages=HELLO, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Grüße, 世界!"


def test_cached_tokens_are_at_most_the_prompt(oai, upstream):
    upstream.behave("gpt-a", Behaviour(cached_prompt_tokens=1000))
    usage = oai.chat.completions.create(model="gpt-a", messages=HELLO).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_the_requests_maximum_cuts_the_answer(oai, key):
    answer = oai.chat.completions.create(model="gpt-a", messages=HELLO, **{key: 3})
    assert answer.choices[0].message.content == filler(3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_demanded_tool_is_called_with_arguments_that_fit(oai):
    choice = {"type": "function", "function": {"name": "news"}}
    answer = oai.chat.completions.create(model="gpt-a", messages=HELLO, tools=TOOLS, tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "news"
    assert json.loads(call.function.arguments) == {"city": "text"}


def test_streamed_tool_calls_join_to_the_plain_ones(oai, upstream):
    upstream.behave("gpt-a", Behaviour(call_tools=2))
    stream = oai.chat.completions.create(model="gpt-a", messages=HELLO, tools=TOOLS, stream=True)
    names, arguments, finish = {}, {}, None
    for chunk in stream:
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or ():
            names.setdefault(call.index, call.function.name)
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert names == {0: "weather", 1: "news"}
    assert [json.loads(arguments[i]) for i in (0, 1)] == [{"city": "text"}] * 2
    assert finish == "tool_calls"


def test_free_choice_calls_tools_only_when_told_to_and_never_after_a_result(oai, upstream):
    def finish(messages):
        return oai.chat.completions.create(model="gpt-a", messages=messages, tools=TOOLS).choices[0].finish_reason

    assert finish(HELLO) == "stop"
    upstream.behave("gpt-a", Behaviour(call_tools=1))
    assert finish(HELLO) == "tool_calls"
    called = {"id": "c", "type": "function", "function": {"name": "news", "arguments": "{}"}}
    done = [{"role": "assistant", "tool_calls": [called]}, {"role": "tool", "tool_call_id": "c", "content": "42"}]
    assert finish(HELLO + done) == "stop"


def test_json_mode_echoes_the_last_message(oai):
    answer = oai.chat.completions.create(model="gpt-a", messages=HELLO, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"echo": "Hello there"}


def test_json_schema_mode_fits_nested_models(oai):
    class Part(pydantic.BaseModel):
        name: str
        sizes: list[int]

    class Whole(pydantic.BaseModel):
        part: Part
        note: str | None

    parsed = oai.chat.completions.parse(model="gpt-a", messages=HELLO, response_format=Whole)
    assert parsed.choices[0].message.parsed == Whole(part=Part(name="text", sizes=[1]), note="text")


def test_paths_without_version_and_under_openai_work(oai, http):
    body = {"model": "gpt-a", "messages": HELLO}
    texts = {
        http.post(path, json=body).json()["choices"][0]["message"]["content"]
        for path in ("/chat/completions", "/openai/v1/chat/completions", "/v1/chat/completions")
    }
    assert texts == {filler(16)}


def test_azure_deployment_answers_with_content_filters_and_its_own_headers(azure, upstream):
    raw = azure.chat.completions.with_raw_response.create(model="my-deployment", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == filler(16)
    assert answer.choices[0].model_extra["content_filter_results"]["hate"]["filtered"] is False
    assert raw.headers["x-ms-deployment-name"] == "my-deployment"
    assert upstream.requests[0].model == "my-deployment"


def test_azure_stream_begins_with_a_chunk_without_choices(azure):
    chunks = list(azure.chat.completions.create(model="my-deployment", messages=HELLO, stream=True))
    assert chunks[0].choices == []
    assert "prompt_filter_results" in chunks[0].model_extra
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[1:]) == filler(16)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO}, "model"),
        ({"model": "gpt-a"}, "messages"),
        ({"model": "gpt-a", "messages": HELLO, "n": 2}, "n"),
    ],
)
def test_wrong_requests_are_told_which_field(http, body, param):
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_unreadable_body_and_unknown_path_are_answered_like_openai_does(http, upstream):
    unreadable = http.post("/v1/chat/completions", content=b"{")
    assert (unreadable.status_code, unreadable.json()["error"]["type"]) == (400, "invalid_request_error")
    unknown = http.post("/v1/nothing", json={})
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "Invalid URL (POST /v1/nothing)")
    assert [request.path for request in upstream.requests] == ["/v1/chat/completions", "/v1/nothing"]


def test_requests_are_recorded_without_credentials(oai, upstream):
    oai.chat.completions.create(model="gpt-a", messages=HELLO, extra_headers={"x-trace": "7"})
    (request,) = upstream.wait_for(lambda found: found and found[0].ended_ms is not None)
    assert (request.path, request.model, request.stream) == ("/v1/chat/completions", "gpt-a", False)
    assert request.headers["x-trace"] == "7"
    assert request.headers["authorization"] == "[redacted]"
    assert "sk-secret" not in repr(request)
    assert request.body["messages"] == HELLO
    assert (request.status, request.closed_early) == (200, False)
    assert (request.prompt_tokens, request.output_tokens) == (count_tokens("Hello there"), 16)
    assert request.headers_ms <= request.ended_ms
