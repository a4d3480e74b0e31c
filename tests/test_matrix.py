"""Every hook x endpoint x stream x what can happen: each fires exactly as often as the contract says.

On a real proxy, in front of the bundled upstream. ``IMPOSSIBLE`` are the cells that LiteLLM does not allow, with the
reason; they are listed in the README as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from rig import Rig, counts, deployment, only

from pointsman.testing.provider import Behaviour, Delay

pytestmark = pytest.mark.proxy

ENDPOINTS = ("chat", "messages", "messages-adapted", "responses", "embeddings")
SCENARIOS = ("ok", "error", "retry", "fallback", "disconnect", "denial", "executed")
IMPOSSIBLE = {("embeddings", True): "embeddings have no streams"}
CELLS = [
    pytest.param(endpoint, stream, scenario, id=f"{endpoint}-{'stream' if stream else 'plain'}-{scenario}")
    for endpoint in ENDPOINTS
    for stream in (False, True)
    for scenario in SCENARIOS
    if (endpoint, stream) not in IMPOSSIBLE
]
#: Upstream model names that LiteLLM's cost map knows, so that every answer has a price.
MODELS = {
    "chat": ("openai", "gpt-4o-mini"),
    "messages": ("anthropic", "claude-haiku-4-5-20251001"),
    "messages-adapted": ("openai", "gpt-4.1-mini"),
    "responses": ("openai", "gpt-4o"),
    "embeddings": ("openai", "text-embedding-3-small"),
}
#: One upstream model per scenario, so that a behaviour set for one cannot reach another.
VARIANTS = {"ok": "", "error": "-error", "retry": "-retry", "down": "-down", "slow": "-slow"}


def model_list(upstream: str) -> list[dict[str, Any]]:
    entries = []
    for endpoint, (provider, model) in MODELS.items():
        for variant, suffix in VARIANTS.items():
            name = f"{endpoint}-{variant}"
            entry = deployment(upstream, name, f"{model}{suffix}", id_=f"{name}-1", provider=provider)
            entry["model_info"]["base_model"] = model
            entries.append(entry)
    return entries


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "litellm_settings": {"fallbacks": [{f"{endpoint}-down": [f"{endpoint}-ok"]} for endpoint in ENDPOINTS]},
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "model_group_retry_policy": {
                f"{endpoint}-retry": {"InternalServerErrorRetries": 1} for endpoint in ENDPOINTS
            },
        },
    }
    with Rig(tmp_path_factory.mktemp("matrix"), model_list, plugins=["denier"], config=config) as running:
        for provider_model in {model for _, model in MODELS.values()}:
            running.upstream.behave(f"{provider_model}-error", Behaviour(error_ratios={500: 1.0}))
            running.upstream.behave(f"{provider_model}-down", Behaviour(error_ratios={500: 1.0}))
        yield running


def payload(endpoint: str, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": model}
    if stream:
        body["stream"] = True
    match endpoint:
        case "chat":
            return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "Say something."}]}
        case "messages" | "messages-adapted":
            messages = [{"role": "user", "content": "Say something."}]
            return "/v1/messages", {**body, "max_tokens": 64, "messages": messages}
        case "responses":
            return "/v1/responses", {**body, "input": "Say something."}
    return "/v1/embeddings", {**body, "input": "Say something."}


@dataclass(frozen=True)
class Expected:
    """How often the hooks of one cell fire, and what the settlement records."""

    attempts: int
    ok: int
    errors: int
    status: int
    outcome: str
    select: int | None = None


EXPECTED = {
    "ok": Expected(attempts=1, ok=1, errors=0, status=200, outcome="ok"),
    "error": Expected(attempts=1, ok=0, errors=1, status=500, outcome="error"),
    "retry": Expected(attempts=2, ok=1, errors=1, status=200, outcome="ok"),
    "fallback": Expected(attempts=2, ok=1, errors=1, status=200, outcome="ok"),
    "denial": Expected(attempts=0, ok=0, errors=0, status=429, outcome="denied"),
    "executed": Expected(attempts=1, ok=1, errors=0, status=200, outcome="ok"),
}


@pytest.mark.parametrize(("endpoint", "stream", "scenario"), CELLS)
def test_every_hook_fires_as_often_as_the_contract_says(rig: Rig, endpoint: str, stream: bool, scenario: str) -> None:
    """One cell of the matrix."""
    case = f"{endpoint}-{stream}-{scenario}"
    variant = {"fallback": "down", "disconnect": "slow", "denial": "ok", "executed": "ok"}.get(scenario, scenario)
    path, body = payload(endpoint, f"{endpoint}-{variant}", stream=stream)
    headers = {"authorization": "Bearer tenant-a", "x-test-case": case, "x-test-publish": "1"}
    if scenario == "retry":
        rig.upstream.behave(f"{MODELS[endpoint][1]}-retry", Behaviour(fail_first=1, fail_with=500))
    if scenario == "denial":
        headers["x-test-deny"] = "429"
    if scenario == "executed":
        headers["x-test-executor"] = "recorder"
    if scenario == "disconnect":
        _check_disconnect(rig, case, path, body, headers, stream=stream)
        return

    before = len([row for row in rig.rows() if row["hook"] == "authenticate"])
    answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30)
    expected = EXPECTED[scenario]
    assert answer.status_code == expected.status, answer.text
    rows = rig.of_case(case)
    fired = counts(rows)
    assert fired["pre_route"] == 1
    assert fired["select"] == expected.attempts
    assert fired["before_attempt"] == expected.attempts
    assert fired["post_response"] == expected.ok
    assert fired["on_error"] == expected.errors
    assert fired["settle"] == 1
    assert fired["execute"] == (scenario == "executed")
    after = rig.rows()
    assert len([row for row in after if row["hook"] == "authenticate"]) == before + 1
    assert len([row for row in after if row["hook"] == "on_event" and row["case"] == case]) == 1

    settlement = only(rows, "settle")["settlement"]
    assert settlement["outcome"] == expected.outcome
    assert settlement["status_code"] == expected.status
    assert settlement["stream"] is stream
    assert settlement["identity"]["tenant"] == "a"
    assert answer.headers["x-pointsman-request-id"] == settlement["request_id"]
    assert [r["plugin"] for r in settlement["route"]["reservations"]] == ["recorder"]
    if expected.attempts:
        assert answer.headers["x-pointsman-attempts"] == str(expected.attempts)
    if expected.ok:
        _check_answer(rows, endpoint, stream=stream)
    if scenario == "denial":
        assert answer.headers["retry-after"] == "3"
        error = answer.json()["error"]
        assert error["message"] == "The test denies this."
        if not endpoint.startswith("messages"):
            # Anthropic's errors have a type and a message only.
            assert error == {**error, "type": "rate_limit_error", "param": "model", "code": "told_to_deny"}
        assert settlement["denial"]["plugin"] == "denier"
    if scenario in {"retry", "fallback"}:
        kinds = [row["kind"] for row in rows if row["hook"] == "before_attempt"]
        assert kinds == ["primary", scenario]


def _check_answer(rows: list[dict[str, Any]], endpoint: str, *, stream: bool) -> None:
    """Usage, price, headers and first token of the answer are there and exact."""
    answer = only(rows, "post_response")
    assert answer["usage"]["prompt"] > 0
    assert (answer["usage"]["completion"] > 0) == (endpoint != "embeddings")
    assert answer["usage"]["estimated"] is False
    assert answer["cost"] is not None
    assert (answer["first_token_ms"] is not None) == stream
    limits = [name for name in answer["headers"] if "ratelimit" in name]
    assert limits, answer["headers"]
    settlement = only(rows, "settle")["settlement"]
    assert settlement["usage"]["prompt_tokens"] == answer["usage"]["prompt"]


def _check_disconnect(
    rig: Rig, case: str, path: str, body: dict[str, Any], headers: dict[str, str], *, stream: bool
) -> None:
    """A client that goes away: the attempt is closed once, the request is settled once, as disconnected."""
    # The whole plain answer is waited for although the client has gone; of a stream, much must be left.
    pace = Behaviour(
        latency=Delay(median_ms=700), per_token=Delay(median_ms=100 if stream else 60), tokens=400 if stream else 40
    )
    rig.upstream.behave(f"{MODELS[body['model'].removesuffix('-slow')][1]}-slow", pace)
    if stream:
        with httpx.stream("POST", f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30) as answer:
            assert answer.status_code == 200
            events = (line for line in answer.iter_lines() if line.startswith("data:"))
            # The first ones announce the content.
            for _ in range(8):
                next(events)
    else:
        rig.leave(f"{rig.proxy.url}{path}", json=body, headers=headers)
    rows = rig.of_case(case, timeout_s=40)
    fired = counts(rows)
    assert fired["pre_route"] == fired["select"] == fired["before_attempt"] == fired["settle"] == 1
    assert fired["post_response"] + fired["on_error"] == 1
    assert only(rows, "settle")["settlement"]["outcome"] == "disconnected"
    if stream:
        attempt = only(rows, "on_error")
        assert attempt["outcome"] == "disconnected"
        assert attempt["usage"]["estimated"] is True
        assert attempt["usage"]["completion"] > 0
    else:
        # LiteLLM finishes a plain call for a client that has gone, and the provider bills it.
        assert only(rows, "post_response")["usage"]["completion"] > 0 or "embeddings" in path
