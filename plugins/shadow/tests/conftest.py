"""Workers on the real host, sharing a store and a clock, with the model ``chat`` and a challenger."""

from __future__ import annotations

import contextlib

import pytest

from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, Harness, deployment, ok
from pointsman.testing.fakes import DEFAULT_PRICE
from pointsman.types import AttemptKind
from pointsman_shadow.plugin import plugin

DEPLOYMENTS = (
    deployment("old-1", "chat"),
    deployment("new-1", "new"),
    deployment("judge-1", "judge"),
    deployment("embed-1", "embed"),
)
FLUSH_S = 1.0


def mirror(**fields) -> dict:
    """Return a mirror that takes everything: model ``chat`` to group ``new``."""
    return {"name": "next", "model": "chat", "challenger": "new", "sample_rate": 1.0, **fields}


class Shadows:
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
        self, *mirrors: dict, name="one", first=(), more=(), tracing=False, script=None, prices=DEFAULT_PRICE, **config
    ) -> Harness:
        """Start a worker; ``first`` and ``more`` are plugins before and after the shadow."""
        harness = Harness(
            [*first, (plugin, {"mirrors": list(mirrors), "flush_s": FLUSH_S, **config}), *more],
            deployments=DEPLOYMENTS,
            store=self.store,
            clock=self.clock,
            name=name,
            tracing=tracing,
            prices=prices,
            script={"*": ok("the same words")} if script is None else script,
        )
        return await self.stack.enter_async_context(harness)

    async def rest(self, worker: Harness, seconds: float = 2 * FLUSH_S) -> None:
        """Let mirrors end, and everything be flushed."""
        await worker.settled()
        await self.clock.advance(seconds)

    async def shown(self, worker: Harness, name: str = "next") -> dict:
        """Return what the admin surface says of a mirror, once everything has come to rest."""
        await self.rest(worker)
        return (await worker.admin.get(f"/shadow/{name}")).json()

    async def results(self, worker: Harness, name: str = "next") -> list[dict]:
        """Return the kept results."""
        await self.rest(worker)
        return (await worker.admin.get(f"/shadow/{name}/results")).json()["results"]


@pytest.fixture
async def shadows(leak_check):
    """An installation without workers yet."""
    clock = FakeClock()
    store = MemoryStore(clock=clock.now)
    made = Shadows(clock, store)
    async with made.stack:
        yield made
    await store.close()


def mirrors_of(worker: Harness) -> list:
    """Return the mirrored calls that were started."""
    return [call for call in worker.gateway.upstream.calls if call.request.kind is AttemptKind.MIRROR]


def figure(shown: dict, metric: str) -> dict:
    """Return one figure of what is shown."""
    return next(each for each in shown["figures"] if each["metric"] == metric)


@pytest.fixture
def kit():
    """The helpers above."""

    class Kit:
        mirror = staticmethod(mirror)
        mirrors_of = staticmethod(mirrors_of)
        figure = staticmethod(figure)
        deployments = DEPLOYMENTS

    return Kit
