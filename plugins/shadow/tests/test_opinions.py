"""Judges and embeddings: asked beside the request path, paid by the mirror, and never more than an opinion."""

from __future__ import annotations

import pytest

from pointsman.testing import error, never, ok
from pointsman.testing.play import answer_body
from pointsman.testing.script import USAGE
from pointsman.types import AttemptKind, Endpoint

A, B, TIE = ok('{"verdict": "A"}'), ok('{"verdict": "B"}'), ok("It is a tie: [[tie]]")


def questions(worker):
    """Return the judge's calls."""
    return [c for c in worker.gateway.upstream.calls if c.request.kind is AttemptKind.JUDGE]


async def judged(shadows, kit, first, second, **fields):
    """Return what is shown after one pair that a judge was asked about."""
    section = kit.mirror(judge={"model": "judge"}, time_limit_s=5, **fields)
    worker = await shadows.worker(section)
    worker.gateway.upstream.answer({"judge": [first, second], "new": ok("the challenger's words")})
    body = {"messages": [{"role": "user", "content": "what is it?"}]}
    await worker.request(body=body, script=ok("the champion's words"))
    await shadows.rest(worker, 10)
    return worker, await shadows.shown(worker)


@pytest.mark.parametrize(
    ("first", "second", "score", "counted"),
    [
        (A, B, 0.0, {}),
        (B, A, 1.0, {}),
        (A, A, 0.5, {"contradicted": 1}),
        (TIE, TIE, 0.5, {}),
        (ok("hm"), A, None, {"unread": 1}),
        (error(500), A, None, {"failed": 1}),
        (never(), never(), None, {"failed": 2}),
    ],
)
async def test_a_judge_is_asked_twice_with_the_answers_in_either_order(shadows, kit, *, first, second, score, counted):
    worker, shown = await judged(shadows, kit, first, second)
    asked = [call.request.body["messages"][1]["content"] for call in questions(worker)]
    places = [text.index("the champion's words") < text.index("the challenger's words") for text in asked]
    assert places == [True, False]
    assert all("user: what is it?" in text for text in asked)
    assert shown["pairs"] == 1
    assert shown["judge"] == {"failed": 0, "unread": 0, "contradicted": 0, **counted}
    figures = {figure["metric"]: figure for figure in shown["figures"]}
    assert (figures["judge"]["mean"] if "judge" in figures else None) == score


async def test_the_judge_is_paid_by_the_mirrors_account(shadows, kit):
    worker, shown = await judged(shadows, kit, A, B, budget={"tokens_per_day": 10_000})
    assert {call.request.tenant for call in questions(worker)} == {"shadow:next"}
    assert shown["spent"]["tokens"] == shown["today"]["tokens"] == 45
    (settlement,) = worker.settlements
    assert [attempt.kind for attempt in settlement.attempts] == [AttemptKind.PRIMARY]


async def test_what_is_judged_is_sampled(shadows, kit):
    worker = await shadows.worker(kit.mirror(judge={"model": "judge", "sample_rate": 0.0}))
    await worker.request()
    assert (await shadows.shown(worker))["pairs"] == 1
    assert not questions(worker)


async def test_no_judge_for_an_answer_that_failed(shadows, kit):
    worker = await shadows.worker(kit.mirror(judge={"model": "judge"}))
    worker.gateway.upstream.answer({"new": error(500)})
    await worker.request()
    assert (await shadows.shown(worker))["pairs"] == 1
    assert not questions(worker)


async def test_the_judges_calls_count_against_the_concurrency_limit(shadows, kit):
    """A slow judge holds up mirrors, never clients."""
    worker = await shadows.worker(kit.mirror(judge={"model": "judge"}, max_concurrent=1, max_wait_s=500))
    worker.gateway.upstream.answer({"judge": ok('{"verdict": "A"}', latency_s=30.0)})
    for _ in range(2):
        await worker.request(moves_clock=False)
    await worker.settled()
    await shadows.clock.advance(1.0)
    assert len(worker.gateway.upstream.running) == 2
    assert len({call.request.labels["primary"] for call in worker.gateway.upstream.running}) == 1
    assert (await shadows.shown(worker))["worker"]["alive"] >= 1
    await shadows.rest(worker, 100)
    assert (await shadows.shown(worker))["pairs"] == 2


@pytest.mark.parametrize(("step", "similar", "failed"), [(ok("x"), 1.0, 0), (error(500), None, 1), (never(), None, 1)])
async def test_embeddings(shadows, kit, step, similar, failed):
    """One call with both texts; without an answer the pair is compared all the same."""
    worker = await shadows.worker(kit.mirror(embedding={"model": "embed"}, time_limit_s=5))
    worker.gateway.upstream.answer({"embed": step, "new": ok("challenger")})
    await worker.request(script=ok("champion"))
    await shadows.rest(worker, 10)
    shown = await shadows.shown(worker)
    (call,) = questions(worker)
    assert (call.request.endpoint, call.request.body) == (
        Endpoint.EMBEDDINGS,
        {"input": ["champion", "challenger"]},
    )
    assert (shown["pairs"], shown["embedding_failed"]) == (1, failed)
    figures = {figure["metric"]: figure["mean"] for figure in shown["figures"]}
    assert figures.get("embedding") == similar


@pytest.mark.parametrize(
    ("vectors", "similar", "failed"),
    [
        ([[1.3e154, 1.3e154], [1.3e154, 1.3e154]], 1.0, 0),
        ([[10**400, 1], [1, 1]], None, 1),
        ([[float("nan"), 1.0], [1.0, 1.0]], None, 1),
    ],
)
async def test_embeddings_out_of_the_ordinary_are_paid_all_the_same(
    shadows, kit, monkeypatch, *, vectors, similar, failed
):
    """However large their numbers are."""

    def body(endpoint, *args):
        made = answer_body(endpoint, *args)
        for item, vector in zip(made.get("data", ()), vectors, strict=False):
            item["embedding"] = vector
        return made

    monkeypatch.setattr("pointsman.testing.calls.answer_body", body)
    worker = await shadows.worker(kit.mirror(embedding={"model": "embed"}))
    await worker.request()
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["embedding_failed"]) == (1, failed)
    assert {figure["metric"]: figure["mean"] for figure in shown["figures"]}.get("embedding") == similar
    # The mirror's own call and the embedding model's.
    assert shown["spent"]["tokens"] == 2 * USAGE.total_tokens
    assert worker.faults == {}
