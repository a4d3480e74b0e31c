"""Bills of a real LiteLLM proxy, asked by the providers' own clients: what was used is paid for, once, come what may."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Self

import anthropic
import httpx
import openai
import pytest

from pointsman.host import journal_rows
from pointsman.store import open_store
from pointsman.testing import eventually
from pointsman.testing.provider import (
    Behaviour,
    Delay,
    ReceivedRequest,
    RecordedExchange,
    ReplayIndex,
    UpstreamServer,
    filler,
)
from pointsman.testing.proxy import ProxyServer

from .kit import by_type, lines
from .sink_server import SinkServer, always

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

TESTS = Path(__file__).parent
#: What the seed of all billing events has.
SEED = ("tenant_id", "model", "prompt_tokens", "completion_tokens", "timestamp")
STATES = ("billed", "unpriced", "free", "pending", "dead")
BUDGET_USD_MICROS = 10_000
TENANTS = ("acme", "vip", "reader", "capped", "books")
KEYS = {tenant: f"sk-{tenant}-0123456789abcdef" for tenant in TENANTS}
QUESTION = "Say something about bills, please."
ASK: Any = [{"role": "user", "content": QUESTION}]
#: Model group, upstream model and provider. Known names have a price in LiteLLM's cost map.
GROUPS = {
    "chat": ("gpt-4o-mini", "openai"),
    "claude": ("claude-haiku-4-5-20251001", "anthropic"),
    "embed": ("text-embedding-3-small", "openai"),
    "wavering": ("gpt-4.1-mini", "openai"),
    "fragile": ("gpt-broken", "openai"),
    "broken": ("gpt-broken", "openai"),
    "picky": ("gpt-picky", "openai"),
    "slow": ("gpt-4.1", "openai"),
    "slow-claude": ("claude-sonnet-4-5-20250929", "anthropic"),
    "torn": ("gpt-4o", "openai"),
    "torn-claude": ("claude-opus-4-5-20251101", "anthropic"),
    "house": ("house-7b", "openai"),
    "unheard-of": ("nobody-knows-7b", "openai"),
}
#: Groups with two deployments: LiteLLM retries those at once.
PAIRS = {"wavering", "fragile", "broken"}
#: The same for what a second upstream answers as it is told: without usage, and with a usage of zero.
TOLD = {
    "silent": ("gpt-4.1-nano", "openai"),
    "nothing": ("gpt-4o-2024-08-06", "openai"),
    "silent-claude": ("claude-sonnet-4-6", "anthropic"),
    "nothing-claude": ("claude-opus-4-6", "anthropic"),
}
PRICES = [
    {"tenants": ["capped"], "input_usd_per_million": 0, "output_usd_per_million": 250},
    {
        "tenants": ["vip"],
        "models": ["chat"],
        "input_usd_per_million": "11",
        "output_usd_per_million": "20.5",
        "cache_read_usd_per_million": "1.25",
    },
    {"models": ["house-*"], "input_usd_per_million": "33", "output_usd_per_million": "77"},
]
#: Stream events after which a torn stream breaks: behind the opening of each of the three APIs.
TORN_AFTER = 12
LONG_TOKENS = 60


class Clients:
    """The providers' own clients with one key.

    Args:
        url: The proxy.
        key: Whose.
        note: Gets the headers of every answer, as soon as they are there.
    """

    def __init__(self, url: str, key: str, note: Callable[[Mapping[str, str]], None]) -> None:
        self.openai = openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)
        self.anthropic = anthropic.Anthropic(auth_token=key, base_url=url, max_retries=0)
        self._note = note

    def close(self) -> None:
        self.openai.close()
        self.anthropic.close()

    def ask(self, endpoint: str, model: str, *, stream: bool = False, **more: Any) -> Any:
        """Send a request; return the answer, or a stream that has to be read."""
        try:
            raw = self._send(endpoint, model, stream=stream, **more)
        except (openai.APIStatusError, anthropic.APIStatusError) as err:
            self._note(err.response.headers)
            raise
        self._note(raw.headers)
        return raw.parse()

    def _send(self, endpoint: str, model: str, *, stream: bool, **more: Any) -> Any:
        match endpoint:
            case "chat":
                create: Any = self.openai.chat.completions.with_raw_response.create
                return create(model=model, messages=ASK, stream=stream, **more)
            case "responses":
                create = self.openai.responses.with_raw_response.create
                return create(model=model, input=QUESTION, stream=stream)
            case "messages":
                create = self.anthropic.messages.with_raw_response.create
                return create(model=model, max_tokens=128, messages=ASK, stream=stream)
        return self.openai.embeddings.with_raw_response.create(model=model, input=filler(2000))

    def ask_all(self, endpoint: str, model: str, *, stream: bool = False) -> None:
        """Send a request and read the whole answer."""
        answer = self.ask(endpoint, model, stream=stream)
        if stream:
            assert any(is_text(piece) for piece in list(answer))
        else:
            assert answer.usage


def is_text(piece: Any) -> bool:
    if hasattr(piece, "choices"):
        return bool(piece.choices and piece.choices[0].delta.content)
    return piece.type in {"content_block_delta", "response.output_text.delta"}


class Gateway:
    """The proxy, its upstreams, its sinks, and the ids of all requests that were sent."""

    def __init__(self, proxy: ProxyServer, upstream: UpstreamServer, sink: SinkServer, spend_log: Path) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.sink = sink
        self.file = proxy.directory / "bills.ndjson"
        self.sent: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.admin = proxy.client()
        self._spend_log = spend_log
        self._clients = {tenant: Clients(proxy.url, key, self._note) for tenant, key in KEYS.items()}

    def _note(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.sent.append(headers["x-pointsman-request-id"])

    def close(self) -> None:
        self.admin.close()
        for clients in self._clients.values():
            clients.close()

    def of(self, tenant: str) -> Clients:
        return self._clients[tenant]

    def get(self, path: str, **params: Any) -> Any:
        return self.admin.get(f"/pointsman{path}", params=params).raise_for_status().json()

    def bill(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the bill of a request, by default of the last one, once every sink has its events."""
        path = f"/pointsman/billing/requests/{request_id or self.sent[-1]}"
        answer = eventually(
            lambda: self.admin.get(path), lambda seen: seen.status_code == 200 and not seen.json()["pending_in"]
        )
        found: dict[str, Any] = answer.json()
        rows = [row for row in lines(self.file) if row["request_id"] == found["request_id"]]
        assert rows == found["events"], "the file has other events than the outbox"
        assert {row["id"] for row in rows} <= set(self.sink.accepted)
        return found

    def pair(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the two events of the last request: of its one billed attempt, and of itself."""
        attempt, request = self.bill()["events"]
        assert (attempt["type"], request["type"]) == ("attempt", "request")
        return attempt, request

    def received(self, since: int) -> list[ReceivedRequest]:
        """Return what the upstream has got since then, when it is done with all of it."""
        seen = self.upstream.wait_for(lambda all_: all(r.ended_ms is not None for r in all_[since:]), timeout_s=20)
        return list(seen[since:])

    def reconciled(self) -> Any:
        return eventually(lambda: self.get("/billing/reconcile"), lambda found: not found["requests"]["pending"])

    def spent(self) -> dict[str, Decimal]:
        """Return what LiteLLM itself says that calls have cost, by its own id of the call."""
        text = self._spend_log.read_text(encoding="utf-8") if self._spend_log.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return {row["call"]: Decimal(str(row["cost_usd"] or 0)) for row in rows}

    def cli(self, *args: str, code: int = 0) -> str:
        env = {**os.environ, "POINTSMAN_URL": self.proxy.url, "LITELLM_MASTER_KEY": self.proxy.master_key}
        command = [str(Path(sys.executable).with_name("pointsman")), "billing", *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603  # our own command
        assert done.returncode == code, done.stderr
        return done.stdout


def told_answers() -> ReplayIndex:
    """Return what the second upstream answers: the same texts, without usage and with a usage of zero."""
    exchanges = []
    for group, (model, provider) in TOLD.items():
        if provider == "openai":
            path = "/v1/chat/completions"
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
            body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "choices": [choice]}
            usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        else:
            path = "/v1/messages"
            content = [{"type": "text", "text": "Hello."}]
            body = {"id": "1", "type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
            usage = {"input_tokens": 0, "output_tokens": 0}
        body |= {"model": model, **({"usage": usage} if group.startswith("nothing") else {})}
        exchanges.append(
            RecordedExchange(
                id=group,
                path=path,
                request={"model": model, "messages": ASK},
                status=200,
                headers={"content-type": "application/json"},
                body=json.dumps(body),
            )
        )
    return ReplayIndex(exchanges)


def deployments(groups: Mapping[str, tuple[str, str]], upstream: UpstreamServer) -> list[dict[str, Any]]:
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": f"{provider}/{model}",
                "api_base": upstream.url if provider == "anthropic" else f"{upstream.url}/v1",
                "api_key": "upstream-key",
            },
            "model_info": {"id": f"{group}-{number}"},
        }
        for group, (model, provider) in groups.items()
        for number in ((1, 2) if group in PAIRS else (1,))
    ]


def plugins(sink: SinkServer) -> list[dict[str, Any]]:
    from pointsman_quota.tenants import hash_key  # noqa: PLC0415 - another distribution

    tenants: list[dict[str, Any]] = [
        {"id": tenant, "keys": [{"name": "ci", "hash": hash_key(key, "00" * 16)}]} for tenant, key in KEYS.items()
    ]
    for tenant in tenants:
        if tenant["id"] == "capped":
            tenant["limits"] = {"usd_per_month": str(Decimal(BUDGET_USD_MICROS) / 1_000_000)}
    eager = {"backoff_first_s": 0.05, "backoff_most_s": 0.3, "max_tries": 1_000_000}
    billing = {
        "sinks": [{"ndjson": {"path": "bills.ndjson"}}, {"cloudevents": {"url": sink.url, **eager}}],
        "prices": PRICES,
        "margins": [{"tenants": ["vip"], "margin_ratio": "0.25"}],
        "outbox": {"path": "outbox"},
    }
    return [{"quota": {"tenants": tenants, "money_from": "events"}}, {"billing": billing}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("billing")
    library = directory / "lib"
    library.mkdir()
    (library / "spend_log.py").write_text((TESTS / "spend_log.py").read_text(encoding="utf-8"), encoding="utf-8")
    spend_log = directory / "spend.jsonl"
    with (
        UpstreamServer({"*": Behaviour(cached_prompt_tokens=4, reasoning_tokens=5)}) as upstream,
        UpstreamServer(replay=told_answers()) as teller,
        SinkServer() as sink,
    ):
        upstream.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        upstream.behave("gpt-picky", Behaviour(error_ratios={400: 1.0}))
        slow, torn = (
            Behaviour(tokens=LONG_TOKENS, per_token=Delay(60)),
            Behaviour(tokens=LONG_TOKENS, per_token=Delay(30), fault="break", fault_after_events=TORN_AFTER),
        )
        for group, behaviour in (("slow", slow), ("slow-claude", slow), ("torn", torn), ("torn-claude", torn)):
            upstream.behave(GROUPS[group][0], behaviour)
        config = {
            "model_list": deployments(GROUPS, upstream) + deployments(TOLD, teller),
            "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler", "spend_log.spend_log"]},
            "router_settings": {
                "num_retries": 1,
                "retry_after": 0,
                "disable_cooldowns": True,
                "fallbacks": [{"fragile": ["chat"]}],
            },
            "pointsman": {"store": {"backend": "disk", "path": str(directory / "store")}, "plugins": plugins(sink)},
        }
        env = {"SPEND_LOG": str(spend_log)}
        with ProxyServer(config, directory, env=env, python_path=(library,)) as proxy:
            running = Gateway(proxy, upstream, sink, spend_log)
            yield running
            running.close()


def litellms_prices(model: str) -> dict[str, Decimal]:
    """Return unit prices from the cost map that LiteLLM brings along, read without LiteLLM."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).with_name("model_prices_and_context_window_backup.json").read_text(encoding="utf-8")
    entry = json.loads(text, parse_float=Decimal)[model]
    names = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
    return {name: Decimal(entry[name]) for name in names if name in entry}


def priced(event: Mapping[str, Any], inside: Decimal, outside: Decimal, cached: Decimal) -> Decimal:
    """Return what the tokens of an event cost, in micro-dollars."""
    usd = (event["prompt_tokens"] - event["cached_tokens"]) * inside
    usd += event["cached_tokens"] * cached + event["completion_tokens"] * outside
    return usd * 1_000_000


def whole(usd_micros: Decimal) -> int:
    return int(usd_micros.to_integral_value(ROUND_HALF_EVEN))


CASES = [
    ("chat", "chat", False),
    ("chat", "chat", True),
    ("chat", "claude", False),
    ("chat", "claude", True),
    ("messages", "claude", False),
    ("messages", "claude", True),
    ("messages", "chat", False),
    ("messages", "chat", True),
    ("responses", "chat", False),
    ("responses", "chat", True),
    ("embeddings", "embed", False),
]


@pytest.mark.parametrize(
    ("endpoint", "model", "stream"), CASES, ids=[f"{e}-{m}-{'stream' if s else 'plain'}" for e, m, s in CASES]
)
def test_every_api_is_billed_by_what_the_provider_counted(
    gateway: Gateway, endpoint: str, model: str, stream: bool
) -> None:
    """One event for the attempt and one for the request, with everything that a bill is made of."""
    since, began = len(gateway.upstream.requests), time.time()
    gateway.of("acme").ask_all(endpoint, model, stream=stream)
    attempt, request = gateway.pair()
    (seen,) = gateway.received(since)
    upstream_model, provider = GROUPS[model]
    assert gateway.headers["x-pointsman-request-id"] == gateway.sent[-1]
    for event in (attempt, request):
        assert set(SEED) <= event.keys()
        assert (event["tenant_id"], event["model"], event["request_id"]) == ("acme", model, gateway.sent[-1])
        assert (event["endpoint"], event["stream"], event["metering"]) == (endpoint, stream, "exact")
        assert (event["prompt_tokens"], event["completion_tokens"]) == (seen.prompt_tokens, seen.output_tokens)
        assert (event["status"], event["status_code"], event["attempts"]) == ("ok", 200, 1)
        assert (event["deployment"], event["group"], event["provider"]) == (f"{model}-1", model, provider)
        assert event["model_served"] == upstream_model
        assert int(began * 1000) <= event["started_at_ms"] <= event["finished_at_ms"] <= time.time() * 1000 + 1
        assert event["timestamp"] == event["finished_at_ms"] // 1000
    assert (attempt["kind"], attempt["attempt"], request["kind"]) == ("primary", 1, "request")
    assert attempt["cached_tokens"] == (0 if endpoint == "embeddings" else 4)

    prices = litellms_prices(upstream_model)
    inside, outside = prices["input_cost_per_token"], prices["output_cost_per_token"]
    cached = prices.get("cache_read_input_token_cost")
    snapshot = {name: None if text is None else Decimal(text) for name, text in attempt["prices"].items()}
    assert (snapshot["input_usd"], snapshot["output_usd"], snapshot["cache_read_usd"]) == (inside, outside, cached)
    assert (attempt["price_source"], attempt["cost_basis"]) == ("gateway", "prices")
    cost = priced(attempt, inside, outside, cached or inside)
    assert Decimal(attempt["cost_usd"]) * 1_000_000 == cost
    for event in (attempt, request):
        assert event["cost_usd_micros"] == event["amount_usd_micros"] == whole(cost) > 0
        assert abs(event["gateway_cost_usd_micros"] - cost) <= 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_a_retried_request_is_billed_once(gateway: Gateway, endpoint: str, stream: bool) -> None:
    """The attempt that failed without usage is not on the bill; the next one is, as a retry."""
    gateway.upstream.behave(GROUPS["wavering"][0], Behaviour(fail_first=1))
    since = len(gateway.upstream.requests)
    gateway.of("acme").ask_all(endpoint, "wavering", stream=stream)
    attempt, request = gateway.pair()
    failed, seen = gateway.received(since)
    assert (failed.status, seen.status) == (500, 200)
    assert (attempt["kind"], attempt["attempt"], attempt["status"]) == ("retry", 2, "ok")
    assert (request["attempts"], request["deployment"]) == (2, attempt["deployment"])
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == (seen.prompt_tokens, seen.output_tokens)
    assert request["amount_usd_micros"] == attempt["amount_usd_micros"] > 0
    assert gateway.bill()["state"] == "billed"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_a_request_that_fell_back_is_billed_once(gateway: Gateway, endpoint: str, stream: bool) -> None:
    """By the group that answered, under the model that was asked for; its first two attempts cost nothing."""
    since = len(gateway.upstream.requests)
    gateway.of("acme").ask_all(endpoint, "fragile", stream=stream)
    attempt, request = gateway.pair()
    *failed, seen = gateway.received(since)
    assert [one.status for one in failed] == [500, 500]
    assert (attempt["kind"], attempt["attempt"], attempt["group"]) == ("fallback", 3, "chat")
    assert (attempt["model"], request["model"], request["attempts"]) == ("fragile", "fragile", 3)
    assert (attempt["model_served"], request["deployment"]) == (GROUPS["chat"][0], "chat-1")
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == (seen.prompt_tokens, seen.output_tokens)
    assert request["amount_usd_micros"] == attempt["amount_usd_micros"] > 0


#: LiteLLM 1.106 logs nothing of a responses stream whose client has left, and adapts messages to such a stream.
LOGS_LEFT_RESPONSES = not importlib.metadata.version("litellm").startswith("1.106.")
LONG = [("chat", ""), ("responses", ""), ("messages", "-claude"), ("messages", "")]
LONG_IDS = ["chat", "responses", "messages", "messages-adapted"]


def check_part(gateway: Gateway, seen: ReceivedRequest, status: str, *, logged: bool = True) -> None:
    """Look at the bill of a stream that was not sent to its end.

    ``logged``: LiteLLM logs what there was of it, as a success when the client left, as a failure when the stream broke.
    """
    attempt, request = gateway.pair()
    assert (attempt["status"], attempt["metering"], attempt["kind"]) == (status, "estimated", "primary")
    assert attempt["prompt_tokens"] > 0
    # No tokenizer finds more than two tokens in a piece of four letters.
    assert 0 < attempt["completion_tokens"] <= 2 * seen.events < 2 * LONG_TOKENS
    assert (attempt["gateway_cost_usd"] is not None) is logged
    assert request["metering"] == "estimated"
    assert request["amount_usd_micros"] == attempt["amount_usd_micros"] > 0
    assert gateway.bill()["state"] == "billed"


@pytest.mark.parametrize(("endpoint", "suffix"), LONG, ids=LONG_IDS)
def test_a_client_that_leaves_pays_for_what_was_produced(gateway: Gateway, endpoint: str, suffix: str) -> None:
    since = len(gateway.upstream.requests)
    stream = gateway.of("acme").ask(endpoint, f"slow{suffix}", stream=True)
    texts = 0
    for piece in stream:
        texts += is_text(piece)
        if texts == 3:
            break
    stream.close()
    (seen,) = gateway.received(since)
    assert seen.closed_early
    responses = endpoint == "responses" or (endpoint, suffix) == ("messages", "")
    check_part(gateway, seen, "disconnected", logged=LOGS_LEFT_RESPONSES or not responses)


@pytest.mark.parametrize(("endpoint", "suffix"), LONG, ids=LONG_IDS)
def test_a_stream_that_the_provider_breaks_is_paid_as_far_as_it_came(
    gateway: Gateway, endpoint: str, suffix: str
) -> None:
    since = len(gateway.upstream.requests)
    with contextlib.suppress(Exception):
        list(gateway.of("acme").ask(endpoint, f"torn{suffix}", stream=True))
    (seen,) = gateway.received(since)
    assert (seen.fault, seen.events) == ("break", TORN_AFTER)
    check_part(gateway, seen, "error")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("endpoint", "model"), [("chat", "broken"), ("messages", "broken"), ("responses", "picky")])
def test_a_request_that_failed_without_usage_is_free(gateway: Gateway, endpoint: str, model: str, stream: bool) -> None:
    """Nothing is written, nothing is delivered, and it is on record all the same."""
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
        gateway.of("acme").ask_all(endpoint, model, stream=stream)
    found = gateway.bill()
    assert (found["state"], found["events"], found["amount_usd_micros"]) == ("free", [], 0)


@pytest.mark.parametrize("silent", ["silent", "nothing"])
@pytest.mark.parametrize(("endpoint", "suffix"), [("chat", ""), ("messages", "-claude")])
def test_an_answer_without_usage_or_with_zeros_alone_is_estimated(
    gateway: Gateway, endpoint: str, suffix: str, silent: str
) -> None:
    """From its text, and says so: what has answered has used something."""
    gateway.of("acme").ask(endpoint, f"{silent}{suffix}")
    found = gateway.bill()
    assert found["state"] == "billed"
    for event in found["events"]:
        assert event["metering"] == "estimated"
        assert min(event["prompt_tokens"], event["completion_tokens"]) > 0
        assert event["amount_usd_micros"] > 0
    assert [event["type"] for event in found["events"]] == ["attempt", "request"]


def test_prices_and_margins_of_the_configuration_are_applied(gateway: Gateway) -> None:
    """By tenant and model, with a snapshot in the event; others keep the gateway's prices."""
    gateway.of("vip").ask_all("chat", "chat")
    attempt, request = gateway.pair()
    assert (attempt["price_source"], attempt["margin_ratio"]) == ("config", "0.25")
    snapshot = {name: text for name, text in attempt["prices"].items() if text is not None}
    assert snapshot == {"input_usd": "0.000011", "output_usd": "0.0000205", "cache_read_usd": "0.00000125"}
    cost = priced(attempt, Decimal("0.000011"), Decimal("0.0000205"), Decimal("0.00000125"))
    for event in (attempt, request):
        assert (event["cost_usd_micros"], event["amount_usd_micros"]) == (whole(cost), whole(cost * Decimal("1.25")))
    assert request["amount_usd_micros"] > request["cost_usd_micros"] > 10 * request["gateway_cost_usd_micros"]

    gateway.of("vip").ask_all("messages", "claude", stream=True)
    attempt, _ = gateway.pair()
    assert (attempt["price_source"], attempt["margin_ratio"]) == ("gateway", "0.25")
    assert Decimal(attempt["amount_usd"]) == Decimal(attempt["cost_usd"]) * Decimal("1.25")

    gateway.of("acme").ask_all("chat", "house", stream=True)
    attempt, _ = gateway.pair()
    assert (attempt["price_source"], attempt["margin_ratio"]) == ("config", "0")
    cost = priced(attempt, Decimal("0.000033"), Decimal("0.000077"), Decimal("0.000033"))
    assert attempt["cost_usd_micros"] == attempt["amount_usd_micros"] == whole(cost)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_without_a_price_a_request_is_unpriced_and_not_free(gateway: Gateway, stream: bool) -> None:
    since = len(gateway.upstream.requests)
    gateway.of("acme").ask_all("chat", "unheard-of", stream=stream)
    (seen,) = gateway.received(since)
    found = gateway.bill()
    assert found["state"] == "unpriced"
    for event in found["events"]:
        assert (event["prompt_tokens"], event["completion_tokens"]) == (seen.prompt_tokens, seen.output_tokens)
        assert (event["metering"], event["cost_usd"], event["amount_usd_micros"]) == ("exact", None, None)
    assert set(found["events"][0]["prices"].values()) == {None}
    looked_at = {row["model"]: row["unpriced"] for row in gateway.get("/billing/reconcile")["models_to_look_at"]}
    assert looked_at["nobody-knows-7b"] >= 1


def test_what_was_used_by_tenant_model_hour_day_and_month(gateway: Gateway) -> None:
    """As JSON and as CSV, over HTTP and on the command line: the same figures, those of the upstream."""
    since = len(gateway.upstream.requests)
    for endpoint, model in (("chat", "chat"), ("responses", "chat"), ("messages", "claude"), ("chat", "fragile")):
        gateway.of("reader").ask_all(endpoint, model)
        gateway.bill()
    tokens: Counter[str] = Counter()
    for seen in gateway.received(since):
        asked = {"gpt-4o-mini": "openai", "claude-haiku-4-5-20251001": "anthropic"}.get(seen.model)
        if asked:
            tokens[asked] += (seen.prompt_tokens or 0) + (seen.output_tokens or 0)
    shapes = {
        "hour": r"\d{4}-\d\d-\d\dT\d\d:00\+00:00",
        "day": r"\d{4}-\d\d-\d\d",
        "month": r"\d{4}-\d\d",
    }
    for period, shape in shapes.items():
        query = {"tenant": "reader", "period": period}
        rows = gateway.get("/billing/usage", **query)["usage"]
        assert all(re.fullmatch(shape, row["period"]) and row["tenant"] == "reader" for row in rows)
        requests: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for row in rows:
            requests[row["model"]] += row["requests"]
            used["anthropic" if row["model"] == "claude" else "openai"] += row["prompt_tokens"]
            used["anthropic" if row["model"] == "claude" else "openai"] += row["completion_tokens"]
        assert requests == {"chat": 2, "claude": 1, "fragile": 1}
        assert used == tokens
        answer = gateway.admin.get("/pointsman/billing/usage", params={**query, "format": "csv"})
        assert answer.headers["content-type"].startswith("text/csv")
        in_text = [{name: str(value) for name, value in row.items()} for row in rows]
        assert list(csv.DictReader(io.StringIO(answer.text))) == in_text
        (only,) = gateway.get("/billing/usage", **query, model="claude", group_by="model")["usage"]
        assert (only["model"], only["requests"]) == ("claude", 1)
    printed = gateway.cli("usage", "--tenant", "reader", "--period", "month", "--csv")
    assert printed.splitlines() == answer.text.splitlines()
    assert gateway.get("/billing/usage", tenant="reader", to="2020-01-01")["usage"] == []


@pytest.mark.parametrize("path", ["/usage", "/reconcile", "/sinks", "/dead", "/requests/x"])
def test_the_routes_need_the_admin_key(gateway: Gateway, path: str) -> None:
    url = f"{gateway.proxy.url}/pointsman/billing{path}"
    for key, status in ((None, 401), ("sk-nobody-0123456789abcdef", 401), (KEYS["acme"], 403)):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.get(url, headers=headers, timeout=30, trust_env=False)
        assert (key, answer.status_code) == (key, status), answer.text
        assert "acme" not in answer.text


def test_a_budget_refuses_what_billing_would_charge_beyond_it(gateway: Gateway) -> None:
    """Quota reserves and counts billing's figures, price rule included; LiteLLM's own are a small part of the budget."""
    clients = gateway.of("capped")
    paid = litellms = requests = 0
    with pytest.raises(openai.RateLimitError):  # noqa: PT012  # the request that does not fit
        while paid < BUDGET_USD_MICROS:
            clients.ask("chat", "chat", max_tokens=32)
            attempt, request = gateway.pair()
            paid += request["amount_usd_micros"]
            litellms += attempt["gateway_cost_usd_micros"]
            requests += 1
            eventually(
                lambda: gateway.get("/quota/tenants/capped")["usage"][0]["month_usd_micros"],
                lambda spent: spent == paid,  # noqa: B023 - called at once
            )
    assert paid <= BUDGET_USD_MICROS
    found = gateway.bill()
    assert (found["tenant_id"], found["state"], found["events"]) == ("capped", "free", [])
    assert gateway.headers["x-pointsman-quota"] == "refused; limit=tenant/usd_per_month"
    assert requests >= 1
    assert litellms < BUDGET_USD_MICROS / 100
    (row,) = gateway.get("/billing/usage", tenant="capped", period="total")["usage"]
    assert (row["amount_usd_micros"], row["attempts"], row["requests"]) == (paid, requests, requests + 1)


def test_quota_and_billing_do_not_know_each_other() -> None:
    for name, other in (("pointsman_billing", "pointsman_quota"), ("pointsman_quota", "pointsman_billing")):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        (folder,) = spec.submodule_search_locations or ()
        sources = [path.read_text(encoding="utf-8") for path in Path(folder).rglob("*.py")]
        assert sources
        assert not any(other in source for source in sources)


def test_one_sink_is_down_and_the_other_gets_everything(gateway: Gateway) -> None:
    """The status names the failing one; when it comes back it gets all events, each once for who looks at the ids."""

    def sinks() -> dict[str, Any]:
        return {row["name"]: row for row in gateway.get("/billing/sinks")["sinks"]}

    def status() -> dict[str, Any]:
        rows: list[dict[str, Any]] = gateway.get("/status")["plugins"]
        return next(row for row in rows if row["name"] == "billing")

    ways = iter("drop" if number % 2 else "503" for number in range(1_000_000))
    before = set(gateway.sink.accepted)
    gateway.sink.behaviour = lambda _: next(ways)
    try:
        mine = []
        for endpoint, model, stream in CASES[:6]:
            gateway.of("acme").ask_all(endpoint, model, stream=stream)
            mine.append(gateway.sent[-1])
        rows = eventually(
            lambda: [row for row in lines(gateway.file) if row["request_id"] in mine], lambda found: len(found) == 12
        )
        found = eventually(sinks, lambda found: found["cloudevents"]["tries"] >= 3 and not found["ndjson"]["pending"])
        assert (found["ndjson"]["tries"], found["ndjson"]["error"]) == (0, None)
        assert found["cloudevents"]["pending"] >= 12
        assert found["cloudevents"]["error"]
        assert set(gateway.sink.accepted) == before
        report = gateway.get("/billing/reconcile")["requests"]
        assert report["pending"] == 6
        assert report["total"] == sum(report[state] for state in STATES)
        shown = eventually(status, lambda found: not found["ok"])
        assert "sink cloudevents fails" in shown["summary"]
        assert "ndjson" not in shown["summary"]
        # It takes the first batch twice more before it says so.
        ways = iter(["500-after", "drop-after", *["ok"] * 1_000_000])
        eventually(sinks, lambda found: not found["cloudevents"]["pending"])
    finally:
        gateway.sink.behaviour = always("ok")
    assert max(gateway.sink.accepted[row["id"]] for row in rows) >= 3
    taken = Counter(event["id"] for event in gateway.sink.events)
    assert set(taken.values()) == {1}
    assert taken.keys() == {row["id"] for row in lines(gateway.file)}
    delivered = {event["id"]: event["data"] for event in gateway.sink.events}
    assert all(delivered[row["id"]] == row for row in rows)
    eventually(status, lambda found: found["ok"])
    assert gateway.get("/billing/reconcile")["requests"]["pending"] == 0


def test_the_books_agree(gateway: Gateway) -> None:
    """Every request of all tests is in exactly one state, and the sum is what LiteLLM says that it has spent."""
    before = gateway.reconciled()["requests"]
    calls = []
    sent = len(gateway.sent)
    for endpoint, model, stream in CASES:
        gateway.of("books").ask_all(endpoint, model, stream=stream)
        calls.append(gateway.headers["x-litellm-call-id"])
    gateway.of("books").ask_all("chat", "unheard-of")
    for model in ("broken", "no-such-model"):
        with pytest.raises(openai.APIStatusError):
            gateway.of("books").ask_all("chat", model)
    for request_id in gateway.sent[sent:]:
        gateway.bill(request_id)
    after = gateway.reconciled()["requests"]
    grown = {state: after[state] - before[state] for state in STATES if after[state] != before[state]}
    assert grown == {"billed": len(CASES), "unpriced": 1, "free": 2}

    spent = eventually(gateway.spent, lambda spent: set(calls) <= spent.keys())
    litellms = sum(spent[call] for call in calls) * 1_000_000
    for name in ("gateway_usd_micros", "cost_usd_micros"):
        assert abs(after[name] - before[name] - litellms) <= len(calls), name
    assert litellms > 10 * len(calls)

    states = Counter(gateway.bill(request_id)["state"] for request_id in set(gateway.sent))
    assert states == {state: after[state] for state in STATES if after[state]}
    assert after["total"] == len(set(gateway.sent)) == len(gateway.sent)
    by_hand = [row for row in lines(gateway.file) if row["type"] == "attempt"]
    assert Decimal(after["amount_usd"]) == sum(Decimal(row["amount_usd"] or 0) for row in by_hand)

    told = json.loads(gateway.cli("reconcile", "--json"))
    assert told["requests"] == after
    assert told["in_order"] is False
    printed = gateway.cli("reconcile", "--strict", code=1)
    assert all(state in printed for state in STATES)
    assert "nobody-knows-7b" in printed


def test_the_file_has_integers_and_can_be_computed_anew(gateway: Gateway) -> None:
    gateway.of("vip").ask_all("chat", "chat")
    gateway.bill()
    text = gateway.file.read_text(encoding="ascii")
    rows = [json.loads(line, parse_float=pytest.fail) for line in text.splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) >= 2
    for row in rows:
        amounts = [row[name] for name in row if name.endswith(("_usd_micros", "_tokens", "_ms"))]
        assert len(amounts) >= 10
        assert all(amount is None or (type(amount) is int and amount >= 0) for amount in amounts), row
    attempts, requests = len(by_type(rows, "attempt")), len(by_type(rows, "request"))
    said = gateway.cli("verify", str(gateway.file))
    assert said == f"{attempts} attempts, {requests} requests, 0 wrong\n"
    assert not any(key in text for key in KEYS.values())
    assert QUESTION not in text


# -- a killed proxy -------------------------------------------------------------------------------------------------------


class Traffic:
    """Clients that ask as fast as they are answered, plain and streamed."""

    def __init__(self, proxy: ProxyServer) -> None:
        self.answered: set[str] = set()
        self._proxy = proxy
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        heard: list[Mapping[str, str]] = []
        clients = Clients(self._proxy.url, self._proxy.master_key, heard.append)
        while not self._stop.is_set():
            number += 1
            endpoint = ("chat", "responses", "messages")[number % 3]
            try:
                clients.ask_all(endpoint, "chat", stream=number % 2 == 0)
            except Exception:  # noqa: BLE001 - whatever a client makes of a proxy that dies
                self._stop.wait(0.2)
                continue
            self.answered.add(heard[-1]["x-pointsman-request-id"])
        clients.close()


def in_outbox(directory: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(directory / "outbox" / "outbox.sqlite3", timeout=30)) as outbox:
        return {request_id for (request_id,) in outbox.execute("SELECT request_id FROM requests")}


def journalled(directory: Path) -> dict[str, set[str]]:
    """Return the requests that are written down and not known to be settled by everybody, by the key of their row."""

    async def read() -> dict[str, Any]:
        store = await open_store("disk", path=directory / "store")
        try:
            return {key: value for key, value in await store.scan("") if "journal" in key}
        finally:
            await store.close()

    rows = asyncio.run(read())
    found = {
        key: {entry.settlement.request_id for entry in journal_rows.parse(value)[0]} for key, value in rows.items()
    }
    # Others of its keys say which workers there are.
    return {key: ids for key, ids in found.items() if ids}


def test_a_killed_proxy_bills_everything_that_was_on_record_once(tmp_path: Path) -> None:
    """Two workers die by SIGKILL under traffic, while settlements are held up; the next one finishes all of them."""
    with UpstreamServer({"*": Behaviour(latency=Delay(100))}) as upstream, SinkServer() as sink:
        sinks = [{"ndjson": {"path": "bills.ndjson"}}, {"cloudevents": {"url": sink.url}}]
        config = {
            "model_list": deployments({"chat": GROUPS["chat"]}, upstream),
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "pointsman": {
                "store": {"backend": "disk", "path": str(tmp_path / "store")},
                "plugins": [{"billing": {"sinks": sinks, "outbox": {"path": "outbox"}}}],
            },
        }
        with ProxyServer(config, tmp_path, workers=2) as proxy:
            with Traffic(proxy) as traffic:
                eventually(lambda: in_outbox(tmp_path), lambda ids: len(ids) >= 30, within_s=150)
                with contextlib.closing(sqlite3.connect(tmp_path / "outbox" / "outbox.sqlite3", timeout=30)) as held:
                    # Nobody else can write to the outbox: what ends from now on gets no further than the journal.
                    held.execute("BEGIN IMMEDIATE")
                    before = in_outbox(tmp_path)
                    eventually(
                        lambda: journalled(tmp_path), lambda rows: len(set().union(*rows.values()) - before) >= 20
                    )
                    proxy.stop(signal.SIGKILL)
            settled, left = in_outbox(tmp_path), journalled(tmp_path)
            waiting = set().union(*left.values())
            assert len(settled) >= 30
            assert len(waiting - settled) >= 20
            assert len(traffic.answered & settled) >= 20
            assert len(traffic.answered & (waiting - settled)) >= 10
            proxy.workers = 1
            proxy.start()
            with proxy.client() as admin:

                def report() -> Any:
                    return admin.get("/pointsman/billing/reconcile").raise_for_status().json()["requests"]

                eventually(lambda: in_outbox(tmp_path), lambda ids: settled | waiting <= ids, within_s=150)
                eventually(lambda: journalled(tmp_path), lambda rows: not rows.keys() & left.keys(), within_s=150)
                found = eventually(report, lambda found: not found["pending"])
                assert {state: found[state] for state in STATES if found[state]} == {"billed": found["total"]}
            proxy.stop()
            assert journalled(tmp_path) == {}
        rows = lines(tmp_path / "bills.ndjson")
        assert len({row["id"] for row in rows}) == len(rows)
        events = Counter((row["request_id"], row["type"]) for row in rows)
        assert set(events.values()) == {1}
        assert {request_id for request_id, _ in events} == settled | waiting
        assert len(events) == 2 * found["total"]
        assert Decimal(found["amount_usd"]) == sum(Decimal(row["amount_usd"]) for row in by_type(rows, "attempt"))
        assert {event["id"] for event in sink.events} == {row["id"] for row in rows}
