"""The journal on a redis cluster of three nodes, where the keys of one step must lie together."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host.journal import RECOVERY_INTERVAL_S
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness

pytestmark = pytest.mark.services

SETTLED: list[str] = []


class Recording(PluginConfig):
    """A plugin that notes what it settles, and can be made to fail."""

    fails: bool = False


class Recorder:
    def __init__(self, config: Recording) -> None:
        self.config = config

    @hookimpl
    async def settle(self, settlement) -> None:
        if self.config.fails:
            raise OSError("not now")
        SETTLED.append(settlement.request_id)


RECORDER = PluginInfo(name="recorder", config=Recording, factory=Recorder)


@pytest.fixture
async def store(redis_nodes):
    SETTLED.clear()
    opened = await open_store("redis", url=redis_nodes.url, prefix=f"test-{uuid4().hex}:")
    yield opened
    await opened.close()


async def rows(store) -> list[str]:
    return [key for key, _ in await store.scan("host/{journal}/")]


async def written(store, number: int) -> list[str]:
    """Wait until the journal has so many rows; returns their keys."""
    for _ in range(200):
        if len(keys := await rows(store)) >= number:
            return keys
        await asyncio.sleep(0.02)
    raise AssertionError(f"there are {len(keys)} rows")


async def passing(clock, done) -> None:
    """Let the workers' time pass, and real time for the redis, until something has come about."""
    for _ in range(200):
        if done():
            return
        await clock.advance(RECOVERY_INTERVAL_S)
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come about")


async def test_rows_are_written_and_removed_also_after_a_pause(store):
    async with Harness([RECORDER], store=store, name="one") as worker:
        for _ in range(3):
            for _ in range(5):
                await worker.request()
            await worker.settled()
            await worker.clock.advance(60)
        assert len(SETTLED) == 15
        assert worker.faults == {}
    assert await rows(store) == []


async def test_rows_of_a_dead_worker_are_taken_over(store):
    clock = FakeClock()
    async with Harness([(RECORDER, {"fails": True})], store=store, clock=clock, name="dies") as worker:
        for number in range(3):
            await worker.request()
            await clock.advance(0.1)
            await written(store, number + 1)
        await worker.crash()
    await store.delete("host/{journal}worker/dies-1")
    async with Harness([RECORDER], store=store, clock=clock, name="lives") as other:
        await passing(clock, lambda: len(SETTLED) >= 3)
        assert len(set(SETTLED)) == len(SETTLED) == 3
        assert other.faults == {}
    assert await rows(store) == []


async def test_rows_of_an_earlier_release_are_taken_over(store):
    """They lie on other nodes than today's."""
    clock = FakeClock()
    async with Harness([(RECORDER, {"fails": True})], store=store, clock=clock, name="dies") as worker:
        await worker.request()
        await clock.advance(0.1)
        (key,) = await written(store, 1)
        row = await store.get(key)
        await worker.crash()
    await store.delete(key)
    await store.put("host/journal/dies-1/000000000001", row)
    await store.put("host/owner/dies-1", 0.0)
    await store.delete("host/{journal}owner/dies-1")
    await store.delete("host/{journal}worker/dies-1")
    async with Harness([RECORDER], store=store, clock=clock, name="lives") as other:
        await passing(clock, lambda: len(SETTLED) >= 1)
        assert len(SETTLED) == 1
        assert other.faults == {}
    assert await rows(store) == []
    assert await store.scan("host/journal/") == []
