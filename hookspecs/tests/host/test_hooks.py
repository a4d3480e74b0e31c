"""Every hook: when it fires, with what, how often, and how the results of several plugins combine."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from pointsman import hookimpl
from pointsman.errors import UpstreamError
from pointsman.testing import breaks, cancel, disconnect, error, ok
from pointsman.types import (
    AttemptKind,
    Chunk,
    Denial,
    Event,
    Execution,
    Identity,
    Outcome,
    Refusal,
    Reservation,
    Status,
    UpstreamRequest,
)

pytestmark = pytest.mark.usefixtures("leak_check")


# -- startup and shutdown ---------------------------------------------------------------------------------------------


async def test_startup_fires_once_in_order_after_all_are_built(harness, plugin):
    """Each plugin gets services of its own, in the order of the list, when every plugin of the list exists."""
    log = []

    class First:
        def __init__(self, config):
            log.append("first built")

        @hookimpl
        async def startup(self, services):
            log.append((services.plugin, services.worker))
            await services.store.put("x", "first")

    class Second:
        def __init__(self, config):
            log.append("second built")

        @hookimpl
        async def startup(self, services):
            log.append((services.plugin, await services.store.get("x")))

    async with harness([plugin(First), plugin(Second)]) as h:
        assert log == ["first built", "second built", ("first", h.host.worker), ("second", None)]


async def test_shutdown_fires_in_reverse_order_after_the_last_settlement(harness, plugin):
    """Every request is settled first; then the plugins are shut down from the last to the first, each once."""
    log = []

    class First:
        @hookimpl
        async def settle(self, settlement):
            await asyncio.sleep(0.01)
            log.append("settled")

        @hookimpl
        async def shutdown(self):
            log.append("first")

    class Second:
        @hookimpl
        async def shutdown(self):
            log.append("second")

    async with harness([plugin(First), plugin(Second)]) as h:
        await h.request()
        await h.stop()
        await h.stop()
    assert log == ["settled", "second", "first"]


# -- who calls --------------------------------------------------------------------------------------------------------


async def test_authenticate_stops_at_the_first_answer(harness, plugin):
    """In order; None passes the question on, the first Identity or Denial is the answer, and nobody knows is None."""
    asked = []

    class First:
        @hookimpl
        async def authenticate(self, credential):
            asked.append(("first", credential.api_key, credential.path, dict(credential.headers)))
            return Denial(status=403, code="gone", message="Gone.") if credential.api_key == "gone" else None

    class Second:
        @hookimpl
        async def authenticate(self, credential):
            asked.append("second")
            return Identity(tenant="t") if credential.api_key == "known" else None

    async with harness([plugin(First), plugin(Second)]) as h:
        assert await h.authenticate("known", path="/v1/messages", headers={"X-A": "b"}) == Identity(tenant="t")
        assert asked == [("first", "known", "/v1/messages", {"x-a": "b"}), "second"]
        denial = await h.authenticate("gone")
        assert (denial.code, denial.plugin, len(asked)) == ("gone", "first", 3)
        assert await h.authenticate("nobody") is None


# -- admission --------------------------------------------------------------------------------------------------------


async def test_pre_route_sees_the_route_so_far(harness, plugin):
    """A pipeline in order: each sees what the plugins before it made of the route, None leaves it as it is."""
    seen = []

    class First:
        @hookimpl
        async def pre_route(self, ctx, route):
            seen.append((ctx.model, route.target))
            return route.to("backup").with_labels(arm="b")

    class Silent:
        @hookimpl
        async def pre_route(self, route):
            seen.append(route.target)

    class Last:
        @hookimpl
        async def pre_route(self, route):
            seen.append(dict(route.labels))
            return route.with_headers({"x-arm": route.labels["arm"]})

    async with harness([plugin(First), plugin(Silent), plugin(Last)]) as h:
        result = await h.request()
        assert seen == [("chat", "chat"), "backup", {"arm": "b"}]
        assert (result.route.target, result.headers["x-arm"]) == ("backup", "b")
        assert [a.deployment.id for a in result.attempts] == ["backup-a"]


async def test_pre_route_ends_at_the_first_denial(harness, plugin):
    """Later plugins are not asked; earlier ones learn of it in settle, with what they had reserved."""
    seen = []

    class Reserving:
        @hookimpl
        async def pre_route(self, ctx, route):
            return route.with_reservation(Reservation(plugin="reserving", id=ctx.request_id, expires_at=1.0))

        @hookimpl
        async def settle(self, settlement):
            seen.append((settlement.outcome, settlement.denial.plugin, [r.id for r in settlement.reservations]))

    class Denying:
        @hookimpl
        async def pre_route(self, ctx):
            return Denial(status=403, code="no", message="No.")

    class Never:
        @hookimpl
        async def pre_route(self, ctx):
            raise AssertionError("asked after a denial")

    async with harness([plugin(Reserving), plugin(Denying), plugin(Never)]) as h:
        result = await h.request()
        await h.settled()
        assert (result.status, result.attempts, h.faults) == (403, (), {})
        assert seen == [(Outcome.DENIED, "denying", [result.request_id])]


async def test_pre_route_cut_off_keeps_what_was_reserved(harness, plugin):
    """A request that is cancelled while a later plugin thinks is settled with the reservations of the earlier ones."""
    thinking = asyncio.Event()

    class Reserving:
        @hookimpl
        async def pre_route(self, ctx, route):
            return route.with_reservation(Reservation(plugin="reserving", id="r", expires_at=1.0))

    class Thinking:
        @hookimpl
        async def pre_route(self, ctx):
            thinking.set()
            await asyncio.Event().wait()

    async with harness([plugin(Reserving), plugin(Thinking)], tracing=True) as h:
        task = asyncio.create_task(h.request())
        await thinking.wait()
        task.cancel()
        await asyncio.wait({task})
        (settlement,) = h.settlements
        assert (settlement.outcome, [r.id for r in settlement.reservations]) == (Outcome.CANCELLED, ["r"])
        assert "pre_route" in {span.name for span in h.spans}


# -- attempts ---------------------------------------------------------------------------------------------------------


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


async def test_select_that_leaves_nobody_ends_the_attempt(harness, plugin):
    """Nobody left: later plugins are not asked with nothing, and the gateway falls back."""
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
    """The named plugin makes the attempts; its headers are added to the answer; nobody else is asked."""

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
        None,
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


async def test_execute_that_nobody_has_becomes_a_plain_call(harness, plugin):
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
        assert h.faults == {"nobody.execute": 1}


async def test_execute_may_end_with_an_upstream_error(harness, plugin):
    """The attempts did their best: an UpstreamError is the final answer and no fault, at once or in a stream."""

    class Failing:
        @hookimpl
        async def pre_route(self, route):
            return type(route)(target=route.target, executor="failing")

        @hookimpl
        async def execute(self, ctx):
            if not ctx.stream:
                raise UpstreamError("nobody answers", status=503, error_class="server")

            async def chunks():
                yield Chunk(has_content=True, text="half")
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


# -- afterwards -------------------------------------------------------------------------------------------------------


@ENDINGS
async def test_settle_fires_once_for_each_request(harness, plugin, *, step, stream, outcome):
    """Every plugin hears of every request once, with all attempts closed, and the answer does not wait for it."""
    seen = []
    answered = asyncio.Event()

    class First:
        @hookimpl
        async def settle(self, ctx, settlement):
            await answered.wait()
            seen.append(("first", ctx.request_id, settlement))

    class Second:
        @hookimpl
        async def settle(self, settlement):
            seen.append(("second", settlement.request_id, settlement))

    async with harness([plugin(First), plugin(Second)]) as h:
        result = await h.request(script=step, stream=stream, retries=1)
        answered.set()
        await h.settled()
        settlement = result.settlement
        assert seen == [("first", result.request_id, settlement), ("second", result.request_id, settlement)]
        assert settlement.outcome is outcome
        assert all(attempt.outcome is not None for attempt in settlement.attempts)


async def test_on_event_hears_every_event_in_order(harness, plugin):
    """Every plugin hears what any plugin announces, one event after another, with its source, off the request path."""
    heard = []

    class Announcing:
        @hookimpl
        async def startup(self, services):
            self.services = services

        @hookimpl
        async def pre_route(self, ctx):
            for _ in range(3):
                self.services.publish(Event())
            assert heard == [], "delivered later"

        @hookimpl
        async def on_event(self, event):
            await asyncio.sleep(0)
            heard.append(("announcing", event.source))

    class Hearing:
        @hookimpl
        async def on_event(self, event):
            heard.append(("hearing", event.source))

    async with harness([plugin(Announcing), plugin(Hearing)]) as h:
        await h.request()
        await h.settled()
        assert heard == [("announcing", "announcing"), ("hearing", "announcing")] * 3


async def test_status_is_collected_from_everybody(harness, plugin):
    """Each plugin's own words; one without the hook, or with nothing to say, is running."""

    class Talking:
        @hookimpl
        def status(self):
            return Status(ok=False, summary="tired", details={"since": 5})

    class Quiet:
        @hookimpl
        def status(self):
            return None

    class Mute:
        pass

    async with harness([plugin(Talking), plugin(Quiet), plugin(Mute)]) as h:
        statuses = h.host.statuses()
        assert statuses["talking"] == Status(ok=False, summary="tired", details={"since": 5})
        assert statuses["quiet"] == statuses["mute"] == Status(ok=True, summary="running")


async def test_routes_are_mounted_under_the_plugins_name(harness, plugin):
    """Collected once, after start-up; a plugin's root needs no slash, and one plugin's routes are not another's."""
    log = []

    class Serving:
        @hookimpl
        async def startup(self, services):
            log.append("startup")

        @hookimpl
        def routes(self):
            log.append("routes")
            return [
                HttpRoute("/", lambda _: JSONResponse("root"), methods=["GET"]),
                HttpRoute("/x/{id}", lambda request: JSONResponse(request.path_params["id"]), methods=["POST"]),
            ]

    class Other:
        @hookimpl
        def routes(self):
            return []

    async with harness([plugin(Serving), plugin(Other)]) as h:
        assert log == ["startup", "routes"]
        for path in ("/serving", "/serving/"):
            assert (await h.admin.get(path)).json() == "root"
        assert (await h.admin.post("/serving/x/7")).json() == "7"
        assert (await h.admin.get("/other/x/7")).status_code == 404
