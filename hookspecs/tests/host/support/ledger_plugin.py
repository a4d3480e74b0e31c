"""Plugins that settle or fail on request, and readers of the journal for its tests."""

from __future__ import annotations

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host.journal import HEARTBEAT_TTL_S


class Ledger:
    """Records what was settled when; fails as long as ``failing`` is set.

    All wait for ``gate``, and the first for ``held``, where there are such.
    """

    def __init__(self, config):
        self.failing = False
        self.gate = None
        self.held = None
        self.seen = []
        self.heard = []

    @hookimpl
    async def startup(self, services):
        self.clock = services.clock

    @hookimpl
    async def settle(self, ctx, settlement):
        self.seen.append((self.clock.monotonic(), ctx, settlement))
        if self.gate is not None:
            await self.gate.wait()
        if self.held is not None and len(self.seen) == 1:
            await self.held.wait()
        if self.failing:
            raise RuntimeError("not now")

    @hookimpl
    async def on_event(self, event):
        self.heard.append(event)

    @property
    def ids(self):
        return [settlement.request_id for _, _, settlement in self.seen]


def ledger(name):
    return PluginInfo(name=name, config=PluginConfig, factory=Ledger)


ONE, TWO = ledger("one"), ledger("two")


async def rows(h):
    """Return the journal's rows in the store."""
    return {key: value for key, value in await h.store.scan("host/{journal}/") if isinstance(value, dict)}


def counts(h):
    return h.host.describe()["journal"]


async def pass_time(clock, seconds=3 * HEARTBEAT_TTL_S):
    """Let so much time pass that heartbeats end and dead workers' rows are looked for."""
    for _ in range(round(seconds)):
        await clock.advance(1.0)
