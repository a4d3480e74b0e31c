"""Whatever happens to primaries and mirrors, in whatever order: every pair ends once, and nothing is left."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman.testing import Harness, breaks, cancel, disconnect, error, never, ok
from pointsman.types import Outcome
from pointsman_shadow.plugin import plugin

TIMES = st.sampled_from([0.0, 0.3, 2.0, 7.0])
PRIMARY = st.one_of(
    st.builds(lambda s: ok("one two three", latency_s=s, piece_s=s / 2), TIMES),
    st.builds(lambda s: error(500, latency_s=s), TIMES),
    st.builds(lambda s: error(400, latency_s=s), TIMES),
    st.builds(lambda s: breaks(1, latency_s=s), TIMES),
    st.builds(lambda s: disconnect(1, latency_s=s), TIMES),
    st.builds(lambda s: cancel(0, latency_s=s), TIMES),
)
CHALLENGER = st.one_of(
    st.builds(lambda s: ok("one two four", latency_s=s, piece_s=s / 2), TIMES),
    st.builds(lambda s: error(503, latency_s=s), TIMES),
    st.builds(lambda s: breaks(2, latency_s=s), TIMES),
    st.just(never()),
)
REQUEST = st.tuples(PRIMARY, CHALLENGER, st.booleans(), st.sampled_from([0.0, 0.1, 1.0]))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    places=st.integers(1, 3),
    queue=st.integers(0, 4),
    budget=st.sampled_from([None, 40, 10_000]),
)
def test_every_sampled_request_ends_in_exactly_one_way(kit, requests, places, queue, budget):
    """Sampled = dropped + compared + unpaired; nothing runs or waits, and no client's answer differs."""

    async def story():
        section = kit.mirror(
            max_concurrent=places, queue_size=queue, time_limit_s=4, max_wait_s=3, budget={"tokens_per_day": budget}
        )
        async with Harness([(plugin, {"mirrors": [section]})], deployments=kit.deployments) as harness:
            harness.gateway.upstream.answer({"new": [challenger for _, challenger, _, _ in requests]})
            running = []
            for primary, _, stream, pause in requests:
                work = harness.request(script=primary, stream=stream, retries=0, moves_clock=False)
                running.append(asyncio.create_task(work))
                await harness.clock.advance(pause)
            await harness.clock.advance(60)
            results = await asyncio.gather(*running)
            await harness.settled()
            await harness.clock.advance(60)
            shown = (await harness.admin.get("/shadow/next")).json()
            dispatcher = harness.plugin("shadow")._dispatcher
            return results, shown, dispatcher._pending, harness.gateway.upstream.running, harness.faults

    results, shown, pending, calls, faults = asyncio.run(story())
    unpaired = sum(shown["reasons"]["unpaired"].values())
    assert shown["sampled"] == len(requests) == shown["dropped"] + shown["pairs"] + unpaired
    assert shown["worker"] == {"queued": 0, "running": 0, "alive": 0, "lost": 0}
    assert (pending, calls, faults) == ({}, [], {})
    for result in results:
        if result.outcome is Outcome.OK:
            assert result.text == "one two three"
    if budget is not None:
        assert shown["today"]["tokens"] == shown["spent"]["tokens"]
