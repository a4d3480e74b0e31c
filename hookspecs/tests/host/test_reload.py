"""A reload: validated and started first, swapped at once; requests in flight end on what they began with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from pydantic import field_validator
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host import reloading
from pointsman.plugin import observe
from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, Harness
from pointsman.types import Outcome

pytestmark = pytest.mark.usefixtures("leak_check")


class Config(PluginConfig):
    """What the plugin answers with, and how it is broken."""

    name: str = "one"
    breaks: str = ""
    lists: tuple[str, ...] = ()
    raises: bool = False

    @field_validator("breaks")
    @classmethod
    def _breaks(cls, breaks: str) -> str:
        if breaks == "validation":
            raise RuntimeError("the validation is broken")
        if breaks == "validation with exit":
            raise SystemExit(1)
        return breaks

    def warnings(self) -> list[str]:
        """Fail where the test says so."""
        if self.breaks == "warnings":
            raise RuntimeError("the warnings are broken")
        return []

    def notes(self) -> list[str]:
        """Fail where the test says so."""
        return None if self.breaks == "notes" else []  # type: ignore[return-value]  # what it does wrong


class Noted:
    """Notes every hook with the name of its configuration; what is noted outlives the instance."""

    seen: list[tuple[str, str]]

    def __init__(self, config: Config) -> None:
        self.config = config
        self.calls = 0

    def note(self, hook: str) -> None:
        self.calls += 1
        SEEN.append((self.config.name, hook))

    @hookimpl
    async def startup(self, services: Any) -> None:
        self.note("startup")
        self.worker, self.plugin = services.worker, services.plugin
        services.tasks.every(10, self.tick, name="tick")
        for name in self.config.lists:
            services.catalog.list_model(name, "chat")
        observe(services.meter, "noted.level", lambda: [({}, float(len(self.config.name)))], "Level.")
        if self.config.breaks == "startup":
            raise RuntimeError("the start is broken")

    async def tick(self) -> None:
        """Work in the background."""

    @hookimpl
    def routes(self) -> list[HttpRoute]:
        if self.config.breaks == "routes":
            raise RuntimeError("the routes are broken")

        async def which(_: Any) -> JSONResponse:
            return JSONResponse({"name": self.config.name})

        return [HttpRoute("/which", which)]

    @hookimpl
    async def pre_route(self, route: Any) -> Any:
        if self.config.raises:
            raise RuntimeError("a fault")
        self.note("pre_route")
        return route.with_labels(**{self.plugin: self.config.name})

    @hookimpl
    def post_response(self) -> None:
        self.note("post_response")

    @hookimpl
    async def settle(self) -> None:
        self.note("settle")

    @hookimpl
    async def on_event(self, event: Any) -> None:
        self.note(type(event).__name__)

    @hookimpl
    async def shutdown(self) -> None:
        self.note("shutdown")


SEEN: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    SEEN.clear()


def noted(name: str) -> PluginInfo:
    return PluginInfo(name=name, config=Config, factory=Noted, meters=name == "metering")


PLUGIN, OTHER, METERING = noted("noted"), noted("other"), noted("metering")


def of(name: str) -> list[str]:
    return [hook for whose, hook in SEEN if whose == name]


async def opened(h: Harness) -> tuple[Any, Any]:
    """Begin a request with an attempt."""
    before = await h.request()
    await h.settled()
    SEEN.clear()
    exchange = h.host.open(replace(before.ctx, request_id="in flight"))
    await exchange.admit()
    _, attempt = await exchange.begin(before.settlement.attempts[0].deployment, gateway=True)
    return exchange, attempt


async def moved(h: Harness, seconds: float = 2 * reloading.LOOK_S) -> None:
    await h.clock.advance(seconds)


async def test_what_has_changed_takes_over_and_requests_in_flight_end_on_what_they_began_with() -> None:
    async with Harness([(PLUGIN, {"name": "old"}), (OTHER, {"name": "kept"})]) as h:
        other = h.plugin("other")
        exchange, attempt = await opened(h)
        result = await h.reload([(PLUGIN, {"name": "new"}), (OTHER, {"name": "kept"})])
        assert (result.error, result.started, result.stopped, result.kept) == (None, ("noted",), ("noted",), ("other",))
        assert h.plugin("other") is other, "a plugin that is configured as before goes on, with all that it knows"
        assert (await h.request()).settlement.labels == {"noted": "new", "other": "kept"}
        await h.settled()
        assert of("new") == ["startup", "pre_route", "post_response", "settle"]
        await moved(h)
        assert "shutdown" not in of("old"), "a request still needs it"
        attempt.end(Outcome.OK)
        exchange.close(200)
        await h.settled()
        await moved(h)
        assert of("old") == ["pre_route", "post_response", "settle", "shutdown"]
        assert of("new") == ["startup", "pre_route", "post_response", "settle"], "the new one never sees that request"
        assert h.host.describe()["leaving"] == []
        assert not h.faults


@pytest.mark.parametrize(
    ("plugins", "host", "says"),
    [
        ([(PLUGIN, {"name": "new", "tpyo": 1})], {}, "tpyo"),
        ([(PLUGIN, {"name": "new", "breaks": "startup"})], {}, "the start is broken"),
        ([(OTHER, {"name": "first"}), (PLUGIN, {"name": "new", "breaks": "startup"})], {}, "the start is broken"),
        ([(PLUGIN, {"name": "new", "breaks": "routes"})], {}, "the routes are broken"),
        ([(PLUGIN, {"name": "new", "breaks": "startup", "optional": True})], {}, "the start is broken"),
        ([(PLUGIN, {"name": "new", "breaks": "validation"})], {}, "RuntimeError: the validation is broken"),
        ([(PLUGIN, {"name": "new", "breaks": "validation with exit"})], {}, "SystemExit: 1"),
        ([(PLUGIN, {"name": "new", "breaks": "warnings"})], {}, "RuntimeError: the warnings are broken"),
        ([(PLUGIN, {"name": "new", "breaks": "notes"})], {}, "TypeError: 'NoneType'"),
        ([(PLUGIN, {"name": "new"})], {"journal_window_ms": 7}, "pointsman.journal_window_ms"),
        ([(PLUGIN, {"name": "new"})], {"store": {"backend": "disk", "path": "x"}}, "pointsman.store"),
        ([(PLUGIN, {"name": "new"})], {"unknown_key": 1}, "unknown_key"),
        ([(PLUGIN, {"name": "new"}), (PLUGIN, {"name": "new"})], {}, "listed twice"),
    ],
)
async def test_what_is_wrong_changes_nothing_and_says_why(plugins: Any, host: Any, says: str, caplog: Any) -> None:
    async with Harness([(PLUGIN, {"name": "old", "lists": ("alias",)})]) as h:
        instance, hooks = h.plugin("noted"), h.host.hooks
        result = await h.reload(plugins, host=host)
        assert result.error is not None
        assert says in result.error
        assert says in caplog.text
        assert h.plugin("noted") is instance
        assert h.host.hooks is hooks
        assert "shutdown" not in of("old")
        assert (await h.request()).settlement.labels["noted"] == "old"
        assert (await h.admin.get("/noted/which")).json() == {"name": "old"}
        status: Any = h.host.describe()
        assert (status["generation"], status["reload"]["ok"], status["reload"]["error"]) == (1, False, result.error)
        assert [name for name in h.gateway.catalog.listed if name == "alias"] == ["alias"]
        assert (await level(h)) == 3.0
        tasks = h.host._instances.tasks["noted"].names()  # what runs in the background has no other trace
        assert tasks == ["noted:tick"]


async def level(h: Harness) -> float:
    """Return what the plugin's observed metric shows."""
    families = (await h.admin.get("/metrics?format=json")).json()["metrics"]
    (point,) = next(family for family in families if family["name"] == "noted.level")["points"]
    return float(point["value"])


async def test_routes_metrics_names_order_and_the_policy_for_what_is_not_metered_follow() -> None:
    async with Harness([(PLUGIN, {"name": "old", "lists": ("a", "b")}), (OTHER, {"name": "x"})]) as h:
        await h.request()
        await h.settled()
        before = await calls(h)
        assert h.host.unmetered("/v1/files") == "allow"
        result = await h.reload(
            [(OTHER, {"name": "x"}), (METERING, {}), (PLUGIN, {"name": "newer", "lists": ("b", "c")})]
        )
        assert result.error is None
        assert h.host.plugins.names() == ["other", "metering", "noted"]
        assert h.host.unmetered("/v1/files") == "deny"
        assert (await h.request()).settlement.labels == {"other": "x", "metering": "one", "noted": "newer"}
        await h.settled()
        await moved(h)
        assert sorted(h.gateway.catalog.listed) == ["b", "c"]
        assert (await h.admin.get("/noted/which")).json() == {"name": "newer"}
        assert (await h.admin.get("/metering/which")).status_code == 200
        assert (await level(h)) == 5.0
        assert (await calls(h)) > before, "no sum falls"
        result = await h.reload([(OTHER, {"name": "x"})])
        assert (result.started, result.stopped) == ((), ("metering", "noted"))
        assert (await h.admin.get("/noted/which")).status_code == 404
        assert h.host.unmetered("/v1/files") == "allow"
        assert h.gateway.catalog.listed == {}
        await moved(h)
        assert of("newer")[-1] == "shutdown"


async def calls(h: Harness) -> float:
    families = (await h.admin.get("/metrics?format=json")).json()["metrics"]
    points = next(family for family in families if family["name"] == "pointsman.hook.calls")["points"]
    return sum(point["value"] for point in points if point["labels"]["pointsman.plugin"] == "noted")


async def test_over_http_the_answer_says_what_has_changed_or_why_nothing_has() -> None:
    async with Harness([(PLUGIN, {"name": "old"})]) as h:
        same = (await h.admin.post("/reload")).json()
        assert (same["ok"], same["kept"], same["started"]) == (True, ["noted"], [])
        h._plugins = [(PLUGIN, {"name": 5})]  # as a file that somebody has edited
        answer = await h.admin.post("/reload")
        assert answer.status_code == 422
        assert "nothing has changed" in answer.json()["error"]["message"]
        assert "plugins[0].noted.name" in answer.json()["error"]["message"]


async def test_an_instance_that_keeps_failing_does_not_switch_off_its_successor() -> None:
    async with Harness([(PLUGIN, {"name": "bad", "raises": True, "on_failure": "allow", "suspend_after": 2})]) as h:
        for _ in range(3):
            await h.request()
        assert not h.status("noted").ok
        await h.reload([(PLUGIN, {"name": "good", "on_failure": "allow"})])
        assert (await h.request()).settlement.labels["noted"] == "good"


async def test_a_request_that_does_not_end_goes_on_with_the_new_plugins_in_the_end() -> None:
    async with Harness([(PLUGIN, {"name": "old"})]) as h:
        exchange, attempt = await opened(h)
        await h.reload([(PLUGIN, {"name": "new"})])
        await moved(h, reloading.DRAIN_S + 1)
        assert of("old")[-1] == "shutdown"
        attempt.end(Outcome.OK)
        exchange.close(200)
        await h.settled()
        assert of("new") == ["startup", "post_response", "settle"]


async def test_shutting_down_ends_what_was_still_leaving() -> None:
    async with Harness([(PLUGIN, {"name": "old"})]) as h:
        await opened(h)
        await h.reload([(PLUGIN, {"name": "new"})])
        first, second = h.plugin("noted").worker, h.host.worker
        assert first == f"{second}~2", "two instances at the same time are as two workers"
    assert of("old")[-1] == "shutdown"
    assert of("new")[-1] == "shutdown"


async def test_workers_that_share_the_store_follow_each_from_its_own_configuration() -> None:
    clock = FakeClock()
    host = {"store": {"backend": "redis", "url": "redis://unused"}}
    async with Harness([(PLUGIN, {"name": "a"})], clock=clock, host=host, name="one") as one:
        store = one.store
        async with Harness([(PLUGIN, {"name": "b"})], clock=clock, host=host, store=store, name="two") as two:
            two._plugins = [(PLUGIN, {"name": "b-new"})]  # as its own file that somebody has edited
            await clock.advance(5)
            assert two.host.generation == 1, "nobody has asked"
            await one.reload([(PLUGIN, {"name": "a-new"})])
            await clock.advance(reloading.HEAR_S + 1)
            async with asyncio.timeout(30):  # the file is read in a thread
                while two.host.generation == 1:  # noqa: ASYNC110  # what is waited for is outside
                    await asyncio.sleep(0.01)
            assert (await two.request()).settlement.labels["noted"] == "b-new"
            assert one.host.generation == two.host.generation == 2
            await clock.advance(10)
            assert one.host.generation == two.host.generation == 2, "one announcement, one reload"


class SlowStore(MemoryStore):
    """Its answers arrive once they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.through = asyncio.Event()

    async def get(self, key: str) -> Any:
        found = await super().get(key)
        await self.through.wait()
        return found


async def test_a_worker_that_announces_while_it_listens_does_not_follow_its_own_announcement_before() -> None:
    done = list[str]()

    async def apply(_: Any) -> reloading.Reload:
        done.append("reload")
        return reloading.Reload(at=0.0, generation=len(done) + 1)

    store, numbers = SlowStore(), count()
    reloads = reloading.Reloading(lambda: None, apply, FakeClock(), lambda: 1)  # type: ignore[arg-type,return-value]  # applied as it is
    announcement = reloading.Announcement(store, reloads, lambda: str(next(numbers)))
    await announcement.announce()
    listening = asyncio.create_task(announcement._hear())
    await asyncio.sleep(0)
    await announcement.announce()
    store.through.set()
    await listening
    await announcement._hear()
    assert done == []
    await store.put(reloading._KEY, "another worker's")
    await announcement._hear()
    assert done == ["reload"]


async def test_a_worker_that_ends_while_an_old_plugin_is_shut_down_waits_and_does_not_do_it_again() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Noted):
        @hookimpl
        async def shutdown(self) -> None:
            if self.config.name == "old":
                begun.set()
                await go_on.wait()
            self.note("shutdown")

    slow = PluginInfo(name="slow", config=Config, factory=Slow)
    async with Harness([(slow, {"name": "old"})]) as h:
        await h.reload([(slow, {"name": "new"})])
        await asyncio.wait_for(begun.wait(), 10)
        stopping = asyncio.create_task(h.stop())
        await asyncio.sleep(0)
        go_on.set()
        await stopping
        assert (of("old").count("shutdown"), of("new").count("shutdown")) == (1, 1)
        assert not h.faults
