"""A slot is free when the answer is complete, whenever the request is settled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pointsman.testing import FakeClock, Harness, breaks, disconnect, error, never

from .kit import call, details, tenant, usage, worker

ONE = tenant(limits={"max_concurrent_requests": 1})


async def unsettled(h: Harness) -> None:
    """Settlements wait for an announcement that never comes, in real time, and the fake clock stands still."""
    assert details(h)["in_flight"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_asks_again_after_each_answer_is_never_refused(*, stream: bool) -> None:
    async with worker(ONE, money_from="events", money_wait_ms=8000) as h:
        for _ in range(50):
            assert (await call(h, stream=stream, moves_clock=False)).status == 200
        await unsettled(h)
        assert (await usage(h))["tenant"]["requests_in_flight"] == 1


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        ([error(400)], False),
        ([breaks(after_pieces=1)], True),
        (disconnect(), False),
        (disconnect(after_pieces=1), True),
    ],
)
async def test_a_slot_is_free_after_a_failure_too(script: object, *, stream: bool) -> None:
    async with worker(ONE, money_from="events", money_wait_ms=8000) as h:
        await call(h, script=script, stream=stream, retries=0, moves_clock=False)
        assert (await call(h, moves_clock=False)).status == 200


async def test_only_the_slot_is_free_before_the_settlement() -> None:
    """What was reserved counts until it is known what was used."""
    limits = {"max_concurrent_requests": 1, "tokens_per_day": 150}
    async with worker(tenant(limits=limits), money_from="events", money_wait_ms=8000) as h:
        assert (await call(h, moves_clock=False)).status == 200
        refused = await call(h, moves_clock=False)
        assert (refused.status, refused.denial and refused.denial.code) == (429, "tokens_per_day_exceeded")
        held = (await usage(h))["tenant"]
        assert (held["reserved_tokens"], held["day_tokens"]) == (92, 0)


async def test_a_running_request_keeps_its_slot() -> None:
    async with worker(ONE, money_from="events", money_wait_ms=8000) as h:
        assert (await call(h, moves_clock=False)).status == 200
        running = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        refused = asyncio.create_task(call(h, moves_clock=False))
        await h.clock.advance(0.4)
        assert (await refused).status == 429
        running.cancel()
        await asyncio.wait({running})


async def test_other_workers_see_it_before_they_refuse(tmp_path: Path) -> None:
    """A settlement that takes long keeps no slot: the worker that has the request frees it in the store."""
    clock = FakeClock()
    given = {"store": "disk", "path": tmp_path, "clock": clock, "money_from": "events", "money_wait_ms": 8000}
    async with worker(ONE, **given) as h, worker(ONE, **given, name="other") as other:
        assert (await call(h, moves_clock=False)).status == 200
        asked = asyncio.create_task(call(other, moves_clock=False))
        for _ in range(11):
            # The store's disk is real and takes real time.
            await asyncio.sleep(0.05)
            await clock.advance(0.025)
        assert (await asked).status == 200
        await unsettled(h)
