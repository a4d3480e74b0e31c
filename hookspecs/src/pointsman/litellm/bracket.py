"""The outermost ASGI layer: the one place where every client request begins and ends exactly once.

LiteLLM's callbacks skip, double or reorder themselves between endpoints, streams and disconnects. What they say about a
request is gathered in its ``Call``; when the application is done with the request, however that came about, the call's
exchange is closed here.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from ..host.runtime import new_id

if TYPE_CHECKING:
    from ..host.exchange import Exchange, OpenAttempt
    from ..types import AttemptKind, Identity

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LIMITS: Final = b"x-ratelimit-"
#: A plugin that set one of these would break the answer, not describe it.
_SERVERS_HEADERS: Final = frozenset(
    {"content-length", "content-type", "transfer-encoding", "connection", "content-encoding"}
)


class Call:
    """What LiteLLM's callbacks share about one request or one call of our own.

    Attributes:
        request_id: Ours.
        scope: The ASGI scope; None for a call of our own.
        exchange: The request's exchange, once LiteLLM has authenticated it.
        identity: Who calls, when a plugin's ``authenticate`` said so.
        kind: For a call of our own, the kind of its attempt.
        opened: For a call of our own, its attempt.
        chosen: LiteLLM has asked for candidates since the last attempt was opened: the next one is new.
        provider_headers: Headers of the provider's latest response, as the HTTP client saw them.
        metadata: LiteLLM's own facts about the caller, for calls of our own on the caller's behalf.
        labels: For a call of our own, what its attempt is labelled with beside the route's labels.
        awaited: A plugin is going to execute the route and has not begun to answer: its headers are not known yet.
        executed: A plugin has executed the route: its attempts have been closed by whoever started them.
        executed_id: LiteLLM's id of the call that a plugin is going to execute.
        gone: The client has gone away.
        status: The HTTP status sent.
        complete: The whole answer has been handed to the server.
    """

    __slots__ = (
        "awaited",
        "chosen",
        "complete",
        "exchange",
        "executed",
        "executed_id",
        "gone",
        "identity",
        "kind",
        "labels",
        "metadata",
        "opened",
        "provider_headers",
        "request_id",
        "scope",
        "status",
    )

    def __init__(self, request_id: str, scope: Scope | None = None, kind: AttemptKind | None = None) -> None:
        self.request_id = request_id
        self.scope = scope
        self.kind = kind
        self.exchange: Exchange | None = None
        self.identity: Identity | None = None
        self.opened: OpenAttempt | None = None
        self.chosen = False
        self.labels: Mapping[str, str] = {}
        self.awaited = False
        self.executed = False
        self.executed_id: str | None = None
        self.metadata: dict[str, Any] = {}
        self.provider_headers: Any = None
        self.gone = False
        self.status = 0
        self.complete = False


#: The call that the running code works for. Tasks inherit it, so it survives LiteLLM's own task hops.
current_call: Final[ContextVar[Call | None]] = ContextVar("pointsman_call", default=None)


class Bracket:
    """ASGI middleware.

    Args:
        app: What it wraps.
        ready: Awaited before the first request; raises when the host could not start.
    """

    def __init__(self, app: App, ready: Callable[[], Awaitable[None]]) -> None:
        self.app = app
        self._ready: Callable[[], Awaitable[None]] | None = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._ready is not None:
            await self._ready()
            self._ready = None
        call = Call(new_id(), scope)
        token = current_call.set(call)

        watch = _Watch(call, receive, send)
        try:
            await self.app(scope, watch.receive, watch.send)
        finally:
            current_call.reset(token)
            exchange = call.exchange
            if exchange is not None:
                exchange.disconnected = call.gone and not call.complete
                exchange.close(call.status)


class _Watch:
    """Stands between the application and the server for one request."""

    __slots__ = ("_call", "_held", "_receive", "_send")

    def __init__(self, call: Call, receive: Receive, send: Send) -> None:
        self._call = call
        self._receive = receive
        self._send = send
        self._held: list[Message] = []

    async def receive(self) -> Message:
        """Note that the client has gone."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._call.complete:
            self._call.gone = True
        return message

    async def send(self, message: Message) -> None:
        """Add our headers, and note what is sent."""
        call = self._call
        more = True
        if message["type"] == "http.response.start":
            call.status = message["status"]
            if call.exchange is not None and not call.gone:
                call.gone = _has_gone(self._receive)
        elif message["type"] == "http.response.body":
            more = message.get("more_body", False)
            call.complete = not more and not call.gone
        if call.awaited and more:
            # Some endpoints send headers and a first event before the executor has started: wait for it.
            self._held.append(message)
            return
        for waiting in (*self._held, message):
            if waiting["type"] == "http.response.start":
                ours = _answer_headers(call)
                names = {name for name, _ in ours}
                # LiteLLM passes on the provider's headers, its rate limits too: of two values a client could read none.
                # Where some limits are ours, the rest of the provider's would be taken for ours as well.
                families = (_LIMITS,) if any(name.startswith(_LIMITS) for name in names) else ()
                theirs = [
                    (name, value)
                    for name, value in waiting.get("headers", ())
                    if name.lower() not in names and not name.lower().startswith(families)
                ]
                waiting["headers"] = [*theirs, *ours]
            await self._send(waiting)
        self._held.clear()


def _answer_headers(call: Call) -> list[tuple[bytes, bytes]]:
    exchange = call.exchange
    headers = {"x-pointsman-request-id": call.request_id} if exchange is None else exchange.answer_headers()
    return [
        (name.lower().encode("ascii"), _one_line(str(value)).encode("latin-1", "replace"))
        for name, value in headers.items()
        if _HEADER_NAME.fullmatch(name) and name.lower() not in _SERVERS_HEADERS
    ]


def _one_line(value: str) -> str:
    """Return a value without line breaks and control characters, whatever a plugin put into it."""
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


def _has_gone(receive: Receive) -> bool:
    """Look, without waiting, whether the server has noticed that the client went away.

    LiteLLM finishes a plain request for a client that has gone, and nobody asks the server about it. One step of
    ``receive`` tells: it either has a message now, or would wait.
    """
    pending = receive()
    if not inspect.iscoroutine(pending):
        return False
    try:
        pending.send(None)
    except StopIteration as stop:
        message: Message = stop.value
        return bool(message["type"] == "http.disconnect")
    except Exception:  # noqa: BLE001  # a server that cannot be asked has not said that the client is gone
        return False
    with contextlib.suppress(Exception):
        pending.close()
    return False
