"""A challenger that keeps failing is left alone for a while; a worker that is late with everything takes on no mirrors."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, Harness, error, ok
from pointsman.types import Outcome
from pointsman_shadow.comparison import Pair, Side
from pointsman_shadow.config import ShadowConfig
from pointsman_shadow.mirror import Mirror
from pointsman_shadow.plugin import plugin
from pointsman_shadow.throttle import FIRST_BACKOFF_S, MAX_BACKOFF_S, PROBE_S, Backoff, LoopLag

ANSWERED = Side(outcome=Outcome.OK)
FAILED = Side(outcome=Outcome.ERROR, error="server")


def test_each_backoff_is_twice_as_long_until_there_is_an_answer():
    backoff, now, rests = Backoff(3), 0.0, []
    assert [backoff.failed("server", now) for _ in range(3)] == [False, False, True]
    for _ in range(9):
        rests.append(backoff.until - now)
        assert not backoff.allows(backoff.until - 0.01)
        now = backoff.until
        assert backoff.allows(now)
        assert not backoff.allows(now), "once, whether or not it has failed by now"
        assert not backoff.failed("timeout", now)
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.answered()
    assert backoff.allows(now)
    assert [backoff.failed("server", 1000.0 + n) for n in range(3)] == [False, False, True]
    assert backoff.until == 1003.0


def test_what_was_under_way_does_not_make_it_longer():
    backoff = Backoff(2)
    assert [backoff.failed("server", float(second)) for second in range(50)].count(True) == 1
    assert backoff.until == 1.0 + FIRST_BACKOFF_S
    backoff.answered()
    assert backoff.allows(51.0), "the answer of one that was under way is an answer"


def test_what_is_not_the_challengers_fault_says_nothing_about_it():
    backoff = Backoff(1)
    assert not any(backoff.failed(kind, 0.0) for kind in ("client", "content_policy", "context_window", "refused"))
    assert backoff.failures == 0
    assert backoff.failed(None, 0.0)


@pytest.mark.parametrize("tell", [Backoff.abandoned, lambda backoff: backoff.failed("client", 1.0)])
def test_a_call_that_was_not_made_or_showed_nothing_leaves_the_backoff_as_it_was(tell):
    backoff = Backoff(1)
    backoff.failed("server", 0.0)
    for _ in range(20):
        assert backoff.allows(1.0)
        assert backoff.trying
        assert not backoff.allows(1.0)
        tell(backoff)
        assert not backoff.trying
    assert backoff.allows(1.0)
    backoff.failed("server", 1.5)
    assert backoff.until == 3.5, "the second rest is the first one's double, whatever was not asked meanwhile"


def test_a_trial_call_that_never_ends_does_not_prolong_the_backoff_for_ever():
    backoff = Backoff(1)
    backoff.failed("server", 0.0)
    assert backoff.allows(1.0)
    assert not backoff.allows(MAX_BACKOFF_S)
    assert backoff.allows(1.0 + MAX_BACKOFF_S)


def test_only_a_trial_call_can_be_abandoned():
    backoff = Backoff(1)
    backoff.failed("server", 0.0)
    backoff.abandoned()
    assert not backoff.allows(0.5)


def test_a_mirror_may_do_without():
    backoff = Backoff(None)
    assert not any(backoff.failed("server", float(n)) for n in range(1000))
    assert backoff.allows(1000.0)


@given(
    after=st.integers(1, 5),
    events=st.lists(
        st.tuples(st.sampled_from(["ok", "server", "client", "unasked", "ask"]), st.floats(0, 100)), max_size=60
    ),
)
def test_it_is_never_left_alone_for_longer_than_a_minute(after, events):
    backoff, now = Backoff(after), 0.0
    for event, passed_s in events:
        now += passed_s
        if event == "ok":
            backoff.answered()
        elif event == "unasked":
            backoff.abandoned()
        elif event == "ask":
            due = not backoff.active or now >= backoff.until
            assert backoff.allows(now) == due
        else:
            assert not backoff.failed(event, now) or backoff.failures == after
        assert backoff.active == (backoff.failures >= after)
        assert backoff.until <= now + MAX_BACKOFF_S


async def test_a_dead_challenger_is_asked_now_and_then(shadows, kit):
    """The status reports it, what is not mirrored is counted, and the first answer ends it."""
    worker = await shadows.worker(kit.mirror(rest_after=4))
    worker.gateway.upstream.answer({"new": error(500)})

    async def ask(times):
        for _ in range(times):
            await worker.request(moves_clock=False)
            await shadows.clock.advance(2 * PROBE_S)

    await ask(10)
    (problem,) = (await worker.admin.get("/shadow")).json()["problems"]
    assert problem == "next: new has failed 4 consecutive calls; the next trial call is in 1 s"
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
async def test_pairs_that_wait_when_a_backoff_begins_are_dropped(shadows, kit, waiting):
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
        busy.setattr(LoopLag, "busy", True)
        for _ in range(60):
            await worker.request(moves_clock=False)
            await shadows.clock.advance(2.0)
    assert len(kit.mirrors_of(worker)) == 1
    assert (await shadows.shown(worker))["reasons"]["dropped"]["busy"] > 10
    await worker.request(moves_clock=False)
    await shadows.clock.advance(0.5)
    assert len(kit.mirrors_of(worker)) == 2
    assert (await worker.admin.get("/shadow")).json()["problems"] == []


def mirror_of(kit):
    config = ShadowConfig.model_validate({"mirrors": [kit.mirror(rest_after=1)]})
    return Mirror(config.mirrors[0], None)


def test_pairs_that_wait_for_a_review_stay_when_a_backoff_begins(kit):
    mirror = mirror_of(kit)
    unasked, judged = (Pair(None, {}, copy_context(), 0.0) for _ in range(2))
    judged.challenger = FAILED
    mirror.queue.extend((unasked, judged))
    mirror.alive = 2
    mirror.mirrored(FAILED, 0.0)
    assert list(mirror.queue) == [judged]
    assert (unasked.over, judged.over, mirror.alive) == (True, False, 1)


def test_an_answer_from_a_cache_does_not_end_a_backoff(kit):
    mirror = mirror_of(kit)
    mirror.mirrored(FAILED, 0.0)
    mirror.mirrored(replace(ANSWERED, cached=True), 0.0)
    assert mirror.backoff.active
    mirror.mirrored(ANSWERED, 0.0)
    assert not mirror.backoff.active


class LateClock(FakeClock):
    """A clock whose sleepers are woken late, as on a busy event loop."""

    late_s = 0.0

    async def sleep(self, seconds):
        await super().sleep(seconds + self.late_s)


@pytest.fixture
async def worker(kit, leak_check):
    clock = LateClock()
    store = MemoryStore(clock=clock.now)
    section = {"mirrors": [kit.mirror(max_wait_s=2)], "max_lag_ms": 20}
    async with Harness([(plugin, section)], deployments=kit.deployments, clock=clock, store=store) as harness:
        yield harness
    await store.close()


async def reasons(worker):
    return (await worker.admin.get("/shadow/next")).json()["reasons"]["dropped"]


async def test_while_the_worker_is_late_mirrors_wait_and_then_go(worker, kit):
    """A short stall puts a mirror off; it is not lost."""
    worker.clock.late_s = 0.1
    await worker.request()
    await worker.clock.advance(0.5)
    assert not kit.mirrors_of(worker)
    assert worker.status("shadow").details["lag_ms"] == pytest.approx(100)
    worker.clock.late_s = 0.0
    await worker.clock.advance(1.2)
    assert len(kit.mirrors_of(worker)) == 1
    assert await reasons(worker) == {}


async def test_a_worker_that_stays_late_drops_them(worker, kit):
    """And counts them; the caller has long been answered."""
    worker.clock.late_s = 0.1
    assert (await worker.request()).status == 200
    await worker.clock.advance(10)
    assert not kit.mirrors_of(worker)
    assert await reasons(worker) == {"busy": 1}


async def test_a_burst_is_spread(worker, kit):
    """One mirror a probe, so that a client's request never waits behind a row of them."""
    for _ in range(4):
        await worker.request(moves_clock=False)
    started = []
    for _ in range(4):
        await worker.clock.advance(PROBE_S)
        started.append(len(kit.mirrors_of(worker)))
    assert started == [1, 2, 3, 4]


def test_the_mean_follows_within_half_a_second():
    lag = LoopLag(0.02)
    for number in range(100):
        lag.note(0.05, number * PROBE_S)
    assert lag.busy
    for number in range(100, 200):
        lag.note(0.0, number * PROBE_S)
    assert not lag.busy
    lag.note(-1.0, 5.0)
    assert lag.lag_s >= 0
