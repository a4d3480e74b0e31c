"""Workers on the real host, sharing a store and a clock."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from pointsman.stats import merged
from pointsman.store.memory import MemoryStore
from pointsman.store.views import ScopedStore
from pointsman.testing import FakeClock, Harness, deployment
from pointsman_canary.plugin import plugin
from pointsman_canary.repository import ROOT, Repository

sys.path.insert(0, str(Path(__file__).parent / "support"))

DEPLOYMENTS = (
    deployment("old-1", "old"),
    deployment("old-2", "old"),
    deployment("new-1", "new"),
    deployment("newer-1", "newer"),
)
TICK_S = 0.2


def rollout(**fields) -> dict:
    """Return a definition: model ``chat`` from group ``old`` to group ``new``."""
    made = {
        "name": "chat-v2",
        "model": "chat",
        "stable": "old",
        "canary": "new",
        "steps": [50, 100],
        "metrics": ["error_rate"],
        "interval_s": 30,
        "min_samples": 20,
        **fields,
    }
    return {key: value for key, value in made.items() if value is not None}


class Fleet:
    """Workers of one installation.

    Args:
        clock: Their time.
        store: Their store.
    """

    def __init__(self, clock: FakeClock, store: MemoryStore) -> None:
        self.clock = clock
        self.store = store
        self.stack = contextlib.AsyncExitStack()

    async def worker(
        self, *experiments: dict, name: str = "one", more=(), first=(), tracing=False, **config
    ) -> Harness:
        """Start a worker with these experiments in its configuration, ``first`` before the canary and ``more`` after."""
        section = {"experiments": list(experiments), "tick_s": TICK_S, **config}
        harness = Harness(
            [*first, (plugin, section), *more],
            deployments=DEPLOYMENTS,
            store=self.store,
            clock=self.clock,
            name=name,
            tracing=tracing,
        )
        return await self.stack.enter_async_context(harness)

    async def ticks(self, number: int = 1) -> None:
        """Let every worker tick this often."""
        await self.clock.advance(number * TICK_S)

    async def state(self, name: str = "chat-v2"):
        """Return the state as it lies in the store."""
        stored = await Repository(ScopedStore(self.store, "canary/"), lambda: "").load(name)
        return stored.rollout

    async def counted(self, arm: str = "canary", name: str = "chat-v2") -> dict[str, int]:
        """Return how many requests of an arm have been counted in this stage, once everything is flushed."""
        await self.ticks(3)
        total: dict[int, int] = {}
        challenger = "canary" if arm == "stable" else arm
        comparison = (await self.state(name)).analyses[challenger].comparisons["error_rate:mean"]
        for part in (comparison, *comparison.windows):
            waiting = "waiting_" if part is comparison else ""
            seen = getattr(part, waiting + ("stable" if arm == "stable" else "canary"))
            total = merged(total, seen)
        return {"ok": total.get(0, 0), "failed": total.get(1000, 0)}

    async def entries(self, name: str = "chat-v2") -> list[dict]:
        """Return the audit trail as it lies in the store, the oldest first."""
        return [value for _, value in await self.store.scan(f"canary/{ROOT}audit/{name}/")]


@pytest.fixture
async def fleet():
    """An installation without workers yet."""
    clock = FakeClock()
    store = MemoryStore(clock=clock.now)
    made = Fleet(clock, store)
    async with made.stack:
        yield made
    await store.close()


async def send(harness: Harness, number: int, script=None, **request) -> list:
    """Run this many client requests one after another."""
    results = [await harness.request(script=script, **request) for _ in range(number)]
    await harness.settled()
    return results


def arms(results) -> list[str]:
    """Return the arm of each request."""
    return [result.headers["x-pointsman-arm"] for result in results]


@pytest.fixture
def kit():
    """The helpers above."""

    class Kit:
        deployments = DEPLOYMENTS
        rollout = staticmethod(rollout)
        send = staticmethod(send)
        arms = staticmethod(arms)

    return Kit
