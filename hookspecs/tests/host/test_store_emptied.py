"""A store that comes back empty, or as it was before: what living workers own is there again, what is lost is said."""

from __future__ import annotations

import asyncio

import pytest
from ledger_plugin import ONE, pass_time, rows

from pointsman.host.journal import HEARTBEAT_INTERVAL_S
from pointsman.host.journal_rows import parse
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
