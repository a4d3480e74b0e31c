"""The way of spans out of the worker: what is lost is counted, the end is quick, and every number is finite."""

from __future__ import annotations

import math
import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Link

from pointsman.host.span_pipeline import LINK, REQUEST, FollowsLink, Pipeline
from pointsman.host.spans import SpanProvider
from pointsman.host.tracing import Tracing, resource


class Held(SpanExporter):
    """A collector that does not answer until it is let go."""

    def __init__(self, result=SpanExportResult.SUCCESS):
        self.asked, self.let_go = threading.Event(), threading.Event()
        self.result = result

    def export(self, spans):
        self.asked.set()
        self.let_go.wait()
        return self.result

    def shutdown(self):
        self.let_go.wait()


@pytest.fixture
def held():
    exporter = Held()
    yield exporter
    exporter.let_go.set()


def provider_of(pipeline, **options):
    provider = TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(pipeline)
    return provider


def test_the_end_does_not_wait_for_a_collector_that_hangs(held, caplog):
    """It returns while the collector is still being waited for; what was on its way is counted as lost, and logged."""
    pipeline = Pipeline(held)
    tracer = provider_of(pipeline).get_tracer("t")
    for _ in range(3):
        tracer.start_span("x").end()
    pipeline.shutdown(timeout_s=0.01)
    assert not held.let_go.is_set()
    assert (pipeline.counts.exported, pipeline.counts.dropped, pipeline.counts.waiting) == (0, 3, 0)
    assert "3 spans were lost at the end" in caplog.text


def test_spans_that_do_not_fit_are_counted(held):
    pipeline = Pipeline(held, queue_spans=4)
    tracer = provider_of(pipeline).get_tracer("t")
    for _ in range(10):
        tracer.start_span("x").end()
    assert (pipeline.counts.dropped, pipeline.counts.waiting) == (6, 4)
    held.let_go.set()
    pipeline.shutdown()
    assert (pipeline.counts.exported, pipeline.counts.dropped) == (4, 6)


def test_spans_that_the_collector_refuses_are_counted():
    refusing = Held(SpanExportResult.FAILURE)
    refusing.let_go.set()
    pipeline = Pipeline(refusing)
    provider_of(pipeline).get_tracer("t").start_span("x").end()
    pipeline.force_flush()
    assert (pipeline.counts.exported, pipeline.counts.dropped, pipeline.counts.waiting) == (0, 1, 0)
    pipeline.shutdown()


def test_no_number_that_is_not_finite_is_exported():
    """One infinity makes Jaeger answer every query that finds the span with an error; a plugin's own spans too."""
    exporter = InMemorySpanExporter()
    pipeline = Pipeline(exporter)
    provider = SpanProvider()
    provider.add_span_processor(pipeline)
    span = provider.get_tracer("a plugin's").start_span("x", attributes={"a": math.inf, "b": [1.0, math.nan]})
    span.add_event("e", {"c": -math.inf, "d": 1.5})
    span.end()
    pipeline.force_flush()
    (sent,) = exporter.get_finished_spans()
    assert dict(sent.attributes) == {"a": "inf", "b": ("1.0", "nan")}
    assert dict(sent.events[0].attributes) == {"c": "-inf", "d": 1.5}
    pipeline.shutdown()


def test_ours_are_finite_whoever_exports_them():
    """With a provider of another's, what plugins have set on our spans is still finite at their end."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415  # of this test alone

    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider.get_tracer("t"), provider)
    span = tracing.start("x", attributes={"text": math.inf, "kept": 1.0})
    span.set_attribute("a.plugins", math.nan)
    tracing.end(span)
    assert dict(exporter.get_finished_spans()[0].attributes) == {"text": "inf", "kept": 1.0, "a.plugins": "nan"}


@pytest.mark.parametrize("decides", [ALWAYS_ON, ALWAYS_OFF])
def test_what_belongs_to_a_request_is_sampled_like_it(decides):
    """A settlement follows its request; what a client says that it comes from decides nothing."""
    request = TracerProvider(shutdown_on_exit=False, sampler=decides).get_tracer("t").start_span("request")
    provider = TracerProvider(shutdown_on_exit=False)
    opposite = ALWAYS_OFF if decides is ALWAYS_ON else ALWAYS_ON
    provider.sampler = FollowsLink(opposite)
    tracer = provider.get_tracer("t")
    context = request.get_span_context()
    for attributes, sampled in (({LINK: REQUEST}, decides is ALWAYS_ON), ({LINK: "client"}, opposite is ALWAYS_ON)):
        span = tracer.start_span("settle", links=[Link(context, attributes)])
        assert span.get_span_context().trace_flags.sampled == sampled


def test_the_environment_names_the_service(monkeypatch):
    """What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say goes before what is known here."""
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    plain = resource("worker-1").attributes
    assert (plain["service.name"], plain["service.instance.id"]) == ("pointsman", "worker-1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge,team=a,service.instance.id=i")
    named = resource("worker-1").attributes
    assert (named["service.name"], named["team"], named["service.instance.id"]) == ("edge", "a", "i")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    assert resource("worker-1").attributes["service.name"] == "gateway"
