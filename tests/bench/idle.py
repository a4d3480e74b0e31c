"""Plugins that implement every hook of a request and do nothing: what a hook costs by itself."""

from __future__ import annotations

from typing import Any

from pointsman import PluginConfig, PluginInfo, hookimpl

COUNT = 7


class Idle:
    """Does nothing, at every hook of a request."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @hookimpl
    async def pre_route(self, ctx: Any, route: Any) -> None:
        return None

    @hookimpl
    def select(self, ctx: Any, candidates: Any) -> None:
        return None

    @hookimpl
    async def before_attempt(self, ctx: Any, attempt: Any) -> None:
        return None

    @hookimpl
    def post_response(self, ctx: Any, attempt: Any) -> None:
        return None

    @hookimpl
    def on_error(self, ctx: Any, attempt: Any) -> None:
        return None

    @hookimpl
    async def settle(self, ctx: Any, settlement: Any) -> None:
        return None


PLUGINS = {f"idle-{n}": PluginInfo(name=f"idle-{n}", config=PluginConfig, factory=Idle) for n in range(COUNT)}
globals().update({f"idle_{n}": PLUGINS[f"idle-{n}"] for n in range(COUNT)})
