"""A plugin's own calls as spans, from the moment they are planned: a request may have ended before its mirror begins.

A span that has ended takes no more links, so a call that starts later is given its span while the request runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import UpstreamError
from ..types import Outcome
from .span_pipeline import REQUEST

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .. import plugin
    from ..plugin import Clock, UpstreamCall
    from ..types import AttemptKind, RequestContext, UpstreamRequest
    from .attributes import Value
    from .tracing import Tracing


def start_span(
    tracing: Tracing, kind: AttemptKind, target: str, attributes: Mapping[str, Value], primary: Span | None
) -> Span | None:
    """Start the span of a plugin's own call; it and the request's link to one another.

    Args:
        tracing: Makes it.
        kind: The kind of the call.
        target: What is called.
        attributes: First attributes.
        primary: The span of the client's request that it is made for: it is linked to, not nested under.
    """
    span = tracing.start(f"{kind} {target}", attributes=attributes, link=primary, linked_as=REQUEST)
    tracing.link(primary, span, str(kind))
    return span


class PlannedCall:
    """A call that has a span and has not started; see ``pointsman.plugin.PlannedCall``.

    Args:
        tracing: Makes the span.
        clock: Tells how long the call waits.
        kind: The kind of the call.
        target: What will be called.
        parent: The client's request that it is made for.
        primary: That request's span.
        start: Starts the call, with this span.
        about: Another planned call whose answer this one is about; both link to one another.

    Attributes:
        kind: The kind of the call.
        span: Its span; None once the call has started or been dropped.
    """

    def __init__(
        self,
        tracing: Tracing,
        clock: Clock,
        *,
        kind: AttemptKind,
        target: str,
        parent: RequestContext,
        primary: Span | None,
        start: Callable[[UpstreamRequest, Span | None], UpstreamCall],
        about: plugin.PlannedCall | None = None,
    ) -> None:
        self._tracing = tracing
        self._clock = clock
        self._planned_at = clock.monotonic()
        self._start = start
        attributes: dict[str, Value] = {
            "gen_ai.request.model": target,
            "pointsman.kind": str(kind),
            "pointsman.parent_id": parent.request_id,
        }
        self.kind = kind
        self.span = start_span(tracing, kind, target, attributes, primary)
        if isinstance(about, PlannedCall):
            tracing.link(about.span, self.span, str(kind))
            tracing.link(self.span, about.span, str(about.kind))

    def start(self, request: UpstreamRequest) -> UpstreamCall:
        """Start it now.

        Raises:
            UpstreamError: the target is unknown.
        """
        span = self.span
        waited_ms = (self._clock.monotonic() - self._planned_at) * 1000
        self._tracing.event(span, "waited", {"pointsman.wait_ms": round(waited_ms, 3), "pointsman.reason": "queue"})
        try:
            call = self._start(request, span)
        except UpstreamError as err:
            self.drop(str(err))
            raise
        self.span = None  # the call's from here on
        return call

    def drop(self, reason: str) -> None:
        """End its span without a call; no effect once it has started or been dropped."""
        span, self.span = self.span, None
        self._tracing.end(span, {"pointsman.outcome": str(Outcome.CANCELLED), "pointsman.ended_because": reason})
