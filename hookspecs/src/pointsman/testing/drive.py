"""One client request, driven through the host as the gateway does it: admit, select, attempt, retry, fall back, close."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ..errors import HookError, UpstreamError
from ..host.exchange import Turn
from ..host.transforms import StreamDeniedError
from ..types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Chunk,
    Denial,
    Endpoint,
    ErrorClass,
    Outcome,
    RequestContext,
    Route,
    Settlement,
    UpstreamRequest,
)
from .calls import FakeCall, choose, current_exchange, request_task, within
from .play import ClientGone, StepFailed, answer_body, end_failed, end_left, end_ok, play
from .script import Ending, Script
from .shapes import sent_body, stream_piece, text_of

if TYPE_CHECKING:
    from .. import plugin
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from ..host.own_call_spans import PlannedCall
    from .gateway import FakeGateway

#: Errors that another attempt on the same model group may get around; the gateway does not repeat the others.
_WORTH_A_RETRY: Final = frozenset(
    {
        ErrorClass.RATE_LIMIT,
        ErrorClass.TIMEOUT,
        ErrorClass.SERVER,
        ErrorClass.CONNECTION,
        ErrorClass.REFUSED,
        ErrorClass.UNKNOWN,
    }
)
_NOBODY: Final = AttemptError(kind=ErrorClass.RATE_LIMIT, status=429, message="no deployment can serve")
_OK: Final = 200
_BAD_REQUEST: Final = 400
_TOO_MANY: Final = 429
_BAD_GATEWAY: Final = 502


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a client request came to.

    Attributes:
        ctx: The request as the plugins saw it; None when the caller was not authenticated.
        route: Where it went.
        denial: Why a plugin did not admit it, or None.
        status: The HTTP status the client got; 0 when it got nothing.
        headers: The headers that were added to the answer, lower case.
        text: The answer, as far as it arrived.
        error: What the client was told, or None.
        body: The answer to a plain request as JSON, in the endpoint's shape; None without one.
        stream: The pieces of a streamed answer as JSON, as the client got them.
        sent: What each attempt has sent to its provider, in order: the body without model and stream.
        selections: Who was left to choose from before each attempt.
        settlement: What the plugins' ``settle`` gets; None when the caller was not authenticated.
    """

    ctx: RequestContext | None
    route: Route
    denial: Denial | None = None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    error: AttemptError | None = None
    body: Mapping[str, object] | None = None
    stream: tuple[Mapping[str, object], ...] = ()
    sent: tuple[Mapping[str, object], ...] = ()
    selections: tuple[tuple[Candidate, ...], ...] = ()
    settlement: Settlement | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt, closed, in the order they were started."""
        return self.settlement.attempts if self.settlement is not None else ()

    @property
    def outcome(self) -> Outcome:
        """How it ended for the client."""
        return self.settlement.outcome if self.settlement is not None else Outcome.DENIED

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.ctx.request_id if self.ctx is not None else ""


def denied(denial: Denial) -> Result:
    """Return what a caller gets that is not even authenticated."""
    return Result(ctx=None, route=Route(target=""), denial=denial, status=denial.status, headers=denial_headers(denial))


def denial_headers(denial: Denial) -> dict[str, str]:
    """Return a denial's headers: its own, and ``retry-after`` in whole seconds where it applies."""
    headers = dict(denial.headers)
    if denial.retry_after_s is not None or denial.status == _TOO_MANY:
        headers["retry-after"] = str(max(1, math.ceil(denial.retry_after_s or 0.0)))
    return headers


class Drive:
    """Drives one request.

    Args:
        host: Through whose plugins.
        gateway: What can be served.
        exchange: The request, just opened.
        script: What the provider answers.
        retries: How often the gateway repeats within a model group.
        fallbacks: Model groups that the gateway's configuration falls back to.
        leave_after_pieces: The client goes away after so many pieces of a stream; None lets it stay.
    """

    def __init__(
        self,
        host: Host,
        gateway: FakeGateway,
        exchange: Exchange,
        script: Script,
        *,
        retries: int,
        fallbacks: Sequence[str],
        leave_after_pieces: int | None,
    ) -> None:
        self._host = host
        self._gateway = gateway
        self._exchange = exchange
        self._script = script
        self._retries = retries
        self._fallbacks = tuple(fallbacks)
        self._leave_after = leave_after_pieces
        self._status = 0
        self._headers: dict[str, str] = {}
        self._pieces: list[str] = []
        self._body: Mapping[str, object] | None = None
        self._stream: list[Mapping[str, object]] = []
        self._sent: list[Mapping[str, object]] = []
        self._selections: list[tuple[Candidate, ...]] = []
        self._error: AttemptError | None = None
        self._final = False

    async def run(self) -> Result:
        """Drive the request to its end. A cancellation of the running task ends it as the gateway's shutdown does."""
        exchange = self._exchange
        current_exchange.set(exchange)
        request_task.set(asyncio.current_task())
        try:
            await self._answer()
        except ClientGone:
            exchange.disconnected = True
        except asyncio.CancelledError:
            self._status = 0
        finally:
            exchange.close(self._status)
        return Result(
            ctx=exchange.ctx,
            route=exchange.route,
            denial=exchange.denial,
            status=self._status,
            headers=self._headers,
            text="".join(self._pieces),
            error=self._error,
            body=self._body,
            stream=tuple(self._stream),
            sent=tuple(self._sent),
            selections=tuple(self._selections),
            settlement=exchange.settlement,
        )

    async def _answer(self) -> None:
        exchange = self._exchange
        denial = await exchange.admit()
        if denial is not None:
            self._begin_answer(denial.status, denial_headers(denial))
        elif exchange.reply is not None:
            self._body, self._stream = exchange.reply.body, list(exchange.reply.pieces)
            self._pieces += [text_of(self._body)] if self._body is not None else map(text_of, self._stream)
            self._begin_answer(_OK)
        else:
            await self._attempt_all()

    def _deny(self, denial: Denial) -> None:
        self._error = AttemptError(
            kind=ErrorClass.of_status(denial.status), status=denial.status, message=denial.message
        )
        self._begin_answer(denial.status, denial_headers(denial))

    def _begin_answer(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        if not self._status:
            self._status = status
            self._headers = {**(headers or {}), **self._exchange.answer_headers()}

    def _fail(self, error: AttemptError, status: int | None) -> None:
        if (denial := self._exchange.unanswered) is not None:
            if denial.retry_after_s is None:
                denial = replace(denial, retry_after_s=error.retry_after_s)
            self._deny(denial)
            return
        self._error = error
        retry_after = {} if error.retry_after_s is None else {"retry-after": f"{math.ceil(error.retry_after_s)}"}
        self._begin_answer(status or _BAD_GATEWAY, retry_after)

    def _arrived(self, piece: Mapping[str, object]) -> None:
        """Hand a piece of a stream to the client.

        Raises:
            ClientGone: it has gone away.
        """
        self._begin_answer(_OK)
        self._stream.append(piece)
        self._pieces.append(text_of(piece))
        if self._leave_after is not None and len(self._pieces) >= self._leave_after:
            self._exchange.disconnected = True
            raise ClientGone

    # -- attempts of the gateway --------------------------------------------------------------------------------------

    async def _attempt_all(self) -> None:
        route = self._exchange.route
        catalog = self._gateway.catalog
        found = catalog.deployments(route.target)
        if not found:
            message = f"{route.target!r} is neither a model group nor a deployment id"
            self._fail(AttemptError(kind=ErrorClass.CLIENT, status=_BAD_REQUEST, message=message), _BAD_REQUEST)
            return
        # A deployment is reached through its group, so that select and fallbacks still apply.
        first = route.target if catalog.is_group(route.target) else found[0].group
        error = _NOBODY
        # A listed name is an alias of a group, also as a fallback.
        others = (catalog.listed.get(name, name) for name in (*route.fallbacks, *self._fallbacks))
        groups = tuple(dict.fromkeys((first, *others)))
        for place, group in enumerate(groups, 1):
            for _ in range(1 + (self._retries if route.retries is None else route.retries)):
                failed = await self._attempt_or_execute(group, first, has_fallback=place < len(groups))
                if failed is None:
                    return
                error = failed
                if error is _NOBODY or self._final or error.kind not in _WORTH_A_RETRY or self._status:
                    break
            if self._status or self._final:
                break
        self._fail(error, error.status)

    async def _attempt(self, group: str, *, fallback: bool, has_fallback: bool) -> AttemptError | None:
        """Make one attempt; return None when the client has its answer, else why not."""
        exchange = self._exchange
        cooldowns, now = self._gateway.cooldowns, self._host.clock.monotonic
        offered = cooldowns.offered(self._gateway.catalog.deployments(group), now())
        # LiteLLM asks no plugin either when there is nothing to choose from.
        candidates = exchange.select(offered, has_fallback=has_fallback) if offered else []
        self._selections.append(tuple(candidates))
        if not candidates:
            return _NOBODY
        if exchange.ctx.endpoint is Endpoint.COUNT_TOKENS:
            # The gateway counts by itself, or asks the provider in a way that is no attempt.
            self._body = {"input_tokens": 10}
            self._begin_answer(_OK)
            return None
        deployment = choose(exchange, candidates)
        kind = AttemptKind.FALLBACK if fallback else None
        refusal, opened = await exchange.begin(deployment, kind, gateway=True)
        if refusal is None:
            refusal, sent = await exchange.prepare(opened, sent_body(exchange.ctx.body, exchange.ctx.endpoint))
            self._sent.append(sent)
        if refusal is not None:
            self._final = not refusal.retryable
            return opened.attempt.error
        step = within(self._script.next(deployment), exchange.route.timeout_s)
        prices = self._gateway.prices
        clock, task = self._host.clock, asyncio.current_task()
        answer = play(step, clock, clock.monotonic(), stream=exchange.ctx.stream, task=task)
        try:
            await self._deliver(opened, answer)
        except StepFailed as err:
            end_failed(opened, step, err.error, len(self._pieces), prices)
            cooldowns.failed(deployment, opened.attempt.kind, err.error, now())
            return err.error
        except ClientGone:
            if exchange.ctx.stream:
                end_left(opened, Outcome.DISCONNECTED, step, len(self._pieces), prices)
            else:
                # The provider does not learn of it: it answers, and is paid.
                self._status = _OK
                end_ok(opened, replace(step, ending=Ending.OK), prices)
            raise
        finally:
            await answer.aclose()
        end_ok(opened, step, prices)
        if not exchange.ctx.stream:
            model = step.model or deployment.model
            await self._answer_with(answer_body(exchange.ctx.endpoint, model, "".join(self._pieces), step.usage))
        self._begin_answer(_OK)
        return None

    async def _answer_with(self, body: Mapping[str, object]) -> None:
        """Hand a whole answer to the client, as plugins change it."""
        exchange = self._exchange
        attempt = exchange.answering
        self._body = body
        if attempt is not None and exchange.changes_answers:
            self._body, denial = await exchange.change_answer(attempt, body)
            if denial is not None:
                self._body, self._pieces = None, []
                self._deny(denial)
                return
        self._pieces = [text_of(self._body)]

    async def _deliver(self, opened: OpenAttempt, answer: AsyncGenerator[str, None]) -> None:
        exchange = self._exchange
        if not exchange.ctx.stream:
            self._pieces += [piece async for piece in answer]
            return
        endpoint, model = exchange.ctx.endpoint, opened.attempt.deployment.model

        async def pieces() -> AsyncGenerator[Mapping[str, object], None]:
            async for text in answer:
                opened.first_token()
                yield stream_piece(endpoint, model, text)

        await self._stream_out(opened.attempt, pieces())

    async def _stream_out(self, attempt: Attempt, pieces: AsyncIterator[Mapping[str, object]]) -> None:
        """Hand a stream to the client, as plugins change it."""
        exchange = self._exchange
        changed = exchange.change_stream(attempt, pieces) if exchange.changes_answers else pieces
        try:
            async for piece in changed:
                self._arrived(piece)
        except StreamDeniedError as err:
            self._deny(err.denial)

    # -- attempts of a plugin -----------------------------------------------------------------------------------------

    async def _attempt_or_execute(self, group: str, first: str, *, has_fallback: bool) -> AttemptError | None:
        """Make one attempt, or let the plugin that the route names make it; return None when the client has its answer.

        What a plugin executes is one attempt to the gateway, whose retries and fallbacks go on when it fails.
        """
        route = self._exchange.route
        if route.executor is None or (group != first and not route.executes_fallbacks):
            return await self._attempt(group, fallback=group != first, has_fallback=has_fallback)
        if group != first:
            route = replace(route, target=group, fallback=True)
        exchange = self._exchange
        exchange.turn = Turn(len(exchange.attempts), fallback=route.fallback, elsewhere=has_fallback)
        again = (AttemptKind.FALLBACK if route.fallback else AttemptKind.RETRY) if self._exchange.attempts else None
        upstream = _RouteUpstream(self._gateway, self._exchange.ctx, self._script, again)
        try:
            if await self._execute(route, upstream):
                return None
        except UpstreamError as err:
            exchange.turn_failed()
            kind = ErrorClass(err.error_class) if err.error_class in set(ErrorClass) else ErrorClass.UNKNOWN
            return AttemptError(kind=kind, status=err.status, message=str(err), retry_after_s=err.retry_after_s)
        return await self._attempt(group, fallback=group != first, has_fallback=has_fallback)

    async def _execute(self, route: Route, upstream: _RouteUpstream) -> bool:
        """Let the plugin answer; False when it leaves the attempt to the gateway."""
        exchange = self._exchange
        assert route.executor is not None  # noqa: S101  # the caller has looked
        with self._host.tracing.current(exchange.span):
            execution = await exchange.hooks.run_execute(
                route.executor, exchange.ctx, route, upstream, exchange.has_attempted
            )
        if execution is None:
            return False
        if execution.headers:
            exchange.route = exchange.route.with_headers(execution.headers)
        if execution.response is not None:
            exchange.answered_by = execution.response.attempt.id
            # As the bridge does: what the client gets is the gateway's own object.
            await self._answer_with(_own(execution.response.raw))
            self._begin_answer(_OK)
        elif execution.chunks is not None:
            try:
                await self._read(execution.chunks, upstream)
            except HookError:
                return False
        return True

    async def _read(self, chunks: AsyncIterator[Chunk], upstream: _RouteUpstream) -> None:
        endpoint = self._exchange.ctx.endpoint

        async def pieces(first: Chunk) -> AsyncGenerator[Mapping[str, object], None]:
            yield stream_piece(endpoint, "", text_of(_own(first.raw)))
            async for chunk in chunks:
                yield stream_piece(endpoint, "", text_of(_own(chunk.raw)))

        try:
            first = await anext(chunks, None)
            if first is not None:
                self._exchange.answered_by = upstream.whose(first.raw)
                await self._read_from(pieces(first))
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        self._begin_answer(_OK)

    async def _read_from(self, pieces: AsyncIterator[Mapping[str, object]]) -> None:
        attempt = self._exchange.answering
        if attempt is not None:
            await self._stream_out(attempt, pieces)
            return
        async for piece in pieces:
            self._arrived(piece)


def _own(raw: object) -> Mapping[str, object]:
    """Return what an executor has handed on.

    Raises:
        UpstreamError: it is something else, of which no gateway can make an answer.
    """
    if not isinstance(raw, Mapping):
        raise UpstreamError("the executor's answer is not the gateway's own object", status=500)
    return raw


class _RouteUpstream:
    """Starts the attempts of one executed route: body and stream are the request's, the answer has the shape of chat.

    Args:
        gateway: Answers.
        ctx: The request.
        script: What is answered.
        again: The kind of the plugin's primary attempts when this is not the request's first attempt; else None.
    """

    def __init__(self, gateway: FakeGateway, ctx: RequestContext, script: Script, again: AttemptKind | None) -> None:
        self._gateway = gateway
        self._ctx = ctx
        self._script = script
        self._again = again
        self._started: list[FakeCall] = []

    def start(self, request: UpstreamRequest) -> FakeCall:
        """Start an attempt at once."""
        kind = self._again if self._again is not None and request.kind is AttemptKind.PRIMARY else request.kind
        request = replace(request, kind=kind, body=self._ctx.body, endpoint=Endpoint.CHAT, stream=self._ctx.stream)
        call = self._gateway.upstream.start(request, script=self._script)
        self._started.append(call)
        return call

    def plan(
        self, kind: AttemptKind, target: str, parent: RequestContext, *, about: plugin.PlannedCall | None = None
    ) -> PlannedCall:
        """Announce a call that starts later."""
        return self._gateway.upstream.plan(kind, target, parent, about=about)

    @property
    def client_left(self) -> bool:
        """Whether the request's client has gone away."""
        return self._gateway.upstream.client_left

    def whose(self, first: object) -> str | None:
        """Return the id of the attempt whose first piece this is, or None."""
        return next((call.attempt.id for call in self._started if first is not None and call.first is first), None)
