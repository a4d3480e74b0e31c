"""Every way into the gateway: what is not metered does not reach a provider.

The routes are those of the running LiteLLM, so that one which a new version adds is knocked at as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from anything import Anything
from doors import BODY, config, environment, knock_at_socket
from rig import Rig, counts, only

pytestmark = pytest.mark.proxy

TENANT = {"authorization": "Bearer tenant-a"}


def models(provider: Anything) -> list[dict[str, Any]]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    groups = {"chat": params, "secret": params, "any/*": {**params, "model": "openai/*"}}
    return [
        {"model_name": name, "litellm_params": given, "model_info": {"id": f"{name.removesuffix('/*')}-1"}}
        for name, given in groups.items()
    ]


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(
        tmp_path_factory.mktemp("doors"),
        lambda _: models(provider),
        plugins=["meter", "denier"],
        config=config(provider),
        env=environment(provider),
    ) as running:
        yield running


CLOSED = [
    ("/v1/rag/query", {**BODY, "rerank": {"model": "chat"}}),
    ("/v1/threads", BODY),
    ("/v1/assistants", BODY),
    ("/v1/vector_stores", BODY),
    ("/v1/vector_stores/vs_1/search", BODY),
    ("/v1/vector_stores/vs_1/search", {"query": "hi"}),
    ("/v1/vector_stores/vs_1/files", {**BODY, "file_id": "file-1"}),
    ("/v1/containers", BODY),
    ("/v1/realtime/client_secrets", BODY),
]


@pytest.mark.parametrize(("path", "body"), CLOSED, ids=[f"{path}-{len(body)}" for path, body in CLOSED])
def test_a_closed_route_is_a_403_that_names_route_and_setting(
    rig: Rig, provider: Anything, path: str, body: dict[str, Any]
) -> None:
    """And nothing is retried: the answer comes at once."""
    before = len(provider.calls)
    answer = httpx.post(f"{rig.proxy.url}{path}", json=body, headers=TENANT, timeout=30)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["code"] == "unmetered_route"
    assert path in error["message"]
    assert "`unmetered`" in error["message"]
    assert answer.headers["x-pointsman-request-id"]
    assert len(provider.calls) == before


def test_the_administrator_may_use_every_route(rig: Rig, provider: Anything) -> None:
    """The gateway's own key is not limited."""
    before = len(provider.calls)
    with rig.proxy.client() as admin:
        assert admin.post("/openai_passthrough/v1/chat/completions", json=BODY).status_code == 200
    assert len(provider.calls) > before
    assert isinstance(knock_at_socket(rig.proxy, "/v1/realtime", rig.proxy.master_key), str)


def test_a_denial_keeps_its_status_on_every_route(rig: Rig) -> None:
    """Also where LiteLLM answers any exception of a callback with 500."""
    headers = {**TENANT, "x-test-deny": "429"}
    form = {"data": {"model": "chat"}, "files": {"file": ("a.wav", b"RIFF", "audio/wav")}}
    with httpx.Client(base_url=rig.proxy.url, headers=headers, timeout=30, trust_env=False) as client:
        answers = [
            client.post("/v1/chat/completions", json=BODY),
            client.post("/v1/batches", json=BODY),
            client.post("/v1/audio/transcriptions", **form),
            client.get("/v1/responses/resp_1"),
        ]
    assert [answer.status_code for answer in answers] == [429] * len(answers)
    assert all(answer.headers["retry-after"] == "3" for answer in answers)


def as_tenant(rig: Rig, name: str) -> httpx.Client:
    headers = {"authorization": f"Bearer tenant-{name}"}
    return httpx.Client(base_url=rig.proxy.url, headers=headers, timeout=30, trust_env=False)


def test_the_list_of_models_shows_a_tenant_its_own(rig: Rig) -> None:
    """By the patterns that its plugin has given with its identity; a tenant without patterns sees all."""
    shown = {}
    for name in ("narrow", "a"):
        with as_tenant(rig, name) as client:
            shown[name] = {entry["id"] for entry in client.get("/v1/models").json()["data"]}
    assert {"chat", "secret"} <= shown["a"]
    assert "chat" in shown["narrow"]
    assert all(name.startswith("chat") for name in shown["narrow"])


def test_a_stored_response_belongs_to_its_tenant(rig: Rig) -> None:
    """Also where the plugin names no user of LiteLLM's."""
    with as_tenant(rig, "narrow-1") as owner, as_tenant(rig, "narrow-2") as other:
        made = owner.post("/v1/responses", json={"model": "chat", "input": "hi", "store": True})
        assert made.status_code == 200, made.text
        path = f"/v1/responses/{made.json()['id']}"
        # LiteLLM refuses it, or we do where the response has been noted, since a plugin reserves.
        assert other.get(path).status_code in {403, 404}
        assert other.delete(path).status_code in {403, 404}
        assert owner.get(path).status_code == 200


KEPT = {
    "/v1/responses": {"model": "chat", "input": "hi", "background": True},
    "/v1/batches": {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
}


@pytest.mark.parametrize("path", KEPT)
def test_what_is_used_later_is_charged_when_it_is_first_seen(rig: Rig, path: str) -> None:
    """Not when the request is accepted, not before it is complete, and not again at a later read."""
    used = []
    with as_tenant(rig, "a") as client:
        made = client.post(path, json=KEPT[path], headers={"x-test-case": f"{path}-made"})
        assert made.status_code == 200, made.text
        for number in range(4):
            read = client.get(f"{path}/{made.json()['id']}", headers={"x-test-case": f"{path}-{number}"})
            assert read.status_code == 200, read.text
    for case in ("made", *range(4)):
        settlement = only(rig.of_case(f"{path}-{case}"), "settle")["settlement"]
        (attempt,) = settlement["attempts"]
        tokens = attempt["usage"] and attempt["usage"]["prompt_tokens"] + attempt["usage"]["completion_tokens"]
        used.append((tokens, settlement["generates"], attempt["cost_usd_micros"]))
        # Neither an acceptance nor a read took as long as the answer did.
        assert attempt["duration_ms"] is None
        if path == "/v1/responses":
            assert attempt["deployment"]["id"] == "chat-1"
    assert [tokens for tokens, _, _ in used] == [0, None, 30, None, None]
    assert [charged for _, charged, _ in used] == [True, False, True, False, False]
    assert used[0][2] == 0
    # What a batch costs, whose model stands in a file, only LiteLLM's log can say: without it it is unknown, not free.
    assert used[2][2] if path == "/v1/responses" else used[2][2] is None


@dataclass(frozen=True)
class Row:
    """One request of the README's table.

    Attributes:
        method: The HTTP method.
        path: The path; ``{kept}`` stands for the id of a stored response of the tenant, ``{batch}`` for that of a batch.
        endpoint: How its settlement names it.
        body: The request, as JSON or as the fields of a form.
        files: Files of a form.
        generates: Whether a model works for it.
        attempts: How many attempts it makes; None where LiteLLM decides.
        selects: Whether plugins choose its deployment.
    """

    method: str
    path: str
    endpoint: str
    body: dict[str, Any] | None = None
    files: dict[str, Any] | None = None
    generates: bool = False
    attempts: int | None = None
    selects: bool = False


HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
GEMINI = "/gemini/v1beta/models/gemini-2.5-flash:generateContent"
UPLOAD = {"file": ("a.txt", b"hi", "text/plain")}
PASSED: dict[str, Any] = {"generates": True, "attempts": 1}
COUNTED: dict[str, Any] = {"attempts": 0, "selects": True}
TABLE = {
    "interactions": Row(
        "POST", "/v1beta/interactions", "interactions", {"model": "chat", "input": "hi"}, **PASSED, selects=True
    ),
    "pass-through, openai": Row(
        "POST", "/openai_passthrough/v1/chat/completions", "pass_through", {"model": "gpt-4o", **HI}, **PASSED
    ),
    "pass-through, anthropic": Row(
        "POST", "/anthropic/v1/messages", "pass_through", {"model": "claude", **HI}, **PASSED
    ),
    "pass-through, gemini": Row("POST", GEMINI, "pass_through", CONTENTS, **PASSED),
    "pass-through, configured": Row("POST", "/configured", "pass_through", {"model": "mine", **HI}, **PASSED),
    "count_tokens": Row("POST", "/v1/messages/count_tokens", "count_tokens", {"model": "chat", **HI}, **COUNTED),
    "input_tokens": Row(
        "POST", "/v1/responses/input_tokens", "count_tokens", {"model": "chat", "input": "hi"}, **COUNTED
    ),
    "token_counter": Row(
        "POST", "/utils/token_counter?call_endpoint=true", "count_tokens", {"model": "chat", "prompt": "hi"}, **COUNTED
    ),
    "countTokens": Row("POST", "/v1beta/models/chat:countTokens", "count_tokens", CONTENTS, **COUNTED),
    "batches": Row("POST", "/v1/batches", "batches", KEPT["/v1/batches"], **PASSED),
    "reading a response": Row("GET", "/v1/responses/{kept}", "responses"),
    "deleting a response": Row("DELETE", "/v1/responses/{kept}", "responses"),
    "cancelling a response": Row("POST", "/v1/responses/{kept}/cancel", "responses", {}),
    "listing files": Row("GET", "/v1/files", "files"),
    "uploading a file": Row("POST", "/v1/files", "files", {"purpose": "assistants"}, UPLOAD),
    "listing batches": Row("GET", "/v1/batches", "batches"),
    "cancelling a batch": Row("POST", "/v1/batches/{batch}/cancel", "batches", {}),
}


@pytest.mark.parametrize("scenario", ["ok", "denial"])
@pytest.mark.parametrize("name", TABLE)
def test_the_rest_of_the_table_is_admitted_and_settled_once(
    rig: Rig, provider: Anything, name: str, scenario: str
) -> None:
    row, case = TABLE[name], f"table-{name}-{scenario}"
    with as_tenant(rig, "a") as client:
        made = client.post("/v1/responses", json={"model": "chat", "input": "hi", "store": True}).json()["id"]
        batch = client.post("/v1/batches", json=KEPT["/v1/batches"]).json()["id"]
        before = len(provider.calls)
        sent: dict[str, Any] = {"data": row.body, "files": row.files} if row.files else {"json": row.body}
        # Gemini's own name of the header with the key.
        headers = {"x-test-case": case, "x-goog-api-key": "tenant-a"}
        headers |= {"x-test-deny": "429"} if scenario == "denial" else {}
        answer = client.request(
            row.method,
            row.path.format(kept=made, batch=batch),
            headers=headers,
            **(sent if row.body is not None else {}),
        )
    rows = rig.of_case(case)
    fired = counts(rows)
    settlement = only(rows, "settle")["settlement"]
    assert fired["pre_route"] == fired["settle"] == 1
    assert fired["before_attempt"] == fired["post_response"] + fired["on_error"]
    assert (settlement["endpoint"], settlement["generates"]) == (row.endpoint, row.generates)
    if scenario == "denial":
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert (fired["before_attempt"], len(provider.calls)) == (0, before)
        return
    assert answer.status_code == settlement["status_code"] == 200, answer.text
    assert fired["select"] == row.selects
    if row.attempts is not None:
        assert fired["before_attempt"] == row.attempts
    tokens = [attempt["usage"] and attempt["usage"]["prompt_tokens"] for attempt in settlement["attempts"]]
    if row.endpoint == "batches" and row.generates:
        assert tokens == [0]  # it has used nothing yet
    elif row.generates:
        assert tokens == [10]
    else:
        assert not any(tokens)
        assert not settlement["cost_usd_micros"]


@pytest.mark.parametrize("how", ["by the client", "by a plugin"])
def test_a_model_that_a_wildcard_serves_is_chosen_and_priced(rig: Rig, provider: Anything, how: str) -> None:
    """As the provider's model of that name, though the deployment has none."""
    name, case = "any/gpt-4o-mini", f"wildcard-{how}"
    headers = {"x-test-case": case} | ({"x-test-target": name} if how == "by a plugin" else {})
    body = {"model": name if how == "by the client" else "chat", **HI}
    with as_tenant(rig, "a") as client:
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    assert json.loads(provider.requests[-1][2])["model"] == "gpt-4o-mini"
    settlement = only(rig.of_case(case), "settle")["settlement"]
    (attempt,) = settlement["attempts"]
    assert (attempt["deployment"]["id"], attempt["deployment"]["model"]) == ("any-1", "gpt-4o-mini")
    # 10 and 20 tokens at 0.15 and 0.60 dollars a million.
    assert attempt["cost_usd_micros"] == 14
