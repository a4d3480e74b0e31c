"""Runs the upstream: in a thread of this process for tests, or in the foreground."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Self

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .app import Upstream
from .delivery import CLOSE
from .routes import build_app

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .behaviour import Behaviour
    from .journal import ReceivedRequest
    from .replay import ReplayIndex

_KEEP_ALIVE_S = 120
_START_S = 30
_STOP_S = 10


class _Protocol(AutoHTTPProtocol):  # type: ignore[valid-type,misc] # chosen at run time by what is installed
    """Uvicorn's HTTP protocol that lets the application close its connection, which ASGI itself has no word for."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        app: ASGIApp = self.app

        async def closable(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), CLOSE: transport.close}
            await app(scope, receive, send)

        self.app: ASGIApp = closable


class _Server(uvicorn.Server):
    """Uvicorn that tells when it listens, and closes what is open when it stops."""

    def __init__(self, config: uvicorn.Config, upstream: Upstream) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._upstream = upstream

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._upstream.stopping = True
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await super().shutdown(sockets)


def make_server(upstream: Upstream) -> _Server:
    """Return a server for the upstream that is not running yet; give ``run`` a listening socket."""
    app: Starlette = build_app(upstream)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        backlog=4096,
    )
    return _Server(config, upstream)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=4096)


def url_of(listening: socket.socket) -> str:
    """Return the base URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UpstreamServer:
    """A bundled upstream in a thread of this process, on a free loopback port.

    ::

        with UpstreamServer({"gpt-slow": Behaviour(first_token=Delay(300))}) as upstream:
            client = OpenAI(base_url=f"{upstream.url}/v1", api_key="any")

    Args:
        behaviours: How models behave, by upstream model name; ``*`` is for all others.
        replay: Recorded exchanges to serve instead of answers of its own.
        now: The wall clock in Unix seconds; see ``Upstream``.
        port: Port to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        replay: ReplayIndex | None = None,
        now: Callable[[], float] = time.time,
        port: int = 0,
    ) -> None:
        self._upstream = Upstream(behaviours, replay=replay, now=now)
        self._server = make_server(self._upstream)
        self._port = port
        self._url: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL without ``/v1``.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._url is None:
            raise RuntimeError("upstream: not started; use it as a context manager or call start()")
        return self._url

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """What it received since the start or the last reset, in order."""
        return self._upstream.journal.all()

    def start(self) -> None:
        """Start it; returns when it accepts connections.

        Raises:
            OSError: the port is taken.
            RuntimeError: it does not start, or was started before.
        """
        if self._thread is not None:
            raise RuntimeError("upstream: started before; make a new one")
        listening = listen("127.0.0.1", self._port)
        self._url = url_of(listening)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="upstream", daemon=True)
        self._thread.start()
        if not self._server.listening.wait(_START_S):
            raise RuntimeError(f"upstream: does not listen after {_START_S} s")

    def stop(self) -> None:
        """Stop it: close all connections and end the thread. Harmless when it does not run.

        Raises:
            RuntimeError: it does not end.
        """
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise RuntimeError(f"upstream: does not end within {_STOP_S} s")

    def behave(self, model: str, behaviour: Behaviour) -> None:
        """Set a model's behaviour from now on; its counts and limits start anew."""
        self._upstream.behave(model, behaviour)

    def reset(self) -> None:
        """Forget all requests, counts and limits, and every behaviour set since the start."""
        self._upstream.reset()

    def wait_for(
        self, condition: Callable[[tuple[ReceivedRequest, ...]], object], *, timeout_s: float = 10.0
    ) -> tuple[ReceivedRequest, ...]:
        """Block until the requests fulfil a condition, and return them.

        Raises:
            TimeoutError: they did not in time.
        """
        return self._upstream.journal.wait_for(condition, timeout_s)
