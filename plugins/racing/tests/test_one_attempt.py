"""A race on a real LiteLLM proxy is one attempt to what surrounds it: retries and fallbacks go on when it is lost."""

from __future__ import annotations

import json

import httpx
import pytest

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

SAVED = "Saved by another group."
#: Endpoint and whether it is a stream; messages on Anthropic's own API and translated to OpenAI's.
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
#: The model groups of each provider, with the number of their deployments.
GROUPS = {
    "dead": 2,
    "lost": 1,
    "long": 1,
    "blocked": 1,
    "policy": 1,
    "hollow": 1,
    "hollow-pair": 2,
    "sick": 1,
    "save": 1,
    "save-raced": 2,
}
RACED = ("dead", "lost", "long", "blocked", "hollow-pair", "save-raced", "policy", "ordered")
FALLBACKS = {"dead": "save", "sick": "save-raced"}


def once(endpoint, stream):
    """Return the group that fails once: in one test only."""
    return f"once-{endpoint}-{stream}".lower()


def own(endpoint, group):
    """Return the group's name among the deployments that speak the endpoint's own format."""
    return f"claude-{group}" if endpoint == "messages" else group


def behaviours():
    for prefix in ("", "claude-"):
        for group in ("dead", "lost", "sick"):
            yield f"{prefix}{group}", Behaviour(error_ratios={500: 1.0})
        yield f"{prefix}long", Behaviour(error_ratios={400: 1.0}, bad_request="context_window")
        yield f"{prefix}blocked", Behaviour(error_ratios={400: 1.0}, bad_request="content_policy")
        yield f"{prefix}policy", Behaviour(fail_first=3, fail_with=500)
        yield f"{prefix}hollow", Behaviour(text="")
        yield f"{prefix}hollow-pair", Behaviour(text="")
        yield f"{prefix}save", Behaviour(text=SAVED, latency=Delay(median_ms=200))
        yield f"{prefix}save-raced", Behaviour(text=SAVED)
    for endpoint, stream in CASES:
        yield own(endpoint, once(endpoint, stream)), Behaviour(fail_first=1, fail_with=503)


def configuration(upstream):
    counts = {f"{prefix}{group}": count for prefix in ("", "claude-") for group, count in GROUPS.items()}
    counts |= {own(endpoint, once(endpoint, stream)): 1 for endpoint, stream in CASES}

    def both(mapping):
        return [{f"{p}{group}": [f"{p}{other}"]} for p in ("", "claude-") for group, other in mapping.items()]

    def deployment(group, number, model=None, **params):
        anthropic = group.startswith("claude-")
        return {
            "model_name": group,
            "litellm_params": {
                "model": f"{'anthropic' if anthropic else 'openai'}/{model or group}",
                "api_base": upstream if anthropic else f"{upstream}/v1",
                "api_key": "upstream-key",
                **params,
            },
            "model_info": {"id": f"{group}-{number}"},
        }

    #: Of each group, LiteLLM offers one deployment at first.
    narrow = [
        deployment(f"{prefix}{group}", f"first-{group}", f"{prefix}{model}", order=1)
        for prefix in ("", "claude-")
        for group, model in (("narrow", "dead"), ("narrow-all", "save"), ("narrowest", "dead"))
    ]
    narrow += [
        deployment(f"{p}{group}", f"second-{group}-{n}", f"{p}narrow", order=2)
        for p in ("", "claude-")
        for group in ("narrow", "narrow-all", "narrowest")
        for n in range(2)
    ]
    ordered = [
        deployment(f"{prefix}ordered", order, f"{prefix}{model}", order=order)
        for prefix in ("", "claude-")
        for order, model in enumerate(("dead", "save"), 1)
    ]

    raced = [f"{prefix}{group}" for prefix in ("", "claude-") for group in RACED]
    raced += [own(endpoint, once(endpoint, stream)) for endpoint, stream in CASES]
    together = {"strategy": "first_wins", "budget_ratio": 4, "budget_burst": 1000}
    races = {name: {} for name in raced}
    races |= {f"{prefix}{group}": {} for prefix in ("", "claude-") for group in ("narrow", "narrowest")}
    races |= {f"{prefix}narrow-all": together for prefix in ("", "claude-")}
    return {
        "model_list": [
            *ordered,
            *narrow,
            *(deployment(group, n + 1) for group, count in counts.items() for n in range(count)),
        ],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "router_settings": {
            "num_retries": 1,
            "retry_after": 0,
            "disable_cooldowns": True,
            "fallbacks": both(FALLBACKS),
            "context_window_fallbacks": both({"long": "save"}),
            "content_policy_fallbacks": both({"blocked": "save"}),
            "model_group_retry_policy": {f"{p}policy": {"InternalServerErrorRetries": 3} for p in ("", "claude-")},
        },
        "pointsman": {
            "store": {"backend": "memory"},
            "plugins": [
                {
                    "racing": {
                        "groups": races,
                        "models": [
                            {
                                "name": f"{prefix}first",
                                "strategy": strategy,
                                "candidates": [f"{prefix}hollow", {"target": f"{prefix}save", "priority": 1}],
                                **settings,
                            }
                            for prefix, strategy, settings in (
                                ("", "hedge", {}),
                                ("claude-", "first_wins", {"budget_ratio": 4, "budget_burst": 100}),
                            )
                        ]
                        + [
                            {"name": f"{prefix}mixed", "candidates": [f"{prefix}hollow", f"{prefix}lost"]}
                            for prefix in ("", "claude-")
                        ],
                        "budget": {"burst": 1000},
                    }
                }
            ],
        },
    }


class Gateway:
    def __init__(self, upstream, proxy):
        self.upstream, self.proxy = upstream, proxy

    def ask(self, endpoint, group, *, stream, **more):
        """Return the answer, and the upstream models that were called for it."""
        before = len(self.upstream.requests)
        body = {"model": own(endpoint, group), **more}
        if endpoint == "embeddings":
            body["input"] = "Say something."
        else:
            body["stream"] = stream
        if endpoint == "responses":
            body["input"] = "Say something."
        elif endpoint != "embeddings":
            body["messages"] = [{"role": "user", "content": "Say something."}]
        if endpoint in {"messages", "adapted"}:
            body["max_tokens"] = 64
        answer = httpx.post(
            f"{self.proxy.url}{PATHS[endpoint]}", json=body, headers=self.proxy.headers, timeout=60, trust_env=False
        )
        return answer, [request.model.removeprefix("claude-") for request in self.upstream.requests[before:]]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with UpstreamServer() as upstream:
        for name, behaviour in behaviours():
            upstream.behave(name, behaviour)
        with ProxyServer(configuration(upstream.url), tmp_path_factory.mktemp("one-attempt")) as proxy:
            yield Gateway(upstream, proxy)


def text_of(endpoint, answer, *, stream):
    """Return the text that a client has read."""
    if endpoint == "embeddings":
        return SAVED if answer.json()["data"][0]["embedding"] else ""
    found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    pieces = found if stream else [answer.json()]
    texts = []
    for piece in pieces:
        for choice in piece.get("choices", ()):
            part = choice.get("delta") or choice.get("message") or {}
            texts.append(part.get("content") or "")
        if piece.get("type") == "content_block_delta":
            texts.append(piece["delta"].get("text", ""))
        if piece.get("type") == "response.output_text.delta":
            texts.append(piece["delta"])
        if piece.get("type") == "message":
            texts += [block["text"] for block in piece["content"]]
        if piece.get("object") == "response" and not stream:
            texts += [part["text"] for item in piece["output"] for part in item.get("content", ())]
    return "".join(texts)


@everywhere
def test_a_lost_race_is_raced_again_and_then_the_groups_fallback_answers(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "dead", stream=stream)
    assert answer.status_code == 200, answer.text
    assert text_of(endpoint, answer, stream=stream) == SAVED
    assert called == ["dead"] * 4 + ["save"]
    assert "x-pointsman-raced" not in answer.headers


@everywhere
def test_a_race_calls_what_litellm_offers_once_and_leaves_retries_to_it(gateway, endpoint, stream):
    """The group has more deployments than its ``order`` lets through: they are no reason to call one of them again."""
    answer, called = gateway.ask(endpoint, "narrow", stream=stream)
    assert answer.status_code == 200, answer.text
    assert called == ["dead"] * 2 + ["narrow"]
    answer, called = gateway.ask(endpoint, "narrow-all", stream=stream)
    assert answer.status_code == 200, answer.text
    assert called == ["save"]


@everywhere
def test_the_error_of_a_lost_race_is_the_providers(gateway, endpoint, stream):
    """Not that there was no other deployment to call."""
    answer, called = gateway.ask(endpoint, "narrowest", stream=stream, disable_fallbacks=True)
    assert answer.status_code == 500, answer.text
    assert called == ["dead"] * 2


@everywhere
def test_a_race_that_fails_once_is_retried(gateway, endpoint, stream):
    group = once(endpoint, stream)
    answer, called = gateway.ask(endpoint, group, stream=stream)
    assert answer.status_code == 200, answer.text
    assert called == [group] * 2
    assert answer.headers["x-pointsman-attempts"] == "2"
    assert "x-pointsman-raced" in answer.headers


@everywhere
@pytest.mark.parametrize("group", ["long", "blocked"])
def test_fallbacks_of_context_windows_and_content_policies_follow_a_lost_race(gateway, endpoint, stream, group):
    answer, called = gateway.ask(endpoint, group, stream=stream)
    assert answer.status_code == 200, answer.text
    assert called[0] == group
    assert called[-1] == "save"


@everywhere
def test_the_clients_own_fallbacks_follow_a_lost_race(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "lost", stream=stream, fallbacks=[own(endpoint, "save")])
    assert answer.status_code == 200, answer.text
    assert called == ["lost"] * 2 + ["save"]


@pytest.mark.parametrize(
    ("endpoint", "stream", "content"),
    [
        ("chat", False, {"messages": [{"role": "user", "content": "Say something else."}]}),
        ("chat", True, {"messages": [{"role": "user", "content": "Say something else."}]}),
        ("embeddings", False, {"input": "Say something else."}),
    ],
)
def test_what_a_clients_fallback_changes_in_the_request_is_raced(gateway, endpoint, stream, content):
    answer, called = gateway.ask(endpoint, "lost", stream=stream, fallbacks=[{"model": "save-raced", **content}])
    assert answer.status_code == 200, answer.text
    assert called == ["lost"] * 2 + ["save-raced"]
    assert "Say something else." in json.dumps(gateway.upstream.requests[-1].body)
    assert "save-raced; deployment=" in answer.headers["x-pointsman-raced"]


@everywhere
def test_the_next_order_of_the_group_follows_a_lost_race(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "ordered", stream=stream)
    assert answer.status_code == 200, answer.text
    assert set(called[:-1]) == {"dead"}
    assert called[-1] == "save"
    assert "ordered; deployment=" in answer.headers["x-pointsman-raced"]


@everywhere
def test_a_fallback_to_a_raced_group_of_a_plain_request_is_plain(gateway, endpoint, stream):
    """Only a request whose own model is raced has races."""
    answer, called = gateway.ask(endpoint, "sick", stream=stream)
    assert answer.status_code == 200, answer.text
    assert called == ["sick"] * 2 + ["save-raced"]
    assert "x-pointsman-raced" not in answer.headers


@everywhere
def test_a_raced_group_that_is_fallen_back_to_is_raced(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "lost", stream=stream, fallbacks=[own(endpoint, "save-raced")])
    assert answer.status_code == 200, answer.text
    assert called == ["lost"] * 2 + ["save-raced"]
    assert "save-raced; deployment=" in answer.headers["x-pointsman-raced"]


@pytest.mark.parametrize("endpoint", ["chat", "messages"])
def test_the_groups_retry_policy_holds_for_a_race(gateway, endpoint):
    answer, called = gateway.ask(endpoint, "policy", stream=False)
    assert answer.status_code == 200, answer.text
    assert called == ["policy"] * 4


@everywhere
def test_without_a_fallback_the_client_gets_the_providers_error(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "lost", stream=stream)
    assert answer.status_code == 500, answer.text
    assert called == ["lost"] * 2


@pytest.mark.parametrize(("endpoint", "stream"), CASES[:-1])
def test_an_empty_answer_does_not_win(gateway, endpoint, stream):
    """As the first of a hedge, and as the quickest of all; a fake provider has no empty vectors."""
    answer, called = gateway.ask(endpoint, "first", stream=stream)
    assert answer.status_code == 200, answer.text
    assert text_of(endpoint, answer, stream=stream) == SAVED
    assert set(called) == {"hollow", "save"}


@pytest.mark.parametrize(("endpoint", "stream"), CASES[:-1])
def test_when_all_are_empty_the_client_gets_an_empty_answer(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "hollow-pair", stream=stream)
    assert answer.status_code == 200, answer.text
    assert text_of(endpoint, answer, stream=stream) == ""
    assert called == ["hollow-pair"] * 2


@pytest.mark.parametrize(("endpoint", "stream"), CASES[:-1])
def test_a_fallback_answers_where_a_race_has_an_error_and_nothing_but_empty_answers(gateway, endpoint, stream):
    answer, called = gateway.ask(endpoint, "mixed", stream=stream, fallbacks=[own(endpoint, "save")])
    assert answer.status_code == 200, answer.text
    assert text_of(endpoint, answer, stream=stream) == SAVED
    assert set(called) == {"hollow", "lost", "save"}
    answer, _ = gateway.ask(endpoint, "mixed", stream=stream)
    assert (answer.status_code, text_of(endpoint, answer, stream=stream)) == (200, "")
