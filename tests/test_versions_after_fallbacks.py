"""``x-pointsman-version`` names what has answered: after retries and each kind of fallback, on a real proxy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

SAVED = "Saved by another group."
CASES = [
    *((endpoint, stream) for endpoint in ("chat", "messages", "adapted", "responses") for stream in (False, True)),
    ("embeddings", False),
]
everywhere = pytest.mark.parametrize(
    ("endpoint", "stream"), CASES, ids=[f"{endpoint}-{'stream' if stream else 'plain'}" for endpoint, stream in CASES]
)
PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "adapted": "/v1/messages",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
BROKEN = Behaviour(error_ratios={500: 1.0})
#: Groups that are the path of a version, by what happens to them; each falls back in its own way.
GROUPS = {
    "dead": BROKEN,
    "alone": BROKEN,
    "own": BROKEN,
    "arm": BROKEN,
    "long": Behaviour(error_ratios={400: 1.0}, bad_request="context_window"),
    "blocked": Behaviour(error_ratios={400: 1.0}, bad_request="content_policy"),
    # The pieces come apart: an HTTP client may lose those that arrive together with the end of their connection.
    "early": Behaviour(fault="error_event", fault_after_events=1, per_token=Delay(median_ms=60)),
    "save": Behaviour(text=SAVED),
    "spare": Behaviour(text="The default."),
}


def once(endpoint: str, *, stream: bool) -> str:
    return f"once-{endpoint}-{stream}".lower()


def configuration(upstream: str) -> dict[str, Any]:
    groups = [*GROUPS, *(once(endpoint, stream=stream) for endpoint, stream in CASES)]
    names = [f"{prefix}{group}" for prefix in ("", "claude-") for group in groups]

    def deployment(group: str) -> dict[str, Any]:
        anthropic = group.startswith("claude-")
        params = {
            "model": f"{'anthropic' if anthropic else 'openai'}/{group}",
            "api_base": upstream if anthropic else f"{upstream}/v1",
            "api_key": "upstream-key",
        }
        return {"model_name": group, "litellm_params": params, "model_info": {"id": group}}

    def to_save(*kinds: str) -> list[dict[str, list[str]]]:
        return [{f"{p}{kind}": [f"{p}save"]} for p in ("", "claude-") for kind in kinds]

    versions = [{"id": f"v-{n}", "name": f"name-{n}", "version": "1", "path": n, "active": True} for n in names]
    arms = [
        {"id": f"{p}v{number}", "name": f"{p}tried", "version": number, "path": f"{p}{path}", "active": number == "1"}
        for p in ("", "claude-")
        for number, path in (("1", "save"), ("2", "arm"))
    ]
    experiments = [
        {
            "name": f"{p}trial",
            "model": f"{p}tried",
            "canary": {"version": f"{p}v2"},
            "fallback_to_stable": True,
            "steps": [99, 100],
        }
        for p in ("", "claude-")
    ]
    return {
        "model_list": [deployment(name) for name in names],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "default_fallbacks": ["spare"]},
        "router_settings": {
            "num_retries": 1,
            "retry_after": 0,
            "disable_cooldowns": True,
            "fallbacks": to_save("dead", "early"),
            "context_window_fallbacks": to_save("long"),
            "content_policy_fallbacks": to_save("blocked"),
        },
        "pointsman": {
            "store": {"backend": "memory"},
            "plugins": [{"canary": {"experiments": experiments}}, {"registry": {"versions": [*versions, *arms]}}],
        },
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with UpstreamServer() as upstream:
        for prefix in ("", "claude-"):
            for group, behaviour in GROUPS.items():
                upstream.behave(f"{prefix}{group}", behaviour)
            for endpoint, stream in CASES:
                once_ = Behaviour(fail_first=1, fail_with=503, text=SAVED)
                upstream.behave(f"{prefix}{once(endpoint, stream=stream)}", once_)
        directory = tmp_path_factory.mktemp("versions")
        with ProxyServer(configuration(upstream.url), directory) as proxy, proxy.client(timeout=60) as http:
            yield http


def ask(client: httpx.Client, endpoint: str, model: str, *, stream: bool, **more: Any) -> httpx.Response:
    prefix = "claude-" if endpoint == "messages" else ""
    body: dict[str, Any] = {"model": model.format(p=prefix), **more}
    if endpoint != "embeddings":
        body["stream"] = stream
    if endpoint in {"responses", "embeddings"}:
        body["input"] = "Say something."
    else:
        body |= {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 64}
    answer = client.post(PATHS[endpoint], json=body)
    assert answer.status_code == 200, answer.text
    pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert not any("error" in piece and piece["error"] for piece in pieces), answer.text
    return answer


@everywhere
def test_a_retry_is_of_the_version(client: httpx.Client, endpoint: str, stream: bool) -> None:
    answer = ask(client, endpoint, f"name-{{p}}{once(endpoint, stream=stream)}", stream=stream)
    assert (answer.headers["x-pointsman-version"], answer.headers["x-pointsman-attempts"]) == ("1", "2")


@everywhere
@pytest.mark.parametrize("kind", ["dead", "long", "blocked", "alone"])
def test_a_group_that_is_fallen_back_to_is_of_no_version(
    client: httpx.Client, endpoint: str, stream: bool, kind: str
) -> None:
    """By the group's fallbacks, those of context windows and content policies, and the default ones."""
    answer = ask(client, endpoint, f"name-{{p}}{kind}", stream=stream)
    assert "x-pointsman-version" not in answer.headers


@everywhere
def test_the_clients_own_fallback_is_of_no_version(client: httpx.Client, endpoint: str, stream: bool) -> None:
    prefix = "claude-" if endpoint == "messages" else ""
    answer = ask(client, endpoint, "name-{p}own", stream=stream, fallbacks=[f"{prefix}save"])
    assert "x-pointsman-version" not in answer.headers


@everywhere
def test_an_arm_that_is_saved_is_answered_by_the_version_of_stable(
    client: httpx.Client, endpoint: str, stream: bool
) -> None:
    answers = [ask(client, endpoint, "{p}tried", stream=stream) for _ in range(2)]
    assert {answer.headers["x-pointsman-version"] for answer in answers} == {"1"}
    assert "canary" in {answer.headers["x-pointsman-arm"] for answer in answers}


@pytest.mark.parametrize("endpoint", ["chat", "messages", "adapted", "responses"])
def test_a_stream_that_fails_before_content_is_answered_by_no_version(client: httpx.Client, endpoint: str) -> None:
    answer = ask(client, endpoint, "name-{p}early", stream=True)
    assert SAVED in "".join(re.findall(r'"(?:content|text|delta)": ?"([^"]*)"', answer.text))
    assert "x-pointsman-version" not in answer.headers
