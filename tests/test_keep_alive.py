"""Streams that LiteLLM keeps alive with comments before there is an answer: changed, denied and replied to as all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from changer_rig import TEXT, headers, start
from rig import Rig, only

pytestmark = pytest.mark.proxy

#: The wait is longer than the interval however slow the machine is: both are timers of one process.
INTERVAL_S, WAIT_S = 0.2, "1.5"
MODELS = {"chat": "gpt", "messages": "claude", "responses": "gpt"}
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
ASK: list[Any] = [{"role": "user", "content": "I am Ada"}]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    settings = {"litellm_settings": {"sse_keepalive_ping_interval_seconds": INTERVAL_S}}
    policy = {"policy": {"deadline_ms": 60_000}}
    with start(tmp_path_factory.mktemp("alive"), policy, "changer", config=settings) as running:
        yield running


@pytest.fixture(params=list(PATHS))
def endpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text(rig: Rig, endpoint: str, case: str, model: str = "", **more: str) -> str:
    """Return a stream's text as the provider's own client reads it."""
    model, sent = model or MODELS[endpoint], headers(rig, case, **{"wait": WAIT_S, **more})
    if endpoint == "messages":
        with (
            anthropic.Anthropic(base_url=rig.proxy.url, api_key=rig.proxy.master_key, max_retries=0) as claude,
            claude.messages.stream(model=model, max_tokens=50, messages=ASK, extra_headers=sent) as message,
        ):
            return message.get_final_text()
    with openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key=rig.proxy.master_key, max_retries=0) as client:
        if endpoint == "responses":
            with client.responses.create(model=model, input="I am Ada", stream=True, extra_headers=sent) as events:
                return "".join(event.delta for event in events if event.type == "response.output_text.delta")
        with client.chat.completions.create(model=model, messages=ASK, stream=True, extra_headers=sent) as chunks:
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def raw(rig: Rig, endpoint: str, case: str, model: str = "", **more: str) -> httpx.Response:
    """Return the whole answer to a request for a stream."""
    body = {"input": "I am Ada"} if endpoint == "responses" else {"messages": ASK, "max_tokens": 50}
    return httpx.post(
        rig.proxy.url + PATHS[endpoint],
        json={"model": model or MODELS[endpoint], "stream": True, **body},
        headers=headers(rig, case, **{"wait": WAIT_S, **more}),
        timeout=60,
        trust_env=False,
    )


def test_comments_come_while_plugins_wait_and_then_the_answer_as_plugins_change_it(rig: Rig, endpoint: str) -> None:
    answer = raw(rig, endpoint, f"alive-{endpoint}")
    comments, _, _ = answer.text.partition("data:")
    assert answer.status_code == 200
    assert answer.text.startswith(": ping\n\n: ping\n\n")
    assert answer.headers["x-pointsman-request-id"]
    # Of the answer too, what the provider said is nowhere to be read.
    assert "the answer" not in answer.text.removeprefix(comments)
    assert text(rig, endpoint, f"read-{endpoint}") == TEXT.upper()
    settlement = only(rig.of_case(f"read-{endpoint}"), "settle")["settlement"]
    assert (settlement["outcome"], settlement["status_code"]) == ("ok", 200)


def test_a_denial_after_comments_is_an_error_in_the_words_of_the_api(rig: Rig, endpoint: str) -> None:
    """The providers' clients raise it, with its reason; it is settled as if it had been in time."""
    with pytest.raises((openai.APIError, anthropic.APIError), match=r"No\."):
        text(rig, endpoint, f"denied-{endpoint}", deny="1")
    settlement = only(rig.of_case(f"denied-{endpoint}"), "settle")["settlement"]
    assert (settlement["outcome"], settlement["status_code"]) == ("denied", 403)
    answer = raw(rig, endpoint, f"denied-raw-{endpoint}", deny="1")
    assert answer.text.startswith(": ping\n\n")
    assert json.loads(answer.text.rpartition("data: ")[2])["error"]["code"] == "denied"


def test_a_refusal_after_comments_says_why(rig: Rig, endpoint: str) -> None:
    refusal = json.dumps({"reason": "closed at night", "status": 503, "code": "night"})
    with pytest.raises((openai.APIError, anthropic.APIError), match="closed at night"):
        text(rig, endpoint, f"refused-{endpoint}", refusal=refusal)
    settlement = only(rig.of_case(f"refused-{endpoint}"), "settle")["settlement"]
    assert (settlement["outcome"], settlement["status_code"]) == ("error", 503)


def test_an_error_of_the_provider_after_comments_is_raised_by_the_providers_client(rig: Rig, endpoint: str) -> None:
    with pytest.raises((openai.APIError, anthropic.APIError)):
        text(rig, endpoint, f"failing-{endpoint}", model="failing")
    settlement = only(rig.of_case(f"failing-{endpoint}"), "settle")["settlement"]
    assert settlement["outcome"] == "error"
    assert settlement["status_code"] >= 500


def test_a_plugins_own_answer_comes_after_comments_too(rig: Rig) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": "mine"}, "finish_reason": None}]}
    assert text(rig, "chat", "replied", reply=json.dumps([piece])) == "mine"
    settlement = only(rig.of_case("replied"), "settle")["settlement"]
    assert (settlement["outcome"], settlement["replied_by"]) == ("ok", "policy")


def test_a_client_that_leaves_among_comments_leaves_nothing_behind(rig: Rig, endpoint: str) -> None:
    body = {"input": "I am Ada"} if endpoint == "responses" else {"messages": ASK, "max_tokens": 50}
    document = {"model": MODELS[endpoint], "stream": True, **body}
    sent = headers(rig, f"left-{endpoint}", wait="30")
    with (
        httpx.Client(base_url=rig.proxy.url, timeout=60, trust_env=False) as client,
        client.stream("POST", PATHS[endpoint], json=document, headers=sent) as answer,
    ):
        assert next(answer.iter_text()).startswith(": ping")
    settlement = only(rig.of_case(f"left-{endpoint}"), "settle")["settlement"]
    assert settlement["outcome"] == "disconnected"
    assert settlement["attempts"] == []
