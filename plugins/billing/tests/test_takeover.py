"""Machines that share the store, each with an outbox of its own: whichever dies, and when, each request counts once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from pointsman.host.journal import HEARTBEAT_TTL_S
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness
from pointsman_billing.schema import FILE

from .kit import by_type, eventually, get, lines, worker

REDIS = {"store": {"backend": "redis", "url": "redis://shared.test"}}


@pytest.fixture
async def shared():
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    yield {"clock": clock, "store": store, "host": REDIS}
    await store.close()


def machine(path: Path, name: str, shared: Any, life: int = 0) -> Harness:
    path.mkdir(exist_ok=True)
    return worker(path / name, {"ndjson": {"path": "bills.ndjson"}}, name=f"{name}{life}", **shared)


def delivered(*directories: Path) -> Counter[str]:
    """Return how often each request has been delivered, over the sinks of all machines."""
    return Counter(
        row["request_id"] for path in directories for row in by_type(lines(path / "bills.ndjson"), "request")
    )


async def pass_time(h: Harness, seconds: float = 3 * HEARTBEAT_TTL_S) -> None:
    for _ in range(round(seconds)):
        await h.clock.advance(1.0)
        await asyncio.sleep(0)


async def counted(h: Harness) -> tuple[int, int]:
    """Return the requests that usage counts over all machines, and those that reconciliation counts on this one."""
    await pass_time(h, 12)
    usage = await get(h, "/usage", period="total", group_by="tenant")
    return sum(row["requests"] for row in usage["usage"]), (await get(h, "/reconcile"))["requests"]["total"]


async def will_count(expected: tuple[int, ...], *machines: Harness) -> None:
    """Wait until usage counts the first number on every machine, and reconciliation the others, one on each machine.

    The sums are written by threads of the machines, which need real time.
    """

    async def as_expected() -> bool:
        found = [await counted(machine) for machine in machines]
        return all(usage == expected[0] for usage, _ in found) and [n for _, n in found] == list(expected[1:])

    await eventually(machines[0], as_expected)


async def test_without_a_death_each_request_counts_as_soon_as_its_row_is_gone(tmp_path, shared):
    async with machine(tmp_path, "a", shared) as a:
        ids = [(await a.request()).request_id for _ in range(5)]
        await eventually(a, lambda: delivered(tmp_path / "a") == Counter(ids))
        await will_count((5, 5), a)


@pytest.mark.parametrize("returns", [True, False])
async def test_what_a_dead_machine_had_billed_without_removing_it_is_billed_once(tmp_path, shared, returns):
    """The dead machine has written the bills down; the other one bills them, and only that counts."""
    async with machine(tmp_path, "b", shared) as b, machine(tmp_path, "a", shared) as a:
        await stop_removing_after_write(a)
        ids = [(await a.request()).request_id for _ in range(3)]
        await eventually(a, lambda: held(tmp_path / "a") == 3)
        await pass_time(a, 2)
        assert delivered(tmp_path / "a") == {}
        await a.crash()
        await pass_time(b)
        await eventually(b, lambda: delivered(tmp_path / "a", tmp_path / "b") == Counter(ids))
        if returns:
            async with machine(tmp_path, "a", shared, life=1) as again:
                await pass_time(again)
                await eventually(again, lambda: held(tmp_path / "a") == 0)
                more = (await again.request()).request_id
                await eventually(again, lambda: delivered(tmp_path / "a", tmp_path / "b") == Counter([*ids, more]))
                await will_count((4, 1), again)
        await will_count((4 if returns else 3, 3), b)


async def test_what_a_dead_worker_had_billed_counts_when_its_own_machine_returns_first(tmp_path, shared):
    async with machine(tmp_path, "a", shared) as a:
        await stop_removing_after_write(a)
        ids = [(await a.request()).request_id for _ in range(3)]
        await eventually(a, lambda: held(tmp_path / "a") == 3)
        await a.crash()
    async with machine(tmp_path, "a", shared, life=1) as again:
        await pass_time(again)
        await eventually(again, lambda: delivered(tmp_path / "a") == Counter(ids))
        await will_count((3, 3), again)


async def test_a_machine_that_was_thought_dead_counts_nothing_that_was_taken_over(tmp_path, shared):
    """Its heartbeat was late: it learns that when it removes its rows."""
    async with machine(tmp_path, "b", shared) as b, machine(tmp_path, "a", shared) as a:
        proceed = await stop_removing_after_write(a)
        ids = [(await a.request()).request_id for _ in range(3)]
        await eventually(a, lambda: held(tmp_path / "a") == 3)
        heartbeat = "host/{journal}worker/a0-1"
        await shared["store"].delete(heartbeat)
        await b.host._journal.recovery.recover()
        await eventually(b, lambda: delivered(tmp_path / "b") == Counter(ids))
        await proceed()
        await eventually(a, lambda: held(tmp_path / "a") == 0)
        # Until then the other machine may take over what comes next, too.
        await eventually(a, lambda: shared["store"].get(heartbeat))
        more = (await a.request()).request_id
        await eventually(a, lambda: delivered(tmp_path / "a") == Counter([more]))
        await will_count((4, 1, 3), a, b)


async def test_a_row_that_comes_back_to_its_machine_counts_there(tmp_path, shared):
    """The machine that took it over dies, too, before it has settled anything."""
    async with machine(tmp_path, "a", shared) as a:
        await stop_removing_after_write(a)
        ids = [(await a.request()).request_id for _ in range(2)]
        await eventually(a, lambda: held(tmp_path / "a") == 2)
        await a.crash()
    async with machine(tmp_path, "b", shared) as b:
        b.plugin("billing")._recorder.record = never
        await pass_time(b)
        assert b.host.describe()["journal"]["recovered"] == 2
        await b.crash()
    async with machine(tmp_path, "a", shared, life=1) as again:
        await pass_time(again)
        await eventually(again, lambda: delivered(tmp_path / "a") == Counter(ids))
        await will_count((2, 2), again)


@pytest.mark.parametrize("seed", range(2))
async def test_machines_that_die_at_random_count_each_request_once(tmp_path, shared, seed):
    """Two machines, of which one or the other dies every few requests and comes back, or stays away for a while."""
    chance = random.Random(seed)
    names, lives, ids = ("a", "b"), Counter[str](), []
    async with AsyncExitStack() as stack:
        running: dict[str, Harness] = {}

        async def start(name: str) -> None:
            lives[name] += 1
            running[name] = await stack.enter_async_context(machine(tmp_path, name, shared, lives[name]))

        for name in names:
            await start(name)
        for _ in range(12):
            name = chance.choice([n for n in names if n in running] or list(names))
            if name not in running:
                await start(name)
            h = running[name]
            for _ in range(chance.randrange(1, 4)):
                ids.append((await h.request()).request_id)
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.random() * 0.01)
                    await h.clock.advance(chance.random())
            # What is only in memory when a worker dies is lost, as documented: not what is counted here.
            await eventually(h, lambda journal=h.host._journal: not journal._waiting)
            fate = chance.random()
            if fate < 0.4:
                await running.pop(name).crash()
            elif fate < 0.6:
                await pass_time(h, chance.randrange(20))
        for name in names:
            if name not in running:
                await start(name)
        a = running["a"]
        await pass_time(a, 4 * HEARTBEAT_TTL_S)
        both = [tmp_path / name for name in names]
        await eventually(a, lambda: delivered(*both) == Counter(ids))
        await eventually(a, lambda: not any(map(held, both)))

        async def each_once() -> bool:
            one, other = [await counted(running[name]) for name in names]
            return (one[0], other[0], one[1] + other[1]) == (len(ids), len(ids), len(ids))

        await eventually(a, each_once)


async def never(*_: object, **__: object) -> None:
    await asyncio.Event().wait()


def held(directory: Path) -> int:
    with closing(sqlite3.connect(directory / ".pointsman-billing" / FILE)) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM held").fetchall()
    return int(count)


async def stop_removing_after_write(h: Harness) -> Any:
    """Let the worker write and settle, but not remove what it has settled; return a function that lets it go on."""
    journal = h.host._journal
    step, kept = journal._step, {}

    async def only_write(puts: Any, finished: Any) -> None:
        kept.update(finished)
        if puts:
            await step(puts, {})

    async def go_on() -> None:
        journal._step = step
        await step({}, kept)

    journal._step = only_write
    return go_on
