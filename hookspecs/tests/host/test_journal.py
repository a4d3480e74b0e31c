"""Settlements: each one exactly once while nothing dies, none lost when something does."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host.journal import (
    HEARTBEAT_TTL_S,
    RETRY_MOST_S,
    Entry,
    dump,
    parse,
    restored_context,
)
from pointsman.store import open_store
from pointsman.testing import FakeClock, error, ok
from pointsman.testing.harness import NotSettledError
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Denial,
    Deployment,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Reservation,
    Route,
    Settlement,
    Usage,
)

pytestmark = pytest.mark.usefixtures("leak_check")


class Ledger:
    """Writes down who was settled when; fails as long as it is told to."""

    def __init__(self, config):
        self.failing = False
        self.gate = None
        self.seen = []

    @hookimpl
    async def startup(self, services):
        self.clock = services.clock

    @hookimpl
    async def settle(self, ctx, settlement):
        self.seen.append((self.clock.monotonic(), ctx, settlement))
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise RuntimeError("not now")

    @property
    def ids(self):
        return [settlement.request_id for _, _, settlement in self.seen]


def ledger(name):
    return PluginInfo(name=name, config=PluginConfig, factory=Ledger)


ONE, TWO = ledger("one"), ledger("two")


async def rows(h):
    """Return the journal's rows in the store."""
    return {key: value for key, value in await h.store.scan("host/journal/") if isinstance(value, dict)}


def counts(h):
    return h.host.describe()["journal"]


async def pass_time(clock, seconds=3 * HEARTBEAT_TTL_S):
    """Let so much time pass that heartbeats end and dead workers' rows are looked for."""
    for _ in range(round(seconds)):
        await clock.advance(1.0)


@pytest.fixture
async def shared():
    """A clock and a store that several workers share."""
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    yield {"clock": clock, "store": store}
    await store.close()


# -- nothing dies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window_ms", [0, 50])
async def test_every_request_is_settled_once(harness, window_ms):
    """A hundred requests at once, of every kind: each is settled once by each plugin, and no row is left."""
    async with harness([ONE, TWO], host={"journal_window_ms": window_ms}) as h:
        before = h.store.calls["update"]
        results = await asyncio.gather(*(h.request(script=error(400) if i % 3 else ok()) for i in range(100)))
        await h.clock.advance(1.0)
        await h.settled()
        wanted = sorted(result.request_id for result in results)
        assert sorted(h.plugin("one").ids) == sorted(h.plugin("two").ids) == wanted
        assert (counts(h)["submitted"], counts(h)["settled"], counts(h)["retried"]) == (100, 100, 0)
        if window_ms:
            assert h.store.calls["update"] - before < 10, "settlements of one window share a write"
        await h.restart()
        assert await rows(h) == {}


async def test_a_settlement_is_in_the_store_before_it_is_acted_on(harness):
    """While ``settle`` runs, the row is there, with those who have not been asked; afterwards it goes away."""
    async with harness([ONE, TWO]) as h:
        one = h.plugin("one")
        one.gate = asyncio.Event()
        result = await h.request()
        await h.clock.quiet()
        ((row),) = (await rows(h)).values()
        (entry,) = parse(row)
        assert (entry.settlement.request_id, entry.pending) == (result.request_id, ["one", "two"])
        one.gate.set()
        await h.settled()
        await h.request()
        await h.settled()
        assert len(await rows(h)) == 1, "a finished row goes with the next write"


async def test_without_a_settling_plugin_nothing_is_written(harness, plugin):
    class Mute:
        pass

    async with harness([plugin(Mute)]) as h:
        await h.request()
        await h.settled()
        assert (counts(h)["submitted"], await rows(h)) == (0, {})


async def test_a_plugin_that_fails_is_asked_again_with_growing_delay(harness):
    """One second, then twice as long each time up to a minute, until it succeeds; the others are not asked again."""
    async with harness([ONE, TWO]) as h:
        one = h.plugin("one")
        one.failing = True
        await h.request()
        await h.clock.advance(200.0)
        gaps = [later - earlier for earlier, later in pairwise(at for at, _, _ in one.seen)]
        assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, RETRY_MOST_S, RETRY_MOST_S]
        assert counts(h)["waiting"] == {"one": 1}
        one.failing = False
        await h.clock.advance(RETRY_MOST_S)
        await h.settled()
        assert (len(h.plugin("two").seen), counts(h)["settled"], counts(h)["waiting"]) == (1, 1, {})


async def test_one_failing_request_does_not_hold_up_others(harness):
    """Requests that come later are settled while an earlier one waits for its next try."""
    async with harness([ONE]) as h:
        one = h.plugin("one")
        one.failing = True
        first = await h.request()
        await h.clock.advance(0.5)
        one.failing = False
        second = await h.request()
        await h.clock.advance(0.1)
        assert one.ids == [first.request_id, second.request_id]
        await h.clock.advance(1.0)
        await h.settled()
        assert one.ids == [first.request_id, second.request_id, first.request_id]


# -- the store fails --------------------------------------------------------------------------------------------------


async def test_with_the_store_down_it_is_still_settled_and_counted(harness):
    """The hooks run from memory; what could not be written down is counted, and later requests are journaled again."""
    async with harness([ONE]) as h:
        h.store.down = True
        result = await h.request()
        await h.settled()
        assert h.plugin("one").ids == [result.request_id]
        assert counts(h)["unjournaled"] == 1
        assert h.faults["pointsman.journal"] == 1
        h.store.down = False
        await h.request()
        await h.settled()
        assert (counts(h)["unjournaled"], counts(h)["settled"]) == (1, 2)


async def test_a_row_that_could_not_be_written_is_written_when_a_plugin_fails(harness, shared):
    """A settlement that is still waiting when the store comes back is written down then, and survives a crash."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").failing = True
        a.store.down = True
        result = await a.request()
        await a.clock.quiet()
        a.store.down = False
        await a.clock.advance(1.5)
        assert len(await rows(a)) == 1
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            assert b.plugin("one").ids == [result.request_id]


async def test_a_value_the_store_cannot_keep_does_not_stop_the_journal(harness):
    """A client's name with half a character in it cannot be written down, but is settled, and so is who comes after."""
    async with harness([ONE]) as h:
        odd = await h.request(identity=Identity(end_user="\ud800"))
        await h.settled()
        plain = await h.request()
        await h.settled()
        assert h.plugin("one").ids == [odd.request_id, plain.request_id]
        assert counts(h)["unjournaled"] == 1


async def test_with_the_store_down_the_stop_still_ends(harness):
    """Shutting down with a store that fails neither hangs nor raises, and every plugin is shut down."""
    async with harness([ONE]) as h:
        await h.request()
        await h.settled()
        h.store.down = True
        await h.request()
        async with asyncio.timeout(30):
            await h.stop()
        assert len(h.plugin("one").seen) == 2


# -- a worker dies ----------------------------------------------------------------------------------------------------


async def test_what_a_dead_worker_left_is_settled_once_by_another(harness, shared):
    """Of two that survive, one takes the row over, when the dead one's heartbeat has ended and not before."""
    async with (
        harness([ONE], name="a", **shared) as a,
        harness([ONE], name="b", **shared) as b,
        harness([ONE], name="c", **shared) as c,
    ):
        a.plugin("one").gate = asyncio.Event()
        results = [await a.request() for _ in range(5)]
        await a.clock.quiet()
        await a.crash()
        await pass_time(a.clock, HEARTBEAT_TTL_S - 6.0)
        assert b.plugin("one").seen == c.plugin("one").seen == []
        await pass_time(a.clock)
        settled = Counter(b.plugin("one").ids + c.plugin("one").ids)
        assert settled == {result.request_id: 1 for result in results}
        assert counts(b)["recovered"] + counts(c)["recovered"] == 5
        await pass_time(a.clock)
        assert Counter(b.plugin("one").ids + c.plugin("one").ids) == settled


async def test_after_a_crash_only_those_are_asked_who_have_not_settled(harness, shared):
    """Progress is written down: who has settled before the crash is not asked by the next worker."""
    async with harness([ONE, TWO], name="a", **shared) as a:
        a.plugin("two").failing = True
        result = await a.request()
        await a.clock.advance(1.5)
        await a.crash()
        async with harness([ONE, TWO], name="b", **shared) as b:
            await pass_time(b.clock)
            assert (b.plugin("one").ids, b.plugin("two").ids) == ([], [result.request_id])


async def test_what_another_worker_settles_has_no_prompt(harness, shared):
    """Headers and body of a request, and the provider's headers, are never stored: the next worker does not have them."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").failing = True
        told = {"identity": Identity(tenant="t"), "session_id": "s", "headers": {"x-a": "MARK"}}
        body = {"messages": [{"role": "user", "content": "MARK"}]}
        result = await a.request(body=body, script=ok("MARK", headers={"x-b": "MARK"}), **told)
        await a.clock.quiet()
        assert "MARK" not in json.dumps(await a.store.scan(""))
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            ((_, ctx, settlement),) = b.plugin("one").seen
            assert (dict(ctx.headers), dict(ctx.body)) == ({}, {})
            bare = tuple(replace(attempt, headers={}) for attempt in result.attempts)
            assert settlement == replace(result.settlement, attempts=bare)
            assert replace(ctx, session_id="s") == replace(result.ctx, headers={}, body={})


async def test_what_a_worker_leaves_at_its_stop_is_taken_over_at_once(harness, shared):
    """A worker that stops properly withdraws its heartbeat: its rows need not wait for that to end."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        a.plugin("one").failing = True
        result = await a.request()
        await a.stop()
        async with harness([ONE], name="b", **shared) as b:
            await b.clock.advance(0.1)
            await b.settled()
            assert b.plugin("one").ids == [result.request_id]


async def test_a_living_workers_rows_are_its_own(harness, shared):
    """However long a living worker's plugin fails, nobody else takes the settlement over."""
    async with harness([ONE], name="a", **shared) as a, harness([ONE], name="b", **shared) as b:
        a.plugin("one").failing = True
        await a.request()
        await pass_time(a.clock, 5 * HEARTBEAT_TTL_S)
        assert b.plugin("one").seen == []
        a.plugin("one").failing = False
        await pass_time(a.clock, RETRY_MOST_S)
        await a.settled()
        assert b.plugin("one").seen == []


async def test_a_worker_that_starts_while_others_look_is_not_taken_for_dead(harness, shared, monkeypatch):
    """A worker whose heartbeat and first row appear in the middle of somebody's look keeps its row."""
    async with harness([ONE], name="a", **shared) as a:
        b = harness([ONE], name="b", **shared)
        scan = a.store.scan
        scans = []

        async def interrupted(prefix):
            found = await scan(prefix)
            scans.append(prefix)
            if len(scans) == 1:
                await b.start()
                b.plugin("one").failing = True
                await b.request()
                await b.clock.quiet()
            return found

        monkeypatch.setattr(a.store, "scan", interrupted)
        await a.clock.advance(5.0)
        await a.settled()
        assert len(scans) >= 2
        assert a.plugin("one").seen == []
        b.plugin("one").failing = False
        await b.clock.advance(30.0)
        await b.settled()
        await b.stop()


async def test_rows_of_plugins_that_are_not_loaded_are_kept(harness, shared):
    """A settlement that waits for a plugin no worker has stays in the journal until one has it."""
    async with harness([ONE, TWO], name="a", **shared) as a:
        a.plugin("two").failing = True
        result = await a.request()
        await a.clock.advance(1.5)
        await a.crash()
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        assert b.plugin("one").seen == []
        assert len(await rows(b)) == 1
    async with harness([TWO], name="c", **shared) as c:
        await pass_time(c.clock)
        await c.settled()
        assert c.plugin("two").ids == [result.request_id]
        await c.request()
        await c.settled()
        assert len(await rows(c)) == 1, "only the last request's own row is still to be removed"


async def test_a_worker_does_what_it_can_of_a_row(harness, shared):
    """A row that waits for two plugins of which one is loaded is settled with that one, and kept for the other."""
    async with harness([ONE, TWO], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.clock.quiet()
        await a.crash()
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert b.plugin("one").ids == [result.request_id]
        ((row),) = (await rows(b)).values()
        assert [entry.pending for entry in parse(row)] == [["two"]]
    async with harness([ONE, TWO], name="c", **shared) as c:
        await c.clock.advance(0.1)
        await c.settled()
        assert (c.plugin("one").ids, c.plugin("two").ids) == ([], [result.request_id])


async def test_a_row_that_cannot_be_read_is_kept_and_counted(harness, shared):
    """What is no row of ours is left where it is, and does not keep others from being recovered."""
    junk = [7, {"v": 2}, {"v": 1, "entries": [{}]}, {"v": 1, "entries": [5]}, {"v": 1, "entries": {"a": 1}}, {"v": 1}]
    for number, value in enumerate(junk):
        await shared["store"].put(f"host/journal/dead-worker/{number}", value)
    async with harness([ONE], name="a", **shared) as a:
        await a.clock.advance(0.1)
        assert a.faults == {"pointsman.journal": len(junk)}
        assert len(await shared["store"].scan("host/journal/dead-worker/")) == len(junk)
        await a.request()
        await a.settled()
        assert len(a.plugin("one").seen) == 1


# -- shutting down ----------------------------------------------------------------------------------------------------


async def test_a_stop_settles_what_is_open(harness):
    """Requests that run when the worker stops are settled as cancelled; what was submitted a moment ago is settled."""
    async with harness([ONE], host={"journal_window_ms": 50}) as h:
        exchange = h.host.open((await h.request()).ctx)
        await h.stop()
        assert [s.outcome for _, _, s in h.plugin("one").seen] == [Outcome.OK, Outcome.CANCELLED]
        assert exchange.closed


async def test_a_stop_waits_no_longer_than_it_may(harness, shared, caplog):
    """A ``settle`` that hangs does not hold up the shutdown: its settlement is left for another worker, and told."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.stop()
    assert "1 settlements are left in the journal; another worker will finish them" in caplog.text
    async with harness([ONE], name="b", **shared) as b:
        await b.clock.advance(0.1)
        await b.settled()
        assert b.plugin("one").ids == [result.request_id]


async def test_waiting_is_shown(harness):
    """Who is waited for is in the status, and in the kit's complaint."""
    async with harness([ONE, TWO]) as h:
        h.plugin("one").failing = True
        await h.request()
        await h.request()
        with pytest.raises(NotSettledError, match=r"\{'one': 2\}"):
            await h.settled()
        assert (await h.admin.get("/status")).json()["journal"]["waiting"] == {"one": 2}


# -- rows -------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maps = st.dictionaries(texts, texts, max_size=3)
numbers = st.floats(0, 1e12)
usages = st.builds(Usage, prompt_tokens=st.integers(0, 2**53), estimated=st.booleans())
deployments = st.builds(Deployment, info=st.dictionaries(texts, st.booleans() | st.integers() | numbers | texts))
errors = st.builds(AttemptError, kind=st.sampled_from(ErrorClass), status=st.none() | st.integers(100, 599))
attempts = st.builds(
    Attempt,
    id=texts,
    request_id=texts,
    number=st.integers(1, 9),
    kind=st.sampled_from(AttemptKind),
    deployment=deployments,
    started_at=numbers,
    labels=maps,
    outcome=st.sampled_from(Outcome),
    duration_ms=numbers,
    first_token_ms=st.none() | numbers,
    usage=st.none() | usages,
    cost_usd_micros=st.none() | st.integers(0, 2**53),
    headers=maps,
    error=st.none() | errors,
)
reservations = st.builds(
    Reservation,
    expires_at=numbers,
    amounts=st.dictionaries(texts, st.integers(0, 2**53), max_size=3),
    data=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | numbers | texts, max_size=3),
)
settlements = st.builds(
    Settlement,
    request_id=texts,
    endpoint=st.sampled_from(Endpoint),
    identity=st.builds(Identity, tenant=st.none() | texts, claims=maps),
    route=st.builds(Route, labels=maps, reservations=st.lists(reservations, max_size=2).map(tuple)),
    outcome=st.sampled_from(Outcome),
    started_at=numbers,
    finished_at=numbers,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    usage=st.none() | usages,
    denial=st.none() | st.builds(Denial, status=st.integers(400, 599)),
)


@given(settlements, st.lists(st.sampled_from(["one", "two"]), unique=True))
def test_a_row_brings_back_what_was_written(settlement, pending):
    """Through JSON and back, everything but the provider's headers is as it was, in type and value."""
    text = json.dumps(dump([Entry(restored_context(settlement), settlement, pending)]))
    (entry,) = parse(json.loads(text))
    bare = tuple(replace(attempt, headers={}) for attempt in settlement.attempts)
    assert entry.settlement == replace(settlement, attempts=bare)
    assert entry.pending == pending
    assert entry.ctx == restored_context(settlement)


@given(st.recursive(st.none() | st.integers() | texts, lambda x: st.lists(x) | st.dictionaries(texts, x)))
def test_nothing_else_passes_for_a_row(value):
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse(value)
