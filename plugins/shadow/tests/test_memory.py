"""Memory does not grow with the number of mirrored requests."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from pointsman.testing import Harness, error, never, ok
from pointsman.testing.drive import Drive
from pointsman.testing.script import Script
from pointsman.types import Endpoint, Identity, RequestContext
from pointsman_shadow.comparison import Pair
from pointsman_shadow.plugin import plugin

REQUESTS = 50_000 if os.environ.get("POINTSMAN_THOROUGH") else 2_500
ROUND = 250
WARM = REQUESTS // 5
#: A leak of one object of each request would be at least as many blocks of Python's allocator as requests; caches grow by some
#: hundred, however many requests there are.
MOST_GROWTH_BLOCKS = 1_000 + (REQUESTS - ROUND - WARM) // 20


def context(number: int, at: float) -> RequestContext:
    """Return a request with a body of its own of 2 kB."""
    return RequestContext(
        request_id=f"request-{number:08d}",
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=number % 2 == 0,
        identity=Identity(key_hash="k"),
        body={"messages": [{"role": "user", "content": f"{number} " + "x" * 2000}]},
        received_at=at,
    )


@pytest.mark.thorough
@pytest.mark.timeout(600)
async def test_memory_is_flat_over_thousands_of_mirrored_requests(kit):
    """Plain and streamed, answered, failing and dropped ones; results and texts are kept, all figures flushed."""
    mirror = kit.mirror(
        keep_results=200, keep_texts=True, queue_size=200, time_limit_s=3, budget={"tokens_per_day": 10**9}
    )
    section = {"mirrors": [mirror]}
    sizes = {}
    async with Harness([(plugin, section)], deployments=kit.deployments) as harness:
        dispatcher = harness.plugin("shadow")._dispatcher
        upstream = harness.gateway.upstream
        for start in range(0, REQUESTS, ROUND):
            if start in {WARM, REQUESTS - ROUND}:
                gc.collect()
                sizes[start] = sys.getallocatedblocks()
            turn = start // ROUND % 10
            upstream.answer({"new": never() if turn == 9 else error(500) if turn == 4 else ok("z" * 500)})
            for number in range(start, start + ROUND):
                ctx = context(number, harness.clock.now())
                script = Script(ok(f"{number} " + "y" * 1000))
                await Drive(
                    harness.host,
                    harness.gateway,
                    harness.host.open(ctx),
                    script,
                    retries=0,
                    fallbacks=(),
                    leave_after_pieces=None,
                ).run()
            await harness.settled()
            await harness.clock.advance(2.0)
            # What the kit itself remembers of everything that happened.
            upstream.calls.clear()
            harness.settlements.clear()
        await harness.clock.advance(10.0)
        shown = (await harness.admin.get("/shadow/next")).json()
        assert shown["total"] == shown["sampled"] == REQUESTS
        assert shown["pairs"] + shown["dropped"] == REQUESTS
        assert shown["pairs"] > REQUESTS / 2
        assert shown["dropped"] > 50
        assert set(shown["reasons"]["challenger_errors"]) == {"server", "timeout"}
        assert shown["worker"] == {"queued": 0, "running": 0, "alive": 0, "lost": 0}
        assert not dispatcher._pending
        rows = [key for key, _ in await harness.store.scan("") if "/result/" in key]
        assert len(rows) == 200
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Pair)]
    assert sizes[REQUESTS - ROUND] - sizes[WARM] < MOST_GROWTH_BLOCKS
