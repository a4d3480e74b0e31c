"""Spans: one per client request, per attempt, and per ``pre_route`` and ``before_attempt``; settlements and own calls have traces of their own.

Other hooks become attributes and events of the attempt: a span for each would hide the rest, and takes longer than the call.
How spans are made is in ``spans``, names and attributes in ``attributes``, the way to the collector in ``span_pipeline``.

Telemetry never harms a request: every method swallows what the SDK raises, and counts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import Field

from .. import __version__
from ..config import Section
from .attributes import Value, bounded, finite
from .exporters import build, disabled, plan
from .span_pipeline import LINK, SHUTDOWN_S, FollowsLink, Pipeline, SpanCounts, begin_flush
from .spans import RecordedSpan, SpanProvider

log: Final = logging.getLogger("pointsman")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
_SERVICE: Final = "pointsman"
_STATUSES: Final = {code: Status(code) for code in StatusCode}

#: How far a client's ``traceparent`` is believed.
Trust = Literal["none", "link", "context", "sampling"]


class TracingConfig(Section):
    """Whether spans are made; the standard ``OTEL_*`` variables decide where they go."""

    enabled: bool = Field(
        default=True, description="Whether spans are made where OTEL_* variables ask for them; false makes none."
    )
    trust_traceparent: Trust = Field(
        default="context",
        description="How far a client's traceparent header is believed: 'none' ignores it, 'link' begins a trace that links to "
        "it, 'context' continues its trace but samples as OTEL_TRACES_SAMPLER says, 'sampling' also takes over its sampling "
        "decision; the default is 'context', since clients must not decide what is recorded.",
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a client's request comes from, for its span.

    Attributes:
        parent: The context of its parent; None begins a trace.
        local: Whether the parent is a span of this process.
        link: A span of the client's to link to, or None.
    """

    parent: Context | None = None
    local: bool = False
    link: SpanContext | None = None


class Tracing:
    """Makes spans, or does nothing.

    Args:
        tracer: Makes the spans; None makes none.
        provider: The tracer's provider, whose sampler is asked about clients' traces; None trusts their decision.
        pipelines: The host's own ways out, closed at shutdown; empty when the provider is shared.
        other: The provider of other instrumentation, whose spans are in the same traces; it is flushed at shutdown.
        trust: How far a client's ``traceparent`` is believed.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        provider: TracerProvider | SpanProvider | None = None,
        *,
        pipelines: Sequence[Pipeline] = (),
        other: TracerProvider | None = None,
        trust: Trust = "context",
    ) -> None:
        self._tracer = tracer
        self._provider = provider
        #: Our own provider bounds whatever a span is given; what a span of another's gets, is bounded here.
        self._own = isinstance(provider, SpanProvider)
        self._pipelines = tuple(pipelines)
        self._other = other
        self._trust: Trust = trust
        self.failures = 0

    @property
    def enabled(self) -> bool:
        """Whether spans are made."""
        return self._tracer is not None

    @property
    def tracer(self) -> Tracer:
        """The tracer for plugins; one that does nothing when tracing is off."""
        return self._tracer or NoOpTracer()

    @property
    def counts(self) -> SpanCounts | None:
        """What became of the spans that have ended; None when they leave by another's pipeline, or there are none."""
        if not self._pipelines:
            return None
        each = [pipeline.counts for pipeline in self._pipelines]
        return SpanCounts(
            exported=min(counts.exported for counts in each),
            dropped=sum(counts.dropped for counts in each),
            waiting=sum(counts.waiting for counts in each),
        )

    def _failed(self, err: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("tracing failed, requests are not affected: %s: %s", type(err).__name__, err)

    # -- where a request comes from -------------------------------------------------------------------------------------

    def origin(self, headers: Mapping[str, str]) -> Origin:
        """Return where a client's request comes from: the running span, else its ``traceparent`` as far as it is believed.

        Args:
            headers: The request's, by lower-case name.
        """
        running = trace.get_current_span()
        if running.get_span_context().is_valid:
            # Of a server, or of a layer around this one, that is traced itself.
            return Origin(parent=trace.set_span_in_context(running, Context()), local=True)
        if self._trust == "none" or (context := remote_parent(headers)) is None:
            return Origin()
        theirs = trace.get_current_span(context).get_span_context()
        if self._trust == "link":
            return Origin(link=theirs)
        if self._trust == "sampling" or self._provider is None:
            return Origin(parent=context)
        try:
            decision = self._provider.sampler.should_sample(Context(), theirs.trace_id, "request", SpanKind.SERVER)
            sampled = decision.decision is Decision.RECORD_AND_SAMPLE
            flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)
            return Origin()
        ours = SpanContext(
            theirs.trace_id, theirs.span_id, is_remote=True, trace_flags=flags, trace_state=theirs.trace_state
        )
        return Origin(parent=trace.set_span_in_context(NonRecordingSpan(ours), Context()))

    def trace_id(self, span: Span | None) -> str | None:
        """Return the id of a span's trace, 32 hexadecimal digits; None when it is not recorded."""
        context = self.recorded(span)
        return None if context is None else f"{context.trace_id:032x}"

    def inner_headers(self, headers: Sequence[tuple[bytes, bytes]], span: Span) -> list[tuple[bytes, bytes]]:
        """Return a request's headers as the application gets them: whatever it traces becomes a child of this span."""
        try:
            ours = [(name.encode(), value.encode()) for name, value in outgoing_headers(span).items()]
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)
            return list(headers)
        return [*((name, value) for name, value in headers if name.lower() not in _TRACE_HEADERS), *ours]

    # -- spans ----------------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        parent: Span | Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        link: Span | SpanContext | None = None,
        linked_as: str = "",
    ) -> Span | None:
        """Start a span; None when tracing is off.

        Args:
            name: The span's name.
            parent: A span, a context, or None for a root.
            kind: As OpenTelemetry defines it.
            attributes: First attributes.
            link: A span to link to instead of nesting under it (a mirror's primary).
            linked_as: What the other span is to this one.
        """
        if self._tracer is None:
            return None
        try:
            links = None
            if link is not None:
                to = link.get_span_context() if isinstance(link, Span) else link
                links = [Link(to, {LINK: linked_as} if linked_as else None)]
            if isinstance(parent, RecordedSpan):
                return parent.child(name, kind, attributes, links)
            context = trace.set_span_in_context(parent, Context()) if isinstance(parent, Span) else parent or Context()
            return self._tracer.start_span(
                name,
                context=context,
                kind=kind,
                attributes=attributes if self._own else bounded(attributes),
                links=links,
            )
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)
            return None

    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Span | None:
        """Start the span of a client's request, at the place where it enters the process; None when tracing is off."""
        if self._tracer is None:
            return None
        origin = self.origin(headers)
        return self.start(
            name,
            parent=origin.parent,
            kind=SpanKind.INTERNAL if origin.local else SpanKind.SERVER,
            attributes=attributes,
            link=origin.link,
            linked_as="client",
        )

    def recorded(self, span: Span | None) -> SpanContext | None:
        """Return what to link to for a span that is running and sampled; None for any other."""
        try:
            if span is None or not span.is_recording():
                return None
            context = span.get_span_context()
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)
            return None
        return context if context.is_valid and context.trace_flags.sampled else None

    def link(self, span: Span | None, to: Span | None, linked_as: str) -> None:
        """Link a running span to another one.

        Args:
            span: Nothing happens if it has ended.
            to: The other span.
            linked_as: What the other span is to this one.
        """
        if span is None or to is None:
            return
        try:
            if not span.is_recording():
                return
            span.add_link(to.get_span_context(), {LINK: linked_as})
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def rename(self, span: Span | None, name: str) -> None:
        """Give a span another name."""
        if span is None:
            return
        try:
            span.update_name(name)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def set(self, span: Span | None, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""
        if span is None:
            return
        try:
            span.set_attributes(attributes if self._own else bounded(attributes))
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def event(self, span: Span | None, name: str, attributes: Mapping[str, Value]) -> None:
        """Add an event."""
        if span is None:
            return
        try:
            span.add_event(name, attributes if self._own else bounded(attributes))
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def end(
        self,
        span: Span | None,
        attributes: Mapping[str, Value] | None = None,
        error: str | None = None,
        *,
        status: StatusCode | None = None,
        at_ns: int | None = None,
    ) -> None:
        """End a span.

        Args:
            span: The span.
            attributes: Last attributes.
            error: The description of a failure, which gives it the status ERROR.
            status: Its status otherwise.
            at_ns: When it ended, in nanoseconds of Unix time; now by default.
        """
        if span is None:
            return
        try:
            if attributes:
                span.set_attributes(attributes if self._own else bounded(attributes))
            if not self._own and isinstance(span, ReadableSpan):
                # What plugins have set on it.
                for name, value in (span.attributes or {}).items():
                    if not finite(value):
                        span.set_attribute(name, str(value))
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, error))
            elif status is not None:
                span.set_status(_STATUSES[status])
            span.end(at_ns)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    @staticmethod
    def current(span: Span | None) -> AbstractContextManager[None]:
        """Make a span the current one, so that a plugin's own spans nest under it."""
        return _NOTHING if span is None else _Current(span)

    @contextlib.contextmanager
    def parenting(self, span: Span) -> Iterator[None]:
        """Let whatever is traced inside become children of a span, without a way to write to it.

        LiteLLM's callback writes to the running span what it has to say about a request.
        """
        token = otel_context.attach(_parent_only(span))
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                otel_context.detach(token)

    def enter(self, span: Span) -> None:
        """As ``parenting``, in this context, for as long as the context lives."""
        otel_context.attach(_parent_only(span))

    def shutdown(self) -> None:
        """Send what is left and close the host's own pipelines; quick, whatever the collector does."""
        until = time.monotonic() + SHUTDOWN_S
        flushing = None if self._other is None else begin_flush(self._other)
        for pipeline in self._pipelines:
            try:
                pipeline.shutdown()
            except Exception as err:  # noqa: BLE001  # telemetry never harms a shutdown
                self._failed(err)
        if flushing is not None:
            # Both have the same time.
            flushing.join(max(0.0, until - time.monotonic()))


class _Current:
    """As ``trace.use_span``, which is a generator and takes four times as long: it surrounds every hook."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> None:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)  # logs what goes wrong, and raises nothing


_NOTHING: Final = contextlib.nullcontext()


def _parent_only(span: Span) -> Context:
    try:
        return trace.set_span_in_context(NonRecordingSpan(span.get_span_context()))
    except Exception:  # noqa: BLE001  # telemetry never harms a request
        return otel_context.get_current()


def now_ns() -> int:
    """Return the time as spans tell it, in nanoseconds of Unix time."""
    return time.time_ns()


def remote_parent(headers: Mapping[str, str]) -> Context | None:
    """Return the context of the caller's ``traceparent`` header, or None when there is no valid one."""
    if "traceparent" not in headers:
        return None
    context = _PROPAGATOR.extract(headers, context=Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


@dataclass(frozen=True, slots=True)
class SpanIds:
    """Where a span is found.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        sampled: Whether it is exported.
    """

    trace_id: str
    span_id: str
    sampled: bool


def ids(span: Span | None) -> SpanIds | None:
    """Return a span's ids, or None when it has none."""
    try:
        context = span.get_span_context() if span is not None else None
        if context is None or not context.is_valid:
            return None
        return SpanIds(f"{context.trace_id:032x}", f"{context.span_id:016x}", bool(context.trace_flags.sampled))
    except Exception:  # noqa: BLE001  # telemetry never harms a request
        return None


def remote_span(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the span that a ``traceparent`` header names, or None when there is no valid one."""
    context = remote_parent(headers)
    return None if context is None else trace.get_current_span(context).get_span_context()


def outgoing_headers(span: Span | None) -> dict[str, str]:
    """Return the ``traceparent`` header that makes the provider's spans children of this one."""
    if span is None:
        return {}
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span, Context()))
    return carrier


def configure(*, enabled: bool, worker: str = "", trust: Trust = "context") -> Tracing:
    """Return the tracing that configuration and environment ask for.

    The standard ``OTEL_*`` variables decide: an OTLP endpoint, or ``OTEL_TRACES_EXPORTER`` with ``otlp``, ``console`` or
    ``none``. Where they name no exporter, spans leave by the global provider of OpenTelemetry's SDK, such as that of LiteLLM's
    OTel callback; without one no span is made.

    Args:
        enabled: The configuration's ``tracing.enabled``.
        worker: The name of this worker.
        trust: The configuration's ``tracing.trust_traceparent``.

    Raises:
        ConfigError: ``OTEL_TRACES_EXPORTER`` or ``OTEL_EXPORTER_OTLP_PROTOCOL`` names something that is not supported, and
            there is no global provider.
    """
    if disabled(os.environ, enabled=enabled):
        return Tracing()
    found, planned = trace.get_tracer_provider(), plan(os.environ)
    other = found if isinstance(found, TracerProvider) else None
    if other is not None and not planned.enabled:
        return Tracing(other.get_tracer(_SERVICE, __version__), other, other=other, trust=trust)
    exporters = build(planned)
    if not exporters:
        return Tracing()
    # Closed by ``shutdown``, which does not wait for a collector that is gone.
    own = SpanProvider(resource(worker))
    own.sampler = FollowsLink(own.sampler)
    pipelines = [Pipeline(exporter) for exporter in exporters]
    for pipeline in pipelines:
        own.add_span_processor(pipeline)
    return Tracing(own.get_tracer(_SERVICE, __version__), own, pipelines=pipelines, other=other, trust=trust)


def resource(worker: str = "") -> Resource:
    """Return what makes the spans, as ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME`` say, else as is known here."""
    known: dict[str, str | int] = {
        SERVICE_NAME: _SERVICE,
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    if worker:
        known["service.instance.id"] = worker
    return Resource.create().merge(Resource(known)).merge(OTELResourceDetector().detect())
