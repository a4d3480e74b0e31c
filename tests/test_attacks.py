"""What a hostile tenant can try, each with what it must get, while the worker goes on answering others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import httpx
import pytest
from anything import Anything
from rig import Rig, only

pytestmark = pytest.mark.proxy

MEGABYTE = 1 << 20
HI = [{"role": "user", "content": "hi"}]
#: The most retries that a client gets, and the first attempt.
MOST_ATTEMPTS = 3 + 1


class Pulse:
    """Asks the worker without a pause whether it lives; the longest wait is its longest stall."""

    def __init__(self, url: str) -> None:
        self.longest_s = 0.0
        self.beats = 0
        self._url = url
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse")

    def _beat(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._ends.is_set():
                began = time.monotonic()
                client.get("/health/liveliness").raise_for_status()
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.beats += 1
                time.sleep(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.set()
        self._thread.join(70)


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "router_settings": {"num_retries": 0, "allowed_fails": 0, "cooldown_time": 60, "retry_after": 0},
    }
    models = [
        {"model_name": "chat", "litellm_params": params, "model_info": {"id": "chat-1"}},
        *({"model_name": name, "litellm_params": params, "model_info": {"id": name}} for name in QUOTING.values()),
    ]
    directory = tmp_path_factory.mktemp("attacks")
    with Rig(directory, lambda _: models, plugins=["meter", "denier"], config=config) as running:
        yield running


@pytest.fixture(scope="module")
def pulse(rig: Rig) -> Iterator[Pulse]:
    """Runs during the whole suite; prints the longest stall at its end."""
    with Pulse(rig.proxy.url) as running:
        yield running
    print(f"longest stall under attack: {running.longest_s * 1000:.0f} ms of {running.beats} beats")  # noqa: T201  # for people


def chat(
    rig: Rig, case: str = "", *, content: bytes | None = None, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    sent = {
        "authorization": "Bearer tenant-a",
        "content-type": "application/json",
        "x-test-case": case,
        **(headers or {}),
    }
    payload = content if content is not None else json.dumps({"model": "chat", "messages": HI, **body}).encode()
    return httpx.post(f"{rig.proxy.url}/v1/chat/completions", content=payload, headers=sent, timeout=60)


def nested(depth: int) -> bytes:
    return b'{"model": "chat", "messages": ' + b"[" * depth + b"]" * depth + b"}"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a model of 2 MB", {"model": "m" * 2 * MEGABYTE}, "model_name_too_long"),
    ("several models", {"model": "chat,chat"}, "model_list_not_supported"),
    ("another model in extra_body", {"extra_body": {"model": "secret"}}, "extra_body_not_supported"),
    ("another model of the provider's", {"deployment_id": "gpt-4o"}, "deployment_id_not_supported"),
    ("a timeout of 2 MB", {"timeout": "1a" * MEGABYTE}, "setting_too_long"),
    ("a provider of 2 MB", {"custom_llm_provider": "1a" * MEGABYTE}, "setting_too_long"),
    ("a key of 2 MB", {"api_key": "k" * 2 * MEGABYTE}, "setting_too_long"),
    ("a response format of 2 MB", {"response_format": "1a" * MEGABYTE}, "setting_too_long"),
    ("200000 headers", {"extra_headers": {f"k{number}": number for number in range(200_000)}}, "setting_too_long"),
    ("headers that are numbers", {"extra_headers": {"a": 1}}, "invalid_setting"),
    ("an organization that is a list", {"organization": ["a"]}, "invalid_setting"),
    ("a response format that is a list", {"response_format": ["json"]}, "invalid_setting"),
    ("an extra_body that is text", {"extra_body": "1a" * MEGABYTE}, "invalid_setting"),
    ("a timeout that is a word", {"timeout": "1a" * 4_000}, "invalid_timeout"),
    ("a timeout before the request", {"request_timeout": -1}, "invalid_timeout"),
    ("a timeout that is a list", {"stream_timeout": [1]}, "invalid_timeout"),
    ("negative retries", {"num_retries": -1}, "invalid_retries"),
    ("retries that are text", {"num_retries": "9" * 30_000}, "invalid_retries"),
]


@pytest.mark.parametrize(("body", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_body_that_no_plugin_must_see_is_refused(
    rig: Rig, provider: Anything, pulse: Pulse, body: dict[str, Any], code: str
) -> None:
    before = len(provider.calls)
    answer = chat(rig, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert len(answer.content) < MEGABYTE
    assert len(provider.calls) == before
    assert pulse.beats


HEADERS = [
    ("x-litellm-timeout", "1a" * 15_000),
    ("x-litellm-timeout", "nan"),
    ("x-litellm-timeout", "1e400"),
    ("x-litellm-stream-timeout", "-1"),
    ("x-litellm-keepalive-seconds", "soon"),
    ("x-litellm-num-retries", "text"),
    ("x-litellm-num-retries", "1.5"),
    ("x-litellm-num-retries", "9" * 5_000),
]


@pytest.mark.parametrize(("name", "value"), HEADERS, ids=[f"{name}-{value[:8]}" for name, value in HEADERS])
def test_a_header_that_is_not_a_number_is_refused(rig: Rig, provider: Anything, name: str, value: str) -> None:
    """LiteLLM takes it for one, and fails with an error of the server's."""
    before = len(provider.calls)
    answer = chat(rig, headers={name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_header", name)
    assert len(answer.content) < 300  # it is not repeated
    assert len(provider.calls) == before


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("a model that is a list", {"body": {"model": ["chat"]}}),
    ("a model that is an object", {"body": {"model": {"$ne": 1}}}),
    ("a model that is a pattern", {"body": {"model": "(a+)+$" * 50}}),
    ("a model with control characters", {"body": {"model": "chat\r\nset-cookie: a=b\x1b[31m"}}),
    ("messages that are text", {"body": {"messages": "a" * MEGABYTE}}),
    ("a timeout that is a word of 30 KB", {"body": {"timeout": "1a" * 15_000}}),
    ("a timeout that is all quotes", {"body": {"timeout": "'\"`" * 10_000}}),
    ("JSON that is nested 100000 deep", {"content": nested(100_000)}),
    ("JSON that is cut", {"content": b'{"model": "chat", "mess'}),
]


@pytest.mark.parametrize("attack", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_request_is_an_error_of_its_own(rig: Rig, pulse: Pulse, attack: dict[str, Any]) -> None:
    """The tenant gets an error; the next one, and everybody else, an answer."""
    beats = pulse.beats
    refused = chat(rig, content=attack.get("content"), **attack.get("body", {}))
    assert refused.status_code >= 400
    assert "set-cookie" not in refused.headers
    assert chat(rig).status_code == 200
    assert pulse.beats > beats


@pytest.mark.parametrize("where", ["body", "header"])
def test_a_client_cannot_have_its_request_retried_without_end(rig: Rig, provider: Anything, where: str) -> None:
    """Neither by the router nor, unseen, by the provider's SDK."""
    before = len(provider.calls)
    body = {"num_retries": 50, "max_retries": 50} if where == "body" else {}
    headers = {"x-litellm-num-retries": "50"} if where == "header" else {}
    answer = chat(rig, f"retries-{where}", headers=headers, extra_headers={"x-fail": "500"}, **body)
    assert answer.status_code >= 500
    calls = len(provider.calls) - before
    assert 1 < calls <= MOST_ATTEMPTS
    settlement = only(rig.of_case(f"retries-{where}"), "settle")["settlement"]
    assert len(settlement["attempts"]) == calls


@pytest.mark.parametrize("unit", ["a-", "a."])
def test_a_text_that_an_error_repeats_holds_up_nobody(rig: Rig, pulse: Pulse, unit: str) -> None:
    """A provider's error quotes a prompt that LiteLLM's patterns for hosts and secrets go back over again and again."""

    def seconds(chars: int) -> float:
        began = time.monotonic()
        answer = chat(rig, messages=[{"role": "user", "content": "fail with 400 " + (unit * chars)[:chars]}])
        assert answer.status_code == 400
        return time.monotonic() - began

    short = min(seconds(200) for _ in range(3))
    beats = pulse.beats
    # As it is, LiteLLM takes ten seconds and more; the short one takes some hundredths.
    assert min(seconds(16_000) for _ in range(3)) < 20 * short
    assert pulse.beats > beats


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_errors_that_a_client_causes_are_its_own(rig: Rig, status: int) -> None:
    """They are marked, and the deployment stays for others; LiteLLM alone would put it into cooldown."""
    case = f"caused-{status}"
    assert chat(rig, case, extra_headers={"x-fail": str(status)}).status_code >= 400
    settlement = only(rig.of_case(case), "settle")["settlement"]
    assert all(attempt["error"]["client_caused"] for attempt in settlement["attempts"])
    assert chat(rig).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_deployment_of_the_provider_is_not_reached(rig: Rig, provider: Anything, path: str) -> None:
    """LiteLLM would put ``deployment_id`` into the path, in place of the model that was admitted."""
    before = len(provider.calls)
    body = {"model": "chat", "messages": HI, "prompt": "hi", "deployment_id": "gpt-4o"}
    answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers={"authorization": "Bearer tenant-a"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "deployment_id_not_supported")
    assert len(provider.calls) == before


@pytest.mark.parametrize(
    "choice", [{"custom_llm_provider": "cohere"}, {"custom_llm_provider": "azure"}, {"azure": True}]
)
def test_a_client_does_not_choose_the_provider(rig: Rig, provider: Anything, choice: dict[str, Any]) -> None:
    """Else its requests would fail at a provider that does not speak the protocol, and the deployment be left out for all."""
    answer = chat(rig, **choice)
    assert answer.status_code == 200
    assert provider.calls[-1] == ("POST", "/v1/chat/completions")
    assert json.loads(provider.requests[-1][2])["model"] == "gpt-4o-mini"


def test_a_client_cannot_name_its_own_address(rig: Rig) -> None:
    """Uvicorn believes the header of every peer on its machine."""
    chat(rig, "address", headers={"x-forwarded-for": "203.0.113.7"})
    assert {row["peer"] for row in rig.rows() if row["hook"] == "authenticate"} == {"127.0.0.1"}
    assert only(rig.of_case("address"), "pre_route")["peer"] == "127.0.0.1"


def test_headers_that_are_ours_cannot_be_forged(rig: Rig, pulse: Pulse) -> None:
    """Neither the request's id nor who the caller is."""
    forged = {"x-pointsman-request-id": "forged", "x-pointsman-user": "admin"}
    beats = pulse.beats
    answer = chat(rig, "forged", headers=forged)
    assert answer.headers["x-pointsman-request-id"] != "forged"
    row = only(rig.of_case("forged"), "pre_route")
    assert (row["tenant"], row["admin"]) == ("a", False)
    admin = {"authorization": "Bearer tenant-a", "x-pointsman-user": "admin"}
    assert httpx.get(f"{rig.proxy.url}/pointsman/status", headers=admin, timeout=60).status_code in {401, 403}
    assert pulse.beats > beats


#: What each endpoint calls the prompt.
PROMPTS = {
    "/v1/chat/completions": lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
    "/v1/messages": lambda prompt: {"messages": [{"role": "user", "content": prompt}], "max_tokens": 5},
    "/v1/responses": lambda prompt: {"input": prompt},
    "/v1/completions": lambda prompt: {"prompt": prompt},
    "/v1/embeddings": lambda prompt: {"input": prompt},
    "/v1/images/generations": lambda prompt: {"prompt": prompt},
    "/v1/audio/speech": lambda prompt: {"input": prompt, "voice": "alloy"},
    "/v1/moderations": lambda prompt: {"input": prompt},
    "/v1beta/models/{model}:generateContent": lambda prompt: {
        "contents": [{"role": "user", "parts": [{"text": prompt}]}]
    },
}
STREAMED = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions")


#: A model each for a path, streamed or not, and a status: LiteLLM 1.106 puts the only deployment of a group into cooldown.
QUOTING = {
    (path, stream, status): f"quoting-{status}-{number}"
    for number, (path, stream) in enumerate(
        [*((path, False) for path in PROMPTS), *((path, True) for path in STREAMED)]
    )
    for status in (400, 408, 429, 500)
}


@pytest.mark.parametrize(("path", "stream", "status"), QUOTING)
def test_a_prompt_that_a_provider_quotes_is_not_kept(
    rig: Rig, provider: Anything, path: str, stream: bool, status: int
) -> None:
    """Neither in what plugins get, from which spans are made, nor in the store; whatever apostrophes stand around it."""
    case, before = f"quoted-{path}-{stream}-{status}", len(provider.calls)
    model = QUOTING[path, stream, status]
    body = {"model": model, **PROMPTS[path](f"fail with {status} and the zebra's secret isn't kept")}
    answer = httpx.post(
        f"{rig.proxy.url}{path.format(model=model)}",
        json={**body, "stream": True} if stream else body,
        headers={"authorization": "Bearer tenant-a", "x-test-case": case},
        timeout=60,
    )
    settlement = only(rig.of_case(case), "settle")["settlement"]
    assert len(provider.calls) > before
    assert stream or answer.status_code >= 400
    assert settlement["attempts"][-1]["error"]["message"]
    kept = json.dumps(settlement)
    assert "zebra" not in kept
    assert "secret" not in kept


def test_no_prompt_is_in_the_store(rig: Rig) -> None:
    """After all of the above."""
    files = [file for file in (rig.directory / "store").rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"zebra" in file.read_bytes()]
