"""Gateways with different stores on one outbox, or with copies of one: the status reports it, as long as it is so."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from pointsman.store.memory import MemoryStore
from pointsman.store.protocol import JSON
from pointsman.testing import FakeClock, Harness
from pointsman_billing.neighbours import COPIED, LOOK_S, OTHER_STORE

from .kit import AT, worker


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(AT)


def reported(h: Harness) -> list[Any]:
    status = h.status("billing")
    assert status.ok is not bool(status.details["problems"])
    return [text.removeprefix("outbox: ") for text in status.details["problems"]]


async def looks(count: int, *workers: Harness) -> list[list[Any]]:
    """Let the workers look, and the outbox answer, some times; return what each reports then."""
    for _ in range(count):
        await workers[0].clock.advance(LOOK_S)
        # They write to the outbox, note it in the store, and read the outbox.
        for _ in range(2):
            for h in workers:
                # What was asked of the outbox before this has been answered with it.
                await h.plugin("billing")._outbox.read(lambda db: db.lives())
            await workers[0].clock.advance(0.1)
    return [reported(h) for h in workers]


async def test_gateways_of_different_stores_on_one_outbox_are_reported_as_long_as_they_are(
    tmp_path: Path, clock: FakeClock
) -> None:
    first, second = (MemoryStore(clock=clock.now) for _ in range(2))
    async with worker(tmp_path, clock=clock, store=first, name="one") as one:
        async with worker(tmp_path, clock=clock, store=second, name="two") as two:
            assert await looks(4, one, two) == [[OTHER_STORE], [OTHER_STORE]]
        assert await looks(6, one) == [[]]
    async with worker(tmp_path, clock=clock, store=second, name="three") as three:
        assert await looks(5, three) == [[]]


@pytest.mark.parametrize("goes_back", [True, False])
async def test_gateways_whose_store_is_lost_have_no_other_store(
    tmp_path: Path, clock: FakeClock, goes_back: bool
) -> None:
    """Its life is another afterwards, and the outbox has been used with the former one a moment ago."""
    given: dict[str, Any] = {"clock": clock, "store": MemoryStore(clock=clock.now)}
    async with worker(tmp_path, **given, name="one") as one, worker(tmp_path, **given, name="two") as two:
        await looks(4, one, two)
        snapshot = await one.store.scan("") if goes_back else []
        await looks(4, one, two)
        for key, _ in await one.store.scan(""):
            await one.store.delete(key)
        for key, value in snapshot:
            await one.store.put(key, value)
        seen = [await looks(1, one, two) for _ in range(6)]
        assert all(worker.host.problems() for worker in (one, two))
        assert seen == 6 * [[[], []]]


async def test_gateways_that_use_copies_of_an_outbox_are_reported_as_long_as_they_do(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Workers of one outbox are not, nor is one that continues with a backup of it, or with the same outbox."""
    given: dict[str, Any] = {"clock": clock, "store": MemoryStore(clock=clock.now)}
    original, copy, backup = (tmp_path / name for name in ("original", "copy", "backup"))
    async with worker(original, **given, name="one") as one, worker(original, **given, name="two") as two:
        assert await looks(4, one, two) == [[], []]
    shutil.copytree(original, backup)
    async with worker(original, **given, name="three") as three:
        assert await looks(4, three) == [[]]
        shutil.copytree(original, copy)
        async with worker(copy, **given, name="four") as four:
            assert await looks(4, three, four) == [[COPIED], [COPIED]]
        assert await looks(6, three) == [[]]
    async with worker(backup, **given, name="five") as five:
        assert await looks(6, five) == [[]]


async def test_what_a_neighbour_does_stays_reported_while_a_worker_looks_and_while_the_store_is_away(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"clock": clock, "store": MemoryStore(clock=clock.now)}
    original, copy = (tmp_path / name for name in ("original", "copy"))
    async with worker(original, **given, name="one") as one:
        shutil.copytree(original, copy)
        async with worker(copy, **given, name="two") as two:
            assert await looks(4, one, two) == [[COPIED], [COPIED]]
            seen: list[list[Any]] = []
            get = one.store.get

            async def look_and_get(key: str) -> JSON:
                seen.append(reported(one))
                return await get(key)

            monkeypatch.setattr(one.store, "get", look_and_get)
            await looks(2, one, two)
            one.store.down = True
            await looks(2, one, two)
            assert seen
            assert all(problems == [COPIED] for problems in [*seen, reported(one)])


@pytest.mark.parametrize("away_s", [30.0, 150.0])
async def test_a_store_that_was_away_before_the_gateway_ended_did_not_go_back(
    tmp_path: Path, clock: FakeClock, away_s: float
) -> None:
    """Its heartbeats are not counted meanwhile, and the outbox is still in use."""
    given: dict[str, Any] = {"clock": clock, "store": MemoryStore(clock=clock.now)}
    async with worker(tmp_path, **given, name="one") as one:
        await looks(4, one)
        one.store.down = True
        await looks(int(away_s / LOOK_S), one)
    async with worker(tmp_path, **given, name="two") as two:
        assert two.host.describe()["problems"] == []


async def test_a_store_that_went_back_while_the_gateway_was_down_is_reported(tmp_path: Path, clock: FakeClock) -> None:
    store = MemoryStore(clock=clock.now)
    async with worker(tmp_path, clock=clock, store=store, name="one") as one:
        await looks(4, one)
        snapshot = await store.scan("")
        await looks(10, one)
    for key, _ in await store.scan(""):
        await store.delete(key)
    for key, value in snapshot:
        await store.put(key, value)
    async with worker(tmp_path, clock=clock, store=store, name="two") as two:
        (problem,) = two.host.describe()["problems"]
        assert problem.startswith("the store went back while the gateway was down")


async def test_a_look_that_the_end_of_the_worker_overtakes_is_no_fault(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for the store while the outbox is closed."""
    async with worker(tmp_path, clock=clock, store=MemoryStore(clock=clock.now), name="one") as one:
        neighbours = one.plugin("billing")._neighbours
        asked, closed = asyncio.Event(), asyncio.Event()

        async def held_up(now: int) -> dict[str, int]:
            asked.set()
            await closed.wait()
            return {"one": now}

        monkeypatch.setattr(neighbours, "_note_in_store", held_up)
        looking = asyncio.ensure_future(neighbours.look())
        await asked.wait()
    closed.set()
    await looking
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
