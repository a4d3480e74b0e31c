"""Recorded provider traffic through a real LiteLLM proxy: every rate-limit header reaches the signal, in its unit.

Each exchange is asked for once, in the API of its provider. What ``GET /pointsman/signals`` shows afterwards is compared
with what the headers say.
"""

from __future__ import annotations

import time
from collections import Counter

import httpx
import pytest

from pointsman.testing.provider import PICK_HEADER, ReplayIndex, UpstreamServer
from pointsman.testing.proxy import ProxyServer

from .recorded import exchanges, expected, figure, rate_headers, recording

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

PATIENCE_S = 20.0
MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}
#: Host to LiteLLM's model name and the path of its API. LiteLLM cannot read the recorded answers of Groq as Groq's, so
#: they come through its OpenAI client.
HOSTS = {
    "api.openai.com": ("openai/gpt-4o", "/v1"),
    "traceloop-stg.openai.azure.com": ("azure/openllmetry-testing", ""),
    "api.anthropic.com": ("anthropic/claude-3-5-sonnet-20240620", ""),
    "api.groq.com": ("openai/llama3-8b-8192", "/openai/v1"),
    "api.mistral.ai": ("mistral/mistral-tiny", "/v1"),
    "api.together.xyz": ("together_ai/mixtral", "/v1"),
    "api.cohere.com/v1": ("cohere_chat/v1/command-r", "/v1/chat"),
    "api.cohere.com/v2": ("cohere_chat/command-r", "/v2/chat"),
}
#: An answer without a message, cut by the content filter: LiteLLM cannot read it and drops its headers with it.
UNREADABLE = {"e65a0d64d56f"}


def group_of(exchange):
    host, version = exchange["host"], exchange["path"].split("/")[1]
    return f"{host}/{version}" if f"{host}/{version}" in HOSTS else host


def question(exchange):
    """Return path and body of a request that makes LiteLLM ask for an exchange."""
    path = exchange["path"].partition("?")[0]
    if path.endswith("/embeddings"):
        return "/v1/embeddings", {"input": "hello"}
    if path.endswith("/responses"):
        return "/v1/responses", {"input": "hello"}
    return "/v1/chat/completions", MESSAGES | ({"stream": True} if exchange["request"].get("stream") else {})


@pytest.fixture
def gateway(tmp_path):
    with UpstreamServer(replay=ReplayIndex.load(recording())) as upstream:
        models = [
            {
                "model_name": group,
                "litellm_params": {
                    "model": model,
                    "api_base": upstream.url + path,
                    "api_key": "x",
                    **({"api_version": "2024-02-01"} if model.startswith("azure/") else {}),
                },
                "model_info": {"id": group},
            }
            for group, (model, path) in HOSTS.items()
        ]
        config = {
            "model_list": models,
            "general_settings": {"forward_client_headers_to_llm_api": True},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0, "drop_params": True},
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [{"signals": {"check_local": False, "steer": False, "dialects": {"api.groq.com": "groq"}}}],
            },
        }
        with ProxyServer(config, tmp_path) as proxy, httpx.Client(base_url=proxy.url, headers=proxy.headers) as client:
            yield client


def shown(client, group):
    (row,) = client.get("/pointsman/signals", params={"group": group}).raise_for_status().json()["signals"]
    return row


def ask(client, exchange):
    """Ask for an exchange; return the signal that comes of it."""
    group = group_of(exchange)
    path, body = question(exchange)
    before = shown(client, group)["last_used_at"]
    client.post(path, json={"model": group, **body}, headers={PICK_HEADER: exchange["id"]}, timeout=60.0)
    deadline = time.monotonic() + PATIENCE_S
    while (row := shown(client, group))["last_used_at"] == before:
        assert time.monotonic() < deadline, f"exchange {exchange['id']} of {group} left no signal"
        time.sleep(0.01)
    return row


def test_every_recorded_rate_limit_header_reaches_the_signal_through_the_proxy(gateway):
    seen = Counter()
    for exchange in exchanges():
        headers = rate_headers(exchange)
        if not headers or exchange["id"] in UNREADABLE:
            continue
        sent = time.time()
        row = ask(gateway, exchange)
        got = time.time()
        by_axis = {(limit["axis"], limit["window_s"]): limit for limit in row["limits"]}
        for name, text in headers.items():
            if (wanted := expected(exchange["host"], name, text, headers, sent)) is None:
                continue
            axis, window_s, part, value = wanted
            *_, latest = expected(exchange["host"], name, text, headers, got)
            assert value - 0.1 <= figure(by_axis[axis, window_s], part) <= latest + 0.1, (exchange["id"], name, text)
            seen[exchange["host"]] += 1
        if "x-ratelimit-tokens-query-cost" in headers:
            assert row["extra"]["query_cost_tokens"] == float(headers["x-ratelimit-tokens-query-cost"])
        if "x-ratelimit-abusepenalty-active" in headers:
            assert row["extra"]["abuse_penalty"] == 0.0
    assert len(seen) == 7, seen
    assert sum(seen.values()) > 1500, seen
