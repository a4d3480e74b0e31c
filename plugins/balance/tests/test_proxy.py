"""On real LiteLLM proxies with the providers' own clients: failures are met once, by one worker, and no client sees them."""

from __future__ import annotations

import time
from collections import Counter

import anthropic
import httpx
import openai
import pytest
from click.testing import CliRunner

from pointsman.testing import eventually
from pointsman.testing.otlp import Collector
from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer
from pointsman_balance.commands import balance

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(400)]

GROUPS = {
    "chat": ("openai", ("chat-a", "chat-b", "chat-ill")),
    "claude": ("anthropic", ("claude-a", "claude-ill")),
    "limits": ("openai", ("limits-a", "limits-full")),
    "slow": ("openai", ("slow-a", "slow-b")),
    "keys": ("openai", ("keys-a", "keys-wrong")),
}
MESSAGES = [{"role": "user", "content": "Say hello."}]


class Gateway:
    """Two workers of one gateway, their upstream, their traces and the clients of the first one."""

    def __init__(self, upstream, proxies, collector):
        self.upstream, self.collector, self.proxies = upstream, collector, proxies
        self.http = [
            httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=60, trust_env=False) for proxy in proxies
        ]
        first = proxies[0]
        self.openai = openai.OpenAI(api_key=first.master_key, base_url=f"{first.url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(auth_token=first.master_key, base_url=first.url, max_retries=0)

    def close(self):
        for client in (*self.http, self.openai, self.anthropic):
            client.close()

    def row(self, deployment_id, worker=0):
        groups = self.http[worker].get("/pointsman/balance").raise_for_status().json()["groups"]
        return next(row for g in groups for row in g["deployments"] if row["deployment_id"] == deployment_id)

    def state(self, deployment_id, worker=0):
        return self.row(deployment_id, worker)["breaker"]["state"]

    def asked(self, model):
        return sum(request.model == model for request in self.upstream.requests)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("balance")
    with UpstreamServer() as upstream, Collector() as collector:
        models = [
            {
                "model_name": group,
                "litellm_params": {
                    "model": f"{provider}/{one}",
                    "api_base": upstream.url if provider == "anthropic" else f"{upstream.url}/v1",
                    "api_key": "upstream-key",
                },
                "model_info": {"id": one},
            }
            for group, (provider, members) in GROUPS.items()
            for one in members
        ]
        # At random and for a long time, so that it is the breaker that keeps the ill ones from being asked again.
        breaker = {"consecutive_errors": 2, "open_s": 300, "max_open_s": 300, "auth_s": 300}
        config = {
            "model_list": models,
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 2},
            "router_settings": {"num_retries": 2, "disable_cooldowns": True},
            "pointsman": {
                "store": {"backend": "disk", "path": str(directory / "store")},
                "plugins": [
                    {"signals": {"check_local": False}},
                    {
                        "balance": {
                            "tactic": "random",
                            "breaker": breaker,
                            "groups": {"slow": {"tactic": "adaptive"}},
                        }
                    },
                ],
            },
        }
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        first = ProxyServer(config, directory / "first", env=env)
        second = ProxyServer(config, directory / "second")
        with first, second:
            gateway = Gateway(upstream, (first, second), collector)
            yield gateway
            gateway.close()


def chat(gateway):
    return gateway.openai.chat.completions.create(model="chat", messages=MESSAGES).choices[0].message.content


def chat_stream(gateway):
    pieces = gateway.openai.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def responses(gateway):
    return gateway.openai.responses.create(model="chat", input="Say hello.").output_text


def responses_stream(gateway):
    events = gateway.openai.responses.create(model="chat", input="Say hello.", stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def messages(gateway):
    answer = gateway.anthropic.messages.create(model="claude", messages=MESSAGES, max_tokens=50)
    return "".join(block.text for block in answer.content if block.type == "text")


def messages_stream(gateway):
    with gateway.anthropic.messages.stream(model="claude", messages=MESSAGES, max_tokens=50) as stream:
        return "".join(stream.text_stream)


def asked_until_open(gateway, ask, ill):
    """Ask until the breaker of a deployment that fails is open."""
    for _ in range(60):
        if gateway.state(ill) == "open":
            return
        assert ask(gateway)
    assert gateway.state(ill) == "open"


@pytest.mark.parametrize(
    ("ask", "ill"),
    [
        (chat, "chat-ill"),
        (chat_stream, "chat-ill"),
        (responses, "chat-ill"),
        (responses_stream, "chat-ill"),
        (messages, "claude-ill"),
        (messages_stream, "claude-ill"),
    ],
)
def test_clients_see_nothing_of_a_deployment_that_fails_and_it_is_left_alone(gateway, ask, ill):
    gateway.upstream.behave(ill, Behaviour(error_ratios={503: 1.0}))
    gateway.http[0].post(f"/pointsman/balance/{ill}/reset").raise_for_status()
    before = gateway.asked(ill)
    asked_until_open(gateway, ask, ill)
    met = gateway.asked(ill) - before
    assert met == 2
    for _ in range(8):
        assert ask(gateway)
    assert gateway.asked(ill) - before == met


def test_what_one_worker_met_the_other_knows_and_a_reset_reaches_both(gateway):
    gateway.upstream.behave("limits-full", Behaviour(error_ratios={429: 1.0}, retry_after_s=120))
    body = {"model": "limits", "messages": MESSAGES}
    for _ in range(40):
        assert gateway.http[0].post("/v1/chat/completions", json=body).status_code == 200
        if gateway.state("limits-full") == "open":
            break
    row = eventually(lambda: gateway.row("limits-full", 1), lambda row: row["breaker"]["state"] == "open")
    assert row["breaker"]["cause"] == "rate_limit"
    assert 100 < row["breaker"]["until"] - time.time() <= 120
    before = gateway.asked("limits-full")
    assert {gateway.http[1].post("/v1/chat/completions", json=body).status_code for _ in range(10)} == {200}
    assert gateway.asked("limits-full") == before

    gateway.upstream.behave("limits-full", Behaviour())
    proxy = gateway.proxies[1]
    done = CliRunner().invoke(balance, ["reset", "limits-full", "--url", proxy.url, "--key", proxy.master_key])
    assert "closed" in done.output
    eventually(lambda: gateway.state("limits-full"), lambda state: state == "closed")


def test_refused_credentials_open_at_once_and_a_probe_closes(gateway):
    gateway.upstream.behave("keys-wrong", Behaviour(error_ratios={401: 1.0}))
    body = {"model": "keys", "messages": MESSAGES}
    answers = [gateway.http[0].post("/v1/chat/completions", json=body).status_code for _ in range(30)]
    assert gateway.asked("keys-wrong") == 1
    # LiteLLM does not retry refused credentials.
    assert Counter(answers) in ({200: 29, 401: 1}, {200: 30})
    assert gateway.row("keys-wrong")["breaker"]["cause"] == "auth"
    failed = gateway.http[0].post("/pointsman/balance/keys-wrong/probe").json()
    assert (failed["ok"], failed["breaker"]["state"]) == (False, "open")
    gateway.upstream.behave("keys-wrong", Behaviour())
    mended = gateway.http[0].post("/pointsman/balance/keys-wrong/probe").json()
    assert (mended["ok"], mended["breaker"]["state"]) == (True, "closed"), mended


def test_a_stream_teaches_at_its_first_token(gateway):
    """While the stream still runs, its deployment's waiting time is known and it counts as busy."""
    slow = Behaviour(first_token=Delay(median_ms=400), per_token=Delay(median_ms=400), tokens=8)
    for one in GROUPS["slow"][1]:
        gateway.upstream.behave(one, slow)
    pieces = gateway.openai.chat.completions.create(model="slow", messages=MESSAGES, stream=True)
    for piece in pieces:
        if piece.choices and piece.choices[0].delta.content:
            break
    rows = [gateway.row(one) for one in GROUPS["slow"][1]]
    (busy,) = [row for row in rows if row["in_flight"]]
    assert 300 < busy["first_token_ms"] < 5000
    other = gateway.openai.chat.completions.create(model="slow", messages=MESSAGES)
    assert other.model != busy["deployment_id"]
    pieces.close()
    eventually(lambda: gateway.row(busy["deployment_id"])["in_flight"], lambda count: count == 0)


def test_the_attempts_span_tells_the_whole_choice(gateway):
    gateway.upstream.behave("chat-ill", Behaviour(error_ratios={503: 1.0}))
    asked_until_open(gateway, chat, "chat-ill")
    answer = gateway.http[0].post("/v1/chat/completions", json={"model": "chat", "messages": MESSAGES})
    request_id = answer.headers["x-pointsman-request-id"]

    def mine(spans):
        traces = {span.trace_id for span in spans if span.attributes.get("pointsman.request_id") == request_id}
        return [span for span in spans if span.trace_id in traces and "pointsman.attempt.id" in span.attributes]

    (span,) = mine(gateway.collector.wait(lambda spans: bool(mine(spans))))
    chosen = span.attributes["pointsman.deployment"]
    other = {"chat-a": "chat-b", "chat-b": "chat-a"}[chosen]
    assert span.attributes["pointsman.candidates"] == [chosen]
    assert span.attributes["pointsman.scores"] == [0.5]
    assert span.attributes["pointsman.notes"] == [f"{chosen}: random; against {other} 0.5"]
    assert sorted(text.partition(" for ")[0] for text in span.attributes["pointsman.dropped"]) == sorted(
        ["chat-ill: breaker open", f"{other}: not chosen (balance)"]
    )
    assert span.attributes["pointsman.balance.breaker"] == "closed"
