"""A race whose attempts LiteLLM's response cache answers costs nothing: neither the winner nor what is cancelled with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

MODELS = {"one": "openai/gpt-4o-mini", "other": "openai/gpt-4.1-mini"}
ASK = [{"role": "user", "content": "Say something that was said before."}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": ASK},
    "messages": {"messages": ASK, "max_tokens": 64},
    "responses": {"input": "Say something that was said before."},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, UpstreamServer]]:
    with UpstreamServer() as upstream:
        race = {"name": "race", "strategy": "quality", "candidates": [{"target": name} for name in MODELS]}
        config = {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {"model": model, "api_base": f"{upstream.url}/v1", "api_key": "any"},
                    "model_info": {"id": name},
                }
                for name, model in MODELS.items()
            ],
            "litellm_settings": {
                "callbacks": ["pointsman.litellm.handler"],
                "cache": True,
                "cache_params": {"type": "local"},
            },
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [{"racing": {"models": [race], "defaults": {"budget_ratio": 1.0}}}, {"billing": {}}],
            },
        }
        with ProxyServer(config, tmp_path_factory.mktemp("raced")) as proxy, proxy.client(timeout=60) as client:
            yield client, upstream


@pytest.mark.parametrize("path", BODIES)
def test_a_race_that_the_cache_answers_is_free(gateway: tuple[httpx.Client, UpstreamServer], path: str) -> None:
    client, upstream = gateway

    def bill(model: str, *, stream: bool) -> dict[str, Any]:
        answer = client.post(f"/v1/{path}", json={"model": model, "stream": stream, **BODIES[path]}).raise_for_status()
        at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
        return dict(eventually(lambda: client.get(at), lambda one: one.status_code == 200).json())

    raced = bill("race", stream=False)
    assert raced["bill"] == "billed"
    # LiteLLM logs the first attempt as the client's call.
    assert [event["gateway_cost_usd"] for event in raced["events"]] == [event["cost_usd"] for event in raced["events"]]
    for stream in (False, True):
        for name in MODELS:
            # LiteLLM writes to its cache after the answer, and keeps nothing of what is cancelled.
            eventually(lambda: bill(name, stream=stream), lambda found: found["bill"] == "free")  # noqa: B023  # called at once
    calls = len(upstream.requests)
    for stream in (False, True):
        again = bill("race", stream=stream)
        assert (again["bill"], again["cost_usd"], again["events"]) == ("free", "0", [])
    assert len(upstream.requests) == calls
