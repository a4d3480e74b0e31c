"""A challenger that keeps failing is left alone for a while."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import error, ok
from pointsman.types import Outcome
from pointsman_shadow.comparison import Side
from pointsman_shadow.config import ShadowConfig
from pointsman_shadow.line import Line
from pointsman_shadow.pace import PROBE_S, Pace
from pointsman_shadow.pairs import Pair
from pointsman_shadow.rest import FIRST_S, LONGEST_S, Rest

ANSWERED = Side(outcome=Outcome.OK)
FAILED = Side(outcome=Outcome.ERROR, error="server")


def test_each_rest_is_twice_as_long_until_there_is_an_answer():
    rest, now, rests = Rest(3), 0.0, []
    assert [rest.failed("server", now) for _ in range(3)] == [False, False, True]
    for _ in range(9):
        rests.append(rest.until - now)
        assert not rest.asks(rest.until - 0.01)
        now = rest.until
        assert rest.asks(now)
        assert not rest.asks(now), "once, whether or not it has failed by now"
        assert not rest.failed("timeout", now)
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    rest.answered()
    assert rest.asks(now)
    assert [rest.failed("server", 1000.0 + n) for n in range(3)] == [False, False, True]
    assert rest.until == 1003.0


def test_what_was_under_way_does_not_make_it_longer():
    rest = Rest(2)
    assert [rest.failed("server", float(second)) for second in range(50)].count(True) == 1
    assert rest.until == 1.0 + FIRST_S
    rest.answered()
    assert rest.asks(51.0), "the answer of one that was under way is an answer"


def test_what_is_not_the_challengers_fault_says_nothing_about_it():
    rest = Rest(1)
    assert not any(rest.failed(kind, 0.0) for kind in ("client", "content_policy", "context_window", "refused"))
    assert rest.failures == 0
    assert rest.failed(None, 0.0)


@pytest.mark.parametrize("tell", [Rest.unasked, lambda rest: rest.failed("client", 1.0)])
def test_a_call_that_was_not_made_or_told_nothing_leaves_the_rest_as_it_was(tell):
    rest = Rest(1)
    rest.failed("server", 0.0)
    for _ in range(20):
        assert rest.asks(1.0)
        assert rest.asking
        assert not rest.asks(1.0)
        tell(rest)
        assert not rest.asking
    assert rest.asks(1.0)
    rest.failed("server", 1.5)
    assert rest.until == 3.5, "the second rest is the first one's double, whatever was not asked meanwhile"


def test_one_that_never_ends_does_not_keep_it_at_rest_for_ever():
    rest = Rest(1)
    rest.failed("server", 0.0)
    assert rest.asks(1.0)
    assert not rest.asks(LONGEST_S)
    assert rest.asks(1.0 + LONGEST_S)


def test_nobody_is_let_go_who_was_not_asked():
    rest = Rest(1)
    rest.failed("server", 0.0)
    rest.unasked()
    assert not rest.asks(0.5)


def test_a_mirror_may_do_without():
    rest = Rest(None)
    assert not any(rest.failed("server", float(n)) for n in range(1000))
    assert rest.asks(1000.0)


@given(
    after=st.integers(1, 5),
    events=st.lists(
        st.tuples(st.sampled_from(["ok", "server", "client", "unasked", "ask"]), st.floats(0, 100)), max_size=60
    ),
)
def test_it_is_never_left_alone_for_longer_than_a_minute(after, events):
    rest, now = Rest(after), 0.0
    for event, passed_s in events:
        now += passed_s
        if event == "ok":
            rest.answered()
        elif event == "unasked":
            rest.unasked()
        elif event == "ask":
            due = not rest.resting or now >= rest.until
            assert rest.asks(now) == due
        else:
            assert not rest.failed(event, now) or rest.failures == after
        assert rest.resting == (rest.failures >= after)
        assert rest.until <= now + LONGEST_S


async def test_a_dead_challenger_is_asked_now_and_then(shadows, kit):
    """The operator is told, what is not mirrored is counted, and the first answer ends it."""
    worker = await shadows.worker(kit.mirror(rest_after=4))
    worker.gateway.upstream.answer({"new": error(500)})

    async def ask(times):
        for _ in range(times):
            await worker.request(moves_clock=False)
            await shadows.clock.advance(2 * PROBE_S)

    await ask(10)
    (problem,) = (await worker.admin.get("/shadow")).json()["problems"]
    assert problem == "next: new has failed 4 times in a row; it is asked again in 1 s"
    shown = await shadows.shown(worker)
    assert shown["mirrored"] == 4
    assert shown["reasons"]["dropped"] == {"challenger_rests": 6}

    await shadows.clock.advance(1.0)
    await ask(3)
    assert (await shadows.shown(worker))["mirrored"] == 5

    worker.gateway.upstream.answer({"new": ok("well again")})
    await shadows.clock.advance(2.0)
    await ask(5)
    assert (await shadows.shown(worker))["mirrored"] == 10, "the first answer ends it"
    assert (await worker.admin.get("/shadow")).json()["problems"] == []


@pytest.mark.parametrize("waiting", [1, 5])
async def test_those_that_wait_when_a_rest_begins_are_dropped(shadows, kit, waiting):
    worker = await shadows.worker(kit.mirror(max_concurrent=1, queue_size=50, rest_after=1, max_wait_s=500))
    worker.gateway.upstream.answer({"new": error(500, latency_s=30.0)})
    for _ in range(1 + waiting):
        await worker.request(moves_clock=False)
    await shadows.rest(worker, 40.0)
    shown = await shadows.shown(worker)
    assert (shown["mirrored"], shown["reasons"]["dropped"]) == (1, {"challenger_rests": waiting})
    assert len(kit.mirrors_of(worker)) == 1, "none of them was sent later"


async def test_a_call_that_found_no_place_says_nothing_about_the_challenger(shadows, kit, monkeypatch):
    """The first call fails; then the worker itself is too busy for a while; then all is well."""
    worker = await shadows.worker(kit.mirror(rest_after=1, max_wait_s=1))
    worker.gateway.upstream.answer({"new": error(500)})
    await worker.request()
    await shadows.rest(worker, 1.5)
    worker.gateway.upstream.answer({"new": ok("well again")})
    with monkeypatch.context() as busy:
        busy.setattr(Pace, "busy", True)
        for _ in range(60):
            await worker.request(moves_clock=False)
            await shadows.clock.advance(2.0)
    assert len(kit.mirrors_of(worker)) == 1
    assert (await shadows.shown(worker))["reasons"]["dropped"]["busy"] > 10
    await worker.request(moves_clock=False)
    await shadows.clock.advance(0.5)
    assert len(kit.mirrors_of(worker)) == 2
    assert (await worker.admin.get("/shadow")).json()["problems"] == []


def line_of(kit):
    config = ShadowConfig.model_validate({"mirrors": [kit.mirror(rest_after=1)]})
    return Line(config.mirrors[0], None)


def test_pairs_that_wait_for_an_opinion_stay_when_a_rest_begins(kit):
    line = line_of(kit)
    unasked, judged = (Pair(None, {}, copy_context(), 0.0) for _ in range(2))
    judged.challenger = FAILED
    line.queue.extend((unasked, judged))
    line.alive = 2
    line.mirrored(FAILED, 0.0)
    assert list(line.queue) == [judged]
    assert (unasked.over, judged.over, line.alive) == (True, False, 1)


def test_an_answer_from_a_cache_does_not_end_a_rest(kit):
    line = line_of(kit)
    line.mirrored(FAILED, 0.0)
    line.mirrored(replace(ANSWERED, cached=True), 0.0)
    assert line.rest.resting
    line.mirrored(ANSWERED, 0.0)
    assert not line.rest.resting
