"""A store that comes back empty, or as it was before: what living workers own is there again, what is lost is said."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from ledger_plugin import ONE, pass_time, rows

from pointsman.errors import StoreUnavailable
from pointsman.host.journal import HEARTBEAT_INTERVAL_S
from pointsman.host.journal_rows import HEARTBEAT_TTL_S, parse
from pointsman.host.store_loss import Lifetime
from pointsman.types import StoreEmptied

pytestmark = pytest.mark.usefixtures("leak_check")


async def empty(store):
    for key, _ in await store.scan(""):
        await store.delete(key)


async def test_every_worker_notices_and_says_what_is_lost(harness, shared, caplog):
    async with harness([ONE], name="a", **shared) as a, harness([ONE], name="b", **shared) as b:
        await a.clock.advance(HEARTBEAT_INTERVAL_S)
        assert a.host.describe()["ok"] is True
        await empty(shared["store"])
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        for worker in (a, b):
            (problem,) = worker.host.describe()["problems"]
            assert problem.startswith("the store was emptied")
            assert [type(event) for event in worker.plugin("one").heard] == [StoreEmptied]
        await a.clock.advance(10 * HEARTBEAT_INTERVAL_S)
        assert len(a.plugin("one").heard) == 1
    assert caplog.text.count("the store was emptied") == 2


async def test_a_store_that_is_new_or_was_only_away_is_not_emptied(harness, shared):
    async with harness([ONE], name="a", **shared) as a:
        a.store.down = True
        await a.clock.advance(3 * HEARTBEAT_INTERVAL_S)
        assert "the store cannot be used" in a.host.describe()["problems"][0]
        a.store.down = False
        await a.clock.advance(3 * HEARTBEAT_INTERVAL_S)
        assert a.plugin("one").heard == []
        assert not any("store" in problem for problem in a.host._journal.problems())


async def test_what_waits_is_written_again_and_survives_a_crash_afterwards(harness, shared):
    """The row, the worker's name among the owners, and its heartbeat come back; another worker settles the row."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.clock.quiet()
        await empty(shared["store"])
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        ((row),) = (await rows(a)).values()
        ((entry,), _) = parse(row)
        assert entry.settlement.request_id == result.request_id
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            assert b.plugin("one").ids == [result.request_id]


async def put_back(store, snapshot):
    """Let the store have what it had before, as a redis that has read its last snapshot."""
    await empty(store)
    for key, value in snapshot:
        await store.put(key, value)


async def test_a_store_that_goes_back_is_noticed_by_every_worker_each_time(harness, shared, caplog):
    async with harness([ONE], name="a", **shared) as a, harness([ONE], name="b", **shared) as b:
        await a.clock.advance(HEARTBEAT_INTERVAL_S)
        snapshot, at = await shared["store"].scan(""), a.clock.now()
        for times in (1, 2):
            await a.clock.advance(10 * HEARTBEAT_INTERVAL_S)
            await put_back(shared["store"], snapshot)
            await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
            for worker in (a, b):
                (problem,) = worker.host.describe()["problems"]
                assert problem.startswith("the store went back")
                heard = worker.plugin("one").heard
                assert [(type(event), at - event.since <= HEARTBEAT_INTERVAL_S) for event in heard] == [
                    (StoreEmptied, True)
                ] * times
            assert a.plugin("one").heard[-1].life == b.plugin("one").heard[-1].life
        assert len({event.life for event in a.plugin("one").heard}) == 2
    assert caplog.text.count("the store went back") == 4


async def test_a_store_that_drops_the_name_of_its_life_has_lost_nothing_else(harness, shared):
    async with harness([ONE], name="a", **shared) as a, harness([ONE], name="b", **shared) as b:
        await a.clock.advance(HEARTBEAT_INTERVAL_S)
        assert await shared["store"].delete("host/{journal}life")
        await a.clock.advance(3 * HEARTBEAT_INTERVAL_S)
        for worker in (a, b):
            assert worker.plugin("one").heard == []
            assert worker.host.describe()["ok"] is True


@pytest.mark.parametrize("lives", [True, False])
async def test_what_was_settled_and_comes_back_with_the_store_is_not_settled_by_another(harness, shared, lives):
    """Also where another worker sees the store first: heartbeats are over, so that its owner seems dead."""
    async with harness([ONE], name="b", **shared) as b, harness([ONE], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        await a.request()
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        snapshot = [(key, value) for key, value in await shared["store"].scan("") if "{journal}worker/" not in key]
        a.plugin("one").gate.set()
        await a.settled()
        while await rows(a):  # noqa: ASYNC110  # the row is removed in real time
            await asyncio.sleep(0.05)
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        await put_back(shared["store"], snapshot)
        (row,) = await rows(a)
        assert row.startswith("host/{journal}/a-")
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        if not lives:
            await a.crash()
        await pass_time(b.clock)
        assert b.plugin("one").ids == []
        assert await rows(b) == {}


class FailsOnce:
    """A store that fails at one call, before or after it is carried out."""

    def __init__(self, store, nth, *, carried_out):
        self._store, self._left, self._carried_out = store, nth, carried_out

    def __getattr__(self, name):
        call = getattr(self._store, name)

        async def once(*args, **kwargs):
            self._left -= 1
            fails = self._left == 0
            result = None if fails and not self._carried_out else await call(*args, **kwargs)
            if fails:
                raise StoreUnavailable("the store is down: the test has taken it away")
            return result

        return once


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("emptied", [True, False])
async def test_a_loss_is_noticed_once_although_the_store_fails_again_meanwhile(harness, shared, emptied, carried_out):
    store = shared["store"]
    async with harness([ONE], name="a", **shared) as a:
        for nth in range(1, 13):
            await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
            snapshot = [] if emptied else await store.scan("")
            await a.clock.advance(4 * HEARTBEAT_INTERVAL_S)
            await put_back(store, snapshot)
            a.store._store = FailsOnce(store, nth, carried_out=carried_out)
            await a.clock.advance(3 * HEARTBEAT_INTERVAL_S)
            assert len(a.plugin("one").heard) == nth
        assert a.store._store._left <= 0


@pytest.mark.parametrize("pause_s", [0.5, HEARTBEAT_INTERVAL_S - 0.5])
async def test_a_worker_that_starts_after_the_store_went_back_hides_nothing(harness, shared, pause_s):
    """It takes over nothing that a living worker has settled, and the time of the loss stays known."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        await a.request()
        await a.clock.advance(2 * HEARTBEAT_INTERVAL_S)
        snapshot = [(key, value) for key, value in await shared["store"].scan("") if "{journal}worker/" not in key]
        at = a.clock.now()
        a.plugin("one").gate.set()
        await a.settled()
        while await rows(a):  # noqa: ASYNC110  # the row is removed in real time
            await asyncio.sleep(0.05)
        await a.clock.advance(20 * HEARTBEAT_INTERVAL_S + HEARTBEAT_INTERVAL_S - pause_s)
        await put_back(shared["store"], snapshot)
        async with harness([ONE], name="c", **shared) as c:
            await pass_time(c.clock)
            assert c.plugin("one").ids == []
            assert await rows(c) == {}
            for worker in (a, c):
                (event,) = worker.plugin("one").heard
                assert event.since <= at


async def test_what_is_left_after_a_full_stop_is_taken_over_soon_after_the_start(harness, shared):
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.clock.quiet()
        await a.crash()
    await shared["clock"].skip(3600.0)
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock, HEARTBEAT_TTL_S + HEARTBEAT_INTERVAL_S + 1.0)
        assert b.plugin("one").ids == [result.request_id]


class Workers:
    """Lives of one store as workers see it, with a clock."""

    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self._names = (f"life-{number}" for number in itertools.count())

    def start(self):
        return Lifetime(self.store, lambda: next(self._names), self.clock.now)

    async def beat(self, *workers):
        """Let an interval pass, at whose end each looks and sends a heartbeat; return what each has noticed."""
        await self.clock.skip(HEARTBEAT_INTERVAL_S)
        noticed = []
        for worker in workers:
            noticed.append(await worker.lost_something())
            await worker.name_what_was_found()
            await self.store.update(worker.beat())
            worker.beaten()
        return noticed


@pytest.fixture
def workers(shared):
    return Workers(shared["store"], shared["clock"])


async def test_a_loss_of_a_single_heartbeat_is_noticed(workers):
    a = workers.start()
    await workers.beat(a)
    snapshot = await workers.store.scan("")
    await workers.beat(a)
    await put_back(workers.store, snapshot)
    assert await workers.beat(a) == [True]


@pytest.mark.parametrize(
    "dropped",
    [
        ["life"],
        ["life_copy"],
        ["life_copy", "life"],
        ["beat_at", "life"],
        ["beats"],
        ["beats", "beats"],
        ["beats life"],
        ["beat_at", "beats life_copy"],
    ],
)
@pytest.mark.parametrize("starts", [True, False])
async def test_what_a_server_drops_of_a_life_is_not_lost(workers, dropped, starts):
    """Also where a worker that starts sees it first: it finds the name in the copy. One after the other is dropped."""
    a, b = workers.start(), workers.start()
    for _ in range(4):
        await workers.beat(a, b)
    lives = set()
    for names in dropped:
        for name in names.split():
            assert await workers.store.delete("{journal}" + name)
        seen = [workers.start(), a, b] if starts else [a, b]
        for _ in range(5):
            assert not any(await workers.beat(*seen))
        lives |= {worker.name for worker in seen}
    assert len(lives) == 1
    assert a.problems() == []


async def test_a_worker_that_starts_while_others_have_yet_to_look_takes_nothing_over(workers):
    """The first of the living has seen that the store went back, and the latest heartbeat is not old any more."""
    a, b = workers.start(), workers.start()
    for _ in range(2):
        await workers.beat(a, b)
    snapshot = await workers.store.scan("")
    for _ in range(9):
        await workers.beat(a, b)
    await put_back(workers.store, snapshot)
    assert await workers.beat(a) == [True]
    c = workers.start()
    assert not await c.lost_something()
    for _ in range(round(HEARTBEAT_TTL_S / HEARTBEAT_INTERVAL_S)):
        await workers.beat(c, a, b)
        assert not await c.is_settled()
    await workers.beat(c, a, b)
    assert await c.is_settled()


@pytest.mark.parametrize("beats", [1, 2, 3, 4, 9])
async def test_a_worker_that_ended_soon_after_its_start_leaves_no_sign_of_a_loss(workers, beats):
    """All were down before it for long; a plugin's file says that it was used until the worker ended."""
    a = workers.start()
    await workers.beat(a)
    await workers.clock.skip(3600.0)
    b = workers.start()
    for _ in range(beats):
        await workers.beat(b)
    noted = {b.name: workers.clock.now()}
    for pause_s in (1.0, 3600.0):
        await workers.clock.skip(pause_s)
        c = workers.start()
        assert not await c.lost_something()
        c.known(noted)
        assert not c.lost


@pytest.mark.parametrize(("ahead_s", "lost"), [(86_400.0, False), (100.0, True)])
async def test_a_clock_that_was_ahead_before_the_start_is_no_sign_of_a_loss(workers, caplog, ahead_s, lost):
    """A plugin's file says that it was used in what is the future now: that says nothing of the store, and is logged."""
    a = workers.start()
    for _ in range(3):
        await workers.beat(a)
    noted = {a.name: workers.clock.now() + ahead_s}
    await workers.clock.skip(200.0)
    b = workers.start()
    assert not await b.lost_something()
    b.known(noted)
    assert b.lost is lost
    assert ("the clock has been set back" in caplog.text) is not lost


async def test_a_plugin_that_starts_later_finds_no_loss(workers):
    """As after a change of the configuration: its file has been used since the worker began, as the store has."""
    a = workers.start()
    for _ in range(3):
        await workers.beat(a)
    b = workers.start()
    for _ in range(40):
        await workers.beat(a, b)
    b.known({b.name: workers.clock.now()})
    assert not b.lost
