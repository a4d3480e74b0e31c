"""Mirrors in a real LiteLLM proxy, called by the providers' own clients on each API, plain and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from pointsman.testing import eventually
from pointsman.testing.otlp import CollectedSpan, Collector
from pointsman.testing.provider import Behaviour, Delay, ReceivedRequest, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

CHAMPION, CHALLENGER = "The champion says hello to you.", "The challenger says hello to you."
#: Model group, upstream model and provider. Names of the cost map, so that answers have a price.
GROUPS = {
    "chat": ("gpt-4o-mini", "openai"),
    "next": ("gpt-4o", "openai"),
    "claude": ("claude-haiku-4-5-20251001", "anthropic"),
    "claude-next": ("claude-sonnet-4-5-20250929", "anthropic"),
    "broken": ("gpt-broken", "openai"),
    "hanging": ("gpt-hanging", "openai"),
    "calm": ("gpt-calm", "openai"),
    "touchy": ("gpt-touchy", "openai"),
    "judge": ("gpt-judge", "openai"),
    "embed": ("text-embedding-3-small", "openai"),
}
MIRRORS: list[dict[str, Any]] = [
    {
        "name": "openai",
        "model": "chat",
        "challenger": "next",
        "keep_texts": True,
        "redact": {"patterns": ["hello"]},
        "judge": {"model": "judge"},
        "embedding": {"model": "embed"},
    },
    {"name": "anthropic", "model": "claude", "challenger": "claude-next"},
    {"name": "across", "model": "claude", "challenger": "next"},
    {"name": "failing", "model": "next", "challenger": "broken"},
    {"name": "hanging", "model": "next", "challenger": "hanging", "time_limit_s": 2},
    {"name": "touchy", "model": "calm", "challenger": "touchy"},
]
TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Gateway:
    """A proxy with mirrors, its upstream, its traces and the clients."""

    def __init__(self, upstream: UpstreamServer, proxy: ProxyServer, collector: Collector) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self.collector = collector
        self.http = httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=30, trust_env=False)
        key = proxy.master_key
        self.openai = openai.OpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(auth_token=key, base_url=proxy.url, max_retries=0)

    def close(self) -> None:
        for client in (self.http, self.openai, self.anthropic):
            client.close()

    def results(self, mirror: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/pointsman/shadow/{mirror}/results").raise_for_status()
        rows: list[dict[str, Any]] = answer.json()["results"]
        return rows

    def shown(self, mirror: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.http.get(f"/pointsman/shadow/{mirror}").raise_for_status().json()
        return shown

    def new_row(self, mirror: str, request: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Make a request and wait for the result of its mirror."""
        before = self.shown(mirror)["pairs"]
        answer = request()
        shown = eventually(lambda: self.shown(mirror), lambda shown: shown["pairs"] > before)
        assert shown["pairs"] == before + 1
        return answer, self.results(mirror)[-1]

    def received(self, since: int) -> list[ReceivedRequest]:
        return [request for request in self.upstream.requests if request.number >= since]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory: Path = tmp_path_factory.mktemp("shadow")
    with UpstreamServer() as upstream, Collector() as collector:
        quick = Delay(median_ms=20)
        for name, text in (("chat", CHAMPION), ("claude", CHAMPION), ("next", CHALLENGER), ("claude-next", CHALLENGER)):
            upstream.behave(GROUPS[name][0], Behaviour(text=text, call_tools=1, first_token=quick))
        upstream.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        upstream.behave("gpt-hanging", Behaviour(fault="hang", fault_ratio=1.0))
        upstream.behave("gpt-judge", Behaviour(text='{"verdict": "A"}'))
        config = {
            "model_list": [
                {
                    "model_name": group,
                    "litellm_params": {
                        "model": f"{provider}/{model}",
                        "api_base": upstream.url if provider == "anthropic" else f"{upstream.url}/v1",
                        "api_key": "upstream-key",
                    },
                    "model_info": {"id": f"{group}-{number}"},
                }
                for group, (model, provider) in GROUPS.items()
                # LiteLLM puts the only deployment of a group into no cooldown.
                for number in ((1, 2) if group == "touchy" else (1,))
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "router_settings": {"num_retries": 0, "allowed_fails": 0, "cooldown_time": 60},
            "pointsman": {
                "store": {"backend": "disk", "path": str(directory / "store")},
                "plugins": [
                    {
                        "shadow": {
                            "flush_s": 0.1,
                            # Mirrors are not dropped where the machine is busy with other tests.
                            "max_lag_ms": 60_000,
                            "mirrors": [{"sample_rate": 1.0, **mirror} for mirror in MIRRORS],
                        }
                    }
                ],
            },
        }
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with ProxyServer(config, directory, env=env) as proxy:
            gateway = Gateway(upstream, proxy, collector)
            yield gateway
            gateway.close()


def chat(gateway: Gateway, model: str, *, stream: bool, **more: Any) -> str:
    ask: Any = [{"role": "user", "content": "Say hello, please."}]
    if not stream:
        return (
            gateway.openai.chat.completions.create(model=model, messages=ask, **more).choices[0].message.content or ""
        )
    pieces = gateway.openai.chat.completions.create(model=model, messages=ask, stream=True, **more)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def messages(gateway: Gateway, model: str, *, stream: bool) -> str:
    ask: Any = {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "Say hello, please."}]}
    if not stream:
        return "".join(block.text for block in gateway.anthropic.messages.create(**ask).content if block.type == "text")
    with gateway.anthropic.messages.stream(**ask) as streamed:
        return "".join(streamed.text_stream)


def responses(gateway: Gateway, model: str, *, stream: bool) -> str:
    if not stream:
        return gateway.openai.responses.create(model=model, input="Say hello, please.").output_text
    events = gateway.openai.responses.create(model=model, input="Say hello, please.", stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


CALLS = {"chat": chat, "messages": messages, "responses": responses}
CASES = [
    ("chat", "openai", "chat", "/v1/chat/completions"),
    ("responses", "openai", "chat", "/v1/responses"),
    ("messages", "anthropic", "claude", "/v1/messages"),
    ("messages", "across", "claude", None),
    ("messages", "openai", "chat", None),
    ("chat", "anthropic", "claude", "/v1/messages"),
    ("responses", "across", "claude", "/v1/responses"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("endpoint", "mirror", "model", "path"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_the_challenger_gets_the_request_and_the_caller_the_champions_answer(
    gateway: Gateway, endpoint: str, mirror: str, model: str, path: str | None, *, stream: bool
) -> None:
    """On every API, native and translated: texts, finish, tokens, times of both sides; the challenger's own wire."""
    since = len(gateway.upstream.requests)
    text, row = gateway.new_row(mirror, lambda: CALLS[endpoint](gateway, model, stream=stream))
    assert text == CHAMPION
    champion, challenger = row["champion"], row["challenger"]
    assert (row["endpoint"], row["stream"], row["model"]) == (endpoint, stream, model)
    target = next(m["challenger"] for m in MIRRORS if m["name"] == mirror)
    assert (champion["deployment"], challenger["deployment"]) == (f"{model}-1", f"{target}-1")
    for side, said in ((champion, CHAMPION), (challenger, CHALLENGER)):
        assert (side["outcome"], side["error"], side["status"]) == ("ok", None, 200)
        assert (side["text_chars"], side["tool_calls"], side["finish_reason"]) == (len(said), 0, "stop")
        assert side["latency_ms"] > 0
        assert (side["first_token_ms"] is not None) == stream
        assert side["prompt_tokens"] > 0
        assert side["completion_tokens"] > 0
        assert side["cost_usd_micros"] > 0
    compared = row["comparison"]
    assert compared["latency_ms"] == pytest.approx(challenger["latency_ms"] - champion["latency_ms"], abs=0.01)
    assert ("first_token_ms" in compared) == stream
    assert (compared["exact"], compared["same_finish"]) == (0.0, 1.0)
    assert 0.7 < compared["edit"] < 1.0
    sent = [r for r in gateway.received(since) if r.model == GROUPS[target][0]]
    assert sent
    if path is not None:
        assert [(r.path, r.stream) for r in sent] == [(path, stream)]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_calls_of_tools_are_compared(gateway: Gateway, *, stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
    _, row = gateway.new_row("openai", lambda: chat(gateway, "chat", stream=stream, tools=tools))
    assert (row["champion"]["tool_calls"], row["challenger"]["tool_calls"]) == (1, 1)
    assert row["champion"]["finish_reason"] == row["challenger"]["finish_reason"] == "tool_calls"
    assert (row["comparison"]["same_tools"], row["comparison"]["same_finish"]) == (1.0, 1.0)
    assert (
        row["champion"]["tools"]
        == row["challenger"]["tools"]
        == [{"name": "weather", "arguments": row["champion"]["tools"][0]["arguments"]}]
    )
    assert json.loads(row["champion"]["tools"][0]["arguments"]) == {"city": "Oslo"}


def test_opinions_and_redacted_texts(gateway: Gateway) -> None:
    """The judge says A both times: it prefers a place, which is a tie. Embeddings come from the operator's group."""
    since = len(gateway.upstream.requests)
    _, row = gateway.new_row("openai", lambda: chat(gateway, "chat", stream=False))
    assert row["comparison"]["judge"] == 0.5
    assert 0 <= row["comparison"]["embedding"] <= 1
    assert row["champion"]["text"] == CHAMPION.replace("hello", "[redacted]")
    asked = [r for r in gateway.received(since) if r.model == "gpt-judge"]
    orders = [str(r.body["messages"]).index(CHAMPION) < str(r.body["messages"]).index(CHALLENGER) for r in asked]
    assert sorted(orders) == [False, True]
    (embedded,) = [r for r in gateway.received(since) if r.model == GROUPS["embed"][0]]
    assert embedded.body["input"] == [CHAMPION, CHALLENGER]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_failing_and_a_hanging_challenger_are_not_noticed(gateway: Gateway, *, stream: bool) -> None:
    """Two mirrors of one request: one answers 500, one never; the caller has its answer before the second is given up."""
    hanging = gateway.shown("hanging")["pairs"]
    text, row = gateway.new_row("failing", lambda: chat(gateway, "next", stream=stream))
    assert text == CHALLENGER
    assert (row["challenger"]["outcome"], row["challenger"]["error"]) == ("error", "server")
    assert gateway.shown("hanging")["pairs"] == hanging
    eventually(lambda: gateway.shown("hanging"), lambda shown: shown["pairs"] == hanging + 1)
    last = gateway.results("hanging")[-1]
    assert last["challenger"]["error"] == "timeout"
    assert 1900 < last["challenger"]["latency_ms"] < 10_000
    assert gateway.shown("hanging")["worker"]["alive"] == 0


def test_a_failing_mirror_does_not_take_a_deployment_from_the_clients(gateway: Gateway) -> None:
    """One failure is enough for LiteLLM's cooldown here: clients' own put both deployments away, a mirror's puts none."""
    gateway.upstream.behave("gpt-touchy", Behaviour(error_ratios={500: 1.0}))
    for number in range(1, 5):
        assert chat(gateway, "calm", stream=False)
        eventually(lambda: gateway.shown("touchy")["challenger_errors"], lambda errors, number=number: errors == number)
    gateway.upstream.behave("gpt-touchy", Behaviour(text="fine"))
    assert [chat(gateway, "touchy", stream=False) for _ in range(4)] == ["fine"] * 4
    gateway.upstream.behave("gpt-touchy", Behaviour(error_ratios={500: 1.0}))
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            chat(gateway, "touchy", stream=False)
    gateway.upstream.behave("gpt-touchy", Behaviour(text="fine"))
    with pytest.raises(openai.RateLimitError):
        chat(gateway, "touchy", stream=False)


def test_the_mirror_is_linked_to_the_primary_and_not_part_of_it(gateway: Gateway) -> None:
    """Its own trace, a link to the primary's span, its own account; one attempt in the client's request."""
    answer = gateway.http.post(
        "/v1/chat/completions", json={"model": "chat", "messages": [{"role": "user", "content": "xyzzy-4711"}]}
    )
    assert answer.headers["x-pointsman-attempts"] == "1"
    request_id = answer.headers["x-pointsman-request-id"]

    def is_primary(span: CollectedSpan) -> bool:
        """Tell the request's span from its settlement's, which has the same id."""
        said = span.attributes
        return (said.get("pointsman.kind"), said.get("pointsman.request_id")) == ("request", request_id)

    def mirrored(spans: list[CollectedSpan]) -> list[CollectedSpan]:
        primary = next((s for s in spans if is_primary(s)), None)
        linked = [s for s in spans if primary is not None and (primary.trace_id, primary.span_id) in s.links]
        mirrors = {s.trace_id for s in spans if s.attributes.get("pointsman.attempt.kind") == "mirror"}
        return [s for s in linked if s.trace_id in mirrors]

    spans = gateway.collector.wait(lambda spans: bool(mirrored(spans)))
    (mirror,) = mirrored(spans)
    primary = next(s for s in spans if is_primary(s))
    assert mirror.parent_id == ""
    assert mirror.trace_id != primary.trace_id
    assert mirror.attributes["pointsman.label.mirror"] == "openai"
    assert mirror.attributes["pointsman.label.primary"] == request_id
    attempts = [s for s in spans if s.trace_id == primary.trace_id and "pointsman.attempt.kind" in s.attributes]
    assert [s.attributes["pointsman.attempt.kind"] for s in attempts] == ["primary"]
    hook = next(s for s in spans if s.name == "before_attempt" and s.trace_id == primary.trace_id)
    assert hook.attributes["pointsman.shadow.openai"] == "mirrored"
    assert "xyzzy" not in repr(spans)
    assert CHAMPION not in repr(spans)


def test_no_prompt_and_no_answer_in_the_log_or_the_store_of_a_mirror_that_keeps_no_texts(gateway: Gateway) -> None:
    _, row = gateway.new_row("anthropic", lambda: messages(gateway, "claude", stream=False))
    assert "text" not in row["champion"]
    assert CHAMPION not in gateway.proxy.log()
    assert CHALLENGER not in gateway.proxy.log()


def test_status_and_the_admin_key(gateway: Gateway) -> None:
    (plugin,) = gateway.http.get("/pointsman/status").json()["plugins"]
    assert (plugin["name"], plugin["ok"]) == ("shadow", True)
    assert httpx.get(f"{gateway.proxy.url}/pointsman/shadow", trust_env=False).status_code in {400, 401, 403}
    faults = gateway.http.get("/pointsman/status").json()["faults"]
    assert faults == []
