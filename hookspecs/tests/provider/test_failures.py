from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from pointsman.testing.provider import Behaviour

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-a", "messages": HELLO}

OPENAI = [
    (400, openai.BadRequestError, "invalid_request_error", None),
    (401, openai.AuthenticationError, "invalid_request_error", "invalid_api_key"),
    (403, openai.PermissionDeniedError, "request_forbidden", "unsupported_country_region_territory"),
    (404, openai.NotFoundError, "invalid_request_error", "model_not_found"),
    (429, openai.RateLimitError, "requests", "rate_limit_exceeded"),
    (500, openai.InternalServerError, "server_error", None),
    (503, openai.InternalServerError, "server_error", None),
]
ANTHROPIC = [
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (503, anthropic.APIStatusError, "api_error"),
    (529, anthropic.APIStatusError, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "error", "kind", "code"), OPENAI)
def test_openai_statuses_have_the_providers_body(*, oai, upstream, status, error, kind, code):
    upstream.behave("gpt-a", Behaviour(error_ratios={status: 1}))
    with pytest.raises(error) as caught:
        oai.chat.completions.create(**CHAT)
    assert caught.value.status_code == status
    assert (caught.value.body["type"], caught.value.body["code"]) == (kind, code)
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(("status", "error", "kind"), ANTHROPIC)
def test_anthropic_statuses_have_the_providers_body(claude, upstream, status, error, kind):
    upstream.behave("claude-a", Behaviour(error_ratios={status: 1}))
    with pytest.raises(error) as caught:
        claude.messages.create(model="claude-a", max_tokens=9, messages=HELLO)
    assert caught.value.status_code == status
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == kind
    assert caught.value.body["request_id"] == caught.value.request_id


@pytest.mark.parametrize(
    ("status", "code"), [(401, "401"), (404, "DeploymentNotFound"), (429, "429"), (500, None), (400, None)]
)
def test_azure_statuses_have_azures_body(azure, upstream, status, code):
    upstream.behave("my-deployment", Behaviour(error_ratios={status: 1}))
    with pytest.raises(openai.APIStatusError) as caught:
        azure.chat.completions.create(model="my-deployment", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    ("reason", "openai_code", "azure_code", "words"),
    [
        ("context_window", "context_length_exceeded", "context_length_exceeded", "prompt is too long"),
        ("content_policy", "content_policy_violation", "content_filter", "content filtering policy"),
    ],
)
def test_bad_request_reasons(*, oai, azure, claude, upstream, reason, openai_code, azure_code, words):
    upstream.behave("*", Behaviour(error_ratios={400: 1}, bad_request=reason))
    with pytest.raises(openai.BadRequestError) as caught:
        oai.chat.completions.create(**CHAT)
    assert caught.value.code == openai_code
    with pytest.raises(openai.BadRequestError) as caught:
        azure.chat.completions.create(model="d", messages=HELLO)
    assert caught.value.code == azure_code
    with pytest.raises(anthropic.BadRequestError, match=words):
        claude.messages.create(model="claude-a", max_tokens=9, messages=HELLO)


@pytest.mark.parametrize("status", [429, 503, 529])
def test_retry_after_comes_in_seconds_and_in_milliseconds(http, upstream, status):
    upstream.behave("gpt-a", Behaviour(error_ratios={status: 1}, retry_after_s=7, retry_after_ms=6500))
    answer = http.post("/v1/chat/completions", json=CHAT)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "6500")


def test_no_retry_after_unless_set_and_never_on_other_statuses(http, upstream):
    upstream.behave("gpt-a", Behaviour(error_ratios={429: 1}))
    assert "retry-after" not in http.post("/v1/chat/completions", json=CHAT).headers
    upstream.behave("gpt-a", Behaviour(error_ratios={500: 1}, retry_after_s=7))
    assert "retry-after" not in http.post("/v1/chat/completions", json=CHAT).headers


def test_the_first_requests_fail_then_the_sdks_retries_succeed(upstream):
    upstream.behave("gpt-a", Behaviour(fail_first=2, fail_with=503, retry_after_ms=1))
    with openai.OpenAI(base_url=upstream.url, api_key="k", max_retries=2) as client:
        assert client.chat.completions.create(**CHAT).choices
    assert [request.status for request in upstream.requests] == [503, 503, 200]


def test_the_first_requests_meet_a_fault_then_succeed(http, upstream):
    upstream.behave("gpt-a", Behaviour(fail_first=1, fail_with="drop"))
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/v1/chat/completions", json=CHAT)
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_behaviour_of_all_other_models_and_of_one(http, upstream):
    upstream.behave("*", Behaviour(error_ratios={503: 1}))
    upstream.behave("gpt-a", Behaviour())
    statuses = [http.post("/v1/chat/completions", json={**CHAT, "model": name}).status_code for name in ("gpt-a", "b")]
    assert statuses == [200, 503]
    upstream.behave("*", Behaviour())
    assert http.post("/v1/chat/completions", json={**CHAT, "model": "b"}).status_code == 200


def test_streams_fail_with_the_same_body(oai, upstream):
    upstream.behave("gpt-a", Behaviour(error_ratios={429: 1}))
    with pytest.raises(openai.RateLimitError):
        oai.chat.completions.create(**CHAT, stream=True)
