"""Thousands of races through a whole worker: random delays, errors, breaks, cancellations and clients that leave.

Whatever happens, a request has exactly one winner or one error, every attempt is closed once, and nothing is left: no task,
no call, no stream that is not closed.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman import PluginInfo, hookimpl
from pointsman.plugin import PluginConfig
from pointsman.testing import Harness, breaks, cancel, deployment, disconnect, error, never, no_leaks, ok
from pointsman.types import Outcome
from pointsman_racing.plugin import plugin

RACES = 10_000 if os.environ.get("POINTSMAN_THOROUGH") else 300
DEPLOYMENTS = (deployment("a1", "a"), deployment("a2", "a"), deployment("b1", "b"), deployment("c1", "c"))

seconds = st.sampled_from([0.0, 0.01, 0.049, 0.05, 0.051, 0.1, 0.3, 2.0, 6.0])
pieces = st.sampled_from([0.0, 0.01, 0.5])
steps = st.one_of(
    st.builds(ok, st.sampled_from(["one two three", ""]), latency_s=seconds, piece_s=pieces),
    st.builds(
        error,
        st.sampled_from([400, 401, 404, 429, 500, 503, None]),
        retry_after_s=st.sampled_from([None, 0.0, 0.2, 60.0]),
        latency_s=seconds,
    ),
    st.builds(breaks, st.integers(0, 3), latency_s=seconds, piece_s=pieces),
    st.builds(cancel, st.integers(0, 2), latency_s=seconds),
    st.builds(disconnect, st.integers(0, 2), latency_s=seconds),
    st.just(never()),
)
races = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["hedged", "all", "weighted", "quality", "a"]),
        "stream": st.booleans(),
        "script": st.lists(steps, min_size=1, max_size=6),
        "leave_after_pieces": st.sampled_from([None, None, None, 1, 2]),
        "body": st.sampled_from([{"messages": []}, {"messages": [], "store": True}]),
        "retries": st.sampled_from([0, 0, 0, 1]),
        "shut_down_after_s": st.sampled_from([None, None, None, None, 0.0, 0.04, 0.2, 1.0]),
    }
)

HEDGE = {"delay": {"fixed_ms": 50, "fixed_plain_ms": 50, "floor_ms": 1}, "budget_ratio": 4, "budget_burst": 1000}
CONFIG = {
    "defaults": {**HEDGE, "timeout_ms": 5000, "plain_timeout_ms": 5000, "grace_ms": 40},
    "models": [
        {"name": "hedged", "candidates": ["a", "b", "c"]},
        {"name": "all", "candidates": ["a", "b", "c"], "strategy": "first_wins"},
        {"name": "weighted", "candidates": ["a", "b", "c"], "strategy": "weighted"},
        {"name": "quality", "candidates": ["a", "b", "c"], "strategy": "quality"},
    ],
    "groups": {"a": {}},
    "budget": {"burst": 1000},
}


class Closings:
    """Counts how often each attempt is closed."""

    def __init__(self, config):
        self.closed = Counter()

    @hookimpl
    def post_response(self, attempt):
        self.closed[attempt.id] += 1

    @hookimpl
    def on_error(self, attempt):
        self.closed[attempt.id] += 1


closings = PluginInfo(name="closings", config=PluginConfig, factory=Closings)


async def race(h, shut_down_after_s=None, **request):
    """Run one race; cancel it from outside when the worker is to shut down meanwhile."""
    work = asyncio.create_task(h.request(**request))
    if shut_down_after_s is not None:
        gone = asyncio.create_task(h.clock.sleep(shut_down_after_s))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not work.done():
            work.cancel()
    try:
        return await work
    except asyncio.CancelledError:
        return None


def check_answer(result, retries):
    outcomes = Counter(attempt.outcome for attempt in result.attempts)
    assert None not in outcomes
    assert 1 <= len(result.attempts) <= 5 * (1 + retries)
    if result.ctx.stream:
        # A stream without any content can end before it is given up; only one with content goes on to its end.
        assert sum(a.outcome is Outcome.OK and a.first_token_ms is not None for a in result.attempts) <= 1
    if result.outcome is Outcome.OK:
        assert outcomes[Outcome.OK] >= 1
        assert result.error is None
        assert result.headers["x-pointsman-raced"]
        assert result.settlement.usage is not None
    elif result.outcome is Outcome.ERROR:
        assert result.error is not None


class Track:
    """One worker for all races."""

    def __init__(self):
        self.seen = Counter()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def __enter__(self):
        self._runner.run(self._start())
        return self

    async def _start(self):
        await self._stack.enter_async_context(no_leaks())
        worker = Harness([(plugin, CONFIG), closings], deployments=DEPLOYMENTS)
        self.h = await self._stack.enter_async_context(worker)

    def __exit__(self, *exc):
        self._runner.run(self._stack.__aexit__(*exc))
        self._runner.close()

    def run(self, case):
        self._runner.run(self._run(case))

    async def _run(self, case):
        h = self.h
        coordinator = h.plugin("racing")._coordinator
        # What was learned would make a race depend on those before it.
        coordinator._statistics.own.clear()
        coordinator._statistics._cache.clear()
        closed = h.plugin("closings").closed
        closed.clear()
        for bucket in (coordinator.total, *(raced.bucket for raced in coordinator.models.by_name.values())):
            bucket.tokens = bucket.burst
        before = asyncio.all_tasks()
        h.settlements.clear()
        h.gateway.upstream.calls.clear()
        result = await race(h, **case)
        await h.settled()
        (settlement,) = h.settlements
        self.seen[f"{settlement.outcome}, {len(settlement.attempts)} attempts"] += 1
        if result is not None:
            check_answer(result, case["retries"])
        assert closed == Counter(attempt.id for attempt in settlement.attempts)
        assert not h.faults
        assert not coordinator.running
        calls = h.gateway.upstream.calls
        assert all(call.ended for call in calls)
        assert all(call._answer is None or call._answer.ag_frame is None for call in calls), "a stream is left open"
        await h.clock.quiet()
        assert asyncio.all_tasks() <= before, asyncio.all_tasks() - before


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_one_winner_or_one_error_and_nothing_left():
    with Track() as track:

        @settings(max_examples=RACES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(races)
        def every(case):
            track.run(case)

        every()
        print(track.seen)  # noqa: T201  # shown with -s
        assert {text.partition(",")[0] for text in track.seen} == {"ok", "error", "cancelled", "disconnected"}
        assert {int(text.split()[1]) for text in track.seen} >= {1, 2, 3, 4}
