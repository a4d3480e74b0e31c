"""Calls of our own through LiteLLM's router: with its credentials and cooldowns, one attempt each, never retried there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

from ..deadline import IdleLimit
from ..errors import UpstreamError
from ..frozen import replace, thawed
from ..host.own_call_spans import PlannedCall
from ..host.runtime import new_id
from ..types import (
    Answer,
    Attempt,
    AttemptError,
    AttemptKind,
    Chunk,
    Endpoint,
    ErrorClass,
    Outcome,
    RequestContext,
    UpstreamRequest,
    UpstreamResponse,
)
from . import provider_errors, request_values
from .answers import response_answer
from .call import Call, ClientCall, OwnCall, current_call
from .catalog import router
from .content import is_empty
from .patches import ROUTER_METHODS, Method
from .stream import StreamReader

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .. import plugin
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from .catalog import RouterCatalog
    from .closing import Closer

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
#: LiteLLM's own, where nothing else is set.
_DEFAULT_TIMEOUT_S: Final = 6000.0
#: Seconds for which the end of an attempt is waited for: a provider's code may go on although it was cancelled.
CLOSE_WITHIN_S: Final = 1.0


class RouterUpstream:
    """Starts calls of our own.

    Args:
        host: Opens exchanges for the calls that are not part of a client's request.
        catalog: Knows the targets.
        closer: Closes the attempts.

    Attributes:
        catalog: The same.
    """

    def __init__(self, host: Host, catalog: RouterCatalog, closer: Closer) -> None:
        self._host = host
        self.catalog = catalog
        self._closer = closer

    def start(self, request: UpstreamRequest, span: Span | None = None) -> RouterCall:
        """Start an attempt at once.

        Args:
            request: What to call.
            span: The call's, where it was planned before.

        Raises:
            UpstreamError: the target is unknown, or the endpoint cannot be called.
        """
        if request.endpoint not in ROUTER_METHODS:
            raise UpstreamError(f"calls of our own cannot use the endpoint {request.endpoint!s}")
        parent = current_call.get()
        arguments: dict[str, Any] = {
            # LiteLLM writes into it.
            **thawed(request.body),
            "stream": request.stream,
            # LiteLLM books a call on the key that it names: not on the caller's when another tenant pays.
            _METADATA[request.endpoint]: parent.metadata if parent is not None and request.tenant is None else {},
        }
        if request.stream and request.endpoint is Endpoint.CHAT:
            arguments["stream_options"] = {"include_usage": True}
        return self.begin(request, parent, getattr(router(), ROUTER_METHODS[request.endpoint]), arguments, span)

    def plan(
        self, kind: AttemptKind, target: str, parent: RequestContext, *, about: plugin.PlannedCall | None = None
    ) -> PlannedCall:
        """Announce a call that starts later."""
        call = current_call.get()
        primary = None if call is None or call.exchange is None else call.exchange
        if primary is not None and primary.ctx.request_id != parent.request_id:
            primary = None
        above = None if primary is None else primary.span
        return PlannedCall(
            self._host.tracing,
            self._host.clock,
            kind=kind,
            target=target,
            parent=parent,
            primary=above,
            start=self.start,
            about=about,
        )

    @property
    def client_left(self) -> bool:
        """Whether the client of the request that the running code works for has gone away."""
        call = current_call.get()
        return call is not None and call.exchange is not None and call.exchange.disconnected

    def of_route(
        self, call: ClientCall, endpoint: Endpoint, arguments: Mapping[str, Any], again: AttemptKind | None
    ) -> RouteUpstream:
        """Return what starts the attempts of a route that a plugin executes; see ``RouteUpstream``."""
        return RouteUpstream(self, call, endpoint, arguments, again)

    def begin(
        self,
        request: UpstreamRequest,
        parent: Call | None,
        method: Method,
        arguments: dict[str, Any],
        span: Span | None = None,
        *,
        idle: IdleLimit | None = None,
    ) -> RouterCall:
        """Start an attempt with these arguments for the router's method.

        Raises:
            UpstreamError: the target is unknown.
        """
        if not self.catalog.deployments(request.target):
            raise UpstreamError(f"the target {request.target!r} is neither a model group nor a deployment id")
        primary = None if parent is None else parent.exchange
        if primary is not None and request.parent is not None and primary.ctx.request_id != request.parent.request_id:
            primary = None
        mine = primary if request.kind in _PART_OF_REQUEST else None
        work = method(**{**arguments, **_ONCE, "model": request.target})
        exchange = mine or self._host.own_call(request, primary, span)
        call = RouterCall(request, exchange, parent, work, self._closer, idle=idle)
        follows = request.parent is not None and request.kind is not AttemptKind.MIRROR
        if primary is not None and (mine is not None or follows):
            primary.on_close(call.abandon)
        return call


class RouteUpstream:
    """Starts the attempts of a route that a plugin executes: the client's own call, once for each of them.

    Args:
        upstream: Makes the calls.
        call: The client's request.
        endpoint: Its endpoint.
        arguments: The arguments of the attempt that LiteLLM is about to make.
        again: The kind of the plugin's primary attempts when this is not the request's first attempt; else None.
    """

    def __init__(
        self,
        upstream: RouterUpstream,
        call: ClientCall,
        endpoint: Endpoint,
        arguments: Mapping[str, Any],
        again: AttemptKind | None,
    ) -> None:
        self.stream = arguments.get("stream") is True
        self.idle = IdleLimit(_timeout_s(arguments, stream=self.stream))
        self._upstream = upstream
        self._call = call
        self._endpoint = endpoint
        self._method = getattr(router(), ROUTER_METHODS[endpoint])
        self._arguments = arguments
        self._again = again
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
        kind = self._again if self._again is not None and request.kind is AttemptKind.PRIMARY else request.kind
        request = replace(request, kind=kind, endpoint=self._endpoint, stream=self.stream)
        call = self._upstream.begin(request, self._call, self._method, arguments, idle=self.idle)
        if not self._started:
            self._call.executes_first(call.own)
        self._started.append(call)
        return call

    def plan(
        self, kind: AttemptKind, target: str, parent: RequestContext, *, about: plugin.PlannedCall | None = None
    ) -> PlannedCall:
        """Announce a call that starts later."""
        return self._upstream.plan(kind, target, parent, about=about)

    @property
    def client_left(self) -> bool:
        """Whether the request's client has gone away."""
        return self._call.gone

    def whose(self, first: object) -> RouterCall | None:
        """Return the attempt whose first piece this is, or None."""
        return next((call for call in self._started if call.first is first), None)

    async def cancel(self) -> None:
        """Cancel what is still running."""
        for call in self._started:
            await call.cancel()


def _timeout_s(arguments: Mapping[str, Any], *, stream: bool) -> float:
    """Return how long LiteLLM lets an attempt of a request take, in seconds, as the client or its configuration says."""
    llm_router = router()
    for value in (
        arguments.get("stream_timeout") if stream else None,
        arguments.get("timeout"),
        getattr(llm_router, "stream_timeout", None) if stream else None,
        getattr(llm_router, "timeout", None),
    ):
        # Clients write numbers as text, too.
        if isinstance(value, int | float | str) and (seconds := _positive(value)) is not None:
            return seconds
    return _DEFAULT_TIMEOUT_S


def _positive(value: float | str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < inf else None


class RouterCall:
    """One running attempt; see ``pointsman.plugin.UpstreamCall``.

    Attributes:
        source: LiteLLM's stream, once it is there.
        first: Its first piece.
    """

    def __init__(
        self,
        request: UpstreamRequest,
        exchange: Exchange,
        parent: Call | None,
        work: Awaitable[Any],
        closer: Closer,
        *,
        idle: IdleLimit | None = None,
    ) -> None:
        self._idle = idle
        self.source: Any = None
        self.first: Any = None
        self._answer: Callable[[], Answer | None] | None = None
        self._closer = closer
        self._exchange = exchange
        self._parent = parent
        told = parent.told if parent is not None else {}
        self._call = OwnCall(exchange, request.kind, labels=request.labels, told=told)
        self._reader = StreamReader()
        self._left = False
        self._closing: asyncio.Task[None] | None = None
        # What LiteLLM does for the attempt, now and piece by piece, it does under the attempt's own call. A call that is no
        # part of the client's request inherits nothing of it: LiteLLM's spans of it belong to the call's own trace.
        self._context = Context() if exchange.detached else copy_context()
        self._context.run(current_call.set, self._call)
        if exchange.span is not None:
            self._context.run(exchange.host.tracing.enter, exchange.span)
        loop = asyncio.get_running_loop()
        self._deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
        self._timeout_s = request.timeout_s
        self._step = self._task = self._run(_awaited(work), f"pointsman:{request.kind}")

    @property
    def own(self) -> OwnCall:
        """What LiteLLM works for."""
        return self._call

    def _run(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name, context=self._context)
        if self._idle is not None:
            self._idle.step_started()
        task.add_done_callback(self._step_ended)
        return task

    def _step_ended(self, step: asyncio.Task[Any]) -> None:
        if not step.cancelled():
            # The plugin may never ask for the answer; its error is then not reported as unretrieved.
            step.exception()
        if self._idle is not None:
            self._idle.step_ended()

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
            self._closer.succeed(opened, answer, self._exchange.ctx)
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
            if not isinstance(self.source, AsyncIterable):
                # LiteLLM answers some streams as a whole, for example with a deployment's ``mock_response``.
                self.first, self._answer = self.source, partial(response_answer, self.source)
                self._closer.succeed(opened, self.source, self._exchange.ctx)
                yield Chunk(has_content=not is_empty(self.source), text="", raw=self.source)
                return
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
            # Not in the middle of a piece: there is no other reader.
            await self._close_source()

    async def _wait(self) -> Any:
        """Wait for the current step, but not longer than allowed."""
        try:
            if self._step.done():
                pass
            elif self._deadline is None:
                await _end_of(self._step)
            else:
                async with asyncio.timeout_at(self._deadline):
                    await _end_of(self._step)
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
            self._closer.fail(opened, err)
        raise _upstream_error(err, self._exchange.host.clock.now()) from err

    def _too_slow(self) -> UpstreamError:
        text = f"no answer within {self._timeout_s:g} s"
        if self._call.opened is not None:
            why = AttemptError(kind=ErrorClass.TIMEOUT, status=_TIMEOUT_STATUS, message=text)
            self._end_abandoned(self._call.opened, Outcome.ERROR, why)
        self.abandon()
        return UpstreamError(text, status=_TIMEOUT_STATUS, error_class=str(ErrorClass.TIMEOUT))

    def _end_stream(self, error: Exception | None) -> None:
        opened = self._opened()
        if opened.closed:
            return
        headers = request_values.provider_headers(
            request_values.hidden_params(self.source).get("additional_headers"), self._call.provider_headers
        )
        cached = request_values.from_cache(getattr(self.source, "logging_obj", None))
        self._closer.end_stream(opened, self._reader, headers, error, self._exchange.ctx, cached=cached)

    def _end_abandoned(self, opened: OpenAttempt, outcome: Outcome, error: AttemptError | None = None) -> None:
        if opened.sent:
            self._closer.end_abandoned(opened, self._reader, self._exchange.ctx, outcome, error)
        else:
            # No provider was asked, as where LiteLLM's cache answers: nothing was used.
            opened.end(outcome, error=error, cut=True)

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
            self._end_abandoned(opened, outcome)
        self._close()
        self._closing = asyncio.create_task(self._shut(), name="pointsman:close")

    async def _shut(self) -> None:
        await asyncio.wait({self._task, self._step})
        if self.source is None and not self._task.cancelled() and self._task.exception() is None:
            self.source = self._task.result()
        await self._close_source()

    async def _close_source(self) -> None:
        if hasattr(self.source, "aclose"):
            await asyncio.wait({self._run(_close_stream(self.source), "pointsman:close")}, timeout=CLOSE_WITHIN_S)

    async def cancel(self) -> None:
        """End the attempt as cancelled and close its connection. Harmless when it has ended."""
        self.abandon()
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=CLOSE_WITHIN_S)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)


async def _end_of(step: asyncio.Task[Any]) -> None:
    """Wait for the end of a step, not for the step itself: the waiting task may be cancelled without it, and vice versa."""
    ended = asyncio.get_running_loop().create_future()
    step.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    await ended


async def _close_stream(pieces: Any) -> None:
    with contextlib.suppress(Exception):
        await pieces.aclose()


class GatewayError(UpstreamError):
    """An attempt that LiteLLM has failed.

    Attributes:
        original: What it raised.
    """

    original: Exception


def _upstream_error(err: Exception, now: float) -> UpstreamError:
    headers = request_values.provider_headers(getattr(err, "litellm_response_headers", None))
    why = provider_errors.attempt_error(err, headers, now)
    error = GatewayError(why.message, status=why.status, error_class=str(why.kind), retry_after_s=why.retry_after_s)
    error.original = err
    return error
