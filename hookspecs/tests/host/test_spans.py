"""Spans: one trace per request that says who decided what, and a tracer that fails harms nobody."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pointsman import hookimpl
from pointsman.host.tracing import Tracing, configure, outgoing_headers, remote_parent
from pointsman.testing import disconnect, error, ok
from pointsman.types import AttemptKind, Denial, Identity, Outcome, Refusal, Reservation, UpstreamRequest

pytestmark = pytest.mark.usefixtures("leak_check")


class Deciding:
    """A hand in every decision."""

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def pre_route(self, ctx, route):
        if ctx.model == "denied":
            return Denial(status=403, code="no", message="Not today.")
        with self.services.tracer.start_as_current_span("my own"):
            route = route.with_labels(arm="b")
        return route.with_reservation(Reservation(plugin="deciding", id="r", expires_at=1.0))

    @hookimpl
    def select(self, candidates):
        return [c.drop("too slow") if c.deployment.id == "chat-a" else c.scored(0.5, "fast") for c in candidates]

    @hookimpl
    async def before_attempt(self, ctx, attempt):
        return Refusal(reason="full") if ctx.model == "backup" else None

    @hookimpl
    async def settle(self, settlement):
        """Be there."""


@pytest.fixture
async def h(harness, plugin):
    async with harness([plugin(Deciding)], tracing=True) as h:
        yield h


def by_name(h):
    return {span.name: span for span in h.spans}


async def test_a_request_is_one_trace(h):
    """Request, admission, attempt and settlement hang together, a plugin's own span in the hook that made it."""
    await h.request(identity=Identity(tenant="t1"), script=ok(model="gpt-x", latency_s=0.5))
    await h.settled()
    spans = by_name(h)
    root = spans["pointsman chat"]
    parents = {name: span.parent.span_id if span.parent else None for name, span in spans.items()}
    assert parents == {
        "pointsman chat": None,
        "pre_route": root.context.span_id,
        "my own": spans["pre_route"].context.span_id,
        "attempt chat-b": root.context.span_id,
        "before_attempt": spans["attempt chat-b"].context.span_id,
        "settle": root.context.span_id,
    }
    assert len({span.context.trace_id for span in h.spans}) == 1
    assert root.attributes["pointsman.tenant"] == "t1"
    assert root.attributes["pointsman.label.arm"] == "b"
    assert root.attributes["pointsman.outcome"] == "ok"
    assert root.attributes["gen_ai.usage.input_tokens"] == 10
    attempt = spans["attempt chat-b"]
    assert attempt.kind is SpanKind.CLIENT
    assert attempt.attributes["pointsman.candidates"] == ("chat-b",)
    assert attempt.attributes["pointsman.scores"] == (0.5,)
    assert attempt.attributes["pointsman.notes"] == ("chat-b: fast",)
    assert attempt.attributes["pointsman.dropped"] == ("chat-a: too slow (deciding)",)
    assert attempt.attributes["gen_ai.response.model"] == "gpt-x"
    assert root.attributes["pointsman.reserved_by"] == ("deciding",)


async def test_a_denial_is_in_the_trace(h):
    result = await h.request(model="denied")
    await h.settled()
    for name in ("pre_route", "pointsman chat"):
        attributes = by_name(h)[name].attributes
        assert attributes["pointsman.denied_by"] == "deciding"
        assert attributes["pointsman.denial.code"] == "no"
        assert attributes["pointsman.denial.reason"] == "Not today."
    assert result.attempts == ()


async def test_a_refusal_is_in_the_trace(h):
    await h.request(model="backup", retries=0)
    spans = by_name(h)
    assert spans["before_attempt"].attributes["pointsman.refused_by"] == "deciding"
    assert spans["attempt backup-a"].attributes["error.type"] == "refused"


async def test_failures_are_errors(h):
    """A failed attempt and a request that failed or was left are errors in the trace, with the reason."""
    await h.request(script=error(429, retry_after_s=3.0, message="slow down"), retries=0)
    spans = by_name(h)
    attempt = spans["attempt chat-b"]
    assert (attempt.status.status_code, attempt.status.description) == (StatusCode.ERROR, "error: slow down")
    assert attempt.attributes["error.type"] == "rate_limit"
    assert attempt.attributes["pointsman.retry_after_s"] == 3.0
    assert attempt.attributes["http.response.status_code"] == 429
    assert spans["pointsman chat"].status.status_code is StatusCode.ERROR
    await h.request(stream=True, script=disconnect(1))
    left = (
        h.spans[-1] if h.spans[-1].name == "pointsman chat" else [s for s in h.spans if s.name == "pointsman chat"][-1]
    )
    assert (left.status.status_code, left.status.description) == (StatusCode.ERROR, "disconnected")


async def test_nobody_left_is_an_event(h):
    await h.request(model="chat-a", retries=0)
    (event,) = [e for e in by_name(h)["pointsman chat"].events if e.name == "nobody can serve"]
    assert event.attributes["pointsman.dropped"] == ("chat-a: too slow (deciding)",)


async def test_a_mirror_is_linked_and_not_nested(h, plugin):
    """A call of our own has a trace of its own with a link to the request it was made for."""
    from pointsman.testing.calls import current_exchange  # noqa: PLC0415  # what the gateway's bridge would set

    exchange = h.host.open((await h.request()).ctx)

    async def mirror():
        current_exchange.set(exchange)
        request = UpstreamRequest(target="chat-b", kind=AttemptKind.MIRROR, body={}, parent=exchange.ctx)
        return await h.gateway.upstream.start(request).response()

    await asyncio.create_task(mirror())
    exchange.close(200)
    mirrored = next(s for s in h.spans if s.attributes.get("pointsman.attempt.kind") == "mirror")
    root = next(s for s in h.spans if s.context.span_id == mirrored.parent.span_id)
    assert [link.context.span_id for link in root.links] == [exchange.span.get_span_context().span_id]
    assert root.context.trace_id != exchange.span.get_span_context().trace_id


async def test_every_span_ends(harness, plugin):
    """However a request ends, cancelled in the middle of a hook too, no span is left open."""
    started, ended = [], []

    class Counting(SimpleSpanProcessor):
        def on_start(self, span, parent_context=None):
            started.append(span.name)

        def on_end(self, span):
            ended.append(span.name)

    class Slow:
        @hookimpl
        async def pre_route(self, ctx):
            if ctx.model == "chat":
                await asyncio.Event().wait()

        @hookimpl
        async def before_attempt(self):
            await asyncio.Event().wait()

    h = harness([plugin(Slow)], tracing=True)
    h._provider.add_span_processor(Counting(SpanExporter()))
    async with h:
        for model in ("chat", "backup"):
            task = asyncio.create_task(h.request(model=model))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
    assert sorted(started) == sorted(ended)
    assert "pre_route" in ended
    assert "before_attempt" in ended


class Broken:
    """A tracer of which nothing works."""

    def start_span(self, *args, **kwargs):
        raise RuntimeError("no spans today")

    def __getattr__(self, name):
        def fail(*args, **kwargs):
            raise RuntimeError("no spans today")

        return fail


class HalfBroken(Broken):
    """A tracer that starts spans with which nothing can be done."""

    def start_span(self, *args, **kwargs):
        return Broken()


@pytest.mark.parametrize("tracer", [Broken, HalfBroken])
async def test_a_broken_tracer_harms_nobody(harness, plugin, tracer, caplog):
    """Requests go on as without it; the failures are counted and logged once."""

    class Deciding2(Deciding):
        @hookimpl
        async def startup(self, services):
            """Make no spans."""

        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(arm="b")

    h = harness([plugin(Deciding2)])
    h.before_start = lambda host: setattr(host, "tracing", Tracing(tracer()))
    async with h:
        result = await h.request()
        await h.settled()
        assert (result.outcome, h.faults) == (Outcome.OK, {})
        assert h.host.tracing.failures > 0
    assert caplog.text.count("tracing failed, requests are not affected: RuntimeError: no spans today") == 1


async def test_an_exporter_that_fails_harms_nobody(harness, plugin):
    class Failing(SpanExporter):
        def export(self, spans):
            raise RuntimeError("no collector")

    h = harness([plugin(Deciding)], tracing=True)
    h._provider.add_span_processor(SimpleSpanProcessor(Failing()))
    async with h:
        assert (await h.request()).outcome is Outcome.OK
        await h.settled()


def test_a_callers_trace_is_followed_only_when_it_is_one():
    """A valid ``traceparent`` gives a context; none, or nonsense, gives none."""
    assert remote_parent({}) is None
    assert remote_parent({"traceparent": "nonsense"}) is None
    assert remote_parent({"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"}) is None
    assert remote_parent({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}) is not None


def test_a_span_tells_the_provider_who_it_is():
    """The header that goes out names the span; without one there is none."""
    provider = TracerProvider(shutdown_on_exit=False)
    span = Tracing(provider.get_tracer("x")).start("x")
    context = span.get_span_context()
    ids = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert outgoing_headers(span) == {"traceparent": ids}
    assert outgoing_headers(None) == {}
    span.end()


def test_tracing_off_is_off(monkeypatch):
    """Switched off in the configuration or by the standard variable, or with nowhere to send to, no span is made."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    provider = TracerProvider(shutdown_on_exit=False)
    assert configure(enabled=True, provider=provider).enabled
    assert not configure(enabled=False, provider=provider).enabled
    assert not configure(enabled=True).enabled
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    assert not configure(enabled=True, provider=provider).enabled
    off = Tracing()
    assert (off.enabled, off.start("x")) == (False, None)
    off.set(None, {})
    off.event(None, "x", {})
    off.end(None, error="x")
    with off.current(None):
        off.shutdown()
