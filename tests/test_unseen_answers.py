"""A plugin that must see every answer: each is changed, or its request is refused before a provider is called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anything import Anything
from changer_rig import install
from doors import BODY, config, environment, knock_at_socket
from litellm.types.videos.utils import encode_video_id_with_provider
from rig import Rig
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

pytestmark = pytest.mark.proxy

MODELS = {"chat": "gpt-4o-mini", "voice": "tts-1", "film": "sora-2"}


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("unseen")
    library = directory / "lib"
    library.mkdir()
    install(library)
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{model}", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"},
            "model_info": {"id": f"{name}-1"},
        }
        for name, model in MODELS.items()
    ]
    with Rig(
        directory, lambda _: models, plugins=["policy", "sealer"], config=config(provider), env=environment(provider)
    ) as running:
        yield running


@pytest.fixture
def client(rig: Rig) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=rig.proxy.url, headers={"authorization": "Bearer tenant-a"}, timeout=30, trust_env=False
    ) as opened:
        yield opened


BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "/v1/batches": (BATCH, 400, "not_transformable"),
    "/v1/audio/speech": ({"model": "voice", "input": "hi", "voice": "alloy"}, 400, "not_transformable"),
    "/v1/videos": ({"model": "film", "prompt": "hi"}, 400, "not_transformable"),
    "/v1/threads": (BODY, 403, "unmetered_route"),
    "/v1/assistants": (BODY, 403, "unmetered_route"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_would_be_answered_unseen_reaches_no_provider(client: httpx.Client, provider: Anything, path: str) -> None:
    body, status, code = REFUSED[path]
    before = len(provider.calls)
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert len(provider.calls) == before


@pytest.mark.parametrize(("path", "closed"), [("/v1/realtime", 400), ("/v1/responses", 1008)])
def test_a_websocket_is_refused(rig: Rig, provider: Anything, path: str, closed: int) -> None:
    before = len(provider.calls)
    assert knock_at_socket(rig.proxy, path) == closed
    assert len(provider.calls) == before


@pytest.mark.parametrize(("path", "closed"), [("/v1/realtime", 400), ("/v1/responses", 1008)])
def test_a_plugin_that_answers_a_websocket_is_named(rig: Rig, provider: Anything, path: str, closed: int) -> None:
    """A connection cannot be answered."""
    before = len(provider.calls)
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}{path}?model=chat"
    told = {"authorization": "Bearer tenant-a", "x-test-reply": json.dumps([{"type": "mine"}])}
    try:
        with connect(url, additional_headers=told, open_timeout=30) as socket:
            socket.send(json.dumps({"type": "response.create", "model": "chat"}))
            error = json.loads(socket.recv(30))["error"]
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv(30)
        found = caught.value.rcvd and caught.value.rcvd.code
    except InvalidStatus as err:
        found, error = err.response.status_code, json.loads(err.response.body)["error"]
    assert (found, error["code"]) == (closed, "not_answerable")
    assert "'policy'" in error["message"]
    assert len(provider.calls) == before


PASSED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "chat", "input": "hi"},
    "/openai_passthrough/v1/chat/completions": BODY,
    "/anthropic/v1/messages": BODY,
    "/configured": BODY,
}


@pytest.mark.parametrize("path", PASSED)
def test_what_is_seen_is_changed(client: httpx.Client, path: str) -> None:
    assert client.post(path, json=PASSED[path]).json()["seal"] == "sealed"


@pytest.mark.parametrize("background", [False, True])
def test_a_stored_response_is_changed_at_each_read(client: httpx.Client, background: bool) -> None:
    """Whether it is complete, and whether the read is the one that is charged."""
    made = client.post("/v1/responses", json={"model": "chat", "input": "hi", "store": True, "background": background})
    assert made.json()["seal"] == "sealed"
    for _ in range(4):
        read = client.get(f"/v1/responses/{made.json()['id']}")
        assert (read.status_code, read.json()["seal"]) == (200, "sealed"), read.text


def test_a_video_that_was_made_before_is_not_shown(client: httpx.Client) -> None:
    """What describes it is changed."""
    path = f"/v1/videos/{encode_video_id_with_provider('video_1', 'openai', 'film-1')}"
    assert client.get(path).json()["seal"] == "sealed"
    content = client.get(f"{path}/content")
    assert (content.status_code, content.json()["error"]["code"]) == (400, "not_transformable")
