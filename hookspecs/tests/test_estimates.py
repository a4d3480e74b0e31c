"""What is not known of an answer is estimated, alike from a plain answer and from a stream, and is never free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.host.attempt import OpenAttempt
from pointsman.testing import FakeClock, Harness, deployment, error
from pointsman.types import Deployment, Endpoint, Outcome, RequestContext, Usage

closing = pytest.importorskip("pointsman.litellm.closing")
prices = pytest.importorskip("pointsman.litellm.prices")
stream = pytest.importorskip("pointsman.litellm.stream")
tokenizer = pytest.importorskip("pointsman.litellm.tokenizer")
wire = pytest.importorskip("pointsman.litellm.raw_answers")

TEXT, THOUGHT, TOOL, ARGUMENTS = "It is warm today.", "Which town?", "weather_of_town", '{"town":"Turin"}'
BODIES: Mapping[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "How is the weather in Turin?"}]},
    Endpoint.COMPLETIONS: {"prompt": "How is the weather in Turin?"},
    Endpoint.MESSAGES: {"messages": [{"role": "user", "content": "How is the weather in Turin?"}], "max_tokens": 9},
    Endpoint.RESPONSES: {"input": "How is the weather in Turin?"},
    Endpoint.GENERATE_CONTENT: {"contents": [{"role": "user", "parts": [{"text": "How is the weather in Turin?"}]}]},
    Endpoint.EMBEDDINGS: {"input": "How is the weather in Turin?"},
    Endpoint.RERANK: {"query": "the weather", "documents": ["It is warm in Turin."]},
}
#: Counts of nothing at all, in the words of each API.
ZEROS: Mapping[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    Endpoint.COMPLETIONS: {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    Endpoint.MESSAGES: {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0},
    Endpoint.RESPONSES: {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
    Endpoint.GENERATE_CONTENT: {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0},
}


def closer() -> Any:
    return closing.Closer(prices.CostMap(), tokenizer.PromptTokenizer(), FakeClock())


@pytest.fixture
async def attempts(harness: Any) -> Any:
    """Return what opens an attempt of an endpoint, with a listener that has heard these messages of the provider."""
    async with harness([]) as h:

        async def open_attempt(
            endpoint: Endpoint, messages: Sequence[Mapping[str, Any]] | None = None, **fields: Any
        ) -> tuple[OpenAttempt, RequestContext]:
            return await opened(h, endpoint, messages, **fields)

        yield open_attempt


async def opened(
    h: Harness, endpoint: Endpoint, messages: Sequence[Mapping[str, Any]] | None, to: Deployment | None = None
) -> tuple[OpenAttempt, RequestContext]:
    answer = await h.request(endpoint=endpoint, body=BODIES[endpoint], script=error(400))
    exchange = h.host.open(answer.ctx)
    await exchange.admit()
    _, attempt = await exchange.begin(to or deployment("d", model="gpt-4o-mini"), gateway=True)
    if messages is not None:
        listener = wire.Listener("text/event-stream" if len(messages) > 1 else "application/json")
        for message in messages:
            text = json.dumps(message)
            listener.hear((f"data: {text}\n\n" if len(messages) > 1 else text).encode())
        attempt.listeners.append(listener)
    return attempt, answer.ctx


def whole(endpoint: Endpoint, usage: Mapping[str, Any] | None, *, tools: bool = True) -> Any:
    """Return a whole answer: a text, and with ``tools`` a thought and the call of a tool."""
    match endpoint:
        case Endpoint.CHAT:
            call = {"id": "c", "type": "function", "function": {"name": TOOL, "arguments": ARGUMENTS}}
            more = {"reasoning_content": THOUGHT, "tool_calls": [call]} if tools else {}
            choices = [{"index": 0, "message": {"role": "assistant", "content": TEXT, **more}, "finish_reason": "stop"}]
            return {"object": "chat.completion", "model": "m", "choices": choices, "usage": usage}
        case Endpoint.COMPLETIONS:
            return {"object": "text_completion", "model": "m", "choices": [{"index": 0, "text": TEXT}], "usage": usage}
        case Endpoint.MESSAGES:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": TEXT}]
            if tools:
                blocks += [{"type": "thinking", "thinking": THOUGHT}]
                blocks += [{"type": "tool_use", "id": "t", "name": TOOL, "input": json.loads(ARGUMENTS)}]
            return {"type": "message", "model": "m", "content": blocks, "stop_reason": "end_turn", "usage": usage}
        case Endpoint.RESPONSES:
            output: list[dict[str, Any]] = [{"type": "message", "content": [{"type": "output_text", "text": TEXT}]}]
            if tools:
                output += [{"type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]}]
                output += [{"type": "function_call", "name": TOOL, "arguments": ARGUMENTS}]
            return {"object": "response", "model": "m", "status": "completed", "output": output, "usage": usage}
    parts: list[dict[str, Any]] = [{"text": TEXT}]
    if tools:
        parts += [{"text": THOUGHT, "thought": True}, {"functionCall": {"name": TOOL, "args": json.loads(ARGUMENTS)}}]
    candidates = [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]
    return {"candidates": candidates, "modelVersion": "m", "usageMetadata": usage}


def pieces(endpoint: Endpoint, answer: Mapping[str, Any]) -> list[Any]:
    """Return the same answer as LiteLLM streams it; usage in the last piece."""
    match endpoint:
        case Endpoint.CHAT:
            message = answer["choices"][0]["message"]
            return [
                chunk(delta=SimpleNamespace(**delta))
                for delta in (
                    {"content": message["content"][:5]},
                    {"content": message["content"][5:]},
                    *({name: message[name]} for name in ("reasoning_content",) if name in message),
                    *({"tool_calls": [a_call(**call["function"])]} for call in message.get("tool_calls", ())),
                )
            ]
        case Endpoint.COMPLETIONS:
            return [chunk(text=TEXT)]
        case Endpoint.MESSAGES:
            return [f"data: {json.dumps(event)}\n\n".encode() for event in of_messages(answer)]
        case Endpoint.RESPONSES:
            return [*of_responses(answer), {"type": "response.completed", "response": answer}]
    return [f"data: {json.dumps(answer)}\n\n".encode()]


def chunk(**choice: Any) -> Any:
    """Return a piece with the attributes of LiteLLM's."""
    return SimpleNamespace(model="m", choices=[SimpleNamespace(index=0, finish_reason=None, **choice)])


def a_call(**function: Any) -> Any:
    return SimpleNamespace(index=0, function=SimpleNamespace(**function))


def of_messages(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    start = {**answer, "content": [], "usage": answer["usage"] or {}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(answer["content"]):
        kind = block["type"]
        deltas = {
            "text": lambda b: {"type": "text_delta", "text": b["text"]},
            "thinking": lambda b: {"type": "thinking_delta", "thinking": b["thinking"]},
            "tool_use": lambda b: {"type": "input_json_delta", "partial_json": json.dumps(b["input"])},
        }
        events.append(
            {"type": "content_block_start", "index": index, "content_block": {**block, "text": "", "thinking": ""}}
        )
        events.append({"type": "content_block_delta", "index": index, "delta": deltas[kind](block)})
    return [*events, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": answer["usage"] or {}}]


def of_responses(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for item in answer["output"]:
        events.append({"type": "response.output_item.added", "item": item})
        match item["type"]:
            case "message":
                events += [{"type": "response.output_text.delta", "delta": TEXT}]
            case "reasoning":
                events += [{"type": "response.reasoning_summary_text.delta", "delta": THOUGHT}]
            case "function_call":
                events += [{"type": "response.function_call_arguments.delta", "delta": ARGUMENTS}]
    return events


async def used(
    attempts: Any, endpoint: Endpoint, usage: Mapping[str, Any] | None, *, streamed: bool, **more: Any
) -> Usage:
    """Close an attempt with an answer that has this usage, and return what it is said to have used."""
    answer = whole(endpoint, usage, tools=more.pop("tools", True))
    if streamed:
        passing = of_messages(answer) if endpoint is Endpoint.MESSAGES else [{"type": "ping"}, {**answer}]
        if endpoint is Endpoint.RESPONSES:
            passing = pieces(endpoint, answer)
        attempt, ctx = await attempts(endpoint, passing, **more)
        reader = stream.StreamReader()
        for piece in pieces(endpoint, answer):
            reader.read(piece)
        closer().end_stream(attempt, reader, {}, None, ctx)
    else:
        attempt, ctx = await attempts(endpoint, [answer], **more)
        closer().succeed(attempt, answer, ctx)
    found = attempt.attempt.usage
    assert found is not None
    return found


@pytest.mark.parametrize("endpoint", ZEROS)
@pytest.mark.parametrize("usage", ["zeros", "none"])
async def test_an_answer_of_which_nothing_is_counted_is_estimated_and_not_free(attempts, endpoint, usage):
    """Zeros alone say nothing: what has answered has read something."""
    block = ZEROS[endpoint] if usage == "zeros" else None
    plain, streamed = [await used(attempts, endpoint, block, streamed=mode) for mode in (False, True)]
    assert (plain.estimated, streamed.estimated) == (True, True)
    assert plain.prompt_tokens == streamed.prompt_tokens > 5
    assert plain.completion_tokens == streamed.completion_tokens >= 5
    assert prices.CostMap().cost_usd_micros(deployment("d", model="gpt-4o-mini"), plain) > 0


@pytest.mark.parametrize("endpoint", [e for e in ZEROS if e is not Endpoint.COMPLETIONS])
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_and_thoughts_count_in_an_estimate(attempts, endpoint, streamed):
    alone, both = [await used(attempts, endpoint, None, streamed=streamed, tools=tools) for tools in (False, True)]
    count = tokenizer.PromptTokenizer().count_text
    assert both.completion_tokens >= alone.completion_tokens + count("gpt-4o-mini", THOUGHT + TOOL + ARGUMENTS) - 4


@pytest.mark.parametrize("endpoint", ZEROS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_half_of_the_counts_being_zero_is_charged_as_said_and_marked(attempts, endpoint, streamed):
    names = list(ZEROS[endpoint])[:2]
    for name, tokens in zip(names, ((40, 0), (0, 40)), strict=True):
        used_ = await used(attempts, endpoint, {**dict.fromkeys(names, 0), name: 40}, streamed=streamed)
        assert (used_.prompt_tokens, used_.completion_tokens) == tokens
        assert (used_.contradictory, used_.estimated) == (True, False), (name, used_)


@pytest.mark.parametrize("endpoint", [e for e in ZEROS if e is not Endpoint.MESSAGES])
@pytest.mark.parametrize("tokens", [40, 3])
async def test_null_counts_beside_a_total_divide_it_as_the_text_says_and_are_marked(attempts, endpoint, tokens):
    *names, total = ZEROS[endpoint]
    block = {**dict.fromkeys(names), total: tokens}
    plain, streamed = [await used(attempts, endpoint, block, streamed=mode, tools=False) for mode in (False, True)]
    assert plain.total_tokens == streamed.total_tokens == tokens
    assert plain.completion_tokens == streamed.completion_tokens == min(5, tokens)
    assert plain.contradictory
    assert streamed.contradictory


@pytest.mark.parametrize("counts", [{"prompt_tokens": 0, "total_tokens": 0}, None])
async def test_an_embedding_of_which_nothing_is_counted_is_estimated_or_unpriced(attempts, counts):
    answer = {"object": "list", "model": "m", "data": [{"embedding": [0.1]}], "usage": counts}
    attempt, ctx = await attempts(Endpoint.EMBEDDINGS, [answer])
    closer().succeed(attempt, answer, ctx)
    found = attempt.attempt.usage
    assert found is None or found.estimated
    assert attempt.attempt.cost_usd_micros != 0


async def test_a_reranker_that_counts_no_search_is_unpriced(attempts):
    answer = {"id": "r", "results": [], "meta": {"billed_units": {"search_units": 0}}}
    to = deployment("r", provider="cohere", model="rerank-english-v3.0")
    attempt, ctx = await attempts(Endpoint.RERANK, [answer], to=to)
    closer().succeed(attempt, answer, ctx)
    assert attempt.attempt.cost_usd_micros is None


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_estimate_is_of_the_model_that_has_answered(attempts, streamed):
    """As the provider names it, where it has counted nothing."""
    assert (await used(attempts, Endpoint.CHAT, None, streamed=streamed)).model == "m"
    attempt, ctx = await attempts(Endpoint.CHAT, [{"model": "gpt-4o", "choices": []}, {"choices": []}])
    reader = stream.StreamReader()
    reader.read(chunk(delta=SimpleNamespace(content=TEXT)))
    closer().end_abandoned(attempt, reader, ctx, Outcome.CANCELLED)
    assert (attempt.attempt.usage.model, attempt.attempt.cut) == ("gpt-4o", True)


async def test_a_streams_model_is_the_one_that_the_provider_names(attempts: Any) -> None:
    """LiteLLM writes the deployment's own name into the pieces."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    answer = {**whole(Endpoint.CHAT, usage), "model": "gpt-4o-mini-2024-07-18"}
    for streamed in (False, True):
        attempt, ctx = await attempts(Endpoint.CHAT, [{"type": "ping"}, answer] if streamed else [answer])
        if streamed:
            reader = stream.StreamReader()
            for piece in pieces(Endpoint.CHAT, answer):
                reader.read(piece)
            closer().end_stream(attempt, reader, {}, None, ctx)
        else:
            closer().succeed(attempt, answer, ctx)
        assert (attempt.attempt.model, attempt.attempt.usage.model) == ("gpt-4o-mini-2024-07-18",) * 2
