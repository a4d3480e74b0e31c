"""Recorded provider traffic through the real proxy: what the provider said arrives in the hooks exactly.

A few exchanges in the shapes that the providers document are in ``recordings``. More are looked for in
``../shared/recordings`` beside the repository, or where POINTSMAN_RECORDINGS says.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import Rig

from pointsman.testing.provider import PICK_HEADER, RecordedExchange, ReplayIndex, UpstreamServer

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("POINTSMAN_RECORDINGS") or REPOSITORY.parent / "shared" / "recordings")
FILES = {"sample": REPOSITORY / "tests" / "recordings" / "exchanges.jsonl", "recorded": FOLDER / "exchanges.jsonl"}

pytestmark = [
    pytest.mark.proxy,
    pytest.mark.timeout(600),
]

#: Recorded host: the model group that reaches it, LiteLLM's model, and the base URL's path.
HOSTS = {
    "api.openai.com": ("openai", "openai/recorded", "/v1"),
    "traceloop-stg.openai.azure.com": ("azure", "azure/{deployment}", ""),
    "sample.openai.azure.com": ("azure", "azure/{deployment}", ""),
    "api.anthropic.com": ("anthropic", "anthropic/recorded", ""),
    # LiteLLM's own groq handler fails on answers without service_tier, as recorded; the protocol is OpenAI's.
    "api.groq.com": ("groq", "openai/recorded", "/openai/v1"),
    "api.mistral.ai": ("mistral", "mistral/recorded", "/v1"),
    "api.together.xyz": ("together", "together_ai/recorded", "/v1"),
    "localhost:8000": ("vllm", "hosted_vllm/recorded", "/v1"),
    "127.0.0.1:11434": ("ollama", "ollama_chat/llama3", ""),
    "api.cohere.com": ("cohere", "cohere_chat/command-r", "{path}"),
}
#: How many recorded answers LiteLLM itself cannot read and turns into an error of its own.
UNREADABLE = {
    "traceloop-stg.openai.azure.com": 1,  # a filtered answer without a message
    "api.cohere.com": 9,  # v2 streams with an event: line before each data: line
}
AZURE_DEPLOYMENTS = ("openllmetry-testing", "gpt-5-nano", "gpt-4o-mini")
COHERE_PATHS = ("/v1/chat", "/v2/chat")


def model_list(upstream: str) -> list[dict[str, Any]]:
    entries = []
    for group, model, base in HOSTS.values():
        if group == "azure":
            entries += [
                entry(f"azure-{name}", f"azure/{name}", upstream, api_version="2024-02-01")
                for name in AZURE_DEPLOYMENTS
            ]
        elif group == "cohere":
            for path in COHERE_PATHS:
                version = "v1/" if path.startswith("/v1") else ""
                entries.append(entry(f"cohere{path}", f"cohere_chat/{version}command-r", upstream + path))
        else:
            entries.append(entry(group, model, upstream + base))
    return entries


def entry(group: str, model: str, base: str, **params: Any) -> dict[str, Any]:
    return {
        "model_name": group,
        "litellm_params": {"model": model, "api_base": base, "api_key": "upstream-key", **params},
        "model_info": {"id": f"{group}-1"},
    }


def group_of(exchange: RecordedExchange) -> str:
    group = HOSTS[exchange.host][0]
    if group == "azure":
        return f"azure-{exchange.path.split('/deployments/')[1].split('/')[0]}"
    return f"cohere{exchange.path}" if group == "cohere" else group


def request_of(exchange: RecordedExchange) -> tuple[str, dict[str, Any]]:
    """Return the proxy's path and body that make LiteLLM repeat the recorded request."""
    body: dict[str, Any] = {**exchange.request, "model": group_of(exchange)}
    path = exchange.path.partition("?")[0]
    if path.endswith("/messages"):
        return "/v1/messages", body
    if path.endswith("/responses"):
        return "/v1/responses", body
    if path.endswith("/embeddings"):
        return "/v1/embeddings", body
    if exchange.host in {"127.0.0.1:11434", "api.cohere.com"}:
        messages = body.get("messages") or [{"role": "user", "content": body.get("message", "hi")}]
        texts = [{"role": m["role"], "content": m.get("content") or "hi"} for m in messages if m["role"] != "tool"]
        body = {"model": body["model"], "messages": texts, "stream": bool(body.get("stream"))}
    return "/v1/chat/completions", body


def events(body: str) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        text = line.removeprefix("data:").strip()
        if text.startswith("{"):
            yield json.loads(text)


def recorded_usage(exchange: RecordedExchange) -> tuple[int, int] | None:
    """Return the provider's own prompt and completion tokens, or None where it sent none."""
    documents = list(events(exchange.body)) if exchange.stream else [json.loads(exchange.body)]
    merged: dict[str, Any] = {}
    for document in documents:
        nested = document.get("response") or document.get("message") or {}
        for found in (document.get("usage"), nested.get("usage") if isinstance(nested, dict) else None):
            merged.update({k: v for k, v in (found or {}).items() if v is not None})
        if {"eval_count", "prompt_eval_count"} <= set(document):
            merged = {"prompt_tokens": document["prompt_eval_count"], "completion_tokens": document["eval_count"]}
    if "prompt_tokens" in merged:
        return merged["prompt_tokens"], merged.get("completion_tokens") or 0
    if "input_tokens" in merged:
        cached = sum(merged.get(k) or 0 for k in ("cache_read_input_tokens", "cache_creation_input_tokens"))
        return merged["input_tokens"] + cached, merged["output_tokens"]
    return None


def is_limit(name: str) -> bool:
    return "ratelimit" in name or "call-limit" in name or name.startswith("retry-after")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    upstream = UpstreamServer(replay=ReplayIndex.load(request.param))
    config = {
        "general_settings": {"forward_client_headers_to_llm_api": True},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"drop_params": True},
    }
    with Rig(tmp_path_factory.mktemp("recordings"), model_list, config=config, upstream=upstream) as running:
        yield running


def cells() -> Iterator[Any]:
    """Return each file with each of its hosts."""
    for name, file in FILES.items():
        if not file.exists():
            yield pytest.param(file, "", marks=pytest.mark.skip(f"no recordings at {file}"), id=name)
            continue
        hosts = {exchange.host for exchange in ReplayIndex.load(file)}
        for host in HOSTS:
            if host in hosts:
                yield pytest.param(file, host, id=f"{name}-{host}")


@pytest.mark.parametrize(("rig", "host"), list(cells()), indirect=["rig"], scope="module")
def test_what_the_provider_said_arrives_in_the_hooks(
    rig: Rig, host: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Every rate-limit header, usage, model and deployment of every recorded exchange with this provider."""
    file = request.node.callspec.params["rig"]
    exchanges = [exchange for exchange in ReplayIndex.load(file) if exchange.host == host]
    assert exchanges
    wrong: list[str] = []
    unreadable: list[str] = []
    checked: Counter[str] = Counter()
    with rig.proxy.client(timeout=60) as client:
        for exchange in exchanges:
            path, body = request_of(exchange)
            headers = {"x-test-case": exchange.id, PICK_HEADER: exchange.id}
            answer = client.post(path, json=body, headers=headers)
            rows = rig.of_case(exchange.id)
            if answer.status_code >= 400 > exchange.status:
                unreadable.append(f"{exchange.id}: {answer.text[:200]}")
                assert [row["outcome"] for row in rows if row["hook"] == "on_error"] == ["error"]
                continue
            assert (answer.status_code < 400) == (exchange.status < 400), (exchange.id, answer.text[:500])
            (attempt,) = [row for row in rows if row["hook"] in {"post_response", "on_error"}]
            expected = {name: value for name, value in exchange.headers.items() if is_limit(name)}
            got = {name: value for name, value in attempt["headers"].items() if is_limit(name)}
            if expected != got:
                wrong.append(f"{exchange.id} headers: recorded {expected}, in the hook {got}")
            checked["headers"] += len(expected)
            if attempt["deployment"] != f"{body['model']}-1":
                wrong.append(f"{exchange.id} deployment {attempt['deployment']}")
            if exchange.status >= 400:
                checked["errors"] += 1
                continue
            usage = recorded_usage(exchange)
            if usage is not None:
                checked["usage"] += 1
                found = (attempt["usage"]["prompt"], attempt["usage"]["completion"])
                if found != usage or attempt["usage"]["estimated"]:
                    wrong.append(
                        f"{exchange.id} {path} stream={exchange.stream} usage {usage} became {attempt['usage']}"
                    )
            checked["answers"] += 1
    assert not wrong, "\n".join(wrong)
    assert (
        checked["headers"] == sum(is_limit(name) for exchange in exchanges for name in exchange.headers) or unreadable
    )
    record_property("checked", dict(checked))
    assert len(unreadable) <= UNREADABLE.get(host, 0), "\n".join(unreadable)
