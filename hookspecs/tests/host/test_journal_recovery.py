"""Settlements when a worker dies: none is lost, and what it left is done once by another."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from ledger_plugin import ONE, TWO, counts, pass_time, rows

from pointsman.host.journal import HEARTBEAT_INTERVAL_S, HEARTBEAT_TTL_S, RETRY_MOST_S
from pointsman.host.journal_rows import parse
from pointsman.store import open_store
from pointsman.testing import FakeClock, ok
from pointsman.types import Identity

pytestmark = pytest.mark.usefixtures("leak_check")


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
        arguments = {"identity": Identity(tenant="t"), "session_id": "s", "headers": {"x-a": "MARK"}}
        body = {"messages": [{"role": "user", "content": "MARK"}]}
        result = await a.request(body=body, script=ok("MARK", headers={"x-b": "MARK"}), **arguments)
        await a.clock.quiet()
        assert "MARK" not in json.dumps(await a.store.scan(""))
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            ((_, ctx, settlement),) = b.plugin("one").seen
            assert (dict(ctx.headers), dict(ctx.body)) == ({}, {})
            bare = tuple(replace(attempt, headers={}) for attempt in result.attempts)
            assert settlement == replace(result.settlement, attempts=bare)
            assert ctx == replace(result.ctx, headers={}, body={}, session_id=None, client_host=None)


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
    """However long a living worker's plugin fails, no other worker takes the settlement over."""
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
    """A worker whose heartbeat and first row appear during another worker's recovery keeps its row."""
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
        assert [entry.pending for entry in parse(row)[0]] == [["two"]]
    async with harness([ONE, TWO], name="c", **shared) as c:
        await c.clock.advance(0.1)
        await c.settled()
        assert (c.plugin("one").ids, c.plugin("two").ids) == ([], [result.request_id])


async def test_a_row_of_a_later_version_is_left_to_it(harness, shared):
    """A row that a later version has written is counted and stays where it is."""
    await shared["store"].put("host/{journal}/dead-worker/1", {"v": 2})
    await shared["store"].put("host/owner/dead-worker", 0.0)
    async with harness([ONE], name="a", **shared) as a:
        await a.clock.advance(0.1)
        assert a.faults == {"pointsman.journal": 1}
        assert await shared["store"].get("host/{journal}/dead-worker/1") == {"v": 2}


async def test_what_can_be_read_of_a_row_is_settled(harness, shared):
    """A settlement that cannot be read is put aside; the others of its row are settled."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.clock.quiet()
        ((key, row),) = (await rows(a)).items()
        await a.crash()
    broken = {**row["entries"][0], "settlement": {"request_id": 5}}
    await shared["store"].put(
        f"host/{key}" if not key.startswith("host/") else key, {"v": 1, "entries": [broken, *row["entries"]]}
    )
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert b.plugin("one").ids == [result.request_id]
        assert b.host.describe()["journal"]["unreadable"] == 1
        ((_, aside),) = await shared["store"].scan("host/{journal}aside/")
        assert aside["parts"] == [broken]


async def test_a_row_that_cannot_be_read_is_put_aside_and_counted(harness, shared):
    """A row that is not the journal's is put aside once, shown, and does not prevent the recovery of others."""
    junk = [7, {"v": 0}, {"v": 1, "entries": [{}]}, {"v": 1, "entries": [5]}, {"v": 1, "entries": {"a": 1}}, {"v": 1}]
    for number, value in enumerate(junk):
        await shared["store"].put(f"host/{{journal}}/dead-worker/{number}", value)
    await shared["store"].put("host/{journal}owner/dead-worker", 0.0)
    async with harness([ONE], name="a", **shared) as a:
        await a.clock.advance(0.1)
        await pass_time(a.clock)
        assert a.faults == {"pointsman.journal": len(junk)}
        assert await shared["store"].scan("host/{journal}/dead-worker/") == []
        assert len(await shared["store"].scan("host/{journal}aside/dead-worker/")) == len(junk)
        assert a.host.describe()["journal"]["unreadable"] == len(junk)
        assert f"{len(junk)} parts of the journal cannot be read" in a.host.problems()[0]
        await a.request()
        await a.settled()
        assert len(a.plugin("one").seen) == 1


async def test_a_stop_waits_no_longer_than_it_may(harness, shared, caplog):
    """A ``settle`` that hangs does not hold up the shutdown: its settlement is left for another worker, and logged."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.stop()
    assert "1 settlements are left in the journal; another worker will finish them" in caplog.text
    async with harness([ONE], name="b", **shared) as b:
        await b.clock.advance(0.1)
        await b.settled()
        assert b.plugin("one").ids == [result.request_id]


class WallClock(FakeClock):
    """One whose wall clock can be set."""

    set_by_s = 0.0

    def now(self):
        return super().now() + self.set_by_s


@pytest.mark.parametrize("set_by_s", [-86_400.0, -3600.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("backend", ["memory", "disk"])
async def test_a_dead_workers_rows_are_taken_over_whatever_the_clock_is_set_to(harness, tmp_path, backend, set_by_s):
    """A clock that was set back keeps its heartbeat."""
    clock = WallClock()
    store = await open_store(backend, clock=clock.now, **({"path": tmp_path / "store"} if backend == "disk" else {}))
    shared = {"clock": clock, "store": store}
    async with harness([ONE], name="a", **shared) as a, harness([ONE], name="b", **shared) as b:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await clock.advance(HEARTBEAT_INTERVAL_S)
        clock.set_by_s = set_by_s
        await a.crash()
        for _ in range(60):
            await clock.advance(1.0)
            await asyncio.sleep(0.01)  # the disk takes real time
        assert b.plugin("one").ids == [result.request_id]
    await store.close()
