"""The hooks of a worker and of a request: when each fires, with what, how often, and how results combine."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, hookimpl
from pointsman.testing import breaks, cancel, disconnect, error, ok
from pointsman.types import Denial, Event, Identity, Outcome, Reservation, Status

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


async def test_inherit_gets_the_plugin_that_a_reload_replaces(harness, plugin):
    """Once it has started and before its first request; not at the start, and not in a reload that fails."""
    log = []

    class Config(PluginConfig):
        number: int
        breaks: bool = False

    class Heir:
        def __init__(self, config):
            self.config, self.known = config, [config.number]

        @hookimpl
        async def startup(self, services):
            if self.config.breaks:
                raise RuntimeError("told to fail")
            log.append(f"startup {self.config.number}")

        @hookimpl
        async def inherit(self, previous):
            assert type(previous) is type(self)
            self.known = previous.known
            log.append(f"inherit {self.config.number} from {previous.config.number}")

        @hookimpl
        async def pre_route(self, route):
            log.append(f"request to {self.config.number}, which knows {self.known}")

    heir, other = plugin(Heir, config=Config), plugin(Heir, "other", config=Config)
    async with harness([(heir, {"number": 1})]) as h:
        assert (await h.reload([(heir, {"number": 2}), (other, {"number": 7, "breaks": True})])).error
        assert log == ["startup 1", "startup 2"]
        await h.reload([(heir, {"number": 3}), (other, {"number": 7})])
        await h.request()
        assert log[2:] == [
            "startup 3", "startup 7", "inherit 3 from 1", "request to 3, which knows [1]", "request to 7, which knows [7]"
        ]  # fmt: skip
        assert not h.faults


async def test_inherit_that_fails_is_a_fault_and_the_reload_goes_on(harness, plugin):
    class Config(PluginConfig):
        number: int

    class Heir:
        def __init__(self, config):
            self.number = config.number

        @hookimpl
        async def inherit(self, previous):
            raise SystemExit(self.number)

        @hookimpl
        async def pre_route(self, route):
            return route.with_labels(number=str(self.number))

    heir = plugin(Heir, config=Config)
    async with harness([(heir, {"number": 1})]) as h:
        result = await h.reload([(heir, {"number": 2})])
        assert (result.error, result.started) == (None, ("heir",))
        assert (await h.request()).settlement.labels == {"number": "2"}
        assert h.faults == {"heir.inherit": 1}


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
    """In order; None passes to the next plugin, the first Identity or Denial wins, and without one the result is None."""
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


# -- afterwards -------------------------------------------------------------------------------------------------------


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
        assert sorted(seen, key=lambda row: row[0]) == [
            ("first", result.request_id, settlement),
            ("second", result.request_id, settlement),
        ]
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


async def test_only_the_status_that_is_looked_at_is_computed(harness, plugin):
    """A plugin that wants to know one other plugin's status does not make all of them compute theirs."""
    asked = []

    class One:
        @hookimpl
        def status(self):
            asked.append("one")
            return Status(ok=True, summary="fine")

    class Other:
        @hookimpl
        def status(self):
            asked.append("other")
            return Status(ok=True, summary="fine")

    async with harness([plugin(One), plugin(Other)]) as h:
        statuses = h.host.statuses()
        assert (list(statuses), len(statuses), asked) == (["one", "other"], 2, [])
        assert statuses["other"] is statuses["other"]
        assert (statuses.get("third"), asked) == (None, ["other"])


async def test_status_is_collected_from_everybody(harness, plugin):
    """Each plugin's own status; one without the hook, or that returns None, is running."""

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
