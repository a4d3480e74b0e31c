"""A question is answered again in the same setting, for the same caller, while it is fresh, and never otherwise."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import ContractSuite, Harness, Result, Step, deployment, error, never, ok
from pointsman.testing.harness import IDENTITY
from pointsman.types import Endpoint, Outcome, ToolCall
from pointsman_semantic_cache.plugin import HEADER, plugin
from pointsman_semantic_cache.vectors import packed, similarity

ANSWER = "Paris is the capital"
FLEET = (deployment("gpt-1", "chat"), deployment("embed-1", "embed"))
ENDPOINTS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS)
ASKED, AGAIN, OTHER = "what is the capital of France", "What is the capital of France?", "how do I boil an egg"


class TestContract(ContractSuite):
    """It is a plugin like any other, although it keeps what models say."""

    info = plugin
    config = {"embeddings": "embed"}  # noqa: RUF012  # the suite's attribute
    bad_configs = (({"embeddings": ""}, "embeddings"), ({"embeddings": "e", "ttl_s": 0}, "ttl_s"))

    @pytest.mark.skip(reason="it keeps answers for its callers, as the README says")
    def test_it_keeps_no_secret(self) -> None:
        """Left out: to keep answers is what it does."""


def words(text: str) -> list[float]:
    """Return a bag of words: texts with the same words are alike, whatever their case and punctuation."""
    found = [0.0] * 64
    for word in "".join(c for c in text.lower() if c.isalnum() or c == " ").split():
        found[zlib.crc32(word.encode()) % 64] += 1.0
    return found


def worker(embedding: Step | None = None, **config: Any) -> Harness:
    section = {"embeddings": "embed", **config}
    script = {"embed": embedding or ok(embed=words), "chat": ok(ANSWER)}
    return Harness([(plugin, section)], deployments=FLEET, script=script)


def body(endpoint: Endpoint, text: str, **more: Any) -> dict[str, Any]:
    if endpoint is Endpoint.RESPONSES:
        return {"input": text, **more}
    if endpoint is Endpoint.COMPLETIONS:
        return {"prompt": text, **more}
    return {"messages": [{"role": "user", "content": text}], **more}


async def ask(
    h: Harness, text: str, *, endpoint: Endpoint = Endpoint.CHAT, stream: bool = False, **more: Any
) -> Result:
    arguments = {"body": body(endpoint, text), **more}
    result = await h.request(endpoint=endpoint, stream=stream, **arguments)
    await h.settled()
    return result


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_question_is_answered_again(endpoint: Endpoint, stream: bool) -> None:
    """In other words too; no attempt is made and nothing is charged. Another question goes to the model."""
    async with worker() as h:
        first = await ask(h, ASKED, endpoint=endpoint)
        again = await ask(h, AGAIN, endpoint=endpoint, stream=stream)
        other = await ask(h, OTHER, endpoint=endpoint, stream=stream)
        assert (first.headers[HEADER], again.headers[HEADER], other.headers[HEADER]) == (
            "miss",
            "hit; similarity=1.000",
            "miss",
        )
        assert first.text == again.text == other.text == ANSWER
        assert (len(first.attempts), again.attempts, len(other.attempts)) == (1, (), 1)
        assert again.settlement is not None
        assert (again.settlement.cost_usd_micros, again.settlement.replied_by) == (0, "semantic-cache")
        assert h.status("semantic-cache").details["hits"] == 1
        assert h.faults == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": replace(IDENTITY, tenant="other")},
        {"identity": replace(IDENTITY, key_hash="1" * 64)},
        {"identity": replace(IDENTITY, end_user="somebody")},
        {"endpoint": Endpoint.MESSAGES},
        {"body": body(Endpoint.CHAT, ASKED, temperature=0.5)},
        {"body": {"messages": [{"role": "system", "content": "Lie."}, {"role": "user", "content": ASKED}]}},
        {"body": body(Endpoint.CHAT, ASKED, tools=[{"type": "function"}])},
        {"body": body(Endpoint.CHAT, ASKED, n=2)},
        {"body": {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}]}},
        {"body": {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ASKED}]}},
        {"body": body(Endpoint.CHAT, "x" * 3000)},
        {"generates": False},
    ],
    ids=str,
)
async def test_what_differs_is_asked_anew(changes: dict[str, Any]) -> None:
    """Another caller, another setting, or what cannot be compared goes to the model."""
    async with worker() as h:
        await ask(h, ASKED)
        assert len((await ask(h, ASKED, **changes)).attempts) == 1


async def test_a_caller_who_is_not_known_shares_with_nobody() -> None:
    """Neither with others nor with itself."""
    async with worker() as h:
        nobody = replace(IDENTITY, key_hash=None, tenant=None)
        for _ in range(2):
            assert len((await ask(h, ASKED, identity=nobody)).attempts) == 1


@pytest.mark.parametrize(
    "script",
    [
        ok("half of", finish_reason="length"),
        ok("", tool_calls=[ToolCall(name="f")]),
        ok("x" * 30_000),
        error(400),
    ],
    ids=["cut short", "a tool", "too long", "an error"],
)
async def test_only_whole_answers_are_kept(script: Step) -> None:
    """What is not a text that ended by itself is asked for again."""
    async with worker() as h:
        await ask(h, ASKED, script=script)
        assert len((await ask(h, ASKED)).attempts) == 1
        assert await h.stored("semantic-cache") != {}, "the second one is kept"


async def test_an_answer_that_the_client_did_not_get_is_not_kept() -> None:
    """A client that leaves a stream has not got it."""
    async with worker() as h:
        left = await ask(h, ASKED, stream=True, leave_after_pieces=1)
        assert left.outcome is Outcome.DISCONNECTED
        assert await h.stored("semantic-cache") == {}


@pytest.mark.parametrize("embedding", [error(500), never(), ok(embed=lambda _: []), ok(embed=lambda _: [0.0, 0.0])])
async def test_without_an_embedding_the_model_answers(embedding: Step) -> None:
    """The cache's own trouble reaches no client."""
    async with worker(embedding) as h:
        for _ in range(2):
            result = await ask(h, ASKED)
            assert (result.status, result.text, len(result.attempts)) == (200, ANSWER, 1)
        assert h.faults == {}


async def test_answers_grow_old_and_make_room() -> None:
    """None is used after its time, and a caller's answers never outgrow their bound."""
    async with worker(ttl_s=60.0, max_answers=32) as h:
        await ask(h, ASKED)
        await h.clock.advance(61.0)
        assert len((await ask(h, ASKED)).attempts) == 1
        for number in range(80):
            await ask(h, f"question {number} of {number * number} and more {number}")
        rows: Any = await h.stored("semantic-cache")
        assert sum(len(row) for row in rows.values()) <= 32


async def test_an_answer_outlives_its_worker() -> None:
    """It is in the store, where all workers find it."""
    async with worker() as h:
        await ask(h, ASKED)
        await h.restart()
        assert (await ask(h, ASKED)).attempts == ()


@given(st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=64), st.data())
def test_packing_keeps_directions(vector: list[float], data: st.DataObject) -> None:
    """A vector is like itself at any length, and never more like another one than the exact cosine says, but for rounding."""
    kept = packed(vector)
    if kept is None:
        assert not any(vector)
        return
    scale = data.draw(st.floats(0.01, 100))
    scaled = packed([value * scale for value in vector])
    assert scaled is None or similarity(kept, scaled) > 0.999
    assert similarity(kept, packed([1.0]) or "") == -1.0
