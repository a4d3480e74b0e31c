"""One client request's life: opened once, closed once, and so is each of its attempts.

``Exchange`` is the only mutable object on the request path. The gateway's bridge (or a test) drives it::

    exchange = host.open(ctx)
    denial = await exchange.admit()                      pre_route; a plugin may have answered: exchange.reply
    candidates = exchange.select(deployments)            select
    refusal, attempt = await exchange.begin(deployment)  before_attempt
    refusal, body = await exchange.prepare(attempt, body)  transform_request
    attempt.first_token()                                first_token
    attempt.end(Outcome.OK, usage=...)                   post_response | on_error
    exchange.answered()                                  answered
    exchange.close(status_code=200)                      settle, in the background

Every method may be called again or out of order without harm: closing twice changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ..frozen import FrozenDict, frozen, quick, replace
from ..types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Denial,
    Deployment,
    Endpoint,
    ErrorClass,
    Outcome,
    Refusal,
    Reply,
    RequestContext,
    Route,
    Settlement,
)
from . import exchange_spans, transforms
from .attempt import WENT_ON, OpenAttempt
from .attributes import selection_attributes
from .decisions import MOST_DECISIONS, Decision, offered
from .endings import answering_of, figures, none_left, outcome_of, refusal_denial
from .hooks import CHANGES, Dropped

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from ..plugin import Clock
    from .hooks import Hooks
    from .tracing import Tracing


_attempt_of: Final = attrgetter("attempt")


class Worker(Protocol):
    """What an exchange needs of the worker it runs in."""

    @property
    def hooks(self) -> Hooks:
        """The compiled hooks."""

    @property
    def tracing(self) -> Tracing:
        """Where spans go."""

    @property
    def clock(self) -> Clock:
        """Time."""

    @property
    def new_id(self) -> Callable[[], str]:
        """Returns a new unique id."""

    def closed(self, exchange: Exchange) -> None:
        """Settle a client request that has been closed."""

    def ended(self, exchange: Exchange) -> None:
        """Count a request, or a call of our own, that has been closed."""

    def completed(self, exchange: Exchange) -> None:
        """Count one whose cost has become known after it was closed."""


@quick
@dataclass(frozen=True, slots=True)
class Turn:
    """One of the gateway's attempts that an executor makes, in as many attempts of its own as it likes.

    Attributes:
        fallback: Whether the gateway has fallen back to it.
        elsewhere: Whether the gateway goes on in another model group when it fails.
        by_order: Whether the gateway goes on with another ``order`` of the group, where there is one.
        begins_at: How many attempts the request had before.
    """

    begins_at: int = 0
    fallback: bool = False
    elsewhere: bool = False
    by_order: bool = False


class _End(NamedTuple):
    """How a request has ended for its client."""

    status_code: int
    outcome: Outcome
    #: Unix seconds.
    at: float
    duration_ms: float
    first_token_ms: float | None


class Exchange:
    """One client request, or a plugin's own call (``detached``: it has attempts but is never settled)."""

    __slots__ = (
        "_admitted",
        "_answered",
        "_closed",
        "_cost_known",
        "_end",
        "_followers",
        "_group",
        "_refused",
        "_selections",
        "_settlement",
        "_unanswered",
        "answered_by",
        "arrived_at",
        "attempts",
        "ctx",
        "current",
        "decisions",
        "denial",
        "detached",
        "disconnected",
        "first_token_at",
        "hooks",
        "host",
        "reply",
        "route",
        "span",
        "turn",
        "unknown_model",
    )

    def __init__(
        self,
        host: Worker,
        ctx: RequestContext,
        *,
        detached: bool = False,
        primary: Span | None = None,
        kind: AttemptKind = AttemptKind.PRIMARY,
        span: Span | None = None,
        age_s: float = 0.0,
    ) -> None:
        """Open it.

        Args:
            host: The worker.
            ctx: The request.
            detached: Whether it is a plugin's own call.
            primary: The span of the client's request that an own call is made for: it is linked to, not nested under.
            kind: The kind of an own call.
            span: The span, where it was started before the request was known, or when an own call was planned.
            age_s: Seconds since the request arrived.
        """
        self.host = host
        #: Those of the request's beginning: one that runs through a reload ends with the plugins that it began with.
        self.hooks = host.hooks
        self.ctx = ctx
        self.route = Route(target=ctx.model)
        self.denial: Denial | None = None
        #: A plugin's own answer: no attempt is made.
        self.reply: Reply | None = None
        self.attempts: list[OpenAttempt] = []
        #: What was decided, in order, for the recent requests: texts and values without the client's content.
        self.decisions: list[Decision] = []
        #: The attempt that the gateway itself is making; attempts of an executor are known to the executor.
        self.current: OpenAttempt | None = None
        #: The attempt that the client's answer is from, where an executor has several that succeeded.
        self.answered_by: str | None = None
        #: The gateway's attempt that an executor makes.
        self.turn = Turn()
        self.disconnected = False
        #: Whether no deployment can serve its model.
        self.unknown_model = False
        self.detached = detached
        #: When it arrived, in seconds of the monotonic clock.
        self.arrived_at = host.clock.monotonic() - age_s
        self.first_token_at: float | None = None
        self._group: str | None = None
        self._refused: set[str] = set()
        self._selections: dict[object, tuple[Sequence[Candidate], Sequence[Dropped]]] = {}
        self._closed = False
        self._admitted = False
        self._answered = False
        self._end: _End | None = None
        #: Made when it is asked for: the gateway logs what attempts have cost after the end.
        self._settlement: Settlement | None = None
        self._unanswered: Refusal | Sequence[Dropped] | None = None
        self._cost_known: asyncio.Event | None = None
        self._followers: list[Callable[[], object]] = []
        self.span: Span | None = span
        if host.tracing.enabled:
            self.span = exchange_spans.begin(host.tracing, ctx, span, kind if detached else None, primary)

    @property
    def closed(self) -> bool:
        """Whether ``close`` has been called."""
        return self._closed

    async def admit(self) -> Denial | None:
        """Run ``pre_route``, once; afterwards ``route`` says where the request goes, or a Denial is returned."""
        if self._admitted:
            return self.denial
        self._admitted = True
        hooks = self.hooks
        if hooks.pre_route:
            await self._admit()
        if self.denial is None and self.reply is None:
            if hooks.transform_request and transforms.carries_unseen(self.ctx):
                self.denial = hooks.unfit("transform_request")
            answers = hooks.transform_response or hooks.transform_stream
            if answers and self.denial is None and transforms.is_answered_unseen(self.ctx):
                self.denial = hooks.unfit("transform_response", "transform_stream")
        return self.denial

    async def _admit(self) -> None:
        host = self.host
        trace = None if self.span is None else exchange_spans.Admission(host.tracing, self.span, self.route.target)

        def seen(plugin: str, ctx: RequestContext, route: Route) -> None:
            # At once, so that reservations reach the settlement even if the chain is cancelled later.
            self.ctx, self.route = ctx, route
            self._decided(plugin, route=route)
            if trace is not None:
                trace.changed(plugin, route)

        try:
            if trace is None:
                self.route, ended = await self.hooks.run_pre_route(self.ctx, self.route, seen)
            else:
                with host.tracing.current(trace.span):
                    self.route, ended = await self.hooks.run_pre_route(self.ctx, self.route, seen)
            if isinstance(ended, Reply):
                self.reply = ended
                self.route = self.route.with_headers(ended.headers)
            else:
                self.denial = ended
        except BaseException:
            if trace is not None:
                trace.cancelled()
            raise
        if trace is not None:
            trace.end(self.route, self.denial, self.reply)

    def select(
        self,
        deployments: Sequence[Deployment],
        key: object = None,
        *,
        has_fallback: bool = False,
        withheld: Sequence[Dropped] = (),
    ) -> list[Candidate]:
        """Run ``select``: return the candidates for the next attempt, possibly none.

        A route whose target is a deployment id keeps to that deployment as long as its group is asked. A deployment that
        refused an attempt of this request, is busy with another one, or is drained, is left out while there are others.

        Args:
            deployments: The deployments that the gateway offers.
            key: Distinguishes attempts that are prepared concurrently; ``begin`` gets the same value.
            has_fallback: Whether the gateway goes on elsewhere if no candidate is left.
            withheld: The deployments that the gateway itself has left out, for the trace.
        """
        candidates, out = offered(
            deployments, self.route.target, self.attempts, self._refused, has_fallback=has_fallback
        )
        left: list[Candidate] = candidates
        dropped: Sequence[Dropped] = ()
        if self.hooks.select and self.span is None:
            left, dropped = self.hooks.run_select(self.ctx, candidates, self.route)
        elif self.hooks.select:
            with self.host.tracing.current(self.span):
                left, dropped = self.hooks.run_select(self.ctx, candidates, self.route)
        dropped = [*withheld, *out, *dropped]
        self._selections[key] = (left, dropped)
        # What LiteLLM itself leaves out, it explains itself.
        self._unanswered = dropped if candidates and not left else None
        if not left:
            self._decided("select", selection=(left, dropped))
        if self.span is not None and not left:
            self.host.tracing.event(self.span, "no candidate left", selection_attributes(left, dropped))
        return left

    def nothing_offered(self, withheld: Sequence[Dropped]) -> None:
        """Note that the gateway has left out every deployment itself, without asking for a selection."""
        self._decided("select", selection=((), withheld))
        if self.span is not None:
            self.host.tracing.event(self.span, "no candidate left", selection_attributes((), withheld))

    async def begin(
        self,
        deployment: Deployment,
        kind: AttemptKind | None = None,
        *,
        gateway: bool = False,
        labels: Mapping[str, str] | None = None,
        key: object = None,
    ) -> tuple[Refusal | None, OpenAttempt]:
        """Open an attempt and run ``before_attempt``. A refused attempt is closed already, with error ``refused``.

        An attempt of a request that has ended is refused.

        Args:
            deployment: The deployment to call.
            kind: The reason for the attempt; by default primary, then retry in the same model group, fallback in another.
            gateway: The gateway itself makes it: it becomes ``current``, and an attempt that was still open ends.
            labels: More labels than the route's.
            key: As for ``select``.
        """
        host = self.host
        kind = kind or self._next_kind(deployment)
        if gateway and self.current is not None and not self.current.closed:
            self.current.end(
                Outcome.ERROR,
                error=WENT_ON,
            )
        attempt = Attempt(
            id=host.new_id(),
            request_id=self.ctx.request_id,
            number=len(self.attempts) + 1,
            kind=kind,
            fallback=kind is AttemptKind.FALLBACK if gateway else self.turn.fallback,
            deployment=deployment,
            started_at=host.clock.now(),
            labels=FrozenDict({**self.route.labels, **labels}) if labels else self.route.labels,
        )
        opened = OpenAttempt(self, attempt, self._attempt_span(attempt, key), host.clock.monotonic())
        if self._closed:
            return self._too_late(opened), opened
        self._unanswered = None
        self.attempts.append(opened)
        if gateway:
            self.current = opened
        if not self.hooks.before_attempt:
            return None, opened
        try:
            if opened.span is None:
                refusal = await self.hooks.run_before_attempt(self.ctx, attempt, self.route)
            else:
                refusal = await self._ask(opened, opened.span)
        except BaseException:
            opened.end(Outcome.CANCELLED)
            raise
        if refusal is not None:
            self._refuse(opened, refusal)
        elif self.closed:
            return self._too_late(opened), opened
        return refusal, opened

    def _refuse(self, opened: OpenAttempt, refusal: Refusal) -> None:
        self._refused.add(opened.attempt.deployment.id)
        self._unanswered = refusal
        error = AttemptError(
            kind=ErrorClass.REFUSED,
            message=f"{refusal.plugin}: {refusal.reason}",
            retry_after_s=refusal.retry_after_s,
        )
        opened.end(Outcome.ERROR, error=error)

    async def prepare(self, opened: OpenAttempt, body: Mapping[str, Any]) -> tuple[Refusal | None, Mapping[str, Any]]:
        """Run ``transform_request`` of an attempt that has begun; return what is to be sent.

        Args:
            opened: The attempt; a refused one is closed, as in ``begin``.
            body: The request without ``model`` and ``stream``.
        """
        host = self.host
        if not self.hooks.transform_request or transforms.is_out_of_reach(self.ctx):
            return None, body
        with host.tracing.current(opened.span):
            made, refusal = await self.hooks.run_transform_request(self.ctx, opened.attempt, frozen(dict(body)))
        if refusal is not None:
            self._refuse(opened, refusal)
        return refusal, made

    def know_no_model(self) -> None:
        """Note that no deployment can serve the request's model."""
        self.unknown_model = True
        self.host.tracing.set(self.span, {"pointsman.unknown_model": True})

    def refuse_unfit(self) -> Denial | None:
        """Deny an admitted connection, where a plugin must change what passes or has answered by itself; return the denial."""
        self.denial = self.hooks.unfit(*CHANGES)
        if self.reply is not None:
            self.denial = Denial(
                status=400,
                code="not_answerable",
                message=f"The gateway's plugin {self.reply.plugin!r} answers this request by itself, which is not possible on a "
                "websocket. Use HTTP.",
                plugin=self.reply.plugin,
            )
            self.reply = None
        return self.denial

    def keep_to(self, route: Route) -> None:
        """Keep an admitted request to what was decided for the connection that it comes by: its target and labels.

        Nothing else can answer on an open connection, a plugin neither.

        Args:
            route: The connection's.
        """
        self.reply = None
        self.route = replace(
            self.route,
            target=route.target,
            labels=FrozenDict({**self.route.labels, **route.labels}),
            fallbacks=(),
            executor=None,
        )

    @property
    def answering(self) -> Attempt | None:
        """The attempt that the client's answer is from, as known now."""
        answering = self._answering()
        return None if answering is None else answering.attempt

    @property
    def changes_answers(self) -> bool:
        """Whether a plugin may change the answer of a plain or a streamed request."""
        hooks = self.hooks
        return bool((hooks.transform_response or hooks.transform_stream) and self.reply is None)

    async def change_answer(
        self, attempt: Attempt, answer: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Denial | None]:
        """Run ``transform_response``; return the answer for the client, or a denial instead of it."""
        host = self.host
        with host.tracing.current(self.span):
            return await self.hooks.run_transform_response(self.ctx, attempt, frozen(dict(answer)))

    def change_stream(
        self, attempt: Attempt, pieces: AsyncIterator[Mapping[str, Any]]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Return the pieces for the client, as ``transform_stream`` changes them.

        Raises:
            StreamDeniedError: while iterating.
        """
        return transforms.stream(self.hooks, self.ctx, attempt, pieces, self.span)

    def has_attempted(self) -> bool:
        """Return whether the executor whose turn it is has made an attempt."""
        return len(self.attempts) > self.turn.begins_at

    def turn_failed(self) -> None:
        """Note that the executor has failed: where a provider has failed it, that is the answer.

        Otherwise the answer would be why a further attempt of the executor's found no deployment, or was refused.
        """
        errors = [opened.attempt.error for opened in self.attempts[self.turn.begins_at :]]
        if any(error is not None and error.kind is not ErrorClass.REFUSED for error in errors):
            self._unanswered = None

    @property
    def unanswered(self) -> Denial | None:
        """Why the gateway has no answer, where a plugin is the reason and says it: for the client, instead of an error."""
        why = self._unanswered
        if isinstance(why, Refusal):
            return None if why.status is None else refusal_denial(why)
        return none_left(self.ctx.model, why) if why else None

    def _too_late(self, opened: OpenAttempt) -> Refusal:
        refusal = Refusal(reason="the request has ended", plugin="pointsman")
        error = AttemptError(kind=ErrorClass.REFUSED, message=f"{refusal.plugin}: {refusal.reason}")
        opened.end(Outcome.CANCELLED, error=error)
        return refusal

    def on_close(self, follow: Callable[[], object]) -> None:
        """Call ``follow`` when the request ends, to stop work that still runs for it; ignored once it has ended."""
        if not self._closed:
            self._followers.append(follow)

    def _decided(
        self,
        what: str,
        *,
        route: Route | None = None,
        attempt: int = 0,
        selection: tuple[Sequence[Candidate], Sequence[Dropped]] = ((), ()),
    ) -> None:
        if len(self.decisions) < MOST_DECISIONS:
            at_ms = (self.host.clock.monotonic() - self.arrived_at) * 1000
            self.decisions.append(Decision(what, at_ms, route, attempt, *selection))

    def _next_kind(self, deployment: Deployment) -> AttemptKind:
        if self._group is None:
            self._group = deployment.group
            return AttemptKind.PRIMARY
        return AttemptKind.RETRY if deployment.group == self._group else AttemptKind.FALLBACK

    def _attempt_span(self, attempt: Attempt, key: object) -> Span | None:
        selection = self._selections.pop(key, None)
        if selection is not None:
            self._decided("select", attempt=attempt.number, selection=selection)
        if self.span is None:
            return None
        last = self.attempts[-1] if self.attempts else None
        return exchange_spans.begin_attempt(self.host, self.span, self.ctx, attempt, last=last, selection=selection)

    async def _ask(self, opened: OpenAttempt, span: Span) -> Refusal | None:
        host = self.host
        hook = host.tracing.start("before_attempt", parent=span)
        refusal: Refusal | None = None
        try:
            with host.tracing.current(hook):
                refusal = await self.hooks.run_before_attempt(self.ctx, opened.attempt, self.route)
        finally:
            host.tracing.end(hook, {"pointsman.refused_by": refusal.plugin} if refusal else None)
        return refusal

    def answer_headers(self) -> dict[str, str]:
        """Return the headers to add to the answer, as known now."""
        headers = {**self.route.headers}
        if self.route.target_headers:
            headers |= self._target_headers()
        headers["x-pointsman-request-id"] = self.ctx.request_id
        if self.attempts:
            headers["x-pointsman-attempts"] = str(len(self.attempts))
        return headers

    @property
    def awaits_content(self) -> bool:
        """Whether the headers depend on what answers a chat stream, and the gateway may still fall back."""
        current = self.current
        return (
            bool(self.route.target_headers)
            and self.ctx.stream
            and self.ctx.endpoint is Endpoint.CHAT
            and current is not None
            and current.first_token_at is None
            and not current.closed
        )

    def _target_headers(self) -> Mapping[str, str]:
        """Return the headers of the target that answers, or of a stream that is about to."""
        by_target = self.route.target_headers
        if (answering := self._answering()) is None:
            return {}
        deployment = answering.attempt.deployment
        return by_target.get(deployment.id) or by_target.get(deployment.group) or {}

    def _answering(self) -> OpenAttempt | None:
        current = self.current
        if self.answered_by is None and current is not None:
            return current if current.attempt.outcome in {None, Outcome.OK} else None
        # An executor's stream that ends before its first chunk is from the attempt that the settlement names.
        return answering_of(self.attempts, self.answered_by)

    def charge(self, model: str, deployment: Deployment | None) -> None:
        """Note that the request is charged although it only reads: it is the first to see what an answer has used.

        Args:
            model: The model that the answer's own request asked for.
            deployment: What has worked for it; None when it is not known.
        """
        self.ctx = replace(self.ctx, generates=True, model=model)
        if deployment is not None and self.current is not None:
            self.current.attempt = replace(self.current.attempt, deployment=deployment)

    def answered(self) -> None:
        """Note that the answer is complete, before the client has its end; only the first call counts."""
        if self._answered or self.detached:
            return
        self._answered = True
        if self.hooks.answered and self.span is None:
            self.hooks.run_answered(self.ctx)
        elif self.hooks.answered:
            with self.host.tracing.current(self.span):
                self.hooks.run_answered(self.ctx)

    def close(self, status_code: int) -> None:
        """Close the request; only the first call counts. Ends open attempts and submits the settlement.

        Args:
            status_code: The client's HTTP status; 0 when it got no answer.
        """
        if self._closed:
            return
        self._closed = True
        if not self._answered:
            self.answered()
        # Followers first: they know how far their attempts had come. Then the attempts without one.
        followers, self._followers = self._followers, []
        for follow in followers:
            follow()
        attempts = self.attempts
        for opened in attempts:
            if opened.attempt.outcome is None:
                opened.end(Outcome.DISCONNECTED if self.disconnected else Outcome.CANCELLED)
        answering = answering_of(attempts, self.answered_by)
        # An attempt that lost may have begun its answer before the one that the client got.
        first = self.first_token_at if answering is None else answering.first_token_at
        outcome = outcome_of(
            status_code, attempts, answering, denied=self.denial is not None, disconnected=self.disconnected
        )
        clock = self.host.clock
        self._end = _End(
            status_code,
            outcome,
            clock.now(),
            (clock.monotonic() - self.arrived_at) * 1000,
            None if first is None else (first - self.arrived_at) * 1000,
        )
        if not self.detached:
            self.host.closed(self)
        if self.span is not None:
            exchange_spans.end(self.host.tracing, self.span, attempts, self._settled(self._end))
        self.host.ended(self)
        self._part_from_attempts()

    def _part_from_attempts(self) -> None:
        if not self.awaits_cost:
            for opened in self.attempts:
                opened.part_from_request()

    def _settled(self, end: _End) -> Settlement:
        """Return the settlement, with what the gateway has logged so far."""
        if self._settlement is None:
            answering = answering_of(self.attempts, self.answered_by)
            attempts = tuple(map(_attempt_of, self.attempts))
            ctx = self.ctx
            self._settlement = Settlement(
                request_id=ctx.request_id,
                call_id=ctx.call_id,
                endpoint=ctx.endpoint,
                model=ctx.model,
                stream=ctx.stream,
                identity=ctx.identity,
                route=self.route,
                outcome=end.outcome,
                status_code=end.status_code,
                started_at=ctx.received_at,
                finished_at=end.at,
                duration_ms=end.duration_ms,
                first_token_ms=end.first_token_ms,
                denial=self.denial,
                generates=ctx.generates,
                within=ctx.within,
                replied_by=None if self.reply is None else self.reply.plugin,
                attempts=attempts,
                **figures(attempts, None if answering is None else answering.attempt, self.reply),
            )
        return self._settlement

    # -- what the gateway logs after the end ----------------------------------------------------------------------------

    @property
    def awaits_cost(self) -> bool:
        """Whether the gateway is still going to log the cost of an attempt that has ended."""
        for opened in self.attempts:  # noqa: SIM110  # a generator costs more than the few attempts of a request
            if opened.awaits_cost:
                return True
        return False

    async def cost_known(self) -> None:
        """Wait until the gateway has logged all costs that are awaited."""
        while self.awaits_cost:
            if self._cost_known is None or self._cost_known.is_set():
                self._cost_known = asyncio.Event()
            await self._cost_known.wait()

    def cost_logged(self) -> None:
        """Take up what the gateway has logged about an attempt that has ended; called by the attempt."""
        self._settlement = None
        if self._cost_known is not None:
            self._cost_known.set()
        if self._end is not None and not self.awaits_cost:
            self.host.completed(self)
            self._part_from_attempts()

    @property
    def settlement(self) -> Settlement | None:
        """The settlement of a closed request, with what the gateway has logged so far; None of one that is open."""
        return None if self._end is None else self._settled(self._end)
