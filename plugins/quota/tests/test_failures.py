"""Dead workers, absent stores, clients that go away: nothing leaks and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import StoreUnavailable
from pointsman.store import AtomicOp, StateStore
from pointsman.testing import FakeClock, Harness, never, ok
from pointsman_quota.ledger_client import LedgerClient

from .kit import call, details, tenant, usage, worker


class Lossy:
    """A store whose answers get lost, or whose steps are carried out only after it was given up.

    Attributes:
        asked: How often it was asked for each kind of step.
        lost: How many answers to each kind of step are lost, from now on.
        late: The same of the steps that wait for ``arrive``.
    """

    def __init__(self, h: Harness) -> None:
        ledger: LedgerClient = h.plugin("quota")._ledger
        self._store: StateStore = ledger._store
        self._waiting: list[tuple[AtomicOp, Sequence[str], Any]] = []
        self.asked: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        ledger._store = self  # type: ignore[assignment]  # nothing else is asked of it

    async def run(self, op: AtomicOp, keys: Sequence[str], args: Any) -> Any:
        do = args["do"]
        self.asked[do] += 1
        if self.late[do]:
            self.late[do] -= 1
            self._waiting.append((op, keys, args))
            raise StoreUnavailable("no answer in time")
        answer = await self._store.run(op, keys, args)
        if self.lost[do]:
            self.lost[do] -= 1
            raise StoreUnavailable("no answer in time")
        return answer

    async def arrive(self) -> None:
        """Carry out what is late."""
        for step in self._waiting:
            await self._store.run(*step)
        self._waiting.clear()


async def settled(h: Harness) -> None:
    """Let enough time pass for whoever has to try again."""
    for _ in range(4):
        await h.clock.advance(1.0)
        await h.clock.quiet()
    await h.settled()


async def test_a_dead_workers_reservations_are_free_after_one_lease() -> None:
    async with worker(tenant(limits={"max_concurrent_requests": 2, "tokens_per_day": 200}), lease_s=60) as h:
        tasks = [asyncio.create_task(call(h, script=never(), moves_clock=False)) for _ in range(2)]
        await h.clock.quiet()
        await h.crash()
        await h.start()
        assert (await call(h)).status == 429
        await h.clock.advance(60 + 5)
        assert (await usage(h))["tenant"]["requests_in_flight"] == 0
        assert (await call(h)).status == 200
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_dead_workers_settlement_is_charged_by_another() -> None:
    """The answer is out and journaled, nothing is settled yet: the next worker does it."""
    async with worker(tenant()) as h:
        h.plugin("quota")._ledger.settle = None
        await call(h)
        await h.clock.quiet()
        assert (await usage(h))["tenant"]["day_tokens"] == 0
        await h.crash()
        await h.start()
        await h.clock.advance(600)
        await h.settled()
        after = (await usage(h))["tenant"]
        assert (after["day_tokens"], after["requests_in_flight"]) == (15, 0)


async def test_settling_again_changes_nothing() -> None:
    """Whoever finishes a settlement, and however often, the tokens are spent once."""
    async with worker(tenant(limits={"tokens_per_minute": 1000})) as h:
        result = await call(h)
        assert result.settlement is not None
        await h.settled()
        await h.restart()
        for _ in range(3):
            await h.plugin("quota").settle(settlement=result.settlement)
        assert (await usage(h))["tenant"]["day_tokens"] == 15


async def test_a_long_request_keeps_its_slot() -> None:
    """Its lease is renewed as long as its worker lives, up to the longest time a request may take."""
    section = {"lease_s": 30, "max_request_s": 600}
    async with worker(tenant(limits={"max_concurrent_requests": 1}), **section) as h:
        task = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        await h.clock.advance(500)
        assert (await call(h)).status == 429
        await h.clock.advance(200)
        assert (await call(h)).status == 200
        task.cancel()
        await asyncio.wait({task})
        await h.settled()
        assert (await usage(h))["tenant"]["requests_in_flight"] == 0


async def test_without_a_store_requests_are_denied_by_default() -> None:
    async with worker(tenant()) as h:
        h.store.down = True
        assert (await call(h)).status == 503
        assert not h.status("quota").ok
        h.store.down = False
        assert (await call(h)).status == 200
        await h.settled()
        assert h.status("quota").ok
        assert details(h)["store_failures"] == 1


async def test_without_a_store_each_worker_can_count_by_itself() -> None:
    """Limits still hold in the worker, it is visible, and what was used is charged when the store is back."""
    async with worker(tenant(limits={"requests_per_minute": 3}), on_failure="allow") as h:
        assert (await call(h)).status == 200
        await h.settled()
        h.store.down = True
        assert [(await call(h, moves_clock=False)).status for _ in range(5)] == [200, 200, 200, 429, 429]
        status = h.status("quota")
        assert (status.ok, details(h)["counted_locally"]) == (False, 5)
        assert "counts by itself" in status.summary
        h.store.down = False
        await h.clock.advance(120)
        await h.settled()
        assert (await usage(h))["tenant"]["day_tokens"] == 4 * 15
        assert (await usage(h))["tenant"]["requests_in_flight"] == 0
        assert h.status("quota").ok


async def test_a_cancelled_admission_leaves_nothing_behind() -> None:
    """The client goes away while the store is being asked, before or after it has answered."""
    async with worker(tenant(limits={"max_concurrent_requests": 1})) as h:
        for turns in range(1, 12):
            task = asyncio.create_task(call(h, moves_clock=False))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            await h.clock.quiet()
            await h.settled()
            assert (await usage(h))["tenant"]["requests_in_flight"] == 0, turns


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("reserves", [0, 1])
async def test_a_settlement_whose_answer_is_lost_charges_once(reserves: int, times: int) -> None:
    """Whether or not the reservation's answer was lost too, and however often the journal tries."""
    async with worker(tenant(limits={"tokens_per_minute": 1000}), on_failure="allow") as h:
        store = Lossy(h)
        store.lost.update(reserve=reserves, settle=times)
        result = await call(h)
        assert result.route.reservations[0].data["local"] is bool(reserves)
        await h.clock.advance(60.0)
        await h.settled()
        assert store.lost.total() == 0
        after = (await usage(h))["tenant"]
        assert (after["day_tokens"], after["requests_in_flight"], after["reserved_tokens"]) == (15, 0, 0)


@pytest.mark.parametrize("how", ["lost", "late"])
async def test_a_reservation_whose_answer_is_lost_is_released(how: str) -> None:
    """The answer is 503 at once; the slot is free soon after, also if the store was asked to release it first."""
    async with worker(tenant(limits={"max_concurrent_requests": 1, "tokens_per_day": 150})) as h:
        store = Lossy(h)
        getattr(store, how).update(reserve=1)
        store.lost["settle"] = 1
        began = h.clock.monotonic()
        assert (await call(h)).status == 503
        assert h.clock.monotonic() == began
        await settled(h)
        await store.arrive()
        assert (await usage(h))["tenant"]["requests_in_flight"] == 0
        assert (await call(h)).status == 200
        await h.settled()
        assert (await usage(h))["tenant"]["day_tokens"] == 15


async def test_nothing_is_released_after_its_lease() -> None:
    """The store is away for longer: there is nothing left to release, and nobody tries."""
    async with worker(tenant(limits={"max_concurrent_requests": 1}), lease_s=5) as h:
        store = Lossy(h)
        h.store.down = True
        assert (await call(h)).status == 503
        await h.clock.advance(30.0)
        h.store.down = False
        tried, failures = store.asked["settle"], details(h)["store_failures"]
        assert tried > 0
        await h.clock.advance(30.0)
        assert (store.asked["settle"], details(h)["store_failures"]) == (tried, failures)


async def test_a_reservation_that_is_refused_after_its_answer_was_lost_is_released() -> None:
    """The worker's own count refuses, so nobody settles what the store may have taken."""
    async with worker(tenant(limits={"max_concurrent_requests": 1}), on_failure="allow") as h:
        h.store.down = True
        first = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        h.store.down = False
        await h.clock.advance(1.5)
        store = Lossy(h)
        store.lost["reserve"] = 1
        second = asyncio.create_task(call(h, moves_clock=False))
        await h.clock.advance(0.4)
        assert (await second).status == 429
        await settled(h)
        assert (await usage(h))["tenant"]["requests_in_flight"] == 0
        first.cancel()
        await asyncio.wait({first})


@pytest.mark.parametrize("back_s", [50, 3600, 40 * 86_400])
async def test_after_a_clock_was_set_back_limits_hold_and_let_pass(back_s: int, tmp_path: Path) -> None:
    """A worker comes back with an earlier time: slots are counted, rates drain, and days begin anew."""
    acme = tenant(limits={"requests_per_minute": 60, "max_concurrent_requests": 2, "tokens_per_day": 100_000})
    clock = FakeClock()
    ahead = FakeClock(clock.now() + back_s)
    async with worker(acme, store="disk", path=tmp_path, clock=ahead) as h:
        for _ in range(20):
            assert (await call(h, moves_clock=False)).status == 200
        await h.settled()
    async with worker(acme, store="disk", path=tmp_path, clock=clock, name="later") as h:
        tasks = [asyncio.create_task(call(h, script=never(), moves_clock=False)) for _ in range(10)]
        await h.clock.quiet()
        assert (await usage(h))["tenant"]["requests_in_flight"] == details(h)["in_flight"] == 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await h.settled()
        statuses = []
        for _ in range(100):
            await h.clock.advance(1.5)
            statuses.append((await call(h, script=ok(), moves_clock=False)).status)
            await h.settled()
        assert statuses == [200] * 100
        assert (await usage(h))["tenant"]["day_tokens"] == 120 * 15
        await h.clock.skip(86_400.0)
        assert (await usage(h))["tenant"]["day_tokens"] == 0


class WallClock(FakeClock):
    """One whose wall clock can be set."""

    set_by_s = 0.0

    def now(self) -> float:
        return super().now() + self.set_by_s


#: 02:13:20 and 23:59:59.9 UTC.
MORNING, MIDNIGHT = 1_763_000_000.0, 1_763_078_399.9


@pytest.mark.parametrize(
    ("at", "ahead_s", "reported"),
    [
        (MORNING, 3600.0, False),
        (MIDNIGHT, 0.2, False),
        (MIDNIGHT, 30.0, False),
        (MIDNIGHT, 61.0, True),
        (MORNING, 86_400.0, True),
        (MORNING, 40 * 86_400.0, True),
    ],
)
async def test_a_clock_that_is_set_back_to_an_earlier_day_is_reported(
    at: float, ahead_s: float, reported: bool
) -> None:
    """What had been spent on that day before the clock was wrong counts no more. Less than a minute is bridged."""
    acme = tenant(limits={"tokens_per_day": 100_000})
    clock = WallClock(at)
    async with worker(acme, clock=clock) as h:
        for set_by_s in (0.0, ahead_s, 0.0):
            clock.set_by_s = set_by_s
            assert h.status("quota").ok
            assert (await call(h, moves_clock=False)).status == 200
            await h.settled()
        assert h.status("quota").ok is not reported
        assert ("the clock was set back to an earlier day" in h.status("quota").summary) is reported
