from __future__ import annotations

import asyncio

import pytest

from pointsman.errors import Conflict, StoreUnavailable
from pointsman.types import AttemptKind, Outcome
from pointsman_registry import repository as module
from pointsman_registry.config import VersionSpec


@pytest.fixture
async def pair(store, kit):
    """Two workers with two versions of one model, one clock."""
    clock = kit.Clock()
    workers = [await kit.start(store, number=number, clock=clock) for number in range(2)]
    for spec in (kit.spec("1", active=True), kit.spec("2", path="large")):
        await workers[0].registry.register(VersionSpec(**spec), "w")
    await workers[1].registry.refresh()
    return workers


async def read(worker, id_="1"):
    return (await worker.plugin._metrics.read([id_]))[id_]


async def test_workers_add_up(pair, kit):
    """1 to 100 ms spread over two workers give exactly 50, 95 and 99 ms wherever one asks."""
    for value in range(1, 101):
        pair[value % 2].plugin.post_response(
            kit.context(), kit.attempt("1", duration_ms=float(value), first_token_ms=value / 10)
        )
    pair[0].plugin.on_error(kit.attempt("1", outcome=Outcome.ERROR))
    await pair[0].poll()
    metrics = await read(pair[1])
    latency, first = metrics.latency_ms(), metrics.first_token_ms()
    assert (latency.p50, latency.p95, latency.p99, latency.count) == (50.0, 95.0, 99.0, 100)
    assert (first.p50, first.p95, first.p99) == (5.0, 9.5, 9.9)
    assert (metrics.requests, metrics.errors, metrics.updated_at) == (101, 1, pair[0].clock.at)


async def test_workers_that_flush_at_the_same_time_lose_nothing(pair, kit):
    for turn in range(10):
        for worker in pair:
            worker.plugin.post_response(kit.context(), kit.attempt("1", duration_ms=float(turn)))
        await asyncio.gather(*(worker.plugin._metrics.flush() for worker in pair))
    metrics = await read(pair[0])
    assert (metrics.requests, len(metrics.window)) == (20, 20)


async def test_only_client_traffic_on_the_versions_own_path_counts(pair, kit):
    """Mirrors, fallbacks to another group, unlabelled and unknown versions do not count."""
    observe = pair[0].plugin.post_response
    observe(kit.context(), kit.attempt("1"))
    observe(kit.context(), kit.attempt("1", kind=AttemptKind.MIRROR))
    observe(kit.context(), kit.attempt("1", "dep-c", "large", kind=AttemptKind.FALLBACK))
    observe(kit.context(), kit.attempt(None))
    observe(kit.context(), kit.attempt("gone"))
    observe(kit.context(), kit.attempt("2", "dep-c", "large"))
    assert [(await read(pair[0], id_)).requests for id_ in ("1", "2")] == [1, 1]
    assert pair[0].plugin._metrics.waiting == 0


async def test_reading_an_answer_or_opening_a_websocket_is_none_of_the_versions_work(pair, kit):
    """A failure to open one is."""
    reading = kit.context(generates=False)
    pair[0].plugin.post_response(reading, kit.attempt("1", duration_ms=None))
    pair[0].plugin.on_error(kit.attempt("1", outcome=Outcome.ERROR))
    metrics = await read(pair[0])
    assert (metrics.requests, metrics.errors, metrics.latency_ms()) == (1, 1, None)


async def test_reset_forgets_also_what_another_worker_still_holds(pair, kit):
    pair[0].plugin.post_response(kit.context(), kit.attempt("1"))
    pair[1].plugin.post_response(kit.context(), kit.attempt("1"))
    pair[0].clock.at += 1
    await pair[0].plugin._metrics.reset("1", pair[0].clock.at)
    pair[1].plugin.post_response(kit.context(), kit.attempt("1"))
    metrics = await read(pair[1])
    assert (metrics.requests, metrics.since) == (1, pair[0].clock.at)


async def test_deleted_version_takes_its_metrics_along(pair, kit):
    """A version registered later under the same id starts from nothing, even when old samples come late."""
    pair[0].plugin.post_response(kit.context(), kit.attempt("2", "dep-c", "large"))
    pair[1].plugin.post_response(kit.context(), kit.attempt("2", "dep-c", "large"))
    await pair[0].plugin._metrics.flush()
    await pair[0].registry.delete("2", "w", "", force=False)
    assert await pair[1].plugin._metrics.read(["2"]) == {}
    await pair[0].registry.register(VersionSpec(**kit.spec("2", path="large")), "w")
    assert (await read(pair[1], "2")).requests == 0


async def test_samples_wait_for_a_store_that_is_down_and_are_bounded(memory, kit, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    worker = await kit.start(memory)
    await worker.registry.register(VersionSpec(**kit.spec("1")), "w")
    real = memory.update

    async def down(_):
        raise StoreUnavailable("down")

    memory.update = down
    for value in range(15):
        worker.plugin.post_response(kit.context(), kit.attempt("1", duration_ms=float(value)))
        with pytest.raises(StoreUnavailable):
            await worker.plugin._metrics.flush()
    details = worker.plugin.status().details
    assert (details["metrics_waiting"], details["metrics_dropped"]) == (10, 5)
    memory.update = real
    assert [timing.latency_ms for timing in (await read(worker)).window] == [float(value) for value in range(5, 15)]


async def test_losing_every_time_keeps_the_samples_and_refuses_the_reset(memory, kit):
    worker = await kit.start(memory)
    await worker.registry.register(VersionSpec(**kit.spec("1")), "w")
    worker.plugin.post_response(kit.context(), kit.attempt("1"))
    real = memory.update

    async def lose(_):
        return False

    memory.update = lose
    await worker.plugin._metrics.flush()
    assert worker.plugin._metrics.waiting == 1
    with pytest.raises(Conflict):
        await worker.plugin._metrics.reset("1", 0.0)
    memory.update = real
    assert (await read(worker)).requests == 1


async def test_shutdown_flushes(memory, kit):
    worker = await kit.start(memory)
    await worker.registry.register(VersionSpec(**kit.spec("1")), "w")
    worker.plugin.post_response(kit.context(), kit.attempt("1"))
    await worker.plugin.shutdown()
    assert (await read(await kit.start(memory, number=1))).requests == 1
