"""Builds everything of one worker and installs it into the running LiteLLM proxy.

LiteLLM's configuration names ``handler`` and ``custom_auth`` of the package; both lead here. Every part gets what it needs
from its constructor.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server

from ..errors import ConfigError, PointsmanError
from ..host.host import Host
from ..host.settings import SECTION, Settings, parse, read_document
from ..host.tracing import configure
from ..host.versions import untested
from . import logs, patches
from .auth import authenticate
from .background import Background
from .callbacks import Callbacks
from .catalog import RouterCatalog
from .closing import Closer
from .endpoints import is_metered_socket
from .executor import Executor
from .forwarding import admin_router
from .guard import Guard
from .prices import CostMap
from .request_spans import RequestSpans, asks_a_model
from .selection import Selection
from .sockets import MeteredSocket
from .starting import stop_the_start
from .tokenizer import PromptTokenizer
from .unadmitted import remembered
from .upstream import RouterUpstream

if TYPE_CHECKING:
    from fastapi import Request
    from litellm.proxy._types import UserAPIKeyAuth
    from starlette.types import Scope

    from ..host.reloading import Reload
    from .call import ClientCall

log: Final = logging.getLogger("pointsman")

#: What LiteLLM reads the garbage collector's thresholds from.
_GC_SETTING: Final = "PYTHON_GC_THRESHOLD"
#: Objects that are new when the garbage collector looks through them. Python's own default is 700.
_NEW_OBJECTS: Final = 5_000


class Bridge:
    """One worker: the host, and the gateway as the host sees it.

    Args:
        settings: The validated ``pointsman:`` section.

    Raises:
        ConfigError, PluginLoadError, HookSignatureError: a plugin cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.catalog = RouterCatalog()
        self.prices = CostMap()
        self.tokenizer = PromptTokenizer()
        self.host = Host(settings, self)
        self.guard = Guard(self.host.unmetered)
        closer = Closer(self.prices, self.tokenizer, self.host.clock)
        self.upstream = RouterUpstream(self.host, self.catalog, closer)
        self._executor = Executor(self.host, self.upstream, closer)
        self.selection = Selection(self.catalog)
        self._background = Background(self.host, self.catalog, self.prices)
        self.callbacks = Callbacks(
            self.host,
            self.catalog,
            self._executor,
            closer,
            selection=self.selection,
            guard=self.guard,
            background=self._background,
        )
        self._closer = closer
        self._starting: asyncio.Task[None] | None = None
        self._reloading: set[asyncio.Task[Reload]] = set()
        if proxy_server.user_config_file_path:
            self.host.enable_reload(_read_settings, lambda: _setup_logging(self.host))

    def meter(self, scope: Scope) -> MeteredSocket | None:
        """Return what meters the responses on a connection; None where it is not a websocket whose protocol is known."""
        return MeteredSocket(self.host, self._closer) if is_metered_socket(scope) else None

    def not_admitted(self, call: ClientCall) -> None:
        """Remember a request to a model that was never admitted."""
        if asks_a_model(call.path):
            self.host.observed.not_admitted(remembered(call, self.host.clock.now()))

    async def ready(self) -> None:
        """Wait until the host has started; the first call starts it."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="pointsman:start")
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        try:
            tracing = self.host.settings.host.tracing
            self.host.tracing = configure(
                enabled=tracing.enabled, worker=self.host.worker, trust=tracing.trust_traceparent
            )
            self.host.observed.send()
            self.tokenizer.load()
            await self.host.start()
            self._executor.check()
            await self._background.adopt()
        except PointsmanError as err:
            stop_the_start(err)
        self._listen_for_sighup()
        _freeze_the_heap()
        _collect_less_often()

    def _listen_for_sighup(self) -> None:
        """Reload on SIGHUP, which would end this process. A supervisor of several workers has its own way with it."""
        if self.host.reloads is None:
            return

        def hung_up() -> None:
            task = asyncio.create_task(self.host.reload(), name="pointsman:reload")
            self._reloading.add(task)
            task.add_done_callback(self._reloading.discard)

        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            # Not everywhere: Windows has no such signal, and only a main thread gets it.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)

    async def running(self) -> Host:
        """Return the host, started."""
        await self.ready()
        return self.host

    async def stop(self) -> None:
        """Shut the host down."""
        if self._starting is not None:
            await self.host.stop()


_bridge: Bridge | None = None


def _installed() -> Bridge:
    if _bridge is None:
        raise ConfigError('litellm_settings.callbacks does not mention "pointsman.litellm.handler"; add it')
    return _bridge


async def custom_auth(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Authenticate a client's request; see ``auth.authenticate``."""
    bridge = _installed()
    return await authenticate(request, api_key, bridge.running, bridge.catalog.allowed)


def install() -> CustomLogger:
    """Build the host and install it; a second call returns callbacks that do nothing. Called by LiteLLM's start-up."""
    global _bridge  # noqa: PLW0603  # LiteLLM imports an instance: there is one per worker
    if _bridge is not None:
        # LiteLLM calls every mention of a callback: a second one must not run each hook twice.
        log.warning("litellm_settings.callbacks mentions pointsman.litellm.handler more than once; once is enough")
        return CustomLogger()
    try:
        patches.apply(patches.used(Callbacks))
        bridge = Bridge(_settings())
        patches.apply(
            patches.of_proxy(
                start=bridge.ready,
                stop=bridge.stop,
                finish=bridge.callbacks.finish,
                catalog=bridge.catalog,
                spans=RequestSpans(lambda: bridge.host.tracing, asks_a_model),
                patience_s=bridge.host.settings.host.left_timeout_s,
                meter=bridge.meter,
                not_admitted=bridge.not_admitted,
                most_parts=lambda: bridge.host.settings.host.request_parts,
            )
        )
        bridge.selection.last = patches.apply_to_selection(bridge.selection)
        patches.apply(patches.of_providers(bridge.guard, bridge.callbacks.admit_counting))
        clients = getattr(litellm, "in_memory_llm_clients_cache", None)
        bridge.guard.already_cached(getattr(clients, "cache_dict", {}))
    except PointsmanError as err:
        stop_the_start(err)
    _setup_logging(bridge.host)
    if (unknown := untested(patches.litellm_version())) is not None:
        log.warning("%s; report what does not work", unknown)
    patches.keep_denials_out_of_the_log()
    proxy_server.app.include_router(admin_router(bridge.running))
    _bridge = bridge
    return bridge.callbacks


def _collect_less_often() -> None:
    """Let the garbage collector wait for more new objects than Python's default, unless the operator has chosen.

    A request makes thousands of objects that reference counting frees. By default the collector looks through the youngest
    after every 700, in vain.
    """
    first, *older = gc.get_threshold()
    if not os.environ.get(_GC_SETTING) and 0 < first < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *older)


def _freeze_the_heap() -> None:
    """Exclude the objects that exist after start-up from garbage collection.

    LiteLLM's modules and its cost map are hundreds of thousands of objects that live as long as the process. A full
    collection traverses all of them while every request waits: half a second, once in several hundred requests. The
    second collection resets the collector's estimate of how many objects there are.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def _read_settings() -> Settings:
    """Read the file that the proxy was started from again.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    file = Path(proxy_server.user_config_file_path)
    return parse(read_document(file).get(SECTION), str(file), file.resolve().parent)


def _settings() -> Settings:
    section = proxy_server.proxy_config.get_config_state().get(SECTION)
    file = proxy_server.user_config_file_path
    base = Path(file).resolve().parent if file else Path.cwd()
    return parse(section, str(file or "LiteLLM configuration"), base)


def _setup_logging(host: Host) -> None:
    """Log our messages and the plugins' where LiteLLM logs its own, unless the operator has configured logging."""
    logs.set_up({type(plugin.instance).__module__.partition(".")[0] for plugin in host.plugins.loaded})
