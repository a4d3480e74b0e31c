"""Spans that are cheap to make: what OpenTelemetry's API asks of a span, and little else.

A request has five or more. The SDK takes some 70 microseconds for one, and this module 5: the SDK asks a sampler about every
child, and copies and checks every attribute under a lock. Here a child of a recorded span is recorded, attributes go into a
dictionary, and a span that has ended is the SDK's own ``ReadableSpan``, so that its processors and exporters are used as they
are. Its sampler, resource and limits, and so the variables that set them, hold here as well.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

# What the API declares ``start_as_current_span`` to return; it has no other name.
from opentelemetry.util._decorator import _agnosticcontextmanager

from .attributes import bounded

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import Attributes, AttributeValue

    from .attributes import Value

#: The flag of trace ids that are random; of newer versions of OpenTelemetry.
_RANDOM: Final[int] = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_UNSET: Final = Status(StatusCode.UNSET)


class SpanProvider(trace.TracerProvider):
    """Makes the tracers of this worker.

    Args:
        resource: What makes the spans; the SDK's default, from ``OTEL_*`` variables, when None.
        sampler: Decides about spans that are not the children of one of ours; the SDK's default when None.

    Attributes:
        sampler: As above.
        processors: See the spans that have ended.
    """

    def __init__(self, resource: Resource | None = None, sampler: Sampler | None = None) -> None:
        # Reads the variables; it makes no span.
        sdk = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self.sampler: Sampler = sdk.sampler
        self.resource: Resource = sdk.resource
        self.ids: Final = sdk.id_generator
        self.limits: Final = SpanLimits()
        self.processors: Final[list[SpanProcessor]] = []

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """Let a processor see the spans that have ended; it does not see them begin."""
        self.processors.append(processor)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Return a tracer."""
        scope = InstrumentationScope(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return SpanTracer(self, scope)


class SpanTracer(trace.Tracer):
    """Begins spans.

    Args:
        provider: Whose sampler and processors they have.
        scope: What is traced.
    """

    def __init__(self, provider: SpanProvider, scope: InstrumentationScope) -> None:
        self.provider: Final = provider
        self.scope: Final = scope

    def start_span(  # noqa: PLR0917  # OpenTelemetry's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT002
        set_status_on_exception: bool = True,  # noqa: FBT002
    ) -> Span:
        """Begin a span: of the context's span, else of the running one, else of none."""
        above = trace.get_current_span(context)
        if isinstance(above, RecordedSpan):
            return RecordedSpan(
                self,
                name,
                self.ids_below(above),
                above.get_span_context(),
                kind,
                attributes,
                links,
                start_time,
                record_exception,
                set_status_on_exception,
            )
        provider, found = self.provider, above.get_span_context()
        parent = found if found.is_valid else None
        trace_id = provider.ids.generate_trace_id() if parent is None else parent.trace_id
        decided = provider.sampler.should_sample(context, trace_id, name, kind, attributes, links)
        flags = TraceFlags.SAMPLED if decided.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT
        if parent is not None:
            flags |= parent.trace_flags & _RANDOM
        elif _RANDOM and provider.ids.is_trace_id_random():
            flags |= _RANDOM
        own = SpanContext(trace_id, provider.ids.generate_span_id(), False, TraceFlags(flags), decided.trace_state)
        if decided.decision is Decision.DROP:
            return NonRecordingSpan(own)
        return RecordedSpan(
            self,
            name,
            own,
            parent,
            kind,
            decided.attributes,
            links,
            start_time,
            record_exception,
            set_status_on_exception,
        )

    def ids_below(self, parent: RecordedSpan) -> SpanContext:
        """Return the ids of a child of a recorded span, which is recorded as well."""
        above = parent.get_span_context()
        return SpanContext(
            above.trace_id, self.provider.ids.generate_span_id(), False, above.trace_flags, above.trace_state
        )

    @_agnosticcontextmanager
    def start_as_current_span(  # noqa: PLR0917  # OpenTelemetry's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT002
        set_status_on_exception: bool = True,  # noqa: FBT002
        end_on_exit: bool = True,  # noqa: FBT002
    ) -> Iterator[Span]:
        """Begin a span, and let it be the running one within the ``with`` block."""
        span = self.start_span(
            name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
        )
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception) as used:
            yield used


class RecordedSpan(Span, ReadableSpan):
    """A span that is recorded. What is said to it after its end is ignored.

    It has the fields of ``ReadableSpan`` under their names there, as the SDK's own span does.

    Args:
        tracer: What begins it.
        name: Its name.
        context: Its own ids.
        parent: Those of its parent, or None.
        kind: As OpenTelemetry defines it.
        attributes: Its first attributes.
        links: Its first links.
        start_ns: When it began, in nanoseconds of Unix time; now when None.
        records: Whether an exception that leaves its ``with`` block becomes an event.
        fails: Whether such an exception is its error.
    """

    __slots__ = (
        "_attributes",
        "_context",
        "_end_time",
        "_events",
        "_fails",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_records",
        "_start_time",
        "_status",
        "_tracer",
    )

    _context: SpanContext
    _instrumentation_info = None

    def __init__(  # noqa: PLR0917  # a call by name takes twice the time
        self,
        tracer: SpanTracer,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link] | None,
        start_ns: int | None,
        records: bool,
        fails: bool,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes: dict[str, Value] = bounded(attributes) if attributes else {}
        self._links: list[Link] = [Link(link.context, bounded(link.attributes)) for link in links] if links else []
        self._events: list[Event] = []
        self._status = _UNSET
        self._start_time = time_ns() if start_ns is None else start_ns
        self._end_time: int | None = None
        self._records = records
        self._fails = fails

    @property
    def attributes(self) -> Mapping[str, Value]:
        """Its attributes so far."""
        return self._attributes

    @property
    def resource(self) -> Resource:
        """What made it."""
        return self._tracer.provider.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """What was traced."""
        return self._tracer.scope

    def child(self, name: str, kind: SpanKind, attributes: Attributes, links: Sequence[Link] | None) -> RecordedSpan:
        """Begin a span below this one, of the same tracer."""
        tracer = self._tracer
        ids = tracer.ids_below(self)
        return RecordedSpan(tracer, name, ids, self._context, kind, attributes, links, None, True, True)

    def get_span_context(self) -> SpanContext:
        """Return its ids."""
        return self._context

    def is_recording(self) -> bool:
        """Return whether it has not ended."""
        return self._end_time is None

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes, as many as ``OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`` allows."""
        if self._end_time is not None:
            return
        kept, most = self._attributes, self._tracer.provider.limits.max_span_attributes
        if most is None or len(kept) + len(attributes) <= most:
            bounded(attributes, kept)
            return
        for name, value in bounded(attributes).items():
            if name in kept or len(kept) < most:
                kept[name] = value

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Add an attribute."""
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event; the oldest is lost when there are more than ``OTEL_SPAN_EVENT_COUNT_LIMIT``."""
        if self._end_time is not None:
            return
        events, most = self._events, self._tracer.provider.limits.max_events
        events.append(Event(name, bounded(attributes), time_ns() if timestamp is None else timestamp))
        if most is not None and len(events) > most:
            del events[0]

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link, as many as ``OTEL_SPAN_LINK_COUNT_LIMIT`` allows."""
        most = self._tracer.provider.limits.max_links
        if self._end_time is None and (most is None or len(self._links) < most):
            self._links.append(Link(context, bounded(attributes)))

    def update_name(self, name: str) -> None:
        """Give it another name."""
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set its status; OK is final, and nothing is unset."""
        if self._end_time is not None or self._status.status_code is StatusCode.OK:
            return
        given = status if isinstance(status, Status) else Status(status, description)
        if given.status_code is not StatusCode.UNSET:
            self._status = given

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT002
    ) -> None:
        """Add an exception as an event."""
        kind = type(exception)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        told = {
            "exception.type": name,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """End it, and hand it on; only the first call counts."""
        if self._end_time is not None:
            return
        self._end_time = time_ns() if end_time is None else end_time
        for processor in self._tracer.provider.processors:
            processor.on_end(self)

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, where: TracebackType | None
    ) -> None:
        """End it; an exception that leaves the block is an event, and its error."""
        if err is not None and self._records:
            self.record_exception(err, escaped=True)
        if err is not None and self._fails:
            self.set_status(Status(StatusCode.ERROR, f"{type(err).__name__}: {err}"))
        self.end()
