"""Workers that share a pool through a real redis, alone and in cluster mode, in real time: leases there end by its own clock."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections import Counter

import pytest
import redis

from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, deployment, ok
from pointsman.testing.ports import free_port
from pointsman_residency.plugin import plugin
from pointsman_residency.slots import State

from .fakes import URL

pytestmark = [pytest.mark.services]

SIZES = {"a": 60, "b": 60}


class WallClock(FakeClock):
    """Time as it is."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)


@pytest.fixture(scope="module", params=["alone", "cluster"])
def url(request, tmp_path_factory):
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    port = free_port()
    cluster = request.param == "cluster"
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(tmp_path_factory.mktemp("redis")), "--cluster-enabled", "yes" if cluster else "no"]
    # Redis's own choice for the bus, 10 000 above the port, is among the ports of outgoing connections.
    command += ["--cluster-port", str(free_port())] if cluster else []
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as process,  # noqa: S603  # our own command
        redis.Redis(port=port) as client,
    ):
        try:
            until(client.ping)
            if cluster:
                # One node has all slots, and still refuses a step whose keys are in several.
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
                until(lambda: client.set("ready", 1))
                client.flushall()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def until(works, within_s=60.0):
    """Wait until a call of redis works."""
    end = time.monotonic() + within_s
    while True:
        with contextlib.suppress(redis.RedisError):
            return works()
        assert time.monotonic() < end, "redis-server is not ready"
        time.sleep(0.05)


@contextlib.asynccontextmanager
async def workers(url, number):
    """Yield workers, each with its own connection, that see a store that was empty."""
    clock = WallClock()
    pool = {
        "budget": 100,
        "server": {"kind": "fake", "url": URL},
        "models": {name: {"footprint": size} for name, size in SIZES.items()},
        "min_residence_s": 0,
    }
    prefix = f"test-{time.monotonic_ns()}"
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for index in range(number):
            store = await open_store("redis", url=url, prefix=prefix)
            stack.push_async_callback(store.close)
            worker = Harness(
                [(plugin, {"pools": {"gpu": pool}})],
                deployments=[deployment(name) for name in SIZES],
                store=store,
                clock=clock,
                name=f"worker{index}",
            )
            made.append(await stack.enter_async_context(worker))
        yield made


def scheduler(h):
    return h.plugin("residency")._schedulers["gpu"]


async def reached(wanted, within_s=30.0):
    end = time.monotonic() + within_s
    while not wanted():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.05)


async def ask(h, model, **options):
    return (await h.request(model=model, moves_clock=False, **options)).status


async def test_a_stampede_on_all_workers_loads_once_and_all_follow(machine, url):
    server = machine(SIZES, load_s=1.0)
    async with workers(url, 3) as made:
        assert [scheduler(h).leading for h in made] == [True, False, False]
        statuses = await asyncio.gather(*(ask(made[number % 3], "a") for number in range(60)))
        assert Counter(statuses) == {200: 60}
        assert server.loads == {"a": 1}
        await reached(lambda: {scheduler(h).pool.slots["a"].state for h in made} == {State.RESIDENT})


async def test_what_another_worker_serves_is_not_unloaded(machine, url):
    server = machine(SIZES, load_s=0.1)
    async with workers(url, 2) as (first, second):
        assert await ask(second, "a") == 200
        long = asyncio.ensure_future(ask(second, "a", script=ok(latency_s=3.0)))
        await reached(lambda: scheduler(first).pool.in_flight(scheduler(first).pool.slots["a"]))
        other = asyncio.ensure_future(ask(first, "b"))
        await asyncio.sleep(1.5)
        assert not server.unloads
        assert (await long, await other) == (200, 200)
        assert server.log == [("load", "a"), ("unload", "a"), ("load", "b")]


async def test_a_follower_takes_over_when_the_lease_of_the_dead_one_ends(machine, url):
    """The deciding worker dies while it loads; the requests of the other one are all answered."""
    server = machine(SIZES, load_s=2.0)
    async with workers(url, 2) as (first, second):
        asked = asyncio.gather(*(ask(second, "a") for _ in range(10)))
        await reached(lambda: server.loads)
        await first.crash()
        assert Counter(await asked) == {200: 10}
        assert scheduler(second).leading
        assert server.loads["a"] <= 2


async def test_operators_may_ask_any_worker(machine, url):
    server = machine(SIZES, load_s=0.1)
    async with workers(url, 2) as (first, second):
        assert (await second.admin.post("/residency/a/load", params={"wait_s": 20})).json()["state"] == "resident"
        assert (await second.admin.post("/residency/a/pin")).json()["pinned"] is True
        await reached(lambda: scheduler(first).pool.slots["a"].pinned)
        await second.admin.delete("/residency/a/pin")
        assert (await second.admin.post("/residency/a/evict")).json()["state"] == "cold"
        assert server.unloads == {"a": 1}
