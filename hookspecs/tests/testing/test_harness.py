"""The harness: a request ends as the script says, and the plugins see what they would see behind a real gateway."""

from __future__ import annotations

import asyncio

import pytest

from pointsman.testing import breaks, cancel, disconnect, error, never, ok
from pointsman.types import (
    CREDENTIAL_HEADERS,
    AttemptKind,
    Denial,
    Endpoint,
    ErrorClass,
    Execution,
    Outcome,
    Refusal,
    UpstreamRequest,
)


def outcomes(result):
    return [(a.deployment.id, a.kind.value, a.outcome.value) for a in result.attempts]


# -- how a request ends -----------------------------------------------------------------------------------------------


async def test_a_plain_answer(h):
    """Usage, cost, time, status and headers, without credentials, of a plain answer are where they belong."""
    headers = {**dict.fromkeys(CREDENTIAL_HEADERS, "secret"), "x-a": "b"}
    result = await h.request(script=ok("hello", latency_s=0.25, headers=headers, model="gpt-x"))
    (attempt,) = result.attempts
    assert (result.status, result.outcome, result.text, result.error) == (200, Outcome.OK, "hello", None)
    assert (attempt.duration_ms, attempt.first_token_ms, attempt.status_code) == (250.0, None, 200)
    assert (attempt.headers, attempt.model, attempt.usage.total_tokens) == ({"x-a": "b"}, "gpt-x", 15)
    assert result.settlement.cost_usd_micros == attempt.cost_usd_micros == 20
    assert result.settlement.usage == attempt.usage
    assert result.headers == {"x-pointsman-request-id": result.request_id, "x-pointsman-attempts": "1"}
    assert (result.settlement.started_at, result.settlement.finished_at) == (h.clock.now() - 0.25, h.clock.now())


async def test_a_stream(h):
    """A stream has a first-token time, and its answer is whole."""
    result = await h.request(stream=True, script=ok("one two three", latency_s=0.5, piece_s=0.1))
    (attempt,) = result.attempts
    assert (result.text, result.outcome) == ("one two three", Outcome.OK)
    assert (attempt.first_token_ms, round(attempt.duration_ms)) == (500.0, 700)
    assert result.settlement.first_token_ms == 500.0


async def test_retries_go_to_the_deployment_tried_least(h):
    result = await h.request(script=[error(429, retry_after_s=2.0), error(500), ok()])
    assert outcomes(result) == [
        ("chat-a", "primary", "error"),
        ("chat-b", "retry", "error"),
        ("chat-a", "retry", "ok"),
    ]
    assert result.attempts[0].error.retry_after_s == 2.0
    assert result.headers["x-pointsman-attempts"] == "3"


async def test_fallbacks_come_after_the_retries(h):
    result = await h.request(script={"chat": error(503), "backup": ok()}, retries=1, fallbacks=["backup"])
    assert outcomes(result) == [
        ("chat-a", "primary", "error"),
        ("chat-b", "retry", "error"),
        ("backup-a", "fallback", "ok"),
    ]
    assert result.outcome is Outcome.OK


async def test_the_routes_fallbacks_go_before_the_gateways(h, actor):
    actor.route = lambda route: type(route)(target="backup", fallbacks=("chat",))
    result = await h.request(script={"backup": error(500)}, retries=0, fallbacks=["backup"])
    assert outcomes(result) == [("backup-a", "primary", "error"), ("chat-a", "fallback", "ok")]


async def test_the_clients_own_fault_is_not_repeated(h):
    result = await h.request(script=error(400))
    assert outcomes(result) == [("chat-a", "primary", "error")]
    assert (result.status, result.outcome, result.error.kind) == (400, Outcome.ERROR, ErrorClass.CLIENT)


async def test_when_nothing_helps_the_last_error_is_the_answer(h):
    result = await h.request(script=error(429, retry_after_s=1.5))
    assert (result.status, result.headers["retry-after"], len(result.attempts)) == (429, "2", 3)
    assert (await h.request(script=error(None))).status == 502


async def test_a_stream_that_breaks_is_not_repeated(h):
    """After the first piece there is no way back: status 200, outcome error, tokens estimated."""
    result = await h.request(stream=True, script=breaks(2))
    assert (result.status, result.outcome, result.text) == (200, Outcome.ERROR, "This is")
    assert result.error.kind is ErrorClass.CONNECTION
    (attempt,) = result.attempts
    assert (attempt.usage.completion_tokens, attempt.usage.estimated) == (2, True)
    broken_before = await h.request(stream=True, script=[breaks(0), ok()])
    assert broken_before.outcome is Outcome.OK


async def test_a_client_that_leaves_a_stream(h):
    result = await h.request(stream=True, script=disconnect(2))
    assert (result.outcome, result.text, result.status) == (Outcome.DISCONNECTED, "This is", 200)
    assert outcomes(result) == [("chat-a", "primary", "disconnected")]
    before = await h.request(stream=True, script=disconnect(0))
    assert (before.outcome, before.status, before.attempts[0].usage) == (Outcome.DISCONNECTED, 0, None)
    told = await h.request(stream=True, script=ok(), leave_after_pieces=3)
    assert (told.outcome, told.attempts[0].usage.completion_tokens) == (Outcome.DISCONNECTED, 3)


async def test_a_client_that_leaves_a_plain_request(h):
    """The provider is not told: its answer is paid for, and the request counts as disconnected."""
    result = await h.request(script=disconnect())
    assert (result.outcome, result.attempts[0].outcome, result.attempts[0].cost_usd_micros) == (
        Outcome.DISCONNECTED,
        Outcome.OK,
        20,
    )


async def test_a_gateway_that_cancels(h):
    for stream in (False, True):
        result = await h.request(stream=stream, script=cancel(1))
        assert (result.outcome, result.status, result.attempts[0].outcome) == (
            Outcome.CANCELLED,
            0,
            Outcome.CANCELLED,
        )


@pytest.mark.parametrize("moves_clock", [True, False])
async def test_a_test_that_cancels(h, moves_clock):
    """A request that is cancelled from outside is settled as cancelled, and the cancellation is not swallowed."""
    task = asyncio.create_task(h.request(script=never(), moves_clock=moves_clock))
    await h.clock.quiet()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [s.outcome for s in h.settlements] == [Outcome.CANCELLED]


async def test_time_can_stay_with_the_test(h):
    """Without ``moves_clock`` the request waits until the test has moved the clock."""
    task = asyncio.create_task(h.request(script=ok(latency_s=5.0), moves_clock=False))
    await h.clock.advance(4.0)
    assert not task.done()
    await h.clock.advance(1.0)
    assert (await task).attempts[0].duration_ms == 5000.0


async def test_an_unknown_model_is_the_clients_fault(h):
    result = await h.request(model="nobody")
    assert (result.status, result.outcome, result.attempts) == (400, Outcome.ERROR, ())
    assert "nobody" in result.error.message


# -- what plugins decide ----------------------------------------------------------------------------------------------


async def test_a_denial_is_the_answer(h, actor):
    """Status, headers and ``retry-after`` in whole seconds are those of the denial; no attempt is made."""
    actor.denial = Denial(status=429, code="full", message="Wait.", retry_after_s=1.2, headers={"x-limit": "3"})
    result = await h.request()
    assert (result.status, result.outcome, result.attempts) == (429, Outcome.DENIED, ())
    assert result.headers == {"x-limit": "3", "retry-after": "2", "x-pointsman-request-id": result.request_id}
    assert result.denial.plugin == "actor"
    actor.denial = Denial(status=429, code="full", message="Wait.")
    assert (await h.request()).headers["retry-after"] == "1"
    actor.denial = Denial(status=403, code="no", message="No.")
    assert "retry-after" not in (await h.request()).headers


async def test_a_route_to_a_deployment_keeps_to_it(h, actor):
    """A target that is a deployment id gets every attempt on it, through its group."""
    actor.route = lambda route: route.to("chat-b").with_labels(arm="b").with_headers({"x-arm": "b"})
    result = await h.request(script=error(500), retries=1)
    assert [a.deployment.id for a in result.attempts] == ["chat-b", "chat-b"]
    assert [dict(a.labels) for a in result.attempts] == [{"arm": "b"}] * 2
    assert result.headers["x-arm"] == "b"


async def test_selections_are_in_the_result(h, actor):
    """Who was left before each attempt can be looked at; when nobody is left, the next model group is asked."""
    actor.narrow = lambda candidates: [c.scored(0.5) for c in candidates if c.deployment.id != "chat-a"]
    result = await h.request()
    assert [[(c.deployment.id, c.score) for c in turn] for turn in result.selections] == [[("chat-b", 0.5)]]
    actor.narrow = lambda candidates: [c.drop("full") for c in candidates]
    result = await h.request(fallbacks=["backup"])
    assert (result.status, result.selections, result.attempts) == (429, ((), ()), ())


async def test_a_refused_attempt_is_not_sent(h, actor):
    """The provider's script is not used up by an attempt that a plugin refuses."""
    actor.refuse = lambda attempt: Refusal(reason="busy") if attempt.number == 1 else None
    result = await h.request(script=[ok("first")])
    assert outcomes(result) == [("chat-a", "primary", "error"), ("chat-b", "retry", "ok")]
    assert result.attempts[0].error.kind is ErrorClass.REFUSED
    assert result.text == "first"


def race(*targets):
    async def work(ctx, route, upstream):
        calls = [upstream.start(UpstreamRequest(target=t, kind=AttemptKind.HEDGE, body={})) for t in targets]
        if ctx.stream:
            for loser in calls[1:]:
                await loser.cancel()
            return Execution(chunks=calls[0].chunks())
        tasks = [asyncio.create_task(call.response()) for call in calls]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = next(task for task in tasks if task.done())
        for call, task in zip(calls, tasks, strict=True):
            if task is not winner:
                await call.cancel()
                await asyncio.wait({task})
        return Execution(response=await winner, headers={"x-pointsman-raced": "2"})

    return work


@pytest.fixture
def racing(actor):
    actor.route = lambda route: type(route)(target=route.target, executor="actor")
    actor.work = race("chat-a", "chat-b")
    return actor


async def test_an_executor_makes_the_attempts(h, racing):
    """Two legs in fake time: the faster one answers, the slower one is cancelled, both are in the settlement."""
    result = await h.request(script={"chat-a": ok("slow", latency_s=3.0), "chat-b": ok("fast", latency_s=1.0)})
    assert (result.text, result.headers["x-pointsman-raced"]) == ("fast", "2")
    assert outcomes(result) == [("chat-a", "hedge", "cancelled"), ("chat-b", "hedge", "ok")]
    assert h.clock.monotonic() == 1.0


async def test_an_executor_streams(h, racing):
    result = await h.request(stream=True, script=ok("one two three"))
    assert (result.text, result.outcome) == ("one two three", Outcome.OK)
    left = await h.request(stream=True, script=ok("one two three"), leave_after_pieces=2)
    assert (left.outcome, left.attempts[0].outcome) == (Outcome.DISCONNECTED, Outcome.DISCONNECTED)
    assert h.gateway.upstream.running == []


async def test_an_executors_error_is_the_answer(h, racing):
    result = await h.request(script=error(429, retry_after_s=4.0))
    assert (result.status, result.error.kind, result.headers["retry-after"]) == (429, ErrorClass.RATE_LIMIT, "4")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_executor_that_fails_becomes_a_plain_call(h, racing, stream):
    async def broken(ctx, route, upstream):
        raise RuntimeError("no")

    racing.work = broken
    result = await h.request(stream=stream, script=ok("plain"))
    assert (result.text, result.outcome, h.faults) == ("plain", Outcome.OK, {"actor.execute": 1})
    assert outcomes(result) == [("chat-a", "primary", "ok")]


# -- who calls --------------------------------------------------------------------------------------------------------


async def test_authentication_is_asked_for_a_key(h, actor):
    """A known key brings its identity, a denied one its denial, an unknown one 401; without a key nobody is asked."""
    result = await h.request(api_key="sk-t1")
    assert (result.ctx.identity.tenant, result.ctx.identity.claims) == ("t1", {"plan": "gold"})
    assert "sk-t1" not in repr(result)
    gone = await h.request(api_key="sk-gone")
    assert (gone.status, gone.headers, gone.outcome, gone.ctx) == (403, {"x-why": "gone"}, Outcome.DENIED, None)
    unknown = await h.request(api_key="sk-nobody")
    assert (unknown.status, unknown.request_id, unknown.attempts) == (401, "", ())
    assert len(actor.contexts) == len(h.settlements) == 1


async def test_credentials_never_reach_a_plugin(h, actor):
    headers = {**{name.title(): "x" for name in CREDENTIAL_HEADERS}, "X-Custom": "seen"}
    await h.request(headers=headers, session_id="s1", call_id="c1", endpoint=Endpoint.MESSAGES)
    (ctx,) = actor.contexts
    assert ctx.headers == {"x-custom": "seen"}
    assert (ctx.session_id, ctx.call_id, ctx.endpoint) == ("s1", "c1", Endpoint.MESSAGES)
    with pytest.raises(TypeError):
        ctx.body["x"] = 1


async def test_a_callers_trace_goes_on(h):
    """A ``traceparent`` header makes the request's span a child of the caller's."""
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    await h.request(headers={"traceparent": f"00-{trace_id}-{span_id}-01"})
    await h.settled()
    root = next(span for span in h.spans if span.attributes.get("pointsman.kind") == "request")
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (trace_id, span_id)
