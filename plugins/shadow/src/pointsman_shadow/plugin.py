"""The shadow as a plugin: only wiring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import Answer, Attempt, Event, RequestContext, Settlement, Status, StoreEmptied

from .config import ShadowConfig
from .coordinator import Coordinator
from .dispatcher import Dispatcher
from .instruments import instrument
from .routes import Admin

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


class ShadowPlugin:
    """Sends a copy of some requests to a challenger and compares.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: ShadowConfig) -> None:
        self._config = config
        self._dispatcher: Dispatcher
        self._coordinator: Coordinator

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Begin or continue the mirrors."""
        self._dispatcher = Dispatcher(self._config, services)
        self._dispatcher.check()
        self._coordinator = Coordinator(self._dispatcher)
        await self._coordinator.start()
        instrument(services.meter, self._dispatcher.mirrors)
        services.tasks.forever(self._dispatcher.dispatch, name="dispatch")
        services.tasks.every(self._config.flush_s, self._coordinator.tick, name="flush")

    @hookimpl
    async def shutdown(self) -> None:
        """Give up what waits and flush the figures; the host cancels what still runs."""
        self._dispatcher.stop()
        await self._coordinator.flush()

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Decide about a request when its first attempt is sent, so that both start together."""
        self._dispatcher.consider(ctx, attempt)

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Note the primary's answer."""
        self._dispatcher.answered(ctx, attempt, answer)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Note that the request is over: there are no further attempts."""
        self._dispatcher.concluded(settlement)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Begin the mirrors again when the store has lost everything."""
        if isinstance(event, StoreEmptied):
            await self._coordinator.start()

    @hookimpl
    def status(self) -> Status:
        """Return the state of the mirrors and what an operator should look at."""
        problems = self._dispatcher.problems()
        if self._coordinator.blind:
            problems.append("the store does not answer")
        mirrors = self._dispatcher.mirrors.values()
        text = f"{len(mirrors)} mirrors, {self._dispatcher.alive} pairs in flight"
        return Status(
            ok=not problems,
            summary=f"{text}; {problems[0]}" if problems else text,
            details={
                "problems": problems,
                "lag_ms": round(self._dispatcher.lag.lag_s * 1000, 3),
                "mirrors": [
                    {
                        "name": mirror.config.name,
                        "phase": str(mirror.phase),
                        "target": mirror.target,
                        "queued": len(mirror.queue),
                        "running": mirror.running,
                        "alive": mirror.alive,
                        "lost": mirror.lost,
                    }
                    for mirror in mirrors
                ],
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return Admin(self._coordinator).routes()


plugin: Final = PluginInfo(
    name="shadow",
    config=ShadowConfig,
    factory=ShadowPlugin,
    summary="Live requests mirrored to a challenger, compared, and never noticed by the caller.",
    commands="pointsman_shadow.commands:shadow",
    requires=">=0.1,<0.2",
)
