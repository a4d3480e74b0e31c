"""The hooks of an attempt: when each fires, with what, how often, and how the results of several plugins combine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pointsman import hookimpl
from pointsman.errors import UpstreamError
from pointsman.testing import breaks, cancel, disconnect, error, ok
from pointsman.types import Answer, AttemptKind, Chunk, Execution, Outcome, Refusal, ToolCall, UpstreamRequest

pytestmark = pytest.mark.usefixtures("leak_check")


async def test_select_is_a_pipeline_for_every_attempt(harness, plugin):
    """Once per attempt, in order; weights, scores and notes travel, and who is dropped does not come back."""
    turns = []

    class Scoring:
        @hookimpl
        def select(self, ctx, candidates):
            return [c.scored(float(number), "counted") for number, c in enumerate(candidates)]

    class Dropping:
        @hookimpl
        def select(self, candidates):
            turns.append([(c.deployment.id, c.score, c.notes) for c in candidates])
            return [c.drop("by name") if c.deployment.id == "chat-a" else c for c in candidates]

    class Silent:
        @hookimpl
        def select(self, candidates):
            turns.append([c.deployment.id for c in candidates])

    async with harness([plugin(Scoring), plugin(Dropping), plugin(Silent)]) as h:
        result = await h.request(script=error(500), retries=1)
        once = [[("chat-a", 0.0, ("counted",)), ("chat-b", 1.0, ("counted",))], ["chat-b"]]
        assert turns == once * 2
        assert [a.deployment.id for a in result.attempts] == ["chat-b", "chat-b"]


async def test_select_that_leaves_no_candidate_ends_the_attempt(harness, plugin):
    """Without candidates, later plugins do not run, and the gateway falls back."""
    asked = []

    class Strict:
        @hookimpl
        def select(self, candidates):
            asked.append([c.deployment.id for c in candidates])
            return [c for c in candidates if c.deployment.group == "backup"]

    class Later:
        @hookimpl
        def select(self, candidates):
            assert candidates, "never asked with nothing"

    async with harness([plugin(Strict), plugin(Later)]) as h:
        result = await h.request(fallbacks=["backup"])
        assert asked == [["chat-a", "chat-b"], ["backup-a"]]
        assert [a.deployment.id for a in result.attempts] == ["backup-a"]
        assert h.faults == {}


async def test_before_attempt_sees_every_attempt_open(harness, plugin):
    """Once per attempt, with the deployment known and nothing sent; it may wait."""
    seen = []

    class Waiting:
        @hookimpl
        async def startup(self, services):
            self.clock = services.clock

        @hookimpl
        async def before_attempt(self, ctx, attempt):
            seen.append((attempt.number, attempt.deployment.id, attempt.kind, attempt.outcome))
            await self.clock.sleep(0.5)

    async with harness([plugin(Waiting)]) as h:
        await h.request(script=[error(500), ok()])
        assert seen == [(1, "chat-a", AttemptKind.PRIMARY, None), (2, "chat-b", AttemptKind.RETRY, None)]
        assert h.clock.monotonic() == 1.0


async def test_before_attempt_ends_at_the_first_refusal(harness, plugin):
    """A refused attempt is closed with the reason, observed once, and its deployment is not asked again."""
    observed = []

    class Refusing:
        @hookimpl
        async def before_attempt(self, attempt):
            return Refusal(reason="full", retry_after_s=3.0) if attempt.deployment.id == "chat-a" else None

        @hookimpl
        def on_error(self, attempt):
            observed.append((attempt.number, attempt.error.message, attempt.error.retry_after_s))

    class Never:
        @hookimpl
        async def before_attempt(self, attempt):
            assert attempt.deployment.id != "chat-a", "asked after a refusal"

    async with harness([plugin(Refusing), plugin(Never)]) as h:
        result = await h.request()
        assert observed == [(1, "refusing: full", 3.0)]
        assert [a.outcome for a in result.attempts] == [Outcome.ERROR, Outcome.OK]
        assert h.faults == {}


async def test_execute_fires_only_for_the_plugin_the_route_names(harness, plugin):
    """The named plugin makes the attempts; its headers are added to the answer; no other plugin runs."""

    class Named:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="named")

        @hookimpl
        async def execute(self, ctx, route, upstream):
            call = upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body={}))
            if ctx.stream:
                return Execution(chunks=call.chunks(), headers={"x-named": "stream"})
            return Execution(response=await call.response(), headers={"x-named": "plain"})

    class Other:
        @hookimpl
        async def execute(self, ctx):
            raise AssertionError("not the one the route names")

    async with harness([plugin(Named), plugin(Other)]) as h:
        plain = await h.request(script=ok("hi"))
        assert (plain.text, plain.headers["x-named"], len(plain.attempts)) == ("hi", "plain", 1)
        stream = await h.request(stream=True, script=ok("hi there"))
        assert (stream.text, stream.headers["x-named"]) == ("hi there", "stream")


@pytest.mark.parametrize(
    "answer",
    [
        "text",
        Execution(),
        Execution(response=object(), chunks=object()),
        RuntimeError("broken"),
        asyncio.CancelledError(),
    ],
    ids=lambda answer: type(answer).__name__,
)
async def test_execute_that_fails_becomes_a_plain_call(harness, plugin, answer):
    """Whatever goes wrong before anything was answered, the client gets a plain answer, and the fault is counted."""

    class Broken:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="broken")

        @hookimpl
        async def execute(self, ctx):
            if isinstance(answer, BaseException):
                raise answer
            return answer

    async with harness([plugin(Broken)]) as h:
        result = await h.request(script=ok("plain"))
        assert (result.text, h.faults) == ("plain", {"broken.execute": 1})


async def test_execute_that_declines_leaves_the_attempt_to_the_gateway(harness, plugin):
    """None is an answer, not a fault."""

    class Declining:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="declining")

        @hookimpl
        async def execute(self, ctx):
            asked.append(ctx.request_id)

    asked = []
    async with harness([plugin(Declining)]) as h:
        result = await h.request(script=ok("plain"))
        assert (result.text, asked, h.faults) == ("plain", [result.request_id], {})


async def test_execute_of_an_unknown_plugin_becomes_a_plain_call(harness, plugin):
    """A route that names a plugin without ``execute`` is a counted fault, not an error for the client."""

    class Naming:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="nobody")

    class Having:
        @hookimpl
        async def execute(self, ctx):
            raise AssertionError("not named")

    async with harness([plugin(Naming), plugin(Having)]) as h:
        assert (await h.request(script=ok("plain"))).text == "plain"
        assert h.faults == {"naming.pre_route": 1}, "the plugin that names it is at fault"


async def test_execute_may_end_with_an_upstream_error(harness, plugin):
    """The attempts did their best: an UpstreamError is the final answer and no fault, at once or in a stream."""

    class Failing:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="failing")

        @hookimpl
        async def execute(self, ctx, route, upstream):
            if not ctx.stream:
                raise UpstreamError("nobody answers", status=503, error_class="server")
            request = UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body=ctx.body, stream=True)
            await anext(upstream.start(request).chunks())

            async def chunks():
                yield Chunk(has_content=True, text="half", raw={"choices": [{"delta": {"content": "half"}}]})
                raise UpstreamError("gone", status=503, error_class="server")

            return Execution(chunks=chunks())

    async with harness([plugin(Failing)]) as h:
        assert (await h.request()).status == 503
        stream = await h.request(stream=True)
        assert (stream.status, stream.text, stream.error.status) == (200, "half", 503)
        assert h.faults == {}


ENDINGS = pytest.mark.parametrize(
    ("step", "stream", "outcome"),
    [
        (ok(), False, Outcome.OK),
        (ok(), True, Outcome.OK),
        (error(500), False, Outcome.ERROR),
        (breaks(1), True, Outcome.ERROR),
        (disconnect(1), True, Outcome.DISCONNECTED),
        (cancel(1), True, Outcome.CANCELLED),
        (cancel(), False, Outcome.CANCELLED),
    ],
)


@pytest.mark.parametrize(
    ("step", "fired"),
    [
        (ok(latency_s=0.2, piece_s=1.0), 1),
        (breaks(2, latency_s=0.2), 1),
        (disconnect(1, latency_s=0.2), 1),
        (error(500, latency_s=0.2), 0),
    ],
)
async def test_first_token_fires_once_for_each_stream_that_begins(harness, plugin, step, fired):
    """At the first piece of content and not at the end, while the attempt is open; a failing plugin affects no other."""
    seen, ended = [], []

    class Failing:
        @hookimpl
        def first_token(self):
            raise RuntimeError("on purpose")

    class Watching:
        @hookimpl
        async def startup(self, services):
            self.clock = services.clock

        @hookimpl
        def first_token(self, ctx, attempt, first_token_ms):
            seen.append((attempt.request_id == ctx.request_id, attempt.outcome, first_token_ms))
            assert not ended

        @hookimpl
        def post_response(self, attempt):
            ended.append(attempt.first_token_ms)

        @hookimpl
        def on_error(self, attempt):
            ended.append(attempt.first_token_ms)

    async with harness([plugin(Failing), plugin(Watching)]) as h:
        await h.request(script=step, stream=True, retries=0)
        assert seen == [(True, None, pytest.approx(200.0))] * fired
        assert ended == [pytest.approx(200.0) if fired else None]
        assert sum(h.faults.values()) == fired
        await h.request(script=ok(latency_s=0.2), retries=0)
        assert len(seen) == fired, "a plain answer has no first token"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", [ok(), error(400), breaks(1), disconnect(), cancel()])
async def test_answered_fires_once_for_each_request_before_it_is_settled(harness, plugin, step, *, stream):
    """However it ends; a failing plugin affects no other."""
    seen = []

    class Failing:
        @hookimpl
        def answered(self):
            raise RuntimeError("on purpose")

    class Watching:
        @hookimpl
        def answered(self, ctx):
            seen.append(("answered", ctx.request_id))

        @hookimpl
        async def settle(self, settlement):
            seen.append(("settle", settlement.request_id))

    async with harness([plugin(Failing), plugin(Watching)]) as h:
        result = await h.request(script=step, stream=stream, retries=0)
        await h.settled()
        assert seen == [("answered", result.ctx.request_id), ("settle", result.ctx.request_id)]
        assert h.faults == {"failing.answered": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_post_response_can_ask_what_the_model_said(harness, plugin, *, stream):
    """Text, tool calls and finish reason, only when called: an answer that no plugin asks for is never read."""
    seen = []
    call = ToolCall(name="weather", arguments='{"city":"Oslo"}')

    class Reader:
        @hookimpl
        def post_response(self, answer):
            seen.append(answer())

    async with harness([plugin(Reader)]) as h:
        await h.request(script=ok("two words", tool_calls=[call]), stream=stream)
    assert seen == [Answer(text="two words", tool_calls=(call,), finish_reason="tool_calls")]
    assert "two words" not in repr(seen)
    assert "Oslo" not in repr(seen)


async def test_an_attempt_closed_without_its_text_has_no_answer(harness, plugin):
    """A gateway that cannot read the answer logs it; the hook runs all the same."""
    seen = []

    class Reader:
        @hookimpl
        def post_response(self, ctx, attempt, answer):
            seen.append((attempt.outcome, answer()))

    async with harness([plugin(Reader)]) as h:
        exchange = h.host.open(replace((await h.request(script=error(400))).ctx, request_id="later"))
        _, opened = await exchange.begin(h.gateway.catalog.deployments()[0])
        opened.end(Outcome.OK)
        exchange.close(200)
    assert seen == [(Outcome.OK, None)]


@ENDINGS
async def test_post_response_fires_once_for_each_attempt_that_succeeds(harness, plugin, *, step, stream, outcome):
    """Every plugin, in order, with the closed attempt; never for one that did not succeed."""
    seen = []

    class First:
        @hookimpl
        def post_response(self, ctx, attempt):
            seen.append(("first", ctx.request_id, attempt))

    class Second:
        @hookimpl
        def post_response(self, ctx, attempt):
            seen.append(("second", ctx.request_id, attempt))

    async with harness([plugin(First), plugin(Second)]) as h:
        result = await h.request(script=step, stream=stream, retries=0)
        (attempt,) = result.attempts
        assert attempt.outcome is outcome
        both = [("first", result.request_id, attempt), ("second", result.request_id, attempt)]
        assert seen == (both if outcome is Outcome.OK else [])


@ENDINGS
async def test_on_error_fires_once_for_each_attempt_that_does_not_succeed(harness, plugin, *, step, stream, outcome):
    """Failed, broken off, cancelled, left by its client: every plugin, in order, with the closed attempt."""
    seen = []

    class First:
        @hookimpl
        def on_error(self, ctx, attempt):
            seen.append(("first", ctx.request_id, attempt))

    class Second:
        @hookimpl
        def on_error(self, attempt):
            seen.append(("second", attempt.request_id, attempt))

    async with harness([plugin(First), plugin(Second)]) as h:
        result = await h.request(script=step, stream=stream, retries=0)
        (attempt,) = result.attempts
        both = [("first", result.request_id, attempt), ("second", result.request_id, attempt)]
        assert seen == ([] if outcome is Outcome.OK else both)
