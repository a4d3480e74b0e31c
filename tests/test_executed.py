"""Routes that a plugin executes, and calls of our own: what clients, plugins, providers and LiteLLM see of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rig import SUPPORT, Rig, counts, deployment, only, recorder_library

from pointsman.testing.provider import Behaviour, Delay

pytestmark = pytest.mark.proxy
ASK = [{"role": "user", "content": "Say something."}]
ENDPOINTS = ("chat", "messages", "messages-adapted", "responses")


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-1"),
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-2"),
        deployment(upstream, "unhurried", "gpt-4.1", id_="unhurried-1"),
        deployment(upstream, "slow", "gpt-slow", id_="slow-1"),
        deployment(upstream, "hanging", "gpt-hanging", id_="hanging-1"),
        deployment(upstream, "broken", "gpt-broken", id_="broken-1"),
        deployment(upstream, "limited", "gpt-limited", id_="limited-1"),
        deployment(upstream, "limited", "gpt-4o-mini", id_="limited-2"),
        deployment(upstream, "claude", "claude-haiku-4-5-20251001", id_="claude-1", provider="anthropic"),
        deployment(upstream, "mocked", "gpt-4o-mini", id_="mocked-1", mock_response="mocked words"),
    ]


@pytest.fixture(scope="module")
def tally_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tally") / "tally.jsonl"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, tally_file: Path) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("executed")
    library = recorder_library(directory / "lib")
    (library / "tally.py").write_text((SUPPORT / "tally.py").read_text(encoding="utf-8"), encoding="utf-8")
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler", "tally.tally"]},
        "router_settings": {"num_retries": 2, "retry_after": 0},
    }
    env = {"TALLY_FILE": str(tally_file)}
    with Rig(directory, model_list, config=config, recorder={"lists": "swift"}, env=env) as running:
        up = running.upstream
        up.behave("gpt-4.1", Behaviour(latency=Delay(median_ms=400)))
        up.behave("gpt-slow", Behaviour(per_token=Delay(median_ms=300), tokens=40))
        up.behave("gpt-hanging", Behaviour(fault="hang"))
        up.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        up.behave("gpt-limited", Behaviour(error_ratios={429: 1.0}, retry_after_s=7))
        yield running


def payload(endpoint: str, model: str | None = None, *, stream: bool) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"model": model or ("claude" if endpoint == "messages" else "pair"), "stream": stream}
    match endpoint:
        case "chat":
            return "/v1/chat/completions", {**body, "messages": ASK}
        case "responses":
            return "/v1/responses", {**body, "input": "Say something."}
    return "/v1/messages", {**body, "max_tokens": 64, "messages": ASK}


def ask(rig: Rig, case: str, endpoint: str = "chat", model: str | None = None, **say: Any) -> httpx.Response:
    path, body = payload(endpoint, model, stream=say.pop("stream", False))
    headers = {"authorization": "Bearer tenant-a", "x-test-case": case}
    headers.update({f"x-test-{name}": value for name, value in say.items()})
    return httpx.post(f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30)


def shape(answer: httpx.Response) -> Any:
    """Return an answer with its own words and ids left out: which fields and which events it has."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(inner) for name, inner in value.items()}
        return [of(inner) for inner in value] if isinstance(value, list) else type(value).__name__

    if "event-stream" not in answer.headers["content-type"]:
        return of(answer.json())
    kinds: list[Any] = []
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            kind = of(json.loads(line[6:]))
            if kind not in kinds:
                kinds.append(kind)
    return sorted(map(json.dumps, kinds))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_client_sees_what_a_plain_request_would_have_shown(rig: Rig, endpoint: str, stream: bool) -> None:
    """The same fields, events and headers, in the endpoint's own format."""
    plain = ask(rig, f"plain-{endpoint}-{stream}", endpoint, stream=stream)
    executed = ask(rig, f"executed-{endpoint}-{stream}", endpoint, stream=stream, executor="recorder")
    assert plain.status_code == executed.status_code == 200, executed.text
    assert shape(executed) == shape(plain)
    assert executed.headers["x-pointsman-raced"] == "1"
    missing = set(plain.headers) - set(executed.headers) - {"x-litellm-attempted-retries", "x-litellm-timeout"}
    assert not {name for name in missing if not name.startswith("x-litellm-attempted")}
    assert executed.headers["x-litellm-model-id"] in {"pair-1", "pair-2", "claude-1"}


@pytest.mark.parametrize("endpoint", ["chat", "messages"])
def test_a_stream_that_litellm_answers_as_a_whole_is_answered_so(rig: Rig, endpoint: str) -> None:
    """As that of a messages request to a deployment with a ``mock_response``."""
    plain = ask(rig, f"plain-whole-{endpoint}", endpoint, "mocked", stream=True)
    executed = ask(rig, f"whole-{endpoint}", endpoint, "mocked", stream=True, executor="recorder")
    assert plain.status_code == executed.status_code == 200, executed.text
    assert shape(executed) == shape(plain)
    (attempt,) = only(rig.of_case(f"whole-{endpoint}"), "settle")["settlement"]["attempts"]
    assert attempt["outcome"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_litellm_itself_accounts_for_an_executed_request_once(
    rig: Rig, tally_file: Path, endpoint: str, stream: bool
) -> None:
    """With the deployment that answered, its tokens and its price; the loser is cancelled before it costs."""
    before = len(tally_file.read_text().splitlines()) if tally_file.exists() else 0
    answer = ask(rig, f"tally-{endpoint}-{stream}", endpoint, stream=stream, executor="recorder", loser="hanging")
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 10
    rows: list[dict[str, Any]] = []
    while time.monotonic() < deadline and not rows:
        time.sleep(0.3)
        rows = [json.loads(row) for row in tally_file.read_text().splitlines()[before:]] if tally_file.exists() else []
    time.sleep(1)
    rows = [json.loads(row) for row in tally_file.read_text().splitlines()[before:]]
    (row,) = [row for row in rows if row["deployment"] != "hanging-1"]
    assert row["deployment"] in {"pair-1", "pair-2", "claude-1"}
    assert row["tokens"] > 0
    assert row["cost"] > 0
    assert [other["cost"] or 0 for other in rows if other["deployment"] == "hanging-1"] in ([], [0])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages-adapted", "responses"])
def test_the_loser_is_cancelled_with_an_estimate_and_its_connection_closed(
    rig: Rig, endpoint: str, stream: bool
) -> None:
    case = f"loser-{endpoint}-{stream}"
    closed = len([r for r in rig.upstream.requests if r.model == "gpt-hanging" and r.closed_early])
    answer = ask(rig, case, endpoint, "unhurried", stream=stream, executor="recorder", loser="hanging")
    assert answer.status_code == 200, answer.text
    rows = rig.of_case(case)
    lost = only(rows, "on_error")
    assert (lost["outcome"], lost["kind"]) == ("cancelled", "hedge")
    assert lost["usage"]["estimated"] is True
    assert lost["usage"]["prompt"] > 0
    settlement = only(rows, "settle")["settlement"]
    assert [a["outcome"] for a in settlement["attempts"]] == ["ok", "cancelled"]
    assert [a["labels"]["leg"] for a in settlement["attempts"]] == ["1", "2"]
    assert settlement["usage"]["estimated"] is False
    rig.upstream.wait_for(
        lambda seen: len([r for r in seen if r.model == "gpt-hanging" and r.closed_early]) > closed, timeout_s=10
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_an_executor_that_waits_for_nothing_is_ended_by_the_requests_timeout(
    rig: Rig, endpoint: str, stream: bool
) -> None:
    """The attempt has failed, and the client gets a timeout, or what its fallback answers."""
    path, body = payload(endpoint, stream=stream)
    headers = {"authorization": "Bearer tenant-a", "x-test-executor": "recorder", "x-test-execute": "wait"}
    body |= {"timeout": 0.5, "num_retries": 0}
    answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30)
    assert (answer.status_code, "without a running attempt" in answer.text) == (408, True), answer.text
    if endpoint == "chat":
        saved = httpx.post(
            f"{rig.proxy.url}{path}", json=body | {"fallbacks": ["unhurried"]}, headers=headers, timeout=30
        )
        assert (saved.status_code, saved.headers["x-litellm-model-group"]) == (200, "unhurried"), saved.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_executed_request_that_fails_shows_the_providers_error(rig: Rig, stream: bool) -> None:
    """Status and body of a plain request, also for a stream; LiteLLM retries it as it retries a plain one."""
    answer = ask(rig, f"failed-{stream}", model="broken", stream=stream, executor="recorder")
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"]["message"]
    rows = rig.of_case(f"failed-{stream}")
    assert counts(rows)["execute"] == 3
    assert [row["kind"] for row in rows if row["hook"] == "before_attempt"] == ["primary", "retry", "retry"]
    assert only(rows, "settle")["settlement"]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages-adapted", "responses"])
@pytest.mark.parametrize("fallback", ["the-routes", "the-clients"])
def test_the_gateway_falls_back_from_an_executed_request(rig: Rig, endpoint: str, stream: bool, fallback: str) -> None:
    """The plugin executes the route's own group; the gateway itself makes the attempt in the other one."""
    case = f"falls-back-{endpoint}-{stream}-{fallback}"
    path, body = payload(endpoint, "broken", stream=stream)
    headers = {"authorization": "Bearer tenant-a", "x-test-case": case, "x-test-executor": "recorder"}
    if fallback == "the-routes":
        headers["x-test-fallback"] = "pair"
    else:
        body["fallbacks"] = ["pair"]
    answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert "x-pointsman-raced" not in answer.headers
    rows = rig.of_case(case)
    assert [row["target"] for row in rows if row["hook"] == "execute"] == ["broken"] * 3
    attempts = only(rows, "settle")["settlement"]["attempts"]
    assert [a["kind"] for a in attempts] == ["primary", "retry", "retry", "fallback"]
    assert [a["outcome"] for a in attempts] == ["error", "error", "error", "ok"]
    assert [a["fallback"] for a in attempts] == [False, False, False, True]
    assert attempts[-1]["usage"]["completion_tokens"] > 0


def test_a_plugin_may_execute_fallbacks_too(rig: Rig) -> None:
    answer = ask(rig, "executes-fallbacks", model="broken", executor="recorder", fallback="pair", everywhere="yes")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-pointsman-raced"] == "1"
    rows = rig.of_case("executes-fallbacks")
    assert [row["target"] for row in rows if row["hook"] == "execute"] == ["broken", "broken", "broken", "pair"]
    attempts = only(rows, "settle")["settlement"]["attempts"]
    assert attempts[-1]["kind"] == "fallback"
    assert [a["fallback"] for a in attempts] == [False, False, False, True]


def test_the_providers_retry_after_reaches_the_client_of_an_executed_request(rig: Rig) -> None:
    answer = ask(rig, "pushed-back", model="limited", executor="recorder", target="limited-1")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("stream", [False, True])
def test_an_attempt_that_takes_longer_than_allowed_is_a_timeout(rig: Rig, stream: bool) -> None:
    answer = ask(rig, f"late-{stream}", model="hanging", stream=stream, executor="recorder", timeout="0.4")
    assert answer.status_code == 408, answer.text
    errors = [row for row in rig.of_case(f"late-{stream}") if row["hook"] == "on_error"]
    assert [(row["kind"], row["outcome"], row["error"]["kind"]) for row in errors] == [
        (kind, "error", "timeout") for kind in ("primary", "retry", "retry")
    ]


def test_a_stream_is_not_cut_by_the_time_allowed_for_its_first_token(rig: Rig) -> None:
    answer = ask(rig, "long", model="slow", stream=True, executor="recorder", timeout="3")
    assert answer.text.rstrip().endswith("data: [DONE]")
    assert only(rig.of_case("long"), "post_response")["duration_ms"] > 3000


def test_a_client_that_leaves_an_executed_stream_ends_its_attempts(rig: Rig) -> None:
    path, body = payload("chat", "slow", stream=True)
    headers = {"authorization": "Bearer tenant-a", "x-test-case": "left", "x-test-executor": "recorder"}
    headers["x-test-loser"] = "hanging"
    with httpx.stream("POST", f"{rig.proxy.url}{path}", json=body, headers=headers, timeout=30) as answer:
        next(answer.iter_raw())
        time.sleep(0.7)
    rows = rig.of_case("left", timeout_s=40)
    settlement = only(rows, "settle")["settlement"]
    assert settlement["outcome"] == "disconnected"
    assert [a["outcome"] for a in settlement["attempts"]] == ["disconnected", "disconnected"]
    assert all(a["usage"]["estimated"] for a in settlement["attempts"])
    assert settlement["attempts"][0]["usage"]["completion_tokens"] > 0
    rig.upstream.wait_for(lambda seen: any(r.model == "gpt-slow" and r.closed_early for r in seen), timeout_s=10)


def test_a_listed_name_says_what_its_plugin_says_of_it(rig: Rig) -> None:
    listed = httpx.get(f"{rig.proxy.url}/v1/models", headers=rig.proxy.headers, timeout=30).json()["data"]
    (entry,) = [model for model in listed if model["id"] == "swift"]
    assert entry["capabilities"] == ["streaming"]


def test_a_mirror_that_fails_takes_no_deployment_from_clients(rig: Rig) -> None:
    """One 429 puts a deployment into LiteLLM's cooldown; a mirror's does not."""
    answer = ask(rig, "mirrored", mirror="limited-1")
    assert answer.status_code == 200
    assert only(rig.of_case("mirrored"), "mirror")["status"] == 429
    ask(rig, "after-mirror", model="limited", target="limited-1")
    candidates = [row["candidates"] for row in rig.of_case("after-mirror") if row["hook"] == "select"]
    assert "limited-1" in candidates[0]


def test_a_mirror_tells_what_was_answered_and_is_no_part_of_the_request(rig: Rig) -> None:
    answer = ask(rig, "told", mirror="pair")
    rows = rig.of_case("told")
    assert only(rows, "mirror")["text"]
    assert len(only(rows, "settle")["settlement"]["attempts"]) == 1
    assert answer.headers["x-pointsman-attempts"] == "1"
