"""All plugins on one real proxy, in one configuration: every request passes through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from pointsman.testing import eventually
from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

PLUGINS = ("quota", "registry", "canary", "signals", "balance", "racing", "shadow", "billing")
TENANT_KEY = "a-key-of-acme-with-enough-letters"


def models(upstream: str) -> list[dict[str, Any]]:
    rows = [
        ("fast", "gpt-4o-mini", "openai", "fast-1"),
        ("fast", "gpt-4o-mini", "openai", "fast-2"),
        ("slow", "gpt-4.1", "openai", "slow-1"),
        ("next", "gpt-4o", "openai", "next-1"),
        ("claude", "claude-haiku-4-5-20251001", "anthropic", "claude-1"),
    ]
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": f"{provider}/{model}",
                "api_base": upstream if provider == "anthropic" else f"{upstream}/v1",
                "api_key": "upstream-key",
            },
            "model_info": {"id": deployment},
        }
        for group, model, provider, deployment in rows
    ]


def section(directory: str) -> dict[str, Any]:
    tenant = {"id": "acme", "match": {"header_values": ["acme"]}, "limits": {"tokens_per_minute": 1_000_000}}
    mirror = {"name": "try-next", "model": "fast", "challenger": "next", "sample_rate": 1.0}
    race = {"name": "swift", "candidates": ["slow", "fast"], "strategy": "first_wins", "budget_ratio": 4}
    return {
        "store": {"backend": "disk", "path": f"{directory}/store"},
        "plugins": [
            {"quota": {"tenants": [tenant], "trusted_header": {"name": "x-tenant"}}},
            {
                "registry": {
                    "versions": [{"id": "v1", "name": "assistant", "version": "1", "path": "fast", "active": True}]
                }
            },
            {"canary": {}},
            {"signals": {}},
            {"balance": {"tactic": "adaptive"}},
            {"racing": {"models": [race]}},
            {"shadow": {"flush_s": 0.1, "max_lag_ms": 60_000, "mirrors": [mirror]}},
            {"billing": {"sinks": [{"ndjson": {"path": f"{directory}/bills.ndjson"}}]}},
        ],
    }


class Gateway:
    """The proxy and its clients."""

    def __init__(self, proxy: ProxyServer, upstream: UpstreamServer) -> None:
        self.proxy = proxy
        self.upstream = upstream
        headers = {"x-tenant": "acme"}
        self.http = httpx.Client(base_url=proxy.url, headers={**proxy.headers, **headers}, timeout=30, trust_env=False)
        key = proxy.master_key
        self.openai = openai.OpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0, default_headers=headers)
        self.anthropic = anthropic.Anthropic(auth_token=key, base_url=proxy.url, max_retries=0, default_headers=headers)

    def look(self, path: str, enough: Callable[[Any], bool]) -> Any:
        """Read a route until it says enough."""
        return eventually(lambda: self.http.get(f"/pointsman{path}").raise_for_status().json(), enough)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("together")
    with UpstreamServer() as upstream:
        upstream.behave("gpt-4.1", Behaviour(latency=Delay(median_ms=5_000)))
        config = {
            "model_list": models(upstream.url),
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "pointsman": section(str(directory)),
        }
        with ProxyServer(config, directory) as proxy:
            running = Gateway(proxy, upstream)
            yield running
            for client in (running.http, running.openai, running.anthropic):
                client.close()


def ask(gateway: Gateway, endpoint: str, *, stream: bool) -> None:
    """Send one request with the provider's own client and read the whole answer."""
    text = "Say something."
    answer: Any
    match endpoint:
        case "chat":
            answer = gateway.openai.chat.completions.create(
                model="assistant", messages=[{"role": "user", "content": text}], stream=stream
            )
        case "responses":
            answer = gateway.openai.responses.create(model="assistant", input=text, stream=stream)
        case _:
            answer = gateway.anthropic.messages.create(
                model="claude", max_tokens=64, messages=[{"role": "user", "content": text}], stream=stream
            )
    if stream:
        assert len(list(answer)) > 1
    else:
        assert answer.usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_every_api_passes_all_plugins(gateway: Gateway, endpoint: str, stream: bool) -> None:
    """And is billed to its tenant, once."""

    def billed(found: Any) -> int:
        return sum(row["requests"] for row in found["usage"])

    path = "/billing/usage?tenant=acme"
    before = billed(gateway.http.get(f"/pointsman{path}").raise_for_status().json())
    ask(gateway, endpoint, stream=stream)
    found = gateway.look(path, lambda found: billed(found) > before)
    assert billed(found) == before + 1
    gateway.look("/billing/reconcile", lambda found: found["in_order"])


def test_a_race_is_won_counted_and_paid_for_by_the_tenant(gateway: Gateway) -> None:
    """Of two attempts one wins; the tenant has one more request, whose cost is that of the winner and of the loser."""
    usage = "/billing/usage?tenant=acme"

    def state(found: Any) -> tuple[int, int, int]:
        rows = found["usage"]
        return tuple(sum(row[name] for row in rows) for name in ("requests", "attempts", "cost_usd_micros"))

    races_before = gateway.http.get("/pointsman/racing/swift").raise_for_status().json()["counts"]
    billed_before = state(gateway.http.get(f"/pointsman{usage}").raise_for_status().json())
    answer = gateway.http.post(
        "/v1/chat/completions", json={"model": "swift", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-pointsman-raced"]
    assert answer.headers["x-pointsman-attempts"] == "2"
    assert answer.headers["x-litellm-model-id"] in {"fast-1", "fast-2"}

    raced = gateway.look("/racing/swift", lambda found: found["counts"]["losers"] > races_before["losers"])["counts"]
    gained = {name: raced[name] - races_before[name] for name in raced}
    names = ("requests", "answered", "attempts", "extra", "losers", "failed")
    assert [gained[name] for name in names] == [1, 1, 2, 1, 1, 0]

    billed = state(gateway.look(usage, lambda found: state(found)[0] > billed_before[0]))
    requests, attempts, cost_usd_micros = (now - before for now, before in zip(billed, billed_before, strict=True))
    tokens = answer.json()["usage"]
    # Per million tokens gpt-4o-mini costs 0.15 USD for the prompt and 0.60 USD for the completion.
    winner_usd_micros = 0.15 * tokens["prompt_tokens"] + 0.6 * tokens["completion_tokens"]
    assert (requests, attempts) == (1, 2)
    assert gained["losers_usd_micros"] > 0
    assert cost_usd_micros == pytest.approx(winner_usd_micros + gained["losers_usd_micros"], abs=1)


def test_every_plugin_says_that_it_works(gateway: Gateway) -> None:
    status = gateway.http.get("/pointsman/status").raise_for_status().json()
    plugins = {row["name"]: row["ok"] for row in status["plugins"]}
    assert plugins == dict.fromkeys(PLUGINS, True)
    assert status["faults"] == []


def test_the_mirror_saw_the_clients_requests_and_pays_itself(gateway: Gateway) -> None:
    gateway.http.post(
        "/v1/chat/completions", json={"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}
    ).raise_for_status()
    gateway.look("/shadow/try-next", lambda found: found["pairs"] >= 1)
    usage = gateway.look("/billing/usage?tenant=shadow:try-next", lambda found: found["usage"])["usage"]
    assert sum(row["prompt_tokens"] for row in usage) > 0
