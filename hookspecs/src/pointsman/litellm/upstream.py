"""Calls of our own through LiteLLM's router: with its credentials and cooldowns, one attempt each, never retried there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import UpstreamError
from ..host import attributes
from ..host.runtime import new_id
from ..types import (
    Answer,
    Attempt,
    AttemptError,
    AttemptKind,
    Chunk,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    RequestContext,
    Route,
    UpstreamRequest,
    UpstreamResponse,
)
from . import values
from .answers import response_answer
from .bracket import Call, current_call
from .catalog import router
from .executor import METHODS
from .stream import StreamReader

if TYPE_CHECKING:
    from ..host.exchange import Exchange, OpenAttempt
    from .install import Bridge

Method = Callable[..., Awaitable[Any]]

_METADATA: Final = {
    Endpoint.CHAT: "metadata",
    Endpoint.MESSAGES: "litellm_metadata",
    Endpoint.RESPONSES: "litellm_metadata",
    Endpoint.EMBEDDINGS: "metadata",
}
#: Attempts that are part of the client's request: they end with it and belong to its settlement.
_PART_OF_REQUEST: Final = frozenset({AttemptKind.PRIMARY, AttemptKind.HEDGE, AttemptKind.FALLBACK, AttemptKind.RETRY})
#: One attempt a call: the caller decides about the next one.
_ONCE: Final = {"num_retries": 0, "disable_fallbacks": True}
_END: Final = object()
_TIMEOUT_STATUS: Final = 408


class RouterUpstream:
    """Starts calls of our own.

    Args:
        bridge: The gateway and the host.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def start(self, request: UpstreamRequest) -> RouterCall:
        """Start an attempt at once.

        Raises:
            UpstreamError: the target is unknown, or the endpoint cannot be called.
        """
        if request.endpoint not in METHODS:
            raise UpstreamError(f"calls of our own cannot use the endpoint {request.endpoint!s}")
        parent = current_call.get()
        arguments: dict[str, Any] = {
            **request.body,
            "stream": request.stream,
            # LiteLLM books a call on the key that it names: not the caller's when somebody else pays.
            _METADATA[request.endpoint]: dict(parent.metadata) if parent is not None and request.tenant is None else {},
        }
        if request.stream and request.endpoint is Endpoint.CHAT:
            arguments["stream_options"] = {"include_usage": True}
        return self.begin(request, parent, getattr(router(), METHODS[request.endpoint]), arguments)

    def of_route(self, call: Call, endpoint: Endpoint, method: Method, arguments: Mapping[str, Any]) -> RouteUpstream:
        """Return what starts the attempts of a route that a plugin executes."""
        return RouteUpstream(self, call, endpoint, method, arguments)

    def begin(
        self, request: UpstreamRequest, parent: Call | None, method: Method, arguments: dict[str, Any]
    ) -> RouterCall:
        """Start an attempt with these arguments for the router's method.

        Raises:
            UpstreamError: the target is unknown.
        """
        if not self._bridge.catalog.deployments(request.target):
            raise UpstreamError(f"the target {request.target!r} is neither a model group nor a deployment id")
        primary = None if parent is None else parent.exchange
        if primary is not None and request.parent is not None and primary.ctx.request_id != request.parent.request_id:
            primary = None
        mine = primary if request.kind in _PART_OF_REQUEST else None
        work = method(**{**arguments, **_ONCE, "model": request.target})
        call = RouterCall(self._bridge, request, mine or self._detached(request, primary), parent, work)
        follows = request.parent is not None and request.kind is not AttemptKind.MIRROR
        if primary is not None and (mine is not None or follows):
            primary.on_close(call.abandon)
        return call

    def _detached(self, request: UpstreamRequest, primary: Exchange | None) -> Exchange:
        host = self._bridge.host
        parent = request.parent
        identity = parent.identity if parent is not None else Identity()
        if request.tenant is not None:
            identity = replace(identity, tenant=request.tenant)
        ctx = RequestContext(
            request_id=new_id(),
            endpoint=request.endpoint,
            model=request.target,
            stream=request.stream,
            identity=identity,
            session_id=parent.session_id if parent is not None else None,
            body=request.body,
            received_at=host.clock.now(),
        )
        exchange = host.detached(ctx, link=primary.span if primary is not None else None)
        host.tracing.set(exchange.span, attributes.of_route(Route(target=request.target, labels=request.labels)))
        return exchange


class RouteUpstream:
    """Starts the attempts of a route that a plugin executes: the client's own call, once for each of them.

    Args:
        upstream: Makes the calls.
        call: The client's request.
        endpoint: Its endpoint.
        method: The router's method that LiteLLM has called.
        arguments: With these arguments.
    """

    def __init__(
        self, upstream: RouterUpstream, call: Call, endpoint: Endpoint, method: Method, arguments: Mapping[str, Any]
    ) -> None:
        self.stream = arguments.get("stream") is True
        self._upstream = upstream
        self._call = call
        self._endpoint = endpoint
        self._method = method
        self._arguments = arguments
        self._started: list[RouterCall] = []

    def start(self, request: UpstreamRequest) -> RouterCall:
        """Start an attempt at once; body, endpoint and stream are the client's.

        Raises:
            UpstreamError: the target is unknown.
        """
        arguments = dict(self._arguments)
        for name in ("metadata", "litellm_metadata"):
            if isinstance(arguments.get(name), dict):
                # The router writes into it.
                arguments[name] = dict(arguments[name])
        if self._started:
            # The first attempt is logged as the client's call; LiteLLM's record of a call has room for one.
            arguments.pop("litellm_logging_obj", None)
            arguments["litellm_call_id"] = new_id()
        request = replace(request, endpoint=self._endpoint, stream=self.stream)
        call = self._upstream.begin(request, self._call, self._method, arguments)
        self._started.append(call)
        return call

    def whose(self, first: object) -> RouterCall | None:
        """Return the attempt whose first piece this is, or None."""
        return next((call for call in self._started if call.first is first), None)

    async def cancel(self) -> None:
        """Cancel what is still running."""
        for call in self._started:
            await call.cancel()


class RouterCall:
    """One running attempt; see ``pointsman.plugin.UpstreamCall``.

    Attributes:
        source: LiteLLM's stream, once it is there.
        first: Its first piece.
    """

    def __init__(
        self, bridge: Bridge, request: UpstreamRequest, exchange: Exchange, parent: Call | None, work: Awaitable[Any]
    ) -> None:
        self.source: Any = None
        self.first: Any = None
        self._answer: Callable[[], Answer | None] | None = None
        self._bridge = bridge
        self._exchange = exchange
        self._parent = parent
        self._call = call = Call(exchange.ctx.request_id, kind=request.kind)
        call.exchange = exchange
        call.labels = request.labels
        call.metadata = parent.metadata if parent is not None else {}
        self._reader = StreamReader()
        self._left = False
        self._closing: asyncio.Task[None] | None = None
        # What LiteLLM does for the attempt, now and piece by piece, it does under the attempt's own call.
        self._context = copy_context()
        self._context.run(current_call.set, call)
        loop = asyncio.get_running_loop()
        self._deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
        self._timeout_s = request.timeout_s
        self._step = self._task = self._run(_awaited(work), f"pointsman:{request.kind}")

    def _run(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name, context=self._context)
        # Nobody may ever ask for the answer; its error is then nobody's business.
        task.add_done_callback(_retrieve)
        return task

    @property
    def attempt(self) -> Attempt:
        """The attempt: open while it runs, closed afterwards.

        Raises:
            UpstreamError: it has not reached a deployment yet.
        """
        if self._call.opened is None:
            raise UpstreamError("the attempt has not reached a deployment yet")
        return self._call.opened.attempt

    @property
    def answer(self) -> Answer | None:
        """What was answered, once ``response`` or ``chunks`` has come to its end with outcome ok; else None."""
        ok = self._call.opened is not None and self._call.opened.attempt.outcome is Outcome.OK
        return self._answer() if ok and self._answer is not None else None

    async def response(self) -> UpstreamResponse:
        """Wait for the whole answer.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time, or the call was cancelled.
        """
        try:
            answer = await self._wait()
            opened = self._opened()
            self._bridge.callbacks.succeed(opened, answer)
            self._answer = partial(response_answer, answer)
        except asyncio.CancelledError:
            self.abandon()
            raise
        finally:
            self._close()
        body = answer if isinstance(answer, dict) else answer.model_dump() if hasattr(answer, "model_dump") else {}
        return UpstreamResponse(attempt=opened.attempt, body=body, raw=answer)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Read the answer of a streamed call.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time, or the call was cancelled.
        """
        try:
            self.source = await self._wait()
            opened = self._opened()
            source = aiter(self.source)
            while True:
                self._step = self._run(_next(source), "pointsman:chunk")
                piece = await self._wait()
                if piece is _END:
                    break
                if self.first is None:
                    self.first = piece
                read = len(self._reader.text)
                content = self._reader.read(piece)
                if content:
                    opened.first_token()
                    self._deadline = None
                yield Chunk(has_content=content, text="".join(self._reader.text[read:]), raw=piece)
            self._end_stream(None)
            self._answer = self._reader.answer
        except (asyncio.CancelledError, GeneratorExit):
            self.abandon()
            raise
        finally:
            self._close()
            # Not in the middle of a piece: nobody else reads.
            await _close_stream(self.source)

    async def _wait(self) -> Any:
        """Wait for the current step, but not longer than allowed."""
        try:
            # Not the step itself: whoever waits may be cancelled without it, and the other way round.
            if not self._step.done():
                async with asyncio.timeout_at(self._deadline):
                    await asyncio.wait((self._step,))
        except TimeoutError:
            raise self._too_slow() from None
        if self._left or self._step.cancelled():
            raise UpstreamError("the call was cancelled, or its request has ended")
        err = self._step.exception()
        if err is None:
            return self._step.result()
        if isinstance(err, UpstreamError) or not isinstance(err, Exception):
            raise err
        opened = self._call.opened
        if opened is not None and self.source is not None:
            self._end_stream(err)
        elif opened is not None:
            self._bridge.callbacks.fail(opened, err)
        raise _upstream_error(err, self._bridge) from err

    def _too_slow(self) -> UpstreamError:
        text = f"no answer within {self._timeout_s:g} s"
        if self._call.opened is not None:
            why = AttemptError(kind=ErrorClass.TIMEOUT, status=_TIMEOUT_STATUS, message=text)
            self._bridge.callbacks.end_left(self._call.opened, self._reader, self._exchange.ctx, Outcome.ERROR, why)
        self.abandon()
        return UpstreamError(text, status=_TIMEOUT_STATUS, error_class=str(ErrorClass.TIMEOUT))

    def _end_stream(self, error: Exception | None) -> None:
        opened = self._opened()
        if opened.closed:
            return
        headers = values.provider_headers(
            values.hidden_params(self.source).get("additional_headers"), self._call.provider_headers
        )
        self._bridge.callbacks.end_stream(opened, self._reader, headers, error, self._exchange.ctx)

    def _opened(self) -> OpenAttempt:
        if self._call.opened is None:
            raise UpstreamError("LiteLLM answered without calling a deployment")
        return self._call.opened

    def _close(self) -> None:
        opened = self._call.opened
        if opened is not None:
            opened.end(Outcome.CANCELLED)
        if self._exchange.detached:
            self._exchange.close(200 if opened is not None and opened.attempt.outcome is Outcome.OK else 0)

    def abandon(self) -> None:
        """End the attempt now; its connection is closed as soon as the loop comes to it. Harmless when it has ended."""
        opened = self._call.opened
        if self._left or (self._step.done() and opened is not None and opened.closed):
            return
        self._left = True
        self._task.cancel()
        self._step.cancel()
        if opened is not None and not opened.closed:
            gone = self._exchange.disconnected or (self._parent is not None and self._parent.gone)
            outcome = Outcome.DISCONNECTED if gone else Outcome.CANCELLED
            self._bridge.callbacks.end_left(opened, self._reader, self._exchange.ctx, outcome)
        self._close()
        self._closing = asyncio.create_task(self._shut(), name="pointsman:close")

    async def _shut(self) -> None:
        await asyncio.wait({self._task, self._step})
        if self.source is None and not self._task.cancelled() and self._task.exception() is None:
            self.source = self._task.result()
        await _close_stream(self.source)

    async def cancel(self) -> None:
        """End the attempt as cancelled and close its connection. Harmless when it has ended."""
        self.abandon()
        if self._closing is not None:
            await self._closing


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _close_stream(pieces: Any) -> None:
    close = getattr(pieces, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _upstream_error(err: Exception, bridge: Bridge) -> UpstreamError:
    headers = values.provider_headers(getattr(err, "litellm_response_headers", None))
    why = values.attempt_error(err, headers, bridge.host.clock.now())
    error = UpstreamError(why.message, status=why.status, error_class=str(why.kind), retry_after_s=why.retry_after_s)
    error.__cause__ = err
    return error
