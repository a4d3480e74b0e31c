"""What the configuration says, and what budgets had spent, is there again after the store has lost it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pointsman.host.host import Host
from pointsman.host.journal import HEARTBEAT_INTERVAL_S
from pointsman.host.settings import parse
from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, FakeGateway, Harness, deployment, ok
from pointsman.types import Endpoint
from pointsman_billing.plugin import plugin as billing
from pointsman_canary.plugin import plugin as canary
from pointsman_quota.plugin import plugin as quota
from pointsman_registry.plugin import plugin as registry
from pointsman_shadow.plugin import plugin as shadow

DEPLOYMENTS = [deployment("small-1", "small"), deployment("big-1", "big")]
PLUGINS = [
    (quota, {"default_tenant": "acme", "tenants": [{"id": "acme", "limits": {"usd_per_month": 500}}]}),
    (
        canary,
        {
            "experiments": [
                {"name": "rollout", "model": "assistant", "canary": {"version": "assistant-2"}, "steps": [50]}
            ]
        },
    ),
    (
        registry,
        {
            "versions": [
                {"id": "assistant-1", "name": "assistant", "version": "1", "path": "small", "active": True},
                {"id": "assistant-2", "name": "assistant", "version": "2", "path": "big"},
            ]
        },
    ),
    (shadow, {"mirrors": [{"name": "mirror", "model": "small", "challenger": "big", "sample_rate": 0.1}]}),
]


async def test_what_the_configuration_says_is_written_again(tmp_path: Path) -> None:
    async with Harness(PLUGINS, path=tmp_path, deployments=DEPLOYMENTS) as h:
        before = await shown(h)
        assert before[1:] == (200, 200, 200)
        assert (await h.request(model="assistant")).outcome == "ok"
        await h.settled()
        for key, _ in await h.store.scan(""):
            await h.store.delete(key)
        await h.clock.advance(4 * HEARTBEAT_INTERVAL_S)
        await h.host.events.drain(5.0)
        assert (await h.request(model="assistant")).outcome == "ok"
        assert await shown(h) == before
        assert "budgets of that day and month began again at 0" in h.status("quota").summary
        assert not h.status("quota").ok


async def empty(h: Harness) -> None:
    """Empty the store, and let the workers notice."""
    for key, _ in await h.store.scan(""):
        await h.store.delete(key)
    await h.clock.advance(4 * HEARTBEAT_INTERVAL_S)
    await h.host.events.drain(5.0)


async def spent(h: Harness) -> dict[str, dict[str, object]]:
    """Return what the ledger has of the tenant's day and month, by scope."""
    rows = (await h.admin.get("/quota/tenants/acme")).json()["usage"]
    names = ("day_tokens", "day_usd", "month_tokens", "month_usd", "reserved_tokens")
    return {f"{row['scope']} {row['name']}": {name: row[name] for name in names} for row in rows}


def budgets(money_from: str) -> list[tuple[object, dict[str, object]]]:
    limits = {"usd_per_month": 500, "tokens_per_day": 10**6, "tokens_per_minute": 10**6}
    tenant = {"id": "acme", "limits": limits, "model_limits": {"small": {"tokens_per_month": 10**6}}}
    section = {"default_tenant": "acme", "tenants": [tenant], "money_from": money_from}
    margins = [{"margin_ratio": 0.5}]
    return [(quota, {**section, "gateway_limits": {"usd_per_day": 100}}), (billing, {"margins": margins})]


@pytest.mark.parametrize("money_from", ["gateway", "events"])
@pytest.mark.parametrize(
    ("endpoint", "stream"),
    [
        *(
            (endpoint, stream)
            for endpoint in (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES)
            for stream in (False, True)
        ),
        (Endpoint.EMBEDDINGS, False),
    ],
)
async def test_budgets_have_what_had_been_spent(
    tmp_path: Path, endpoint: Endpoint, stream: bool, money_from: str
) -> None:
    """Of the tenant, of all tenants and of a model, of the day and of the days before; levels of rates are not touched."""
    asked = "input" if endpoint in {Endpoint.RESPONSES, Endpoint.EMBEDDINGS} else "messages"
    body = {asked: "Hello" if asked == "input" else [{"role": "user", "content": "Hello"}]}
    # Not at the beginning of a month: the day before belongs to it, too.
    clock = FakeClock(1_763_000_000.0)
    async with Harness(budgets(money_from), path=tmp_path, deployments=DEPLOYMENTS, clock=clock) as h:
        for model in ("small", "big"):
            assert (await h.request(model=model, endpoint=endpoint, stream=stream, body=body)).outcome == "ok"
        await h.settled()
        await h.clock.skip(86_400)
        assert (await h.request(model="small", endpoint=endpoint, stream=stream, body=body)).outcome == "ok"
        await h.settled()
        before = await spent(h)
        assert before["tenant acme"]["day_tokens"] != before["tenant acme"]["month_tokens"]
        await empty(h)
        assert await spent(h) == before
        assert h.status("quota").ok
        assert h.status("quota").details["restored"]["known"] is True


async def test_budgets_have_what_had_been_spent_when_the_store_was_lost_while_the_gateway_was_down(
    tmp_path: Path,
) -> None:
    """The outbox knows the stores that it was used with: what is rebuilt is rebuilt once, and not over one that knows it."""
    clock = FakeClock(1_763_000_000.0)
    given = {"path": tmp_path, "deployments": DEPLOYMENTS, "clock": clock}
    first, second = MemoryStore(clock=clock.now), MemoryStore(clock=clock.now)
    async with Harness(budgets("gateway"), store=first, **given) as h:
        assert (await h.request(model="small")).outcome == "ok"
        await h.settled()
        before = await spent(h)
        assert h.host.problems() == []
    # The first of these workers ends before the outbox has noted the store, so that the next one does it once more.
    for wait_s, found in ((1.0, True), (100.0, True), (1.0, False)):
        async with Harness(budgets("gateway"), store=second, name="another", **given) as h:
            await h.host.events.drain(5.0)
            assert await spent(h) == before
            assert ["exchanged while the gateway was down" in text for text in h.host.problems()] == [True] * found
            await h.clock.advance(wait_s)
    async with Harness(budgets("gateway"), store=first, **given) as h:
        await h.host.events.drain(5.0)
        assert await spent(h) == before
        assert h.host.problems() == []


@pytest.mark.parametrize(("backend", "missed"), [("memory", 0), ("disk", 1)])
async def test_a_store_that_ends_with_its_worker_is_not_missed(tmp_path: Path, backend: str, missed: int) -> None:
    for folder in ("one", "other"):
        section = {"store": {"backend": backend, "path": folder}, "plugins": [{"billing": {}}]}
        host = Host(parse(section, "proxy.yaml", tmp_path), FakeGateway(), available={"billing": billing})
        await host.start()
        try:
            assert len(host.problems()) == missed * (folder == "other")
        finally:
            await host.stop()


async def test_two_workers_of_one_outbox_restore_it_once(tmp_path: Path) -> None:
    clock = FakeClock(1_763_000_000.0)
    store = MemoryStore(clock=clock.now)
    given = {"path": tmp_path, "deployments": DEPLOYMENTS, "clock": clock, "store": store}
    async with (
        Harness(budgets("gateway"), name="a", **given) as a,
        Harness(budgets("gateway"), name="b", **given) as b,
    ):
        for worker in (a, b):
            assert (await worker.request(model="small")).outcome == "ok"
            await worker.settled()
        before = await spent(a)
        await empty(a)
        await b.host.events.drain(5.0)
        assert await spent(b) == before
        rows = [worker.status("quota").details["restored"]["spendings"] for worker in (a, b)]
        assert sum(rows) >= 1


async def test_what_runs_while_the_store_is_emptied_is_spent_when_it_ends(tmp_path: Path) -> None:
    """Its hold is lost; what it used is not, and it counts once."""
    clock = FakeClock(1_763_000_000.0)
    async with Harness(budgets("gateway"), path=tmp_path, deployments=DEPLOYMENTS, clock=clock) as h:
        assert (await h.request(model="small")).outcome == "ok"
        await h.settled()
        one = (await spent(h))["tenant acme"]
        running = asyncio.create_task(h.request(model="small", script=ok(latency_s=60.0), moves_clock=False))
        await h.clock.advance(1.0)
        await empty(h)
        await h.clock.advance(60.0)
        assert (await running).outcome == "ok"
        await h.settled()
        two = (await spent(h))["tenant acme"]
        assert two["month_tokens"] == 2 * one["month_tokens"]
        assert two["reserved_tokens"] == 0


async def shown(h: Harness) -> tuple[object, ...]:
    versions = (await h.admin.get("/registry/versions")).json()["versions"]
    return (
        [(row["id"], row["path"], row["active"]) for row in versions],
        (await h.admin.get("/canary/rollout")).status_code,
        (await h.admin.get("/shadow/mirror")).status_code,
        (await h.admin.get("/quota/tenants/acme")).status_code,
    )


async def put_back(h: Harness, snapshot: list[tuple[str, object]]) -> None:
    """Let the store have what it had before, as a redis that has read its last snapshot."""
    for key, _ in await h.store.scan(""):
        await h.store.delete(key)
    for key, value in snapshot:
        await h.store.put(key, value)


async def goes_back(h: Harness, other: Harness) -> list[dict[str, dict[str, object]]]:
    """Let the store of two workers forget a request of each; return what was spent before, and what the store knows of it."""
    for worker in (h, other):
        assert (await worker.request(model="small")).outcome == "ok"
        await worker.settled()
    await h.clock.advance(2 * HEARTBEAT_INTERVAL_S)
    snapshot = await h.store.scan("")
    known = await spent(h)
    for worker in (h, other):
        assert (await worker.request(model="big")).outcome == "ok"
        await worker.settled()
    for _ in range(30):
        await h.clock.advance(HEARTBEAT_INTERVAL_S)
    # The outbox is written in real time: when it was last used is noted later than the clock has it.
    while (
        max((await h.plugin("billing")._outbox.read(lambda db: db.users())).values(), default=0) < h.clock.now() - 20.0
    ):
        await h.clock.advance(HEARTBEAT_INTERVAL_S)
        await asyncio.sleep(0.01)
    before = await spent(h)
    await put_back(h, snapshot)
    return [before, known]


@pytest.mark.parametrize("money_from", ["gateway", "events"])
@pytest.mark.parametrize("outboxes", [1, 2])
async def test_budgets_have_what_a_store_that_went_back_has_forgotten(
    tmp_path: Path, outboxes: int, money_from: str
) -> None:
    """As a redis whose last snapshot is minutes old: what it still has does not count twice."""
    clock = FakeClock(1_763_000_000.0)
    given = {"deployments": DEPLOYMENTS, "clock": clock, "store": MemoryStore(clock=clock.now)}
    folders = [tmp_path, tmp_path if outboxes == 1 else tmp_path / "other"]
    async with (
        Harness(budgets(money_from), name="a", path=folders[0], **given) as a,
        Harness(budgets(money_from), name="b", path=folders[1], **given) as b,
    ):
        before, known = await goes_back(a, b)
        assert await spent(a) == known != before
        await clock.advance(4 * HEARTBEAT_INTERVAL_S)
        for worker in (a, b):
            await worker.host.events.drain(5.0)
            assert ["the store went back" in text for text in worker.host.problems()] == [True]
            assert worker.status("quota").ok
        assert await spent(a) == before


async def test_budgets_have_what_a_store_has_forgotten_that_went_back_while_the_gateway_was_down(
    tmp_path: Path,
) -> None:
    clock = FakeClock(1_763_000_000.0)
    given = {"path": tmp_path, "deployments": DEPLOYMENTS, "clock": clock, "store": MemoryStore(clock=clock.now)}
    async with Harness(budgets("gateway"), name="a", **given) as a, Harness(budgets("gateway"), name="b", **given) as b:
        await clock.advance(30.0)
        before, known = await goes_back(a, b)
        snapshot = await a.store.scan("")
        # Nothing notices it: both end.
        await a.crash()
        await b.crash()
    for name, found in (("c", True), ("d", True), ("e", False)):
        async with Harness(budgets("gateway"), name=name, **given) as h:
            if name == "c":
                assert dict(snapshot).keys() <= dict(await h.store.scan("")).keys()
            await h.host.events.drain(5.0)
            assert before != known
            assert await spent(h) == before
            assert ["went back while the gateway was down" in text for text in h.host.problems()] == [True] * found
            await h.clock.advance(100.0 if name == "d" else 1.0)


async def test_a_reload_that_builds_billing_again_finds_no_loss(tmp_path: Path) -> None:
    """The outbox has been used since the worker began, and so has the store."""
    clock = FakeClock(1_763_000_000.0)
    store = MemoryStore(clock=clock.now)
    for wait_s in (1.0, 100.0):
        async with Harness(budgets("gateway"), path=tmp_path, store=store, clock=clock, deployments=DEPLOYMENTS) as h:
            for _ in range(30):
                await clock.advance(HEARTBEAT_INTERVAL_S)
            changed = [budgets("gateway")[0], (billing, {"margins": [{"margin_ratio": 0.6}]})]
            assert (await h.reload(changed)).changed
            assert h.host.problems() == []
            await clock.advance(wait_s)
        await clock.skip(3600.0)
