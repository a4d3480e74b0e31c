"""The host's own spans do what the SDK's do: the same things are said to both, and the same is exported."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from pointsman.host.attributes import bounded
from pointsman.host.spans import SpanProvider

THEIRS = SpanContext(0x1234, 0x56, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))
UNSAMPLED = SpanContext(0x1234, 0x57, is_remote=True, trace_flags=TraceFlags(0))


def beneath(context):
    return trace.set_span_in_context(NonRecordingSpan(context))


def everything(tracer):
    span = tracer.start_span(
        "first",
        context=beneath(THEIRS),
        kind=SpanKind.CLIENT,
        attributes={"text": "x", "yes": True, "list": ["a", "b"]},
        links=[Link(UNSAMPLED, {"why": "before"})],
        start_time=5,
    )
    span.set_attributes({"one": 1, "half": 0.5, "numbers": (1, 2)})
    span.set_attribute("one", 2)
    span.add_event("event", {"e": "v"}, timestamp=7)
    span.add_link(THEIRS, {"why": "after"})
    span.update_name("second")
    span.set_status(Status(StatusCode.ERROR, "wrong"))
    span.end(9)


def nested(tracer):
    with tracer.start_as_current_span("above") as above:
        tracer.start_span("child").end()
        with tracer.start_as_current_span("kept", end_on_exit=False) as kept:
            above.set_attribute("seen", True)
        kept.end()


def other_tracer(tracer):
    with trace.use_span(NonRecordingSpan(THEIRS)):
        tracer.start_span("child of the running one").end()


def unsampled_parent(tracer):
    tracer.start_span("unsampled for samplers that ask the parent", context=beneath(UNSAMPLED)).end()


def after_the_end(tracer):
    span = tracer.start_span("ended")
    span.end(9)
    assert not span.is_recording()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.add_link(THEIRS)
    span.update_name("late")
    span.set_status(StatusCode.ERROR, "late")
    span.end(11)


def final_status(tracer):
    span = tracer.start_span("ok")
    span.set_status(StatusCode.ERROR, "first")
    span.set_status(StatusCode.UNSET)
    span.set_status(StatusCode.OK)
    span.set_status(StatusCode.ERROR, "too late")
    span.end()


def failing(tracer):
    with pytest.raises(KeyError), tracer.start_as_current_span("running"):
        raise KeyError("k")
    with pytest.raises(ValueError, match="v"), tracer.start_span("entered"):
        raise ValueError("v")
    with (
        pytest.raises(OSError, match="o"),
        tracer.start_as_current_span("silent", record_exception=False, set_status_on_exception=False),
    ):
        raise OSError("o")
    with (
        pytest.raises(OSError, match="o"),
        tracer.start_span("entered silently", record_exception=False, set_status_on_exception=False),
    ):
        raise OSError("o")


def decorating(tracer):
    @tracer.start_as_current_span("coroutine")
    async def run():
        tracer.start_span("inside").end()

    asyncio.run(run())


def too_much(tracer):
    span = tracer.start_span("limits")
    span.set_attributes({f"a{n}": n for n in range(3)})
    span.set_attribute("a1", "again")
    for n in range(4):
        span.add_event(f"e{n}", timestamp=n + 1)
        span.add_link(THEIRS)
    span.end()


SCRIPTS = (
    everything,
    nested,
    other_tracer,
    unsampled_parent,
    after_the_end,
    final_status,
    failing,
    decorating,
    too_much,
)


def exported(provider, script):
    """Return what a script exports, without what is different each time."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    script(provider.get_tracer("a plugin's", "1"))
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    return [
        {
            "name": span.name,
            "parent": span.parent and names.get(span.parent.span_id, span.parent),
            "remote": span.parent and span.parent.is_remote,
            "trace": span.context.trace_id if span.context.trace_id == THEIRS.trace_id else "new",
            "flags": span.context.trace_flags,
            "state": dict(span.context.trace_state),
            "kind": span.kind,
            "attributes": dict(span.attributes),
            "events": [
                (e.name, e.timestamp if e.timestamp < 100 else "now", dict(e.attributes or {})) for e in events(span)
            ],
            "links": [(link.context, dict(link.attributes or {})) for link in span.links],
            "status": (span.status.status_code, span.status.description),
            "times": [at if at < 100 else "now" for at in (span.start_time, span.end_time)],
            "scope": (span.instrumentation_scope.name, span.instrumentation_scope.version),
            "service": span.resource.attributes["service.name"],
        }
        for span in spans
    ]


def events(span):
    """Return a span's events without stack traces, which name the tracer's own files."""
    for event in span.events:
        attributes = dict(event.attributes or {})
        if trace_text := attributes.pop("exception.stacktrace", None):
            assert attributes["exception.message"] in trace_text
        yield type(event)(event.name, attributes, event.timestamp)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("sampler", ["", "always_on", "always_off", "traceidratio", "parentbased_always_off"])
def test_spans_are_those_of_the_sdk(script, sampler, monkeypatch):
    """Names, parents, attributes, events, links, status, times, sampling and limits."""
    for name, value in {
        "OTEL_TRACES_SAMPLER": sampler,
        "OTEL_TRACES_SAMPLER_ARG": "1.0" if sampler else "",
        "OTEL_SERVICE_NAME": "of this test",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "2",
    }.items():
        monkeypatch.setenv(name, value)
    if sampler == "always_off" or (sampler == "parentbased_always_off" and script not in {everything, other_tracer}):
        assert exported(SpanProvider(), lambda tracer: tracer.start_span("x").end()) == []
        return
    ours, theirs = exported(SpanProvider(), script), exported(TracerProvider(shutdown_on_exit=False), script)
    assert ours == theirs
    assert ours or (script is unsampled_parent and not sampler)


def test_limits_of_the_environment_hold(monkeypatch):
    """As many attributes and links as it says; those that are there already can still change."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "3")
    (span,) = exported(SpanProvider(), too_much)
    assert span["attributes"] == {"a0": 0, "a1": "again"}
    assert len(span["links"]) == 3


def test_attributes_that_cannot_be_exported():
    """Long texts and lists are cut; numbers that are not finite are text; what has no form in OTLP is left out."""
    given = {
        "long": "x" * 5000,
        "many": ["y" * 5000] * 500,
        "inf": float("inf"),
        "nans": [1.0, float("nan")],
        "none": None,
        "bytes": b"b",
        "dict": {"a": 1},
        "of dicts": [{"a": 1}],
        "text": "kept",
    }
    found = bounded(given)
    assert found.keys() == {"long", "many", "inf", "nans", "text"}
    assert len(found["long"]) == len(found["many"][0]) == 1024
    assert len(found["many"]) == 128
    assert (found["inf"], found["nans"], found["text"]) == ("inf", ("1.0", "nan"), "kept")
