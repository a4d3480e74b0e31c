"""The spans of one request: its own, that of its admission, and one of each attempt.

An attempt ends its own span (``OpenAttempt.end_span``), at the request's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind

from ..types import Attempt, AttemptKind, Candidate, Denial, Outcome, Reply, RequestContext, Route, Settlement
from .attributes import (
    Value,
    attempt_name,
    attempt_start_attributes,
    denial_attributes,
    end_attributes,
    error_type,
    request_attributes,
    request_name,
    route_attributes,
    selection_attributes,
    status_of,
)
from .own_call_spans import start_span
from .span_events import LEAST_WAIT_S

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .attempt import OpenAttempt, Telemetry
    from .hooks import Dropped
    from .tracing import Tracing


def begin(
    tracing: Tracing, ctx: RequestContext, span: Span | None, own: AttemptKind | None, primary: Span | None
) -> Span | None:
    """Return the span of a request.

    Args:
        tracing: Where spans go.
        ctx: The request.
        span: The span, where it was started before the request was known, or when an own call was planned.
        own: The kind of a plugin's own call; None for a client's request.
        primary: The span of the client's request that an own call is made for: it is linked to, not nested under.
    """
    name = request_name(ctx) if own is None else f"{own} {ctx.model}"
    attributes = request_attributes(ctx, "request" if own is None else str(own))
    if span is not None:
        tracing.rename(span, name)
        tracing.set(span, attributes)
        return span
    if own is None:
        return tracing.request(name, ctx.headers, attributes)
    return start_span(tracing, own, ctx.model, attributes, primary)


def end(tracing: Tracing, span: Span, attempts: Sequence[OpenAttempt], settlement: Settlement) -> None:
    """End the span of a request that has been closed, and those of its attempts."""
    for opened in attempts:
        opened.end_span(answered=opened.attempt.id == settlement.answered_by)
    outcome = settlement.outcome
    tracing.end(
        span,
        end_attributes(settlement),
        error=error_type(settlement) if outcome is Outcome.ERROR else None,
        status=status_of(outcome),
    )


class Admission:
    """The span of ``pre_route``: one event for each plugin that changed the route.

    Args:
        tracing: Where spans go.
        request: The request's span.
        target: Where the request went before a plugin was asked.
    """

    __slots__ = ("_last", "_request", "_shown", "_tracing", "span")

    def __init__(self, tracing: Tracing, request: Span, target: str) -> None:
        self._tracing = tracing
        self._request = request
        self._shown: dict[str, Value] = {"pointsman.target": target}
        self._last: tuple[Route, dict[str, Value]] | None = None
        self.span = tracing.start("pre_route", parent=request)

    def changed(self, plugin: str, route: Route) -> None:
        """Note what a plugin has changed; what others decided is in the events before."""
        shown, now = self._shown, route_attributes(route)
        changes = {name: value for name, value in now.items() if shown.get(name) != value}
        self._tracing.event(self.span, plugin, changes)
        shown.update(now)
        self._last = route, now

    def cancelled(self) -> None:
        """End it before the plugins have decided."""
        self._tracing.end(self.span, {"pointsman.outcome": "cancelled"})

    def end(self, route: Route, denial: Denial | None, reply: Reply | None) -> None:
        """End it with what the plugins have decided, which the request's span says too."""
        decided: dict[str, Value] | None = None
        if denial is not None:
            decided = denial_attributes(denial)
        elif reply is not None:
            decided = {"pointsman.replied_by": reply.plugin}
        if decided is not None:
            self._tracing.set(self._request, decided)
        self._tracing.end(self.span, decided)
        last = self._last
        self._tracing.set(self._request, last[1] if last is not None and last[0] is route else route_attributes(route))


def begin_attempt(
    host: Telemetry,
    request: Span,
    ctx: RequestContext,
    attempt: Attempt,
    *,
    last: OpenAttempt | None,
    selection: tuple[Sequence[Candidate], Sequence[Dropped]] | None,
) -> Span | None:
    """Return the span of an attempt.

    Args:
        host: The worker.
        request: The request's span.
        ctx: The request.
        attempt: The attempt.
        last: The attempt before it.
        selection: The candidates that it was chosen from, and what was left out; None where nothing was chosen.
    """
    start = attempt_start_attributes(ctx, attempt)
    if selection is not None:
        start.update(selection_attributes(*selection))
    if last is not None and attempt.kind in {AttemptKind.RETRY, AttemptKind.FALLBACK}:
        start["pointsman.after"] = _after(host, request, attempt, last)
    name = attempt_name(ctx, attempt)
    return host.tracing.start(name, parent=request, kind=SpanKind.CLIENT, attributes=start)


def _after(host: Telemetry, request: Span, attempt: Attempt, last: OpenAttempt) -> str:
    """Return why an attempt is made after another: how that one failed. A wait in between becomes an event."""
    error = last.attempt.error
    why = str(error.kind) if error is not None else str(last.attempt.outcome)
    if last.ended_at is not None:
        waited_ms = (host.clock.monotonic() - last.ended_at) * 1000
        if waited_ms >= LEAST_WAIT_S * 1000:
            reason = f"{attempt.kind} after {why}"
            facts: dict[str, Value] = {"pointsman.wait_ms": round(waited_ms, 3), "pointsman.reason": reason}
            host.tracing.event(request, "waited", facts)
    return f"{why} of attempt {last.attempt.number}"
