"""Gateways with different stores on one outbox, or with copies of one: the status says so, as long as it is so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, Harness
from pointsman_billing.neighbours import COPIED, LOOK_S, OTHER_STORE

from .kit import AT, worker


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(AT)


def said(h: Harness) -> list[Any]:
    status = h.status("billing")
    assert status.ok is not bool(status.details["problems"])
    return [text.removeprefix("outbox: ") for text in status.details["problems"]]


async def looks(count: int, *workers: Harness) -> list[list[Any]]:
    """Let the workers look, and the outbox answer, some times; return what each says then."""
    for _ in range(count):
        await workers[0].clock.advance(LOOK_S)
        # They write to the outbox, note it in the store, and read the outbox.
        for _ in range(2):
            for h in workers:
                # What was asked of the outbox before this has been answered with it.
                await h.plugin("billing")._outbox.read(lambda db: db.lives())
            await workers[0].clock.advance(0.1)
    return [said(h) for h in workers]


async def test_gateways_of_different_stores_on_one_outbox_are_said_as_long_as_they_are(
    tmp_path: Path, clock: FakeClock
) -> None:
    first, second = (MemoryStore(clock=clock.now) for _ in range(2))
    async with worker(tmp_path, clock=clock, store=first, name="one") as one:
        async with worker(tmp_path, clock=clock, store=second, name="two") as two:
            assert await looks(4, one, two) == [[OTHER_STORE], [OTHER_STORE]]
        assert await looks(6, one) == [[]]
    async with worker(tmp_path, clock=clock, store=second, name="three") as three:
        assert await looks(5, three) == [[]]


async def test_gateways_that_use_copies_of_an_outbox_are_said_as_long_as_they_do(
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
