"""Wires the plugin to the hooks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import httpx
from opentelemetry import trace

from pointsman import PluginInfo, hookimpl
from pointsman.types import SignalStatus, Status

from .checks import Checks
from .config import SignalsConfig
from .dialects import DialectTable, installed_dialects
from .instruments import instrument
from .refresh import Refresher
from .repository import Repository
from .routes import AdminRoutes
from .steering import steer
from .tracker import Tracker
from .views import notice, span_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Candidate, RequestContext, Signal

log: Final = logging.getLogger("pointsman.signals")

TICK_S: Final = 1.0
ADOPT_EVERY_S: Final = 10.0


class SignalsPlugin:
    """Tracks the state of every deployment.

    Args:
        config: The plugin's section of the configuration.
    """

    def __init__(self, config: SignalsConfig) -> None:
        self._config = config
        self._installed = installed_dialects()
        dialects = DialectTable(
            (row for rows in self._installed.values() for row in rows), config.dialects, self._count
        )
        self._tracker = Tracker(config, dialects, on_forget=self._forget)
        self._adopted_at = float("-inf")
        #: Whether to take part in ``select``; None until the first request, when all plugins are running.
        self._steers: bool | None = None if config.steer == "auto" else config.steer

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Restore the stored states; start sharing, checks and upkeep."""
        self._services = services
        # Reads the certificates of the authorities, which takes 50 to 150 ms.
        self._client = await asyncio.to_thread(
            httpx.AsyncClient, timeout=self._config.check_deadline_s, follow_redirects=False
        )
        self._repository = Repository(self._tracker, services)
        checks = Checks(self._config, self._client, services.upstream, services.clock)
        self._refresher = Refresher(self._tracker, self._repository, checks, services)
        for problem in self._problems():
            log.warning(problem)
        await self._repository.restore()
        self._publish(self._tracker.refresh(services.signals.all(), services.clock.now()))
        instrument(services.meter, services)
        services.tasks.every(TICK_S, self._tick, name="keep up")
        services.tasks.every(self._config.share_interval_s, self._share, name="share")

    @hookimpl
    async def inherit(self, previous: SignalsPlugin) -> None:
        """Learn what has not been written yet."""
        await previous._repository.flush()
        await self._repository.restore()
        await self._share()

    @hookimpl
    async def shutdown(self) -> None:
        """Write new observations."""
        await self._repository.flush()
        await self._client.aclose()

    @hookimpl
    def select(self, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Exclude exhausted deployments and send less to degraded ones."""
        services = self._services
        if self._steers is None:
            # A candidate that is dropped here at random could not be chosen by a later plugin.
            self._steers = not any(status.details.get("chooses") is True for status in services.statuses().values())
        if not self._steers or not candidates[1:]:
            return None
        return steer(
            candidates,
            services.signals.get,
            services.clock.now(),
            self._config.degraded_share_ratio,
            services.random.random,
        )

    @hookimpl
    async def before_attempt(self, attempt: Attempt) -> None:
        """Count the attempt as running."""
        self._services.signals.put(self._tracker.begin(attempt, self._services.clock.now()))

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from an answer."""
        self._observe(attempt, generates=ctx.generates)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Learn from a failure."""
        self._observe(attempt)

    @hookimpl
    def status(self) -> Status:
        """Report the number of deployments by status."""
        counts = dict.fromkeys(map(str, SignalStatus), 0)
        for signal in self._services.signals.all().values():
            if signal.deployment_id in self._tracker.states:
                counts[str(signal.status)] += 1
        summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no deployments yet"
        problems = self._problems()
        if self._repository.failures:
            summary += "; not shared because the store fails"
        elif problems:
            summary += f"; {problems[0]}"
        return Status(
            ok=not self._repository.failures and not problems,
            summary=summary,
            details={
                "statuses": counts,
                "deployments": len(self._tracker.states),
                "forgotten": self._tracker.forgotten,
                "checks": {"made": self._refresher.run_count, "failed": self._refresher.failed},
                "store": {"writes": self._repository.writes, "failures_in_a_row": self._repository.failures},
                "dialects": self._tracker.dialects.names(),
                "unusable_dialects": dict(self._installed.broken),
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return AdminRoutes(self._tracker, self._refresher, self._repository, self._services).routes()

    def _problems(self) -> list[str]:
        return self._config.unknown_targets(self._services.catalog.deployments())

    def _observe(self, attempt: Attempt, *, generates: bool = True) -> None:
        now = self._services.clock.now()
        signals = self._tracker.observe(attempt, now, generates=generates)
        self._publish(signals)
        span = trace.get_current_span()
        if span.is_recording():
            state = self._tracker.state(attempt.deployment, now)
            span.set_attributes(span_attributes(signals[0], now, state.present_error_ratio(now)))

    def _count(self, part: str, err: BaseException) -> None:
        self._services.fault(part, err)

    def _forget(self, deployment_id: str) -> None:
        self._services.signals.forget(deployment_id)

    async def _tick(self) -> None:
        services, tracker = self._services, self._tracker
        now = services.clock.now()
        if now - self._adopted_at >= ADOPT_EVERY_S:
            self._adopted_at = now
            tracker.adopt(services.catalog.deployments(), now)
        self._publish(tracker.refresh(services.signals.all(), now))
        await self._refresher.tick()

    async def _share(self) -> None:
        await self._repository.share()
        self._publish(self._tracker.refresh(self._services.signals.all(), self._services.clock.now()))

    def _publish(self, signals: Sequence[Signal]) -> None:
        board = self._services.signals
        for signal in signals:
            before = board.get(signal.deployment_id)
            board.put(signal)
            was = before.status if before is not None else SignalStatus.UNKNOWN
            if SignalStatus.EXHAUSTED in {was, signal.status} and was is not signal.status:
                self._services.publish(notice(signal, self._services.clock.now()))


plugin = PluginInfo(
    name="signals",
    config=SignalsConfig,
    factory=SignalsPlugin,
    summary="The state of every deployment, from headers, traffic and checks.",
    commands="pointsman_signals.commands:signals",
    requires=">=0.1,<0.2",
)
