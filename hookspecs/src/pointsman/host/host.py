"""The host: holds the plugins, the store and the compiled hooks of one worker."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from starlette.applications import Starlette

from .. import __version__
from ..errors import ConfigError, PluginLoadError, PointsmanError
from ..plugin import Catalog, Clock, Prices, Services, Tokenizer, Upstream
from ..store import ScopedStore, open_store
from ..types import Event, RequestContext, Settlement, Status
from . import admin, manager
from .calls import Calls, Faults, bounded
from .config import Settings
from .exchange import Exchange
from .journal import Journal
from .manager import Loaded, Plugins
from .runtime import EventBus, SignalBoard, SystemClock, TaskGroup, new_id
from .tracing import Tracing

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from starlette.routing import BaseRoute

    from ..plugin import PluginInfo
    from ..store.base import StateStore

log: Final = logging.getLogger("pointsman")

STARTUP_DEADLINE_S: Final = 30.0
SHUTDOWN_DEADLINE_S: Final = 5.0


class Gateway(Protocol):
    """What the gateway's bridge (or a test) provides to the plugins."""

    @property
    def catalog(self) -> Catalog:
        """What can be served."""

    @property
    def prices(self) -> Prices:
        """Unit prices."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Token counts."""

    @property
    def upstream(self) -> Upstream:
        """Calls of our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a test replaces: time, chance, identity."""

    clock: Clock
    random: random.Random
    new_id: Callable[[], str]
    worker: str

    @classmethod
    def real(cls) -> Environment:
        """Return the real thing; the worker's name is made of host name, process id and chance."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
        worker = f"{name}-{os.getpid()}-{os.urandom(3).hex()}"
        return cls(clock=SystemClock(), random=random.Random(), new_id=new_id, worker=worker)  # noqa: S311  # not for secrets


class Host:
    """One worker's plugins and everything they share.

    Args:
        settings: The validated configuration.
        gateway: The bridge to the gateway.
        tracing: Where spans go.
        environment: Time, chance and identity; by default the real ones.
        available: Installed plugins; by default those found by entry point.
        store: An opened store; by default the one of the configuration.

    Building it loads and validates the plugins, without I/O.

    Raises:
        ConfigError, PluginLoadError, HookSignatureError: something in the configuration or a plugin is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        gateway: Gateway,
        *,
        tracing: Tracing | None = None,
        environment: Environment | None = None,
        available: Mapping[str, EntryPoint | PluginInfo] | None = None,
        store: StateStore | None = None,
    ) -> None:
        environment = environment or Environment.real()
        self.settings = settings
        self.gateway = gateway
        self.tracing = tracing or Tracing()
        self.clock = environment.clock
        self.new_id = environment.new_id
        self.worker = environment.worker
        self.random = environment.random
        self.signals = SignalBoard()
        self.faults = Faults()
        self.plugins: Plugins = manager.load(settings.entries, available)
        self.calls: Calls = manager.compile_calls(self.plugins.loaded, self.faults)
        self.events = EventBus(self._deliver)
        self.admin: Starlette | None = None
        self.started_at = self.clock.now()
        self.requests = 0
        self._store = store
        self._journal: Journal | None = None
        self._tasks = TaskGroup("pointsman", self.clock, self.faults)
        self._plugin_tasks: dict[str, TaskGroup] = {}
        self._open: set[Exchange] = set()
        self._started: set[str] = set()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, start the plugins in order, collect their routes, take over what dead workers left.

        A start that fails undoes itself: what had been started is shut down, the store is closed.

        Raises:
            StoreUnavailable, StoreCorrupt: the store cannot be used.
            PluginLoadError: a plugin that is not optional failed to start.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.settings.host
        if self._store is None:
            try:
                self._store = await open_store(
                    config.store.backend,
                    path=self.settings.base / config.store.path,
                    url=config.store.url,
                    prefix=f"{config.store.prefix}:",
                    timeout_s=config.store.timeout_ms / 1000,
                )
            except ValueError as err:
                raise ConfigError(f"{self.settings.source}: pointsman.store: {err}") from err
        await self._store.ping()
        self._tasks.spawn(self.events.run(), name="events")
        for why in self.plugins.broken.values():
            log.error("%s; it is optional and left out", why)
        for plugin in tuple(self.plugins.loaded):
            await self._start_plugin(plugin)
        routes = {}
        for plugin in tuple(self.plugins.loaded):
            routes.update(self._routes(plugin))
        self.calls = manager.compile_calls(self.plugins.loaded, self.faults)
        self.admin = admin.build(self, routes)
        self._journal = Journal(
            store=ScopedStore(self._store, "host/"),
            calls=self.calls,
            tracing=self.tracing,
            clock=self.clock,
            tasks=self._tasks,
            worker=self.worker,
            window_s=config.journal_window_ms / 1000,
        )
        await self._journal.start()
        log.info(
            "pointsman %s is ready: plugins %s; store %s; tracing %s",
            __version__,
            ", ".join(self.plugins.names()) or "none",
            config.store.backend,
            "on" if self.tracing.enabled else "off",
        )

    async def _start_plugin(self, plugin: Loaded) -> None:
        impl = next((impl for impl in self.calls.startup if impl.plugin == plugin.name), None)
        if impl is None:
            self._started.add(plugin.name)
            return
        try:
            await bounded(impl.call(self.services(plugin.name)), STARTUP_DEADLINE_S)
        except Exception as err:  # noqa: BLE001  # isolation: any fault of a plugin is reported with its name
            what = f"took longer than {STARTUP_DEADLINE_S:.0f} s" if isinstance(err, TimeoutError) else f"{err}"
            kind = "" if isinstance(err, PointsmanError | TimeoutError) else f"{type(err).__name__}: "
            await self._give_up(plugin, PluginLoadError(plugin.name, f"its start-up failed: {kind}{what}"), err)
        else:
            self._started.add(plugin.name)

    def _routes(self, plugin: Loaded) -> dict[str, list[BaseRoute]]:
        impl = next((impl for impl in self.calls.routes if impl.plugin == plugin.name), None)
        if impl is None:
            return {}
        try:
            return {plugin.name: list(impl.call())}
        except Exception as err:
            raise PluginLoadError(plugin.name, f"its routes failed: {type(err).__name__}: {err}") from err

    async def _give_up(self, plugin: Loaded, error: PluginLoadError, cause: Exception) -> None:
        if not plugin.config.optional:
            raise error from cause
        log.error("%s; it is optional and left out", error)
        self.plugins.loaded.remove(plugin)
        self.plugins.broken[plugin.name] = str(error)
        if (tasks := self._plugin_tasks.pop(plugin.name, None)) is not None:
            await tasks.cancel()

    async def stop(self) -> None:
        """Settle what is left within the bound, shut the plugins down in reverse order, close the store.

        Never raises: a shutdown goes on to its end.
        """
        deadline = self.clock.monotonic() + self.settings.host.flush_timeout_s
        for exchange in tuple(self._open):
            exchange.close(status_code=0)
        await self.events.drain(max(0.0, deadline - self.clock.monotonic()))
        if self._journal is not None:
            left = await self._journal.flush(max(0.0, deadline - self.clock.monotonic()))
            if left:
                log.warning("%d settlements are left in the journal; another worker will finish them", left)
        started, self._started = self._started, set()
        for impl in reversed(self.calls.shutdown):
            if impl.plugin not in started:
                continue
            try:
                await bounded(impl.call(), SHUTDOWN_DEADLINE_S)
            except Exception as err:  # noqa: BLE001  # the others still shut down
                self.faults.record(impl.plugin, "shutdown", None, err)
        await self.abandon()
        if self._journal is not None:
            await self._journal.leave()
        if self._store is not None:
            try:
                await self._store.close()
            except Exception as err:  # noqa: BLE001  # nothing can be done about it any more
                self.faults.record("pointsman", "shutdown", None, err)
        await asyncio.to_thread(self.tracing.shutdown)

    async def abandon(self) -> None:
        """End all background work at once. Alone, without ``stop``, it is what a crash leaves: nothing is flushed."""
        for tasks in (*self._plugin_tasks.values(), self._tasks):
            await tasks.cancel()

    # -- services -----------------------------------------------------------------------------------------------------

    def services(self, plugin: str) -> Services:
        """Return what one plugin is offered."""
        if self._store is None:
            raise RuntimeError("the host has not been started")
        tasks = self._plugin_tasks.setdefault(plugin, TaskGroup(plugin, self.clock, self.faults))
        return Services(
            plugin=plugin,
            store=ScopedStore(self._store, f"{plugin}/"),
            clock=self.clock,
            tracer=self.tracing.tracer,
            tasks=tasks,
            random=self.random,
            new_id=self.new_id,
            signals=self.signals,
            catalog=self.gateway.catalog,
            prices=self.gateway.prices,
            tokenizer=self.gateway.tokenizer,
            upstream=self.gateway.upstream,
            publish=lambda event: self.events.publish(replace(event, source=plugin)),
            statuses=self.statuses,
            worker=self.worker,
            base=self.settings.base,
        )

    async def _deliver(self, event: Event) -> None:
        await self.calls.run_on_event(event)

    def statuses(self) -> dict[str, Status]:
        """Return the status of every configured plugin, those left out included."""
        statuses = {name: self.calls.run_status(name) for name in self.plugins.names()}
        statuses.update(
            (name, Status(ok=False, summary=f"left out: {why}")) for name, why in self.plugins.broken.items()
        )
        return statuses

    def describe(self) -> dict[str, object]:
        """Return what ``GET /pointsman/status`` answers."""
        journal = self._journal
        return {
            "version": __version__,
            "worker": self.worker,
            "uptime_s": round(self.clock.now() - self.started_at, 3),
            "requests": self.requests,
            "requests_open": len(self._open),
            "store": {"backend": self.settings.host.store.backend},
            "tracing": {"enabled": self.tracing.enabled, "failures": self.tracing.failures},
            "journal": {
                "submitted": journal.counts.submitted,
                "settled": journal.counts.settled,
                "retried": journal.counts.retried,
                "recovered": journal.counts.recovered,
                "unjournaled": journal.counts.unjournaled,
                "waiting": dict(journal.waiting()),
            }
            if journal
            else {},
            "faults": [
                {"plugin": plugin, "hook": hook, "count": count}
                for (plugin, hook), count in sorted(self.faults.counts.items())
            ],
            "plugins": [
                {"name": name, "ok": status.ok, "summary": status.summary, "details": dict(status.details)}
                for name, status in self.statuses().items()
            ],
        }

    # -- requests -----------------------------------------------------------------------------------------------------

    def open(self, ctx: RequestContext, *, parent: Span | Context | None = None) -> Exchange:
        """Open a client request."""
        exchange = Exchange(self, ctx, parent=parent)
        self.requests += 1
        self._open.add(exchange)
        return exchange

    def detached(
        self, ctx: RequestContext, *, parent: Span | Context | None = None, link: Span | None = None
    ) -> Exchange:
        """Open a call of our own: it has attempts, observers and spans, but is never settled."""
        return Exchange(self, ctx, parent=parent, link=link, detached=True)

    async def settled(self) -> None:
        """Wait until every request closed so far has been settled with every plugin."""
        if self._journal is not None:
            await self._journal.idle()

    def waiting(self) -> Mapping[str, int]:
        """Return how many settlements each plugin still has to hear of."""
        return self._journal.waiting() if self._journal is not None else {}

    def closed(self, exchange: Exchange, settlement: Settlement) -> None:
        """Take a closed exchange over into the journal; called by the exchange."""
        self._open.discard(exchange)
        if self._journal is not None:
            self._journal.submit(exchange.ctx, settlement, exchange.span)
