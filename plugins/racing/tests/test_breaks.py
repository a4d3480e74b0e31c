"""Beside a plain group, a raced one: default fallbacks answer for both, and streams that break end for both in the same way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

SAVED = "Saved by the default."
ENDPOINTS = ("chat", "messages", "adapted", "responses")
#: The pieces come apart: an HTTP client may lose those that arrive together with the end of their connection.
PACE = Delay(median_ms=60)
FAULTS = {
    "break": Behaviour(fault="break", fault_after_events=8, per_token=PACE),
    "error_event": Behaviour(fault="error_event", fault_after_events=8, per_token=PACE),
}
#: Where LiteLLM alone goes on with a fallback's answer within the stream; the README says so.
CONTINUED = {("responses", "break"), ("responses", "error_event")}


def deployment(upstream: str, group: str) -> dict[str, Any]:
    anthropic = group.startswith("claude-")
    provider, base = ("anthropic", upstream) if anthropic else ("openai", f"{upstream}/v1")
    model = group.removesuffix("-raced")
    params = {"model": f"{provider}/{model}", "api_base": base, "api_key": "upstream-key"}
    return {"model_name": group, "litellm_params": params, "model_info": {"id": group}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = [f"{p}{name}" for p in ("", "claude-") for name in ("dead", "save", *FAULTS)]
    raced = [f"{name}-raced" for name in names if not name.endswith("save")]
    with UpstreamServer() as upstream:
        for prefix in ("", "claude-"):
            upstream.behave(f"{prefix}dead", Behaviour(error_ratios={500: 1.0}))
            upstream.behave(f"{prefix}save", Behaviour(text=SAVED))
            for name, fault in FAULTS.items():
                upstream.behave(f"{prefix}{name}", fault)
        config = {
            "model_list": [deployment(upstream.url, group) for group in (*names, *raced)],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "default_fallbacks": ["save"]},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [{"racing": {"groups": {group: {} for group in raced}}}],
            },
        }
        with ProxyServer(config, tmp_path_factory.mktemp("breaks")) as proxy, proxy.client(timeout=60) as http:
            yield http


def ask(client: Any, endpoint: str, name: str, *, raced: bool, stream: bool, **more: Any) -> Any:
    prefix = "claude-" if endpoint == "messages" else ""
    body: dict[str, Any] = {"model": f"{prefix}{name}{'-raced' if raced else ''}", "stream": stream, **more}
    if endpoint == "responses":
        return client.post("/v1/responses", json={**body, "input": "Hi."})
    body |= {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 64}
    return client.post("/v1/messages" if endpoint in {"messages", "adapted"} else "/v1/chat/completions", json=body)


def text(answer: Any) -> str:
    """Return the text of an answer, streamed or not."""
    if "text/event-stream" not in answer.headers["content-type"]:
        return SAVED if json.dumps(SAVED) in answer.text else answer.text
    found = ""
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data:"))
            delta = (event.get("choices") or [{}])[0].get("delta", {}) if "choices" in event else event.get("delta")
            found += (
                delta
                if isinstance(delta, str)
                else str((delta or {}).get("content") or (delta or {}).get("text") or "")
            )
    return found


def ending(answer: Any) -> tuple[int, int, list[str], str]:
    """Return how a stream has ended: status, pieces of content, kinds of the last events, and the error's message."""
    pieces, kinds, error = 0, [], ""
    for line in answer.text.splitlines():
        if not line.startswith("data:"):
            continue
        if line.removeprefix("data:").strip() == "[DONE]":
            kinds.append("[DONE]")
            continue
        event = json.loads(line.removeprefix("data:"))
        kind = str(event.get("type") or ("error" if "error" in event else event.get("object")))
        kinds.append(kind)
        pieces += kind in {"content_block_delta", "response.output_text.delta", "chat.completion.chunk"}
        found = event.get("error") or (event.get("response") or {}).get("error")
        error = str(found.get("type") or found.get("code")) if isinstance(found, dict) else error
    return answer.status_code, pieces, kinds[-2:], error


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("raced", [False, True], ids=["plain-group", "raced"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_default_fallbacks_answer_for_a_race_that_is_lost(
    client: Any, endpoint: str, raced: bool, stream: bool
) -> None:
    answer = ask(client, endpoint, "dead", raced=raced, stream=stream)
    assert answer.status_code == 200, answer.text
    assert text(answer) == SAVED


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_raced_stream_that_breaks_after_content_ends_as_a_plain_one(client: Any, endpoint: str, fault: str) -> None:
    plain, raced = (ending(ask(client, endpoint, fault, raced=raced, stream=True)) for raced in (False, True))
    assert raced[0] == 200
    assert raced[1] > 0
    if (endpoint, fault) in CONTINUED:
        assert raced[3], "the client is told that its answer is not whole"
    else:
        # How many pieces came through before the end is a matter of time.
        assert (raced[0], raced[2:]) == (plain[0], plain[2:])


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_without_fallbacks_it_ends_as_a_plain_one_too(client: Any, endpoint: str, fault: str) -> None:
    answers = [
        ask(client, endpoint, fault, raced=raced, stream=True, disable_fallbacks=True) for raced in (False, True)
    ]
    plain, raced = map(ending, answers)
    assert raced[1] > 0
    assert (raced[0], raced[2:]) == (plain[0], plain[2:])
