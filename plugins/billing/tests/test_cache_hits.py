"""What LiteLLM's response cache answers costs nothing, on every endpoint that it keeps answers of, plain and streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy


def talk(words: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], "max_tokens": 9}


def contents(words: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": words}]}]}


def said_as(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda words: {name: words}


CASES = [
    (path, model, body, stream)
    for path, model, body in (
        ("chat/completions", "mini", talk),
        ("chat/completions", "claude", talk),
        ("messages", "mini", talk),
        ("messages", "claude", talk),
        ("responses", "mini", said_as("input")),
        ("completions", "mini", said_as("prompt")),
    )
    for stream in (False, True)
] + [
    ("embeddings", "vectors", said_as("input"), False),
    # Gemini's API streams at an address of its own.
    ("/v1beta/models/mini:generateContent", "mini", contents, False),
    ("/v1beta/models/mini:streamGenerateContent?alt=sse", "mini", contents, False),
]
NAMES = [f"{path}-{model}-{'stream' if stream else 'plain'}" for path, model, _, stream in CASES]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, UpstreamServer]]:
    with UpstreamServer() as upstream:
        models = {
            "mini": ("openai/gpt-4o-mini", f"{upstream.url}/v1"),
            "claude": ("anthropic/claude-sonnet-4-5-20250929", upstream.url),
            "vectors": ("openai/text-embedding-3-small", f"{upstream.url}/v1"),
        }
        config = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": model, "api_base": base, "api_key": "any"}}
                for name, (model, base) in models.items()
            ],
            "litellm_settings": {
                "callbacks": ["pointsman.litellm.handler"],
                "cache": True,
                "cache_params": {"type": "local"},
            },
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {}}]},
        }
        with (
            ProxyServer(config, tmp_path_factory.mktemp("cache-hits")) as proxy,
            httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=60, trust_env=False) as client,
        ):
            yield client, upstream


@pytest.mark.parametrize(("path", "model", "body", "stream"), CASES, ids=NAMES)
def test_a_hit_is_free(
    gateway: tuple[httpx.Client, UpstreamServer],
    path: str,
    model: str,
    body: Callable[[str], dict[str, Any]],
    stream: bool,
) -> None:
    client, upstream = gateway
    # Each asks something else, so that each has a miss of its own: LiteLLM may keep one answer for several endpoints.
    asked = {
        "model": model,
        **body(f"hi, {path} of {model}"),
        **({"stream": True, "temperature": 0.5} if stream else {}),
    }

    def bill() -> dict[str, Any]:
        answer = client.post(path if path.startswith("/") else f"/v1/{path}", json=asked).raise_for_status()
        at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
        found = eventually(lambda: client.get(at), lambda one: one.status_code == 200)
        return dict(found.json())

    miss = bill()
    assert (miss["bill"], float(miss["cost_usd"]) > 0) == ("billed", True)
    # LiteLLM writes to its cache after the answer.
    hit = eventually(bill, lambda found: found["bill"] == "free")
    assert hit["cost_usd"] == "0"
    calls = len(upstream.requests)
    again = bill()
    assert (again["bill"], again["cost_usd"], len(upstream.requests)) == ("free", "0", calls)


def test_the_texts_that_the_cache_has_not_had_are_paid_for(gateway: tuple[httpx.Client, UpstreamServer]) -> None:
    """LiteLLM asks the provider for these alone, and marks the answer as one from its cache."""
    client, upstream = gateway

    def bill(*texts: str) -> dict[str, Any]:
        asked = {"model": "vectors", "input": [f"The {text} of several texts." for text in texts]}
        answer = client.post("/v1/embeddings", json=asked).raise_for_status()
        assert len(answer.json()["data"]) == len(texts)
        at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
        return dict(eventually(lambda: client.get(at), lambda one: one.status_code == 200).json())

    assert bill("first", "second")["bill"] == "billed"
    eventually(lambda: bill("first", "second"), lambda found: found["bill"] == "free")
    calls = len(upstream.requests)
    (attempt, _) = bill("first", "third")["events"]
    assert len(upstream.requests) == calls + 1
    assert upstream.requests[-1].body["input"] == ["The third of several texts."]
    assert attempt["metering"] == "exact"
    assert attempt["gateway_cost_usd"] == attempt["cost_usd"] != "0"
    eventually(lambda: bill("third", "first", "second"), lambda found: found["bill"] == "free")
