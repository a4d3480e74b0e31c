"""Held bills: who decides on those that a dead worker has left, and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock
from pointsman_billing.errors import OutboxUnavailable
from pointsman_billing.held import Held
from pointsman_billing.neighbours import LOOK_S, Neighbours
from pointsman_billing.outbox import Outbox

from .outbox_writer import MB, a_bill

IDS = ["request-1", "request-2"]


class Takeovers:
    """What the other machines have taken over; something may happen while it is read."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def has_left(self, worker: str) -> bool:
        return worker == "dead"

    async def taken(self) -> Collection[str]:
        found = frozenset(self.ids)
        if self.meanwhile is not None:
            await self.meanwhile()
        return found


class Setup:
    """An outbox with two bills that a dead worker holds, and the worker that finds them."""

    def __init__(self, outbox: Outbox, life: str) -> None:
        self.outbox, self.takeovers, self.tasks, self.clock = outbox, Takeovers(), [], FakeClock(1000.0)
        spawn = SimpleNamespace(spawn=lambda work, **_: self.tasks.append(asyncio.ensure_future(work)))
        self.store = MemoryStore(clock=self.clock.now)
        services: Any = SimpleNamespace(
            worker="mine", takeovers=self.takeovers, tasks=spawn, clock=self.clock, store=self.store
        )
        self.neighbours = Neighbours(outbox, services, "machine", life)
        self.held = Held(outbox, services, lambda: None, self.neighbours)

    async def look(self, *elsewhere: str, times: int = 3) -> None:
        """Look for other users of the outbox; these note themselves in the store alone, as with a copy."""
        for _ in range(times):
            known = {worker: int(self.clock.now()) for worker in elsewhere}
            await self.store.put("users/machine", known | ((await self.store.get("users/machine")) or {}) | known)
            await self.neighbours.look()
            await self.clock.advance(LOOK_S)

    async def come_back(self) -> None:
        """Settle the requests here, as a worker does to which their row has come back."""
        self.takeovers.ids = set()
        await self.outbox.append([a_bill(1), a_bill(2)], holder="mine")

    async def holders(self) -> dict[str, list[str]]:
        return await self.outbox.read(lambda db: db.held_by_others("nobody"))

    async def deliverable(self) -> set[str]:
        batch = await self.outbox.read(lambda db: db.next_batch("a", 100))
        return {json.loads(event.body)["request_id"] for _, event in batch.events}


async def opened(tmp_path: Path, life: str = "mine") -> AsyncGenerator[Setup, None]:
    outbox = Outbox(tmp_path / "outbox", sinks=["a"], fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()
    await outbox.write(lambda db: db.join("a", from_now=False))
    await outbox.append([a_bill(1), a_bill(2)], holder="dead")
    yield Setup(outbox, life)
    await outbox.close()


@pytest.fixture
async def left(tmp_path: Path) -> AsyncIterator[Setup]:
    async for setup in opened(tmp_path):
        await setup.look()
        yield setup


async def test_what_another_machine_bills_goes_and_the_rest_counts(left: Setup) -> None:
    left.takeovers.ids = {"request-1"}
    assert await left.deliverable() == set()
    await left.held.resolve()
    assert await left.deliverable() == {"request-2"}
    assert await left.holders() == {}


async def test_a_worker_that_lives_decides_on_its_own(left: Setup) -> None:
    await left.come_back()
    left.takeovers.ids = set(IDS)
    await left.held.resolve()
    assert await left.holders() == {"mine": IDS}


async def test_what_comes_back_while_it_is_decided_on_stays_held(left: Setup) -> None:
    """The log of takeovers was read before; who has settled the requests since decides on them."""
    left.takeovers.ids, left.takeovers.meanwhile = set(IDS), left.come_back
    await left.held.resolve()
    assert await left.holders() == {"mine": IDS}
    left.held.release(IDS)
    await asyncio.gather(*left.tasks)
    assert await left.deliverable() == set(IDS)


async def test_what_comes_back_before_the_outbox_could_remove_it_stays(
    left: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(_: object) -> None:
        raise OutboxUnavailable("the disk is full")

    left.takeovers.ids = set(IDS)
    with monkeypatch.context() as patch:
        patch.setattr(left.outbox, "write", unavailable)
        left.held.discard(IDS)
        await asyncio.gather(*left.tasks)
    await left.come_back()
    await left.held.resolve()
    assert await left.holders() == {"mine": IDS}


@pytest.mark.parametrize(
    ("store", "at", "released"), [("other", 1020, False), ("other", 930, True), ("mine", 1020, True)]
)
async def test_what_a_gateway_with_another_store_may_hold_is_left_to_it(
    left: Setup, store: str, at: int, released: bool
) -> None:
    """Whether its workers live is known to its own store alone."""
    await left.outbox.write(lambda db: db.used(store, "other", at))
    await left.held.resolve()
    assert bool(await left.deliverable()) is released


async def test_what_a_gateway_with_a_copy_has_as_well_is_decided_on_once(left: Setup) -> None:
    """What a dead worker had held waits until the copy is out of use; what a worker holds that lives is its own there."""
    await left.outbox.append([a_bill(3)], holder="there")
    await left.look("there")
    await left.held.resolve()
    assert await left.deliverable() == set()
    assert await left.holders() == {"dead": IDS}, "the other is discarded"
    await left.look(times=5)
    await left.held.resolve()
    assert await left.deliverable() == set(IDS)


async def test_bills_of_the_dead_wait_until_a_copy_would_have_been_seen(tmp_path: Path) -> None:
    async with contextlib.aclosing(opened(tmp_path)) as setups:
        setup = await anext(setups)
        for _ in range(3):
            await setup.held.resolve()
            assert await setup.deliverable() == set()
            await setup.look(times=1)
        await setup.held.resolve()
        assert await setup.deliverable() == set(IDS)


async def test_bills_of_the_dead_count_where_each_worker_has_a_store_of_its_own(tmp_path: Path) -> None:
    """Such a store has no life, and no other users can be seen in it: they were held while the gateway shared one."""
    async with contextlib.aclosing(opened(tmp_path, life="")) as setups:
        setup = await anext(setups)
        await setup.look()
        await setup.held.resolve()
        assert await setup.deliverable() == set(IDS)
