"""What a provider keeps for one tenant is not another's, on a real proxy without a database: files, batches, videos, stores."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from anything import FILE, Anything
from doors import config, environment
from rig import Rig
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

pytestmark = pytest.mark.proxy

BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
VIDEO = {"model": "film", "prompt": "a cat", "seconds": "4"}


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    settings = config(provider)
    # Opened by the operator.
    settings["pointsman"]["unmetered"] = {"*": "deny", "/v1/vector_stores": "allow", "/v1/containers": "allow"}
    settings["pointsman"]["shared_objects"] = ["shared-*"]
    groups = {
        "film": "openai/sora-2",
        "chat": "openai/gpt-4o",
        "claude": "anthropic/claude-4",
        "gemini": "gemini/flash",
    }
    with Rig(
        tmp_path_factory.mktemp("kept"),
        lambda _: [
            {
                "model_name": name,
                "litellm_params": {
                    "model": model,
                    "api_base": provider.url + ("/v1" if model.startswith("openai") else ""),
                    "api_key": "sk-provider",
                },
                "model_info": {"id": f"{name}-1"},
            }
            for name, model in groups.items()
        ],
        plugins=["meter", "denier"],
        config=settings,
        env=environment(provider),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def made(rig: Rig) -> dict[str, str]:
    """What tenant ``a`` has made: the paths."""
    with as_tenant(rig, "a") as client:
        file = client.post(
            "/v1/files", data={"purpose": "assistants"}, files={"file": ("a.jsonl", b"{}", "text/plain")}
        )
        batch = client.post("/v1/batches", json=BATCH)
        video = client.post("/v1/videos", json=VIDEO)
        assert (file.status_code, batch.status_code, video.status_code) == (200, 200, 200), (file.text, video.text)
        batch_id, video_id = batch.json()["id"], video.json()["id"]
        return {"files": "/v1/files/file-1", "batches": f"/v1/batches/{batch_id}", "videos": f"/v1/videos/{video_id}"}


def as_tenant(rig: Rig, name: str) -> httpx.Client:
    headers = {"authorization": f"Bearer tenant-{name}"}
    return httpx.Client(base_url=rig.proxy.url, headers=headers, timeout=30, trust_env=False)


ACTIONS = [
    ("GET", "files", ""),
    ("GET", "files", "/content"),
    ("DELETE", "files", ""),
    ("GET", "batches", ""),
    ("POST", "batches", "/cancel"),
    ("GET", "videos", ""),
    ("GET", "videos", "/content"),
    ("POST", "videos", "/remix"),
]


@pytest.mark.parametrize(("prefix", "does"), [*itertools.product(["/v1/", "/"], ACTIONS)])
def test_another_tenant_finds_nothing(
    rig: Rig, provider: Anything, made: dict[str, str], prefix: str, does: tuple[str, str, str]
) -> None:
    method, what, action = does
    path = made[what].replace("/v1/", prefix) + action
    before = len(provider.calls)
    with as_tenant(rig, "b") as other:
        answer = other.request(method, path, json={"prompt": "a dog"} if action == "/remix" else None)
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"] == "not_found"
    assert len(provider.calls) == before


def test_another_tenants_file_is_not_used_for_a_batch(rig: Rig, provider: Anything, made: dict[str, str]) -> None:
    del made
    before = len(provider.calls)
    with as_tenant(rig, "b") as other:
        assert other.post("/v1/batches", json=BATCH).status_code == 404
    assert len(provider.calls) == before


@pytest.mark.parametrize(("method", "what", "action"), [ACTIONS[number] for number in (1, 3, 4)])
def test_a_tenant_uses_its_own(rig: Rig, made: dict[str, str], method: str, what: str, action: str) -> None:
    with as_tenant(rig, "a") as owner:
        assert owner.request(method, made[what] + action).status_code == 200


def test_a_video_that_is_made_of_another_is_its_makers(rig: Rig, provider: Anything, made: dict[str, str]) -> None:
    with as_tenant(rig, "a") as owner, as_tenant(rig, "b") as other:
        remixed = owner.post(f"{made['videos']}/remix", json={"prompt": "a dog"})
        assert remixed.status_code == 200, remixed.text
        before = len(provider.calls)
        assert other.get(f"/v1/videos/{remixed.json()['id']}").status_code == 404
    assert len(provider.calls) == before


def test_a_list_shows_a_tenant_its_own(rig: Rig, provider: Anything, made: dict[str, str]) -> None:
    """Results of its batches included; the administrator sees all."""
    with as_tenant(rig, "a") as owner:
        batch = owner.get(made["batches"]).json()
        provider.results["file-1"] = [{"custom_id": "1"}]
        results = owner.get(made["batches"]).json()["output_file_id"]
    provider.listed = [{**FILE, "id": id_} for id_ in ("file-1", "file-other", results, batch["id"])]
    try:
        shown = {}
        for name in "ab":
            with as_tenant(rig, name) as client:
                shown[name] = {entry["id"] for entry in client.get("/v1/files").json()["data"]}
        with rig.proxy.client() as admin:
            everything = admin.get("/v1/files").json()["data"]
    finally:
        provider.listed = []
    assert shown == {"a": {"file-1", results, batch["id"]}, "b": set()}
    assert len(everything) == 4


def test_what_the_operator_has_made_can_be_used_by_its_id(rig: Rig, provider: Anything) -> None:
    """And does not become the reader's."""
    for name in "ab":
        with as_tenant(rig, name) as client:
            assert client.get("/v1/files/file-shared/content").status_code == 200


def wrapped(fields: str, prefix: str = "") -> str:
    """Return an id as LiteLLM makes one of fields of its own, which a client can do as well."""
    return prefix + base64.b64encode(fields.encode()).decode().rstrip("=")


def said(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "read it"}, *parts]}]


FILE_PART: Final = {"type": "file", "file": {"file_id": "file-1"}}
INPUT_FILE: Final = {"type": "input_file", "file_id": "file-1"}
CLAUDE_FILE: Final = {"type": "document", "source": {"type": "file", "file_id": "file-1"}}
FILE_DATA: Final = {"fileData": {"mimeType": "text/plain", "fileUri": "https://provider/v1beta/files/file-1"}}
CODE: Final = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}
CLAUDE: Final = {"model": "claude", "max_tokens": 5}
#: Requests that name the file of another tenant, in the words of each API.
NAMING: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "chat", "messages": said(FILE_PART)}),
    "chat, an engine": ("/engines/chat/chat/completions", {"messages": said(FILE_PART)}),
    "chat, encoded": (
        "/v1/chat/completions",
        {
            "model": "chat",
            "messages": said(
                {
                    "type": "file",
                    "file": {"file_id": wrapped("litellm_proxy:a/b;unified_id,1;llm_output_file_id,file-1")},
                }
            ),
        },
    ),
    "chat, for a deployment": (
        "/v1/chat/completions",
        {
            "model": "chat",
            "messages": said({"type": "file", "file": {"file_id": "x"}}),
            "model_file_id_mapping": {"x": {"chat-1": "file-1"}},
        },
    ),
    "chat, image": (
        "/v1/chat/completions",
        {"model": "chat", "messages": said({"type": "image_file", "image_file": {"file_id": "file-1"}})},
    ),
    "chat, streamed": ("/v1/chat/completions", {"model": "chat", "messages": said(FILE_PART), "stream": True}),
    "responses": ("/v1/responses", {"model": "chat", "input": said(INPUT_FILE)}),
    "responses, image": (
        "/v1/responses",
        {"model": "chat", "input": said({"type": "input_image", "file_id": "file-1"})},
    ),
    "responses, encoded": (
        "/v1/responses",
        {"model": "chat", "input": said({**INPUT_FILE, "file_id": wrapped("litellm:file-1;model,chat", "file-")})},
    ),
    "responses, a tool": ("/v1/responses", {"model": "chat", "input": "hi", "tools": [CODE]}),
    "responses, in extra_body": ("/v1/responses", {"model": "chat", "input": "hi", "extra_body": {"file": "file-1"}}),
    "input_tokens": ("/v1/responses/input_tokens", {"model": "chat", "input": said(INPUT_FILE)}),
    "compact": ("/v1/responses/compact", {"model": "chat", "input": said(INPUT_FILE)}),
    "messages": ("/v1/messages", {**CLAUDE, "messages": said(CLAUDE_FILE)}),
    "messages on OpenAI": ("/v1/messages", {**CLAUDE, "model": "chat", "messages": said(CLAUDE_FILE)}),
    "messages, a container": (
        "/v1/messages",
        {**CLAUDE, "messages": said({"type": "container_upload", "file_id": "file-1"})},
    ),
    "count_tokens": ("/v1/messages/count_tokens", {**CLAUDE, "messages": said(CLAUDE_FILE)}),
    "generateContent": (
        "/v1beta/models/gemini:generateContent",
        {"contents": [{"role": "user", "parts": [FILE_DATA]}]},
    ),
    "countTokens": ("/v1beta/models/gemini:countTokens", {"contents": [{"role": "user", "parts": [FILE_DATA]}]}),
    "edited images": ("/v1/images/edits", {"model": "chat", "prompt": "a cat", "images": [{"file_id": "file-1"}]}),
    "videos": ("/v1/videos", {**VIDEO, "input_reference": {"file_id": "file-1"}}),
    "batches": ("/v1/batches", BATCH),
    "pass-through": ("/anthropic/v1/messages", {**CLAUDE, "messages": said(CLAUDE_FILE)}),
    "pass-through, configured": ("/configured", {"model": "mine", "input": said(INPUT_FILE)}),
    "vector stores": ("/v1/vector_stores", {"name": "n", "file_ids": ["file-1"]}),
}


@pytest.mark.parametrize("how", NAMING)
def test_another_tenants_file_is_not_read_by_naming_it(
    rig: Rig, provider: Anything, made: dict[str, str], how: str
) -> None:
    del made
    path, body = NAMING[how]
    before = len(provider.calls)
    with as_tenant(rig, "b") as other:
        answer = other.post(path, json=body, headers={"x-goog-api-key": "tenant-b"})
        assert answer.status_code == 404, answer.text
        assert "There is no such object" in answer.text
        assert len(provider.calls) == before
    # So that the above is not refused for another reason.
    with as_tenant(rig, "a") as owner:
        assert "There is no such object" not in owner.post(path, json=body).text


def test_a_request_names_a_bounded_number_of_files(rig: Rig, provider: Anything) -> None:
    before = len(provider.calls)
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [f"file-{n}" for n in range(50_000)]}}
    with as_tenant(rig, "a") as client:
        many = client.post("/v1/responses", json={"model": "chat", "input": "hi", "tools": [tool]})
        long = client.post(
            "/v1/responses", json={"model": "chat", "input": said({**INPUT_FILE, "file_id": "x" * 5_000})}
        )
    assert [answer.status_code for answer in (many, long)] == [400, 400]
    assert {answer.json()["error"]["code"] for answer in (many, long)} == {"too_many_ids"}
    assert len(provider.calls) == before


def test_what_the_operator_has_made_is_not_removed_by_a_tenant(rig: Rig, provider: Anything) -> None:
    before = len(provider.calls)
    with as_tenant(rig, "a") as client:
        for path in ("files/file-shared", "vector_stores/vs_shared", "containers/cntr_shared"):
            # Containers LiteLLM guards itself.
            assert client.delete(f"/v1/{path}").status_code in {403, 404}
    assert len(provider.calls) == before


def test_vector_stores_that_the_operator_opens_are_their_makers(rig: Rig, provider: Anything) -> None:
    """Where they are read, listed and searched, and where a prompt names them."""
    with as_tenant(rig, "a") as owner, as_tenant(rig, "b") as other:
        made = owner.post("/v1/vector_stores", json={"name": "n", "model": "chat"})
        assert made.status_code == 200, made.text
        id_ = made.json()["id"]
        search = {"model": "chat", "input": "hi", "tools": [{"type": "file_search", "vector_store_ids": [id_]}]}
        before = len(provider.calls)
        refused = [
            other.get(f"/v1/vector_stores/{id_}"),
            other.delete(f"/v1/vector_stores/{id_}"),
            other.get(f"/v1/vector_stores/{id_}/files"),
            other.post(f"/v1/vector_stores/{id_}/search", json={"query": "hi"}),
            other.post("/v1/responses", json=search),
        ]
        assert [answer.status_code for answer in refused] == [404] * len(refused)
        assert len(provider.calls) == before
        assert owner.get(f"/v1/vector_stores/{id_}").status_code == 200
        assert owner.post("/v1/responses", json=search).status_code == 200


REFERENCE: Final = {"type": "item_reference", "id": "made-1"}
GEMINI: Final = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
PASSED: Final = {"model": "chat", "input": "hi"}
#: Requests that name what an answer to another tenant may have made.
REUSING: dict[str, tuple[str, dict[str, Any]]] = {
    "an item": ("/v1/responses", {"model": "chat", "input": [REFERENCE]}),
    "an item, by its id alone": ("/v1/responses", {"model": "chat", "input": [{"id": "made-1"}]}),
    "an item, counted": ("/v1/responses/input_tokens", {"model": "chat", "input": [REFERENCE]}),
    "an item, compacted": ("/v1/responses/compact", {"model": "chat", "input": [REFERENCE]}),
    "a conversation": ("/v1/responses", {"model": "chat", "input": "hi", "conversation": "made-1"}),
    "a conversation, as an object": (
        "/v1/responses",
        {"model": "chat", "input": "hi", "conversation": {"id": "made-1"}},
    ),
    "a container": (
        "/v1/responses",
        {"model": "chat", "input": "hi", "tools": [{"type": "code_interpreter", "container": "made-1"}]},
    ),
    "a container, messages": (
        "/v1/messages",
        {**CLAUDE, "messages": [{"role": "user", "content": "hi"}], "container": "made-1"},
    ),
    "a container, messages, with skills": (
        "/v1/messages",
        {**CLAUDE, "messages": [{"role": "user", "content": "hi"}], "container": {"id": "made-1", "skills": []}},
    ),
    "a spoken answer": (
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "assistant", "audio": {"id": "made-1"}}, *said()]},
    ),
    "an interaction": ("/v1beta/interactions", {"model": "gemini", "input": "hi", "previous_interaction_id": "made-1"}),
    "a cached content": ("/v1beta/models/gemini:generateContent", {**GEMINI, "cachedContent": "made-1"}),
    "a cached content, chat": (
        "/v1/chat/completions",
        {"model": "gemini", "messages": said(), "cached_content": "made-1"},
    ),
    "pass-through, an item": ("/openai_passthrough/v1/responses", {**PASSED, "input": [REFERENCE]}),
    "pass-through, a response": ("/openai_passthrough/v1/responses", {**PASSED, "previous_response_id": "made-1"}),
    "pass-through, a container": ("/anthropic/v1/messages", {**CLAUDE, "messages": said(), "container": "made-1"}),
}


@pytest.mark.parametrize("how", REUSING)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_what_only_an_answer_can_have_made_is_not_used_by_its_id(
    rig: Rig, provider: Anything, how: str, stream: bool
) -> None:
    """Unless the operator shares it: what is not known to be a tenant's own may be another's."""
    path, body = REUSING[how]
    before = len(provider.calls)
    with as_tenant(rig, "b") as other:
        answer = other.post(path, json={**body, "stream": stream}, headers={"x-goog-api-key": "tenant-b"})
    assert answer.status_code == 404, answer.text
    assert "shared_objects" in answer.text
    assert len(provider.calls) == before
    shared = json.loads(json.dumps(body).replace("made-1", "shared-1"))
    with as_tenant(rig, "b") as other:
        assert "shared_objects" not in other.post(path, json=shared).text


@pytest.mark.parametrize(
    "named", [{"input": [REFERENCE]}, {"input": "hi", "conversation": "made-1"}], ids=["item", "conversation"]
)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_nor_is_it_on_a_websocket(rig: Rig, provider: Anything, named: dict[str, Any], nested: bool) -> None:
    event = {"type": "response.create", "model": "chat", **({"response": named} if nested else named)}
    before = len(provider.calls)
    headers = {"authorization": "Bearer tenant-b"}
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}/v1/responses?model=chat"
    with connect(url, additional_headers=headers, open_timeout=15) as socket:
        socket.send(json.dumps(event))
        assert json.loads(socket.recv(10))["error"]["code"] == "not_found"
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
    assert len(provider.calls) == before


@pytest.mark.parametrize("verb", [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
@pytest.mark.parametrize("prefix", ["/v1beta/interactions", "/interactions"])
def test_an_interaction_is_its_makers(rig: Rig, provider: Anything, verb: tuple[str, str], prefix: str) -> None:
    provider.makes = {"id": "int-1", "object": "interaction", "created": "2030-01-01T00:00:00Z"}
    method, action = verb
    with as_tenant(rig, "a") as owner, as_tenant(rig, "b") as other:
        try:
            assert owner.post("/v1beta/interactions", json={"model": "gemini", "input": "hi"}).status_code == 200
            before = len(provider.calls)
            refused = other.request(method, f"{prefix}/int-1{action}")
            unknown = owner.request(method, f"{prefix}/int-2{action}")
            assert (refused.status_code, unknown.status_code) == (404, 404), refused.text
            assert len(provider.calls) == before
            owner.request(method, f"{prefix}/int-1{action}")
            assert len(provider.calls) > before
        finally:
            provider.makes = {}


MAKING: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "responses": (
        "/v1/responses",
        {"model": "chat", "input": "hi"},
        {
            "object": "response",
            "output": [{"type": "code_interpreter_call", "id": "ci-1", "container_id": "{}", "code": ""}],
        },
        "a container",
    ),
    "messages": (
        "/v1/messages",
        {**CLAUDE, "messages": said()},
        {"type": "message", "role": "assistant", "container": {"id": "{}", "expires_at": "2030-01-01T00:00:00Z"}},
        "a container, messages",
    ),
    "messages, a file": (
        "/v1/messages",
        {**CLAUDE, "messages": said()},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {
                    "type": "bash_code_execution_tool_result",
                    "tool_use_id": "t",
                    "content": {"type": "bash_code_execution_result", "content": [{"file_id": "{}"}]},
                }
            ],
        },
        "a file, messages",
    ),
    "chat": (
        "/v1/chat/completions",
        {"model": "chat", "messages": said()},
        {
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "hi",
                        "audio": {"id": "{}", "data": "", "transcript": "", "expires_at": 1},
                    },
                }
            ]
        },
        "a spoken answer",
    ),
    "interactions": (
        "/v1beta/interactions",
        {"model": "gemini", "input": "hi"},
        {"id": "{}", "object": "interaction", "created": "2030-01-01T00:00:00Z"},
        "an interaction",
    ),
    "pass-through": (
        "/openai_passthrough/v1/responses",
        PASSED,
        {"id": "{}", "object": "response"},
        "pass-through, a response",
    ),
}


#: What clients may also use that no answer to them has made.
USING: Final = {
    **REUSING,
    "a file, messages": (
        "/v1/messages",
        {**CLAUDE, "messages": said({**CLAUDE_FILE, "source": {"type": "file", "file_id": "made-1"}})},
    ),
}


@pytest.mark.parametrize("how", MAKING)
def test_what_an_answer_has_made_is_its_tenants(rig: Rig, provider: Anything, how: str) -> None:
    making, asked, answer, use = MAKING[how]
    path, body = USING[use]
    made, named = (
        json.loads(json.dumps(part).replace(old, f"own-{how}")) for part, old in ((answer, "{}"), (body, "made-1"))
    )
    provider.makes = made
    try:
        with as_tenant(rig, "a") as owner, as_tenant(rig, "b") as other:
            assert owner.post(making, json=asked).status_code == 200
            assert other.post(path, json=named).status_code == 404
            assert owner.post(path, json=named).status_code == 200
    finally:
        provider.makes = {}


def test_what_is_not_known_to_be_its_own_is_not_removed_and_the_answer_says_why(rig: Rig) -> None:
    """The note of it may be lost with the store."""
    with as_tenant(rig, "a") as client:
        answer = client.delete("/v1/files/file-of-before")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "store has lost the note" in answer.json()["error"]["message"]
