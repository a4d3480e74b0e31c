"""Judges and embeddings: asked off the request path, paid by the mirror, and never more than an opinion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import error, never, ok
from pointsman.testing.play import answer_body
from pointsman.testing.script import USAGE
from pointsman.types import Answer, AttemptKind, Endpoint, ToolCall
from pointsman_shadow import judge
from pointsman_shadow.judge import Verdict

A, B, TIE = Verdict.A, Verdict.B, Verdict.TIE


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "A"}', A),
        ('```json\n{"verdict": "b"}\n```', B),
        ('Both are fine. {"reason": "x", "verdict": "tie"}', TIE),
        ('{"Winner": "Answer B"}', B),
        ("[[A]]", A),
        ("Final: [[C]]", TIE),
        ("A", A),
        ("**B**.", B),
        ("Answer A", A),
        ("Verdict: B", B),
        ("The better answer is A.", A),
        ("My verdict: **tie**", TIE),
        ("", None),
        ("A cat sat on a mat.", None),
        ("I cannot decide.", None),
        ('{"verdict": "A"} or maybe {"verdict": "B"}', None),
        ('{"verdict": 1}', None),
        ('{"verdict": "Z"}', None),
        ("{" * 10_000, None),
    ],
)
def test_a_verdict_in_a_judges_words(text, verdict):
    assert judge.read(text) == verdict


@given(st.text(max_size=400))
def test_any_text_is_read(text):
    assert judge.read(text) in {None, *Verdict}


@given(st.text(alphabet=st.characters(exclude_characters="{}[]"), max_size=80), st.sampled_from(list(Verdict)))
def test_a_verdict_is_found_whatever_is_said_around_it(noise, verdict):
    assert judge.read(f'{noise}\n{{"verdict": "{verdict}"}}\n{noise}') is verdict


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["answer " * 5000, "{" * 20_000, "[[" * 10_000, "verdict" + " " * 20_000, "a" * 20_000]
)
def test_no_text_takes_long(text):
    """The patterns do not backtrack without end."""
    judge.read(text)


@pytest.mark.parametrize(
    ("champion_first", "challenger_first", "score", "contradicts"),
    [
        (A, B, 0.0, False),
        (B, A, 1.0, False),
        (A, A, 0.5, True),
        (B, B, 0.5, True),
        (TIE, TIE, 0.5, False),
        (A, TIE, 0.5, False),
        (TIE, A, 0.5, False),
        (None, A, None, False),
        (B, None, None, False),
        (None, None, None, False),
    ],
)
def test_only_a_preference_that_survives_the_change_of_places_counts(
    champion_first, challenger_first, score, contradicts
):
    assert judge.score(champion_first, challenger_first) == score
    assert judge.contradicts(champion_first, challenger_first) == contradicts


def test_the_judge_does_not_learn_whose_answer_it_reads():
    system, user = judge.question("Which is better?", "user: hi", "one", "two", "f00d")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].index("one") < user["content"].index("two")
    assert not {"champion", "challenger", "primary", "mirror"} & set(
        (system["content"] + user["content"]).lower().split()
    )
    assert user["content"].count("f00d") == 6


def test_calls_of_tools_are_shown_and_long_answers_cut():
    answer = Answer(text="ok", tool_calls=(ToolCall(name="f", arguments='{"x": 1}'),))
    assert judge.shown(answer, 1000) == 'ok\n(calls the tool f with {"x": 1})'
    assert judge.shown(Answer(text="x" * 100), 10) == "x" * 10


SAYS_A, SAYS_B, SAYS_TIE = ok('{"verdict": "A"}'), ok('{"verdict": "B"}'), ok("It is a tie: [[tie]]")


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
        (SAYS_A, SAYS_B, 0.0, {}),
        (SAYS_B, SAYS_A, 1.0, {}),
        (SAYS_A, SAYS_A, 0.5, {"contradicted": 1}),
        (SAYS_TIE, SAYS_TIE, 0.5, {}),
        (ok("hm"), SAYS_A, None, {"unread": 1}),
        (error(500), SAYS_A, None, {"failed": 1}),
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
    worker, shown = await judged(shadows, kit, SAYS_A, SAYS_B, budget={"tokens_per_day": 10_000})
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


async def test_whatever_is_asked_about_a_pair_links_to_its_request_and_its_mirror_and_they_to_it(shadows, kit):
    """They begin after the request has ended, when its span takes no more links."""
    section = kit.mirror(judge={"model": "judge"}, embedding={"model": "embed"})
    worker = await shadows.worker(section, tracing=True)
    worker.gateway.upstream.answer({"judge": SAYS_A, "new": ok("challenger")})
    await worker.request(script=ok("champion"))
    await shadows.rest(worker, 10)
    roots = [span for span in worker.spans if span.attributes.get("pointsman.kind")]
    (primary,) = [span for span in roots if span.attributes["pointsman.kind"] == "request"]
    (mirror,) = [span for span in roots if span.attributes["pointsman.kind"] == "mirror"]
    asked = [span for span in roots if span.attributes["pointsman.kind"] == "judge"]
    assert sorted(span.name for span in asked) == ["judge embed", "judge judge", "judge judge"]
    there = [(link.context.span_id, link.attributes["pointsman.link"]) for link in primary.links]
    for span in asked:
        assert (span.context.span_id, "judge") in there
        assert [link.context.span_id for link in span.links] == [primary.context.span_id, mirror.context.span_id]
        assert span.context.span_id in [link.context.span_id for link in mirror.links]
        assert span.attributes["pointsman.outcome"] == "ok"
        assert span.start_time < primary.end_time


@pytest.mark.parametrize(
    ("challenger", "champion", "why"),
    [(error(500), "champion", "no_answer"), (ok("challenger"), "", "no_text")],
)
async def test_what_is_not_asked_about_a_pair_after_all_says_why(shadows, kit, challenger, champion, why):
    worker = await shadows.worker(kit.mirror(embedding={"model": "embed"}), tracing=True)
    worker.gateway.upstream.answer({"new": challenger})
    await worker.request(script=ok(champion))
    await shadows.rest(worker, 10)
    (span,) = [span for span in worker.spans if span.attributes.get("pointsman.kind") == "judge"]
    assert span.attributes["pointsman.outcome"] == "cancelled"
    assert span.attributes["pointsman.ended_because"] == why
    assert not questions(worker)


async def test_what_waits_to_be_asked_when_the_worker_ends_leaves_no_span_open(shadows, kit):
    worker = await shadows.worker(kit.mirror(judge={"model": "judge"}, max_concurrent=1), tracing=True)
    worker.gateway.upstream.answer({"judge": never(), "new": ok("challenger")})
    for _ in range(3):
        await worker.request(script=ok("champion"), moves_clock=False)
    await worker.settled()
    await shadows.clock.advance(0.5)
    await worker.__aexit__(None, None, None)
    spans = [span for span in worker.spans if span.attributes.get("pointsman.kind") == "judge"]
    assert len(spans) == 6
    assert {span.attributes["pointsman.outcome"] for span in spans} == {"cancelled"}
