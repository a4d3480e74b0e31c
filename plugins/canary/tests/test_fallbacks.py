"""When an arm and stable have both failed, a real proxy goes on with the fallbacks that LiteLLM would have used."""

from __future__ import annotations

import re

import pytest

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "adapted": "/v1/messages",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
#: Endpoint and whether it is a stream; messages on Anthropic's own API and translated to OpenAI's.
CASES = [*((endpoint, stream) for endpoint in list(PATHS)[:-1] for stream in (False, True)), ("embeddings", False)]
everywhere = pytest.mark.parametrize(
    ("endpoint", "stream"), CASES, ids=[f"{endpoint}-{'stream' if stream else 'plain'}" for endpoint, stream in CASES]
)
#: What is before the names of the groups that speak Anthropic's API.
NATIVE = "claude-"
DEAD = Behaviour(error_ratios={500: 1.0})
BEHAVIOURS = {
    "arm": DEAD,
    "arm-backed": DEAD,
    "arm-raced": DEAD,
    "dead": DEAD,
    "dead-backed": DEAD,
    "known": DEAD,
    "long": Behaviour(error_ratios={400: 1.0}, bad_request="context_window"),
    "prudish": Behaviour(error_ratios={400: 1.0}, bad_request="content_policy"),
    "well": Behaviour(text="The answer of stable."),
    "save": Behaviour(text="Saved by another group."),
}
#: Experiments: stable, the canary, and whether stable answers for it.
EXPERIMENTS = {
    "plain": ("dead", "arm", True),
    "raced": ("dead", "arm-raced", True),
    "stable-backed": ("dead-backed", "arm", True),
    "stable-backed-raced": ("dead-backed", "arm-raced", True),
    "arm-backed": ("dead", "arm-backed", True),
    "stable-long": ("long", "arm", True),
    "stable-prudish": ("prudish", "arm", True),
    "healthy": ("well", "arm", True),
    "healthy-backed": ("well", "arm-backed", True),
    "known": ("dead", "arm", False),
}


def configuration(upstream):
    def deployment(group):
        native = group.startswith(NATIVE)
        params = {
            "model": f"{'anthropic' if native else 'openai'}/{group}",
            "api_base": upstream if native else f"{upstream}/v1",
            "api_key": "upstream-key",
        }
        return {"model_name": group, "litellm_params": params, "model_info": {"id": group}}

    def to_save(*groups):
        return [{f"{p}{group}": [f"{p}save"]} for p in ("", NATIVE) for group in groups]

    experiments = [
        {
            "name": f"{p}{name}",
            "model": f"{p}{name if name in BEHAVIOURS else f'trial-{name}'}",
            "stable": f"{p}{stable}",
            "canary": f"{p}{canary}",
            "fallback_to_stable": saved,
            "steps": [100],
        }
        for p in ("", NATIVE)
        for name, (stable, canary, saved) in EXPERIMENTS.items()
    ]
    return {
        "model_list": [deployment(f"{p}{group}") for p in ("", NATIVE) for group in BEHAVIOURS],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "fallbacks": to_save("dead-backed", "arm-backed", "known"),
            "context_window_fallbacks": to_save("long"),
            "content_policy_fallbacks": to_save("prudish"),
        },
        "pointsman": {
            "store": {"backend": "memory"},
            "plugins": [
                {"canary": {"experiments": experiments}},
                {"racing": {"groups": {f"{p}arm-raced": {} for p in ("", NATIVE)}}},
            ],
        },
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with UpstreamServer() as upstream:
        for prefix in ("", NATIVE):
            for group, behaviour in BEHAVIOURS.items():
                upstream.behave(f"{prefix}{group}", behaviour)
        directory = tmp_path_factory.mktemp("fallbacks")
        with ProxyServer(configuration(upstream.url), directory) as proxy, proxy.client(timeout=60) as http:
            yield http


@pytest.fixture
def ask(client, endpoint, stream):
    """Return a function that sends a request for an experiment's name and returns the answer."""

    def send(name, fallbacks=None):
        prefix = NATIVE if endpoint == "messages" else ""
        body = {"model": f"{prefix}{name if name in BEHAVIOURS else f'trial-{name}'}", "stream": stream}
        if fallbacks is not None:
            body["fallbacks"] = fallbacks(prefix, body["model"])
        if endpoint in {"responses", "embeddings"}:
            body["input"] = "Say something."
        else:
            body |= {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 64}
        if endpoint == "embeddings":
            del body["stream"]
        return client.post(PATHS[endpoint], json=body)

    return send


def answered_by(answer, endpoint):
    """Return the group that has answered a request with content."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-pointsman-arm"] == "canary"
    if endpoint == "embeddings":
        return answer.headers["x-litellm-model-id"]
    text = "".join(re.findall(r'"(?:content|text|delta)": ?"([^"]*)"', answer.text))
    return next(group for group in ("save", "well") if BEHAVIOURS[group].text in text)


@everywhere
@pytest.mark.parametrize("name", ["plain", "raced"])
@pytest.mark.parametrize(
    "fallbacks",
    [
        lambda prefix, _: [f"{prefix}save"],
        lambda prefix, _: [{"model": f"{prefix}save"}],
        lambda prefix, model: [{model: [f"{prefix}save"]}],
    ],
    ids=["names", "parameters", "by-group"],
)
def test_the_clients_own_fallbacks_follow_stable(ask, endpoint, name, fallbacks):
    assert answered_by(ask(name, fallbacks), endpoint) == "save"


@everywhere
@pytest.mark.parametrize(
    "name", ["stable-backed", "stable-backed-raced", "arm-backed", "stable-long", "stable-prudish"]
)
def test_the_configured_fallbacks_follow_stable(ask, endpoint, name):
    """Those of stable's group, also of context windows and content policies, and those of the arm's."""
    assert answered_by(ask(name), endpoint) == "save"


@everywhere
@pytest.mark.parametrize("fallbacks", [None, lambda prefix, _: [f"{prefix}save"]], ids=["configured", "clients"])
def test_stable_is_first(ask, endpoint, fallbacks):
    assert answered_by(ask("healthy-backed", fallbacks), endpoint) == "well"


@everywhere
def test_an_arm_without_fallbacks_has_those_of_the_model_that_is_asked_for(ask, endpoint):
    assert answered_by(ask("known"), endpoint) == "save"


@everywhere
def test_without_further_fallbacks_the_client_gets_the_error(ask):
    assert ask("plain").status_code == 500
