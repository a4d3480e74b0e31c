"""Plugins settle apart from one another."""

from __future__ import annotations

import asyncio

from pointsman import PluginConfig, PluginInfo, hookimpl


async def test_a_settle_that_hangs_delays_only_its_own_plugin(harness):
    """Forty requests, more than may wait in one plugin's slots: the healthy plugin hears of every one at once."""
    heard = []

    class Hanging:
        @hookimpl
        async def settle(self, settlement):
            await asyncio.Event().wait()

    class Healthy:
        @hookimpl
        async def settle(self, settlement):
            heard.append(settlement.request_id)

    plugins = [
        PluginInfo(name="hanging", config=PluginConfig, factory=lambda _: Hanging()),
        PluginInfo(name="healthy", config=PluginConfig, factory=lambda _: Healthy()),
    ]
    async with harness(plugins, host={"flush_timeout_s": 0.05}) as h:
        asked = []
        for _ in range(40):
            asked.append((await h.request()).request_id)
            await h.clock.advance(0.1)
        assert heard == asked
        await h.crash()
