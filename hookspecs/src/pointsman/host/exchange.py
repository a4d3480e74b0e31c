"""One client request's life: opened once, closed once, and so is each of its attempts.

``Exchange`` is the only mutable object on the request path. The gateway's bridge (or a test) drives it::

    exchange = host.open(ctx)
    denial = await exchange.admit()                      pre_route
    candidates = exchange.select(deployments)            select
    refusal, attempt = await exchange.begin(deployment)  before_attempt
    attempt.first_token()                                first_token
    attempt.end(Outcome.OK, usage=...)                   post_response | on_error
    exchange.close(status_code=200)                      settle, in the background

Everything may be called again or out of turn without harm: the second closing of anything changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanKind

from ..types import (
    Answer,
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Denial,
    Deployment,
    ErrorClass,
    Outcome,
    Refusal,
    RequestContext,
    Route,
    Settlement,
    Usage,
)
from . import attributes

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from .calls import Dropped
    from .host import Host


def _no_answer() -> None:
    """Say that there is no text to look at."""


#: Why an attempt ends that nobody has ended when the next one begins.
WENT_ON: Final = AttemptError(kind=ErrorClass.UNKNOWN, message="the gateway went on to another attempt")


class OpenAttempt:
    """An attempt that is running, until ``end``."""

    __slots__ = ("_exchange", "_first_token", "_started", "answered", "attempt", "span")

    def __init__(self, exchange: Exchange, attempt: Attempt, span: Span | None, started: float) -> None:
        self._exchange = exchange
        self._started = started
        self._first_token: float | None = None
        self.attempt = attempt
        self.span = span
        #: What the gateway said about the answer before the attempt could be closed.
        self.answered: dict[str, object] = {}

    @property
    def closed(self) -> bool:
        """Whether ``end`` has been called."""
        return self.attempt.outcome is not None

    def first_token(self) -> None:
        """Note that the first piece of content has arrived; only the first call counts. Runs ``first_token``."""
        if self._first_token is not None or self.closed:
            return
        host = self._exchange.host
        self._first_token = host.clock.monotonic()
        if host.calls.first_token:
            with host.tracing.current(self.span):
                host.calls.run_first_token(self._exchange.ctx, self.attempt, (self._first_token - self._started) * 1000)

    def end(
        self,
        outcome: Outcome,
        *,
        usage: Usage | None = None,
        cost_usd_micros: int | None = None,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        model: str | None = None,
        error: AttemptError | None = None,
        cached: bool = False,
        answer: Callable[[], Answer | None] | None = None,
    ) -> None:
        """Close the attempt; only the first call counts. Runs ``post_response`` or ``on_error``."""
        if self.attempt.outcome is not None:
            return
        exchange = self._exchange
        now = exchange.host.clock.monotonic()
        first = self._first_token
        self.attempt = attempt = replace(
            self.attempt,
            outcome=outcome,
            duration_ms=(now - self._started) * 1000,
            first_token_ms=None if first is None else (first - self._started) * 1000,
            usage=usage,
            cost_usd_micros=cost_usd_micros,
            status_code=status_code,
            headers=headers or {},
            model=model,
            error=error,
            cached=cached,
        )
        if first is not None and exchange.first_token_at is None:
            exchange.first_token_at = first
        host = exchange.host
        with host.tracing.current(self.span):
            if outcome is Outcome.OK:
                host.calls.run_post_response(exchange.ctx, attempt, answer or _no_answer)
            else:
                host.calls.run_on_error(exchange.ctx, attempt)
        if self.span is not None:
            host.tracing.end(self.span, attributes.of_attempt(attempt), error=_error_text(attempt))


class Exchange:
    """One client request, or one call of our own (``detached``: it has attempts but is never settled)."""

    __slots__ = (
        "_admitted",
        "_closed",
        "_followers",
        "_group",
        "_refused",
        "_selections",
        "answered_by",
        "attempts",
        "ctx",
        "current",
        "denial",
        "detached",
        "disconnected",
        "first_token_at",
        "host",
        "opened_at",
        "route",
        "span",
    )

    def __init__(
        self,
        host: Host,
        ctx: RequestContext,
        *,
        parent: Span | Context | None = None,
        detached: bool = False,
        link: Span | None = None,
    ) -> None:
        self.host = host
        self.ctx = ctx
        self.route = Route(target=ctx.model)
        self.denial: Denial | None = None
        self.attempts: list[OpenAttempt] = []
        #: The attempt that the gateway itself is making; attempts of an executor are known to the executor.
        self.current: OpenAttempt | None = None
        #: The attempt that the client's answer is from, where an executor has several that succeeded.
        self.answered_by: str | None = None
        self.disconnected = False
        self.detached = detached
        self.opened_at = host.clock.monotonic()
        self.first_token_at: float | None = None
        self._group: str | None = None
        self._refused: set[str] = set()
        self._selections: dict[object, tuple[Sequence[Candidate], Sequence[Dropped]]] = {}
        self._closed = False
        self._admitted = False
        self._followers: list[Callable[[], object]] = []
        self.span: Span | None = None
        if host.tracing.enabled:
            name = f"pointsman {ctx.endpoint}"
            self.span = host.tracing.start(name, parent=parent, attributes=attributes.of_request(ctx), link=link)

    @property
    def closed(self) -> bool:
        """Whether ``close`` has been called."""
        return self._closed

    async def admit(self) -> Denial | None:
        """Run ``pre_route``, once; afterwards ``route`` says where the request goes, or a Denial is returned."""
        if self._admitted:
            return self.denial
        self._admitted = True
        host = self.host
        if not host.calls.pre_route:
            return None
        tracing = host.tracing
        span = None if self.span is None else tracing.start("pre_route", parent=self.span)

        def seen(plugin: str, route: Route) -> None:
            # At once, so that what is reserved reaches the settlement even if the chain is cancelled later on.
            self.route = route
            if span is not None:
                tracing.event(span, plugin, attributes.of_route(route))

        try:
            with tracing.current(span):
                self.route, self.denial = await host.calls.run_pre_route(self.ctx, self.route, seen)
        except BaseException:
            tracing.end(span, error="cancelled")
            raise
        if self.span is None:
            return self.denial
        if self.denial is not None:
            denied = attributes.of_denial(self.denial)
            tracing.set(self.span, denied)
            tracing.end(span, denied)
        else:
            tracing.end(span)
        tracing.set(self.span, attributes.of_route(self.route))
        return self.denial

    def select(self, deployments: Sequence[Deployment], leg: object = None) -> list[Candidate]:
        """Run ``select``: return who may serve the next attempt, possibly nobody.

        A route whose target is a deployment id keeps to that deployment as long as its group is asked. A deployment that
        refused an attempt of this request, or is busy with another one, is left out while there are others.

        Args:
            deployments: Who could serve.
            leg: Tells attempts that are prepared at the same time apart; ``begin`` gets the same.
        """
        candidates = [Candidate(deployment=d, weight=d.weight) for d in deployments]
        if any(d.id == self.route.target for d in deployments):
            candidates = [c for c in candidates if c.deployment.id == self.route.target]
        # A refusal causes no cooldown, so the gateway would ask the same deployment again while others are free.
        # And what hedges against a slow deployment must not wait for the same one.
        out = self._refused.union(o.attempt.deployment.id for o in self.attempts if not o.closed)
        candidates = [c for c in candidates if c.deployment.id not in out] or candidates
        left, dropped = self.host.calls.run_select(self.ctx, candidates)
        self._selections[leg] = (left, dropped)
        if self.span is not None and not left:
            self.host.tracing.event(self.span, "nobody can serve", attributes.of_selection(left, dropped))
        return left

    async def begin(
        self,
        deployment: Deployment,
        kind: AttemptKind | None = None,
        *,
        gateway: bool = False,
        labels: Mapping[str, str] | None = None,
        leg: object = None,
    ) -> tuple[Refusal | None, OpenAttempt]:
        """Open an attempt and run ``before_attempt``. A refused attempt is closed already, with error ``refused``.

        An attempt of a request that has ended is refused: nobody would wait for its answer or pay for it.

        Args:
            deployment: Who will be called.
            kind: Why; by default primary, then retry in the same model group, fallback in another.
            gateway: The gateway itself makes it: it becomes ``current``, and an attempt that was still open ends.
            labels: More labels than the route's.
            leg: As for ``select``.
        """
        host = self.host
        if gateway and self.current is not None and not self.current.closed:
            self.current.end(
                Outcome.ERROR,
                error=WENT_ON,
            )
        attempt = Attempt(
            id=host.new_id(),
            request_id=self.ctx.request_id,
            number=len(self.attempts) + 1,
            kind=kind or self._next_kind(deployment),
            deployment=deployment,
            started_at=host.clock.now(),
            labels={**self.route.labels, **labels} if labels else self.route.labels,
        )
        opened = OpenAttempt(self, attempt, self._attempt_span(attempt, leg), host.clock.monotonic())
        if self._closed:
            return self._too_late(opened), opened
        self.attempts.append(opened)
        if gateway:
            self.current = opened
        if not host.calls.before_attempt:
            return None, opened
        try:
            refusal = await self._ask(opened)
        except BaseException:
            opened.end(Outcome.CANCELLED)
            raise
        if refusal is not None:
            self._refused.add(deployment.id)
            error = AttemptError(
                kind=ErrorClass.REFUSED,
                message=f"{refusal.plugin}: {refusal.reason}",
                retry_after_s=refusal.retry_after_s,
            )
            opened.end(Outcome.ERROR, error=error)
        elif self.closed:
            return self._too_late(opened), opened
        return refusal, opened

    def _too_late(self, opened: OpenAttempt) -> Refusal:
        refusal = Refusal(reason="the request has ended", plugin="pointsman")
        error = AttemptError(kind=ErrorClass.REFUSED, message=f"{refusal.plugin}: {refusal.reason}")
        opened.end(Outcome.CANCELLED, error=error)
        return refusal

    def on_close(self, follow: Callable[[], object]) -> None:
        """Call ``follow`` when the request ends, to stop what still runs for it. Not when it has ended already."""
        if not self._closed:
            self._followers.append(follow)

    def _next_kind(self, deployment: Deployment) -> AttemptKind:
        if self._group is None:
            self._group = deployment.group
            return AttemptKind.PRIMARY
        return AttemptKind.RETRY if deployment.group == self._group else AttemptKind.FALLBACK

    def _attempt_span(self, attempt: Attempt, leg: object) -> Span | None:
        selection = self._selections.pop(leg, None)
        if self.span is None:
            return None
        start = attributes.of_attempt_start(self.ctx, attempt)
        if selection is not None:
            start.update(attributes.of_selection(*selection))
        name = f"attempt {attempt.deployment.id}"
        return self.host.tracing.start(name, parent=self.span, kind=SpanKind.CLIENT, attributes=start)

    async def _ask(self, opened: OpenAttempt) -> Refusal | None:
        host = self.host
        if opened.span is None:
            return await host.calls.run_before_attempt(self.ctx, opened.attempt)
        hook = host.tracing.start("before_attempt", parent=opened.span)
        refusal: Refusal | None = None
        try:
            with host.tracing.current(hook):
                refusal = await host.calls.run_before_attempt(self.ctx, opened.attempt)
        finally:
            host.tracing.end(hook, {"pointsman.refused_by": refusal.plugin} if refusal else None)
        return refusal

    def answer_headers(self) -> dict[str, str]:
        """Return the headers to add to the answer, as known now."""
        headers = {"x-pointsman-request-id": self.ctx.request_id, **self.route.headers}
        if self.attempts:
            headers["x-pointsman-attempts"] = str(len(self.attempts))
        return headers

    def close(self, status_code: int) -> Settlement | None:
        """Close the request; only the first call counts. Ends what is still open and hands over the settlement.

        Args:
            status_code: What the client got; 0 when it got nothing.

        Returns:
            The settlement, or None for a detached exchange and for a second call.
        """
        if self._closed:
            return None
        self._closed = True
        # First who knows how far its attempt had come, then what nobody looks after.
        followers, self._followers = self._followers, []
        for follow in followers:
            follow()
        for opened in self.attempts:
            if not opened.closed:
                opened.end(Outcome.DISCONNECTED if self.disconnected else Outcome.CANCELLED)
        attempts = tuple(opened.attempt for opened in self.attempts)
        outcome = self._outcome(status_code, attempts)
        good = [a for a in attempts if a.outcome is Outcome.OK]
        answer = next((a for a in attempts if a.id == self.answered_by), good[-1] if good else None)
        usage = answer.usage if answer is not None else next((a.usage for a in reversed(attempts) if a.usage), None)
        first = self.first_token_at
        settlement = Settlement(
            request_id=self.ctx.request_id,
            call_id=self.ctx.call_id,
            endpoint=self.ctx.endpoint,
            model=self.ctx.model,
            stream=self.ctx.stream,
            identity=self.ctx.identity,
            route=self.route,
            outcome=outcome,
            status_code=status_code,
            started_at=self.ctx.received_at,
            finished_at=self.host.clock.now(),
            first_token_ms=None if first is None else (first - self.opened_at) * 1000,
            attempts=attempts,
            usage=usage,
            cost_usd_micros=sum(a.cost_usd_micros or 0 for a in attempts),
            answered_by=answer.id if answer is not None else None,
            denial=self.denial,
        )
        if self.span is not None:
            self.host.tracing.end(
                self.span,
                attributes.of_settlement(settlement),
                error=str(outcome) if outcome in {Outcome.ERROR, Outcome.DISCONNECTED} else None,
            )
        if self.detached:
            return None
        self.host.closed(self, settlement)
        return settlement

    def _outcome(self, status_code: int, attempts: Sequence[Attempt]) -> Outcome:
        if self.denial is not None:
            return Outcome.DENIED
        if self.disconnected:
            return Outcome.DISCONNECTED
        if status_code == 0:
            return Outcome.CANCELLED
        # The client has one answer only: that another attempt has ended well is no help when this one broke.
        mine = [a for a in attempts if a.id == self.answered_by] or attempts
        answered = not mine or any(a.outcome is Outcome.OK for a in mine)
        return Outcome.OK if answered and status_code < 400 else Outcome.ERROR  # noqa: PLR2004  # HTTP's own limit


def _error_text(attempt: Attempt) -> str | None:
    # Who was cancelled, or left by the client, has not failed: error rates over spans are about providers.
    if attempt.outcome is not Outcome.ERROR:
        return None
    return f"{attempt.outcome}: {attempt.error.message}" if attempt.error else str(attempt.outcome)
