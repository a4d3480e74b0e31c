"""A host in process, with everything around it replaced by values: for tests of plugins.

::

    async with Harness([(plugin, {"limit": 3})]) as h:
        result = await h.request(model="chat", script=[error(429), ok()])
        await h.settled()
        assert [attempt.outcome for attempt in result.attempts] == [Outcome.ERROR, Outcome.OK]

The host, its configuration, hooks, journal and stores are the real ones. Time, chance, ids, the gateway and the
providers are not.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from ..host.host import Host
from ..host.reloading import Reload
from ..host.settings import Settings, parse
from ..host.spans import SpanProvider
from ..host.tracing import Tracing
from ..plugin import PluginInfo
from ..sessions import end_user_of, session_of
from ..store.protocol import JSON, StateStore
from ..types import (
    Credential,
    Denial,
    Deployment,
    Endpoint,
    Event,
    Identity,
    Price,
    RequestContext,
    Settlement,
    Status,
    without_credentials,
)
from .clock import FakeClock
from .drive import Drive, Result, denied
from .fakes import DEFAULT_DEPLOYMENTS, DEFAULT_PRICE
from .gateway import FakeGateway
from .script import Script, ScriptSource
from .store import FragileStore
from .worker import Connector, Ids, RecordingHost, environment

Plugin = PluginInfo | tuple[PluginInfo, Mapping[str, Any]]

IDENTITY: Final = Identity(key_hash="0" * 64, key_alias="test", user_id="user-1", team_id="team-1")
CLIENT_HOST: Final = "192.0.2.1"
BODY: Final[Mapping[str, object]] = MappingProxyType({"messages": [{"role": "user", "content": "Hello there"}]})

_UNKNOWN_CALLER: Final = Denial(
    status=401, code="invalid_api_key", type="authentication_error", message="Missing or unknown API key."
)
_SETTLED_WITHIN_S: Final = 10.0
#: Who has failed and is not done after this long waits for the clock.
_LOOK_S: Final = 0.25


class NotSettledError(AssertionError):
    """Settlements are still waiting; the message says for which plugins."""


class Harness:
    """One worker. Use it as an async context manager.

    Args:
        plugins: The plugins, in the order of the configuration, each with its section.
        deployments: What the gateway can serve.
        prices: One price for all, or prices by deployment id or model.
        script: What providers answer by default; see ``pointsman.testing.script``.
        store: ``memory``, ``disk`` (needs ``path``), or a store that another owns, shared with other workers.
        path: Directory of the disk store.
        clock: Time, to share it between workers; by default a clock of its own.
        tracing: Whether spans are made and kept.
        host: More keys for the ``pointsman:`` section.
        name: Which worker this is; two that share a store need different names. Also what chance starts from.

    Attributes:
        clock: Time.
        gateway: The gateway.
        events: What plugins have announced.
        settlements: Every settlement made.
        store: This worker's connection to the store.
        before_start: Called with every host after its plugins have been built and before it starts.
    """

    host: Host
    store: FragileStore
    before_start: Callable[[Host], object] | None = None

    def __init__(
        self,
        plugins: Sequence[Plugin] = (),
        *,
        deployments: Sequence[Deployment] = DEFAULT_DEPLOYMENTS,
        prices: Price | Mapping[str, Price] = DEFAULT_PRICE,
        script: ScriptSource | None = None,
        store: str | StateStore = "memory",
        path: Path | None = None,
        clock: FakeClock | None = None,
        tracing: bool = False,
        host: Mapping[str, Any] | None = None,
        name: str = "worker",
    ) -> None:
        self.clock = clock or FakeClock()
        self.gateway = FakeGateway(deployments, prices=prices, upstream=script)
        self.events: list[Event] = []
        self.settlements: list[Settlement] = []
        self._plugins = _with_sections(plugins)
        self._section = {"store": {"backend": "memory"}, "journal_window_ms": 0, "flush_timeout_s": 1.0, **(host or {})}
        self._available = {info.name: info for info, _ in self._plugins}
        self._connector = Connector(store, path, self.clock)
        self._base = path or Path()
        self._name = name
        self._lives = itertools.count(1)
        self._new_id = Ids(name, self.clock)
        self._running = False
        self._admin: httpx.AsyncClient | None = None
        self._exporter: InMemorySpanExporter | None = InMemorySpanExporter() if tracing else None
        self._provider: SpanProvider | None = None
        if self._exporter is not None:
            self._provider = SpanProvider()
            self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self._connector.close()

    async def start(self) -> None:
        """Start a worker. It finds what an earlier one has left in the store.

        Raises:
            PointsmanError: the configuration or a plugin is wrong.
        """
        worker = f"{self._name}-{next(self._lives)}"
        settings = self._settings()
        store = await self._connector.connect()
        try:
            host = RecordingHost(
                self.events,
                self.settlements,
                settings=settings,
                gateway=self.gateway,
                tracing=Tracing(self._provider.get_tracer("pointsman"), self._provider)
                if self._provider
                else Tracing(),
                environment=environment(self.clock, self._new_id, worker),
                available=self._available,
                store=store,
            )
        except BaseException:
            await store.close()
            raise
        self.host, self.store = host, store
        self.gateway.attach(host)
        if self.before_start is not None:
            self.before_start(host)
        host.enable_reload(self._settings)
        await host.start()
        self._running = True
        assert host.admin is not None  # noqa: S101  # a started host has one
        self._admin = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self._surface, raise_app_exceptions=False),
            base_url="http://pointsman.test",
            headers={"x-pointsman-user": "admin"},
        )

    def _settings(self) -> Settings:
        plugins = [{info.name: dict(section)} for info, section in self._plugins]
        return parse({**self._section, "plugins": plugins}, "test", self._base)

    async def reload(self, plugins: Sequence[Plugin] | None = None, *, host: Mapping[str, Any] | None = None) -> Reload:
        """Change the configuration and reload it as the gateway does; where that fails, it is as before.

        Args:
            plugins: The plugins from now on; None leaves them.
            host: More keys for the ``pointsman:`` section.
        """
        before = self._plugins, self._section
        if plugins is not None:
            self._plugins = _with_sections(plugins)
            self._available.update({info.name: info for info, _ in self._plugins})
        self._section = {**self._section, **(host or {})}
        result = await self.host.reload()
        if result.error is not None:
            self._plugins, self._section = before
        return result

    async def stop(self) -> None:
        """Shut the worker down as the gateway does: settle, flush, ``shutdown``. Harmless when it does not run."""
        if self._running:
            self._running = False
            await self._hang_up()
            await self.host.stop()

    async def restart(self) -> None:
        """Shut the worker down and start another one on the same store."""
        await self.stop()
        await self.start()

    async def crash(self) -> None:
        """Let the worker die: nothing is flushed, no hook is called, nothing reaches the store any more.

        Its heartbeat stays in the store until its time is over. ``start`` starts the next worker.
        """
        self.store.sever()
        self._running = False
        await self._hang_up()
        await self.host.abandon()
        await self.store.close()

    async def _hang_up(self) -> None:
        if self._admin is not None:
            await self._admin.aclose()
            self._admin = None

    # -- traffic ------------------------------------------------------------------------------------------------------

    async def request(
        self,
        *,
        model: str = "chat",
        endpoint: Endpoint = Endpoint.CHAT,
        stream: bool = False,
        generates: bool | None = None,
        identity: Identity = IDENTITY,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, object] = BODY,
        session_id: str | None = None,
        call_id: str | None = None,
        script: ScriptSource | None = None,
        retries: int = 2,
        fallbacks: Sequence[str] = (),
        leave_after_pieces: int | None = None,
        moves_clock: bool = True,
    ) -> Result:
        """Run one client request.

        Args:
            model: What the client asks for.
            endpoint: The kind of API.
            stream: Whether it wants a stream.
            generates: Whether a model works for it; False: it only reads, cancels or counts. By default what is so for a
                POST to this endpoint.
            identity: Who calls, when ``api_key`` is None.
            api_key: The key it shows: the plugins' ``authenticate`` says who that is.
            headers: Its headers; those that carry credentials never reach a plugin.
            body: Its request.
            session_id: The session it names; by default the one that headers or body name.
            call_id: LiteLLM's call id.
            script: What providers answer to this request; None: what the harness was made with.
            retries: How often the gateway repeats within a model group.
            fallbacks: Model groups that the gateway's configuration falls back to.
            leave_after_pieces: The client goes away after so many pieces of a stream.
            moves_clock: Whether time passes by itself while the request waits; otherwise the test moves the clock.
        """
        shown = _shown(headers)
        if api_key is not None:
            answer = await self.authenticate(api_key, headers=shown)
            if not isinstance(answer, Identity):
                return denied(answer or _UNKNOWN_CALLER)
            identity = replace(answer, key_hash=hashlib.sha256(api_key.encode()).hexdigest())
        ctx = RequestContext(
            request_id=self._new_id(),
            call_id=call_id,
            endpoint=endpoint,
            model=(asked := self.gateway.catalog.resolved(model)),
            alias=None if asked == model else model,
            stream=stream,
            generates=endpoint is not Endpoint.COUNT_TOKENS if generates is None else generates,
            identity=replace(identity, end_user=end_user_of(body) or identity.end_user),
            session_id=session_id or session_of(shown, body),
            client_host=CLIENT_HOST,
            headers=shown,
            body=MappingProxyType(dict(body)),
            received_at=self.clock.now(),
        )
        return await self.send(
            ctx,
            script=script,
            retries=retries,
            fallbacks=fallbacks,
            leave_after_pieces=leave_after_pieces,
            moves_clock=moves_clock,
        )

    async def send(
        self,
        ctx: RequestContext,
        *,
        script: ScriptSource | None = None,
        retries: int = 2,
        fallbacks: Sequence[str] = (),
        leave_after_pieces: int | None = None,
        moves_clock: bool = True,
    ) -> Result:
        """Run a client request that is already a value; see ``request``."""
        drive = Drive(
            self.host,
            self.gateway,
            self.host.open(ctx),
            self.gateway.upstream.script if script is None else Script(script),
            retries=retries,
            fallbacks=fallbacks,
            leave_after_pieces=leave_after_pieces,
        )
        if moves_clock:
            return await self.clock.run(drive.run())
        task = asyncio.create_task(drive.run())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise

    async def authenticate(
        self, api_key: str, *, path: str = "/v1/chat/completions", headers: Mapping[str, str] | None = None
    ) -> Identity | Denial | None:
        """Ask the plugins whose key this is; None when no plugin knows."""
        return await self.host.hooks.run_authenticate(
            Credential(api_key=api_key, path=path, headers=_shown(headers), client_host=CLIENT_HOST)
        )

    def publish(self, event: Event) -> None:
        """Announce an event to the plugins."""
        self.host.publish(event)

    # -- what came of it ----------------------------------------------------------------------------------------------

    async def settled(self, timeout_s: float = _SETTLED_WITHIN_S) -> None:
        """Wait until every request is settled and every event delivered, at most this long, in real seconds.

        Raises:
            NotSettledError: a plugin's ``settle`` takes too long, or has failed: it is tried again when the clock is
                moved on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.host.settled()
                break
            except TimeoutError:
                waiting = self.host.waiting()
                failing = any(f"{plugin}.settle" in self.faults for plugin in waiting)
                if failing or time.monotonic() > deadline:
                    raise NotSettledError(
                        f"settlements wait for {dict(waiting)}; faults so far: {self.faults}. "
                        "What has failed is tried again when the clock is moved on."
                    ) from None
        await self.host.events.drain(timeout_s)

    @property
    def admin(self) -> httpx.AsyncClient:
        """A client for the admin routes, whose paths start below ``/pointsman``. The key has been checked already."""
        if self._admin is None:
            raise RuntimeError("the worker does not run; start it first")
        return self._admin

    @property
    def app(self) -> Starlette:
        """The admin routes below ``/pointsman``, as the proxy has them. The key is not checked."""
        if self.host.admin is None:
            raise RuntimeError("the worker does not run; start it first")
        return Starlette(routes=[Mount("/pointsman", app=self._surface)])

    async def _surface(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.host.admin is not None  # noqa: S101  # a started host has one
        await self.host.admin(scope, receive, send)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order; none without ``tracing=True``."""
        return list(self._exporter.get_finished_spans()) if self._exporter is not None else []

    @property
    def faults(self) -> dict[str, int]:
        """How often hooks and background tasks have failed, by ``plugin.hook``."""
        return {f"{plugin}.{hook}": count for (plugin, hook), count in self.host.faults.counts.items()}

    def plugin(self, name: str) -> Any:
        """Return a plugin's object."""
        return next(loaded.instance for loaded in self.host.plugins.loaded if loaded.name == name)

    def status(self, name: str) -> Status:
        """Return a plugin's status."""
        return self.host.hooks.run_status(name)

    async def stored(self, plugin: str) -> dict[str, JSON]:
        """Return what a plugin has in the store, by its own keys."""
        prefix = f"{plugin}/"
        return {key.removeprefix(prefix): value for key, value in await self.store.scan(prefix)}


def _with_sections(plugins: Sequence[Plugin]) -> list[tuple[PluginInfo, Mapping[str, Any]]]:
    return [plugin if isinstance(plugin, tuple) else (plugin, {}) for plugin in plugins]


def _shown(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return headers as a plugin sees them."""
    return without_credentials({name.lower(): value for name, value in (headers or {}).items()})
