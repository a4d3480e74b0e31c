"""When every breaker of a group is open, what the request falls back to answers at once, raced or not: on a real proxy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
#: Groups whose deployments all fail, by how a request gets to them.
GROUPS = ("plain", "raced", "own-plain", "own-raced", "ordered-plain", "ordered-raced")
ASKED = ("plain", "raced", "swift", "own-plain", "own-raced", "ordered-plain", "ordered-raced")
#: Groups whose first deployment by ``order`` is drained; no breaker opens in them.
INACTIVE = ("inactive-plain", "inactive-raced")
#: Breakers stay open for the whole test.
OPEN_S = 3600


@dataclass
class Gateway:
    http: httpx.Client
    upstream: UpstreamServer

    def ask(self, group: str, endpoint: str, *, stream: bool) -> Counter[str]:
        """Return what was called for one request."""
        before = len(self.upstream.requests)
        body: dict[str, Any] = {"model": group, "stream": stream}
        if group.startswith("own-"):
            body["fallbacks"] = ["spare"]
        words = [{"role": "user", "content": "Say something."}]
        body |= {"input": words} if endpoint == "responses" else {"messages": words, "max_tokens": 64}
        answer = self.http.post(PATHS[endpoint], json=body)
        assert answer.status_code == 200, answer.text
        return Counter(request.model for request in self.upstream.requests[before:])


def configuration(upstream: str) -> dict[str, Any]:
    def deployment(group: str, name: str, **params: Any) -> dict[str, Any]:
        params = {"model": f"openai/{name}", "api_base": f"{upstream}/v1", "api_key": "upstream-key", **params}
        return {"model_name": group, "litellm_params": params, "model_info": {"id": name}}

    broken = [
        deployment(group, f"{group}-{number}", **({"order": 1} if group.startswith("ordered") else {}))
        for group in GROUPS
        for number in range(2)
    ]
    for group in INACTIVE:
        broken.append(deployment(group, f"{group}-first", order=1))
        broken[-1]["model_info"]["active"] = False
        broken.append(deployment(group, f"{group}-second", order=2))
    spares = [deployment("spare", "spare")]
    spares += [deployment(group, f"spare-{group}", order=2) for group in GROUPS if group.startswith("ordered")]
    race = {"name": "swift", "candidates": ["raced"]}
    breaker = {"open_s": OPEN_S, "max_open_s": OPEN_S, "consecutive_errors": 1}
    return {
        "model_list": [*broken, *spares],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "fallbacks": [{name: ["spare"]} for name in ("plain", "raced")],
        },
        "pointsman": {
            "store": {"backend": "memory"},
            "plugins": [
                {
                    "racing": {
                        "models": [race],
                        "groups": {name: {} for name in (*GROUPS, *INACTIVE) if name.endswith("raced")},
                    }
                },
                {"balance": {"tactic": "round_robin", "breaker": breaker}},
            ],
        },
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with UpstreamServer() as upstream:
        for group in GROUPS:
            for number in range(2):
                upstream.behave(f"{group}-{number}", Behaviour(error_ratios={503: 1.0}))
            upstream.behave(f"spare-{group}", Behaviour())
        upstream.behave("spare", Behaviour())
        directory = tmp_path_factory.mktemp("breakers")
        with ProxyServer(configuration(upstream.url), directory) as proxy, proxy.client(timeout=60) as http:
            gateway = Gateway(http, upstream)
            for group in ASKED:
                for _ in range(3):
                    gateway.ask(group, "chat", stream=False)
            yield gateway


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("endpoint", PATHS)
@pytest.mark.parametrize("group", ASKED)
def test_nothing_is_called_behind_open_breakers_when_there_is_a_fallback(
    gateway: Gateway, group: str, endpoint: str, stream: bool
) -> None:
    """The gateway's, the client's own, and another ``order`` of the group."""
    calls = gateway.ask(group, endpoint, stream=stream)
    assert calls == {f"spare-{group}" if group.startswith("ordered") else "spare": 1}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("endpoint", list(PATHS))
@pytest.mark.parametrize("group", INACTIVE)
def test_another_order_answers_for_one_that_is_drained(
    gateway: Gateway, group: str, endpoint: str, stream: bool
) -> None:
    for _ in range(2):
        assert gateway.ask(group, endpoint, stream=stream) == {f"{group}-second": 1}


@pytest.fixture(scope="module")
def cooling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Breakers beside LiteLLM's own cooldowns; of the group to fall back to, the second deployment fails."""
    with UpstreamServer() as upstream:
        names = {"tired": ("tired-1", "tired-2"), "spare": ("spare-good", "spare-bad")}
        for name in ("tired-1", "tired-2", "spare-bad"):
            upstream.behave(name, Behaviour(error_ratios={500: 1.0}))
        models = [
            {
                "model_name": group,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": f"{upstream.url}/v1",
                    "api_key": "upstream-key",
                    "order": place + 1,
                },
                "model_info": {"id": name},
            }
            for group, members in names.items()
            for place, name in enumerate(members)
        ]
        breaker = {"open_s": OPEN_S, "max_open_s": OPEN_S, "consecutive_errors": 1}
        config = {
            "model_list": models,
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "router_settings": {
                "num_retries": 0,
                "fallbacks": [{"tired": ["spare"]}],
                "allowed_fails": 0,
                "cooldown_time": 1,
            },
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"balance": {"breaker": breaker}}]},
        }
        with ProxyServer(config, tmp_path_factory.mktemp("cooling")) as proxy, proxy.client(timeout=60) as http:
            yield http


@pytest.mark.parametrize("endpoint", list(PATHS))
def test_open_breakers_cool_no_other_groups_deployment_down(cooling: httpx.Client, endpoint: str) -> None:
    """LiteLLM logs that no deployment was left as a failure of the one that answers instead."""
    words = [{"role": "user", "content": "Say something."}]
    body = {
        "model": "tired",
        **({"input": words} if endpoint == "responses" else {"messages": words, "max_tokens": 64}),
    }
    for _ in range(12):
        answer = cooling.post(PATHS[endpoint], json=body)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("group", ["own-plain", "own-raced"])
def test_a_fallback_that_does_not_exist_is_none(gateway: Gateway, group: str, stream: bool) -> None:
    """Without one, a group is called although all of its breakers are open: the client gets the provider's own error."""
    before = len(gateway.upstream.requests)
    body = {
        "model": group,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hello."}],
        "fallbacks": ["no-such"],
    }
    answer = gateway.http.post(PATHS["chat"], json=body)
    assert (answer.status_code, len(gateway.upstream.requests) > before) == (503, True), answer.text
