"""Files, batches and videos at providers: whose they are, and what each tenant sees of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from litellm.types.utils import LiteLLMBatch

from pointsman.errors import StoreError
from pointsman.host.owners import Owners
from pointsman.store.memory import MemoryStore
from pointsman.types import Endpoint, Identity, RequestContext

# LiteLLM's own warnings are not ours.
kept = pytest.importorskip("pointsman.litellm.kept_objects")
OpenAIFileObject = pytest.importorskip("litellm.types.llms.openai").OpenAIFileObject
VideoObject = pytest.importorskip("litellm.types.videos.main").VideoObject
encode_video_id = pytest.importorskip("litellm.types.videos.utils").encode_video_id_with_provider

# LiteLLM's answers are models of pydantic with fields that newer versions of it warn of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FILES: Final = "/v1/files"
JOBS: Final = "/v1/fine_tuning/jobs"
UNKNOWN: Final = 404
#: A response's id as LiteLLM gives it to clients.
RESPONSE: Final = (
    "resp_" + base64.b64encode(b"litellm:custom_llm_provider:openai;model_id:1;response_id:resp_long").decode()
)


class Gone(MemoryStore):
    """A store that cannot be reached."""

    async def put(self, *_: object, **__: object) -> None:
        raise StoreError("gone")

    async def get_many(self, _keys: Sequence[str]) -> Any:
        raise StoreError("gone")


def context(tenant: str | None, endpoint: Endpoint = Endpoint.FILES, **body: object) -> RequestContext:
    facts: dict[str, Any] = {"request_id": "1", "endpoint": endpoint, "model": "", "stream": False, "received_at": 0.0}
    return RequestContext(**facts, identity=Identity(tenant=tenant), generates=False, body=body)


def file(id_: str) -> Any:
    facts = {"bytes": 1, "created_at": 1, "filename": "f", "object": "file", "purpose": "batch", "status": "processed"}
    return OpenAIFileObject(id=id_, **facts)


def batch(id_: str, **files: str) -> LiteLLMBatch:
    facts: dict[str, Any] = {"completion_window": "24h", "created_at": 1, "endpoint": "/v1/chat/completions"}
    facts |= {"input_file_id": "file-in", "object": "batch", "status": "completed"}
    return LiteLLMBatch(id=id_, **facts, **files)


class Listed:
    """A page of a list, as LiteLLM and OpenAI's client have it."""

    def __init__(self, *entries: Any) -> None:
        self.data = list(entries)

    @property
    def ids(self) -> list[str]:
        return [entry["id"] if isinstance(entry, dict) else entry.id for entry in self.data]


def wrapped(id_: str) -> str:
    """Return a file's id as LiteLLM gives it to clients where the request has named a model."""
    return "file-" + base64.urlsafe_b64encode(f"litellm:{id_};model,chat".encode()).decode().rstrip("=")


@pytest.fixture
async def owners() -> Owners:
    """Tenant a has made a file, and b another; the operator has made a third."""
    found = Owners(MemoryStore())
    for tenant, id_ in (("a", "file-a"), ("b", "file-b")):
        await kept.answered(found, context(tenant), "POST", FILES, file(id_))
    return found


async def status(owners: Owners, ctx: RequestContext, path: str, method: str = "GET") -> int | None:
    denial = (await kept.look(owners, ctx, method, path)).denial
    return None if denial is None else denial.status


@pytest.mark.parametrize("path", ["/v1/files/{}", "/v1/files/{}/content", "/openai/v1/files/{}?provider=openai"])
async def test_what_another_tenant_has_made_is_not_there(owners: Owners, path: str) -> None:
    for tenant, id_, expected in [
        ("a", "file-a", None),
        ("a", "file-b", UNKNOWN),
        ("a", "file-of-the-operator", None),
        (None, "file-b", None),
    ]:
        assert await status(owners, context(tenant), path.format(id_)) == expected


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v1/files/{}"), ("POST", "/v1/batches/{}/cancel")])
async def test_a_tenant_removes_its_own_only(owners: Owners, method: str, path: str) -> None:
    for id_, expected in [("file-a", None), ("file-b", UNKNOWN), ("file-of-the-operator", UNKNOWN)]:
        assert await status(owners, context("a"), path.format(id_), method) == expected
    assert await status(owners, context(None), path.format("file-of-the-operator"), method) is None


async def test_the_same_file_is_known_by_the_id_that_litellm_makes_of_it(owners: Owners) -> None:
    assert await status(owners, context("a"), f"{FILES}/{wrapped('file-b')}") == UNKNOWN
    assert await status(owners, context("b"), f"{FILES}/{wrapped('file-b')}") is None


@pytest.mark.parametrize("used", ["file-b", wrapped("file-b")])
async def test_a_batch_of_another_tenants_file_is_not_made(owners: Owners, used: str) -> None:
    ctx = context("a", Endpoint.BATCHES, input_file_id=used)
    assert await status(owners, ctx, "/v1/batches") == UNKNOWN
    assert await status(owners, context("a", Endpoint.BATCHES, input_file_id="file-a"), "/v1/batches") is None


@pytest.mark.parametrize(
    ("endpoint", "path", "body"),
    [(Endpoint.CHAT, "/v1/chat/completions", {"messages": [{"content": "file-b"}]}), (Endpoint.FILES, FILES, {}), (Endpoint.BATCHES, "/v1/batches", {"input_file_id": 3})],
    ids=["another API", "no id", "an id that is none"],
)  # fmt: skip
async def test_a_request_that_names_nothing_kept_is_not_looked_up(
    endpoint: Endpoint, path: str, body: Mapping[str, object]
) -> None:
    assert await status(Owners(Gone()), context("a", endpoint, **body), path) is None


async def test_whose_it_is_cannot_be_guessed_while_the_store_is_gone() -> None:
    """Neither a read nor a list shows what may be another tenant's; what is made is given to its maker all the same."""
    owners = Owners(Gone())
    denial = (await kept.look(owners, context("a"), "GET", f"{FILES}/file-a")).denial
    assert (denial.status, denial.retry_after_s) == (503, 1.0)
    listed = Listed(file("file-a"), file("file-b"))
    await kept.answered(owners, context("a"), "GET", FILES, listed)
    assert listed.ids == []
    made = file("file-c")
    await kept.answered(owners, context("a"), "POST", FILES, made)
    assert made.id == "file-c"


@pytest.mark.parametrize(
    ("tenant", "endpoint", "expected"),
    [("a", Endpoint.FILES, ["file-a"]), ("b", Endpoint.FILES, ["file-b"]), ("c", Endpoint.FILES, []),
     (None, Endpoint.FILES, ["file-a", "file-b", "file-o", ""]), ("a", Endpoint.ASSISTANTS, ["file-a", "file-b", "file-o", ""])],
)  # fmt: skip
async def test_a_list_has_a_tenants_own(
    owners: Owners, tenant: str | None, endpoint: Endpoint, expected: list[str]
) -> None:
    """What no tenant is known to have made is the operator's."""
    listed = Listed(file("file-a"), {"id": "file-b"}, {"id": "file-o"}, {"id": ""})
    await kept.answered(owners, context(tenant, endpoint), "GET", FILES, listed)
    assert listed.ids == expected


async def test_the_results_of_a_tenants_batch_are_its_own(owners: Owners) -> None:
    ctx = context("a", Endpoint.BATCHES)
    await kept.answered(owners, ctx, "POST", "/v1/batches", batch("batch_1"))
    # Its results have names once it has ended, which a read of it says.
    results = batch("batch_1", output_file_id="file-out", error_file_id="file-err")
    await kept.answered(owners, ctx, "GET", "/v1/batches/batch_1", results)
    for id_ in ("file-out", "file-err"):
        assert await status(owners, context("b"), f"{FILES}/{id_}/content") == UNKNOWN
        assert await status(owners, context("a"), f"{FILES}/{id_}/content") is None


async def test_reading_what_the_operator_has_made_does_not_make_it_the_tenants(owners: Owners) -> None:
    ctx = context("a", Endpoint.BATCHES)
    read = batch("batch_operator", output_file_id="file-operator")
    await kept.answered(owners, ctx, "GET", "/v1/batches/batch_operator", read)
    for id_ in ("file-operator", "batch_operator"):
        assert await owners.of([id_]) == [None]
    # Nor by an answer to another method about the same.
    await kept.answered(owners, ctx, "POST", "/v1/batches/batch_operator/cancel", batch("batch_operator"))
    assert await owners.of(["batch_operator"]) == [None]


async def test_reading_an_answer_does_not_forget_how_long_it_is(owners: Owners) -> None:
    ctx = context("a", Endpoint.INTERACTIONS)
    await kept.made(owners, ctx, ["interaction_1"], 5000)
    await kept.answered(owners, ctx, "GET", "/v1beta/interactions/interaction_1", {"id": "interaction_1"})
    assert [note.tokens for note in await owners.notes(["interaction_1"])] == [5000]


async def test_a_video_that_is_made_of_another_is_its_makers(owners: Owners) -> None:
    """Whatever LiteLLM has put around its id."""
    ctx = context("a", Endpoint.VIDEOS)
    made = VideoObject(id=encode_video_id("video_2", "openai", "deployment-1"), object="video", status="queued")
    await kept.answered(owners, ctx, "POST", "/v1/videos/video_1/remix", made)
    assert await owners.of(["video_2"]) == ["a"]
    for id_ in ("video_2", made.id):
        assert await status(owners, context("b", Endpoint.VIDEOS), f"/v1/videos/{id_}/content") == UNKNOWN


@pytest.mark.parametrize("answer", [None, batch("")])
async def test_an_answer_without_an_id_belongs_to_no_tenant(owners: Owners, answer: Any) -> None:
    await kept.answered(owners, context("a"), "POST", FILES, answer)
    assert await owners.of([""]) == [None]


GOING_ON: list[tuple[Endpoint, dict[str, Any], int]] = [
    (Endpoint.RESPONSES, {"previous_response_id": "resp_long"}, 900),
    (Endpoint.RESPONSES, {"previous_response_id": RESPONSE}, 900),
    (Endpoint.RESPONSES, {"extra_body": {"previous_response_id": "resp_long"}}, 900),
    (Endpoint.RESPONSES, {"response": {"previous_response_id": "resp_long"}}, 900),
    (Endpoint.PASS_THROUGH, {"previous_response_id": "resp_long"}, 900),
    (Endpoint.INTERACTIONS, {"previous_interaction_id": "resp_long"}, 900),
    # What is not known.
    (Endpoint.RESPONSES, {"previous_response_id": "resp_of_before"}, 0),
    (Endpoint.RESPONSES, {"previous_response_id": "resp_silent"}, 0),
    (Endpoint.RESPONSES, {"previous_response_id": "resp_long", "extra_body": {"previous_response_id": "resp_x"}}, 0),
    # What goes on from nothing.
    (Endpoint.RESPONSES, {"input": "resp_long", "previous_response_id": None}, 0),
]


@pytest.mark.parametrize(("endpoint", "body", "tokens"), GOING_ON)
async def test_what_the_model_reads_again_is_known_by_the_note_of_the_answer(
    endpoint: Endpoint, body: dict[str, Any], tokens: int
) -> None:
    owners = Owners(MemoryStore())
    await kept.made(owners, context("a", endpoint), ["resp_long"], 900)
    await kept.made(owners, context("a", endpoint), ["resp_silent"])
    ctx = context("a", endpoint, **body)
    looked = await kept.look(owners, ctx, "POST", "/v1/responses")
    assert looked == (None, tokens)
    # Also for a later one of the tenant's workers, and no other tenant's.
    denied = (await kept.look(owners, context("b", endpoint, **body), "POST", "/v1/responses")).denial
    assert (denied is not None) == (
        "resp_long" in str(body.get("previous_response_id")) or tokens > 0 or "silent" in str(body)
    )


async def test_tuning_jobs_are_their_makers(owners: Owners) -> None:
    """Nothing is listed that another tenant has made, and a tenant ends none of the operator's."""
    await kept.answered(owners, context("a", Endpoint.FINE_TUNING), "POST", JOBS, {"id": "ftjob-a"})
    listed = Listed({"id": "ftjob-a"}, {"id": "ftjob-of-the-operator"})
    await kept.answered(owners, context("b", Endpoint.FINE_TUNING), "GET", JOBS, listed)
    assert listed.ids == []
    for tenant, id_, method, expected in [
        ("a", "ftjob-a", "GET", None),
        ("a", "ftjob-a/cancel", "POST", None),
        ("b", "ftjob-a", "GET", UNKNOWN),
        ("b", "ftjob-a/cancel", "POST", UNKNOWN),
        ("b", "ftjob-of-the-operator/cancel", "POST", UNKNOWN),
    ]:
        assert await status(owners, context(tenant, Endpoint.FINE_TUNING), f"{JOBS}/{id_}", method) == expected
