"""Spans: one trace per request with every plugin's decisions; a tracer that fails affects no request."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from pointsman import hookimpl
from pointsman.errors import UpstreamError
from pointsman.host import tracing as host_tracing
from pointsman.host.span_pipeline import SHUTDOWN_S
from pointsman.host.spans import RecordedSpan, SpanProvider
from pointsman.host.tracing import Tracing, configure, outgoing_headers, remote_parent
from pointsman.store.memory import MemoryStore
from pointsman.testing import disconnect, error, ok
from pointsman.types import AttemptKind, Denial, Identity, Outcome, Refusal, Reservation, UpstreamRequest

pytestmark = pytest.mark.usefixtures("leak_check")


class Deciding:
    """Takes part in every decision."""

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
    root, attempt, settled = spans["chat chat"], spans["chat chat-b"], spans["settle chat"]
    parents = {name: span.parent.span_id if span.parent else None for name, span in spans.items()}
    assert parents == {
        "chat chat": None,
        "pre_route": root.context.span_id,
        "my own": spans["pre_route"].context.span_id,
        "chat chat-b": root.context.span_id,
        "before_attempt": attempt.context.span_id,
        "settle chat": None,
    }
    assert {s.name for s in h.spans if s.context.trace_id != root.context.trace_id} == {"settle chat"}
    assert (root.kind, attempt.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert [status.status.status_code for status in (root, attempt, settled)] == [StatusCode.OK] * 3
    assert root.attributes["pointsman.tenant"] == "t1"
    assert root.attributes["pointsman.label.arm"] == "b"
    assert root.attributes["pointsman.outcome"] == "ok"
    assert root.attributes["gen_ai.usage.input_tokens"] == 10
    assert attempt.attributes["pointsman.attempt.answered"] is True
    assert attempt.attributes["pointsman.candidates"] == ("chat-b",)
    assert attempt.attributes["pointsman.scores"] == (0.5,)
    assert attempt.attributes["pointsman.notes"] == ("chat-b: fast",)
    assert attempt.attributes["pointsman.dropped"] == ("chat-a: too slow (deciding)",)
    assert attempt.attributes["gen_ai.response.model"] == "gpt-x"
    assert root.attributes["pointsman.reserved_by"] == ("deciding",)


async def test_a_denial_is_in_the_trace(h):
    result = await h.request(model="denied")
    await h.settled()
    for name in ("pre_route", "chat denied"):
        attributes = by_name(h)[name].attributes
        assert attributes["pointsman.denied_by"] == "deciding"
        assert attributes["pointsman.denial.code"] == "no"
        assert attributes["pointsman.denial.reason"] == "Not today."
    assert result.attempts == ()


async def test_a_refusal_is_in_the_trace(h):
    await h.request(model="backup", retries=0)
    spans = by_name(h)
    assert spans["before_attempt"].attributes["pointsman.refused_by"] == "deciding"
    assert spans["chat backup-a"].attributes["error.type"] == "refused"


async def test_failures_are_errors(h):
    """A failed attempt and a request that failed or was left are errors in the trace, with the reason."""
    await h.request(script=error(429, retry_after_s=3.0, message="slow down"), retries=0)
    spans = by_name(h)
    attempt = spans["chat chat-b"]
    assert (attempt.status.status_code, attempt.status.description) == (StatusCode.ERROR, "error: slow down")
    assert attempt.attributes["error.type"] == "rate_limit"
    assert attempt.attributes["pointsman.retry_after_s"] == 3.0
    assert attempt.attributes["http.response.status_code"] == 429
    root = spans["chat chat"]
    assert (root.status.status_code, root.attributes["error.type"]) == (StatusCode.ERROR, "rate_limit")


async def test_a_client_that_leaves_is_no_error(h):
    """Nothing has failed: the spans say what happened, and error rates over spans stay those of providers."""
    await h.request(stream=True, script=disconnect(1))
    for name in ("chat chat", "chat chat-b"):
        span = by_name(h)[name]
        assert (span.status.status_code, span.attributes["pointsman.outcome"]) == (StatusCode.UNSET, "disconnected")
        assert "error.type" not in span.attributes


async def test_no_candidate_left_is_an_event(h):
    await h.request(model="chat-a", retries=0)
    (event,) = [e for e in by_name(h)["chat chat-a"].events if e.name == "no candidate left"]
    assert event.attributes["pointsman.dropped"] == ("chat-a: too slow (deciding)",)


@pytest.mark.parametrize(("late", "planned"), [(False, False), (True, False), (False, True), (True, True)])
async def test_a_mirror_is_linked_and_not_nested(h, late, planned):
    """A call of our own has a trace of its own with a link to the request it was made for, and that request's id.

    The request is linked to it while it runs: a span that has ended cannot be. So a call that may start later is planned.
    """
    from pointsman.testing.calls import current_exchange  # noqa: PLC0415  # what the gateway's bridge would set

    exchange = h.host.open((await h.request()).ctx)
    current_exchange.set(exchange)
    upstream = h.gateway.upstream
    call = upstream.plan(AttemptKind.MIRROR, "chat-b", exchange.ctx) if planned else upstream

    async def mirror():
        request = UpstreamRequest(target="chat-b", kind=AttemptKind.MIRROR, body={}, parent=exchange.ctx)
        return await call.start(request).response()

    span = exchange.span
    if late:
        exchange.close(200)
    await asyncio.create_task(mirror())
    exchange.close(200)
    if planned:
        call.drop("nothing, it was made")
    mirrored = next(s for s in h.spans if s.attributes.get("pointsman.attempt.kind") == "mirror")
    root = next(s for s in h.spans if s.context.span_id == mirrored.parent.span_id)
    assert (root.name, root.attributes["pointsman.outcome"]) == ("mirror chat-b", "ok")
    assert [event.name for event in root.events] == ["waited"] * planned
    assert [link.context.span_id for link in root.links] == [span.get_span_context().span_id]
    assert root.context.trace_id != span.get_span_context().trace_id
    assert root.attributes["pointsman.parent_id"] == exchange.ctx.request_id
    (primary,) = [s for s in h.spans if s.context.span_id == span.get_span_context().span_id]
    assert (root.context.span_id in [link.context.span_id for link in primary.links]) == (planned or not late)


@pytest.mark.parametrize("target", ["chat-b", "unknown"])
async def test_a_planned_call_that_is_not_made_says_why(h, target):
    """Dropped, or its target unknown when its turn comes: its span ends, linked to the request, with the reason."""
    from pointsman.testing.calls import current_exchange  # noqa: PLC0415  # what the gateway's bridge would set

    exchange = h.host.open((await h.request()).ctx)
    current_exchange.set(exchange)
    planned = h.gateway.upstream.plan(AttemptKind.MIRROR, target, exchange.ctx)
    exchange.close(200)
    if target == "unknown":
        with pytest.raises(UpstreamError, match="unknown"):
            planned.start(UpstreamRequest(target=target, kind=AttemptKind.MIRROR, body={}, parent=exchange.ctx))
    planned.drop("waited_too_long")
    (root,) = [s for s in h.spans if s.attributes.get("pointsman.kind") == "mirror"]
    (primary,) = [s for s in h.spans if s.context.span_id == exchange.span.get_span_context().span_id]
    assert root.context.span_id in [link.context.span_id for link in primary.links]
    assert [link.context.span_id for link in root.links] == [primary.context.span_id]
    assert (root.status.status_code, root.attributes["pointsman.outcome"]) == (StatusCode.UNSET, "cancelled")
    expected = (
        "waited_too_long" if target == "chat-b" else "the target 'unknown' is neither a model group nor a deployment id"
    )
    assert root.attributes["pointsman.ended_because"] == expected


async def test_a_call_and_another_about_its_answer_link_to_one_another(h):
    """From a mirror's trace one gets to its judge's, and back, without the request's."""
    from pointsman.testing.calls import current_exchange  # noqa: PLC0415  # what the gateway's bridge would set

    exchange = h.host.open((await h.request()).ctx)
    current_exchange.set(exchange)
    upstream = h.gateway.upstream
    mirror = upstream.plan(AttemptKind.MIRROR, "chat-b", exchange.ctx)
    judge = upstream.plan(AttemptKind.JUDGE, "chat-a", exchange.ctx, about=mirror)
    exchange.close(200)
    for call in (mirror, judge):
        call.drop("enough seen")
    roots = {str(s.attributes.get("pointsman.kind")): s for s in h.spans}
    for kind, other in (("mirror", "judge"), ("judge", "mirror")):
        links = {link.attributes["pointsman.link"]: link.context for link in roots[kind].links}
        assert set(links) == {"request", other}
        assert links[other].span_id == roots[other].context.span_id
    assert roots["mirror"].context.trace_id != roots["judge"].context.trace_id


async def test_every_span_ends(harness, plugin, monkeypatch):
    """However a request ends, cancelled in the middle of a hook too, no span is left open."""
    started = []

    begin = RecordedSpan.__init__

    def counting(span, tracer, name, *args):
        started.append(span)
        begin(span, tracer, name, *args)

    monkeypatch.setattr(RecordedSpan, "__init__", counting)

    class Slow:
        @hookimpl
        async def pre_route(self, ctx):
            if ctx.model == "chat":
                await asyncio.Event().wait()

        @hookimpl
        async def before_attempt(self):
            await asyncio.Event().wait()

    h = harness([plugin(Slow)], tracing=True)
    provider = SpanProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    counted = Tracing(provider.get_tracer("counted"), provider)
    h.before_start = lambda host: setattr(host, "tracing", counted)
    async with h:
        for model in ("chat", "backup"):
            task = asyncio.create_task(h.request(model=model))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
    ended = [span.name for span in exporter.get_finished_spans()]
    assert sorted(span.name for span in started) == sorted(ended)
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
async def test_a_broken_tracer_affects_no_request(harness, plugin, tracer, caplog):
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


async def test_an_exporter_that_fails_affects_no_request(harness, plugin):
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


EXPORTER = "OTEL_TRACES_EXPORTER"


@pytest.fixture
def global_provider(monkeypatch):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter(), schedule_delay_millis=600_000))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


@pytest.mark.parametrize(
    ("env", "own"),
    [
        ({}, False),
        ({EXPORTER: "none"}, False),
        ({EXPORTER: "zipkin"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({EXPORTER: "otlp"}, True),
    ],
)
def test_spans_leave_by_a_pipeline_of_their_own_where_variables_name_one(env, own, global_provider, monkeypatch):
    """Else by that of other instrumentation; what waits there is flushed at the end in either case."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    tracing = configure(enabled=True, worker="w-1")
    span = tracing.start("x")
    assert (tracing.counts is not None) is own
    assert (span.__class__.__name__ == "RecordedSpan") is own
    global_provider.get_tracer("theirs").start_span("theirs").end()
    if not own:
        span.end()
    tracing.shutdown()
    (processor,) = global_provider._active_span_processor._span_processors
    exported = {s.name for s in processor.span_exporter.get_finished_spans()}
    assert exported == ({"theirs"} if own else {"theirs", "x"})


def test_both_ways_out_share_the_time_at_the_end(global_provider, monkeypatch):
    """With a collector that hangs, the other's flush gets what our own pipelines leave of the time."""
    joined = []

    class Pipeline:
        def shutdown(self):
            time.sleep(0.2)

    monkeypatch.setattr(host_tracing, "begin_flush", lambda _: SimpleNamespace(join=joined.append))
    Tracing(pipelines=[Pipeline()], other=global_provider).shutdown()
    (left_s,) = joined
    assert 0 <= left_s <= SHUTDOWN_S - 0.2


def test_tracing_off_is_off(monkeypatch, global_provider):
    """Switched off in the configuration or by the standard variable, or with nowhere to send to, no span is made."""
    assert configure(enabled=True).enabled
    assert not configure(enabled=False).enabled
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    assert not configure(enabled=True).enabled
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setattr(trace, "get_tracer_provider", NoOpTracerProvider)
    assert not configure(enabled=True).enabled
    off = Tracing()
    assert (off.enabled, off.start("x")) == (False, None)
    off.set(None, {})
    off.event(None, "x", {})
    off.end(None, error="x")
    with off.current(None):
        off.shutdown()


async def test_who_was_left_out_and_why_is_on_the_attempt(harness, plugin):
    """A deployment that refused, and one that is busy with another attempt, are named with the reason."""

    class Refusing:
        @hookimpl
        async def before_attempt(self, attempt):
            return Refusal(reason="full") if attempt.number == 1 else None

    async with harness([plugin(Refusing)], tracing=True) as h:
        await h.request()
    attempts = sorted((s for s in h.spans if "pointsman.attempt" in s.attributes), key=lambda s: s.start_time)
    assert [s.status.status_code for s in attempts] == [StatusCode.ERROR, StatusCode.OK]
    refused = attempts[0].attributes["pointsman.deployment"]
    assert attempts[1].attributes["pointsman.dropped"] == (
        f"{refused}: refused an attempt of this request (pointsman)",
    )
    assert attempts[1].attributes["pointsman.after"] == "refused of attempt 1"


async def test_faults_and_waits_of_plugins_are_events(harness, plugin):
    class Slow:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def pre_route(self, ctx):
            await asyncio.sleep(0.02)
            if ctx.model == "chat":
                self.services.annotate({"waited_for": "a seat"})

        @hookimpl
        def select(self):
            raise ValueError("with a secret in it")

    async with harness([plugin(Slow)], tracing=True) as h:
        await h.request(model="chat-a")
        unsaid = by_name(h)
        await h.request()
    spans = by_name(h)
    for found, reason in ((unsaid, "unknown"), (spans, "a seat")):
        (waited,) = [e for e in found["pre_route"].events if e.name == "waited"]
        assert waited.attributes["pointsman.plugin"] == "slow"
        assert waited.attributes["pointsman.wait_ms"] >= 1
        assert waited.attributes.get("pointsman.reason") == reason
    (fault,) = [e for e in spans["chat chat"].events if e.name == "plugin fault"]
    assert dict(fault.attributes) == {
        "pointsman.plugin": "slow",
        "pointsman.hook": "select",
        "error.type": "ValueError",
    }


class SlowStore(MemoryStore):
    async def get(self, key):
        await asyncio.sleep(0.01)
        return await super().get(key)


@pytest.mark.parametrize(
    ("reads", "times_s", "reason"),
    [(2, (0.0, 0.0), "store"), (1, (0.1, 0.0), "unknown"), (0, (0.0, 0.01), "computing"), (1, (0.0, 0.1), "computing")],
)
async def test_a_wait_has_a_reason_that_the_plugin_need_not_say(harness, plugin, reads, times_s, reason):
    sleeps_s, computes_s = times_s

    class Slow:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def pre_route(self):
            time.sleep(computes_s)  # noqa: ASYNC251  # that is the fault
            for _ in range(reads):
                await self.services.store.get("key")
            if sleeps_s:
                await asyncio.sleep(sleeps_s)

    async with harness([plugin(Slow)], store=SlowStore(), tracing=True) as h:
        await h.request()
        (waited,) = [e for e in by_name(h)["pre_route"].events if e.name == "waited"]
    assert (waited.attributes["pointsman.plugin"], waited.attributes["pointsman.reason"]) == ("slow", reason)


async def test_background_work_is_in_no_trace_of_a_request(harness, plugin):
    """It may outlive the request that began it."""

    class Busy:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def pre_route(self):
            self.services.tasks.spawn(self.work(), name="work")

        async def work(self):
            with self.services.tracer.start_as_current_span("work"):
                await self.services.clock.sleep(60.0)

    async with harness([plugin(Busy)], tracing=True) as h:
        await h.request()
        await h.clock.advance(61.0)
    spans = by_name(h)
    assert spans["work"].parent is None
    assert spans["work"].context.trace_id != spans["chat chat"].context.trace_id
