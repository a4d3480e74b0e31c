"""Dead workers, absent stores, clients that go away: nothing leaks and nothing is lost."""

from __future__ import annotations

import asyncio

from pointsman.testing import never

from .kit import call, details, tenant, usage, worker


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
        h.plugin("quota")._gate.settle = None
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
