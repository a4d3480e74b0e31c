"""Spans are encoded as OpenTelemetry's own encoder does it, and what cannot be encoded costs no other span."""

from __future__ import annotations

from enum import StrEnum

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as theirs
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from pointsman.host.exporters import build, plan
from pointsman.host.span_encoding import encode_spans
from pointsman.host.spans import SpanProvider
from pointsman.testing.otlp import Collector

THEIRS = SpanContext(
    0x1234, 0x56, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b"), ("c", "d")])
)
HALF_A_PAIR = "half \ud83d"


class Kind(StrEnum):
    A = "a"


def spans(provider):
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for scope in (("t", "1"), ("plugin's", None)):
        tracer = provider.get_tracer(*scope)
        for kind in SpanKind:
            with tracer.start_as_current_span(f"é {kind}", kind=kind, attributes={"kind": Kind.A}) as span:
                span.set_attributes({"text": "é", "yes": True, "no": False, "one": 1, "minus": -1, "half": 0.5, "": ""})
                span.set_attributes(
                    {"texts": ["a", "b"], "numbers": (1, 2), "halves": [0.5], "flags": [True], "none": []}
                )
                span.add_event("event", {"e": "v"}, timestamp=7)
                span.add_event("bare")
                span.add_link(THEIRS, {"why": "after"})
                with tracer.start_as_current_span("child", links=[Link(span.get_span_context())]) as child:
                    child.set_status(StatusCode.ERROR, "wrong")
                span.set_status(StatusCode.OK)
        remote = set_span_in_context(NonRecordingSpan(THEIRS))
        tracer.start_span("remote parent", context=remote, attributes={"too large": 2**70, "kept": 1}).end()
    return exporter.get_finished_spans()


def test_requests_are_those_of_the_sdk():
    made = spans(SpanProvider(Resource({"service.name": "s", "process.pid": 1, "list": ["a"]}, "https://schema")))
    assert len(made) == 22
    assert encode_spans(made) == theirs(made)
    assert encode_spans([]) == theirs([])


def test_half_a_surrogate_pair_costs_no_batch(monkeypatch):
    """A client's JSON may name such a model, which becomes the name of a span."""
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        (exporter,) = build(plan({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}))
        provider = SpanProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        span = provider.get_tracer("t").start_span(f"chat {HALF_A_PAIR}", attributes={"text": HALF_A_PAIR})
        span.set_attributes({HALF_A_PAIR: "name", "kept": 1})
        span.set_status(StatusCode.ERROR, HALF_A_PAIR)
        span.end()
        exporter.shutdown()
        (sent,) = collector.spans
    assert sent.name == "chat half ?"
    assert sent.attributes == {"text": "half ?", "kept": 1}
