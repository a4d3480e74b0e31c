"""The outermost ASGI layer: the one place where every client request begins and ends exactly once.

LiteLLM's callbacks skip, double or reorder themselves between endpoints, streams and disconnects. What they report about
a request is gathered in its ``ClientCall``; when the application is done with the request, in whatever way, the exchange
is closed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..host.runtime import new_id
from ..types import Denial
from . import client_settings, early_streams, unadmitted
from .asgi_messages import answer_headers, events, merged, whole
from .bodies import Rewriter, rewriter
from .call import ClientCall, EndedError, current_call
from .departures import Departures, has_gone
from .endpoints import has_dots
from .request_parts import PartsCounter
from .silent_sockets import SilentSockets
from .socket_watch import SocketWatch

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .request_spans import RequestSpans
    from .sockets import MeteredSocket

#: How long a plain request is continued whose client has left, in seconds.
PATIENCE_S: Final = 30.0
#: The most lists, objects and entries in the JSON of a request; LiteLLM takes up to 7 microseconds for each, and we one.
MOST_PARTS: Final = 400_000
_FORWARDED_FOR: Final = b"x-forwarded-for"
_OK: Final = 200
#: Pieces of a stream without content, such as those that only keep the connection alive.
_MOST_HELD: Final = 16
#: HTTP's first error status.
_FIRST_ERROR: Final = 400
_DOTTED: Final = Denial(
    status=400, code="invalid_path", message="The path must not contain '.' or '..'; write the path that they lead to."
)


class RequestMiddleware:
    """Opens and closes the call of each HTTP request and each websocket.

    Args:
        app: The wrapped application.
        ready: Awaited before the first request; raises when the host could not start.
        finish: Closes what is still open when the application is done with a request.
        spans: Makes the requests' spans; None makes none.
        patience_s: How long a plain request is continued whose client has left, in seconds.
        meter: Returns what meters the responses on a connection; None where it is not a websocket whose protocol is known.
        not_admitted: Called with each request that was never admitted.
        most_parts: Returns the most lists, objects and entries that the JSON of a request may have.
    """

    def __init__(
        self,
        app: ASGIApp,
        ready: Callable[[], Awaitable[None]],
        finish: Callable[[ClientCall], None],
        spans: RequestSpans | None = None,
        *,
        patience_s: float = PATIENCE_S,
        meter: Callable[[Scope], MeteredSocket | None] | None = None,
        not_admitted: Callable[[ClientCall], None] | None = None,
        most_parts: Callable[[], int] = lambda: MOST_PARTS,
    ) -> None:
        self.app = app
        self._most_parts = most_parts
        self._not_admitted = not_admitted
        self._meter = meter
        self._departures = Departures(patience_s)
        self._silent = SilentSockets()
        self._spans = spans
        self._finish = finish
        self._ready: Callable[[], Awaitable[None]] | None = ready

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # noqa: D102  # ASGI
        if scope["type"] not in {"http", "websocket"}:
            return self.app(scope, receive, send)
        if self._ready is not None:
            return self._serve_first(self._ready, scope, receive, send)
        request_id, peer = new_id(), _peer(scope, receive)
        spans = self._spans
        if spans is None:
            return self._serve(ClientCall(request_id, scope, peer), receive, send)
        span = spans.open(scope, request_id)
        if span is None:
            if spans.hides(scope):
                return self._serve_hidden(spans, ClientCall(request_id, spans.hidden(scope), peer), receive, send)
            return self._serve(ClientCall(request_id, scope, peer), receive, send)
        call = ClientCall(request_id, spans.inner_scope(scope, span), peer, span)
        return self._serve_traced(spans, span, call, receive, send)

    async def _serve_first(
        self, ready: Callable[[], Awaitable[None]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        await ready()
        self._ready = None
        await self(scope, receive, send)

    async def _serve_hidden(self, spans: RequestSpans, call: ClientCall, receive: Receive, send: Send) -> None:
        with spans.unrecorded():
            await self._serve(call, receive, send)

    async def _serve_traced(
        self, spans: RequestSpans, span: Span, call: ClientCall, receive: Receive, send: Send
    ) -> None:
        call.trace_id = spans.trace_id(call)
        with spans.around(span):
            try:
                await self._serve(call, receive, send)
            finally:
                spans.close(call)

    async def _serve(self, call: ClientCall, receive: Receive, send: Send) -> None:
        scope = call.scope
        if self._meter is not None and scope["type"] == "websocket":
            call.socket = self._meter(scope)
        token = current_call.set(call)
        watch: _Watch | SocketWatch = (
            _Watch(call, receive, send, self._departures, self._most_parts)
            if scope["type"] == "http"
            else SocketWatch(call, receive, send, self._silent)
        )
        try:
            await self._run(call, watch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Ended because its client has left: the server has nothing to report.
            if not self._departures.over(call) or task is None or task.uncancel():
                raise
        except EndedError:
            await watch.refuse()
        except Exception:
            # The application failed over the denial, which has been sent in place of its answer.
            if not watch.refused:
                raise
        finally:
            watch.close()
            self._departures.over(call)
            call.end()
            current_call.reset(token)
            exchange = call.exchange
            if exchange is not None:
                self._finish(call)
                exchange.disconnected = call.gone
                if not call.followed:
                    exchange.close(call.status)
            elif self._not_admitted is not None:
                self._not_admitted(call)

    def _run(self, call: ClientCall, watch: _Watch | SocketWatch) -> Awaitable[None]:
        scope = call.scope
        malformed = _DOTTED if has_dots(scope["path"]) else client_settings.malformed(scope["headers"])
        if malformed is None:
            return self.app(scope, watch.receive, watch.send)
        call.refuse(malformed)
        return watch.refuse()


class _Watch:
    """The ``receive`` and ``send`` of one request, as the application gets them."""

    __slots__ = (
        "_begun",
        "_call",
        "_departures",
        "_early",
        "_held",
        "_most_parts",
        "_parts",
        "_receive",
        "_rewriter",
        "_send",
        "_start",
        "_started",
        "refused",
    )

    def __init__(
        self, call: ClientCall, receive: Receive, send: Send, departures: Departures, most_parts: Callable[[], int]
    ) -> None:
        self._call = call
        self._most_parts = most_parts
        #: None while the body cannot have too many parts.
        self._parts: PartsCounter | None = None
        self._departures = departures
        self._receive = receive
        self._send = send
        self._rewriter: Rewriter | None = None
        self._held: list[Message] = []
        self._started = False
        #: The application's ``http.response.start``, and whether anything but comments has come after it.
        self._start: Message | None = None
        self._begun = False
        #: Whether the client has got comments, and with them the status and the headers, before there was an answer.
        self._early = False
        self.refused = False

    async def receive(self) -> Message:
        """Note that the client has gone; end a request whose body would stall the worker before it is read.

        Raises:
            EndedError: the body has too many parts.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._call.leave()
            return message
        last, body = not message.get("more_body", False), message.get("body", b"")
        if self._parts is None and not (last and len(body) <= self._most_parts()):
            self._parts = PartsCounter(self._call.scope, self._most_parts)
        if self._parts is not None and (denial := self._parts.refused(body, last=last)) is not None:
            self._call.refuse(denial)
            raise EndedError
        if last:
            self._departures.watch(self._call, self._receive)
        return message

    async def send(self, message: Message) -> None:
        """Add our headers, and note what is sent. Where there is a denial, it replaces the application's answer."""
        if self.refused:
            return
        # Pieces of the answer are passed on as they are where nothing waits, and nothing is changed any more.
        if (
            self._begun
            and self._started
            and message.get("more_body", False)
            and self._rewriter is None
            and not self._held
            and not self._call.awaits_executor
        ):
            await self._send(message)
        else:
            await self._take(message)

    async def _take(self, message: Message) -> None:
        call = self._call
        starts = message["type"] == "http.response.start"
        if starts:
            if call.denial is not None:
                # LiteLLM's own text for it lacks the code on some routes.
                same = call.denial.status == message["status"]
                await self.refuse(message.get("headers", ()) if same else ())
                return
            if self._is_unanswered(message):
                await self.refuse()
                return
            call.start_answer(message["status"])
            self._start = message
            if call.exchange is not None and not call.gone and has_gone(self._receive):
                call.leave()
        elif not self._begun and await self._comes_early(message):
            return
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last:
            self._complete(message.get("body", b""))
        elif call.awaits_executor or (not self._started and self._awaits_more(starts=starts)):
            # Some endpoints send headers and a first event before the executor has started: wait for it.
            self._held.append(message)
            return
        if self._held:
            await self._release()
        if not self.refused:
            await self._forward(message)

    async def _release(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for message in held:
            if not self.refused:
                await self._forward(message)

    def _awaits_more(self, *, starts: bool) -> bool:
        """Return whether headers have to wait for the first content, or for the beginning of the answer.

        What changes an answer has to know whether it is one.

        Args:
            starts: Whether the headers are all that there is.
        """
        exchange = self._call.exchange
        if exchange is None:
            return False
        if starts and exchange.changes_answers:
            return True
        return exchange.awaits_content and self._call.status < _FIRST_ERROR and len(self._held) < _MOST_HELD

    async def _comes_early(self, message: Message) -> bool:
        """Return whether a message is a comment before the answer, or ends it before it has begun; it is dealt with then."""
        if self._start is None:
            return False
        if early_streams.is_comment(message) and early_streams.is_stream(self._start):
            await self._keep_alive(message)
            return True
        if self._early and await self._ends_early(self._start, message):
            return True
        self._begun = True
        return False

    async def _keep_alive(self, comment: Message) -> None:
        """Send a comment at once, after the headers: the client waits for a sign of life."""
        self._early = True
        await self._release()
        await self._send(comment)

    async def _ends_early(self, start: Message, message: Message) -> bool:
        """Return whether a stream that was opened early ends with an error, in the words of its API.

        Args:
            start: Its start.
            message: The first message that is more than a comment.
        """
        call = self._call
        error, exchange = early_streams.error_of(message), call.exchange
        if exchange is None:
            return False
        if call.denial is None and error is not None and exchange.unanswered is not None:
            call.refuse(exchange.unanswered)
        if call.denial is not None:
            await self.refuse()
        elif error is not None:
            call.start_answer(early_streams.status_of(error))
            if exchange.ctx.endpoint in early_streams.NAMED and not early_streams.is_named(message):
                await self._finish(early_streams.error_event({"error": error}, exchange.ctx.endpoint))
        elif exchange.changes_answers:
            made = rewriter(exchange, start, self._send, self._deny_late)
            if isinstance(made, Denial):
                await self._deny_late(made)
            else:
                self._rewriter = made
        return self.refused

    async def _finish(self, content: bytes) -> None:
        """End a stream that was opened early with these events."""
        self.refused = True
        self._complete()
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    def _is_unanswered(self, message: Message) -> bool:
        """Return whether the application starts an error of which a plugin is the reason; the request is refused then."""
        call, exchange = self._call, self._call.exchange
        if exchange is None or message["status"] < _FIRST_ERROR or (denial := exchange.unanswered) is None:
            return False
        # A plugin is the reason why there is no answer, and says so: the gateway's own text does not.
        theirs = dict(message.get("headers", ())).get(b"retry-after", b"")
        if denial.retry_after_s is None and theirs.isdigit():
            denial = replace(denial, retry_after_s=float(theirs))
        call.refuse(denial)
        return True

    async def _forward(self, message: Message) -> None:
        call = self._call
        self._started = True
        if message["type"] == "http.response.start":
            message["headers"] = merged(message.get("headers", ()), answer_headers(call))
            if call.exchange is not None and call.exchange.changes_answers and not self._early:
                made = rewriter(call.exchange, message, self._send, self._deny_late)
                if isinstance(made, Denial):
                    await self._deny_late(made)
                    return
                self._rewriter = made
        if self._rewriter is not None:
            await self._rewriter.send(message)
        else:
            await self._send(message)

    async def _deny_late(self, denial: Denial) -> None:
        """Answer with a denial although the application has begun to answer, of which nothing has been sent."""
        self._rewriter = None
        self._call.refuse(denial)
        self._call.start_answer(0)
        await self.refuse()

    def close(self) -> None:
        """End what changes the answer."""
        if self._rewriter is not None:
            self._rewriter.close()

    def _complete(self, last: bytes = b"") -> None:
        call = self._call
        call.complete_answer()
        if call.exchange is not None:
            call.exchange.answered()
        elif call.status >= _FIRST_ERROR:
            call.fail_early(unadmitted.error_type(last))

    async def refuse(self, theirs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with the call's denial, or a plugin's reply, unless an answer has started.

        Args:
            theirs: Headers of the application's own answer to keep.
        """
        call = self._call
        if self.refused or (call.denial is None and call.reply is None):
            return
        if self._early and not self._begun:
            call.start_answer(_OK if call.denial is None else call.denial.status)
            await self._finish(events(call))
        elif not call.status:
            self.refused = True
            call.start_answer(_OK if call.denial is None else call.denial.status)
            start, body = whole(call, theirs)
            self._complete(body["body"])
            await self._send(start)
            await self._send(body)


def _peer(scope: Scope, receive: Receive) -> str | None:
    """Return the address of the other end of the connection.

    uvicorn puts into the scope what ``X-Forwarded-For`` says where it trusts the peer; by default every peer on the same
    machine, so that any client of a proxy there could name its address. Its own transport knows better.
    """
    try:
        address = receive.__self__.transport.get_extra_info("peername")  # type: ignore[attr-defined]  # see has_gone
    except AttributeError:
        pass
    else:
        return str(address[0]) if isinstance(address, tuple) and address else None
    if any(name == _FORWARDED_FOR for name, _ in scope["headers"]):
        return None  # another server: whether the header has been applied is not known
    client = scope.get("client")
    return str(client[0]) if client else None
