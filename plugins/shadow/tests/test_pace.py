"""A worker that is late with everything takes on no mirrors."""

from __future__ import annotations

import pytest

from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, Harness
from pointsman_shadow.pace import PROBE_S, Pace
from pointsman_shadow.plugin import plugin


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
    pace = Pace(0.02)
    for number in range(100):
        pace.note(0.05, number * PROBE_S)
    assert pace.busy
    for number in range(100, 200):
        pace.note(0.0, number * PROBE_S)
    assert not pace.busy
    pace.note(-1.0, 5.0)
    assert pace.lag_s >= 0
