"""Several workers share one pool through the store: one decides, none loses a request, nothing in flight is unloaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter

import pytest

from pointsman.errors import StoreError
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, deployment, ok
from pointsman_residency.plugin import plugin
from pointsman_residency.slots import NEVER, State

from .fakes import URL
from .simulation import belady, zipf

SIZES = {"a": 60, "b": 60}
#: Made at once, or within half a minute.
REQUESTS = 1000 if os.environ.get("POINTSMAN_THOROUGH") else 200


def section(sizes, **changes):
    models = {name: {"footprint": size} for name, size in sizes.items()}
    pool = {"budget": 100, "server": {"kind": "fake", "url": URL}, "models": models, "min_residence_s": 0}
    return {"pools": {"gpu": {**pool, **changes}}}


@contextlib.asynccontextmanager
async def workers(number, sizes=SIZES, **pool):
    """Yield workers on one store and one clock."""
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    made = [
        Harness(
            [(plugin, section(sizes, **pool))],
            deployments=[deployment(name) for name in sizes],
            store=store,
            clock=clock,
            name=f"worker{index}",
        )
        for index in range(number)
    ]
    async with contextlib.AsyncExitStack() as stack:
        for worker in made:
            await stack.enter_async_context(worker)
        yield made
    await store.close()


def scheduler(h):
    return h.plugin("residency")._schedulers["gpu"]


def state(h, name):
    return scheduler(h).pool.slots[name].state


async def ticks_per_s(clock, h, seconds):
    """Let time pass; return how often a worker has asked meanwhile whether it decides, per second."""
    repository, count = scheduler(h)._repository, 0
    lead = repository.lead

    async def counted():
        nonlocal count
        count += 1
        return await lead()

    repository.lead = counted
    for _ in range(round(seconds * 100)):
        await clock.advance(0.01)
    repository.lead = lead
    return count / seconds


async def after(clock, seconds, work):
    """Let time pass, with what happens in it, until a piece of work is done."""
    task = asyncio.ensure_future(work)
    for _ in range(int(seconds * 10)):
        if task.done():
            break
        await clock.advance(0.1)
    return await task


async def test_one_worker_decides_and_the_others_follow(machine):
    server = machine(SIZES)
    async with workers(3) as (first, second, third):
        assert [scheduler(h).leading for h in (first, second, third)] == [True, False, False]
        result = await after(first.clock, 10, second.request(model="a", moves_clock=False))
        assert result.status == 200
        await first.clock.advance(0.3)
        assert {state(h, "a") for h in (first, second, third)} == {State.RESIDENT}
        assert server.loads == {"a": 1}


async def test_a_stampede_on_all_workers_loads_once(machine):
    server = machine(SIZES, load_s=5.0)
    async with workers(3) as made:
        asked = [made[number % 3].request(model="a", moves_clock=False) for number in range(60)]
        results = await after(made[0].clock, 30, asyncio.gather(*asked))
        assert Counter(result.status for result in results) == {200: 60}
        assert server.loads == {"a": 1}


@pytest.mark.parametrize("asks", [0, 1], ids=["the one that decides", "the other one"])
@pytest.mark.parametrize("load_s", [0.05, 0.3])
async def test_what_workers_tell_one_another_prolongs_a_short_swap_little(machine, load_s, asks):
    """The drain, its confirmation, the load and its end are each read within a few hundredths of a second."""
    machine(SIZES, load_s=load_s)
    async with workers(2, swap_ratio=0) as made:
        clock = made[0].clock
        await after(clock, 10, made[asks].request(model="a", moves_clock=False))
        await clock.advance(5)
        began = clock.monotonic()
        task = asyncio.ensure_future(made[asks].request(model="b", moves_clock=False))
        while not task.done():
            await clock.advance(0.01)
        assert (await task).status == 200
        # The first of them to hear of it may have to wait for its tick, of a tenth of a second. Both started at the same
        # moment, so that what one writes at its tick, the other reads a whole tick later.
        assert clock.monotonic() - began <= load_s + 0.3


async def test_what_another_worker_serves_is_not_unloaded(machine):
    server = machine(SIZES)
    async with workers(2) as (first, second):
        await after(first.clock, 10, second.request(model="a", moves_clock=False))
        long = asyncio.ensure_future(second.request(model="a", script=ok(latency_s=20.0), moves_clock=False))
        await first.clock.advance(1)
        other = asyncio.ensure_future(first.request(model="b", moves_clock=False))
        await first.clock.advance(15)
        assert not server.unloads
        assert not other.done()
        assert (await after(first.clock, 30, long)).status == 200
        assert (await after(first.clock, 30, other)).status == 200
        assert server.unloads == {"a": 1}


async def test_what_a_worker_serves_that_has_lost_the_lease_is_not_unloaded(machine, monkeypatch):
    """It decided, and stalls for longer than its lease; the one that takes over knows of its requests."""
    server = machine(SIZES)
    async with workers(2, max_wait_s=1.0) as (first, second):
        clock = first.clock
        long = asyncio.ensure_future(first.request(model="a", script=ok(latency_s=60.0), moves_clock=False))
        await clock.advance(20)

        async def stall():
            raise StoreError("it stalls")

        with monkeypatch.context() as stalled:
            stalled.setattr(scheduler(first)._repository, "lead", stall)
            other = asyncio.ensure_future(second.request(model="b", moves_clock=False))
            await clock.advance(10)
            assert scheduler(second).leading
            assert not server.unloads
        await clock.advance(5)
        assert not server.unloads
        assert (await after(clock, 60, long)).status == 200
        assert (await after(clock, 30, other)).status == 200
        assert server.unloads == {"a": 1}


async def test_the_requests_of_a_worker_that_died_hold_nothing(machine):
    server = machine(SIZES)
    async with workers(2, deadline_s=120) as (first, second):
        await after(first.clock, 10, second.request(model="a", moves_clock=False))
        lost = asyncio.ensure_future(second.request(model="a", script=ok(latency_s=1e6), moves_clock=False))
        await first.clock.advance(1)
        await second.crash()
        lost.cancel()
        await asyncio.wait({lost})
        result = await after(first.clock, 60, first.request(model="b", moves_clock=False))
        assert result.status == 200
        assert server.unloads == {"a": 1}


async def test_a_follower_takes_over_and_loses_no_load(machine):
    """The deciding worker dies while it loads; the other one loads the model for its own requests."""
    server = machine(SIZES, load_s=8.0)
    async with workers(2) as (first, second):
        asked = asyncio.gather(*(second.request(model="a", moves_clock=False) for _ in range(10)))
        await first.clock.advance(2)
        assert server.loads == {"a": 1}
        await first.crash()
        results = await after(second.clock, 60, asked)
        assert Counter(result.status for result in results) == {200: 10}
        assert scheduler(second).leading
        assert server.loads["a"] <= 2


async def test_a_load_that_the_server_goes_on_with_counts_while_another_worker_takes_over(machine):
    """What waits longest by then is not loaded beside it, and comes after it."""
    server = machine(SIZES, load_s=8.0, capacity=100)
    server.goes_on = True
    async with workers(2, max_wait_s=1.0) as (first, second):
        clock = first.clock
        assert (await first.admin.post("/residency/a/load")).status_code == 200
        await clock.advance(0.3)
        asked = asyncio.ensure_future(second.request(model="b", moves_clock=False))
        await clock.advance(1)
        await first.crash()
        await clock.advance(10)
        assert scheduler(second).leading
        assert [name for what, name in server.log if what == "load"] == ["a", "a"]
        server.finish("a")
        assert (await after(clock, 30, asked)).status == 200
        assert server.log[2:] == [("unload", "a"), ("load", "b")]


async def test_a_worker_that_stops_hands_over_at_once(machine):
    machine(SIZES)
    async with workers(2) as (first, second):
        await first.stop()
        await second.clock.advance(0.3)
        assert scheduler(second).leading


async def test_operators_may_ask_any_worker(machine):
    server = machine(SIZES)
    async with workers(2) as (first, second):
        clock = first.clock
        loaded = await after(clock, 20, second.admin.post("/residency/a/load", params={"wait_s": 10}))
        assert loaded.json()["state"] == "resident"
        assert (await after(clock, 10, second.admin.post("/residency/a/pin"))).json()["pinned"] is True
        await clock.advance(0.3)
        assert scheduler(first).pool.slots["a"].pinned
        await after(clock, 10, second.admin.delete("/residency/a/pin"))
        evicted = await after(clock, 20, second.admin.post("/residency/a/evict"))
        assert evicted.json()["state"] == "cold"
        assert server.unloads == {"a": 1}


@pytest.mark.parametrize("which", [0, 1], ids=["the one that decides", "the other one"])
async def test_a_load_that_cannot_be_is_refused_at_once_by_every_worker(machine, which):
    """The model's last load failed, and the next one is not due: nothing is to be waited for."""
    server = machine(SIZES)
    server.broken["a"] = "llama runner process has terminated"
    async with workers(2) as made:
        clock = made[0].clock
        await after(clock, 10, made[which].request(model="a", moves_clock=False))
        await clock.advance(0.5)
        began = clock.monotonic()
        refused = await after(clock, 20, made[which].admin.post("/residency/a/load", params={"wait_s": 10}))
        assert (refused.status_code, clock.monotonic() - began < 1) == (409, True)
        assert "llama runner process has terminated" in refused.text
        assert server.loads == {"a": 1}


async def test_what_an_operator_wants_survives_the_worker_that_has_just_heard_it(machine, monkeypatch):
    """It loses the lease before it has decided anything: the next one carries it out."""
    server = machine(SIZES)
    async with workers(2) as (first, second):
        stalled = scheduler(first)._repository
        inbox = stalled.inbox

        async def stall():
            found = await inbox()
            if found[1]:
                stalled._leads_until = float("-inf")
                await stalled._store.delete(stalled._base + "lease")
                monkeypatch.setattr(stalled, "lead", never)
            return found

        async def never():
            return False

        await first.clock.advance(1)
        monkeypatch.setattr(stalled, "inbox", stall)
        loaded = await after(first.clock, 30, second.admin.post("/residency/a/load", params={"wait_s": 20}))
        assert loaded.json()["state"] == "resident"
        assert server.loads == {"a": 1}


async def test_a_request_that_waits_too_long_is_told_the_reason_at_every_worker(machine):
    machine(SIZES)
    async with workers(2, deadline_s=6) as made:
        clock = made[0].clock
        await after(clock, 10, made[0].request(model="a", moves_clock=False))
        await made[0].admin.post("/residency/a/pin")
        await clock.advance(1)
        for h in made:
            result = await after(clock, 20, h.request(model="b", moves_clock=False))
            assert "only pinned or busy models are left: a" in result.denial.message


async def test_a_pin_at_a_worker_that_has_lost_the_lease_is_not_forgotten(machine):
    """It has stalled and does not know yet that another one decides."""
    machine(SIZES)
    async with workers(2) as (first, second):
        stalled = scheduler(first)._repository
        await first.clock.advance(1)
        await stalled._store.delete(stalled._base + "lease")
        assert await scheduler(second)._repository.lead()
        assert scheduler(first).leading
        answer = await after(first.clock, 40, first.admin.post("/residency/a/pin"))
        assert answer.json()["pinned"] is True
        await first.clock.advance(5)
        assert scheduler(second).leading
        assert all(scheduler(h).pool.slots["a"].pinned for h in (first, second))


async def test_a_pin_that_no_worker_carries_out_is_not_called_done(machine):
    machine(SIZES)
    async with workers(1) as (alone,):
        repository = scheduler(alone)._repository
        await repository._store.put(repository._base + "lease", "a worker that does nothing")
        await alone.clock.advance(6)
        answer = await after(alone.clock, 40, alone.admin.post("/residency/a/pin"))
        assert answer.status_code == 409
        assert "has not carried out the pin of 'a'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("which", [0, 1])
async def test_an_eviction_that_takes_too_long_is_taken_back(machine, which):
    server = machine(SIZES)
    async with workers(2) as made:
        clock = made[0].clock
        await after(clock, 10, made[1].request(model="a", moves_clock=False))
        long = asyncio.ensure_future(made[1].request(model="a", script=ok(latency_s=30.0), moves_clock=False))
        await clock.advance(3)
        refused = await after(clock, 20, made[which].admin.post("/residency/a/evict", params={"wait_s": 3}))
        assert refused.status_code == 409
        assert "1 requests in flight" in refused.json()["error"]["message"]
        await clock.advance(0.5)
        assert {state(h, "a") for h in made} == {State.RESIDENT}
        assert (await after(clock, 60, long)).status == 200
        assert not server.unloads


async def test_while_the_store_fails_what_is_resident_keeps_serving(machine):
    server = machine(SIZES)
    async with workers(1, deadline_s=3, max_wait_s=1) as (h,):
        await after(h.clock, 10, h.request(model="a", moves_clock=False))
        h.store.down = True
        await h.clock.advance(10)
        assert (await after(h.clock, 10, h.request(model="a", moves_clock=False))).status == 200
        refused = await after(h.clock, 10, h.request(model="b", moves_clock=False))
        assert (refused.status, refused.denial.code) == (503, "model_not_ready")
        assert not h.status("residency").ok
        h.store.down = False
        await h.clock.advance(10)
        assert (await after(h.clock, 10, h.request(model="b", moves_clock=False))).status == 200
        assert server.loads == {"a": 1, "b": 1}


@pytest.mark.parametrize("what", ["leads", "leads no more", "has no store"])
async def test_a_worker_at_rest_is_so_also_when_what_it_had_to_decide_is_past(machine, monkeypatch, what):
    """The time at which an idle model is to be evicted passes, and the worker may not decide any more."""
    machine(SIZES)
    async with workers(1, models={"a": {"footprint": 60, "idle_ttl_s": 10.0}, "b": {"footprint": 60}}) as (h,):
        await after(h.clock, 10, h.request(model="a", moves_clock=False))
        await h.clock.advance(2)
        assert scheduler(h)._next_at < NEVER

        async def lead():
            if what == "has no store":
                raise StoreError("it is away")
            return False

        if what != "leads":
            monkeypatch.setattr(scheduler(h)._repository, "lead", lead)
        await h.clock.advance(15)
        assert state(h, "a") is (State.COLD if what == "leads" else State.RESIDENT)
        assert await ticks_per_s(h.clock, h, 2) <= 11


async def test_requests_that_keep_arriving_for_a_model_that_loads_slowly_do_not_quicken_the_ticks(machine):
    machine(SIZES, load_s=60.0)
    async with workers(2) as made:
        clock, asked = made[0].clock, []

        async def arrive():
            while True:
                asked.append(asyncio.ensure_future(made[len(asked) % 2].request(model="a", moves_clock=False)))
                await clock.sleep(0.2)

        arrivals = asyncio.ensure_future(arrive())
        await clock.advance(5)
        for h in made:
            assert await ticks_per_s(clock, h, 2) <= 11
        arrivals.cancel()
        await after(clock, 90, asyncio.wait(asked))


@pytest.mark.thorough
@pytest.mark.parametrize("over_s", [0.0, REQUESTS * 0.03], ids=["at once", "by and by"])
async def test_very_many_requests_on_two_workers_for_ten_models_with_room_for_three(machine, over_s):
    """None fails, what is in flight is never unloaded, and the loads are those of the optimum and what fairness costs."""
    names = [f"m{number}" for number in range(10)]
    sizes = dict.fromkeys(names, 30)
    server = machine(sizes, capacity=100, load_s=1.0)
    trace = zipf(names, REQUESTS, seed=4)
    async with workers(2, sizes, deadline_s=120, min_residence_s=0.5, max_wait_s=10) as made:
        clock = made[0].clock

        async def ask(number, model):
            await clock.sleep(over_s * number / len(trace))
            return await made[number % 2].request(model=model, script=ok(latency_s=0.05), moves_clock=False)

        asked = asyncio.gather(*(ask(number, model) for number, model in enumerate(trace)))
        results = await after(clock, 200, asked)
    assert Counter(result.status for result in results) == {200: REQUESTS}
    loads = sum(server.loads.values())
    if over_s:
        # A model that nothing else would bring back is loaded once for every max_wait_s, at most.
        assert loads <= 1.3 * belady(trace, 3)
    else:
        assert loads == len(names)
    assert len(server.loaded) <= 3
