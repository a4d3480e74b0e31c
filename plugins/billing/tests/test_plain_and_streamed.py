"""The same answer of every kind of provider, plain and streamed through a real LiteLLM proxy, has the same bill.

The provider is a server that answers in the words of each of them, and names the model as the provider does, which is not
how the configuration calls it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

from .providers import (
    BODIES,
    BROKEN,
    CHAT,
    COUNTS,
    FAILED,
    MESSAGES,
    RESPONSES,
    TEXT,
    Answer,
    Provider,
    bedrock,
    chat,
    claude,
    gemini,
    ollama,
    responses,
)

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

#: What two requests never have in common, and what LiteLLM itself has made of them.
OF_EACH = frozenset(
    {"id", "request_id", "started_at_ms", "finished_at_ms", "timestamp", "stream"}
    | {"gateway_cost_usd", "gateway_cost_usd_micros"}
)


def openais(model: str, *, together: bool = False, **usage: Any) -> Callable[..., Answer]:
    def answer(*, stream: bool) -> Answer:
        return chat(model, {**COUNTS, **usage}, stream=stream, together=together)

    return answer


class Kind(NamedTuple):
    """A kind of provider: LiteLLM's name of the model, the end of its base URL, the API to ask, what it answers."""

    model: str
    base: str
    path: str
    answer: Callable[..., Answer]


CLAUDES = "anthropic/claude-sonnet-4-5-20250929"
KINDS: dict[str, Kind] = {
    "openai": Kind("openai/gpt-4o-mini", "/v1", CHAT, openais("gpt-4o-mini-2024-07-18")),
    "openai-messages": Kind("openai/gpt-4o-mini", "/v1", MESSAGES, responses),
    "openai-responses": Kind("openai/gpt-4o-mini", "/v1", RESPONSES, responses),
    "azure": Kind("azure/gpt-4o-mini", "", CHAT, openais("gpt-4o-mini-2024-07-18")),
    "anthropic": Kind(CLAUDES, "", MESSAGES, claude),
    "anthropic-chat": Kind(CLAUDES, "", CHAT, claude),
    "anthropic-responses": Kind(CLAUDES, "", RESPONSES, claude),
    "gemini": Kind("gemini/gemini-2.5-flash", "", CHAT, gemini),
    "bedrock": Kind("bedrock/converse/anthropic.claude-haiku-4-5-20251001-v1:0", "", CHAT, bedrock),
    "ollama": Kind("ollama_chat/llama3", "", CHAT, ollama),
    "perplexity": Kind("perplexity/sonar-pro", "", CHAT, openais("sonar-pro", together=True, num_search_queries=1)),
    "openrouter": Kind("openrouter/openai/gpt-4o-mini", "/v1", CHAT, openais("openai/gpt-4o-mini", cost=0.0123)),
    "mistral": Kind("mistral/mistral-small-latest", "/v1", CHAT, openais("mistral-small-2503", together=True)),
    "deepseek": Kind("deepseek/deepseek-chat", "/v1", CHAT, openais("deepseek-v3", prompt_cache_hit_tokens=64)),
    "xai": Kind("xai/grok-4.3", "/v1", CHAT, openais("grok-4.3-0501", cost_in_usd_ticks=37_500_000)),
    "together": Kind("together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo", "/v1", CHAT, openais("llama-3.3-70b")),
    "vllm": Kind("hosted_vllm/house-7b", "/v1", CHAT, openais("house-7b-awq")),
}


#: A deployment that does not answer, and for how long LiteLLM waits.
SILENT = "silent"
SILENT_S = 1

#: The providers that pass-throughs lead to, with their routes; the last is one of the configuration.
PASSED: dict[str, str] = {
    "openai_passthrough": "/openai_passthrough/v1/chat/completions",
    "anthropic": "/anthropic/v1/messages",
    "own": "/own",
}
#: What these providers answer next.
passed: list[Answer] = []


def deployment(name: str, url: str) -> dict[str, Any]:
    kind = KINDS[name]
    params = {"model": kind.model, "api_base": f"{url}/{name}{kind.base}", "api_key": "any"}
    if name == "azure":
        params["api_version"] = "2024-02-01"
    if name == "bedrock":
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "aws_region_name": "us-east-1"}
        params = {"model": kind.model, "aws_bedrock_runtime_endpoint": f"{url}/{name}", **keys}
    return {"model_name": name, "litellm_params": params, "model_info": {"id": name}}


def silent(url: str) -> dict[str, Any]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{url}/{SILENT}/v1", "api_key": "any", "timeout": SILENT_S}
    return {"model_name": SILENT, "litellm_params": params, "model_info": {"id": SILENT}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    answers: dict[str, Callable[..., Answer]] = {name: kind.answer for name, kind in KINDS.items()}
    with Provider({**answers, "passed": lambda **_: passed[-1]}, [SILENT]) as provider:
        base = f"{provider.url}/passed"
        env = {f"{name}_API_BASE": base for name in ("OPENAI", "ANTHROPIC")}
        env |= {f"{name}_API_KEY": "any" for name in ("OPENAI", "ANTHROPIC")}
        own = {"path": "/own", "target": f"{base}/v1/chat/completions", "auth": True, "headers": {"x": "y"}}
        config = {
            "general_settings": {"pass_through_endpoints": [own]},
            "model_list": [*(deployment(name, provider.url) for name in KINDS), silent(provider.url)],
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {}}]},
        }
        with (
            ProxyServer(config, tmp_path_factory.mktemp("kinds"), env=env) as proxy,
            proxy.client(timeout=60) as client,
        ):
            yield client


def billed(client: httpx.Client, name: str, *, stream: bool) -> list[dict[str, Any]]:
    path = KINDS[name].path
    answer = client.post(path, json={"model": name, "stream": stream, **BODIES[path]})
    assert answer.status_code == 200, answer.text
    assert TEXT in answer.text
    return events_of(client, answer)


def events_of(client: httpx.Client, answer: httpx.Response) -> list[dict[str, Any]]:
    at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
    events = eventually(lambda: client.get(at), lambda one: one.status_code == 200).json()["events"]
    for event in events:
        if raw := (event["usage"] or {}).pop("raw", None):
            # A stream may say the same in another order.
            event["usage"]["raw"] = json.loads(raw)
    return [{name: value for name, value in event.items() if name not in OF_EACH} for event in events]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_answer_has_the_same_bill_plain_and_streamed(client: httpx.Client, name: str) -> None:
    plain, streamed = (billed(client, name, stream=stream) for stream in (False, True))
    assert plain == streamed
    attempt, request = plain
    assert (attempt["type"], request["type"], attempt["metering"]) == ("attempt", "request", "exact")
    cached = 100 if "anthropic" in name else 0
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == (1000 + cached, 50)
    if name != "bedrock":
        # It names none.
        said = json.loads(KINDS[name].answer(stream=False)[1])
        assert attempt["model_served"] == said.get("model", said.get("modelVersion"))


def test_aws_event_streams_are_heard_on_a_pass_through(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": [{"text": "How is the weather in Turin?"}]}]}
    bills = []
    for operation in ("converse", "converse-stream"):
        answer = client.post(f"/bedrock/model/bedrock/{operation}", json=body)
        assert (answer.status_code, TEXT.encode() in answer.content) == (200, True)
        bills.append(events_of(client, answer))
    plain, streamed = bills
    assert (plain[0]["prompt_tokens"], plain[0]["completion_tokens"], plain[0]["metering"]) == (1000, 50, "exact")
    assert [event["amount_usd"] for event in plain] == [event["amount_usd"] for event in streamed] != [None, None]


def of_passed(name: str) -> str:
    """Return the beginning of a stream as this provider speaks, in which a text has come."""
    model = "claude-sonnet-4-5-20250929" if name == "anthropic" else "gpt-4o-mini"
    whole = claude(stream=True, model=model) if name == "anthropic" else chat(model, COUNTS, stream=True)
    pieces = whole[1].decode().split("\n\n")
    return "\n\n".join(pieces[: 3 if name == "anthropic" else 1]) + "\n\n"


def pass_through(client: httpx.Client, name: str, answer: Answer, *, stream: bool) -> dict[str, Any]:
    """Ask a provider on its own API, read what comes, and return the attempt."""
    passed.append(answer)
    model = "claude-sonnet-4-5-20250929" if name == "anthropic" else "gpt-4o-mini"
    body = {"model": model, "stream": stream, **BODIES[CHAT]}
    with client.stream("POST", PASSED[name], json=body) as given, contextlib.suppress(httpx.RemoteProtocolError):
        given.read()
    return events_of(client, given)[0]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", PASSED)
def test_an_error_of_a_pass_through_that_says_what_was_used_is_billed(
    client: httpx.Client, name: str, stream: bool
) -> None:
    counts = {"input_tokens": 100, "output_tokens": 7} if name == "anthropic" else COUNTS
    error = {"error": {"message": "It broke.", "type": "server_error"}, "usage": counts}
    attempt = pass_through(client, name, (FAILED, json.dumps(error).encode()), stream=stream)
    assert (attempt["status"], attempt["status_code"], attempt["metering"]) == ("error", 500, "exact")
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == tuple(counts.values())[:2]
    assert (attempt["amount_usd"] is None) == (name == "own")


@pytest.mark.parametrize("end", ["broken", "error", "silent"])
@pytest.mark.parametrize("name", PASSED)
def test_what_came_of_a_pass_through_is_billed_where_its_end_is_missing(
    client: httpx.Client, name: str, end: str
) -> None:
    """The provider breaks off, ends with an error, or does not count; the text that has come is then counted here."""
    said = of_passed(name)
    if end == "error":
        said += 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
    answer = (BROKEN if end == "broken" else "text/event-stream", said.encode())
    attempt = pass_through(client, name, answer, stream=True)
    assert (attempt["status"], attempt["metering"]) == ("ok" if end == "silent" else "error", "estimated")
    assert (attempt["prompt_tokens"] == 1100) == (name == "anthropic")
    assert attempt["prompt_tokens"] > 0
    assert 1 < attempt["completion_tokens"] < 9
    assert (attempt["amount_usd"] is None) == (name == "own")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", BODIES)
def test_an_answer_for_which_the_gateway_has_stopped_waiting_is_not_free(
    client: httpx.Client, path: str, stream: bool
) -> None:
    """The provider has the request and may charge it, as that of a client that has left."""
    answer = client.post(path, json={"model": SILENT, "stream": stream, **BODIES[path]})
    assert answer.is_error
    attempt = events_of(client, answer)[0]
    assert (attempt["type"], attempt["status"], attempt["metering"]) == ("attempt", "error", "estimated")
    assert attempt["prompt_tokens"] > 0
    assert attempt["completion_tokens"] == 0
    assert attempt["amount_usd"] not in {None, "0"}
