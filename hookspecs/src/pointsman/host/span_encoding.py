"""Spans as OTLP's messages.

OpenTelemetry's encoder builds each message apart and copies it into the one above, four times from attribute to request; this one
builds them in place, in a third of the time. What has no form in OTLP costs its attribute, never the batch. Spans are those of ``spans``,
which count nothing that is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

_LOCAL: Final = int(SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
_REMOTE: Final = _LOCAL | int(SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)


def encode_spans(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """Return spans as one export request, by what made them; it takes the place of the function of this name of OpenTelemetry's."""
    request = ExportTraceServiceRequest()
    resources: dict[int, Any] = {}
    adders: dict[tuple[int, int], Callable[[], Any]] = {}
    for span in spans:
        key = id(span.resource), id(span.instrumentation_scope)
        add = adders.get(key)
        if add is None:
            add = adders[key] = _scope(request, resources, span)
        _encode(span, add())
    return request


def _scope(request: ExportTraceServiceRequest, resources: dict[int, Any], span: ReadableSpan) -> Callable[[], Any]:
    """Return what adds a span to those of the same resource and scope."""
    resource, scope = span.resource, span.instrumentation_scope
    below = resources.get(id(resource))
    if below is None:
        below = resources[id(resource)] = request.resource_spans.add(schema_url=resource.schema_url)
        below.resource.SetInParent()
        _put(below.resource.attributes, resource.attributes)
    spans = below.scope_spans.add()
    spans.scope.SetInParent()
    if scope is not None:
        spans.schema_url = scope.schema_url or ""
        spans.scope.name = scope.name
        spans.scope.version = scope.version or ""
        _put(spans.scope.attributes, scope.attributes)
    adder: Callable[[], Any] = spans.spans.add
    return adder


def _encode(span: ReadableSpan, message: Any) -> None:
    context, parent, status = span.context, span.parent, span.status
    message.trace_id = context.trace_id.to_bytes(16, "big")
    message.span_id = context.span_id.to_bytes(8, "big")
    if context.trace_state:
        message.trace_state = context.trace_state.to_header()
    if parent is not None:
        message.parent_span_id = parent.span_id.to_bytes(8, "big")
    message.flags = _flags(parent)
    message.name = _text(span.name)
    message.kind = span.kind.value + 1  # OTLP has 0 for a kind that is not known
    message.start_time_unix_nano = span.start_time
    message.end_time_unix_nano = span.end_time
    _put(message.attributes, span.attributes)
    for event in span.events:
        said = message.events.add()
        said.name = _text(event.name)
        said.time_unix_nano = event.timestamp
        _put(said.attributes, event.attributes)
    for link in span.links:
        to = message.links.add()
        to.trace_id = link.context.trace_id.to_bytes(16, "big")
        to.span_id = link.context.span_id.to_bytes(8, "big")
        to.flags = _flags(link.context)
        _put(to.attributes, link.attributes)
    message.status.SetInParent()
    message.status.code = status.status_code.value
    if status.description:
        message.status.message = _text(status.description)


def _flags(context: SpanContext | None) -> int:
    return _REMOTE if context is not None and context.is_remote else _LOCAL


def _text(text: str) -> str:
    """Return a text that UTF-8 can say: a client's JSON may contain half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _put(pairs: Any, attributes: Mapping[str, Any] | None) -> None:
    """Add attributes to a message."""
    add = pairs.add
    for name, value in (attributes or {}).items():
        pair = add()
        try:
            pair.key = name
            kind = type(value)
            # Most by their exact type at once: each attribute of each span comes by here.
            if kind is str and value.isascii():
                pair.value.string_value = value
            elif kind is int:
                pair.value.int_value = value
            else:
                _set(pair.value, value)
        except (TypeError, ValueError):
            del pairs[-1]


def _set(message: Any, value: Any) -> None:
    if isinstance(value, str):
        message.string_value = _text(value)
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, list | tuple):
        message.array_value.SetInParent()
        add = message.array_value.values.add
        for element in value:
            _set(add(), element)
    else:
        raise TypeError(type(value))
