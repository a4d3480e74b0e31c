"""What the bridge does beyond the matrix: routing decisions, refusals, execution, identity, security, real clients."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import anthropic
import httpx
import openai
import pytest
from rig import Rig, counts, deployment, only

from pointsman.testing.provider import Behaviour, Delay

pytestmark = pytest.mark.proxy
ASK = [{"role": "user", "content": "Say something."}]


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-1"),
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-2"),
        deployment(upstream, "spare", "gpt-4o", id_="spare-1"),
        deployment(upstream, "unhurried", "gpt-4.1", id_="unhurried-1"),
        deployment(upstream, "broken", "gpt-broken", id_="broken-1"),
        deployment(upstream, "breaking", "gpt-breaking", id_="breaking-1"),
        deployment(upstream, "hanging", "gpt-hanging", id_="hanging-1"),
        deployment(upstream, "limited", "gpt-limited", id_="limited-1"),
        deployment(upstream, "claude", "claude-haiku-4-5-20251001", id_="claude-1", provider="anthropic"),
        deployment(upstream, "claude-breaking", "claude-breaking", id_="claude-breaking-1", provider="anthropic"),
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "router_settings": {"num_retries": 1, "retry_after": 0},
    }
    with Rig(tmp_path_factory.mktemp("bridge"), model_list, plugins=["denier"], config=config) as running:
        up = running.upstream
        up.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        for model in ("gpt-breaking", "claude-breaking"):
            up.behave(model, Behaviour(fault="break", fault_after_events=6, tokens=30, per_token=Delay(median_ms=20)))
        up.behave("gpt-4.1", Behaviour(latency=Delay(median_ms=500)))
        up.behave("gpt-hanging", Behaviour(fault="hang"))
        up.behave("gpt-limited", Behaviour(error_ratios={429: 1.0}, retry_after_s=7))
        yield running


def post(
    rig: Rig,
    case: str,
    model: str = "pair",
    key: str = "tenant-a",
    more: Mapping[str, Any] = MappingProxyType({}),
    **headers: str,
) -> httpx.Response:
    all_headers = {"authorization": f"Bearer {key}", "x-test-case": case, **headers}
    body = {"model": model, "messages": ASK, **more}
    return httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=all_headers, timeout=30)


def test_a_deployment_id_as_target_serves_every_attempt(rig: Rig) -> None:
    """A route to a deployment goes through its group, and only that deployment is a candidate."""
    for n in range(4):
        case = f"target-{n}"
        assert post(rig, case, **{"x-test-target": "pair-2"}).status_code == 200
        rows = rig.of_case(case)
        assert only(rows, "select")["candidates"] == ["pair-2"]
        assert only(rows, "post_response")["deployment"] == "pair-2"


def test_a_dropped_candidate_is_not_called(rig: Rig) -> None:
    for n in range(4):
        case = f"drop-{n}"
        assert post(rig, case, **{"x-test-drop": "pair-1"}).status_code == 200
        assert only(rig.of_case(case), "post_response")["deployment"] == "pair-2"


def test_without_candidates_the_answer_is_429(rig: Rig) -> None:
    answer = post(rig, "drop-all", **{"x-test-drop": "pair-1,pair-2"})
    assert answer.status_code == 429
    rows = rig.of_case("drop-all")
    assert counts(rows)["before_attempt"] == 0
    assert only(rows, "settle")["settlement"]["outcome"] == "error"


def test_a_refused_attempt_is_made_elsewhere_without_a_cooldown(rig: Rig) -> None:
    """The gateway retries on the other deployment, and the refused one serves the next request."""
    for n in range(6):
        case = f"refuse-{n}"
        assert post(rig, case, **{"x-test-refuse": "pair-1"}).status_code == 200
        rows = rig.of_case(case)
        assert only(rows, "post_response")["deployment"] == "pair-2"
        for refused in (row for row in rows if row["hook"] == "on_error"):
            assert refused["error"] == {"kind": "refused", "retry_after_s": 3.0}
        candidates = [set(row["candidates"]) for row in rows if row["hook"] == "select"]
        assert {"pair-1", "pair-2"} in candidates
    received = [r for r in rig.upstream.requests if r.model == "gpt-4o-mini"]
    assert received


def test_a_route_with_a_fallback_is_saved_by_it(rig: Rig) -> None:
    """The labels stay, the failing attempts and the saving one differ in their kind."""
    answer = post(rig, "saved", model="broken", **{"x-test-fallback": "spare"})
    assert answer.status_code == 200
    rows = rig.of_case("saved")
    assert [row["kind"] for row in rows if row["hook"] == "before_attempt"] == ["primary", "retry", "fallback"]
    settlement = only(rows, "settle")["settlement"]
    assert settlement["outcome"] == "ok"
    assert {attempt["labels"]["case"] for attempt in settlement["attempts"]} == {"saved"}


def test_the_providers_retry_after_reaches_the_hooks_and_the_client(rig: Rig) -> None:
    answer = post(rig, "limited", model="limited")
    assert answer.status_code == 429
    rows = rig.of_case("limited", timeout_s=40)
    errors = [row["error"] for row in rows if row["hook"] == "on_error"]
    assert errors[0] == {"kind": "rate_limit", "retry_after_s": 7.0}


@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_a_stream_that_breaks_is_an_error_with_estimated_usage(rig: Rig, endpoint: str) -> None:
    case = f"breaking-{endpoint}"
    path, body = {
        "chat": ("/v1/chat/completions", {"model": "breaking", "messages": ASK}),
        "messages": ("/v1/messages", {"model": "claude-breaking", "max_tokens": 64, "messages": ASK}),
        "responses": ("/v1/responses", {"model": "breaking", "input": "Say something."}),
    }[endpoint]
    headers = {"authorization": "Bearer tenant-a", "x-test-case": case}
    url = f"{rig.proxy.url}{path}"
    with httpx.stream("POST", url, json={**body, "stream": True}, headers=headers, timeout=30) as answer:
        try:
            text = b"".join(answer.iter_raw())
        except httpx.HTTPError:
            text = b""
    rows = rig.of_case(case)
    settlement = only(rows, "settle")["settlement"]
    assert settlement["outcome"] == "error", (text, rows)
    last = [row for row in rows if row["hook"] == "on_error"][-1]
    assert last["outcome"] == "error"
    assert last["usage"] is None or last["usage"]["estimated"] is True
    assert settlement["attempts"][-1]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_executor_that_fails_becomes_a_plain_call(rig: Rig, stream: bool) -> None:
    case = f"executor-fault-{stream}"
    headers = {
        "authorization": "Bearer tenant-a",
        "x-test-case": case,
        "x-test-executor": "recorder",
        "x-test-execute": "fault",
    }
    body = {"model": "pair", "messages": ASK, "stream": stream}
    answer = httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    rows = rig.of_case(case)
    assert counts(rows)["execute"] == counts(rows)["post_response"] == 1


def test_an_executor_that_gives_up_answers_with_its_error(rig: Rig) -> None:
    for n in range(6):
        # Again and again: a failed execution must not put the executing group into a cooldown.
        case = f"give-up-{n}"
        answer = post(rig, case, **{"x-test-executor": "recorder", "x-test-execute": "give-up"})
        assert answer.status_code == 503, answer.text
        assert only(rig.of_case(case), "settle")["settlement"]["outcome"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_the_loser_of_a_race_is_cancelled_and_its_connection_closed(rig: Rig, stream: bool) -> None:
    case = f"race-{stream}"
    headers = {
        "authorization": "Bearer tenant-a",
        "x-test-case": case,
        "x-test-executor": "recorder",
        "x-test-loser": "hanging",
    }
    body = {"model": "unhurried", "messages": ASK, "stream": stream}
    answer = httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["x-pointsman-raced"] == "2"
    rows = rig.of_case(case)
    assert only(rows, "on_error")["outcome"] == "cancelled"
    assert only(rows, "on_error")["kind"] == "hedge"
    assert only(rows, "post_response")["kind"] == "primary"
    settlement = only(rows, "settle")["settlement"]
    assert [a["outcome"] for a in settlement["attempts"]] == ["ok", "cancelled"]
    rig.upstream.wait_for(lambda seen: any(r.model == "gpt-hanging" and r.closed_early for r in seen), timeout_s=10)


def test_requests_that_share_a_call_id_are_settled_separately(rig: Rig) -> None:
    """The call id is the client's to choose; two at once must not be mixed up."""

    def one(n: int) -> httpx.Response:
        return post(rig, f"same-{n}", **{"x-litellm-call-id": "chosen-by-the-client"})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    settled = [only(rig.of_case(f"same-{n}"), "settle")["settlement"] for n in range(8)]
    assert len({s["request_id"] for s in settled}) == 8
    assert {s["call_id"] for s in settled} == {"chosen-by-the-client"}


def test_the_identity_is_the_gateways_whatever_the_client_claims(rig: Rig) -> None:
    headers = {"authorization": "Bearer tenant-a", "x-test-case": "spoof", "x-pointsman-user": "root"}
    body = {
        "model": "pair",
        "messages": ASK,
        "metadata": {"user_api_key_user_id": "another-user", "pointsman": {"tenant": "b"}},
        "user": "end-user-7",
    }
    assert httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
    identity = only(rig.of_case("spoof"), "settle")["settlement"]["identity"]
    assert identity["tenant"] == "a"
    assert identity["user_id"] == "user-a"
    assert identity["end_user"] == "end-user-7"
    assert identity["admin"] is False


def test_no_key_and_no_prompt_is_written_anywhere(rig: Rig) -> None:
    """Hooks never see credentials; neither the record of them nor the store holds key or prompt."""
    secret, prompt = "tenant-a-0f4c9be2d7", "The quick brown prompt 8d1f"
    headers = {"authorization": f"Bearer {secret}", "x-api-key": secret, "x-test-case": "secrets"}
    body = {"model": "pair", "messages": [{"role": "user", "content": prompt}]}
    assert httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
    seen = only(rig.of_case("secrets"), "pre_route")["headers"]
    assert "authorization" not in seen
    assert "x-api-key" not in seen
    time.sleep(1.0)
    for file in (rig.directory / "store").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert secret.encode() not in content
            assert prompt.encode() not in content
    assert prompt not in rig.proxy.log()
    assert secret not in rig.proxy.log()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/pointsman"),
        ("GET", "/pointsman/status"),
        ("GET", "/pointsman/recorder/echo"),
        ("POST", "/pointsman/recorder/echo"),
        ("GET", "/pointsman/no-such-plugin"),
    ],
)
def test_admin_routes_need_the_admin_key(rig: Rig, method: str, path: str) -> None:
    url = f"{rig.proxy.url}{path}"
    assert httpx.request(method, url).status_code == 401
    assert httpx.request(method, url, headers={"authorization": "Bearer wrong"}).status_code == 401
    answer = httpx.request(method, url, headers={"authorization": "Bearer tenant-a"})
    assert answer.status_code in {401, 403}
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


def test_admin_routes_answer_the_admin(rig: Rig) -> None:
    with rig.proxy.client() as admin:
        status = admin.get("/pointsman/status").json()
        assert [plugin["name"] for plugin in status["plugins"]] == ["recorder", "denier"]
        answer = admin.post("/pointsman/recorder/echo", json={"a": 1}, headers={"x-pointsman-user": "spoofed"})
        assert answer.json()["body"].replace(" ", "") == '{"a":1}'
        assert answer.json()["who"] != "spoofed"
        missing = admin.get("/pointsman/no-such-plugin")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_an_admin_body_arrives_whatever_its_content_type_says(rig: Rig, content_type: str | None) -> None:
    """``curl -d`` declares its body as a form."""
    headers = {"content-type": content_type} if content_type else {}
    with rig.proxy.client() as admin:
        answer = admin.post("/pointsman/recorder/echo", content=b'{"a":1}', headers=headers)
    assert (answer.status_code, answer.json()["body"], answer.json()["who"]) == (200, '{"a":1}', "admin")


def test_an_admin_body_that_contradicts_its_content_type_is_a_client_error(rig: Rig) -> None:
    with rig.proxy.client() as admin:
        answer = admin.post("/pointsman/recorder/echo", content=b"x", headers={"content-type": "multipart/form-data"})
    assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_plugins_answer_header_replaces_the_providers(rig: Rig, stream: bool) -> None:
    """The upstream says 30000; a client could not use two values, nor know whose the other limits are."""
    name, other = "x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens"
    answer = post(rig, "provider's", more={"stream": stream})
    assert (answer.headers.get_list(name), other in answer.headers) == (["30000"], True)
    answer = post(rig, "ours", more={"stream": stream}, **{"x-test-answer": f"{name}=60"})
    assert (answer.headers.get_list(name), other in answer.headers) == (["60"], False)
    assert (
        other
        in post(rig, "nothing to do with limits", more={"stream": stream}, **{"x-test-answer": "x-ours=1"}).headers
    )


def test_a_plugin_that_may_fail_does_not_fail_the_request(rig: Rig) -> None:
    assert post(rig, "fault", **{"x-test-fault": "1"}).status_code == 200
    with rig.proxy.client() as admin:
        faults = admin.get("/pointsman/status").json()["faults"]
    assert {"plugin": "denier", "hook": "pre_route"}.items() <= faults[0].items()


def test_a_list_of_models_is_refused(rig: Rig) -> None:
    """LiteLLM would call each of them at once, past admission and accounting of all but one."""
    answer = post(rig, "list", model="pair,spare")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "model_list_not_supported"


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1", b"{"])
def test_an_admin_body_that_is_not_an_object_is_a_client_error(rig: Rig, body: bytes) -> None:
    with rig.proxy.client() as admin:
        answer = admin.post("/pointsman/recorder/echo", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


def test_what_a_plugin_logs_is_seen(rig: Rig) -> None:
    """With a logger named after its module."""
    assert " - recorder:INFO: the recorder writes\n" in rig.proxy.log()


def test_a_denial_is_not_logged_as_an_error(rig: Rig) -> None:
    """LiteLLM would log a traceback for each one."""
    assert post(rig, "quiet", **{"x-test-deny": "403"}).status_code == 403
    rig.of_case("quiet")
    assert "DenialError" not in rig.proxy.log()


def test_an_unauthenticated_request_has_an_id_and_is_not_settled(rig: Rig) -> None:
    answer = post(rig, "unknown", key="wrong")
    assert answer.status_code == 401
    request_id = answer.headers["x-pointsman-request-id"]
    post(rig, "known")
    rig.of_case("known")  # the first request has had its effects by now
    assert not [row for row in rig.rows() if request_id in {row["request"], row.get("case")}]


def test_the_openai_client(rig: Rig) -> None:
    """The real SDK: plain, streamed, responses, embeddings error, denial as its own exception."""
    with openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key="tenant-a", max_retries=0) as client:
        plain = client.chat.completions.with_raw_response.create(model="pair", messages=ASK)
        assert plain.headers["x-pointsman-request-id"]
        assert plain.parse().choices[0].message.content
        stream = client.chat.completions.create(model="pair", messages=ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert client.responses.create(model="pair", input="Say something.").output_text
        events = list(client.responses.create(model="pair", input="Say something.", stream=True))
        assert events[-1].type == "response.completed"
        with pytest.raises(openai.RateLimitError) as denied:
            client.chat.completions.create(model="pair", messages=ASK, extra_headers={"x-test-deny": "429"})
        assert denied.value.code == "told_to_deny"
        assert denied.value.response.headers["retry-after"] == "3"


def test_the_anthropic_client(rig: Rig) -> None:
    """The real SDK: plain, streamed, on an Anthropic and on an OpenAI deployment, denial as its own exception."""
    with anthropic.Anthropic(base_url=rig.proxy.url, auth_token="tenant-a", api_key=None, max_retries=0) as client:
        for model in ("claude", "pair"):
            answer = client.messages.create(model=model, max_tokens=32, messages=ASK)
            assert answer.content[0].text
            with client.messages.stream(model=model, max_tokens=32, messages=ASK) as stream:
                assert "".join(stream.text_stream)
        with pytest.raises(anthropic.RateLimitError):
            client.messages.create(model="claude", max_tokens=32, messages=ASK, extra_headers={"x-test-deny": "429"})


@pytest.mark.parametrize("extra", [{"max_tokens": 90_000}, {"n": 50}, {"model": "pair"}, {"messages": []}])
def test_an_admitted_body_cannot_be_overwritten(rig: Rig, extra: dict[str, Any]) -> None:
    """The SDK underneath merges ``extra_body`` over the body, past every limit and estimate."""
    answer = post(rig, "extra", more={"extra_body": extra})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "extra_body_not_supported"
    assert post(rig, "extra", more={"extra_body": {"top_k": 3}}).status_code == 200
