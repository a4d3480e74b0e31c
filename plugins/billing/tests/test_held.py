"""Held bills: who decides on those that a dead worker has left, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.testing import FakeClock
from pointsman_billing.errors import OutboxUnavailable
from pointsman_billing.held import Held
from pointsman_billing.neighbours import Neighbours
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

    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self.takeovers, self.tasks = outbox, Takeovers(), []
        spawn = SimpleNamespace(spawn=lambda work, **_: self.tasks.append(asyncio.ensure_future(work)))
        services: Any = SimpleNamespace(worker="mine", takeovers=self.takeovers, tasks=spawn, clock=FakeClock(1000.0))
        self.held = Held(outbox, services, lambda: None, Neighbours(outbox, services, "machine", "mine"))

    async def come_back(self) -> None:
        """Settle the requests here, as a worker does to which their row has come back."""
        self.takeovers.ids = set()
        await self.outbox.append([a_bill(1), a_bill(2)], holder="mine")

    async def holders(self) -> dict[str, list[str]]:
        return await self.outbox.read(lambda db: db.held_by_others("nobody"))

    async def deliverable(self) -> set[str]:
        batch = await self.outbox.read(lambda db: db.next_batch("a", 100))
        return {json.loads(event.body)["request_id"] for _, event in batch.events}


@pytest.fixture
async def left(tmp_path: Path) -> AsyncIterator[Setup]:
    outbox = Outbox(tmp_path / "outbox", sinks=["a"], fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()
    await outbox.write(lambda db: db.join("a", from_now=False))
    await outbox.append([a_bill(1), a_bill(2)], holder="dead")
    yield Setup(outbox)
    await outbox.close()


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
    ("store", "at", "released"), [("other", 990, False), ("other", 900, True), ("mine", 990, True)]
)
async def test_what_a_gateway_with_another_store_may_hold_is_left_to_it(
    left: Setup, store: str, at: int, released: bool
) -> None:
    """Whether its workers live is known to its own store alone."""
    await left.outbox.write(lambda db: db.used(store, "other", at))
    await left.held.resolve()
    assert bool(await left.deliverable()) is released
