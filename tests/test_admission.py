"""Admission counts the whole request, on every endpoint of a real proxy: what would use too much does not reach a provider."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from anything import Anything
from doors import config, environment
from rig import Rig

from pointsman_quota.tenants import hash_key

pytestmark = pytest.mark.proxy

KEY: Final = "sk-{}-0123456789abcdef"
#: About 4 500 tokens; the tenant has 1 500 a minute.
LONG: Final = "the quick brown fox jumps over lazy dogs " * 500
HI: Final[Any] = [{"role": "user", "content": "hi"}]
PNG: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
IMAGE: Final = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
MODELS: Final = {
    "chat": "openai/gpt-4o-mini",
    "dear": "openai/o1-pro",
    "claude": "anthropic/claude-sonnet-4-5",
    "gemini": "gemini/gemini-2.5-flash",
    "text": "text-completion-openai/gpt-3.5-turbo-instruct",
    "vectors": "openai/text-embedding-3-small",
    "moderator": "openai/omni-moderation-latest",
    "reranker": "cohere/rerank-english-v3.0",
    "speaker": "openai/tts-1",
    "painter": "openai/gpt-image-1",
    "writer": "openai/whisper-1",
    "reader": "mistral/mistral-ocr-latest",
    "director": "openai/sora-2",
}


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    limits: dict[str, dict[str, Any]] = {"tokens": {"tokens_per_minute": 1_500}, "money": {"usd_per_day": 0.01}}
    tenants = [
        {"id": name, "keys": [{"name": "k", "hash": hash_key(KEY.format(name), "0123456789abcdef")}], "limits": most}
        for name, most in limits.items()
    ]
    base = {"anthropic": "", "gemini": "", "cohere": "/v1/rerank"}
    with Rig(
        tmp_path_factory.mktemp("admission"),
        lambda _: [
            {
                "model_name": group,
                "litellm_params": {
                    "model": model,
                    "api_base": provider.url + base.get(model.partition("/")[0], "/v1"),
                    "api_key": "sk-provider",
                },
                "model_info": {"id": f"{group}-1"},
            }
            for group, model in MODELS.items()
        ],
        plugins=[{"quota": {"tenants": tenants, "output": {"default_tokens": 50}}}],
        config=config(provider),
        env=environment(provider),
    ) as running:
        yield running


def post(rig: Rig, tenant: str, path: str, **sent: Any) -> httpx.Response:
    key = KEY.format(tenant)
    headers = {"authorization": f"Bearer {key}", "x-goog-api-key": key}
    return httpx.post(f"{rig.proxy.url}{path}", headers=headers, timeout=60, **sent)


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"model": "chat", "messages": HI, **fields}


def user(content: object) -> tuple[str, dict[str, Any]]:
    return chat(messages=[{"role": "user", "content": content}])


def messages(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"model": "claude", "max_tokens": 5, "messages": HI, **fields}


def responses(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"model": "chat", "input": "hi", **fields}


def completions(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"model": "text", "prompt": "hi", **fields}


def gemini(parts: object = ({"text": "hi"},), **fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1beta/models/gemini:generateContent", {"contents": [{"role": "user", "parts": parts}], **fields}


FUNCTION: Final = {"name": "f", "description": LONG, "parameters": {"type": "object", "properties": {}}}
MANY_NAMES: Final = {"type": "object", "properties": {f"property_number_{n}": {"type": "string"} for n in range(800)}}
SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "title": LONG}}}
CALLED: Final = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": LONG})}}]
TEXT_FILE: Final = "data:text/plain;base64," + base64.b64encode(LONG.encode()).decode()
SOUND: Final = base64.b64encode(bytes(1_000_000)).decode()
PASSED: Final = {"messages": [{"role": "user", "content": LONG}]}

TOO_MANY_TOKENS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat: text": user(LONG),
    "chat: a part": user([{"type": "text", "text": LONG}]),
    "chat: system": chat(messages=[{"role": "system", "content": LONG}, *HI]),
    "chat: a tool's description": chat(tools=[{"type": "function", "function": FUNCTION}]),
    "chat: names of a tool": chat(tools=[{"type": "function", "function": {"name": "f", "parameters": MANY_NAMES}}]),
    "chat: functions": chat(functions=[FUNCTION]),
    "chat: a schema": chat(response_format=SCHEMA),
    "chat: a schema in extra_body": chat(extra_body={"response_format": SCHEMA}),
    "chat: a call": chat(messages=[*HI, {"role": "assistant", "tool_calls": CALLED}]),
    "chat: a tool's output": chat(messages=[*HI, {"role": "tool", "tool_call_id": "c", "content": LONG}]),
    "chat: a prediction": chat(prediction={"type": "content", "content": LONG}),
    "chat: a name": chat(messages=[{"role": "user", "name": LONG, "content": "hi"}]),
    "chat: a role": chat(messages=[{"role": LONG, "content": "hi"}]),
    "chat: a type": user([{"type": LONG, "text": "hi"}]),
    "chat: documents": chat(documents=[{"title": "t", "text": LONG}]),
    "chat: a file": user([{"type": "file", "file": {"filename": "a.txt", "file_data": TEXT_FILE}}]),
    "chat: images": user([IMAGE] * 3),
    "chat: sound": user([{"type": "input_audio", "input_audio": {"format": "wav", "data": SOUND}}]),
    "chat: max_tokens": chat(max_tokens=4_000),
    "chat: the larger of two limits": chat(max_tokens=5, max_completion_tokens=4_000),
    "chat: n": chat(n=40, max_tokens=50),
    "chat: thoughts": chat(model="claude", thinking={"type": "enabled", "budget_tokens": 4_000}),
    "messages: system": messages(system=[{"type": "text", "text": LONG}]),
    "messages: a tool": messages(tools=[{"name": "f", "description": LONG, "input_schema": {"type": "object"}}]),
    "messages: a result": messages(
        messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": LONG}]}]
    ),
    "responses: instructions": responses(instructions=LONG),
    "responses: an output": responses(input=[{"type": "function_call_output", "call_id": "c", "output": LONG}]),
    "responses: a schema": responses(text={"format": SCHEMA}),
    "responses: variables": responses(prompt={"id": "p", "variables": {"a": LONG}}),
    "responses: max_output_tokens": responses(max_output_tokens=4_000),
    "completions: token ids": completions(prompt=[100] * 4_000),
    "completions: several lists of them": completions(prompt=[[100] * 2_000, [5] * 2_000]),
    "completions: several prompts": completions(prompt=["a"] * 40, max_tokens=50),
    "completions: suffix": completions(suffix=LONG),
    "completions: best_of": completions(best_of=40, max_tokens=50),
    "embeddings: token ids": ("/v1/embeddings", {"model": "vectors", "input": [[1] * 4_000]}),
    "embeddings: texts": ("/v1/embeddings", {"model": "vectors", "input": [LONG, "a"]}),
    "moderations": ("/v1/moderations", {"model": "moderator", "input": LONG}),
    "rerank": ("/v1/rerank", {"model": "reranker", "query": "q", "documents": [{"title": LONG, "text": "a"}]}),
    "speech": ("/v1/audio/speech", {"model": "speaker", "input": LONG, "voice": "alloy"}),
    "images": ("/v1/images/generations", {"model": "painter", "prompt": LONG}),
    "videos": ("/v1/videos", {"model": "director", "prompt": LONG}),
    "interactions": ("/v1beta/interactions", {"model": "gemini", "input": "hi", "system_instruction": LONG}),
    "gemini: contents": gemini([{"text": LONG}]),
    "gemini: system": gemini(systemInstruction={"parts": [{"text": LONG}]}),
    "gemini: a tool": gemini(tools=[{"functionDeclarations": [{"name": "f", "description": LONG}]}]),
    "gemini: a result": gemini([{"functionResponse": {"name": "f", "response": {"r": LONG}}}]),
    "gemini: a schema": gemini(generationConfig={"responseSchema": {"type": "OBJECT", "description": LONG}}),
    "gemini: images": gemini([{"inlineData": {"mimeType": "image/png", "data": PNG}}] * 3),
    "gemini: code": gemini([{"executableCode": {"language": "PYTHON", "code": LONG}}]),
    "gemini: maxOutputTokens": gemini(generationConfig={"maxOutputTokens": 4_000}),
    "gemini: candidates": gemini(generationConfig={"maxOutputTokens": 50, "candidateCount": 40}),
    "gemini: thoughts": gemini(generationConfig={"thinkingConfig": {"thinkingBudget": 4_000}}),
    "gemini: config": gemini(config={"maxOutputTokens": 4_000}, generationConfig={"maxOutputTokens": 5}),
    "gemini: candidates in config": gemini(config={"maxOutputTokens": 50, "candidateCount": 40}),
    "gemini: a generationConfig in extra_body": gemini(extra_body={"generationConfig": {"maxOutputTokens": 4_000}}),
    "chat: a generationConfig in extra_body": chat(
        model="gemini", max_tokens=5, extra_body={"generationConfig": {"maxOutputTokens": 50, "candidateCount": 40}}
    ),
    "chat: thoughts in extra_body": chat(model="gemini", extra_body={"thinkingConfig": {"thinkingBudget": 4_000}}),
    "interactions: a generation_config in extra_body": (
        "/v1beta/interactions",
        {"model": "gemini", "input": "hi", "extra_body": {"generation_config": {"max_output_tokens": 4_000}}},
    ),
    "pass-through: anthropic": ("/anthropic/v1/messages", {"model": "claude-sonnet-4-5", "max_tokens": 5, **PASSED}),
    "pass-through: openai": ("/openai_passthrough/v1/chat/completions", {"model": "gpt-4o-mini", **PASSED}),
    "pass-through: gemini": (
        "/gemini/v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": [{"parts": [{"text": LONG}]}]},
    ),
}


@pytest.mark.parametrize("what", TOO_MANY_TOKENS)
def test_tokens_count_wherever_they_stand(rig: Rig, provider: Anything, what: str) -> None:
    path, body = TOO_MANY_TOKENS[what]
    before = len(provider.calls)
    answer = post(rig, "tokens", path, json=body)
    assert answer.status_code == 413, answer.text
    assert "tokens_per_minute" in answer.text
    assert len(provider.calls) == before


PICTURE: Final = ("a.png", b"\x89PNG" + bytes(3_000), "image/png")
#: One micro-dollar a page for each of a large document; 0.001 at Mistral.
PAPER: Final = "data:application/pdf;base64," + base64.b64encode(bytes(1_000_000)).decode()
URL: Final = {"type": "document_url", "document_url": "https://host/a.pdf"}

TOO_DEAR: dict[str, tuple[str, dict[str, Any]]] = {
    "an image": ("/v1/images/generations", {"json": {"model": "painter", "prompt": "a cat"}}),
    "edits": ("/v1/images/edits", {"data": {"model": "painter", "prompt": "a"}, "files": {"image": PICTURE}}),
    "characters": ("/v1/audio/speech", {"json": {"model": "speaker", "input": "abc " * 1_000, "voice": "alloy"}}),
    "seconds of samples": (
        "/v1/audio/transcriptions",
        {"data": {"model": "writer"}, "files": {"file": ("a.wav", b"RIFF" + bytes(2_000_000), "audio/wav")}},
    ),
    "seconds of compressed sound": (
        "/v1/audio/transcriptions",
        {"data": {"model": "writer"}, "files": {"file": ("a.mp3", b"ID3" + bytes(500_000), "audio/mpeg")}},
    ),
    "seconds, by another name": (
        "/v1/audio/transcriptions",
        {"data": {"model": "writer"}, "files": {"file": ("a.wav", b"ID3" + bytes(500_000), "text/plain")}},
    ),
    "documents": ("/v1/rerank", {"json": {"model": "reranker", "query": "q", "documents": ["a"] * 700}}),
    "pages": ("/v1/ocr", {"json": {"model": "reader", "document": {**URL, "document_url": PAPER}}}),
    "named pages": ("/v1/ocr", {"json": {"model": "reader", "document": URL, "pages": list(range(50))}}),
    "seconds of video": ("/v1/videos", {"json": {"model": "director", "prompt": "a", "seconds": "4"}}),
    "a video of any length": ("/v1/videos", {"json": {"model": "director", "prompt": "a"}}),
    "a fallback": ("/v1/chat/completions", {"json": {**chat()[1], "max_tokens": 100, "fallbacks": ["dear"]}}),
    "a fallback of settings": (
        "/v1/chat/completions",
        {
            "json": {
                **chat()[1],
                "max_tokens": 100,
                "router_settings_override": {"fallbacks": [{"chat": ["dear"]}]},
            }
        },
    ),
}


@pytest.mark.parametrize("what", TOO_DEAR)
def test_what_is_charged_by_other_units_is_reserved_in_them(rig: Rig, provider: Anything, what: str) -> None:
    path, sent = TOO_DEAR[what]
    before = len(provider.calls)
    answer = post(rig, "money", path, **sent)
    assert answer.status_code == 413, answer.text
    assert "usd_per_day" in answer.text
    assert len(provider.calls) == before


OVERRIDDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "seconds": ("/v1/videos", {"model": "director", "prompt": "a", "seconds": "4", "extra_body": {"seconds": "12"}}),
    "size": ("/v1/images/generations", {"model": "painter", "prompt": "a", "extra_body": {"size": "1536x1024"}}),
    "quality": ("/v1/images/generations", {"model": "painter", "prompt": "a", "extra_body": {"quality": "high"}}),
    "service_tier": chat(extra_body={"service_tier": "priority"}),
    "contents": chat(model="gemini", extra_body={"contents": [{"parts": [{"text": "another question"}]}]}),
    "modalities": chat(extra_body={"modalities": ["audio"]}),
}


@pytest.mark.parametrize("field", OVERRIDDEN)
def test_what_decides_the_price_is_not_overridden_after_admission(rig: Rig, provider: Anything, field: str) -> None:
    path, body = OVERRIDDEN[field]
    before = len(provider.calls)
    answer = post(rig, "tokens", path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "extra_body_not_supported")
    assert field in answer.json()["error"]["message"]
    assert len(provider.calls) == before


FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "a short recording": (
        "/v1/audio/transcriptions",
        {"data": {"model": "writer"}, "files": {"file": ("a.wav", b"RIFF" + bytes(160_000), "audio/wav")}},
    ),
    "a word": ("/v1/audio/speech", {"json": {"model": "speaker", "input": "hi", "voice": "alloy"}}),
    "a document": ("/v1/rerank", {"json": {"model": "reranker", "query": "q", "documents": ["a"]}}),
    "a question": ("/v1/chat/completions", {"json": {**chat()[1], "max_tokens": 100}}),
}


@pytest.mark.parametrize("what", FITS)
def test_what_fits_is_served(rig: Rig, what: str) -> None:
    """A clip is not taken for text."""
    path, sent = FITS[what]
    assert post(rig, "money", path, **sent).status_code == 200


@pytest.mark.parametrize("model", ["chat", "claude"])
def test_what_a_request_goes_on_from_is_reserved(rig: Rig, provider: Anything, model: str) -> None:
    """By what the answer has used; one that is not known may be as long as the model can read."""
    used = {"input_tokens": 600, "output_tokens": 40, "total_tokens": 640}
    provider.makes = {
        "id": f"{model}_kept",
        "object": "response",
        "type": "message",
        "usage": used,
        "usageMetadata": None,
    }
    try:
        path, first = responses(model=model, max_output_tokens=5)
        kept = post(rig, "money", path, json=first).json()["id"]
        answers = [
            post(rig, "money", path, json={**first, "previous_response_id": id_}) for id_ in (kept, "resp_of_before")
        ]
    finally:
        provider.makes = {}
    assert [answer.status_code for answer in answers] == [200, 413], [answer.text for answer in answers]
    carried = [row["carried"] for row in rig.rows() if row["hook"] == "pre_route"]
    assert carried[-2:] == [640, 0]
