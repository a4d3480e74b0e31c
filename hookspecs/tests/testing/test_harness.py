"""The harness: a request ends as the script says, and the plugins see what they would see behind a real gateway."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import ConfigError, PluginLoadError
from pointsman.testing import Harness, breaks, cancel, deployment, disconnect, error, never, ok
from pointsman.testing.harness import NotSettledError
from pointsman.types import (
    AttemptKind,
    Denial,
    Endpoint,
    ErrorClass,
    Event,
    Execution,
    Identity,
    Outcome,
    Refusal,
    Status,
    UpstreamRequest,
)


class ActorConfig(PluginConfig):
    """A number."""

    number: int = Field(default=1, ge=0)


class Actor:
    """Does what a test tells it, and writes down every settlement."""

    def __init__(self, config):
        self.config = config
        self.contexts = []
        self.events = []
        self.denial = self.route = self.narrow = self.refuse = self.work = None
        self.failing = 0

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def authenticate(self, credential):
        if credential.api_key == "sk-gone":
            return Denial(status=403, code="gone", message="This key is gone.", headers={"x-why": "gone"})
        return Identity(tenant="t1", claims={"plan": "gold"}) if credential.api_key == "sk-t1" else None

    @hookimpl
    async def pre_route(self, ctx, route):
        self.contexts.append(ctx)
        return self.denial or (self.route(route) if self.route else None)

    @hookimpl
    def select(self, candidates):
        return self.narrow(candidates) if self.narrow else None

    @hookimpl
    async def before_attempt(self, attempt):
        return self.refuse(attempt) if self.refuse else None

    @hookimpl
    async def execute(self, ctx, route, upstream):
        return await self.work(ctx, route, upstream)

    @hookimpl
    async def settle(self, settlement):
        if self.failing:
            self.failing -= 1
            raise RuntimeError("not now")
        await self.services.store.put(settlement.request_id, str(settlement.outcome))

    @hookimpl
    async def on_event(self, event):
        self.events.append(event)

    @hookimpl
    def status(self):
        return Status(ok=True, summary=f"number {self.config.number}")

    @hookimpl
    def routes(self):
        return [HttpRoute("/who", lambda request: JSONResponse({"who": request.headers["x-pointsman-user"]}))]


INFO = PluginInfo(name="actor", config=ActorConfig, factory=Actor)


@pytest.fixture
async def h(harness, leak_check):
    async with harness([INFO], tracing=True) as h:
        yield h


@pytest.fixture
def actor(h):
    return h.plugin("actor")


def outcomes(result):
    return [(a.deployment.id, a.kind.value, a.outcome.value) for a in result.attempts]


# -- how a request ends -----------------------------------------------------------------------------------------------


async def test_a_plain_answer(h):
    """Usage, cost, time, status and headers of a plain answer are where they belong."""
    result = await h.request(script=ok("hello", latency_s=0.25, headers={"x-a": "b"}, model="gpt-x"))
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
    headers = {"Authorization": "Bearer x", "X-API-Key": "x", "Cookie": "x", "X-Custom": "seen"}
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
    root = next(span for span in h.spans if span.name == "pointsman chat")
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (trace_id, span_id)


# -- the worker's life ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_a_restart_keeps_the_store(harness, leak_check, store):
    """Another worker finds what the first one stored; ids go on, and are never the same twice."""
    async with harness([INFO], store=store) as h:
        first = await h.request()
        await h.settled()
        await h.restart()
        second = await h.request()
        await h.settled()
        assert await h.stored("actor") == {first.request_id: "ok", second.request_id: "ok"}
        assert first.request_id < second.request_id
        assert h.host.worker == "worker-2"


@pytest.mark.parametrize("store", ["memory", "disk"])
async def test_a_crash_loses_nothing_that_was_journaled(harness, leak_check, store):
    """After a crash the next worker settles what the dead one left, once its heartbeat is gone."""
    async with harness([INFO], store=store) as h:
        h.plugin("actor").failing = 1
        result = await h.request()
        with pytest.raises(NotSettledError, match=r"actor.*moved on"):
            await h.settled()
        await h.crash()
        await h.start()
        await h.settled()
        assert await h.stored("actor") == {}
        for _ in range(5):
            await h.clock.advance(5.0)
            await asyncio.sleep(0.05)
        await h.settled()
        assert await h.stored("actor") == {result.request_id: "ok"}


async def test_nothing_of_a_dead_worker_reaches_the_store(h):
    """A crashed worker's connection is cut for ever; stopping it afterwards is harmless."""
    dead = h.plugin("actor").services.store
    await h.crash()
    with pytest.raises(Exception, match="taken it away"):
        await dead.put("x", 1)
    await h.stop()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = h.admin


async def test_two_workers_share_a_store(harness, leak_check):
    """What one worker stores the other one reads; their ids never clash."""
    async with harness([INFO], name="one") as one, harness([INFO], name="two", store=one.store, clock=one.clock) as two:
        results = [await worker.request() for worker in (one, two, one, two)]
        await one.settled()
        await two.settled()
        assert await one.stored("actor") == await two.stored("actor") == {r.request_id: "ok" for r in results}
        assert len({r.request_id for r in results}) == 4
        assert {one.host.worker, two.host.worker} == {"one-1", "two-1"}


async def test_a_settlement_that_fails_is_tried_again_when_time_passes(h, actor):
    actor.failing = 2
    result = await h.request()
    with pytest.raises(NotSettledError):
        await h.settled()
    await h.clock.advance(10.0)
    await h.settled()
    assert await h.stored("actor") == {result.request_id: "ok"}
    assert h.faults == {"actor.settle": 2}


async def test_a_store_can_be_taken_away(h, actor):
    """While it is down calls fail as those of a dead backend do; afterwards everything goes on."""
    h.store.down = True
    with pytest.raises(Exception, match="the store is down"):
        await actor.services.store.get("x")
    h.store.down = False
    await actor.services.store.put("x", 1)
    assert h.store.calls["put"] >= 1


async def test_events_go_around(h, actor):
    """What a plugin announces is remembered with its source and reaches everybody; so does what the test announces."""
    actor.services.publish(Event())
    h.publish(Event(source="test"))
    await h.settled()
    assert h.events == [Event(source="actor")]
    assert actor.events == [Event(source="actor"), Event(source="test")]


async def test_admin_routes_are_below_pointsman(h):
    """Paths are those below ``/pointsman``; the caller is the administrator; what is not there is a 404."""
    assert (await h.admin.get("/actor/who")).json() == {"who": "admin"}
    assert (await h.admin.get("/status")).json()["plugins"][0]["summary"] == "number 1"
    assert (await h.admin.get("/nobody")).status_code == 404
    assert h.status("actor").ok


async def test_spans_are_kept_only_when_asked_for(h, harness):
    await h.request()
    await h.settled()
    assert {"pointsman chat", "pre_route", "attempt chat-a", "before_attempt", "settle"} <= {s.name for s in h.spans}
    async with harness([INFO]) as quiet:
        await quiet.request()
        assert quiet.spans == []


async def test_wrong_configuration_stops_the_start(harness, leak_check):
    """What a real start refuses is refused here, and nothing is left behind."""
    with pytest.raises(PluginLoadError, match="number"):
        await harness([(INFO, {"number": -1})], store="disk").start()
    with pytest.raises(ConfigError, match="twice"):
        await harness([INFO, INFO]).start()
    with pytest.raises(ConfigError, match="journal_window"):
        await harness([INFO], host={"journal_windows_ms": 5}).start()


def test_wrong_stores_are_refused():
    with pytest.raises(ValueError, match="choose memory or disk"):
        Harness(store="redis")
    with pytest.raises(ValueError, match="needs a path"):
        Harness(store="disk")


async def test_everything_can_be_other_than_usual(harness, leak_check):
    """Deployments, prices, script and worker can be chosen; a harness without plugins serves too."""
    async with harness(deployments=[deployment("solo")], prices={}, script=error(500)) as h:
        result = await h.request(model="solo", retries=0)
        assert (result.status, result.attempts[0].cost_usd_micros) == (500, None)
        await h.settled()


async def test_the_host_can_be_changed_before_it_starts(harness, leak_check):
    seen = []
    h = harness([INFO])
    h.before_start = lambda host: seen.append(host.plugins.names())
    async with h:
        await h.restart()
    assert seen == [["actor"], ["actor"]]
