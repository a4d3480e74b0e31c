"""What plugins change, answer and refuse, on a real proxy with real clients: as in the kit, on every endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from changer_rig import TEXT, headers, start
from rig import Rig, only
from units import DOORS
from units import sent as sent_to

from pointsman.testing.provider import Behaviour, Delay

pytestmark = pytest.mark.proxy


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    config = {"pointsman": {"upstream_headers": ["x-policy"]}}
    with start(tmp_path_factory.mktemp("transforms"), "policy", "changer", config=config) as running:
        for model in ("slow-gpt", "slow-claude", "slow-vectors"):
            running.upstream.behave(model, Behaviour(latency=Delay(median_ms=8_000)))
        yield running


def sent(rig: Rig, count: int) -> list[str]:
    """Return the last bodies that the provider has received."""
    return [json.dumps(request.body) for request in rig.upstream.requests[-count:]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_requests_and_answers_are_changed(rig: Rig, endpoint: str, model: str, stream: bool) -> None:
    """The provider does not learn the name, the client gets capitals, and what is settled is what the provider counted."""
    case = f"changed-{endpoint}-{model}-{stream}"
    ask: list[Any] = [{"role": "user", "content": "I am Ada"}]
    if endpoint == "messages":
        claude = anthropic.Anthropic(base_url=rig.proxy.url, api_key=rig.proxy.master_key, max_retries=0)
        arguments: dict[str, Any] = {"model": model, "max_tokens": 50, "messages": ask, "system": "Call me Ada"}
        if stream:
            with claude.messages.stream(**arguments, extra_headers=headers(rig, case)) as events:
                text = events.get_final_text()
        else:
            block = claude.messages.create(**arguments, extra_headers=headers(rig, case)).content[0]
            assert block.type == "text"
            text = block.text
    else:
        client = openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key=rig.proxy.master_key, max_retries=0)
        more = {"extra_headers": headers(rig, case)}
        if endpoint == "chat" and stream:
            chunks = client.chat.completions.create(model=model, messages=ask, stream=True, **more)  # type: ignore[call-overload]  # headers
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        elif endpoint == "chat":
            text = client.chat.completions.create(model=model, messages=ask, **more).choices[0].message.content or ""  # type: ignore[call-overload]  # headers
        elif stream:
            found = client.responses.create(
                model=model, input="I am Ada", instructions="Call me Ada", stream=True, **more
            )  # type: ignore[call-overload]  # headers
            text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
        else:
            text = client.responses.create(model=model, input="I am Ada", instructions="Ada", **more).output_text  # type: ignore[call-overload]  # headers
    assert text == TEXT.upper()
    (body,) = sent(rig, 1)
    assert "Ada" not in body
    assert "NAME1" in body
    settlement = only(rig.of_case(case), "settle")["settlement"]
    assert settlement["outcome"] == "ok"
    assert settlement["usage"]["completion_tokens"] > 0
    assert not settlement["usage"].get("estimated", False)


def test_embeddings_are_changed(rig: Rig) -> None:
    """A request without a text as answer passes as well."""
    answer = httpx.post(
        f"{rig.proxy.url}/v1/embeddings",
        json={"model": "vectors", "input": ["I am Ada"]},
        headers=headers(rig, "vectors"),
        timeout=30,
    )
    assert answer.status_code == 200
    assert "NAME1" in sent(rig, 1)[0]


@pytest.mark.parametrize("name", DOORS)
def test_every_other_endpoint_is_changed_too(rig: Rig, name: str) -> None:
    """Whatever it counts in, and whatever file comes with it."""
    door = DOORS[name]
    body = json.loads(re.sub(r"Say something\.|A cat\.|Hello\.", "I am Ada", json.dumps(door.body)))
    url = f"{rig.proxy.url}{door.path.format(model=name)}"
    answer = httpx.post(url, headers=headers(rig, name), timeout=30, **sent_to(replace(door, body=body), name))
    assert answer.status_code == 200, answer.text
    (received,) = sent(rig, 1)
    assert ("NAME1" in received) == ("Ada" in json.dumps(body))
    assert "Ada" not in received


@pytest.mark.parametrize("name", DOORS)
def test_a_plugin_answers_on_every_other_endpoint(rig: Rig, name: str) -> None:
    """In the form of the request, without a call of a provider."""
    door, before = DOORS[name], len(rig.upstream.requests)
    reply: Any = [{"mine": 1}, {"mine": 2}] if door.stream else {"mine": 1}
    url = f"{rig.proxy.url}{door.path.format(model=name)}"
    case = headers(rig, f"reply-{name}", reply=json.dumps(reply))
    answer = httpx.post(url, headers=case, timeout=30, **sent_to(door, name))
    assert answer.status_code == 200, answer.text
    if door.stream:
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        assert [json.loads(line) for line in lines] == reply
    else:
        assert answer.json() == reply
    assert len(rig.upstream.requests) == before
    settlement = only(rig.of_case(f"reply-{name}"), "settle")["settlement"]
    assert (settlement["outcome"], settlement.get("attempts", []), settlement["replied_by"]) == ("ok", [], "policy")


def test_a_fallback_starts_from_the_clients_body(rig: Rig) -> None:
    """Each attempt is changed from the client's own body."""
    body = {"model": "failing", "fallbacks": ["spare"], "messages": [{"role": "user", "content": "I am Ada"}]}
    answer = httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers(rig, "fallback"), timeout=30)
    assert answer.status_code == 200
    first, second = sent(rig, 2)
    assert ("NAME1" in first, "NAME2" in second, "NAME1" in second) == (True, True, False)


ASKED = [
    ("/v1/chat/completions", "gpt"),
    ("/v1/chat/completions", "claude"),
    ("/v1/messages", "gpt"),
    ("/v1/messages", "claude"),
    ("/v1/responses", "gpt"),
    ("/v1/embeddings", "vectors"),
]


def post(rig: Rig, case: str, more: dict[str, Any] | None = None, **told: str) -> httpx.Response:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "I am Ada"}], **(more or {})}
    return httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers(rig, case, **told), timeout=30)


@pytest.mark.parametrize("where", ["request", "response", "stream"])
def test_a_plugin_that_fails_is_left_out(rig: Rig, where: str) -> None:
    """Where its policy is to allow, what passes is not changed; the fault is counted against it."""
    answer = post(rig, f"fails-{where}", {"stream": where == "stream"}, fail=where)
    assert answer.status_code == 200
    if where == "request":
        assert "I am Ada" in sent(rig, 1)[0]
    elif where == "response":
        assert answer.json()["choices"][0]["message"]["content"] == TEXT
    else:
        assert answer.text.rstrip().endswith("data: [DONE]")
    status = httpx.get(f"{rig.proxy.url}/pointsman/status", headers=rig.proxy.headers).json()
    hook = "transform_stream" if where == "stream" else f"transform_{where}"
    assert {"plugin": "changer", "hook": hook, "count": 1} in status["faults"]


CHAT = {
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "mine"}}],
}


def test_a_plugin_answers_a_plain_request(rig: Rig) -> None:
    """No provider is called, the client's SDK reads the answer, and the settlement has no attempt."""
    before = len(rig.upstream.requests)
    client = openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key=rig.proxy.master_key, max_retries=0)
    answer = client.chat.completions.create(
        model="gpt",
        messages=[{"role": "user", "content": "x"}],
        extra_headers=headers(rig, "reply", reply=json.dumps(CHAT)),
    )
    assert answer.choices[0].message.content == "mine"
    assert len(rig.upstream.requests) == before
    settlement = only(rig.of_case("reply"), "settle")["settlement"]
    assert (settlement["outcome"], settlement.get("attempts", []), settlement["replied_by"]) == ("ok", [], "policy")


def test_a_plugin_answers_a_stream(rig: Rig) -> None:
    """The pieces come as server-sent events in the endpoint's form."""
    client = openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key=rig.proxy.master_key, max_retries=0)
    pieces = [
        {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": t}}]} for t in "ab"
    ]
    chunks = client.chat.completions.create(
        model="gpt",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        extra_headers=headers(rig, "reply-stream", reply=json.dumps(pieces)),
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab"


def test_a_refusal_reaches_the_client(rig: Rig) -> None:
    """Status, code, message and retry-after are the plugin's; one that is final ends the request without a fallback."""
    for case, retryable, attempts in (("refused", True, 2), ("final", False, 1)):
        refusal = {
            "reason": "not in this region",
            "status": 451,
            "code": "region",
            "retry_after_s": 9.0,
            "retryable": retryable,
        }
        answer = post(rig, case, {"fallbacks": ["spare"]}, refusal=json.dumps(refusal))
        assert (answer.status_code, answer.headers["retry-after"]) == (451, "9")
        error = answer.json()["error"]
        assert (error["code"], error["message"]) == ("region", "not in this region")
        assert len(only(rig.of_case(case), "settle")["settlement"]["attempts"]) == attempts


def test_an_empty_selection_says_why(rig: Rig) -> None:
    """The client is told the plugin's reason instead of the gateway's own text."""
    answer = post(rig, "empty", drop="outside of the EU")
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "no_deployment"
    assert "outside of the EU (policy)" in answer.json()["error"]["message"]
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(("path", "model"), ASKED)
def test_a_routes_headers_reach_the_provider(rig: Rig, path: str, model: str) -> None:
    """On every endpoint; those that the configuration does not list are a fault of the plugin."""
    for name, arrives in (("x-policy", True), ("x-other", False)):
        route = json.dumps({"upstream_headers": {name: "on"}})
        case = headers(rig, f"{name}-{path}-{model}", route=route)
        body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "input": "x"}
        answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers=case, timeout=30)
        assert answer.status_code == 200, answer.text
        assert (rig.upstream.requests[-1].headers.get(name) == "on") is arrives


@pytest.mark.parametrize("name", [name for name in DOORS if name != "generate-openai"])
def test_a_routes_headers_reach_the_provider_on_every_other_endpoint(rig: Rig, name: str) -> None:
    door, case = DOORS[name], f"header-{name}"
    told = headers(rig, case, route=json.dumps({"upstream_headers": {"x-policy": "on"}}))
    url = f"{rig.proxy.url}{door.path.format(model=name)}"
    assert httpx.post(url, headers=told, timeout=30, **sent_to(door, name)).status_code == 200
    assert rig.upstream.requests[-1].headers.get("x-policy") == "on"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "model"), ASKED)
def test_a_routes_timeout_ends_an_attempt(rig: Rig, path: str, model: str, stream: bool) -> None:
    """Also where the client allows more."""
    if "embeddings" in path and stream:
        pytest.skip("embeddings have no streams")
    case = f"timeout-{path}-{model}-{stream}"
    told = headers(rig, case, route=json.dumps({"timeout_s": 0.5}))
    body = {"model": f"slow-{model}", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "input": "x"}
    body |= {"stream": stream, "timeout": 20}
    httpx.post(f"{rig.proxy.url}{path}", json=body, headers=told, timeout=60)
    attempts = only(rig.of_case(case), "settle")["settlement"]["attempts"]
    assert [attempt["error"]["kind"] for attempt in attempts] == ["timeout"]


def test_a_route_limits_attempts(rig: Rig) -> None:
    """A route's retries take the place of the gateway's."""
    assert post(rig, "retries", {"model": "failing"}, route=json.dumps({"retries": 2})).status_code == 500
    assert len(only(rig.of_case("retries"), "settle")["settlement"]["attempts"]) == 3


def test_headers_of_a_denial_cannot_split_an_answer(rig: Rig) -> None:
    """A denial with a line break in a header is a fault of its plugin, and sets no header."""
    answer = post(rig, "evil", deny="evil")
    assert answer.status_code == 200
    assert not {"set-cookie", "x-evil"} & set(answer.headers)


#: What the plugin says, and what the client gets for it.
ENDED: dict[str, tuple[dict[str, str], int, str]] = {
    "denied": ({"deny": "yes"}, 403, "denied"),
    "refused": ({"refusal": json.dumps({"reason": "no", "status": 451, "code": "region"})}, 451, "region"),
    "final": (
        {"refusal": json.dumps({"reason": "no", "status": 404, "code": "gone", "retryable": False})},
        404,
        "gone",
    ),
    "empty": ({"drop": "outside of the EU"}, 429, "no_deployment"),
}
ANTHROPIC = {403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 451: "invalid_request_error"}


@pytest.mark.parametrize("how", ENDED)
@pytest.mark.parametrize("name", [*(f"{path} {model}" for path, model in ASKED), *DOORS])
def test_the_end_of_a_request_has_code_and_shape_on_every_endpoint(rig: Rig, name: str, how: str) -> None:
    """The body has the plugin's code in the shape of the endpoint's errors, plain and streamed."""
    told, status, code = ENDED[how]
    if name in DOORS:
        path, contents = DOORS[name].path.format(model=name), [sent_to(DOORS[name], name)]
    else:
        path, _, model = name.partition(" ")
        body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "input": "x"}
        contents = [
            {"json": {**body, "stream": stream}} for stream in (False, True) if "embed" not in path or not stream
        ]
    for content in contents:
        answer = httpx.post(f"{rig.proxy.url}{path}", headers=headers(rig, name, **told), timeout=30, **content)
        document = answer.json()
        assert (answer.status_code, document["error"]["code"]) == (status, code), answer.text
        if "messages" in path:
            assert (document["type"], document["error"]["type"]) == ("error", ANTHROPIC[status])
        else:
            assert document.keys() == {"error"}
            assert document["error"].keys() == {"message", "type", "param", "code"}


#: What reaches a provider as it is: files, what stands in one, and what tokens are counted of.
UNSEEN: dict[str, dict[str, Any]] = {
    "/v1/batches": {
        "json": {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    },
    "/v1/files": {
        "data": {"purpose": "assistants", "custom_llm_provider": "openai"},
        "files": {"file": ("a.txt", b"I am Ada", "text/plain")},
    },
    "/v1/audio/transcriptions": {
        "data": {"model": "gpt"},
        "files": {"file": ("a.wav", b"RIFF" + bytes(200), "audio/wav")},
    },
    "/v1/messages/count_tokens": {"json": {"model": "claude", "messages": [{"role": "user", "content": "I am Ada"}]}},
}


def test_a_plugin_that_must_see_everything(tmp_path: Path) -> None:
    """Where its policy is to deny, a fault or content that it cannot see ends the request, and nothing unchanged passes."""
    nowhere = {"api_base": "http://127.0.0.1:9/v1", "api_key": "sk-provider"}
    config = {
        "files_settings": [{"custom_llm_provider": "openai", **nowhere}],
        "assistant_settings": {"custom_llm_provider": "openai", "litellm_params": nowhere},
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
    }
    with start(tmp_path, "guardian", config=config) as rig:
        before = len(rig.upstream.requests)
        refused = post(rig, "guard-request", fail="request")
        assert refused.status_code >= 500
        assert len(rig.upstream.requests) == before, "nothing was sent"
        denied = post(rig, "guard-response", fail="response")
        assert (denied.status_code, denied.json()["error"]["code"]) == (503, "plugin_failed")
        broken = post(rig, "guard-stream", {"stream": True}, fail="stream")
        assert '"code":"plugin_failed"' in broken.text
        assert "[DONE]" not in broken.text
        before = len(rig.upstream.requests)
        for path, content in UNSEEN.items():
            unseen = httpx.post(f"{rig.proxy.url}{path}", headers=headers(rig, path), timeout=30, **content)
            assert (unseen.status_code, unseen.json()["error"]["code"]) == (400, "not_transformable"), unseen.text
            assert "must see what this request carries" in unseen.text
        thread = {"messages": [{"role": "user", "content": "I am Ada"}]}
        closed = httpx.post(
            f"{rig.proxy.url}/v1/threads", headers={"authorization": "Bearer tenant-a"}, json=thread, timeout=30
        )
        assert (closed.status_code, closed.json()["error"]["code"]) == (403, "unmetered_route"), closed.text
        assert len(rig.upstream.requests) == before, "nothing was sent"
        for path in ("/v1/files?purpose=batch", "/v1/batches?limit=2", "/v1/files/file-1/content"):
            read = httpx.get(f"{rig.proxy.url}{path}", headers=headers(rig, path), timeout=30)
            assert "must see what this request carries" not in read.text
