"""The host: holds the plugins, the store and the compiled hooks of one worker."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from starlette.applications import Starlette

from .. import __version__, extensions
from ..errors import ConfigError, Conflict, PluginLoadError
from ..frozen import replace
from ..plugin import Catalog, Clock, Prices, Services, Tokenizer, Upstream
from ..store import ScopedStore
from ..store.protocol import DropsKeys, StartsSlowly
from ..types import (
    AttemptKind,
    Event,
    Identity,
    OwnCallEnded,
    RequestContext,
    Route,
    Status,
    StoreEmptied,
    UpstreamRequest,
)
from . import admin, broadcast, discovery
from .annotating import annotator
from .attributes import route_attributes
from .deferred import Deferred
from .discovery import Loaded, Plugins, unmet
from .exchange import Exchange
from .hook_costs import hook_families
from .hooks import CHANGES, Hooks
from .instances import Instances
from .isolation import Faults
from .journal import Journal
from .journal_rows import Counts, owner_keys
from .late_counting import LateCounting
from .left_behind import left_behind, unused
from .metrics import Metrics
from .notices import Notices
from .observability import Observed, present_families
from .owners import Owners
from .reloading import Announcement, Instance, Reload, Reloading, changed, check_host, drained, plan, warnings
from .runtime import EventBus, SignalBoard, SystemClock, TaskGroup, new_id
from .settings import Policy, Settings, open_store, unmetered
from .statuses import Statuses
from .store_loss import Lifetime
from .takeovers import REBUILT, Takeovers
from .tracing import Tracing
from .watchdog import Watchdog

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from opentelemetry.trace import Span

    from ..plugin import PluginInfo
    from ..store.protocol import StateStore
    from .counters import Family

log: Final = logging.getLogger("pointsman")

#: How old the plugins' statuses may be in the metrics, in seconds.
STATUSES_S: Final = 30.0
#: Workers that start together write to the store together; a start is worth more waiting than a request.
_START_TIMEOUT_S: Final = 30.0
#: Interval of looks at a disk store that is not in use, in seconds.
_LEFT_BEHIND_S: Final = 60.0
#: Seconds between looking for keys that the store's server has dropped.
_DROPPED_S: Final = 10.0


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
        """Plugins' own calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a test replaces: time, randomness, identity."""

    clock: Clock
    random: random.Random
    new_id: Callable[[], str]
    worker: str

    @classmethod
    def real(cls) -> Environment:
        """Return the real ones; the worker's name consists of host name, process id and random digits."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
        worker = f"{name}-{os.getpid()}-{os.urandom(3).hex()}"
        return cls(clock=SystemClock(), random=random.Random(), new_id=new_id, worker=worker)  # noqa: S311  # not for secrets


class Host:
    """One worker's plugins and everything they share.

    Args:
        settings: The validated configuration.
        gateway: The bridge to the gateway.
        tracing: Where spans go.
        metrics: What is counted; by default what the configuration says.
        environment: Time, randomness and identity; by default the real ones.
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
        metrics: Metrics | None = None,
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
        self.metrics = metrics or Metrics(enabled=settings.host.metrics.enabled)
        self.observed = Observed(
            self.metrics,
            recent_requests=settings.host.recent_requests,
            worker=self.worker,
            clock=self.clock,
            new_id=self.new_id,
            present=self._families,
        )
        self.notices = Notices(settings.host.notify, clock=self.clock, worker=self.worker, counter=self.metrics.notices)
        self.signals = SignalBoard()
        self.faults = Faults()
        self._available = available
        self.plugins: Plugins = discovery.load(settings.entries, available)
        self.generation = 1
        self.reloads: Reloading | None = None
        since = self.clock.monotonic()
        self._instances = Instances(self.clock, self.faults, lambda: self.gateway.catalog, self.services, since)
        self.hooks = self._compiled()
        self.events = EventBus(self._deliver)
        self.admin: Starlette | None = None
        self.started_at = self.clock.now()
        self._statuses_read: Mapping[str, Status] = {}
        self._statuses_read_at = float("-inf")
        self.requests = 0
        self._store = store
        self._journal: Journal | None = None
        self._broadcast: broadcast.Broadcast | None = None
        self._takeovers: Takeovers | None = None
        self._lifetime: Lifetime | None = None
        #: What is to be settled from a store that is not in use any more, or None.
        self._left_behind: str | None = None
        self._dropped: str | None = None
        #: Whether the store ends with this worker, as configured.
        self._forgets = False
        self._tasks = TaskGroup("pointsman", self.clock, self.faults, since)
        self._open: set[Exchange] = set()
        self._late = LateCounting(self._complete, self.faults)
        self._announcement: Announcement | None = None
        self._watchdog = Watchdog(self._packages, lambda: extensions.PACKAGES)

    def _packages(self) -> dict[str, str]:
        """Return the plugins by their top-level packages."""
        packages = {
            plugin.info.factory.__module__.partition(".")[0]: plugin.name for plugin in tuple(self.plugins.loaded)
        }
        packages.pop(__package__.partition(".")[0], None)
        return packages

    def _compiled(self) -> Hooks:
        return Hooks.compile(
            [
                {hook: self._instances.measured(impl) for hook, impl in plugin.hooks.items()}
                for plugin in self.plugins.loaded
            ],
            self.faults,
            labels={label: plugin.name for plugin in self.plugins.loaded for label in plugin.info.labels},
            replaced={plugin.name: plugin.info.replaces_labels for plugin in self.plugins.loaded},
            upstream_headers=frozenset(self.settings.host.upstream_headers),
            monotonic=self.clock.monotonic,
            generation=self.generation,
        )

    def unmetered(self, path: str) -> Policy:
        """Return the policy for a request to this path that is not metered."""
        metering = any(plugin.info.meters for plugin in self.plugins.loaded)
        # What is not admitted, no plugin sees either.
        closed = metering or self.hooks.unfit(*CHANGES) is not None
        return unmetered(self.settings.host.unmetered, path, closed=closed)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, start the plugins in order, collect their routes, take over settlements of dead workers.

        A failed start is undone: started plugins are shut down and the store is closed.

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
        self._watchdog.start()
        if self._store is None:
            self._forgets = config.store.backend == "memory"
            try:
                self._store = await open_store(
                    config.store, self.settings.base / config.store.path, start_timeout_s=_START_TIMEOUT_S
                )
            except ValueError as err:
                raise ConfigError(f"{self.settings.source}: pointsman.store: {err}") from err
        await self._store.ping()
        journal_store = ScopedStore(self.observed.measured(self._store, "pointsman"), "host/")
        self._takeovers = Takeovers(
            journal_store, shared=config.store.backend == "redis", owner_keys=owner_keys, faults=self.faults
        )
        await self.notices.start(journal_store, self._tasks)
        self._tasks.forever(self.events.run, name="events")
        if broadcast.wanted():
            self._broadcast = broadcast.Broadcast(
                journal_store, worker=self.worker, clock=self.clock, new_id=self.new_id, hear=self.events.publish
            )
            self._tasks.every(broadcast.TICK_S, self._broadcast.tick, name="events of other workers")
        self._lifetime = lifetime = Lifetime(journal_store, self.new_id, self.clock.now)
        await lifetime.lost_something()
        for why in self.plugins.broken.values():
            log.error("%s; it is optional and left out", why)
        for plugin in tuple(self.plugins.loaded):
            await self._start_plugin(plugin)
        await self._end_without_needs()
        for plugin in self.plugins.loaded:
            self._instances.collect_routes(plugin)
        self.hooks = self._compiled()
        self.admin = self._admin_surface()
        self.deferred = Deferred(ScopedStore(self._store, "deferred/"))
        self.owners = Owners(ScopedStore(self._store, "owners/"), lambda: self.settings.host.shared_objects)
        self._journal = Journal(
            store=journal_store,
            takeovers=self._takeovers,
            lifetime=lifetime,
            on_emptied=lambda: self.events.publish(
                StoreEmptied(source="pointsman", at=self.clock.now(), life=lifetime.name, since=lifetime.since)
            ),
            hooks=self.hooks,
            tracing=self.tracing,
            clock=self.clock,
            tasks=self._tasks,
            worker=self.worker,
            window_s=config.journal_window_ms / 1000,
        )
        await self._journal.start()
        self._tasks.every(_LEFT_BEHIND_S, self._look_for_left_behind, name="settlements of another store")
        if isinstance(self._store, DropsKeys):
            self._tasks.every(
                _DROPPED_S, partial(self._look_for_dropped, self._store), name="keys that the store drops"
            )
        shared = config.store.backend != "memory"
        if shared and self.reloads is not None:
            self._announcement = Announcement(journal_store, self.reloads, self.new_id)
            await self._announcement.start(self._tasks)
        self.observed.start(ScopedStore(self._store, "host/") if shared else None, self._tasks)
        if isinstance(self._store, StartsSlowly):
            self._store.started()
        log.info(
            "pointsman %s is ready: plugins %s; store %s; tracing %s",
            __version__,
            ", ".join(self.plugins.names()) or "none",
            config.store.backend,
            "on" if self.tracing.enabled else "off",
        )

    async def _look_for_left_behind(self) -> None:
        before, where = self._left_behind, (self.settings.host.store, self.settings.base)
        self._left_behind = await asyncio.to_thread(left_behind, *where) if unused(*where) else None
        if self._left_behind is not None and before is None:
            log.warning(self._left_behind)

    async def _look_for_dropped(self, store: DropsKeys) -> None:
        before, self._dropped = self._dropped, await store.dropped()
        if self._dropped is not None and before is None:
            log.error("%s", self._dropped)

    def _admin_surface(self) -> Starlette:
        return admin.build(self.describe, self._instances.routes, self.observed, self.reload)

    async def _start_plugin(self, plugin: Loaded) -> None:
        impl = next((impl for impl in self.hooks.startup if impl.plugin == plugin.name), None)
        try:
            if (error := unmet(plugin, self.plugins.broken)) is not None:
                raise error
            await self._instances.start_up(plugin, impl)
        except PluginLoadError as err:
            await self._give_up(plugin, err)

    async def _give_up(self, plugin: Loaded, error: PluginLoadError) -> None:
        if not plugin.config.optional:
            raise error
        log.error("%s; it is optional and left out", error)
        self.plugins.loaded.remove(plugin)
        self.plugins.broken[plugin.name] = str(error)
        await self._instances.give_up(plugin.name)

    async def _end_without_needs(self) -> None:
        """End each plugin that has started before one that it needs, which has not."""
        while found := next(
            ((plugin, error) for plugin in self.plugins.loaded if (error := unmet(plugin, self.plugins.broken))), None
        ):
            plugin, error = found
            if plugin.config.optional:
                self._instances.started.discard(plugin.name)
                await self._instances.end(self._instances.put_aside(plugin))
            await self._give_up(plugin, error)

    async def stop(self) -> None:
        """Settle open requests within ``flush_timeout_s``, shut the plugins down in reverse order, close the store.

        Never raises: a shutdown goes on to its end.
        """
        deadline = self.clock.monotonic() + self.settings.host.flush_timeout_s
        for exchange in tuple(self._open):
            exchange.close(status_code=0)
        await self.events.drain(max(0.0, deadline - self.clock.monotonic()))
        if self._journal is not None:
            await self._flush(self._journal, max(0.0, deadline - self.clock.monotonic()))
        # While the plugins can still be asked.
        await self._leave_peers()
        started, self._instances.started = self._instances.started, set()
        for instance in tuple(self._instances.leaving):
            await self._instances.end_leaving(instance)
        for impl in reversed(self.hooks.shutdown):
            if impl.plugin in started:
                await self._instances.shut_down(impl)
        await self.abandon()
        await self.notices.close()
        if self._journal is not None:
            await self._journal.leave()
        if self._store is not None:
            try:
                await self._store.close()
            except Exception as err:  # noqa: BLE001  # nothing is left to be done about it
                self.faults.record("pointsman", "shutdown", None, err)
        # At the same time: a collector that hangs takes all the time that either has.
        await asyncio.gather(asyncio.to_thread(self.tracing.shutdown), self.observed.sent())

    async def _flush(self, journal: Journal, timeout_s: float) -> None:
        """Settle what has been submitted; say what becomes of what is left."""
        left, lost = await journal.flush(timeout_s)
        if self._forgets:
            left, lost = 0, left + lost
        if left:
            log.warning("%d settlements are left in the journal; another worker will finish them", left)
        if lost:
            why = "the store ends with this worker" if self._forgets else "the store could not be written"
            log.error("%d settlements are lost: plugins have not made them in time, and %s", lost, why)

    async def _leave_peers(self) -> None:
        """Leave to the other workers what they are to know."""
        if self._broadcast is not None:
            await self._broadcast.leave()
        await self.observed.close()

    async def abandon(self) -> None:
        """Cancel all background work at once. Without ``stop`` this simulates a crash: nothing is flushed."""
        self._watchdog.stop()
        self._late.end()
        for tasks in (*self._instances.tasks.values(), self._tasks):
            await tasks.cancel()
        for instance in self._instances.leaving:
            if instance.tasks is not None:
                await instance.tasks.cancel()

    # -- reload -------------------------------------------------------------------------------------------------------

    def enable_reload(self, read: Callable[[], Settings], then: Callable[[], None] = lambda: None) -> None:
        """Make ``reload`` possible; called before ``start``.

        Args:
            read: Reads the configuration again; raises ``ConfigError``. It is called in a thread.
            then: Called when another configuration has taken over.
        """

        async def apply(settings: Settings) -> Reload:
            result = await self._take_over(settings)
            then()
            return result

        self.reloads = Reloading(read, apply, self.clock, lambda: self.generation)

    async def reload(self) -> Reload:
        """Read the configuration again, let it take over, and tell the workers that share the store.

        Raises:
            Conflict: there is no file to read.
        """
        if self.reloads is None:
            raise Conflict("this proxy was not started from a configuration file, so there is none to read again")
        result = await self.reloads.reload()
        if result.error is None and self._announcement is not None:
            await self._announcement.announce()
        return result

    async def _take_over(self, settings: Settings) -> Reload:
        """Put another configuration in place.

        Raises:
            PointsmanError: it cannot be used; nothing has changed.
        """
        check_host(self.settings.host, settings.host, settings.source)
        plugins = plan(settings, {plugin.name: plugin for plugin in self.plugins.loaded}, self._available)
        new, gone = changed(self.plugins.loaded, plugins.loaded)
        former = {plugin.name: self._instances.put_aside(plugin) for plugin in gone}
        callbacks = {plugin.name: dict(self.metrics.callbacks.get(plugin.name, {})) for plugin in new}
        begun: list[Instance] = []
        try:
            await self._instances.begin(new, begun, former)
        except BaseException:
            for instance in reversed(begun):
                await self._instances.end(instance)
            for instance in former.values():
                self._instances.put_back(instance)
            for name, asked in callbacks.items():
                self.metrics.ask(name, asked)
            raise
        # From here on nothing waits and nothing fails.
        self.settings, self.plugins = settings, plugins
        self.generation += 1
        self.hooks = self._compiled()
        self._instances.started = {plugin.name for plugin in plugins.loaded}
        self.admin = self._admin_surface()
        if self._journal is not None:
            self._journal.use(self.hooks)
        for instance in former.values():
            if instance.catalog is not None:
                instance.catalog.withdraw()
            if instance.plugin.name not in self._instances.started:
                self.metrics.ask(instance.plugin.name, {})
            self._instances.leaving.append(instance)
            self._tasks.spawn(self._leave(instance, self.generation), name="leave")
        result = Reload(
            at=self.clock.now(),
            generation=self.generation,
            kept=tuple(plugin.name for plugin in plugins.loaded if plugin not in new),
            started=tuple(plugin.name for plugin in new),
            stopped=tuple(plugin.name for plugin in gone),
            warnings=warnings(plugins.loaded),
        )
        log.info(
            "the configuration was reloaded (generation %d): new %s; gone %s; as before %s",
            result.generation,
            *(", ".join(names) or "none" for names in (result.started, result.stopped, result.kept)),
        )
        return result

    async def _leave(self, instance: Instance, generation: int) -> None:
        """End an instance once no request needs it any more."""

        def busy() -> bool:
            open_ones = any(exchange.hooks.generation < generation for exchange in self._open)
            return open_ones or (self._journal is not None and self._journal.waits_for(generation))

        if not await drained(busy, self.clock):
            for exchange in self._open:
                if exchange.hooks.generation < generation:
                    exchange.hooks = self.hooks
        await self._instances.end_leaving(instance)

    # -- services -----------------------------------------------------------------------------------------------------

    def services(self, plugin: str) -> Services:
        """Return one plugin's services."""
        if self._store is None or self._takeovers is None or self._lifetime is None:
            raise RuntimeError("the host has not been started")
        built = self._instances.built[plugin]
        return Services(
            plugin=plugin,
            store=ScopedStore(self.observed.measured(self._store, plugin), f"{plugin}/"),
            clock=self.clock,
            tracer=self.tracing.tracer,
            meter=self.metrics.meter(plugin),
            tasks=self._instances.tasks_of(plugin),
            random=self.random,
            new_id=self.new_id,
            signals=self.signals,
            catalog=self._instances.catalog_of(plugin),
            prices=self.gateway.prices,
            tokenizer=self.gateway.tokenizer,
            upstream=self.gateway.upstream,
            publish=lambda event: self.publish(replace(event, source=plugin)),
            statuses=self.statuses,
            # Two instances of a plugin that run at the same time are as two workers.
            worker=self.worker if built <= 1 else f"{self.worker}{REBUILT}{built}",
            unpriced=self.settings.host.unpriced,
            base=self.settings.base,
            takeovers=self._takeovers.of(plugin),
            store_life=(lambda _noted: "") if self._forgets else self._lifetime.known,
            annotate=annotator(plugin),
            fault=lambda part, err: self._fault(plugin, part, err),
        )

    def _fault(self, plugin: str, part: str, err: BaseException) -> None:
        self.faults.record(plugin, part, None, err)

    def publish(self, event: Event) -> None:
        """Announce an event to the plugins of this worker, and of the others where it says so."""
        self.events.publish(event)
        if event.everywhere and self._broadcast is not None:
            self._broadcast.send(event)

    async def _deliver(self, event: Event) -> None:
        await self.notices.hear(event)
        await self.hooks.run_on_event(event)
        for instance in tuple(self._instances.leaving):
            if (impl := instance.plugin.hooks.get("on_event")) is not None:
                await replace(self.hooks, on_event=(self._instances.measured(impl),)).run_on_event(event)

    def statuses(self) -> Mapping[str, Status]:
        """Return the status of every configured plugin, including those left out; each is asked when it is looked at."""
        return Statuses((*self.plugins.names(), *self.plugins.broken), self._status)

    def _status(self, name: str) -> Status:
        why = self.plugins.broken.get(name)
        return self.hooks.run_status(name) if why is None else Status(ok=False, summary=f"left out: {why}")

    def problems(self) -> list[str]:
        """Return what keeps the host itself, apart from its plugins, from doing its work; one sentence each."""
        problems = [text for tasks in (self._tasks, *self._instances.tasks.values()) for text in tasks.problems()]
        if self._journal is not None:
            problems += self._journal.problems()
        if self._left_behind is not None:
            problems.append(self._left_behind)
        if self._dropped is not None:
            problems.append(self._dropped)
        return problems + self.faults.problems()

    def describe(self) -> dict[str, object]:
        """Return the answer of ``GET /pointsman/status``."""
        journal = self._journal
        problems = self.problems()
        return {
            "ok": not problems,
            "problems": problems,
            "version": __version__,
            "worker": self.worker,
            "uptime_s": round(self.clock.now() - self.started_at, 3),
            "requests": self.requests,
            "requests_open": len(self._open),
            "generation": self.generation,
            "reload": self.reloads.last.as_json() if self.reloads is not None and self.reloads.last else None,
            "leaving": sorted(instance.plugin.name for instance in self._instances.leaving),
            "store": {"backend": self.settings.host.store.backend},
            "tracing": self._tracing_status(),
            "journal": {
                "submitted": journal.counts.submitted,
                "settled": journal.counts.settled,
                "retried": journal.counts.retried,
                "recovered": journal.counts.recovered,
                "unjournaled": journal.counts.unjournaled,
                "unreadable": journal.counts.unreadable,
                "waiting": dict(journal.waiting()),
            }
            if journal
            else {},
            "faults": [
                {"plugin": plugin, "hook": hook, "count": count}
                for (plugin, hook), count in sorted(self.faults.counts.items())
            ],
            "hooks": self.hooks.timings(self._watchdog.timings()),
            "plugins": [
                {"name": name, "ok": status.ok, "summary": status.summary, "details": dict(status.details)}
                for name, status in self.statuses().items()
            ],
        }

    def _tracing_status(self) -> dict[str, object]:
        status: dict[str, object] = {"enabled": self.tracing.enabled, "failures": self.tracing.failures}
        if (counts := self.tracing.counts) is not None:
            status["spans"] = {"exported": counts.exported, "dropped": counts.dropped, "waiting": counts.waiting}
        return status

    # -- requests -----------------------------------------------------------------------------------------------------

    def open(self, ctx: RequestContext, *, span: Span | None = None, age_s: float = 0.0) -> Exchange:
        """Open a client request.

        Args:
            ctx: The request.
            span: Its span, where it was started before the request was known.
            age_s: Seconds since it arrived.
        """
        exchange = Exchange(self, ctx, span=span, age_s=age_s)
        self.requests += 1
        self._open.add(exchange)
        return exchange

    def spawn(self, work: Coroutine[object, object, object], *, name: str) -> None:
        """Run a coroutine in the background, until the host stops; its errors are counted.

        Args:
            work: The coroutine.
            name: What it does.
        """
        self._tasks.spawn(work, name=name)

    def detached(
        self, ctx: RequestContext, kind: AttemptKind, *, primary: Span | None = None, span: Span | None = None
    ) -> Exchange:
        """Open a plugin's own call: it has attempts, observers and spans, but is never settled.

        Args:
            ctx: The call.
            kind: Its kind.
            primary: The span of the client's request that it is made for.
            span: Its own, where it was planned before.
        """
        return Exchange(self, ctx, detached=True, kind=kind, primary=primary, span=span)

    def own_call(self, request: UpstreamRequest, primary: Exchange | None, span: Span | None = None) -> Exchange:
        """Open the exchange of a call that a plugin makes; it has the identity of its parent's caller.

        Args:
            request: What the plugin asks for.
            primary: The client's request that it is made for, if it is known here.
            span: The call's, where it was planned before.
        """
        parent = request.parent
        ctx = RequestContext(
            request_id=self.new_id(),
            endpoint=request.endpoint,
            model=request.target,
            stream=request.stream,
            identity=parent.identity if parent is not None else Identity(),
            payer=request.tenant,
            parent_id=parent.request_id if parent is not None else None,
            session_id=parent.session_id if parent is not None else None,
            body=request.body,
            received_at=self.clock.now(),
        )
        exchange = self.detached(ctx, request.kind, primary=None if primary is None else primary.span, span=span)
        self.tracing.set(exchange.span, route_attributes(Route(target=request.target, labels=request.labels)))
        return exchange

    async def settled(self) -> None:
        """Wait until every request closed so far has been settled with every plugin."""
        if self._journal is not None:
            await self._journal.idle()

    def waiting(self) -> Mapping[str, int]:
        """Return the number of settlements that each plugin still has to settle."""
        return self._journal.waiting() if self._journal is not None else {}

    def ended(self, exchange: Exchange) -> None:
        """Count a closed request, once its cost is known; called by the exchange."""
        if not exchange.awaits_cost or self._journal is None:
            self._complete(exchange)
            return
        self._late.wait(exchange)

    def completed(self, exchange: Exchange) -> None:
        """Count a closed request whose cost has become known; called by the exchange."""
        self._late.known(exchange)

    def _complete(self, exchange: Exchange) -> None:
        if self.observed.blind and not exchange.detached:
            return
        settlement = exchange.settlement
        assert settlement is not None  # noqa: S101  # it has been closed
        self.observed.count(exchange, settlement)
        if exchange.detached:
            self.events.publish(
                OwnCallEnded(source="pointsman", request_id=settlement.request_id, attempts=settlement.attempts)
            )

    def _recent_statuses(self) -> Mapping[str, Status]:
        """Return the plugins' statuses, half a minute old at most: some look at every deployment for theirs."""
        now = self.clock.monotonic()
        if now - self._statuses_read_at >= STATUSES_S:
            self._statuses_read, self._statuses_read_at = dict(self.statuses()), now
        return self._statuses_read

    def _families(self) -> list[Family]:
        journal = self._journal
        families = present_families(
            open_requests=len(self._open),
            settlements=journal.counts if journal is not None else Counts(),
            waiting=self.waiting(),
            faults=self.faults,
            statuses=self._recent_statuses(),
            dropped_events=self.events.dropped,
            tracing_failures=self.tracing.failures,
        )
        return families + hook_families(self._instances.timings.values())

    def closed(self, exchange: Exchange) -> None:
        """Submit a closed exchange to the journal; called by the exchange."""
        self._open.discard(exchange)
        settlement = exchange.settlement if exchange.hooks.settle else None
        if self._journal is not None and settlement is not None:
            completing = exchange if exchange.awaits_cost else None
            self._journal.submit(exchange.ctx, settlement, exchange.span, completing, hooks=exchange.hooks)
