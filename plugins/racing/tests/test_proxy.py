"""Races on a real LiteLLM proxy, asked by the providers' own clients on each API, plain and streamed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from click.testing import CliRunner

from pointsman.testing import eventually
from pointsman.testing.otlp import Collector
from pointsman.testing.provider import Behaviour, Delay, UpstreamServer, split_tokens
from pointsman.testing.proxy import ProxyServer
from pointsman_racing.commands import racing

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

PATIENCE_S = 20.0
SLOW_TEXT, FAST_TEXT = "The slow one would have said this.", "The quick one says this, to its very end."
FIRST_TEXT, SECOND_TEXT = "First words that break off somewhere.", "Second words, and all of them."
ENDPOINTS = ("chat", "messages", "responses")
KINDS = {False: "plain", True: "stream"}
#: Slow candidates are much slower than any hedging delay, so that the machine's load does not change the winner.
LATE = Delay(median_ms=20_000)
ASK = [{"role": "user", "content": "Say something."}]
TOOL_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Llanfairpwllgwyngyll upon the Menai Strait, Anglesey"]}},
    "required": ["city"],
    "additionalProperties": False,
}
#: Nothing but a failure starts a second attempt.
UNHEDGED = {"delay": {"fixed_ms": 600_000, "fixed_plain_ms": 600_000}}

#: Model groups of one deployment, ``<group>-1``, with provider and upstream model. The first ones are in the cost map.
GROUPS = {
    "slow": ("openai", "gpt-4.1"),
    "fast": ("openai", "gpt-4o-mini"),
    "claude-slow": ("anthropic", "claude-sonnet-4-5-20250929"),
    "claude-fast": ("anthropic", "claude-haiku-4-5-20251001"),
    **{name: ("openai", name) for name in ("first", "second", "hang-a", "hang-b", "calm", "light")},
    **{name: ("openai", name) for name in ("heavy", "prose", "json", "maker-slow", "maker", "tired-a", "tired-b")},
    **{name: ("anthropic", name) for name in ("claude-first", "claude-second", "claude-hang-a", "claude-hang-b")},
    **{name: ("anthropic", name) for name in ("claude-maker-slow", "claude-maker")},
}
#: A retry-after is remembered, so candidates that send one take part in one test only.
PUSHY = [f"{endpoint}-{kind}" for endpoint in ENDPOINTS for kind in KINDS.values()]
for _name in PUSHY:
    _provider = "anthropic" if _name.startswith("messages") else "openai"
    for _group in ("limited", "ill", "spent"):
        GROUPS[f"{_group}-{_name}"] = (_provider, f"{_group}-{_name}")


def race(name, *candidates, **settings):
    """Return a virtual model whose candidates are started in this order."""
    placed = [{"target": target, "priority": place} for place, target in enumerate(candidates)]
    return {"name": name, "candidates": placed, **settings}


def together(name, strategy, *candidates, **settings):
    weighed = [{"target": target, "weight": weight} for target, weight in candidates]
    return {"name": name, "strategy": strategy, "candidates": weighed, "max_attempts": len(weighed), **settings}


RACES = [
    race("swift", "slow", "fast", display_name="Swift", description="Answers soon."),
    race("swift-claude", "claude-slow", "claude-fast"),
    race("swift-mixed", "slow", "claude-fast"),
    race("sturdy", "first", "second", **UNHEDGED),
    race("sturdy-claude", "claude-first", "claude-second", **UNHEDGED),
    race("hanging", "hang-a", "hang-b"),
    race("hanging-claude", "claude-hang-a", "claude-hang-b"),
    race("impatient", "hang-a", "hang-b", timeout_ms=3000),
    race("made", "maker-slow", "maker"),
    race("made-claude", "claude-maker-slow", "claude-maker"),
    race("careful", "calm", "fast"),
    race("thrifty", "tired-a", "tired-b", budget_ratio=0.1, budget_burst=1, delay={"fixed_plain_ms": 100}),
    # The winner takes long enough for the others to be sent.
    together("all", "first_wins", ("slow", 1), ("heavy", 1), ("claude-slow", 1)),
    together("heaviest", "weighted", ("light", 1), ("heavy", 100), grace_ms=15_000),
    together("heaviest-soon", "weighted", ("light", 1), ("slow", 100), grace_ms=200),
    together("best", "quality", ("prose", 1), ("json", 1), grace_ms=15_000),
    *(race(f"pushed-{name}", f"limited-{name}", "claude-fast" if "messages" in name else "fast") for name in PUSHY),
    *(race(f"full-{name}", f"ill-{name}", f"spent-{name}", **UNHEDGED) for name in PUSHY),
]


def section(directory):
    return {
        "store": {"backend": "disk", "path": str(directory / "store")},
        "plugins": [
            {
                "racing": {
                    "models": RACES,
                    "groups": {"pair": {}},
                    "defaults": {
                        "delay": {"fixed_ms": 200, "fixed_plain_ms": 200, "floor_ms": 1, "min_samples": 100_000},
                        "timeout_ms": 60_000,
                        "max_attempts": 2,
                        "budget_ratio": 4,
                        "budget_burst": 1000,
                    },
                    "budget": {"burst": 1000},
                }
            }
        ],
    }


def model_list(upstream):
    rows = [(group, f"{group}-1", provider, model) for group, (provider, model) in GROUPS.items()]
    rows += [("pair", f"pair-{number}", "openai", "gpt-pair") for number in (1, 2)]
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": f"{provider}/{model}",
                "api_base": upstream if provider == "anthropic" else f"{upstream}/v1",
                "api_key": "upstream-key",
            },
            "model_info": {"id": deployment, "max_input_tokens": 8_000 if group == "slow" else 128_000},
        }
        for group, deployment, provider, model in rows
    ]


class Gateway:
    """A proxy with races, its upstream, its traces and the clients."""

    def __init__(self, upstream, proxy, collector):
        self.upstream, self.proxy, self.collector = upstream, proxy, collector
        self.http = httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=60, trust_env=False)
        key = proxy.master_key
        self.openai = openai.OpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(auth_token=key, base_url=proxy.url, max_retries=0)

    def close(self):
        for client in (self.http, self.openai, self.anthropic):
            client.close()

    def admin(self, path=""):
        return self.http.get(f"/pointsman/racing{path}").raise_for_status().json()

    def running(self):
        return self.admin()["running"]

    def counts(self, race_name):
        return self.admin(f"/{race_name}")["counts"]

    def counted(self, race_name, before, **more):
        """Wait until a race has so much more of each count than before."""
        eventually(
            lambda: {name: self.counts(race_name)[name] - before[name] for name in more},
            lambda grown: grown == more,
        )

    def deployment(self, deployment_id):
        """Return the figures of a deployment; only zeros before it has been seen."""
        found = [row for row in self.admin()["deployments"] if row["deployment_id"] == deployment_id]
        return found[0] if found else {"cancelled": 0, "failures": 0}

    def received(self, since, group=None):
        model = None if group is None else GROUPS[group][1]
        found = [r for r in self.upstream.requests if r.number >= since]
        return [r for r in found if model is None or r.model == model]

    def closed_early(self, since, *groups):
        """Wait until the upstream has seen each of these connections closed by the gateway, and no other."""
        models = sorted(GROUPS[group][1] for group in groups)
        self.upstream.wait_for(
            lambda seen: sorted(r.model for r in seen if r.number >= since and r.closed_early) == models,
            timeout_s=PATIENCE_S,
        )

    def attempts(self, headers, count):
        """Wait for the spans of a request's attempts; return their attributes, in the order of the attempts."""
        request_id = headers["x-pointsman-request-id"]

        def mine(spans):
            traces = {s.trace_id for s in spans if s.attributes.get("pointsman.request_id") == request_id}
            return [s.attributes for s in spans if s.trace_id in traces and "pointsman.attempt.id" in s.attributes]

        found = mine(self.collector.wait(lambda spans: len(mine(spans)) >= count, timeout_s=PATIENCE_S))
        assert len(found) == count
        return sorted(found, key=lambda attributes: attributes["pointsman.racing.leg"])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("racing")
    with UpstreamServer() as upstream, Collector() as collector:
        for name in ("slow", "claude-slow"):
            # Headers and an empty role come at once; only what the client can see decides.
            upstream.behave(GROUPS[name][1], Behaviour(text=SLOW_TEXT, first_token=LATE))
        for name in ("fast", "claude-fast"):
            upstream.behave(GROUPS[name][1], Behaviour(text=FAST_TEXT))
        for name in ("second", "claude-second"):
            upstream.behave(name, Behaviour(text=SECOND_TEXT))
        for name in ("hang-a", "hang-b", "claude-hang-a", "claude-hang-b"):
            upstream.behave(name, Behaviour(fault="hang"))
        for name in ("maker-slow", "claude-maker-slow"):
            upstream.behave(name, Behaviour(call_tools=1, first_token=LATE))
        for name in ("maker", "claude-maker"):
            upstream.behave(name, Behaviour(call_tools=1))
        for name in PUSHY:
            upstream.behave(f"limited-{name}", Behaviour(error_ratios={429: 1.0}, retry_after_s=600))
            upstream.behave(f"ill-{name}", Behaviour(error_ratios={500: 1.0}))
            upstream.behave(f"spent-{name}", Behaviour(error_ratios={429: 1.0}, retry_after_s=70))
        upstream.behave("gpt-pair", Behaviour(text=FAST_TEXT, first_token=Delay(values_ms=(20_000, 0))))
        upstream.behave("light", Behaviour(text="light"))
        upstream.behave("heavy", Behaviour(text="heavy", first_token=Delay(median_ms=500)))
        upstream.behave("prose", Behaviour(text="No JSON here."))
        upstream.behave("json", Behaviour(text='{"city": "Oslo"}', first_token=Delay(median_ms=500)))
        for name in ("tired-a", "tired-b"):
            upstream.behave(name, Behaviour(text=SLOW_TEXT, first_token=Delay(median_ms=1500)))
        config = {
            "model_list": model_list(upstream.url),
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "general_settings": {"cancel_on_disconnect": True},
            "pointsman": section(directory),
        }
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with ProxyServer(config, directory, env=env) as proxy:
            gateway = Gateway(upstream, proxy, collector)
            yield gateway
            gateway.close()


class ResponseFailed(Exception):
    """The event with which a streamed response says that it has failed; the SDK hands it on."""


class Answer:
    """What a client has read."""

    def __init__(self):
        self.headers = {}
        self.pieces = []
        self.tools = []
        self.arguments = []

    @property
    def text(self):
        return "".join(self.pieces)

    @property
    def raced(self):
        return self.headers["x-pointsman-raced"]


def chat(gateway, model, *, stream, into=None, **more):
    answer = into or Answer()
    raw = gateway.openai.chat.completions.with_raw_response.create(model=model, messages=ASK, stream=stream, **more)
    answer.headers = raw.headers
    if not stream:
        message = raw.parse().choices[0].message
        answer.pieces.append(message.content or "")
        for call in message.tool_calls or ():
            answer.tools.append(call.function.name)
            answer.arguments.append(call.function.arguments)
        return answer
    for delta in (choice.delta for piece in raw.parse() for choice in piece.choices):
        if delta.content:
            answer.pieces.append(delta.content)
        for call in delta.tool_calls or ():
            if call.function.name:
                answer.tools.append(call.function.name)
            answer.arguments.append(call.function.arguments or "")
    return answer


def messages(gateway, model, *, stream, into=None, **more):
    answer = into or Answer()
    raw = gateway.anthropic.messages.with_raw_response.create(
        model=model, max_tokens=256, messages=ASK, stream=stream, **more
    )
    answer.headers = raw.headers
    if not stream:
        for block in raw.parse().content:
            if block.type == "text":
                answer.pieces.append(block.text)
            elif block.type == "tool_use":
                answer.tools.append(block.name)
                answer.arguments.append(json.dumps(block.input))
        return answer
    for event in raw.parse():
        if event.type == "content_block_start" and event.content_block.type == "tool_use":
            answer.tools.append(event.content_block.name)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            answer.pieces.append(event.delta.text)
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            answer.arguments.append(event.delta.partial_json)
    return answer


def responses(gateway, model, *, stream, into=None, **more):
    answer = into or Answer()
    raw = gateway.openai.responses.with_raw_response.create(model=model, input="Say something.", stream=stream, **more)
    answer.headers = raw.headers
    if not stream:
        parsed = raw.parse()
        answer.pieces.append(parsed.output_text)
        for item in parsed.output:
            if item.type == "function_call":
                answer.tools.append(item.name)
                answer.arguments.append(item.arguments)
        return answer
    for event in raw.parse():
        if event.type == "response.output_text.delta":
            answer.pieces.append(event.delta)
        elif event.type == "response.function_call_arguments.delta":
            answer.arguments.append(event.delta)
        elif event.type == "response.output_item.done" and event.item.type == "function_call":
            answer.tools.append(event.item.name)
        elif event.type == "response.failed":
            raise ResponseFailed(event.response.error.message)
    return answer


CALLS = {"chat": chat, "messages": messages, "responses": responses}
streamed = pytest.mark.parametrize("stream", KINDS.keys(), ids=KINDS.values())
everywhere = pytest.mark.parametrize("endpoint", ENDPOINTS)


def of(endpoint, name):
    """Return the race or group of this name whose candidates speak the endpoint's own format."""
    return f"{name}-claude" if endpoint == "messages" else name


def claude(endpoint, name):
    return f"claude-{name}" if endpoint == "messages" else name


# -- a slow one is overtaken ------------------------------------------------------------------------------------------


@streamed
@pytest.mark.parametrize(
    ("endpoint", "model", "targets"),
    [
        ("chat", "swift", ("slow", "fast")),
        ("responses", "swift", ("slow", "fast")),
        ("messages", "swift-claude", ("claude-slow", "claude-fast")),
        ("chat", "swift-mixed", ("slow", "claude-fast")),
        ("messages", "swift-mixed", ("slow", "claude-fast")),
        ("responses", "swift-mixed", ("slow", "claude-fast")),
    ],
)
def test_the_next_candidate_overtakes_a_slow_one(gateway, endpoint, model, targets, stream):
    """Text, headers, both spans, both connections, and what is booked; in native and in translated formats."""
    loser, winner = targets
    since, counts = len(gateway.upstream.requests), gateway.counts(model)
    cancelled = gateway.deployment(f"{loser}-1")["cancelled"]
    answer = CALLS[endpoint](gateway, model, stream=stream)
    assert answer.text == FAST_TEXT
    if stream and model != "swift-mixed":
        assert answer.pieces == split_tokens(FAST_TEXT)
    expected = rf"{winner}; deployment={winner}-1; attempt=2/2; strategy=hedge; first_content_ms=\d+"
    assert re.fullmatch(expected, answer.raced)
    assert answer.headers["x-pointsman-attempts"] == "2"
    assert answer.headers["x-litellm-model-id"] == f"{winner}-1"

    gateway.closed_early(since, loser)
    # On a busy machine the one that was sent later may arrive first.
    assert sorted(r.model for r in gateway.received(since)) == sorted([GROUPS[loser][1], GROUPS[winner][1]])
    lost, won = gateway.attempts(answer.headers, 2)
    assert (lost["pointsman.deployment"], won["pointsman.deployment"]) == (f"{loser}-1", f"{winner}-1")
    assert (lost["pointsman.outcome"], won["pointsman.outcome"]) == ("cancelled", "ok")
    assert (lost["pointsman.attempt.kind"], won["pointsman.attempt.kind"]) == ("primary", "hedge")
    assert (lost["pointsman.racing.reason"], won["pointsman.racing.reason"]) == ("first", "hedge")
    assert (lost["pointsman.racing.won"], won["pointsman.racing.won"]) == (False, True)
    assert (lost.get("pointsman.usage.estimated"), won.get("pointsman.usage.estimated")) == (True, None)
    assert lost["pointsman.racing.strategy"] == "hedge"
    more = dict.fromkeys(("requests", "answered", "overtaken", "extra", "losers", "losers_estimated"), 1)
    gateway.counted(model, counts, attempts=2, replacements=0, failed=0, **more)
    assert gateway.counts(model)["losers_tokens"] > counts["losers_tokens"]
    assert gateway.deployment(f"{loser}-1")["cancelled"] == cancelled + 1


@streamed
@everywhere
def test_a_call_of_a_tool_arrives_whole(gateway, endpoint, stream):
    since, model, tool = len(gateway.upstream.requests), of(endpoint, "made"), {"name": "weather"}
    match endpoint:
        case "chat":
            tool = {"type": "function", "function": {**tool, "parameters": TOOL_SCHEMA}}
        case "messages":
            tool["input_schema"] = TOOL_SCHEMA
        case _:
            tool |= {"type": "function", "parameters": TOOL_SCHEMA, "strict": True}
    answer = CALLS[endpoint](gateway, model, stream=stream, tools=[tool])
    assert answer.raced.startswith(f"{claude(endpoint, 'maker')}; ")
    assert (answer.tools, answer.text) == (["weather"], "")
    assert json.loads("".join(answer.arguments)) == {"city": TOOL_SCHEMA["properties"]["city"]["enum"][0]}
    assert not stream or len(answer.arguments) > 2
    gateway.closed_early(since, claude(endpoint, "maker-slow"))


@streamed
@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_structured_output_is_raced(gateway, endpoint, stream):
    since, named = len(gateway.upstream.requests), {"name": "place", "schema": TOOL_SCHEMA, "strict": True}
    if endpoint == "chat":
        more = {"response_format": {"type": "json_schema", "json_schema": named}}
    else:
        more = {"text": {"format": {"type": "json_schema", **named}}}
    answer = CALLS[endpoint](gateway, "made", stream=stream, **more)
    assert answer.raced.startswith("maker; deployment=maker-1; attempt=2/2; ")
    assert json.loads(answer.text) == {"city": TOOL_SCHEMA["properties"]["city"]["enum"][0]}
    gateway.closed_early(since, "maker-slow")


@streamed
def test_an_existing_model_group_is_raced_and_its_client_changes_nothing(gateway, stream):
    """The first request that reaches the provider is slow, the second is not: it goes to the other deployment."""
    gateway.upstream.behave("gpt-pair", Behaviour(text=FAST_TEXT, first_token=Delay(values_ms=(20_000, 0))))
    answer = chat(gateway, "pair", stream=stream)
    assert answer.text == FAST_TEXT
    assert answer.raced.startswith("pair; deployment=pair-")
    assert "attempt=2/2; strategy=hedge" in answer.raced
    lost, won = gateway.attempts(answer.headers, 2)
    assert {lost["pointsman.deployment"], won["pointsman.deployment"]} == {"pair-1", "pair-2"}
    assert won["pointsman.deployment"] == answer.headers["x-litellm-model-id"]
    assert (lost["pointsman.outcome"], won["pointsman.outcome"]) == ("cancelled", "ok")


# -- failures ---------------------------------------------------------------------------------------------------------


@streamed
@everywhere
@pytest.mark.parametrize(
    "trouble", [Behaviour(error_ratios={500: 1.0}), Behaviour(fault="drop")], ids=["status 500", "connection closed"]
)
def test_a_candidate_that_fails_is_replaced_at_once(gateway, endpoint, stream, trouble):
    """A hedge would come after ten minutes, and takes from the budget."""
    model, counts = of(endpoint, "sturdy"), gateway.counts(of(endpoint, "sturdy"))
    gateway.upstream.behave(claude(endpoint, "first"), trouble)
    answer = CALLS[endpoint](gateway, model, stream=stream)
    assert answer.text == SECOND_TEXT
    assert answer.raced.startswith(f"{claude(endpoint, 'second')}; ")
    assert answer.headers["x-pointsman-attempts"] == "2"
    gateway.counted(model, counts, requests=1, answered=1, attempts=2, replacements=1, extra=0, losers=0)
    failed, won = gateway.attempts(answer.headers, 2)
    assert (failed["pointsman.outcome"], won["pointsman.outcome"]) == ("error", "ok")
    assert (won["pointsman.racing.reason"], won["pointsman.attempt.kind"]) == ("replacement", "fallback")


@streamed
@everywhere
def test_retry_after_is_obeyed_by_later_requests_too(gateway, endpoint, stream):
    name = f"{endpoint}-{KINDS[stream]}"
    since = len(gateway.upstream.requests)
    first, second = (CALLS[endpoint](gateway, f"pushed-{name}", stream=stream) for _ in range(2))
    assert (first.text, second.text) == (FAST_TEXT, FAST_TEXT)
    assert "attempt=2/2" in first.raced
    # On a busy machine the second one may be hedged, but never to the candidate whose retry-after has not passed.
    assert len(gateway.received(since, f"limited-{name}")) == 1
    assert f"limited-{name}" not in second.raced
    found = gateway.deployment(f"limited-{name}-1")
    assert (found["healthy"], found["failures"]) == (False, 1)
    assert found["blocked_until"] > gateway.admin()["now"] + 300


@streamed
@everywhere
@pytest.mark.parametrize("reason", ["invalid", "context_window", "content_policy"])
def test_the_clients_own_error_ends_the_race(gateway, endpoint, stream, reason):
    model, since = of(endpoint, "sturdy"), len(gateway.upstream.requests)
    counts = gateway.counts(model)
    gateway.upstream.behave(claude(endpoint, "first"), Behaviour(error_ratios={400: 1.0}, bad_request=reason))
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)) as caught:
        CALLS[endpoint](gateway, model, stream=stream)
    assert isinstance(caught.value, anthropic.BadRequestError) == (endpoint == "messages")
    assert caught.value.response.headers["x-pointsman-attempts"] == "1"
    assert [r.model for r in gateway.received(since)] == [claude(endpoint, "first")]
    gateway.counted(model, counts, requests=1, failed=1, attempts=1, replacements=0)


@streamed
@everywhere
def test_when_all_fail_the_client_gets_one_error_with_its_retry_after(gateway, endpoint, stream):
    name = f"{endpoint}-{KINDS[stream]}"
    since, counts = len(gateway.upstream.requests), gateway.counts(f"full-{name}")
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught:
        CALLS[endpoint](gateway, f"full-{name}", stream=stream)
    assert isinstance(caught.value, anthropic.RateLimitError) == (endpoint == "messages")
    assert caught.value.status_code == 429
    assert caught.value.response.headers["retry-after"] == "70"
    assert caught.value.response.headers["x-pointsman-attempts"] == "2"
    assert [r.model for r in gateway.received(since)] == [f"ill-{name}", f"spent-{name}"]
    gateway.counted(f"full-{name}", counts, requests=1, failed=1, attempts=2, replacements=1)


#: Events of a stream before its first token.
OPENING = {"chat": 1, "messages": 3, "responses": 4}


@everywhere
@pytest.mark.parametrize("fault", ["break", "error_event"])
def test_a_stream_that_breaks_before_content_is_replaced(gateway, endpoint, fault):
    """The connection breaks, or the provider says in the stream that it has failed: the client notices nothing."""
    model, counts = of(endpoint, "sturdy"), gateway.counts(of(endpoint, "sturdy"))
    broken = Behaviour(text=FIRST_TEXT, fault=fault, fault_after_events=OPENING[endpoint])
    gateway.upstream.behave(claude(endpoint, "first"), broken)
    answer = CALLS[endpoint](gateway, model, stream=True)
    assert answer.pieces == split_tokens(SECOND_TEXT)
    assert answer.raced.startswith(f"{claude(endpoint, 'second')}; ")
    gateway.counted(model, counts, requests=1, answered=1, attempts=2, replacements=1)
    failed, won = gateway.attempts(answer.headers, 2)
    assert (failed["pointsman.outcome"], won["pointsman.outcome"]) == ("error", "ok")


#: How each API's own client learns of it.
BROKEN = {"chat": openai.APIError, "messages": anthropic.APIError, "responses": ResponseFailed}


@everywhere
@pytest.mark.parametrize("fault", ["break", "error_event"])
def test_a_stream_that_breaks_after_content_is_the_providers_error(gateway, endpoint, fault):
    """What the client has read cannot be taken back, so no other candidate is called."""
    since, answer, name = len(gateway.upstream.requests), Answer(), claude(endpoint, "first")
    failures = gateway.deployment(f"{name}-1")["failures"]
    # So slowly that the proxy has read a piece before the connection breaks.
    broken = {"fault": fault, "fault_after_events": OPENING[endpoint] + 2, "per_token": Delay(median_ms=1200)}
    gateway.upstream.behave(name, Behaviour(text=FIRST_TEXT, **broken))
    with pytest.raises(BROKEN[endpoint]):
        CALLS[endpoint](gateway, of(endpoint, "sturdy"), stream=True, into=answer)
    assert answer.pieces
    assert answer.pieces == split_tokens(FIRST_TEXT)[: len(answer.pieces)]
    assert [r.model for r in gateway.received(since)] == [name]
    (failed,) = gateway.attempts(answer.headers, 1)
    assert (failed["pointsman.outcome"], failed["pointsman.racing.won"]) == ("error", True)
    assert gateway.deployment(f"{name}-1")["failures"] == failures + 1


def test_no_content_in_time(gateway):
    """An attempt that hangs has failed: that is what opens a breaker."""
    since = len(gateway.upstream.requests)
    hung = [gateway.deployment(f"{name}-1") for name in ("hang-a", "hang-b")]
    with pytest.raises(openai.InternalServerError) as caught:
        chat(gateway, "impatient", stream=True)
    assert caught.value.status_code == 504
    assert "within 3000 ms" in str(caught.value)
    gateway.closed_early(since, "hang-a", "hang-b")
    first, second = (gateway.deployment(f"{name}-1") for name in ("hang-a", "hang-b"))
    assert first["failures"] == hung[0]["failures"] + 1
    assert first["cancelled"] == hung[0]["cancelled"]
    # The second was asked later; how much later depends on what has been learned of the first.
    ended = [one["failures"] + one["cancelled"] for one in (hung[1], second)]
    assert ended[1] == ended[0] + 1


# -- clients that leave -----------------------------------------------------------------------------------------------


@streamed
@everywhere
async def test_a_client_that_leaves_takes_all_attempts_along(gateway, endpoint, stream):
    """The proxy goes on; nothing of the race is left, neither here nor at the providers."""
    since, key, url = len(gateway.upstream.requests), gateway.proxy.master_key, gateway.proxy.url
    model, groups = of(endpoint, "hanging"), (claude(endpoint, "hang-a"), claude(endpoint, "hang-b"))
    counts = gateway.counts(model)
    async with (
        openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as speaks_openai,
        anthropic.AsyncAnthropic(auth_token=key, base_url=url, max_retries=0) as speaks_anthropic,
    ):
        match endpoint:
            case "chat":
                call = speaks_openai.chat.completions.create(model=model, messages=ASK, stream=stream)
            case "messages":
                call = speaks_anthropic.messages.create(model=model, max_tokens=9, messages=ASK, stream=stream)
            case _:
                call = speaks_openai.responses.create(model=model, input="Say something.", stream=stream)
        asking = asyncio.create_task(call)
        await asyncio.to_thread(
            gateway.upstream.wait_for,
            lambda seen: len([r for r in seen if r.number >= since]) == 2,
            timeout_s=PATIENCE_S,
        )
        assert gateway.running() == 1
        asking.cancel()
        await asyncio.wait({asking})
    gateway.closed_early(since, *groups)
    eventually(gateway.running, lambda running: running == 0)
    gateway.counted(model, counts, requests=1, abandoned=1, answered=0, attempts=2)
    assert chat(gateway, "fast", stream=False).text == FAST_TEXT


@everywhere
def test_a_client_that_leaves_in_the_middle_of_the_winners_stream_ends_it(gateway, endpoint):
    since, name = len(gateway.upstream.requests), claude(endpoint, "first")
    gateway.upstream.behave(name, Behaviour(text=FIRST_TEXT, per_token=Delay(values_ms=(3000,))))
    path, body = {
        "chat": ("chat/completions", {"messages": ASK}),
        "messages": ("messages", {"messages": ASK, "max_tokens": 99}),
        "responses": ("responses", {"input": "Say something."}),
    }[endpoint]
    body |= {"model": of(endpoint, "sturdy"), "stream": True}
    with gateway.http.stream("POST", f"/v1/{path}", json=body) as answer:
        assert answer.headers["x-pointsman-raced"].startswith(f"{name}; ")
        next(answer.iter_raw())
    gateway.closed_early(since, name)
    eventually(gateway.running, lambda running: running == 0)


# -- requests that must not be made twice -----------------------------------------------------------------------------

NOT_TWICE = {
    "store": ("chat", {"store": True}),
    "store in responses": ("responses", {"store": True}),
    "background": ("responses", {"background": True}),
    "code interpreter": ("responses", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
    "header": ("messages", {"extra_headers": {"x-pointsman-repeatable": "false"}}),
}


@pytest.mark.parametrize(("endpoint", "more"), NOT_TWICE.values(), ids=NOT_TWICE.keys())
def test_what_must_not_be_made_twice_is_not_hedged(gateway, endpoint, more):
    """The candidate needs a second, and a hedge would come after a fifth of it. Without the mark there is one."""
    gateway.upstream.behave("calm", Behaviour(text=SLOW_TEXT, first_token=Delay(median_ms=1000)))
    since, counts = len(gateway.upstream.requests), gateway.counts("careful")
    answer = CALLS[endpoint](gateway, "careful", stream=False, **more)
    assert answer.text == SLOW_TEXT
    assert answer.headers["x-pointsman-attempts"] == "1"
    assert [r.model for r in gateway.received(since)] == ["calm"]
    gateway.counted("careful", counts, requests=1, not_repeatable=1, attempts=1)
    gateway.upstream.behave("calm", Behaviour(text=SLOW_TEXT, first_token=LATE))
    assert CALLS[endpoint](gateway, "careful", stream=False).text == FAST_TEXT


def test_what_must_not_be_made_twice_is_replaced_only_if_it_was_rejected(gateway):
    """A server error leaves open whether it was done."""
    gateway.upstream.behave("first", Behaviour(error_ratios={500: 1.0}))
    with pytest.raises(openai.InternalServerError) as caught:
        chat(gateway, "sturdy", stream=False, store=True)
    assert caught.value.response.headers["x-pointsman-attempts"] == "1"
    gateway.upstream.behave("first", Behaviour(error_ratios={429: 1.0}))
    assert chat(gateway, "sturdy", stream=False, store=True).text == SECOND_TEXT


# -- strategies that start all at once --------------------------------------------------------------------------------


@streamed
def test_first_wins_asks_all_and_answers_with_the_first(gateway, stream):
    since, counts = len(gateway.upstream.requests), gateway.counts("all")
    answer = chat(gateway, "all", stream=stream)
    assert answer.text == "heavy"
    assert re.match(r"heavy; deployment=heavy-1; attempt=\d/3; strategy=first_wins; ", answer.raced)
    assert answer.headers["x-pointsman-attempts"] == "3"
    gateway.closed_early(since, "slow", "claude-slow")
    attempts = gateway.attempts(answer.headers, 3)
    assert [a["pointsman.racing.reason"] for a in attempts] == ["first", "together", "together"]
    assert sorted(a["pointsman.outcome"] for a in attempts) == ["cancelled", "cancelled", "ok"]
    gateway.counted("all", counts, attempts=3, extra=2, losers=2)


@streamed
def test_weighted_waits_for_the_heaviest_but_not_longer_than_its_grace(gateway, stream):
    heavy = chat(gateway, "heaviest", stream=stream)
    assert heavy.text == "heavy"
    assert "strategy=weighted" in heavy.raced
    since = len(gateway.upstream.requests)
    light = chat(gateway, "heaviest-soon", stream=stream)
    assert light.text == "light"
    assert light.headers["x-pointsman-attempts"] == "2"
    gateway.closed_early(since, "slow")


def test_quality_waits_for_the_answer_in_the_requested_format(gateway):
    answer = chat(gateway, "best", stream=False, response_format={"type": "json_object"})
    assert json.loads(answer.text) == {"city": "Oslo"}
    assert answer.raced.startswith("json; deployment=json-1; ")
    assert "strategy=quality" in answer.raced
    attempts = gateway.attempts(answer.headers, 2)
    assert [a["pointsman.outcome"] for a in attempts] == ["ok", "ok"]


# -- the budget -------------------------------------------------------------------------------------------------------


async def test_when_everybody_is_slow_the_budget_bounds_the_extra_attempts(gateway):
    """Both candidates need many times the hedging delay: every request asks for a second attempt, few get one."""
    rounds, each, since, counts = 4, 10, len(gateway.upstream.requests), gateway.counts("thrifty")
    url, key = f"{gateway.proxy.url}/v1", gateway.proxy.master_key
    async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
        for _ in range(rounds):
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="thrifty", messages=ASK) for _ in range(each))
            )
            assert {answer.choices[0].message.content for answer in answers} == {SLOW_TEXT}
    eventually(gateway.running, lambda running: running == 0)
    now = gateway.counts("thrifty")
    extra = now["extra"] - counts["extra"]
    # One token at the start, one tenth for each request.
    assert rounds <= extra <= 0.1 * rounds * each + 1
    assert len(gateway.received(since)) == now["attempts"] - counts["attempts"] == rounds * each + extra
    assert now["denied"] - counts["denied"] >= rounds * each - extra


# -- what can be seen -------------------------------------------------------------------------------------------------


def test_virtual_models_are_listed_with_what_every_candidate_can_do(gateway):
    listed = {model.id: model.model_extra for model in gateway.openai.models.list()}
    assert {one["name"] for one in RACES} | {"pair", "slow"} <= set(listed)
    able = {"streaming": True, "responses": True, "tools": True, "structured_output": True, "vision": True}
    assert listed["swift"]["capabilities"] == {**able, "reasoning": False}
    assert listed["swift-claude"]["capabilities"] == {**able, "reasoning": True}
    assert listed["sturdy"]["capabilities"]["tools"] is False
    assert (listed["swift"]["display_name"], listed["swift"]["description"]) == ("Swift", "Answers soon.")
    assert (listed["swift"]["supports_function_calling"], listed["swift"]["supports_vision"]) == (True, True)
    assert (listed["swift"]["max_input_tokens"], listed["swift-claude"]["max_input_tokens"]) == (8_000, 128_000)
    assert "display_name" not in listed["sturdy"]


def test_the_admin_surface_needs_the_admin_key(gateway):
    url = f"{gateway.proxy.url}/pointsman/racing"
    for headers in ({}, {"authorization": "Bearer sk-somebody-else"}):
        for path in ("", "/swift", "/performance"):
            refused = httpx.get(url + path, headers=headers, trust_env=False)
            assert refused.status_code in {400, 401, 403}
            assert "swift" not in refused.text
    assert {row["name"] for row in gateway.admin()["races"]} == {one["name"] for one in RACES} | {"pair"}


def test_the_commands_show_the_running_proxys_races(gateway):
    chat(gateway, "swift", stream=False)
    eventually(gateway.running, lambda running: running == 0)
    access = ["--url", gateway.proxy.url, "--key", gateway.proxy.master_key]
    command = [str(Path(sys.executable).with_name("pointsman")), "racing", "list", *access]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603  # our own
    (row,) = [line for line in listed.stdout.splitlines() if re.search(r"\bswift\b(?!-)", line)]
    counts = gateway.counts("swift")
    cells = [cell.strip() for cell in re.split("[│┃|]", row)]
    assert cells[1:7] == ["swift", "model", "hedge", "yes", str(counts["requests"]), str(counts["answered"])]
    assert "fast-1" in listed.stdout
    shown = CliRunner().invoke(racing, ["show", "swift", *access])
    assert shown.exit_code == 0, shown.output
    assert "slow: slow-1" in shown.output
    assert re.search(rf"requests\W+{counts['requests']}\b", shown.output)
    refused = CliRunner().invoke(racing, ["list", "--url", gateway.proxy.url, "--key", "sk-somebody-else"])
    assert refused.exit_code == 1
    assert "swift" not in refused.output


def test_after_all_of_this_nothing_is_left_and_nothing_has_gone_wrong(gateway):
    assert chat(gateway, "swift", stream=True).text == FAST_TEXT
    eventually(gateway.running, lambda running: running == 0)
    status = gateway.http.get("/pointsman/status").raise_for_status().json()
    assert status["faults"] == []
    (plugin,) = status["plugins"]
    assert (plugin["name"], plugin["details"]["running"]) == ("racing", 0)
    assert plugin["details"]["cancelling_ms"]["count"] > 0
    log = gateway.proxy.log()
    assert "failed unexpectedly" not in log
    assert "Task exception was never retrieved" not in log
    for text in (FAST_TEXT, SECOND_TEXT):
        assert text not in log
