"""Attempts that cannot be ended: no client waits for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from stuck_provider import STUCK_S

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

#: Each with the group that decides the race; ``stuck`` starts first.
RACES = {"won": ["stuck", "fast"], "closed": ["late-close", "fast"], "lost": ["stuck", "refusing"], "late": ["stuck"]}
STATUS = {"won": 200, "closed": 200, "lost": 400, "late": 504}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with UpstreamServer() as upstream:
        upstream.behave("fast", Behaviour(text="quick"))
        upstream.behave("refusing", Behaviour(error_ratios={400: 1.0}))
        models: dict[str, dict[str, Any]] = {name: {"model": f"stuck/{name}"} for name in ("stuck", "late-close")}
        for name in ("fast", "refusing"):
            models[name] = {"model": f"openai/{name}", "api_base": f"{upstream.url}/v1", "api_key": "upstream-key"}
        delay = {"fixed_ms": 300, "fixed_plain_ms": 300}
        races = [
            {"name": name, "candidates": [{"target": t, "priority": i} for i, t in enumerate(targets)]}
            for name, targets in RACES.items()
        ]
        defaults = {"delay": delay, "budget_ratio": 4, "timeout_ms": 2000, "plain_timeout_ms": 2000}
        config = {
            "model_list": [{"model_name": name, "litellm_params": params} for name, params in models.items()],
            "litellm_settings": {
                "callbacks": ["pointsman.litellm.handler"],
                "custom_provider_map": [{"provider": "stuck", "custom_handler": "stuck_provider.stuck"}],
            },
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [{"racing": {"models": races, "defaults": defaults, "budget": {"ratio": 4}}}],
            },
        }
        with (
            ProxyServer(
                config, tmp_path_factory.mktemp("stuck"), python_path=(Path(__file__).parent / "support",)
            ) as proxy,
            proxy.client(timeout=STUCK_S / 2) as http,
        ):
            yield http


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("race", list(RACES))
def test_an_attempt_that_goes_on_after_its_end_is_not_waited_for(client: httpx.Client, race: str, stream: bool) -> None:
    body = {"model": race, "messages": [{"role": "user", "content": "Hi."}], "stream": stream}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == STATUS[race], answer.text
    text = "".join(re.findall(r'"content":"([^"]*)"', answer.text))
    assert (text == "quick") == (answer.status_code == 200)
