"""What providers say about usage, read alike from plain answers and from streams, whatever they leave out or get wrong."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman import pricing
from pointsman.types import Price, Usage

usage_module = pytest.importorskip("pointsman.litellm.usage")
wire = pytest.importorskip("pointsman.litellm.raw_answers")
blocks = pytest.importorskip("pointsman.litellm.usage_blocks")

PRICE = Price(input_usd=Decimal(3), output_usd=Decimal(15), cache_read_usd=Decimal("0.3"), cache_write_usd=Decimal(4))

CHAT = {
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "total_tokens": 1500,
    "prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 300},
}
RESPONSES = {
    "input_tokens": 1000,
    "output_tokens": 500,
    "total_tokens": 1500,
    "input_tokens_details": {"cached_tokens": 400},
    "output_tokens_details": {"reasoning_tokens": 450},
}
MESSAGES = {
    "input_tokens": 15,
    "cache_creation_input_tokens": 4803,
    "cache_read_input_tokens": 70,
    "cache_creation": {"ephemeral_5m_input_tokens": 803, "ephemeral_1h_input_tokens": 4000},
    "output_tokens": 47,
}
GEMINI = {
    "promptTokenCount": 326,
    "candidatesTokenCount": 2003,
    "totalTokenCount": 2666,
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 2000}],
    "thoughtsTokenCount": 337,
}
BLOCKS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES, "gemini": GEMINI}


def plain(kind: str, block: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
    match kind:
        case "chat":
            return [{"object": "chat.completion", "model": "m", "choices": [], "usage": block, **more}]
        case "responses":
            return [{"object": "response", "model": "m", "output": [], "usage": block, **more}]
        case "messages":
            return [{"type": "message", "model": "m", "content": [], "usage": block, **more}]
    return [{"candidates": [{"finishReason": "STOP"}], "modelVersion": "m", "usageMetadata": block, **more}]


def streamed(kind: str, block: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
    match kind:
        case "chat":
            start = {"object": "chat.completion.chunk", "model": "m", "choices": [{"delta": {"content": "x"}}]}
            return [{**start, "usage": None}, {**start, "choices": [], "usage": block, **more}]
        case "responses":
            created = {"object": "response", "model": "m", "status": "in_progress", "output": [], "usage": None}
            done = {**created, "status": "completed", "usage": block, **more}
            return [
                {"type": "response.created", "response": created},
                {"type": "response.output_text.delta", "delta": "x"},
                {"type": "response.completed", "response": done},
            ]
        case "messages":
            start = {key: value for key, value in block.items() if key != "output_tokens"}
            end = {key: value for key, value in block.items() if key == "output_tokens"}
            return [
                {"type": "message_start", "message": {"type": "message", "model": "m", "usage": start, **more}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
            ]
    return [
        {"candidates": [{"content": {"parts": [{"text": "x"}]}}], "modelVersion": "m"},
        {"candidates": [{"finishReason": "STOP"}], "modelVersion": "m", "usageMetadata": block, **more},
    ]


def heard(messages: list[dict[str, Any]], *, stream: bool, cuts: tuple[int, ...] = ()) -> Any:
    """Return what a listener reads from an answer that the network brings in pieces."""
    if stream:
        listener = wire.Listener("text/event-stream; charset=utf-8")
        body = (
            b"".join(b"data: " + json.dumps(message).encode() + b"\n\n" for message in messages) + b"data: [DONE]\n\n"
        )
    else:
        listener = wire.Listener("application/json")
        body = json.dumps(messages[0]).encode()
    places = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    for start, end in pairwise(places):
        listener.hear(body[start:end])
    return listener.reading()


def facts(reading: Any) -> tuple[Any, ...] | None:
    """Return what matters of a reading: all but the provider's own words."""
    if reading is None:
        return None
    usage = reading.usage
    names = [name for name in Usage.__slots__ if name not in {"raw", "parts"}]
    return (reading.prompt_known, reading.completion_known, *(getattr(usage, name) for name in names))


# -- each format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("chat", Usage(prompt_tokens=1000, completion_tokens=500, cached_tokens=400, reasoning_tokens=300)),
        ("responses", Usage(prompt_tokens=1000, completion_tokens=500, cached_tokens=400, reasoning_tokens=450)),
        (
            "messages",
            Usage(
                prompt_tokens=4888,
                completion_tokens=47,
                cached_tokens=70,
                cache_write_tokens=4803,
                cache_write_1h_tokens=4000,
            ),
        ),
        (
            "gemini",
            Usage(prompt_tokens=326, completion_tokens=2340, reasoning_tokens=337, image_completion_tokens=2000),
        ),
    ],
)
def test_each_format_is_read(kind: str, expected: Usage, stream: bool) -> None:  # a parameter of the test
    reading = heard((streamed if stream else plain)(kind, BLOCKS[kind]), stream=stream)
    assert reading.complete
    for name in (*(n for n in Usage.__slots__ if n.endswith("_tokens")), "contradictory", "estimated"):
        assert getattr(reading.usage, name) == getattr(expected, name), name
    assert reading.usage.model == "m"
    assert json.loads(reading.usage.raw) == BLOCKS[kind]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("counts", "tokens", "known"),
    [
        ({"prompt_eval_count": 26, "eval_count": 298}, (26, 298), (True, True)),
        # It leaves out a prompt that it has still in memory.
        ({"eval_count": 298}, (0, 298), (False, True)),
        ({"prompt_eval_count": 26, "eval_count": "?"}, (26, 0), (True, False)),
    ],
)
def test_ollama_counts_beside_the_answer(
    counts: dict[str, Any], tokens: tuple[int, int], known: tuple[bool, bool], stream: bool
) -> None:  # a parameter of the test
    start = {"model": "llama3", "message": {"role": "assistant", "content": "x"}, "done": False}
    end = {**start, "done": True, **counts}
    listener = wire.Listener("application/x-ndjson" if stream else "application/json")
    listener.hear(b"".join(json.dumps(one).encode() + b"\n" for one in ([start, end] if stream else [end])))
    reading = listener.reading()
    assert (reading.usage.prompt_tokens, reading.usage.completion_tokens) == tokens
    assert (reading.prompt_known, reading.completion_known) == known


@pytest.mark.parametrize("stream", [False, True])
def test_the_tier_that_served_is_read(stream: bool) -> None:  # a parameter of the test
    make = streamed if stream else plain
    for kind in ("chat", "responses"):
        assert heard(make(kind, BLOCKS[kind], service_tier="flex"), stream=stream).usage.service_tier == "flex"
    block = {**MESSAGES, "service_tier": "priority", "inference_geo": "us"}
    usage = heard(make("messages", block), stream=stream).usage
    assert (usage.service_tier, usage.region) == ("priority", "us")
    assert heard(make("messages", {**block, "speed": "fast"}), stream=stream).usage.service_tier == "fast"


@pytest.mark.parametrize("stream", [False, True])
def test_searches_and_other_tools_are_counted(stream: bool) -> None:  # a parameter of the test
    make = streamed if stream else plain
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call"},
        {"type": "file_search_call"},
        {"type": "code_interpreter_call", "container_id": "c1"},
        {"type": "code_interpreter_call", "container_id": "c1"},
    ]
    tools = [{"type": "web_search", "search_context_size": "high"}]
    usage = heard(make("responses", RESPONSES, output=output, tools=tools), stream=stream).usage
    assert (usage.searches, usage.search_context, usage.file_searches, usage.code_sessions) == (2, "high", 1, 1)
    drawn = heard(make("responses", RESPONSES, output=[{"type": "image_generation_call"}]), stream=stream).usage
    assert drawn.other_tools == 1
    assert pricing.cost_usd(drawn, PRICE) is None
    block = {**MESSAGES, "server_tool_use": {"web_search_requests": 5}}
    assert heard(make("messages", block), stream=stream).usage.searches == 5
    grounded = [{"finishReason": "STOP", "groundingMetadata": {"webSearchQueries": ["a", "b"]}}]
    assert heard(make("gemini", GEMINI, candidates=grounded), stream=stream).usage.searches == 2


@pytest.mark.parametrize(
    ("block", "cost"),
    [
        ({**CHAT, "cost": 0.0123, "is_byok": False}, "0.0123"),
        ({**CHAT, "cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, "0.021"),
        ({**CHAT, "cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({**CHAT, "cost": {"total_cost": 0.006}}, "0.006"),
        ({**CHAT, "cost": "free"}, None),
        (CHAT, None),
    ],
)
def test_the_providers_own_cost_is_read(block: dict[str, Any], cost: str | None) -> None:
    usage = heard(plain("chat", block), stream=False).usage
    assert usage.provider_cost_usd == (None if cost is None else Decimal(cost))


def test_models_that_worked_on_one_answer_are_read_apart() -> None:
    turns = [
        {"model": "a", "input_tokens": 412, "cache_read_input_tokens": 50_000, "output_tokens": 299},
        {"model": "b", "input_tokens": 412, "output_tokens": 264},
    ]
    block = {"input_tokens": 412, "output_tokens": 264, "iterations": turns}
    usage = heard(plain("messages", block), stream=False).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (50_824, 563, 50_000)
    assert [(part.model, part.prompt_tokens, part.completion_tokens) for part in usage.parts] == [
        ("a", 50_412, 299),
        ("b", 412, 264),
    ]
    assert all(part.is_part for part in usage.parts)
    prices = {"a": Price(input_usd=Decimal(1), output_usd=Decimal(1)), "b": PRICE}
    total = pricing.total_usd(usage, lambda used: prices.get(used.model or "", PRICE))
    assert total == 50_412 + 299 + 412 * 3 + 264 * 15


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ((None, None), ()),
        (("m", None), ()),
        (("m", "m"), ()),
        (("a", None), ("a", "m")),
        (("a", "a"), ("a", "a")),
    ],
)
def test_a_part_that_names_no_model_is_of_the_one_that_answers(
    named: tuple[str | None, ...], parts: tuple[str, ...]
) -> None:
    turns = [{"model": name, "input_tokens": 10, "output_tokens": 5} for name in named]
    block = {"input_tokens": 10, "output_tokens": 5, "iterations": turns}
    usage = heard(plain("messages", block), stream=False).usage
    assert (usage.model, usage.prompt_tokens, tuple(part.model for part in usage.parts)) == ("m", 20, parts)


# -- streams that say something twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "prompt", "cached"),
    [
        ({"input_tokens": 0, "output_tokens": 15}, 12_500, 10_000),
        ({"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 15}, 12_500, 10_000),
        ({"input_tokens": 0, "cache_read_input_tokens": 10_000, "output_tokens": 15}, 12_500, 10_000),
        ({"input_tokens": None, "cache_read_input_tokens": "?", "output_tokens": 15}, 12_500, 10_000),
        ({"input_tokens": 0, "cache_read_input_tokens": 12_500, "output_tokens": 15}, 12_500, 12_500),
        ({"input_tokens": 2600, "cache_read_input_tokens": 10_000, "output_tokens": 15}, 12_600, 10_000),
        ({"output_tokens": 15}, 12_500, 10_000),
    ],
)
def test_a_later_message_corrects_an_earlier_one_and_erases_nothing(
    end: dict[str, Any], prompt: int, cached: int
) -> None:
    start = {"input_tokens": 2500, "cache_read_input_tokens": 10_000, "output_tokens": 1}
    messages = streamed("messages", start)
    messages[0]["message"]["usage"] = start
    messages[-1]["usage"] = end
    for again in (messages, [*messages, messages[-1]], [messages[0], *messages]):
        usage = heard(again, stream=True).usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (prompt, cached, 15)


def test_a_stream_that_has_only_begun_does_not_know_its_answer() -> None:
    started = heard(streamed("messages", MESSAGES)[:2], stream=True)
    assert (started.prompt_known, started.completion_known) == (True, False)
    assert started.usage.prompt_tokens == 4888
    assert heard(streamed("chat", CHAT)[:1], stream=True) is None


@pytest.mark.parametrize(
    "output", [{}, {"output_tokens": None}, {"output_tokens": -1}, {"output_tokens": True}, {"output_tokens": "x"}]
)
def test_the_count_at_the_beginning_of_a_stream_is_not_that_of_the_answer(output: dict[str, Any]) -> None:
    """Anthropic's first message counts a token or two, whatever is answered."""
    start, text, end = streamed("messages", {**MESSAGES, "output_tokens": 1})
    start["message"]["usage"]["output_tokens"] = 1
    found = heard([start, text, {**end, "usage": output}], stream=True)
    assert (found.prompt_known, found.completion_known, found.usage.prompt_tokens) == (True, False, 4888)


# -- usage that is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "tokens", "contradictory"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 476}, (100, 376), True),
        ({"completion_tokens": 500, "total_tokens": 1500}, (1000, 500), True),
        ({"prompt_tokens": 1000, "completion_tokens": None, "total_tokens": 1500}, (1000, 500), True),
        ({"prompt_tokens": 0, "completion_tokens": 500, "total_tokens": 1500}, (1000, 500), True),
        ({"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1200}, (1000, 200), True),
        ({"prompt_tokens": 10**18, "completion_tokens": 500, "total_tokens": 1500}, (1000, 500), True),
        ({"prompt_tokens": "1000", "completion_tokens": 500.0, "total_tokens": 1500}, (1000, 500), False),
        ({"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 0}, (1000, 500), True),
        ({"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 10**18}, (1000, 500), True),
        ({"prompt_tokens": 20, "total_tokens": 20}, (20, 0), False),
    ],
)
def test_the_total_decides(
    block: dict[str, Any], tokens: tuple[int, int], contradictory: bool
) -> None:  # a parameter of the test
    usage = heard(plain("chat", block), stream=False).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.contradictory) == (*tokens, contradictory)


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": None}},
        {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}},
        {"prompt_tokens_details": {"audio_tokens": 1, "image_tokens": 1}, "cache_creation_input_tokens": 1},
        {"completion_tokens_details": {"audio_tokens": 1, "image_tokens": 1}, "citation_tokens": 3},
        {"completion_tokens_details": {"reasoning_tokens": 2}, "citation_tokens": 3},
    ],
)
@given(prompt=st.integers(0, 10**10 + 2) | st.integers(0, 2), completion=st.integers(0, 10**10) | st.integers(0, 2))
def test_usual_counts_are_read_as_all_others(details: dict[str, Any], prompt: int, completion: int) -> None:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    texts = {name: str(count) for name, count in counts.items()}
    usual, others = blocks.read({**counts, **details}), blocks.read({**texts, **details})
    assert usual == others


_LARGE = {"input_tokens": 5000, "output_tokens": 100}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("chat", {"prompt_tokens_details": {"cached_tokens": -40}}),
        ("chat", {"prompt_tokens_details": {"audio_tokens": -30, "cached_tokens": 1}}),
        ("chat", {"prompt_tokens_details": {"cached_tokens": True}}),
        ("chat", {"completion_tokens_details": {"reasoning_tokens": -40}}),
        ("chat", {"prompt_tokens_details": {"cached_tokens": 3000, "cache_write_tokens": 3000}}),
        ("chat", {"prompt_tokens_details": {"audio_tokens": 3000, "image_tokens": 3000}}),
        ("chat", {"completion_tokens_details": {"audio_tokens": 60, "image_tokens": 60}}),
        ("responses", {"input_tokens_details": {"cached_tokens": -40}}),
        ("responses", {"output_tokens_details": {"reasoning_tokens": "many"}}),
        ("responses", {"input_tokens_details": {"text_tokens": -1, "image_tokens": 10}}),
        ("chat", {"prompt_tokens_details": {"text_tokens": 4000, "audio_tokens": 1001}}),
        ("chat", {"prompt_tokens_details": {"text_tokens": 4900, "image_tokens": 60, "video_tokens": 60}}),
        ("chat", {"completion_tokens_details": {"text_tokens": 90, "audio_tokens": 11}}),
        ("responses", {"input_tokens_details": {"text_tokens": 4000, "image_tokens": 1001}}),
        ("responses", {"output_tokens_details": {"text_tokens": 101}}),
        ("chat", {"prompt_tokens_details": {"cached_tokens": 10**12}}),
        ("chat", {"prompt_cache_hit_tokens": 1000, "prompt_cache_miss_tokens": 3999}),
        ("chat", {"prompt_cache_hit_tokens": 1000, "prompt_cache_miss_tokens": 4001}),
        ("chat", {"prompt_cache_miss_tokens": 4999}),
        ("messages", {"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": 400}}),
        ("messages", {"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_1h_input_tokens": 0}}),
        ("messages", {"cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 400}}),
        ("messages", {"cache_creation": {"ephemeral_24h_input_tokens": 400}}),
        ("messages", {"cache_creation_input_tokens": 400, "cache_creation": {"ephemeral_24h_input_tokens": 400}}),
        ("messages", {"cache_read_input_tokens": -1000}),
        (
            "messages",
            {
                "cache_creation_input_tokens": 500,
                "cache_creation": {"ephemeral_5m_input_tokens": 800, "ephemeral_1h_input_tokens": -300},
            },
        ),
        (
            "messages",
            {
                "cache_creation_input_tokens": 500,
                "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 400},
            },
        ),
    ],
)
def test_parts_that_cannot_be_are_marked(
    kind: str, more: dict[str, Any], stream: bool
) -> None:  # a parameter of the test
    """A part that is no count, and parts that together are more than their whole."""
    block = {"prompt_tokens": 5000, "completion_tokens": 100} if kind == "chat" else _LARGE
    messages = (streamed if stream else plain)(kind, {**block, **more})
    found = heard(messages, stream=stream)
    assert found.usage.contradictory
    assert not heard((streamed if stream else plain)(kind, block), stream=stream).usage.contradictory


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("chat", {"prompt_tokens_details": {"text_tokens": 4000, "audio_tokens": 1000, "cached_tokens": 4000}}),
        ("chat", {"completion_tokens_details": {"text_tokens": 90, "audio_tokens": 10, "reasoning_tokens": 90}}),
        ("chat", {"prompt_cache_hit_tokens": 1000, "prompt_cache_miss_tokens": 4000}),
        ("responses", {"input_tokens_details": {"text_tokens": 4000, "image_tokens": 1000}}),
        ("messages", {"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": 500}}),
        ("messages", {"cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 0}}),
        ("messages", {"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_5m_input_tokens": None}}),
        ("messages", {"cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 100}}),
    ],
)
def test_parts_that_fit_are_not_marked(kind: str, more: dict[str, Any], stream: bool) -> None:
    block = {"prompt_tokens": 5000, "completion_tokens": 100} if kind == "chat" else _LARGE
    assert not heard((streamed if stream else plain)(kind, {**block, **more}), stream=stream).usage.contradictory


@pytest.mark.parametrize(
    ("block", "prompt", "marked"),
    [
        ({"prompt_tokens": 1000, "total_tokens": 1000}, 1000, False),
        ({"total_tokens": 1000}, 1000, False),
        ({"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}, 1000, False),
        ({"prompt_tokens": 1000, "total_tokens": 2000}, 2000, True),
        ({"prompt_tokens": 1000, "total_tokens": 500}, 500, True),
        ({"prompt_tokens": 1000, "total_tokens": 0}, 1000, True),
        ({"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007}, 1007, False),
    ],
)
def test_an_embedding_is_its_prompt_and_the_total_decides(block: dict[str, Any], prompt: int, marked: bool) -> None:
    usage = heard([{"object": "list", "data": [{"embedding": [0.1]}], "usage": block}], stream=False).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.contradictory) == (prompt, 0, marked)


@pytest.mark.parametrize(
    ("details", "marked"),
    [
        ({"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1}]}, False),
        (
            {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 300}, {"modality": "AUDIO", "tokenCount": 1}]},
            True,
        ),
        ({"candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 51}]}, True),
        ({"cachedContentTokenCount": 5, "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 6}]}, True),
        ({"cachedContentTokenCount": 5, "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 5}]}, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_modalities_are_not_more_than_their_whole(details: dict[str, Any], marked: bool, stream: bool) -> None:
    block = {"promptTokenCount": 300, "candidatesTokenCount": 50, "totalTokenCount": 350, **details}
    found = heard((streamed if stream else plain)("gemini", block), stream=stream)
    assert found.usage.contradictory is marked


@pytest.mark.parametrize(
    ("written", "details", "marked"),
    [
        (500, [], False),
        (500, [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 300}], False),
        (500, [{"ttl": "1h", "inputTokens": 200}], True),
        (100, [{"ttl": "1h", "inputTokens": 200}], True),
        (200, [{"ttl": "24h", "inputTokens": 200}], True),
    ],
)
def test_life_times_of_bedrock_are_all_cache_writes(written: int, details: list[Any], marked: bool) -> None:
    block = {"inputTokens": 10, "outputTokens": 5, "cacheWriteInputTokens": written, "cacheDetails": details}
    usage = heard([{"usage": block}], stream=False).usage
    assert usage.contradictory is marked
    assert usage.cache_write_tokens == max(written, sum(item["inputTokens"] for item in details))


@pytest.mark.parametrize(
    ("units", "others"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, None),
        ({"search_units": 1, "total_tokens": 5, "image_tokens": 3}, None),
        ({"input_tokens": 10, "classifications": 2, "images": 1}, 3),
        ({"input_tokens": 10, "audio_seconds": 7}, 7),
        ({"input_tokens": 10, "audio_seconds": "many"}, 1),
        ({"input_tokens": 10, "audio_seconds": 0}, None),
        ({"audio_seconds": 7}, 7),
    ],
)
def test_units_of_cohere_that_have_no_price_are_other_tools(units: dict[str, Any], others: int | None) -> None:
    assert heard([{"text": "x", "meta": {"billed_units": units}}], stream=False).usage.other_tools == others


@pytest.mark.parametrize("latency", ["standard", "optimized"])
def test_the_faster_service_of_bedrock_has_no_usual_price(latency: str) -> None:
    block = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
    answer = {"usage": block, "performanceConfig": {"latency": latency}, "serviceTier": {"type": "default"}}
    usage = heard([answer], stream=False).usage
    assert (pricing.cost_usd(usage, replace(PRICE, for_all_tiers=False)) is None) is (latency == "optimized")


@pytest.mark.parametrize(("speed", "tier"), [("standard", "batch"), (None, "batch"), ("fast", "fast"), ("new", "new")])
def test_a_speed_is_a_tier_unless_it_is_the_usual_one(speed: str | None, tier: str) -> None:
    block = {**MESSAGES, "service_tier": "batch", "speed": speed}
    assert heard(plain("messages", block), stream=False).usage.service_tier == tier


def test_the_end_of_a_stream_may_count_cache_writes_without_their_life_times() -> None:
    """Anthropic counts there again what its tools have added, and names no life time."""
    start = {**MESSAGES, "cache_creation_input_tokens": 0}
    start["cache_creation"] = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    end = {"output_tokens": 47, "cache_creation_input_tokens": 700}
    messages = streamed("messages", start)
    usage = heard([*messages[:-1], {**messages[-1], "usage": end}], stream=True).usage
    assert (usage.cache_write_tokens, usage.cache_write_1h_tokens, usage.contradictory) == (700, 0, False)
    again = {**messages[-1], "usage": {**end, "cache_creation_input_tokens": 0}}
    assert heard([*messages[:-1], again], stream=True).usage.cache_write_tokens == 0


OUTPUT = {"completion_tokens", "output_tokens", "candidatesTokenCount"}


@pytest.mark.parametrize("kind", sorted(BLOCKS))
@pytest.mark.parametrize("count", [10**10 + 1, 10**12, 1e15, "20000000000"])
def test_a_count_that_cannot_be_is_not_known(kind: str, count: Any) -> None:
    """It is estimated then, and not the bill."""
    name = next(iter(BLOCKS[kind]))
    reading = heard(plain(kind, {name: count, **{k: v for k, v in BLOCKS[kind].items() if k in OUTPUT}}), stream=False)
    assert (reading.prompt_known, reading.usage.prompt_tokens < 10**10) == (False, True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "more", "used"),
    [
        ("messages", {"server_tool_use": {"web_search_requests": 2, "frobnicate_requests": 3}}, {"other_tools": 3}),
        ("messages", {"server_tool_use": {"web_search_requests": "many"}}, {"other_tools": 1}),
        ("messages", {"server_tool_use": {"new_requests": {"deep": 1}}}, {"other_tools": 1}),
        ("messages", {"server_tool_use": {"new_requests": 0, "other_requests": None}}, {"other_tools": None}),
        ("messages", {"server_tool_use": {"web_fetch_requests": 2, "tool_search_requests": 1}}, {"other_tools": None}),
        ("messages", {"server_tool_use": {"code_execution_requests": 2}}, {"other_tools": None, "code_sessions": 2}),
        ("chat", {"connectors": {"web_search": 2}}, {"other_tools": 2}),
        ("chat", {"connectors": {}}, {"other_tools": None}),
        ("chat", {"num_sources_used": 4}, {"other_tools": 4}),
        ("chat", {"num_sources_used": 0}, {"other_tools": None}),
        ("chat", {"server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 2}}, {"other_tools": 2}),
        ("chat", {"server_side_tool_usage_details": {"mcp_calls": 2}}, {"other_tools": None}),
        ("chat", {"num_search_queries": "many"}, {"other_tools": 1}),
        ("chat", {"num_search_queries": 2, "search_context_size": "high"}, {"searches": 2, "search_context": "high"}),
        ("chat", {"num_search_queries": 0, "search_context_size": "high"}, {"searches": None}),
        ("chat", {"search_context_size": "low"}, {"searches": 1, "search_context": "low"}),
        ("chat", {"search_context_size": "vast"}, {"searches": None, "search_context": None}),
    ],
)
def test_a_tool_that_is_not_known_is_not_free(
    kind: str, more: dict[str, Any], used: dict[str, Any], stream: bool
) -> None:  # a parameter of the test
    usage = heard((streamed if stream else plain)(kind, {**BLOCKS[kind], **more}), stream=stream).usage
    assert {name: getattr(usage, name) for name in used} == used
    searches: dict[str, Any] = dict.fromkeys(
        ("search_low_usd", "search_medium_usd", "search_high_usd", "code_session_usd"), Decimal(1)
    )
    assert (pricing.cost_usd(usage, replace(PRICE, **searches)) is None) is bool(usage.other_tools)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("names", "counted", "used"),
    [
        (["bash_code_execution", "text_editor_code_execution"], None, {"code_sessions": 1}),
        (["code_execution"], {"code_execution_requests": 2}, {"code_sessions": 2}),
        (["web_search", "web_search"], None, {"searches": 2}),
        (["web_search", "web_search"], {"web_search_requests": 1}, {"searches": 1}),
        # One that has found nothing is not charged.
        (["web_search"], {"web_search_requests": 0}, {"searches": None}),
        (["web_search"], {"web_search_requests": None}, {"searches": 1}),
        (["web_fetch", "tool_search_tool_regex", "tool_search_tool_bm25"], None, {}),
        (["something_new", "web_search", "something_new"], None, {"other_tools": 2, "searches": 1}),
        ([None], None, {"other_tools": 1}),
    ],
)
def test_uses_of_anthropics_own_tools_are_counted_also_where_its_usage_does_not(
    names: list[Any], counted: dict[str, Any] | None, used: dict[str, Any], stream: bool
) -> None:
    blocks = [{"type": "server_tool_use", "id": "s", "name": name, "input": {}} for name in names]
    blocks += [{"type": "tool_use", "id": "t", "name": "memory", "input": {}}, {"type": "text", "text": "x"}]
    block = MESSAGES if counted is None else {**MESSAGES, "server_tool_use": counted}
    if stream:
        first, *rest = streamed("messages", block)
        messages = [
            first,
            *({"type": "content_block_start", "index": 0, "content_block": one} for one in blocks),
            *rest,
        ]
    else:
        messages = plain("messages", block, content=blocks)
    usage = heard(messages, stream=stream).usage
    tools = ("searches", "code_sessions", "other_tools")
    assert {name: getattr(usage, name) for name in tools} == {**dict.fromkeys(tools), **used}


def test_the_tokens_of_a_spoken_stream_are_sound() -> None:
    counts = {"input_tokens": 20, "output_tokens": 100, "total_tokens": 120}
    messages = [{"type": "speech.audio.delta", "audio": "eA=="}, {"type": "speech.audio.done", "usage": counts}]
    usage = heard(messages, stream=True).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.audio_completion_tokens) == (20, 100, 100)


def test_reasoning_beside_the_answer_is_added_where_the_total_has_it() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 375}}
    beside = {"prompt_tokens": 100, "completion_tokens": 400, "total_tokens": 875, **details}
    inside = {**beside, "total_tokens": 500}
    assert heard(plain("chat", beside), stream=False).usage.completion_tokens == 775
    assert heard(plain("chat", inside), stream=False).usage.completion_tokens == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (
            {"prompt_tokens": 4, "completion_tokens": 635, "total_tokens": 3264, "prompt_audio_seconds": 203},
            Usage(prompt_tokens=2629, audio_prompt_tokens=2625, completion_tokens=635, audio_ms=203_000),
        ),
        (
            {"prompt_tokens": 150, "completion_tokens": 42, "total_tokens": 192, "prompt_audio_seconds": 30},
            Usage(prompt_tokens=150, completion_tokens=42, audio_ms=30_000),
        ),
        (
            {"prompt_tokens": 150, "completion_tokens": 42, "total_tokens": 192, "prompt_audio_seconds": {}},
            Usage(prompt_tokens=150, completion_tokens=42),
        ),
        ({"prompt_audio_seconds": 2}, Usage(audio_ms=2000)),
    ],
)
def test_the_seconds_of_a_spoken_prompt_are_read(block: dict[str, Any], expected: Usage, stream: bool) -> None:
    """Mistral counts their tokens in the total alone."""
    message = streamed("chat", block) if stream else plain("chat", block)
    reading = heard(message, stream=stream)
    assert reading.complete
    assert replace(reading.usage, raw=None) == replace(expected, model="m")


@pytest.mark.parametrize("value", [None, -5, "many", True, 1.5, [], {}])
def test_what_is_no_count_is_unknown_and_not_zero(value: Any) -> None:
    reading = heard(plain("chat", {"prompt_tokens": 1000, "completion_tokens": value}), stream=False)
    assert (reading.prompt_known, reading.completion_known) == (True, False)
    reading = heard(plain("messages", {"input_tokens": value, "output_tokens": 5}), stream=False)
    assert (reading.prompt_known, reading.completion_known) == (False, True)


VALUES = st.sampled_from([None, 0, "many", "17", -3, True, 1.5, 10**18, [], {}]) | st.integers(0, 3000)


@given(data=st.data(), kind=st.sampled_from(sorted(BLOCKS)), cuts=st.lists(st.integers(1, 900), max_size=4))
def test_plain_and_streamed_answers_give_the_same_usage(data: st.DataObject, kind: str, cuts: list[int]) -> None:
    """Whatever is missing, null, zero, text, negative or huge; and nothing costs more than the block says."""
    block: dict[str, Any] = json.loads(json.dumps(BLOCKS[kind]))
    for key in data.draw(st.lists(st.sampled_from(sorted(block)), max_size=3)):
        if data.draw(st.booleans()):
            block.pop(key, None)
        else:
            block[key] = data.draw(VALUES)
    whole = heard(plain(kind, block), stream=False)
    pieces = heard(streamed(kind, block), stream=True, cuts=tuple(cuts))
    if kind == "messages" and (whole is None or pieces is None or not pieces.completion_known):
        # Its two halves are each other's only witnesses.
        return
    assert facts(whole) == facts(pieces)
    if whole is None or not whole.complete:
        return
    cost = pricing.token_usd(whole.usage, PRICE)
    said = sum(value for value in flat(block) if isinstance(value, int) and value > 0)
    assert cost is not None
    assert 0 <= cost <= 15 * min(said, 10**16)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for inner in value.values() for item in flat(inner)]
    if isinstance(value, list):
        return [item for inner in value for item in flat(inner)]
    if isinstance(value, str) and value.isdigit():
        return [int(value)]
    return [int(value)] if isinstance(value, float) else [value] if not isinstance(value, bool) else []


# -- what single providers say ----------------------------------------------------------------------------------------

CHOICES = [{"message": {"content": "x"}}]
STOP = [{"finishReason": "STOP"}]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # Numbers in other forms.
        (
            {"choices": CHOICES, "usage": {"prompt_tokens": "10.0", "completion_tokens": " 5 ", "total_tokens": 15}},
            {"prompt_tokens": 10, "completion_tokens": 5},
        ),
        # Parts that are larger than the whole.
        (
            {
                "choices": CHOICES,
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 100}},
            },
            {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 100, "contradictory": True},
        ),
        (
            {
                "choices": CHOICES,
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 15,
                    "completion_tokens_details": {"audio_tokens": 9},
                },
            },
            {"prompt_tokens": 10, "completion_tokens": 5, "audio_completion_tokens": 9, "contradictory": True},
        ),
        # A server that speaks both ways and fills in one.
        (
            {
                "choices": CHOICES,
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 10, "output_tokens": 5},
            },
            {"prompt_tokens": 10, "completion_tokens": 5},
        ),
        # DeepSeek, Mistral, Groq, xAI, Perplexity.
        (
            {
                "choices": CHOICES,
                "usage": {"prompt_tokens": 100, "completion_tokens": 5, "prompt_cache_hit_tokens": 64},
            },
            {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 64},
        ),
        (
            {"choices": CHOICES, "usage": {"prompt_tokens": 100, "completion_tokens": 5, "num_cached_tokens": 64}},
            {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 64},
        ),
        (
            {"choices": [], "x_groq": {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}},
            {"prompt_tokens": 10, "completion_tokens": 5},
        ),
        (
            {
                "choices": CHOICES,
                "usage": {
                    "prompt_tokens": 100,
                    "completion_tokens": 5,
                    "total_tokens": 305,
                    "completion_tokens_details": {"reasoning_tokens": 200},
                },
            },
            {"prompt_tokens": 100, "completion_tokens": 205, "reasoning_tokens": 200, "contradictory": True},
        ),
        (
            {
                "choices": CHOICES,
                "usage": {
                    "prompt_tokens": 33,
                    "completion_tokens": 7163,
                    "total_tokens": 7196,
                    "citation_tokens": 20016,
                    "num_search_queries": 18,
                    "reasoning_tokens": 73997,
                },
            },
            {
                "prompt_tokens": 33,
                "completion_tokens": 7163 + 73997,
                "reasoning_tokens": 73997,
                "citation_tokens": 20016,
                "searches": 18,
            },
        ),
        # Bedrock: life times of cache writes, and the tier as an object.
        (
            {
                "usage": {
                    "inputTokens": 10,
                    "outputTokens": 5,
                    "totalTokens": 115,
                    "cacheReadInputTokens": 60,
                    "cacheWriteInputTokens": 40,
                    "cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}],
                },
                "serviceTier": {"type": "flex"},
            },
            {
                "prompt_tokens": 110,
                "completion_tokens": 5,
                "cached_tokens": 60,
                "cache_write_tokens": 40,
                "cache_write_1h_tokens": 30,
                "service_tier": "flex",
            },
        ),
        # Gemini: prompts of tools, thoughts, a modality that is named twice, the kind of traffic.
        (
            {
                "candidates": STOP,
                "usageMetadata": {
                    "promptTokenCount": 100,
                    "candidatesTokenCount": 20,
                    "thoughtsTokenCount": 30,
                    "toolUsePromptTokenCount": 40,
                    "totalTokenCount": 190,
                    "trafficType": "ON_DEMAND_PRIORITY",
                    "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}] * 2,
                },
            },
            {
                "prompt_tokens": 140,
                "completion_tokens": 50,
                "reasoning_tokens": 30,
                "audio_prompt_tokens": 40,
                "service_tier": "priority",
            },
        ),
        (
            {
                "candidates": STOP,
                "usageMetadata": {
                    "promptTokenCount": 100,
                    "candidatesTokenCount": 20,
                    "thoughtsTokenCount": None,
                    "totalTokenCount": 150,
                },
            },
            {"prompt_tokens": 100, "completion_tokens": 50, "contradictory": True},
        ),
        # An embedding has no answer.
        ({"data": [{"embedding": [0.1]}], "usage": {"total_tokens": 12}}, {"prompt_tokens": 12}),
        ({"choices": CHOICES, "usage": {"total_tokens": 12}}, {"prompt_tokens": 12, "contradictory": True}),
        # Only the sum is known, however the counts are missing.
        (
            {"choices": CHOICES, "usage": {"prompt_tokens": None, "total_tokens": 12}},
            {"prompt_tokens": 12, "contradictory": True},
        ),
        (
            {"choices": CHOICES, "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 12}},
            {"prompt_tokens": 12, "contradictory": True},
        ),
        (
            {"candidates": STOP, "usageMetadata": {"promptTokenCount": None, "totalTokenCount": 12}},
            {"prompt_tokens": 12, "contradictory": True},
        ),
        # What was cached is part of the total.
        (
            {
                "usage": {
                    "input_tokens": None,
                    "output_tokens": 10,
                    "cache_read_input_tokens": 30,
                    "total_tokens": 50,
                }
            },
            {"prompt_tokens": 40, "completion_tokens": 10, "cached_tokens": 30, "contradictory": True},
        ),
        (
            {
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": None,
                    "cache_read_input_tokens": 30,
                    "total_tokens": 50,
                }
            },
            {"prompt_tokens": 40, "completion_tokens": 10, "cached_tokens": 30, "contradictory": True},
        ),
        # Cohere charges billed units; what its models have processed is used only where these are missing.
        (
            {
                "usage": {
                    "billed_units": {"input_tokens": 5, "output_tokens": 418},
                    "tokens": {"input_tokens": 71, "output_tokens": 420},
                }
            },
            {"prompt_tokens": 5, "completion_tokens": 418},
        ),
        (
            {"meta": {"billed_units": {"input_tokens": 5.0, "output_tokens": 418.0}, "tokens": {"input_tokens": 71}}},
            {"prompt_tokens": 5, "completion_tokens": 418},
        ),
        (
            {
                "usage": {
                    "billed_units": {"input_tokens": None, "output_tokens": 418},
                    "tokens": {"input_tokens": 71, "output_tokens": 420},
                }
            },
            {"prompt_tokens": 71, "completion_tokens": 418, "contradictory": True},
        ),
        (
            {"usage": {"tokens": {"input_tokens": 71, "output_tokens": 420}}},
            {"prompt_tokens": 71, "completion_tokens": 420, "contradictory": True},
        ),
        ({"results": [], "meta": {"billed_units": {"search_units": 2}}}, {"search_units": 2}),
        (
            {"embeddings": {}, "meta": {"billed_units": {"input_tokens": 5, "image_tokens": 300}}},
            {"prompt_tokens": 305, "image_prompt_tokens": 300},
        ),
        ({"embeddings": {}, "meta": {"billed_units": {"images": 2}}}, {"other_tools": 2}),
    ],
)
def test_each_provider_is_read_in_its_own_words(message: dict[str, Any], expected: dict[str, Any]) -> None:
    reading = heard([message], stream=False)
    found = {
        name: value
        for name in Usage.__slots__
        if name not in {"raw", "model"} and (value := getattr(reading.usage, name)) not in (None, 0, False, ())
    }
    assert found == expected
    assert reading.complete


@pytest.mark.parametrize(
    ("block", "cost"), [({**CHAT, "cost": 0}, None), ({**CHAT, "cost": 0.0, "is_byok": True}, None)]
)
def test_a_provider_that_says_that_tokens_cost_nothing_is_asked_for_its_prices(
    block: dict[str, Any], cost: Decimal | None
) -> None:
    """Servers that do not know a price say 0; tokens that are free have a price of 0."""
    usage = heard(plain("chat", block), stream=False).usage
    assert usage.provider_cost_usd == cost
    assert pricing.total_usd(usage, lambda _: PRICE)
    assert pricing.total_usd(usage, lambda _: Price()) is None


def test_the_tier_may_be_in_a_header_alone() -> None:
    request = httpx.Request("POST", "http://provider/v1beta/models/m:generateContent")
    headers = {"x-gemini-service-tier": "flex"}
    answer = httpx.Response(200, json=plain("gemini", GEMINI)[0], headers=headers, request=request)
    assert wire.listen(answer).reading().usage.service_tier == "flex"


# -- listening --------------------------------------------------------------------------------------------------------


async def test_every_byte_passes_and_is_heard() -> None:
    body = b"".join(b"data: " + json.dumps(message).encode() + b"\n\n" for message in streamed("chat", CHAT))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/stream":
            return httpx.Response(200, content=stream_of(body), headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=plain("chat", CHAT)[0])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://provider") as client:
        async with client.stream("POST", "/stream") as response:
            listener = wire.listen(response)
            assert b"".join([piece async for piece in response.aiter_bytes()]) == body
        assert listener.reading().usage.total_tokens == 1500
        assert wire.listen(await client.post("/plain")).reading().usage.total_tokens == 1500
        # What is stored was charged when it was made.
        assert wire.listen(await client.get("/plain")) is None


async def stream_of(body: bytes) -> Any:
    for place in range(0, len(body), 7):
        yield body[place : place + 7]


def test_the_answer_that_litellm_has_translated_is_found_among_several() -> None:
    """A guardrail may have asked another model meanwhile."""
    listeners = []
    for tokens in (7, 1000, 9):
        listener = wire.Listener("application/json")
        block = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}
        listener.hear(json.dumps(plain("chat", block)[0]).encode())
        listeners.append(listener)
    translated = Usage(prompt_tokens=1000, completion_tokens=1000)
    assert wire.provider_reading(listeners, lambda: translated).usage.prompt_tokens == 1000
    assert wire.provider_reading(listeners).usage.prompt_tokens == 9
    assert wire.provider_reading([object()], lambda: translated) is None


@pytest.mark.parametrize(
    "beside",
    ['"score": NaN', '"limit": 1e999', '"text": "\\ud800"', '"count": 1234567890123456789012345', '"usage": null'],
)
def test_what_only_some_providers_write_hides_no_usage(beside: str) -> None:
    listener = wire.Listener("application/json")
    block = '{"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}'
    listener.hear(f'{{"id": "x", {beside}, "usage": {block}}}'.encode())
    reading = listener.reading()
    assert (reading.usage.prompt_tokens, reading.usage.completion_tokens) == (11, 7)


@pytest.mark.parametrize("depth", [500, 1000, 100_000])
def test_usage_that_is_nested_deeply_is_counted_or_not_read(depth: int) -> None:
    block = (
        '{"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "more": ' + "[" * depth + "]" * depth + "}"
    )
    listener = wire.Listener("application/json")
    listener.hear(f'{{"id": "x", "usage": {block}}}'.encode())
    reading = listener.reading()
    assert reading is None or reading.usage.prompt_tokens == 11


# -- AWS's frames -------------------------------------------------------------------------------------------------------


def framed(kind: str, payload: Mapping[str, Any]) -> bytes:
    """Return a frame of ``application/vnd.amazon.eventstream``."""
    named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in named.items()
    )
    body = json.dumps(payload).encode()
    begin = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    frame = begin + struct.pack(">I", zlib.crc32(begin)) + headers + body
    return frame + struct.pack(">I", zlib.crc32(frame))


def chunk(message: Mapping[str, Any]) -> bytes:
    return framed("chunk", {"bytes": base64.b64encode(json.dumps(message).encode()).decode()})


CONVERSED = [
    framed("messageStart", {"role": "assistant"}),
    framed("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x" * 300}}),
    framed("metadata", {"usage": {"inputTokens": 1000, "outputTokens": 50, "totalTokens": 1050}, "metrics": {}}),
]
INVOKED = [
    chunk({"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1000, "output_tokens": 1}}}),
    chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}}),
]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize(("frames", "model"), [(CONVERSED, None), (INVOKED, "m")])
def test_the_frames_of_aws_are_read_however_the_network_cuts_them(
    frames: list[bytes], model: str | None, size: int
) -> None:
    body = b"".join(frames)
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    request = httpx.Request("POST", "http://provider")
    assert wire.listen(httpx.Response(200, headers=headers, content=body, request=request)).reading().complete
    listener = wire.Listener(headers["content-type"])
    for start in range(0, len(body), size):
        listener.hear(body[start : start + size])
    reading = listener.reading()
    assert (reading.usage.prompt_tokens, reading.usage.completion_tokens) == (1000, 50)
    assert (reading.complete, reading.usage.model) == (True, model)


@pytest.mark.parametrize("body", [b"", b"\x00" * 50, b"\xff" * 50, CONVERSED[2][:-5], chunk({})[:-1], b"data: {}\n\n"])
def test_what_is_no_whole_frame_says_nothing(body: bytes) -> None:
    listener = wire.Listener("application/vnd.amazon.eventstream")
    listener.hear(body)
    listener.hear(body)
    assert listener.reading() is None
