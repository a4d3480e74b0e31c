"""Recorded provider traffic through a real LiteLLM proxy: what is billed is what the provider counted, streams included.

The recordings are looked for in ``../shared/recordings`` beside the repository, or where POINTSMAN_RECORDINGS says.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.testing.provider import PICK_HEADER, RecordedExchange, ReplayIndex, UpstreamServer
from pointsman.testing.proxy import ProxyServer

from .kit import lines

FOLDER = Path(os.environ.get("POINTSMAN_RECORDINGS") or Path(__file__).resolve().parents[4] / "shared" / "recordings")
RECORDINGS = FOLDER / "exchanges.jsonl"

pytestmark = [
    pytest.mark.proxy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not RECORDINGS.exists(), reason=f"no recordings at {RECORDINGS}"),
]

#: Recorded host: LiteLLM's model and the base URL's path.
HOSTS = {
    "api.openai.com": ("openai/{model}", "/v1"),
    "traceloop-stg.openai.azure.com": ("azure/{model}", ""),
    "api.anthropic.com": ("anthropic/{model}", ""),
    # LiteLLM's own groq handler fails on answers without service_tier, as recorded; the protocol is OpenAI's.
    "api.groq.com": ("openai/{model}", "/openai/v1"),
    "api.mistral.ai": ("mistral/{model}", "/v1"),
    "api.together.xyz": ("together_ai/{model}", "/v1"),
    "localhost:8000": ("hosted_vllm/{model}", "/v1"),
    "127.0.0.1:11434": ("ollama_chat/{model}", ""),
    "api.cohere.com": ("cohere_chat/{version}{model}", "{path}"),
}
#: Recorded answers that LiteLLM itself cannot read: an Azure answer without a message, Cohere's v2 streams.
UNREADABLE = {"traceloop-stg.openai.azure.com": 1, "api.cohere.com": 9}

#: By how much LiteLLM's price of the tokens of Cohere's second API exceeds that of the units that Cohere charges, at most.
COHERE_USD_MICROS = 200


def group_of(exchange: RecordedExchange) -> str:
    path = exchange.path.partition("?")[0] if exchange.host == "api.cohere.com" else ""
    return f"{exchange.host}{path}/{exchange.request['model']}"


def models(exchanges: list[RecordedExchange], upstream: str) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for exchange in exchanges:
        model, base = HOSTS[exchange.host]
        path = exchange.path.partition("?")[0]
        params = {
            "model": model.format(model=exchange.request["model"], version="v1/" if path.startswith("/v1") else ""),
            "api_base": upstream + base.format(path=path),
            "api_key": "upstream-key",
        }
        if model.startswith("azure/"):
            params["api_version"] = "2024-02-01"
        name = group_of(exchange)
        entries[name] = {"model_name": name, "litellm_params": params, "model_info": {"id": name}}
    return list(entries.values())


def request_of(exchange: RecordedExchange) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {**exchange.request, "model": group_of(exchange)}
    path = exchange.path.partition("?")[0]
    for ending in ("messages", "responses", "embeddings"):
        if path.endswith(f"/{ending}"):
            return f"/v1/{ending}", body
    if exchange.host in {"127.0.0.1:11434", "api.cohere.com"}:
        messages = body.get("messages") or [{"role": "user", "content": body.get("message", "hi")}]
        texts = [{"role": m["role"], "content": m.get("content") or "hi"} for m in messages if m["role"] != "tool"]
        body = {"model": body["model"], "messages": texts, "stream": bool(body.get("stream"))}
    return "/v1/chat/completions", body


def documents(exchange: RecordedExchange) -> Iterator[dict[str, Any]]:
    if not exchange.stream:
        yield json.loads(exchange.body)
        return
    for line in exchange.body.splitlines():
        text = line.removeprefix("data:").strip()
        if text.startswith("{"):
            yield json.loads(text)


def counted(exchange: RecordedExchange) -> dict[str, int] | None:
    """Return the provider's own counts, read apart from the code under test; None where it sent none."""
    usage: dict[str, Any] = {}
    for document in documents(exchange):
        nested = [document.get(name) for name in ("response", "message", "delta", "meta")]
        for place in (document, *(found for found in nested if isinstance(found, dict))):
            found = place.get("usage") or (place if {"tokens", "billed_units"} & set(place) else None)
            usage.update({k: v for k, v in (found or {}).items() if v is not None})
        if {"eval_count", "prompt_eval_count"} <= set(document):
            return {"prompt_tokens": document["prompt_eval_count"], "completion_tokens": document["eval_count"]}
    if "prompt_tokens" in usage:
        # OpenAI's dialect: parts are within the whole.
        prompt, completion = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
        return {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage.get("completion_tokens") or 0,
            "cached_tokens": prompt.get("cached_tokens") or 0,
            "reasoning_tokens": completion.get("reasoning_tokens") or 0,
        }
    if exchange.host == "api.anthropic.com" and "input_tokens" in usage:
        # Anthropic's: what is read from the cache and written to it stands beside the rest.
        read, written = (usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
        return {
            "prompt_tokens": usage["input_tokens"] + read + written,
            "completion_tokens": usage["output_tokens"],
            "cached_tokens": read,
            "cache_write_tokens": written,
        }
    if "input_tokens" in usage:
        inner, outer = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
        return {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "cached_tokens": inner.get("cached_tokens") or 0,
            "reasoning_tokens": outer.get("reasoning_tokens") or 0,
        }
    if "billed_units" in usage or "tokens" in usage:
        # Cohere counts twice: what it charges, and what the model has read and written.
        units = usage.get("billed_units") or usage["tokens"]
        return {"prompt_tokens": int(units["input_tokens"]), "completion_tokens": int(units["output_tokens"])}
    return None


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    directory = tmp_path_factory.mktemp("recordings")
    exchanges = list(ReplayIndex.load(RECORDINGS))
    with UpstreamServer(replay=ReplayIndex.load(RECORDINGS)) as upstream:
        config = {
            "model_list": models(exchanges, upstream.url),
            "general_settings": {"forward_client_headers_to_llm_api": True},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0, "drop_params": True},
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [{"billing": {"sinks": [{"ndjson": {"path": "bills.ndjson"}}]}}],
            },
        }
        with ProxyServer(config, directory) as proxy, proxy.client(timeout=60) as client:
            yield client, directory


def billed(client: httpx.Client, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (answer := client.get(f"/pointsman/billing/requests/{request_id}")).status_code == 404:
        assert time.monotonic() < deadline, f"request {request_id} was not billed"
        time.sleep(0.02)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def compared(exchange: RecordedExchange, event: Mapping[str, Any], usage: Mapping[str, int]) -> list[str]:
    """Return what differs from the provider's counts and from LiteLLM's own cost."""
    wrong = [f"{name}: {event[name]} billed, {value} counted" for name, value in usage.items() if event[name] != value]
    if event["metering"] != "exact":
        wrong.append(f"metering {event['metering']}")
    ours, theirs = event["cost_usd_micros"], event["gateway_cost_usd_micros"]
    # Cohere charges billed units; LiteLLM prices the tokens of its second API.
    comparable = exchange.host != "api.cohere.com" or exchange.path.startswith("/v1")
    if comparable and ((ours is None) != (theirs is None) or abs((ours or 0) - (theirs or 0)) > 1):
        wrong.append(f"cost {ours}, LiteLLM's {theirs}, basis {event['cost_basis']}, {event['prices']}")
    return [f"{exchange.id} {exchange.request['model']} stream={exchange.stream}: {one}" for one in wrong]


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_billed_is_what_the_provider_counted(gateway: tuple[httpx.Client, Path], host: str) -> None:
    """Tokens, cached and reasoning tokens, and LiteLLM's own cost to the micro-dollar; errors of the provider are free."""
    client, _ = gateway
    checked: Counter[str] = Counter()
    wrong: list[str] = []
    unreadable = 0
    for exchange in (found for found in ReplayIndex.load(RECORDINGS) if found.host == host):
        path, body = request_of(exchange)
        answer = client.post(path, json=body, headers={PICK_HEADER: exchange.id})
        found = billed(client, answer.headers["x-pointsman-request-id"])
        if answer.status_code >= 400:
            unreadable += exchange.status < 400
            usage = counted(exchange) if exchange.status < 400 else None
            if found["events"] and exchange.status < 400:
                # The provider has answered, which LiteLLM could not read. It may also have refused to ask it.
                attempt = found["events"][0]
                if attempt["metering"] == "exact":
                    counts = usage or {"": 0}
                    wrong += [f"{exchange.id}: {name}" for name, value in counts.items() if attempt.get(name) != value]
            elif found["events"]:
                wrong.append(f"{exchange.id}: an error was billed: {found['events'][0]}")
            checked["errors"] += 1
            continue
        usage = counted(exchange)
        attempt, request = found["events"]
        assert (attempt["type"], request["type"]) == ("attempt", "request")
        if usage is None:
            checked[f"no usage ({attempt['metering']})"] += 1
            continue
        checked["streams" if exchange.stream else "plain"] += 1
        checked["priced"] += attempt["cost_usd_micros"] is not None
        checked["cached"] += attempt["cached_tokens"] > 0
        checked["reasoning"] += attempt["reasoning_tokens"] > 0
        wrong += compared(exchange, attempt, usage)
        if any(request[name] != attempt[name] for name in ("prompt_tokens", "completion_tokens", "amount_usd_micros")):
            wrong.append(f"{exchange.id}: the request's event differs from its attempt's")
    print(host, dict(checked))  # noqa: T201  # shown with -s
    assert not wrong, "\n".join(wrong)
    assert checked["plain"] + checked["streams"] > 0
    assert unreadable <= UNREADABLE.get(host, 0)


def test_nothing_is_missing_in_the_file_and_the_books_agree(gateway: tuple[httpx.Client, Path]) -> None:
    """After all of it: each request in one state, the sum is LiteLLM's, and every line of the file can be replayed."""
    from click.testing import CliRunner  # noqa: PLC0415

    from pointsman_billing.commands import group  # noqa: PLC0415

    client, directory = gateway
    deadline = time.monotonic() + 20
    while (report := client.get("/pointsman/billing/reconcile").json())["requests"]["pending"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    counts = report["requests"]
    assert counts["dead"] == 0
    assert counts["total"] == sum(counts[state] for state in ("billed", "unpriced", "free"))
    differing = {row["provider"] for row in report["models_to_look_at"] if row["finding"] == "different"}
    assert differing <= {"cohere_chat"}, "Cohere charges billed units where LiteLLM prices tokens"
    assert abs(counts["difference_usd_micros"]) <= counts["total"] + COHERE_USD_MICROS
    rows = lines(directory / "bills.ndjson")
    attempts = [row for row in rows if row["type"] == "attempt"]
    assert sum(Decimal(row["amount_usd"] or 0) for row in attempts) == Decimal(counts["amount_usd"])
    result = CliRunner().invoke(group, ["verify", str(directory / "bills.ndjson")])
    assert result.exit_code == 0, result.output
    print(counts, result.output)  # noqa: T201  # as above
