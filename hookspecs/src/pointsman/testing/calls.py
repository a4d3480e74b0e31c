"""Calls of our own, answered by a script: an ``Upstream`` for tests.

Attempts are opened and closed as the gateway's bridge does it: legs of a race belong to the client's request, mirrors,
probes and judges have an exchange of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from ..errors import UpstreamError
from ..host.isolation import is_stray
from ..host.own_call_spans import PlannedCall
from ..types import (
    Answer,
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Chunk,
    Deployment,
    Endpoint,
    ErrorClass,
    Outcome,
    RequestContext,
    UpstreamRequest,
    UpstreamResponse,
)
from .clock import let_runs_wait
from .fakes import FakeCooldowns
from .play import ClientGone, StepFailed, answer_body, end_failed, end_left, end_ok, piece_body, play, usage_given_up
from .script import Ending, Script, ScriptSource, Step, error
from .shapes import sent_body

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .. import plugin
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from .fakes import FakeCatalog, FakePrices

#: The client request that the running code works for. Tasks inherit it.
current_exchange: Final[ContextVar[Exchange | None]] = ContextVar("pointsman_testing_exchange", default=None)

#: The task that answers that request: what a client that goes away cancels.
request_task: Final[ContextVar[asyncio.Task[object] | None]] = ContextVar("pointsman_testing_task", default=None)

#: Attempts that are part of the client's request: they end with it and belong to its settlement.
_PART_OF_REQUEST: Final = frozenset({AttemptKind.PRIMARY, AttemptKind.HEDGE, AttemptKind.FALLBACK, AttemptKind.RETRY})
_LEFT: Final = AttemptError(kind=ErrorClass.UNKNOWN, message="cancelled by the plugin")
_CANCELLED: Final = "the call was cancelled, or its request has ended"
_REFUSED_STATUS: Final = 500


def choose(exchange: Exchange, candidates: Sequence[Candidate]) -> Deployment:
    """Choose as a gateway might, but always in the same way: the one tried least in this request, the first of them."""
    tried = [opened.attempt.deployment.id for opened in exchange.attempts]
    return min((c.deployment for c in candidates), key=lambda deployment: tried.count(deployment.id))


class FakeUpstream:
    """Starts calls of our own.

    Args:
        catalog: What can be called.
        prices: What it costs.
        script: What is answered.
        cooldowns: What is left out after an error; nothing by default.

    Attributes:
        calls: Every call that was started, in order.
        script: What is answered, as far as it has not been handed out.
    """

    def __init__(
        self,
        catalog: FakeCatalog,
        prices: FakePrices,
        script: ScriptSource | None = None,
        cooldowns: FakeCooldowns | None = None,
    ) -> None:
        self.catalog = catalog
        self.prices = prices
        self.cooldowns = cooldowns or FakeCooldowns()
        self.calls: list[FakeCall] = []
        self.script = Script(script)
        self._host: Host | None = None

    def attach(self, host: Host) -> None:
        """Open attempts in this host from now on."""
        self._host = host

    def answer(self, script: ScriptSource | None) -> None:
        """Answer with another script from now on."""
        self.script = Script(script)

    @property
    def running(self) -> list[FakeCall]:
        """The calls that have neither ended nor been cancelled."""
        return [call for call in self.calls if not call.ended]

    @property
    def client_left(self) -> bool:
        """Whether the client of the request that the running code works for has gone away."""
        exchange = current_exchange.get()
        return exchange is not None and exchange.disconnected

    def start(self, request: UpstreamRequest, span: Span | None = None, *, script: Script | None = None) -> FakeCall:
        """Start an attempt at once, answered by a script of its own or by the upstream's.

        Args:
            request: What to call.
            span: The call's, where it was planned before.
            script: What is answered; the upstream's when None.

        Raises:
            UpstreamError: the target is unknown.
        """
        if self._host is None:
            raise RuntimeError("the fake gateway is not attached to a host; call attach(host)")
        if not self.catalog.deployments(request.target):
            raise UpstreamError(f"the target {request.target!r} is neither a model group nor a deployment id")
        primary = current_exchange.get()
        mine = primary if request.kind in _PART_OF_REQUEST else None
        if mine is not None and request.parent is not None and mine.ctx.request_id != request.parent.request_id:
            mine = None
        exchange = mine or self._host.own_call(request, primary, span)
        call = FakeCall(self, self._host, request, exchange, script or self.script)
        if mine is not None or (_is_parent(primary, request) and request.kind is not AttemptKind.MIRROR):
            assert primary is not None  # noqa: S101  # it is the parent
            primary.on_close(call.abandon)
        self.calls.append(call)
        return call

    def plan(
        self, kind: AttemptKind, target: str, parent: RequestContext, *, about: plugin.PlannedCall | None = None
    ) -> PlannedCall:
        """Announce a call that starts later."""
        if self._host is None:
            raise RuntimeError("the fake gateway is not attached to a host; call attach(host)")
        primary = current_exchange.get()
        above = primary.span if primary is not None and primary.ctx.request_id == parent.request_id else None
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


def _is_parent(primary: Exchange | None, request: UpstreamRequest) -> bool:
    return primary is not None and request.parent is not None and primary.ctx.request_id == request.parent.request_id


class FakeCall:
    """One running attempt; see ``pointsman.plugin.UpstreamCall``.

    Attributes:
        request: What was asked for.
        sent: What was sent to the provider: the body, as plugins have changed it.
        ended: Whether it is over, however it ended.
        cancelled: Whether it was cancelled before its end.
        first: The first piece of its stream as the gateway's own object; None before it has come.
    """

    def __init__(
        self, upstream: FakeUpstream, host: Host, request: UpstreamRequest, exchange: Exchange, script: Script
    ) -> None:
        self.request = request
        self.sent: Mapping[str, object] = {}
        self.ended = False
        self.cancelled = False
        self.first: object = None
        self._upstream = upstream
        self._host = host
        self._exchange = exchange
        self._script = script
        self._opened: OpenAttempt | None = None
        self._step: Step | None = None
        self._pieces = 0
        self._answer: AsyncGenerator[str, None] | None = None
        self._task = asyncio.create_task(self._open(), name=f"fake-upstream:{request.kind}")
        # The answer may never be asked for; its error is then retrieved here.
        self._task.add_done_callback(lambda task: None if task.cancelled() else task.exception() and None)

    @property
    def attempt(self) -> Attempt:
        """The attempt: open while it runs, closed afterwards.

        Raises:
            UpstreamError: it has not reached a deployment yet.
        """
        return self._reached()[0].attempt

    def _reached(self) -> tuple[OpenAttempt, Step]:
        if self._opened is None or self._step is None:
            raise UpstreamError("the attempt has not reached a deployment yet")
        return self._opened, self._step

    async def _open(self) -> str:
        let_runs_wait()
        request, exchange = self.request, self._exchange
        found = self._upstream.catalog.deployments(request.target)
        if self._upstream.catalog.is_group(request.target):
            offered = self._upstream.cooldowns.offered(found, self._host.clock.monotonic())
            candidates = exchange.select(offered, key=self, has_fallback=exchange.turn.elsewhere) if offered else []
            if not candidates:
                raise UpstreamError(
                    f"no deployment of {request.target!r} can serve", status=429, error_class="rate_limit"
                )
            chosen = choose(exchange, candidates)
        else:
            chosen = found[0]
        refusal, opened = await exchange.begin(chosen, request.kind, labels=request.labels, key=self)
        self._opened, self._step = opened, Step(ending=Ending.NEVER)
        if refusal is None:
            refusal, self.sent = await exchange.prepare(opened, sent_body(request.body, request.endpoint))
        if refusal is not None:
            raise UpstreamError(
                f"attempt on {chosen.id} refused by {refusal.plugin}: {refusal.reason}",
                status=_REFUSED_STATUS,
                error_class="connection",
                retry_after_s=refusal.retry_after_s,
            )
        self._step = step = within(self._script.next(chosen), request.timeout_s)
        clock, task = self._host.clock, None if exchange.detached else request_task.get()
        self._answer = play(step, clock, clock.monotonic(), stream=request.stream, task=task)
        return "" if request.stream else "".join([text async for text in self._answer])

    @property
    def answer(self) -> Answer | None:
        """What the model said; None unless the call has ended with outcome ``ok``."""
        if self._opened is None or self._step is None or self._opened.attempt.outcome is not Outcome.OK:
            return None
        return None if self.request.endpoint is Endpoint.EMBEDDINGS else self._step.answer

    async def response(self) -> UpstreamResponse:
        """Wait for the whole answer.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time.
        """
        if self.request.stream:
            raise RuntimeError("this call was started as a stream: read it with chunks()")
        try:
            text = await self._wait()
            opened, step = self._reached()
            end_ok(opened, step, self._upstream.prices)
        finally:
            self._close()
        wanted = self.request.body.get("input")
        inputs = len(wanted) if isinstance(wanted, list) else 1
        body = answer_body(self.request.endpoint, opened.attempt.model or "", text, step.usage, inputs)
        if step.embed is not None and self.request.endpoint is Endpoint.EMBEDDINGS:
            texts = wanted if isinstance(wanted, list) else [wanted]
            vectors = [list(step.embed(str(each))) for each in texts]
            body["data"] = [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ]
        return UpstreamResponse(attempt=opened.attempt, body=body, raw=body)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Read the answer of a streamed call.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time.
        """
        if not self.request.stream:
            raise RuntimeError("this call was not started as a stream: wait for its response()")
        try:
            await self._wait()
            opened, step = self._reached()
            assert self._answer is not None  # noqa: S101  # the call has been opened
            try:
                async for piece in self._answer:
                    if self.ended:
                        raise UpstreamError(_CANCELLED)
                    opened.first_token()
                    self._pieces += 1
                    body = piece_body(step.model or "", piece)
                    self.first = self.first or body
                    yield Chunk(has_content=True, text=piece, raw=body)
            except (StepFailed, ClientGone) as err:
                raise self._failed(err) from err
            end_ok(opened, step, self._upstream.prices)
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(None)
            raise
        finally:
            self._close()
            if self._answer is not None:
                await self._answer.aclose()

    async def _wait(self) -> str:
        try:
            return await self._task
        except asyncio.CancelledError:
            self._task.cancel()
            self._leave(None)
            if is_stray():
                raise UpstreamError(_CANCELLED) from None
            raise
        except (StepFailed, ClientGone) as err:
            raise self._failed(err) from err

    def _failed(self, err: Exception) -> UpstreamError:
        opened, step = self._reached()
        why = err.error if isinstance(err, StepFailed) else AttemptError(kind=ErrorClass.CONNECTION)
        end_failed(opened, step, why, self._pieces, self._upstream.prices)
        attempt = opened.attempt
        self._upstream.cooldowns.failed(attempt.deployment, attempt.kind, why, self._host.clock.monotonic())
        return UpstreamError(why.message, status=why.status, error_class=str(why.kind), retry_after_s=why.retry_after_s)

    def _leave(self, why: AttemptError | None) -> None:
        if not self.ended:
            self.cancelled = True
        opened, step = self._opened, self._step
        if opened is None or step is None:
            return
        # As the bridge does: what was sent is paid for, whether anything came back or not.
        outcome = Outcome.DISCONNECTED if self._exchange.disconnected else Outcome.CANCELLED
        end_left(
            opened, outcome, step, self._pieces, self._upstream.prices, usage=usage_given_up(self._pieces), error=why
        )

    def _close(self) -> None:
        self.ended = True
        if self._opened is not None:
            self._opened.end(Outcome.CANCELLED)
        if self._exchange.detached:
            answered = self._opened is not None and self._opened.attempt.outcome is Outcome.OK
            self._exchange.close(200 if answered else 0)

    def abandon(self) -> None:
        """End the call because the request it is made for has ended."""
        if not self.ended:
            self._leave(None)
            self._task.cancel()
            self._close()

    async def cancel(self) -> None:
        """End the attempt as cancelled. Harmless when it has ended."""
        if not self.ended:
            self._leave(_LEFT)
        self._task.cancel()
        # Not the task itself: its error would keep this frame, and all that its callers refer to.
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()
        self._close()


def within(step: Step, timeout_s: float | None) -> Step:
    """Return the step as a caller with this time limit sees it."""
    if timeout_s is None or (step.latency_s <= timeout_s and step.ending is not Ending.NEVER):
        return step
    return error(408, message="the fake upstream did not answer in time", latency_s=timeout_s)
