"""The harness: workers start, stop, crash, share a store, and tell what they have seen."""

from __future__ import annotations

import asyncio

import pytest
from actor_plugin import INFO

from pointsman.errors import ConfigError, PluginLoadError
from pointsman.testing import Harness, deployment, error
from pointsman.testing.harness import NotSettledError
from pointsman.types import Event


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_a_restart_keeps_the_store(harness, leak_check, store):
    """Another worker finds what the first one stored; ids go on, and are never the same twice."""
    async with harness([INFO], store=store) as h:
        first = await h.request()
        await h.settled()
        await h.restart()
        second = await h.request()
        await h.settled()
        assert await h.stored("actor") == {first.request_id: "ok", second.request_id: "ok"}
        assert first.request_id < second.request_id
        assert h.host.worker == "worker-2"


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_a_crash_loses_nothing_that_was_journaled(harness, leak_check, store):
    """After a crash the next worker settles what the dead one left, once its heartbeat is gone."""
    async with harness([INFO], store=store) as h:
        h.plugin("actor").failing = 1
        result = await h.request()
        with pytest.raises(NotSettledError, match=r"actor.*moved on"):
            await h.settled()
        await h.crash()
        await h.start()
        await h.settled()
        assert await h.stored("actor") == {}
        for _ in range(5):
            await h.clock.advance(5.0)
            await asyncio.sleep(0.05)
        await h.settled()
        assert await h.stored("actor") == {result.request_id: "ok"}


async def test_nothing_of_a_dead_worker_reaches_the_store(h):
    """A crashed worker's connection is cut for ever; stopping it afterwards is harmless."""
    dead = h.plugin("actor").services.store
    await h.crash()
    with pytest.raises(Exception, match="taken it away"):
        await dead.put("x", 1)
    await h.stop()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = h.admin


async def test_two_workers_share_a_store(harness, leak_check):
    """What one worker stores the other one reads; their ids never clash."""
    async with harness([INFO], name="one") as one, harness([INFO], name="two", store=one.store, clock=one.clock) as two:
        results = [await worker.request() for worker in (one, two, one, two)]
        await one.settled()
        await two.settled()
        assert await one.stored("actor") == await two.stored("actor") == {r.request_id: "ok" for r in results}
        assert len({r.request_id for r in results}) == 4
        assert {one.host.worker, two.host.worker} == {"one-1", "two-1"}


async def test_a_settlement_that_fails_is_tried_again_when_time_passes(h, actor):
    actor.failing = 2
    result = await h.request()
    with pytest.raises(NotSettledError):
        await h.settled()
    await h.clock.advance(10.0)
    await h.settled()
    assert await h.stored("actor") == {result.request_id: "ok"}
    assert h.faults == {"actor.settle": 2}


async def test_a_store_can_be_taken_away(h, actor):
    """While it is down calls fail as those of a dead backend do; afterwards everything goes on."""
    h.store.down = True
    with pytest.raises(Exception, match="the store is down"):
        await actor.services.store.get("x")
    h.store.down = False
    await actor.services.store.put("x", 1)
    assert h.store.calls["put"] >= 1


async def test_events_go_around(h, actor):
    """What a plugin announces is remembered with its source and reaches everybody; so does what the test announces."""
    actor.services.publish(Event())
    h.publish(Event(source="test"))
    await h.settled()
    assert h.events == [Event(source="actor")]
    assert actor.events == [Event(source="actor"), Event(source="test")]


async def test_admin_routes_are_below_pointsman(h):
    """Paths are those below ``/pointsman``; the caller is the administrator; what is not there is a 404."""
    assert (await h.admin.get("/actor/who")).json() == {"who": "admin"}
    assert (await h.admin.get("/status")).json()["plugins"][0]["summary"] == "number 1"
    assert (await h.admin.get("/nobody")).status_code == 404
    assert h.status("actor").ok


async def test_spans_are_kept_only_when_asked_for(h, harness):
    await h.request()
    await h.settled()
    assert {"chat chat", "pre_route", "chat chat-a", "before_attempt", "settle chat"} <= {s.name for s in h.spans}
    async with harness([INFO]) as quiet:
        await quiet.request()
        assert quiet.spans == []


async def test_wrong_configuration_stops_the_start(harness, leak_check):
    """What a real start refuses is refused here, and nothing is left behind."""
    with pytest.raises(PluginLoadError, match="number"):
        await harness([(INFO, {"number": -1})], store="disk").start()
    with pytest.raises(ConfigError, match="twice"):
        await harness([INFO, INFO]).start()
    with pytest.raises(ConfigError, match="journal_window"):
        await harness([INFO], host={"journal_windows_ms": 5}).start()


def test_wrong_stores_are_refused():
    with pytest.raises(ValueError, match="choose memory or disk"):
        Harness(store="redis")
    with pytest.raises(ValueError, match="needs a path"):
        Harness(store="disk")


async def test_everything_can_be_other_than_usual(harness, leak_check):
    """Deployments, prices, script and worker can be chosen; a harness without plugins serves too."""
    async with harness(deployments=[deployment("solo")], prices={}, script=error(500)) as h:
        result = await h.request(model="solo", retries=0)
        assert (result.status, result.attempts[0].cost_usd_micros) == (500, None)
        await h.settled()


async def test_the_host_can_be_changed_before_it_starts(harness, leak_check):
    seen = []
    h = harness([INFO])
    h.before_start = lambda host: seen.append(host.plugins.names())
    async with h:
        await h.restart()
    assert seen == [["actor"], ["actor"]]
