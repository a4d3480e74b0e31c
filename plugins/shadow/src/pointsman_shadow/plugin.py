"""The shadow as a plugin: only wiring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import Answer, Attempt, RequestContext, Settlement, Status

from .admin import Admin
from .config import ShadowConfig
from .desk import Desk
from .engine import Engine

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


class ShadowPlugin:
    """Sends a copy of some requests to a challenger and compares.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: ShadowConfig) -> None:
        self._config = config
        self._engine: Engine
        self._desk: Desk

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Begin or take up the mirrors."""
        self._engine = Engine(self._config, services)
        self._engine.check()
        self._desk = Desk(self._engine)
        await self._desk.start()
        services.tasks.spawn(self._engine.dispatch(), name="dispatch")
        services.tasks.every(self._config.flush_s, self._desk.tick, name="flush")

    @hookimpl
    async def shutdown(self) -> None:
        """Hand in what was seen; what still runs is cancelled by the host."""
        await self._desk.hand_in()

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Decide about a request at the moment when its first attempt is sent, so that both start together."""
        self._engine.consider(ctx, attempt)

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Note the primary's answer."""
        self._engine.answered(ctx, attempt, answer)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Note that the request is over: its last attempt was the last."""
        self._engine.concluded(settlement)

    @hookimpl
    def status(self) -> Status:
        """Say what is mirrored, and what stands in the way."""
        problems = self._engine.problems()
        if self._desk.blind:
            problems.append("the store does not answer")
        lines = self._engine.lines.values()
        text = f"{len(lines)} mirrors, {self._engine.alive} pairs under way"
        return Status(
            ok=not problems,
            summary=f"{text}; {problems[0]}" if problems else text,
            details={
                "problems": problems,
                "lag_ms": round(self._engine.pace.lag_s * 1000, 3),
                "mirrors": [
                    {
                        "name": line.mirror.name,
                        "phase": str(line.phase),
                        "target": line.target,
                        "queued": len(line.queue),
                        "running": line.running,
                        "alive": line.alive,
                        "lost": line.lost,
                    }
                    for line in lines
                ],
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return Admin(self._desk).routes()


plugin: Final = PluginInfo(
    name="shadow",
    config=ShadowConfig,
    factory=ShadowPlugin,
    summary="Live requests mirrored to a challenger, compared, and never noticed by the caller.",
    commands="pointsman_shadow.commands:shadow",
)
