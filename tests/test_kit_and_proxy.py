"""What plugins are told of a request is the same in the testing kit as on a real proxy, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from anything import Anything, anything
from doors import config, environment
from recorder import contexts, plugin
from rig import Rig

from pointsman.testing import Harness
from pointsman.types import Deployment, Endpoint

pytestmark = pytest.mark.proxy

CALLER = {"metadata": {"trip": "rome", "user_id": "u-1"}, "user": "end-1"}
TURNS = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        path: Where it goes.
        endpoint: What plugins call it.
        body: What the client sends, as JSON or as the fields of a form.
        model: What the kit is told that it asks for; by default what the body says.
        headers: More headers.
        files: Files of a form, by field; of each name, content and kind.
        stream: Whether it wants a stream.
    """

    path: str
    endpoint: Endpoint
    body: dict[str, Any]
    model: str = "chat"
    headers: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] | None = None
    stream: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """The body as plugins see it, with the files of a form."""
        told: dict[str, Any] = {}
        for name, one in self.uploads:
            upload = dict(zip(("filename", "data", "type"), one, strict=True))
            several = isinstance((self.files or {})[name], list)
            told[name] = [*told.get(name, ()), upload] if several else upload
        return self.body | told

    @property
    def uploads(self) -> list[tuple[str, Any]]:
        """The files of a form, each with its field."""
        fields = (self.files or {}).items()
        return [(name, one) for name, given in fields for one in (given if isinstance(given, list) else [given])]


#: What no two requests have in common.
OWN = {"call_id", "client_host", "headers", "received_at", "request_id"}
#: Headers of every HTTP client.
TRANSPORT = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
CHAT = "/v1/chat/completions"
CASES = {
    "chat": Case(CHAT, Endpoint.CHAT, {"model": "chat", "messages": TURNS}),
    "chat, metadata": Case(CHAT, Endpoint.CHAT, {"model": "chat", "messages": TURNS, **CALLER}),
    "chat, litellm's metadata": Case(
        CHAT, Endpoint.CHAT, {"model": "chat", "messages": TURNS, "litellm_metadata": {"session_id": "s-1", "a": [1]}}
    ),
    "chat, both": Case(
        CHAT, Endpoint.CHAT, {"model": "chat", "messages": TURNS, "litellm_metadata": {"tags": ["x"]}, **CALLER}
    ),
    "chat, stream": Case(CHAT, Endpoint.CHAT, {"model": "chat", "messages": TURNS, "stream": True}, stream=True),
    "chat, headers": Case(
        CHAT,
        Endpoint.CHAT,
        {"model": "chat", "messages": TURNS},
        headers={"x-litellm-session-id": "session-12345", "x-litellm-tags": "a,b", "x-litellm-timeout": "20"},
    ),
    "chat, more": Case(
        CHAT,
        Endpoint.CHAT,
        {
            "model": "chat",
            "messages": TURNS,
            "max_tokens": 5,
            "n": 1,
            "num_retries": 1,
            "tags": ["t"],
            "extra_headers": {"x-a": "b"},
            "prompt_cache_key": "key-1",
            "service_tier": "auto",
            "cache": {"no-cache": True},
            "api_key": "sk-own",
        },
    ),
    "chat, model in path": Case(
        "/openai/deployments/chat/chat/completions?api-version=2024-10-21", Endpoint.CHAT, {"messages": TURNS}
    ),
    "completions": Case("/v1/completions", Endpoint.COMPLETIONS, {"model": "chat", "prompt": "hi", **CALLER}),
    "messages": Case("/v1/messages", Endpoint.MESSAGES, {"model": "chat", "messages": TURNS, "max_tokens": 5}),
    "messages, metadata": Case(
        "/v1/messages",
        Endpoint.MESSAGES,
        {
            "model": "chat",
            "messages": TURNS,
            "max_tokens": 5,
            "metadata": {"user_id": "user_a_session_12345678"},
            "litellm_metadata": {"a": {"b": "c"}},
        },
        headers={"x-claude-code-session-id": "session-77777777"},
    ),
    "responses": Case("/v1/responses", Endpoint.RESPONSES, {"model": "chat", "input": "hi", **CALLER}),
    "embeddings": Case("/v1/embeddings", Endpoint.EMBEDDINGS, {"model": "chat", "input": ["hi"], **CALLER}),
    "rerank": Case("/v1/rerank", Endpoint.RERANK, {"model": "chat", "query": "hi", "documents": ["a", "b"]}),
    "moderations": Case("/v1/moderations", Endpoint.MODERATIONS, {"model": "chat", "input": "hi"}),
    "images": Case("/v1/images/generations", Endpoint.IMAGES, {"model": "chat", "prompt": "hi", "n": 1}),
    "edits": Case(
        "/v1/images/edits",
        Endpoint.IMAGES,
        {"model": "chat", "prompt": "hi"},
        files={"image": [("a.png", b"PNG", "image"), ("b.png", b"PNG", "image")]},
    ),
    "speech": Case("/v1/audio/speech", Endpoint.SPEECH, {"model": "chat", "input": "hi", "voice": "alloy"}),
    "transcriptions": Case(
        "/v1/audio/transcriptions",
        Endpoint.TRANSCRIPTIONS,
        {"model": "chat", "language": "en"},
        files={"file": ("a.wav", b"RIFF", "audio/wav")},
    ),
    "ocr": Case(
        "/v1/ocr",
        Endpoint.OCR,
        {"model": "chat", "document": {"type": "document_url", "document_url": "https://example.com/a.pdf"}},
    ),
    "videos": Case("/v1/videos", Endpoint.VIDEOS, {"model": "chat", "prompt": "hi"}),
    "interactions": Case("/v1beta/interactions", Endpoint.INTERACTIONS, {"model": "chat", "input": "hi"}),
    "generateContent": Case(
        "/v1beta/models/chat:generateContent",
        Endpoint.GENERATE_CONTENT,
        {
            "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
            "generationConfig": {"maxOutputTokens": 5},
            "systemInstruction": {"parts": [{"text": "be kind"}]},
        },
    ),
    "count_tokens": Case("/v1/messages/count_tokens", Endpoint.COUNT_TOKENS, {"model": "chat", "messages": TURNS}),
    "batches": Case(
        "/v1/batches",
        Endpoint.BATCHES,
        {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}},
        model="",
    ),
    "pass-through": Case(
        "/openai_passthrough/v1/chat/completions",
        Endpoint.PASS_THROUGH,
        {"model": "gpt-4o", "messages": TURNS, **CALLER},
        model="gpt-4o",
    ),
}


def models(provider: Anything) -> list[dict[str, Any]]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    return [{"model_name": "chat", "litellm_params": params, "model_info": {"id": "chat-1"}}]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Path]]:
    place = tmp_path_factory.mktemp("contexts")
    file = place / "contexts.jsonl"
    with (
        anything() as provider,
        Rig(
            place,
            lambda _: models(provider),
            plugins=[{"contexts": {"file": str(file)}}],
            config=config(provider),
            env=environment(provider),
        ) as rig,
    ):
        yield rig, file


def recorded(file: Path, case: str, what: str) -> list[Any]:
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [row[what] for row in rows if row["case"] == case and what in row]


@pytest.mark.parametrize("name", CASES)
async def test_plugins_are_told_the_same(proxy: tuple[Rig, Path], tmp_path: Path, name: str) -> None:
    """The whole context, and the body of each attempt; nothing of the gateway's own, and no credential."""
    rig, file = proxy
    case, here = CASES[name], tmp_path / "contexts.jsonl"
    headers = {"x-test-case": name, **case.headers}
    content: dict[str, Any] = {"data": case.body, "files": case.uploads} if case.files else {"json": case.body}
    async with httpx.AsyncClient(base_url=rig.proxy.url, trust_env=False, timeout=30) as client:
        await client.post(
            case.path, headers={"authorization": "Bearer tenant-a", "cookie": "a=b", **headers}, **content
        )
    async with Harness(
        [(plugin, {"file": str(tmp_path / "rows.jsonl")}), (contexts, {"file": str(here)})],
        deployments=[Deployment(id="chat-1", group="chat", provider="openai", model="gpt-4o-mini")],
    ) as h:
        await h.request(
            model=case.model,
            endpoint=case.endpoint,
            stream=case.stream,
            api_key="tenant-a",
            body=case.told,
            headers=headers,
        )
    (real,), (kit,) = recorded(file, name, "context"), recorded(here, name, "context")
    assert kit.keys() == real.keys()
    assert {key: kit[key] for key in kit if key not in OWN} == {key: real[key] for key in real if key not in OWN}
    assert {key: value for key, value in real["headers"].items() if key not in TRANSPORT} == kit["headers"]
    if case.model == "chat":
        assert recorded(file, name, "body")[:1] == recorded(here, name, "body")[:1]


async def test_a_call_of_a_plugin_has_the_callers_identity_its_payer_and_its_parent(
    proxy: tuple[Rig, Path], tmp_path: Path
) -> None:
    """So that a rule about callers holds for mirrors and judges as well, whoever pays for them."""
    rig, file = proxy
    here, headers = tmp_path / "contexts.jsonl", {"x-test-mirror": "chat", "x-test-case": "mirrored"}
    body = {"model": "chat", "messages": TURNS, "user": "end-1"}
    async with httpx.AsyncClient(base_url=rig.proxy.url, trust_env=False, timeout=30) as client:
        answer = await client.post(CHAT, headers={"authorization": "Bearer tenant-a", **headers}, json=body)
    async with Harness(
        [(plugin, {"file": str(tmp_path / "rows.jsonl")}), (contexts, {"file": str(here)})],
        deployments=[Deployment(id="chat-1", group="chat", provider="openai", model="gpt-4o-mini")],
    ) as h:
        result = await h.request(api_key="tenant-a", body=body, headers=headers)
    (real,) = recorded(file, answer.headers["x-pointsman-request-id"], "own")
    assert [real] == recorded(here, result.request_id, "own")
    assert (real["kind"], real["payer"]) == ("mirror", "mirrors")
    assert (real["identity"]["tenant"], real["identity"]["end_user"]) == ("a", "end-1")
