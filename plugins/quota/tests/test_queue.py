"""Waiting for a slot instead of being refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pointsman.testing import FakeClock, Harness, ok
from pointsman.types import Identity
from pointsman_quota.config import Queue
from pointsman_quota.plugin import plugin
from pointsman_quota.queue import FairQueue

LIMITS = {"max_concurrent_requests": 1}


def worker(*tenants: dict[str, Any], queue: dict[str, Any] | None = None, **section: Any) -> Harness:
    kit = {name: section.pop(name) for name in ("store", "clock", "name", "tracing") if name in section}
    own = {"tenants": list(tenants), "queue": queue or {"max_wait_ms": 800}, **section}
    return Harness([(plugin, own)], **kit)


def tenant(name: str, priority: int = 0, **given: Any) -> dict[str, Any]:
    return {"id": name, "match": {"teams": [name]}, "priority": priority, **given}


def details(h: Harness) -> Any:
    return h.status("quota").details


async def start(h: Harness, name: str, latency_s: float) -> asyncio.Task[Any]:
    task = asyncio.create_task(
        h.request(identity=Identity(team_id=name), script=ok(latency_s=latency_s), moves_clock=False)
    )
    await h.clock.quiet()
    return task


async def test_a_request_waits_for_a_slot_and_gets_it() -> None:
    async with worker(tenant("a", limits=LIMITS)) as h:
        first = await start(h, "a", 0.3)
        second = await start(h, "a", 0.3)
        assert details(h)["waiting"] == 1
        await h.clock.advance(0.3)
        await h.clock.advance(0.3)
        assert [(await task).status for task in (first, second)] == [200, 200]
        assert details(h)["queue"] == {"admitted": 1, "gave_up": 0, "turned_away": 0}
        assert details(h)["waiting"] == 0


async def test_the_trace_says_what_was_waited_for() -> None:
    async with worker(tenant("a", limits=LIMITS), tenant("b"), tracing=True) as h:
        waiting = [await start(h, name, 0.3) for name in ("a", "a", "b")]
        for _ in range(3):
            await h.clock.advance(0.3)
        await asyncio.gather(*waiting)
        spans = [dict(span.attributes or {}) for span in h.spans if span.name == "pre_route"]
    told = [(span["pointsman.quota.tenant"], span.get("pointsman.quota.waited_for")) for span in spans]
    assert sorted(told, key=str) == [("a", "max_concurrent_requests of tenant 'a'"), ("a", None), ("b", None)]


async def test_the_wait_is_bounded() -> None:
    async with worker(tenant("a", limits=LIMITS)) as h:
        first = await start(h, "a", 5.0)
        second = await start(h, "a", 0.1)
        await h.clock.advance(0.79)
        assert not second.done()
        await h.clock.advance(0.02)
        refused = await second
        assert (refused.status, refused.denial and refused.denial.code) == (429, "max_concurrent_requests_exceeded")
        await h.clock.advance(5)
        assert (await first).status == 200
        assert details(h)["queue"]["gave_up"] == 1


async def test_other_limits_do_not_wait() -> None:
    async with worker(tenant("a", limits={"requests_per_minute": 1})) as h:
        assert [(await (await start(h, "a", 0))).status for _ in range(2)] == [200, 429]
        assert details(h)["queue"] == {"admitted": 0, "gave_up": 0, "turned_away": 0}


async def test_higher_priority_goes_first_then_who_came_first() -> None:
    """Three tenants share one slot of the gateway."""
    tenants = [tenant("low", -5), tenant("mid"), tenant("high", 5)]
    async with worker(*tenants, gateway_limits=LIMITS, queue={"max_wait_ms": 850}) as h:
        order: list[str] = []
        tasks = [await start(h, "mid", 0.1)]
        for name in ("low", "mid", "high", "mid", "high"):
            task = await start(h, name, 0.1)
            task.set_name(name)
            task.add_done_callback(lambda done: order.append(done.get_name()))
            tasks.append(task)
        for _ in range(80):
            await h.clock.advance(0.01)
        assert order == ["high", "high", "mid", "mid", "low"]
        assert {(await task).status for task in tasks} == {200}


async def test_who_comes_later_does_not_overtake() -> None:
    """A slot that becomes free between two requests belongs to the one that waits."""
    clock = FakeClock()
    queue = FairQueue(Queue(max_wait_ms=500, max_waiting=2), clock)
    free: list[str] = []

    def attempt(name: str) -> Any:
        async def take() -> str | None:
            return name if free and free.pop() else None

        return take

    waiting = asyncio.create_task(queue.wait("lane", 0, attempt("first")))
    await clock.quiet()
    assert queue.lane_ahead(["other", "lane"], 0) == "lane"
    assert queue.lane_ahead(["lane"], -1) == "lane"
    assert queue.lane_ahead(["lane"], 1) is None
    free.append("slot")
    later = asyncio.create_task(queue.wait("lane", 0, attempt("second")))
    await clock.quiet()
    assert await queue.wait("lane", 0, attempt("third")) is None
    queue.freed(["lane"])
    await clock.quiet()
    assert (waiting.done(), later.done()) == (True, False)
    assert await waiting == "first"
    free.append("slot")
    await clock.advance(0.025)
    assert await later == "second"
    assert (queue.waiting(), queue.admitted, queue.turned_away) == (0, 2, 1)


async def test_slots_freed_by_other_workers_are_found() -> None:
    acme = tenant("a", limits=LIMITS)
    async with worker(acme) as h, worker(acme, store=h.store, clock=h.clock, name="other") as other:
        first = await start(other, "a", 0.2)
        second = await start(h, "a", 0.1)
        await h.clock.advance(0.2)
        await other.settled()
        await h.clock.advance(0.03)
        assert details(h)["waiting"] == 0
        await h.clock.advance(0.1)
        assert [(await task).status for task in (first, second)] == [200, 200]


async def test_who_finds_the_queue_full_does_not_take_the_slot_that_is_freed() -> None:
    """Another worker has freed it, and the first in the queue has not looked yet."""
    acme, queue = tenant("a", limits=LIMITS), {"max_wait_ms": 800, "max_waiting": 1, "poll_ms": 100}
    async with worker(acme, queue=queue) as h, worker(acme, store=h.store, clock=h.clock, name="other") as other:
        running = await start(other, "a", 0.25)
        first = await start(h, "a", 0.1)
        await h.clock.advance(0.25)
        await other.settled()
        calls = h.store.calls["run"]
        refused = await start(h, "a", 0.1)
        assert refused.done()
        late = await refused
        assert h.store.calls["run"] == calls + 1
        assert (late.status, late.denial and late.denial.code) == (429, "max_concurrent_requests_exceeded")
        assert late.denial is not None
        assert late.headers["retry-after"] == "1"
        assert details(h)["queue"]["turned_away"] == 1
        await h.clock.advance(0.2)
        assert [(await task).status for task in (running, first)] == [200, 200]


async def test_who_has_waited_in_vain_behind_others_does_not_overtake_them() -> None:
    """The wait of the less important one ends after a slot was freed and before the first in the queue looks."""
    tenants = [tenant("low", -5), tenant("high", 5)]
    section: dict[str, Any] = {"gateway_limits": LIMITS, "queue": {"max_wait_ms": 300, "poll_ms": 200}}
    async with worker(*tenants, **section) as h:
        other = worker(*tenants, **section, store=h.store, clock=h.clock, name="other")
        async with other:
            running = await start(other, "low", 0.305)
            gone = await start(h, "high", 0.1)
            await h.clock.advance(0.01)
            low = await start(h, "low", 0.1)
            await h.clock.advance(0.09)
            high = await start(h, "high", 0.1)
            await h.clock.advance(0.205)
            await other.settled()
            await h.clock.advance(0.006)
            assert (gone.done(), low.done(), high.done()) == (True, True, False)
            await h.clock.advance(0.3)
            assert [(await task).status for task in (running, gone, low, high)] == [200, 429, 429, 200]


async def test_one_who_leaves_makes_room() -> None:
    async with worker(tenant("a", limits=LIMITS)) as h:
        first, second, third = [await start(h, "a", 0.2) for _ in range(3)]
        second.cancel()
        await asyncio.wait({second})
        assert details(h)["waiting"] == 1
        await h.clock.advance(0.2)
        await h.clock.advance(0.3)
        assert [(await task).status for task in (first, third)] == [200, 200]


async def test_a_wait_longer_than_the_deadline_is_a_configuration_error() -> None:
    with pytest.raises(Exception, match="raise deadline_ms"):
        await worker(tenant("a"), queue={"max_wait_ms": 4950}).start()
    async with worker(tenant("a"), queue={"max_wait_ms": 8000}, deadline_ms=9000) as h:
        assert h.status("quota").ok
