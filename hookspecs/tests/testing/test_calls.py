"""Calls of our own through the fake gateway: their attempts, their ends, and whom they end with."""

from __future__ import annotations

import asyncio

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import UpstreamError
from pointsman.plugin import Upstream, UpstreamCall
from pointsman.testing import FakeGateway, breaks, cancel, error, never, ok
from pointsman.types import (
    Answer,
    AttemptKind,
    Endpoint,
    ErrorClass,
    Execution,
    Identity,
    Outcome,
    Refusal,
    UpstreamRequest,
    Usage,
)


class Observer:
    """Keeps every attempt it sees; runs whatever ``execute`` a test gives it."""

    def __init__(self, config):
        self.closed = []
        self.work = None
        self.refuses = False

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def pre_route(self, route):
        return None if self.work is None else type(route)(target=route.target, executor="observer", labels={"a": "b"})

    @hookimpl
    async def before_attempt(self, attempt):
        assert attempt.outcome is None
        return Refusal(reason="full", retry_after_s=3.0) if self.refuses else None

    @hookimpl
    async def execute(self, ctx, route, upstream):
        return await self.work(ctx, route, upstream)

    @hookimpl
    def post_response(self, ctx, attempt):
        self.closed.append((ctx, attempt))

    @hookimpl
    def on_error(self, ctx, attempt):
        self.closed.append((ctx, attempt))


INFO = PluginInfo(name="observer", config=PluginConfig, factory=Observer)


@pytest.fixture
async def h(harness, leak_check):
    async with harness([INFO]) as h:
        yield h


@pytest.fixture
def observer(h):
    return h.plugin("observer")


def probe(target="chat", **changes):
    return UpstreamRequest(**{"target": target, "kind": AttemptKind.PROBE, "body": {}, **changes})


def test_the_fakes_fit_the_protocols():
    """What a plugin is typed against is what the fakes are."""
    gateway = FakeGateway()
    upstream: Upstream = gateway.upstream
    assert callable(upstream.start)
    assert {"attempt", "response", "chunks", "cancel"} <= set(dir(UpstreamCall))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_our_own_says_what_was_answered(h, stream):
    """Only once it has ended well: not while it runs, not when it failed."""
    h.gateway.upstream.answer([ok("yes sir"), error(500)])
    call = h.gateway.upstream.start(probe(stream=stream))
    assert call.answer is None
    if stream:
        assert [chunk.text async for chunk in call.chunks()] == ["yes", " sir"]
    else:
        await call.response()
    assert call.answer == Answer(text="yes sir", finish_reason="stop")
    failing = h.gateway.upstream.start(probe())
    with pytest.raises(UpstreamError):
        await failing.response()
    assert failing.answer is None


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (Endpoint.CHAT, ("choices", 0, "message", "content")),
        (Endpoint.MESSAGES, ("content", 0, "text")),
        (Endpoint.RESPONSES, ("output", 0, "content", 0, "text")),
    ],
)
async def test_a_plain_call_brings_the_answer_in_the_endpoints_shape(h, observer, endpoint, path):
    """The attempt is detached, closed once, priced, and takes as long as the script says."""
    h.gateway.upstream.answer(ok("pong", latency_s=1.5, headers={"x-a": "b"}))
    call = h.gateway.upstream.start(probe(endpoint=endpoint, labels={"probe": "yes"}))
    response = await h.clock.run(call.response())
    answer = response.body
    for step in path:
        answer = answer[step]
    assert answer == "pong"
    ((ctx, attempt),) = observer.closed
    assert attempt == response.attempt == call.attempt
    assert (attempt.kind, attempt.outcome, attempt.duration_ms, attempt.headers, attempt.labels) == (
        AttemptKind.PROBE,
        Outcome.OK,
        1500.0,
        {"x-a": "b"},
        {"probe": "yes"},
    )
    assert attempt.cost_usd_micros == 20
    assert ctx.model == "chat"
    assert h.settlements == []
    assert call.ended
    assert not call.cancelled


async def test_embeddings_have_vectors(h):
    response = await h.gateway.upstream.start(probe(endpoint=Endpoint.EMBEDDINGS)).response()
    assert all(isinstance(x, float) for x in response.body["data"][0]["embedding"])
    several = h.gateway.upstream.start(probe(endpoint=Endpoint.EMBEDDINGS, body={"input": ["a", "b"]}))
    assert [each["index"] for each in (await several.response()).body["data"]] == [0, 1]


async def test_a_stream_brings_its_pieces_at_their_time(h, observer):
    """Time counts from the call, not from the first look at it; the first piece is the first token."""
    h.gateway.upstream.answer(ok("one two three", latency_s=1.0, piece_s=0.5))
    call = h.gateway.upstream.start(probe(stream=True))
    await h.clock.advance(1.25)
    seen = []

    async def read():
        seen.extend([(chunk.text, h.clock.monotonic()) async for chunk in call.chunks()])

    await h.clock.run(read())
    assert seen == [("one", 1.25), (" two", 1.5), (" three", 2.0)]
    assert observer.closed[0][1].duration_ms == 2000.0
    assert observer.closed[0][1].first_token_ms == 1250.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("step", "timeout_s", "kind", "status"),
    [
        (error(429, retry_after_s=7.0), None, ErrorClass.RATE_LIMIT, 429),
        (error(None), None, ErrorClass.CONNECTION, None),
        (breaks(2), None, ErrorClass.CONNECTION, None),
        (never(), 2.0, ErrorClass.TIMEOUT, 408),
        (ok(latency_s=9.0), 2.0, ErrorClass.TIMEOUT, 408),
    ],
)
async def test_failures_are_upstream_errors(h, observer, *, step, timeout_s, kind, status, stream):
    """Whatever goes wrong is an UpstreamError with class and status, and the attempt is closed with the same."""
    h.gateway.upstream.answer(step)
    call = h.gateway.upstream.start(probe(timeout_s=timeout_s, stream=stream))

    async def read():
        if not stream:
            return await call.response()
        return [chunk async for chunk in call.chunks()]

    with pytest.raises(UpstreamError) as caught:
        await h.clock.run(read())
    assert (caught.value.error_class, caught.value.status) == (kind, status)
    ((_, attempt),) = observer.closed
    assert (attempt.outcome, attempt.error.kind, attempt.error.status) == (Outcome.ERROR, kind, status)
    assert caught.value.retry_after_s == attempt.error.retry_after_s == (7.0 if status == 429 else None)
    assert call.ended


async def test_a_refused_call_is_an_upstream_error(h, observer):
    observer.refuses = True
    with pytest.raises(UpstreamError, match="refused by observer: full") as caught:
        await h.gateway.upstream.start(probe()).response()
    assert caught.value.retry_after_s == 3.0
    assert observer.closed[0][1].error.kind is ErrorClass.REFUSED


async def test_an_unknown_target_is_refused_at_once(h):
    with pytest.raises(UpstreamError, match="neither a model group nor a deployment"):
        h.gateway.upstream.start(probe("nobody"))


async def test_a_call_needs_a_host():
    with pytest.raises(RuntimeError, match="attach"):
        FakeGateway().upstream.start(probe())


async def test_a_group_is_chosen_from_and_a_deployment_is_not(h):
    """Calls to a group go through ``select`` and spread; a call that names a deployment gets that one."""
    one = await h.gateway.upstream.start(probe("chat-b")).response()
    assert one.attempt.deployment.id == "chat-b"
    two = await h.gateway.upstream.start(probe("chat")).response()
    assert two.attempt.deployment.id == "chat-a"


async def test_plain_and_stream_are_not_mixed_up(h):
    """Reading a call in the other way is a mistake that says so."""
    plain = h.gateway.upstream.start(probe())
    with pytest.raises(RuntimeError, match="not started as a stream"):
        await anext(plain.chunks())
    await plain.response()
    stream = h.gateway.upstream.start(probe(stream=True))
    with pytest.raises(RuntimeError, match="as a stream"):
        await stream.response()
    await stream.cancel()


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_ends_a_call(h, observer, stream):
    """A cancelled call is closed as cancelled, once; cancelling again, or after the end, is harmless."""
    h.gateway.upstream.answer(never())
    call = h.gateway.upstream.start(probe(stream=stream))
    await h.clock.quiet()
    assert call.attempt.outcome is None
    await call.cancel()
    await call.cancel()
    assert (call.attempt.outcome, call.cancelled, call.ended) == (Outcome.CANCELLED, True, True)
    assert len(observer.closed) == 1
    h.gateway.upstream.answer(ok())
    done = h.gateway.upstream.start(probe())
    await done.response()
    await done.cancel()
    assert (done.attempt.outcome, done.cancelled) == (Outcome.OK, False)


async def test_a_call_that_has_not_begun_has_no_attempt(h):
    call = h.gateway.upstream.start(probe())
    with pytest.raises(UpstreamError, match="not reached"):
        _ = call.attempt
    await call.cancel()
    assert h.gateway.upstream.running == []


async def test_a_script_that_cancels_is_a_cancellation(h):
    h.gateway.upstream.answer(cancel())
    call = h.gateway.upstream.start(probe())
    with pytest.raises(UpstreamError, match="the call was cancelled"):
        await call.response()
    assert call.attempt.outcome is Outcome.CANCELLED


async def test_nobody_needs_to_look_at_a_failed_call(h, recwarn):
    """A call that fails without anybody waiting for it makes no noise."""
    h.gateway.upstream.answer(error())
    call = h.gateway.upstream.start(probe())
    await h.clock.quiet()
    await call.cancel()
    assert not recwarn.list


async def test_legs_belong_to_the_request(h, observer):
    """A hedge is in the settlement of the client's request, with its labels; a judge has an exchange of its own."""

    async def work(ctx, route, upstream):
        leg = upstream.start(UpstreamRequest(target="chat-b", kind=AttemptKind.HEDGE, body={}, labels={"leg": "2"}))
        judge = observer.services.upstream.start(probe("backup", kind=AttemptKind.JUDGE, parent=ctx, tenant="payer"))
        await judge.response()
        return Execution(response=await leg.response(), headers={"x-pointsman-raced": "1"})

    observer.work = work
    result = await h.request(identity=Identity(tenant="t", user_id="u"))
    assert [(a.kind, a.labels) for a in result.attempts] == [(AttemptKind.HEDGE, {"a": "b", "leg": "2"})]
    assert result.headers["x-pointsman-raced"] == "1"
    judge_ctx = next(ctx for ctx, attempt in observer.closed if attempt.kind is AttemptKind.JUDGE)
    assert (judge_ctx.identity, judge_ctx.payer) == (Identity(tenant="t", user_id="u"), "payer")
    assert judge_ctx.request_id != result.request_id
    assert len(h.settlements) == 1


@pytest.mark.parametrize(
    ("kind", "follows"),
    [(AttemptKind.HEDGE, True), (AttemptKind.JUDGE, True), (AttemptKind.PROBE, True), (AttemptKind.MIRROR, False)],
)
async def test_calls_end_with_their_request_except_mirrors(h, observer, kind, follows):
    """What is still running for a request when it ends is cancelled, unless it is a mirror."""
    started = []

    async def work(ctx, route, upstream):
        started.append(observer.services.upstream.start(probe("backup", kind=kind, parent=ctx)))
        call = upstream.start(UpstreamRequest(target="chat-a", kind=AttemptKind.PRIMARY, body={}))
        return Execution(response=await call.response())

    observer.work = work
    h.gateway.upstream.answer(never())
    result = await h.request(script={"chat-a": ok(latency_s=0.5)})
    assert result.outcome is Outcome.OK
    (call,) = started
    assert call.cancelled is follows
    assert (call.attempt.outcome is Outcome.CANCELLED) is follows
    await call.cancel()


async def test_a_leg_of_a_request_that_has_ended_is_refused(h, observer):
    """A hedge that is started too late makes no attempt that anybody would pay for."""
    late = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def work(ctx, route, upstream):
        async def hedge():
            await over.wait()
            late.set_result(upstream.start(UpstreamRequest(target="chat-b", kind=AttemptKind.HEDGE, body={})))

        observer.services.tasks.spawn(hedge(), name="late")
        call = upstream.start(UpstreamRequest(target="chat-a", kind=AttemptKind.PRIMARY, body={}))
        return Execution(response=await call.response())

    observer.work = work
    result = await h.request()
    over.set()
    call = await late
    with pytest.raises(UpstreamError, match="the request has ended"):
        await call.response()
    assert len(result.attempts) == 1
    assert [attempt.outcome for _, attempt in observer.closed] == [Outcome.OK, Outcome.CANCELLED]


async def test_the_clients_answer_decides_how_a_request_ended(h, observer):
    """A stream that breaks is an error, and its tokens are the answer's, even when another leg has ended well."""

    async def run(ctx, route, upstream):
        legs = [upstream.start(request_of(ctx, kind)) for kind in (AttemptKind.PRIMARY, AttemptKind.HEDGE)]
        assert [chunk async for chunk in legs[1].chunks()]
        return Execution(chunks=legs[0].chunks())

    observer.work = run
    result = await h.request(model="chat", stream=True, script=[breaks(2), ok("quick")])
    assert [attempt.outcome for attempt in result.attempts] == [Outcome.ERROR, Outcome.OK]
    assert (result.outcome, result.settlement.usage.completion_tokens) == (Outcome.ERROR, 2)


async def test_the_tokens_of_a_plain_race_are_its_winners(h, observer):
    """Of two legs that have answered, the one that was handed on counts."""

    async def run(ctx, route, upstream):
        legs = [upstream.start(request_of(ctx, kind)) for kind in (AttemptKind.PRIMARY, AttemptKind.HEDGE)]
        answers = [await leg.response() for leg in legs]
        return Execution(response=answers[0])

    observer.work = run
    usages = [Usage(prompt_tokens=1, completion_tokens=n) for n in (7, 9)]
    result = await h.request(model="chat", script=[ok(usage=usage) for usage in usages])
    assert (result.outcome, result.settlement.usage) == (Outcome.OK, usages[0])


def request_of(ctx, kind):
    return UpstreamRequest(target="chat", kind=kind, body=ctx.body, parent=ctx)


async def test_what_fails_an_attempt_cools_down_where_the_gateway_has_cooldowns(harness):
    """As in LiteLLM: no plugin is asked for a group that cools down, and a fallback answers; mirrors start no cooldown."""
    async with harness([INFO], script={"chat-a": error(500), "chat-b": error(503), "backup-a": ok("hello")}) as h:
        h.gateway.cooldowns.seconds = 30.0
        mirror = h.gateway.upstream.start(probe(kind=AttemptKind.MIRROR))
        with pytest.raises(UpstreamError):
            await mirror.response()
        first = await h.request(retries=1, fallbacks=["backup"])
        assert [a.deployment.id for a in first.attempts] == ["chat-a", "chat-b", "backup-a"]
        second = await h.request(retries=1, fallbacks=["backup"])
        assert [a.deployment.id for a in second.attempts] == ["backup-a"]
        assert (await h.request(retries=0)).status == 429
        await h.clock.advance(30.0)
        assert [a.deployment.id for a in (await h.request(retries=0)).attempts] == ["chat-a"]


async def test_an_error_of_the_client_puts_nothing_into_cooldown(harness):
    async with harness([INFO], script={"chat-a": error(400), "chat-b": error(400)}) as h:
        h.gateway.cooldowns.seconds = 30.0
        assert [(await h.request()).status for _ in range(2)] == [400, 400]
