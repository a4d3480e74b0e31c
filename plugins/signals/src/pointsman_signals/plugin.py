"""Wires the plugin: hooks in, signals out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import httpx
from opentelemetry import trace

from pointsman import PluginInfo, hookimpl
from pointsman.errors import PluginLoadError
from pointsman.types import SignalStatus, Status

from .book import Book
from .cache import Cache
from .checks import Checks
from .config import SignalsConfig
from .dialects import DialectTable, installed_dialects
from .http import Surface
from .names import unknown_targets
from .refresh import Refresher
from .steer import steer
from .view import span_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Candidate, Signal

log: Final = logging.getLogger("pointsman.signals")

TICK_S: Final = 1.0
ADOPT_EVERY_S: Final = 10.0


class SignalsPlugin:
    """Knows the state of every deployment.

    Args:
        config: The plugin's section of the configuration.

    Raises:
        PluginLoadError: an installed dialect cannot be used.
    """

    def __init__(self, config: SignalsConfig) -> None:
        self._config = config
        try:
            dialects = DialectTable(installed_dialects(), config.dialects)
        except ValueError as err:
            raise PluginLoadError("signals", str(err)) from err
        self._book = Book(config, dialects, on_forget=self._forget)
        self._adopted_at = float("-inf")
        #: Whether to take part in ``select``; None until the first request, when all plugins have started.
        self._steers: bool | None = None if config.steer == "auto" else config.steer

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Restore what was known, begin to share, check and keep up."""
        self._services = services
        self._client = httpx.AsyncClient(timeout=self._config.check_deadline_s, follow_redirects=False)
        self._cache = Cache(self._book, services)
        checks = Checks(self._config, self._client, services.upstream, services.clock)
        self._refresher = Refresher(self._book, self._cache, checks, services)
        for problem in self._problems():
            log.warning(problem)
        await self._cache.restore()
        self._publish(self._book.refresh(services.signals.all(), services.clock.now()))
        services.tasks.every(TICK_S, self._tick, name="keep up")
        services.tasks.every(self._config.share_interval_s, self._share, name="share")

    @hookimpl
    async def shutdown(self) -> None:
        """Write what is not written yet."""
        await self._cache.flush()
        await self._client.aclose()

    @hookimpl
    def select(self, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Avoid exhausted deployments and send less to degraded ones."""
        services = self._services
        if self._steers is None:
            # What is dropped here by chance cannot be chosen by whoever comes after.
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
        self._services.signals.put(self._book.begin(attempt, self._services.clock.now()))

    @hookimpl
    def post_response(self, attempt: Attempt) -> None:
        """Learn from an answer."""
        self._observe(attempt)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Learn from a failure."""
        self._observe(attempt)

    @hookimpl
    def status(self) -> Status:
        """Say how many deployments stand how."""
        counts = dict.fromkeys(map(str, SignalStatus), 0)
        for signal in self._services.signals.all().values():
            if signal.deployment_id in self._book.states:
                counts[str(signal.status)] += 1
        told = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no deployments yet"
        problems = self._problems()
        if self._cache.failures:
            told += "; not shared: the store fails"
        elif problems:
            told += f"; {problems[0]}"
        return Status(
            ok=not self._cache.failures and not problems,
            summary=told,
            details={
                "statuses": counts,
                "deployments": len(self._book.states),
                "forgotten": self._book.forgotten,
                "checks": {"made": self._refresher.made, "failed": self._refresher.failed},
                "store": {"writes": self._cache.writes, "failures_in_a_row": self._cache.failures},
                "dialects": self._book.dialects.names(),
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return Surface(self._book, self._refresher, self._services).routes()

    def _problems(self) -> list[str]:
        return unknown_targets(self._config, self._services.catalog.deployments())

    def _observe(self, attempt: Attempt) -> None:
        now = self._services.clock.now()
        signals = self._book.observe(attempt, now)
        self._publish(signals)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(span_attributes(signals[0], now))

    def _forget(self, deployment_id: str) -> None:
        self._services.signals.forget(deployment_id)

    async def _tick(self) -> None:
        services, book = self._services, self._book
        now = services.clock.now()
        if now - self._adopted_at >= ADOPT_EVERY_S:
            self._adopted_at = now
            book.adopt(services.catalog.deployments(), now)
        self._publish(book.refresh(services.signals.all(), now))
        await self._refresher.tick()

    async def _share(self) -> None:
        await self._cache.share()
        self._publish(self._book.refresh(self._services.signals.all(), self._services.clock.now()))

    def _publish(self, signals: Sequence[Signal]) -> None:
        put = self._services.signals.put
        for signal in signals:
            put(signal)


plugin = PluginInfo(
    name="signals",
    config=SignalsConfig,
    factory=SignalsPlugin,
    summary="The state of every deployment, from headers, traffic and checks.",
    commands="pointsman_signals.commands:signals",
)
