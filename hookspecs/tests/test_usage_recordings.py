"""A property of usage: however an answer is sent and whatever is wrong with its usage block, the bill is the same.

The answers are recorded ones: a sample in ``tests/recordings``, and all of those where POINTSMAN_RECORDINGS or
``../shared/recordings`` beside the repository has them. For every one of them and every mutation of its usage block, the
plain and the streamed form are read alike, no count of the block is lost, and nothing is free that was used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman import pricing
from pointsman.testing import FakeClock, Harness, deployment
from pointsman.types import Attempt, Endpoint, Identity, Price, RequestContext, Usage

wire = pytest.importorskip("pointsman.litellm.raw_answers")

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("POINTSMAN_RECORDINGS") or REPOSITORY.parent / "shared" / "recordings")
FILES = {"sample": REPOSITORY / "tests" / "recordings" / "exchanges.jsonl", "recorded": SHARED / "exchanges.jsonl"}
#: No part is dearer than the whole that it belongs to, so that a bill has an upper bound.
PRICE = Price(
    input_usd=Decimal(3),
    output_usd=Decimal(15),
    cache_read_usd=Decimal("0.3"),
    cache_write_usd=Decimal(3),
    search_medium_usd=Decimal(1),
    file_search_usd=Decimal(1),
    code_session_usd=Decimal(1),
    search_unit_usd=Decimal(2),
)
WRONG = (None, 0, "many", "17", " 17.0 ", -3, True, 1.5, 2 * 10**10, 10**18, [], {})
#: What has no price, so that an answer with it is unpriced; and what does not fit the rest of the block.
UNPRICED: Mapping[str, Mapping[str, Any]] = {
    "a new tool": {"server_tool_use": {"web_search_requests": 1, "frobnicate_requests": 2}},
    "a count of searches that is a text": {"server_tool_use": {"web_search_requests": "many"}},
    "another's tool": {"server_side_tool_usage_details": {"x_search_calls": 2}},
    "sources": {"num_sources_used": 3},
    "tools without names": {"num_server_side_tools_used": 3},
    "tools in a text": {"num_server_side_tools_used": "many"},
}
UNFIT: Mapping[str, Mapping[str, Any]] = {
    "all is text": {"text_tokens": 10**9},
    "text and sound": {"text_tokens": 10**9, "audio_tokens": 1},
    "many images": {"image_tokens": 10**9},
    "negative": {"audio_tokens": -1},
    "huge": {"cached_tokens": 10**15},
}
DETAILS = {
    "chat": "prompt_tokens_details",
    "responses": "input_tokens_details",
    "messages": "input_tokens_details",
}


@dataclass(frozen=True)
class Recorded:
    """An answer: its usage block, and what is needed to send it again in both forms."""

    id: str
    kind: str
    block: dict[str, Any]
    rest: dict[str, Any]


def of_modality(*counts: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"modality": kind, "tokenCount": count} for kind, count in counts]


#: Answers of which there are no recordings, in the words of their documentation.
OTHERS = [
    Recorded(
        "google-1",
        "gemini",
        {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 50,
            "thoughtsTokenCount": 300,
            "toolUsePromptTokenCount": 200,
            "cachedContentTokenCount": 600,
            "totalTokenCount": 1550,
            "promptTokensDetails": of_modality(("TEXT", 700), ("AUDIO", 300)),
            "cacheTokensDetails": of_modality(("TEXT", 500), ("AUDIO", 100)),
            "candidatesTokensDetails": of_modality(("TEXT", 50)),
            "trafficType": "ON_DEMAND",
        },
        {"modelVersion": "gemini-2.5-flash"},
    ),
    Recorded(
        "google-2",
        "gemini",
        {"promptTokenCount": 10, "totalTokenCount": 110, "thoughtsTokenCount": 100},
        {"modelVersion": "gemini-2.5-flash"},
    ),
    Recorded(
        "aws-1",
        "bedrock",
        {
            "inputTokens": 100,
            "outputTokens": 50,
            "totalTokens": 1850,
            "cacheReadInputTokens": 1000,
            "cacheWriteInputTokens": 700,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 500}, {"ttl": "5m", "inputTokens": 200}],
        },
        {},
    ),
    Recorded(
        "moonshot-1",
        "moonshot",
        {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "cached_tokens": 400},
        {"model": "kimi-k2.6"},
    ),
    Recorded(
        "alibaba-1",
        "chat",
        {
            "prompt_tokens": 2000,
            "completion_tokens": 50,
            "total_tokens": 2050,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_creation": {"ephemeral_5m_input_tokens": 1500},
                "cache_creation_input_tokens": 1500,
                "cache_type": "ephemeral",
            },
        },
        {"model": "qwen3.7-max"},
    ),
    Recorded(
        "xai-1",
        "responses",
        {
            "input_tokens": 1000,
            "output_tokens": 320,
            "total_tokens": 1320,
            "input_tokens_details": {"cached_tokens": 300},
            "output_tokens_details": {"reasoning_tokens": 300},
        },
        {"model": "grok-4.3"},
    ),
]
#: The recordings, and those.
KINDS = (*FILES, "others")


def documents(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for line in row["body"].splitlines() if "\n" in row["body"].strip() else [row["body"]]:
        text = line.strip().removeprefix("data:").strip()
        if text.startswith("{"):
            try:
                document = json.loads(text)
            except ValueError:
                continue
            found.append(document)
    try:
        whole = json.loads(row["body"])
    except ValueError:
        return found
    return [whole] if isinstance(whole, dict) else found


def recorded(row: Mapping[str, Any]) -> Recorded | None:
    """Return an answer, its parts put together as the provider says that they belong; None where it has no usage."""
    block: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    kind = "chat"
    for document in documents(row):
        places = [document, *(v for k in ("response", "message", "delta") if isinstance(v := document.get(k), dict))]
        for place in places:
            if isinstance(usage := place.get("usage"), dict):
                # Of a stream, the last figure is the final one; Anthropic's last message has only some of them.
                block |= {key: value for key, value in usage.items() if value is not None}
            if isinstance(place.get("model"), str):
                rest["model"] = place["model"]
        if {"eval_count", "prompt_eval_count"} & set(document):
            kind, block = "ollama", {k: document[k] for k in ("eval_count", "prompt_eval_count") if k in document}
        if isinstance(meta := document.get("meta"), dict) and "billed_units" in meta:
            kind, block = "cohere", {k: meta[k] for k in ("billed_units", "tokens") if k in meta}
        if isinstance(response := document.get("response"), dict) and isinstance(response.get("meta"), dict):
            kind, block = (
                "cohere",
                {k: response["meta"][k] for k in ("billed_units", "tokens") if k in response["meta"]},
            )
    if not block:
        return None
    path = row["path"].partition("?")[0]
    if "billed_units" in block and kind != "cohere":
        kind = "cohere2"
    elif path.endswith("/messages"):
        kind = "messages"
    elif path.endswith("/responses"):
        kind = "responses"
    elif path.endswith("/embeddings"):
        kind = "embeddings"
    return Recorded(row["id"], kind, block, rest)


def load(file: str) -> list[Recorded]:
    """Return the recorded answers, one for each shape of a usage block and kind of answer."""
    if file == "others":
        return OTHERS
    if not FILES[file].exists():
        pytest.skip(f"no recordings at {FILES[file]}")
    rows = (json.loads(line) for line in FILES[file].read_text().splitlines())
    answers = (answer for row in rows if row["status"] == 200 and (answer := recorded(row)) is not None)
    return list({json.dumps([a.kind, a.block], sort_keys=True): a for a in answers}.values())


def plain(answer: Recorded, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    match answer.kind:
        case "chat" | "moonshot":
            return [{"object": "chat.completion", "choices": [], "usage": block, **answer.rest}]
        case "gemini":
            return [{"candidates": [{"finishReason": "STOP"}], "usageMetadata": block, **answer.rest}]
        case "bedrock":
            return [{"output": {"message": {}}, "stopReason": "end_turn", "usage": block}]
        case "embeddings":
            return [{"object": "list", "data": [{"embedding": [0.1]}], "usage": block, **answer.rest}]
        case "responses":
            return [{"object": "response", "output": [], "usage": block, **answer.rest}]
        case "messages":
            return [{"type": "message", "content": [], "usage": block, **answer.rest}]
        case "cohere":
            return [{"text": "x", "meta": block, **answer.rest}]
        case "cohere2":
            return [{"message": {"role": "assistant"}, "usage": block, **answer.rest}]
    return [{"message": {"role": "assistant"}, "done": True, **block, **answer.rest}]


def streamed(answer: Recorded, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    match answer.kind:
        case "chat":
            start = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}], **answer.rest}
            return [start, {**start, "choices": [], "usage": block}]
        case "moonshot":
            start = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}], **answer.rest}
            return [start, {**start, "choices": [{"delta": {}, "finish_reason": "stop", "usage": block}]}]
        case "gemini":
            start = {"candidates": [{"content": {"parts": [{"text": "x"}]}}], **answer.rest}
            return [start, {**start, "candidates": [{"finishReason": "STOP"}], "usageMetadata": block}]
        case "bedrock":
            return [{"contentBlockIndex": 0, "delta": {"text": "x"}}, {"usage": block, "metrics": {"latencyMs": 1}}]
        case "responses":
            created = {"object": "response", "status": "in_progress", "output": [], "usage": None, **answer.rest}
            done = {**created, "status": "completed", "usage": block}
            return [
                {"type": "response.created", "response": created},
                {"type": "response.output_text.delta", "delta": "x"},
                {"type": "response.completed", "response": done},
            ]
        case "messages":
            start = {k: v for k, v in block.items() if k != "output_tokens"}
            end = {k: v for k, v in block.items() if k == "output_tokens"}
            return [
                {"type": "message_start", "message": {"type": "message", "usage": start, **answer.rest}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
            ]
        case "cohere":
            return [
                {"event_type": "text-generation", "text": "x", **answer.rest},
                {"event_type": "stream-end", "response": {"text": "x", "meta": block, **answer.rest}},
            ]
        case "cohere2":
            return [
                {"type": "content-delta", "delta": {"message": {"content": {"text": "x"}}}, **answer.rest},
                {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": block}},
            ]
    start = {"message": {"content": "x"}, "done": False, **answer.rest}
    return [start, {**start, "done": True, **block}]


def heard(answer: Recorded, messages: list[dict[str, Any]], *, stream: bool) -> Any:
    return listening(answer, messages, stream=stream).reading()


def listening(answer: Recorded, messages: list[dict[str, Any]], *, stream: bool) -> Any:
    by_line = "application/x-ndjson" if answer.kind == "ollama" else "text/event-stream"
    listener = wire.Listener(by_line if stream else "application/json")
    for message in messages:
        text = json.dumps(message).encode() + b"\n"
        listener.hear(b"data: " + text + b"\n" if stream and answer.kind != "ollama" else text)
    return listener


def mutations(block: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the block with each of its values missing or wrong, at any depth, and with its keys in another order."""
    yield "unchanged", dict(block)
    yield "reordered", dict(reversed(block.items()))
    yield "zeros", emptied(block, 0)
    yield "nulls", emptied(block, None)
    for key, value in block.items():
        yield f"without {key}", {k: v for k, v in block.items() if k != key}
        for wrong in WRONG:
            yield f"{key}: {wrong!r}", {**block, key: wrong}
        if isinstance(value, dict):
            for name, inner in mutations(value):
                yield f"{key}.{name}", {**block, key: inner}
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{key}: text", {**block, key: str(value)}
            yield f"{key}: 3 times", {**block, key: value * 3}


def emptied(value: Any, number: int | None) -> Any:
    """Return a block with this in the place of all its numbers."""
    if isinstance(value, dict):
        return {key: emptied(item, number) for key, item in value.items()}
    return number if isinstance(value, int | float) and not isinstance(value, bool) else value


def facts(reading: Any) -> tuple[Any, ...] | None:
    if reading is None:
        return None
    names = [name for name in Usage.__slots__ if name not in {"raw", "parts"}]
    return (reading.prompt_known, reading.completion_known, *(getattr(reading.usage, name) for name in names))


def amounts(value: Any) -> Iterator[int]:
    """Yield the numbers in a block, also those that are text."""
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from amounts(item)
    elif isinstance(value, str) and value.strip().removesuffix(".0").isdigit():
        yield int(value.strip().removesuffix(".0"))
    elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        yield int(value)


def shape(value: Any) -> Any:
    """Return what a block is made of, whatever its numbers."""
    if isinstance(value, Mapping):
        return sorted((key, shape(item)) for key, item in value.items())
    return type(value).__name__, bool(value)


def answers(file: str) -> Iterator[tuple[Recorded, str, dict[str, Any]]]:
    """Yield all blocks as they are, and one of each shape in all mutations."""
    shapes = set()
    for answer in load(file):
        kind = json.dumps([answer.kind, shape(answer.block)])
        if kind in shapes:
            yield answer, "unchanged", answer.block
            continue
        shapes.add(kind)
        for name, block in mutations(answer.block):
            yield answer, name, block


@pytest.mark.parametrize("file", KINDS)
def test_plain_and_streamed_answers_cost_the_same(file: str) -> None:
    """Messages of Anthropic are compared where both halves are whole: they are each other's only witnesses."""
    seen = 0
    for answer, name, block in answers(file):
        if answer.kind == "embeddings":
            continue
        whole, pieces = (
            heard(answer, plain(answer, block), stream=False),
            heard(answer, streamed(answer, block), stream=True),
        )
        if answer.kind == "messages" and (whole is None or not whole.complete or pieces is None or not pieces.complete):
            assert whole is None or not whole.complete, (answer.id, name)
            continue
        assert facts(whole) == facts(pieces), (answer.id, answer.kind, name)
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("file", KINDS)
def test_what_was_used_is_never_free_and_never_more_than_the_block_says(file: str) -> None:
    """What is not known is said not to be known: then it is estimated, or unpriced."""
    seen = 0
    for answer, name, block in answers(file):
        reading = heard(answer, plain(answer, block), stream=False)
        said = list(amounts(block))
        if reading is None or not reading.complete:
            continue
        cost = pricing.total_usd(reading.usage, lambda _: PRICE)
        if cost is None:
            # A tool of which it is not known how often it was used.
            assert reading.usage.other_tools, (answer.id, name)
            continue
        # The whole and its parts are all in the block: each token is in it at most a few times.
        assert 0 <= cost <= 15 * sum(said), (answer.id, name, reading.usage)
        if said and not reading.usage.contradictory:
            used = reading.usage
            assert cost > 0 or not (used.total_tokens or used.search_units), (answer.id, name)
        if any(said) and not cost:
            # Zeros that the block itself has for the tokens that are charged.
            charged = {k: v for k, v in block.items() if k.endswith(("_tokens", "_count")) or k == "billed_units"}
            main = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
            assert not any(amounts({k: v for k, v in charged.items() if k in main})), (answer.id, name, reading.usage)
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("file", KINDS)
def test_a_later_message_erases_nothing(file: str) -> None:
    """A usage block that comes again without counts, or with zeros or nulls for them, changes nothing."""
    seen = 0
    for answer in load(file):
        if answer.kind == "embeddings":
            continue
        messages = streamed(answer, answer.block)
        right = facts(heard(answer, messages, stream=True))
        for empty in (None, 0, "?"):
            # Another text may be a correction.
            again = {key: empty for key, value in answer.block.items() if not isinstance(value, str)}
            last = streamed(answer, again)[-1]
            assert facts(heard(answer, [*messages, last], stream=True)) == right, (answer.id, answer.kind, empty)
            assert facts(heard(answer, [*messages, *messages], stream=True)) == right, (answer.id, answer.kind)
            seen += 1
    assert seen > 10


def bills(answer: Recorded, block: Mapping[str, Any]) -> list[Any]:
    """Return what is read of the plain and of the streamed answer, which is the same where both are whole."""
    whole = heard(answer, plain(answer, block), stream=False)
    if answer.kind == "embeddings":
        return [whole]
    pieces = heard(answer, streamed(answer, block), stream=True)
    if whole is not None and pieces is not None and whole.complete and pieces.complete:
        assert facts(whole) == facts(pieces), (answer.id, answer.kind, block)
    return [whole, pieces]


@pytest.mark.parametrize("name", UNPRICED)
@pytest.mark.parametrize("file", FILES)
def test_what_is_not_understood_is_unpriced(file: str, name: str) -> None:
    """However the rest of the block is."""
    seen = 0
    for answer, mutation, block in answers(file):
        if answer.kind in {"ollama", "cohere", "cohere2"}:
            # They have no tools of their own.
            continue
        for reading in bills(answer, {**block, **UNPRICED[name]}):
            if reading is not None:
                cost = pricing.total_usd(reading.usage, lambda _: PRICE)
                assert cost is None, (answer.id, answer.kind, mutation, reading.usage)
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("file", FILES)
def test_parts_that_do_not_fit_are_marked_and_never_cost_more_than_the_whole(file: str, name: str) -> None:
    seen = 0
    for answer in load(file):
        if answer.kind not in DETAILS:
            continue
        block = {**answer.block, DETAILS[answer.kind]: UNFIT[name]}
        without = {key: value for key, value in block.items() if key != DETAILS[answer.kind]}
        for reading in bills(answer, block):
            if reading is None or not reading.complete:
                continue
            assert reading.usage.contradictory, (answer.id, answer.kind, reading.usage)
            cost = pricing.total_usd(reading.usage, lambda _: PRICE)
            right = pricing.total_usd(bills(answer, without)[0].usage, lambda _: PRICE)
            assert cost is not None
            assert right is not None
            assert cost <= right, (answer.id, answer.kind, reading.usage)
            seen += 1
    assert seen > 3


# -- the bill -----------------------------------------------------------------------------------------------------------

#: What was generated in each of the answers below.
SAID = "It is warm today in Turin."
PROMPT = "How is the weather in Turin?"
ENDPOINTS = {"messages": Endpoint.MESSAGES, "responses": Endpoint.RESPONSES, "embeddings": Endpoint.EMBEDDINGS}
BODIES: Mapping[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": PROMPT}]},
    Endpoint.MESSAGES: {"messages": [{"role": "user", "content": PROMPT}]},
    Endpoint.RESPONSES: {"input": PROMPT},
}


def translated(endpoint: Endpoint) -> tuple[dict[str, Any], Any]:
    """Return an answer as LiteLLM passes it on, whole and as the piece of a stream that has its text.

    They name the model as LiteLLM does, which is not always how the provider does, nor the same in both.
    """
    match endpoint:
        case Endpoint.MESSAGES:
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": SAID}}
            return {
                "model": "one",
                "content": [{"type": "text", "text": SAID}],
            }, f"data: {json.dumps(delta)}\n\n".encode()
        case Endpoint.RESPONSES:
            parts = [{"type": "output_text", "text": SAID}]
            whole = {"object": "response", "model": "one", "output": [{"type": "message", "content": parts}]}
            return whole, {"type": "response.output_text.delta", "delta": SAID}
    delta = SimpleNamespace(content=SAID)
    piece = SimpleNamespace(model="two", choices=[SimpleNamespace(index=0, delta=delta, finish_reason=None)])
    return {"model": "one", "choices": [{"message": {"content": SAID}}]}, piece


class Bills:
    """Closes attempts with what a provider has said, plain and streamed."""

    def __init__(self, h: Harness) -> None:
        closing = pytest.importorskip("pointsman.litellm.closing")
        prices = pytest.importorskip("pointsman.litellm.prices")
        tokenizer = pytest.importorskip("pointsman.litellm.tokenizer")
        self._reader = pytest.importorskip("pointsman.litellm.stream").StreamReader
        self._closer = closing.Closer(prices.CostMap(), tokenizer.PromptTokenizer(), FakeClock())
        self._h = h
        self._number = 0

    async def attempts(self, answer: Recorded, block: Mapping[str, Any]) -> tuple[Attempt, Attempt]:
        """Return what is billed: the plain answer and the stream."""
        endpoint = ENDPOINTS.get(answer.kind, Endpoint.CHAT)
        whole, piece = translated(endpoint)
        self._number += 1
        ctx = RequestContext(
            request_id=f"request-{self._number}",
            endpoint=endpoint,
            model="chat",
            stream=False,
            identity=Identity(),
            received_at=0.0,
            body=BODIES[endpoint],
        )
        exchange = self._h.host.open(ctx)
        await exchange.admit()
        found = []
        for stream in (False, True):
            _, opened = await exchange.begin(deployment("d", model="gpt-4o-mini"), gateway=True)
            messages = (streamed if stream else plain)(answer, block)
            opened.listeners.append(listening(answer, messages, stream=stream))
            if stream:
                reader = self._reader()
                reader.read(piece)
                self._closer.end_stream(opened, reader, {}, None, ctx)
            else:
                self._closer.succeed(opened, whole, ctx)
            found.append(opened.attempt)
        exchange.close(200)
        return found[0], found[1]


def bill(attempt: Attempt, answer: Recorded) -> Any:
    """Return what is owed, to which model, and how sure it is."""
    usage = attempt.usage
    model = attempt.model if "model" in answer.rest else None
    if usage is None:
        return model, None
    cost = pricing.total_usd(usage, lambda _: PRICE)
    return model, cost, usage.prompt_tokens, usage.completion_tokens, usage.estimated, usage.contradictory


@pytest.mark.parametrize("file", FILES)
async def test_the_bill_is_the_same_plain_and_streamed_and_never_nothing(
    file: str, harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the block is of no use and the bill rests on an estimate: then it is not above that and the block."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    async with harness([]) as h:
        bills = Bills(h)
        different, seen = [], 0
        for answer, name, block in answers(file):
            if answer.kind == "embeddings":
                continue
            whole, pieces = await bills.attempts(answer, block)
            if (one := bill(whole, answer)) != (other := bill(pieces, answer)):
                different.append((answer.id, answer.kind, name, one, other))
            if whole.usage is not None:
                cost = pricing.total_usd(whole.usage, lambda _: PRICE)
                assert cost is None or cost > 0, (answer.id, name, whole.usage)
            seen += 1
        assert not different, different[:20]
        assert seen > 100
