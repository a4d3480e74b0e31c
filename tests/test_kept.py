"""What a provider keeps for one tenant is not another's: files, batches, videos, on a real proxy without a database."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import httpx
import pytest
from anything import FILE, Anything, anything
from doors import config, environment
from rig import Rig

pytestmark = pytest.mark.proxy

BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
VIDEO = {"model": "film", "prompt": "a cat", "seconds": "4"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Anything]:
    with anything() as running:
        yield running


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    params = {"model": "openai/sora-2", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    with Rig(
        tmp_path_factory.mktemp("kept"),
        lambda _: [{"model_name": "film", "litellm_params": params, "model_info": {"id": "film-1"}}],
        plugins=["meter", "denier"],
        config=config(provider),
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
