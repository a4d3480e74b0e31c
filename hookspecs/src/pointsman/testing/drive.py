"""One client request, driven through the host as the gateway does it: admit, select, attempt, retry, fall back, close."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ..errors import UpstreamError
from ..types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Chunk,
    Denial,
    Endpoint,
    ErrorClass,
    Execution,
    Outcome,
    RequestContext,
    Route,
    Settlement,
    UpstreamRequest,
)
from .calls import FakeCall, choose, current_exchange, request_task
from .play import ClientGone, StepFailed, end_failed, end_left, end_ok, play
from .script import Ending, Script

if TYPE_CHECKING:
    from ..host.exchange import Exchange, OpenAttempt
    from ..host.host import Host
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
        self._selections: list[tuple[Candidate, ...]] = []
        self._error: AttemptError | None = None

    async def run(self) -> Result:
        """Drive the request to its end. A cancellation of the running task ends it as the gateway's shutdown does."""
        exchange = self._exchange
        current_exchange.set(exchange)
        request_task.set(asyncio.current_task())
        settlement: Settlement | None = None
        try:
            await self._answer()
        except ClientGone:
            exchange.disconnected = True
        except asyncio.CancelledError:
            self._status = 0
        finally:
            settlement = exchange.close(self._status)
        return Result(
            ctx=exchange.ctx,
            route=exchange.route,
            denial=exchange.denial,
            status=self._status,
            headers=self._headers,
            text="".join(self._pieces),
            error=self._error,
            selections=tuple(self._selections),
            settlement=settlement,
        )

    async def _answer(self) -> None:
        exchange = self._exchange
        denial = await exchange.admit()
        if denial is not None:
            self._begin_answer(denial.status, denial_headers(denial))
        elif exchange.route.executor is not None:
            await self._execute(exchange.route.executor)
        else:
            await self._attempt_all()

    def _begin_answer(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        if not self._status:
            self._status = status
            self._headers = {**(headers or {}), **self._exchange.answer_headers()}

    def _fail(self, error: AttemptError, status: int | None) -> None:
        self._error = error
        retry_after = {} if error.retry_after_s is None else {"retry-after": f"{math.ceil(error.retry_after_s)}"}
        self._begin_answer(status or _BAD_GATEWAY, retry_after)

    def _arrived(self, piece: str) -> None:
        """Hand a piece of a stream to the client.

        Raises:
            ClientGone: it has gone away.
        """
        self._begin_answer(_OK)
        self._pieces.append(piece)
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
        for group in (first, *(route.fallbacks or self._fallbacks)):
            for _ in range(1 + self._retries):
                failed = await self._attempt(group)
                if failed is None:
                    return
                error = failed
                if error is _NOBODY or error.kind not in _WORTH_A_RETRY or self._status:
                    break
            if self._status:
                break
        self._fail(error, error.status)

    async def _attempt(self, group: str) -> AttemptError | None:
        """Make one attempt; return None when the client has its answer, else why not."""
        exchange = self._exchange
        candidates = exchange.select(self._gateway.catalog.deployments(group))
        self._selections.append(tuple(candidates))
        if not candidates:
            return _NOBODY
        deployment = choose(exchange, candidates)
        refusal, opened = await exchange.begin(deployment, gateway=True)
        if refusal is not None:
            return opened.attempt.error
        step = self._script.next(deployment)
        prices = self._gateway.prices
        answer = play(step, self._host.clock, self._host.clock.monotonic(), stream=exchange.ctx.stream)
        try:
            await self._deliver(opened, answer)
        except StepFailed as err:
            end_failed(opened, step, err.error, len(self._pieces), prices)
            return err.error
        except ClientGone:
            if exchange.ctx.stream:
                end_left(opened, Outcome.DISCONNECTED, step, len(self._pieces), prices)
            else:
                # Nobody tells the provider: it answers, and is paid.
                self._status = _OK
                end_ok(opened, replace(step, ending=Ending.OK), prices)
            raise
        finally:
            await answer.aclose()
        end_ok(opened, step, prices)
        self._begin_answer(_OK)
        return None

    async def _deliver(self, opened: OpenAttempt, answer: AsyncGenerator[str, None]) -> None:
        async for piece in answer:
            if self._exchange.ctx.stream:
                opened.first_token()
                self._arrived(piece)
            else:
                self._pieces.append(piece)

    # -- attempts of a plugin -----------------------------------------------------------------------------------------

    async def _execute(self, plugin: str) -> None:
        exchange = self._exchange
        upstream = _RouteUpstream(self._gateway, exchange.ctx, self._script)
        try:
            execution = await self._host.calls.run_execute(plugin, exchange.ctx, exchange.route, upstream)
            if execution is None:
                execution = await self._plain(upstream)
            if execution.headers:
                exchange.route = exchange.route.with_headers(execution.headers)
            if execution.response is not None:
                exchange.answered_by = execution.response.attempt.id
                self._pieces.append(_text_of(execution.response.body))
                self._begin_answer(_OK)
            elif execution.chunks is not None:
                await self._read(execution.chunks, upstream)
        except UpstreamError as err:
            kind = ErrorClass(err.error_class) if err.error_class in set(ErrorClass) else ErrorClass.UNKNOWN
            error = AttemptError(kind=kind, status=err.status, message=str(err), retry_after_s=err.retry_after_s)
            self._fail(error, err.status)

    async def _read(self, chunks: AsyncIterator[Chunk], upstream: _RouteUpstream) -> None:
        try:
            async for chunk in chunks:
                if self._exchange.answered_by is None:
                    self._exchange.answered_by = upstream.whose(chunk.raw)
                self._arrived(chunk.text)
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        self._begin_answer(_OK)

    async def _plain(self, upstream: _RouteUpstream) -> Execution:
        request = UpstreamRequest(target=self._exchange.route.target, kind=AttemptKind.PRIMARY, body={})
        call = upstream.start(request)
        if self._exchange.ctx.stream:
            return Execution(chunks=call.chunks())
        return Execution(response=await call.response())


class _RouteUpstream:
    """Starts the attempts of one executed route: body and stream are the request's, the answer has the shape of chat."""

    def __init__(self, gateway: FakeGateway, ctx: RequestContext, script: Script) -> None:
        self._gateway = gateway
        self._ctx = ctx
        self._script = script
        self._started: list[FakeCall] = []

    def start(self, request: UpstreamRequest) -> FakeCall:
        """Start an attempt at once."""
        request = replace(request, body=self._ctx.body, endpoint=Endpoint.CHAT, stream=self._ctx.stream)
        call = self._gateway.upstream.start(request, script=self._script)
        self._started.append(call)
        return call

    def whose(self, first: object) -> str | None:
        """Return the id of the attempt whose first piece this is, or None."""
        return next((call.attempt.id for call in self._started if first is not None and call.first is first), None)


def _text_of(body: Mapping[str, object]) -> str:
    choices = body.get("choices")
    return str(choices[0]["message"]["content"]) if isinstance(choices, list) else ""
