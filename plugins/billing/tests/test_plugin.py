"""The plugin in a host: who pays, for what, at which price, and who hears of it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import sys
import tomllib
import types
from decimal import Decimal
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import PluginLoadError, UpstreamError
from pointsman.events import BudgetSpent, TariffAnnounced, TariffRule
from pointsman.testing import Harness, breaks, deployment, disconnect, error, never, ok
from pointsman.types import (
    Attempt,
    AttemptKind,
    Endpoint,
    Execution,
    Identity,
    Outcome,
    OwnCallEnded,
    Price,
    RequestContext,
    UpstreamRequest,
    Usage,
)
from pointsman_billing import sinks
from pointsman_billing.aggregates import Span
from pointsman_billing.errors import OutboxUnavailable
from pointsman_billing.plugin import plugin
from pointsman_billing.reports import Reports
from pointsman_billing.schema import FILE as OUTBOX

from .kit import AT, attempt, by_type, eventually, get, lines, reconciled, settled_as, until, worker
from .sink_server import SinkServer, sequence

FILE = {"ndjson": {"path": "bills.ndjson"}}


async def events(h: Harness, tmp_path: Path, count: int) -> list[dict[str, Any]]:
    """Return the events in the file, once there are so many."""
    await h.settled()
    await until(lambda: len(lines(tmp_path / "bills.ndjson")) >= count)
    return lines(tmp_path / "bills.ndjson")


class Labeller:
    """Puts a tenant and a version on the route."""

    def __init__(self, config: PluginConfig) -> None:
        """Need nothing."""

    @hookimpl
    async def pre_route(self, route):
        return route.with_labels(tenant="labelled", version="7", experiment="e", arm="stable")


LABELLER = PluginInfo(name="labeller", config=PluginConfig, factory=Labeller, labels=("tenant",))


@pytest.mark.parametrize(
    ("identity", "tenant"),
    [
        (Identity(tenant="acme", team_id="t", key_hash="k"), "acme"),
        (Identity(team_id="t", user_id="u", key_hash="k"), "team:t"),
        (Identity(user_id="u", key_hash="k"), "user:u"),
        (Identity(key_hash="sk-raw-key"), f"key:{hashlib.sha256(b'sk-raw-key').hexdigest()[:16]}"),
        (Identity(), "default"),
    ],
)
async def test_who_pays(tmp_path: Path, identity: Identity, tenant: str) -> None:
    """Never a key: what LiteLLM hands on as its hash is hashed again."""
    async with worker(tmp_path, FILE) as h:
        await h.request(identity=identity)
        rows = await events(h, tmp_path, 2)
        assert {row["tenant_id"] for row in rows} == {tenant}
        assert "sk-raw-key" not in (tmp_path / "bills.ndjson").read_text()


async def test_the_routes_labels_say_who_pays_and_what_served(tmp_path: Path) -> None:
    async with worker(tmp_path, FILE, others=[LABELLER]) as h:
        await h.request(identity=Identity(tenant="acme"))
        for row in await events(h, tmp_path, 2):
            assert (row["tenant_id"], row["version"], row["experiment"], row["arm"]) == ("labelled", "7", "e", "stable")


async def test_each_attempt_that_cost_something_is_billed_with_its_kind(tmp_path: Path) -> None:
    """Failures without usage are not; the model asked for stays, the deployment is the one that served."""
    async with worker(tmp_path, FILE) as h:
        await h.request(script=[error(503), ok()])
        await h.request(script=[error(503), error(503), error(503), ok()], fallbacks=["backup"])
        attempts = by_type(await events(h, tmp_path, 4), "attempt")
        assert [(row["kind"], row["attempt"], row["model"]) for row in attempts] == [
            ("retry", 2, "chat"),
            ("fallback", 4, "chat"),
        ]
        assert attempts[1]["deployment"] == "backup-a"


@pytest.mark.parametrize("script", [disconnect(3), breaks(3)])
async def test_a_stream_that_is_cut_short_is_billed_by_what_was_produced(tmp_path: Path, script: Any) -> None:
    async with worker(tmp_path, FILE) as h:
        await h.request(stream=True, script=[script], retries=0)
        (row,) = by_type(await events(h, tmp_path, 2), "attempt")
        assert row["metering"] == "estimated"
        assert row["completion_tokens"] == 3
        assert row["status"] in {"disconnected", "error"}
        assert await settled_states(h) == {"billed": 1}


async def settled_states(h: Harness) -> dict[str, int]:
    for _ in range(200):
        if "pending" not in (found := await reconciled(h)):
            return found
        await asyncio.sleep(0.01)
    return found


async def test_every_settled_request_is_in_exactly_one_state(tmp_path: Path) -> None:
    """Denied, failed, cached, without usage, without a price: all of them count."""
    async with worker(
        tmp_path, FILE, gateway_prices={"chat-a": Price(input_usd=Decimal(1), output_usd=Decimal(1))}
    ) as h:
        await h.request(script={"*": ok()}, retries=0)
        await h.request(script=[error(400)], retries=0)
        await h.request(script=[ok(cached=True)])
        await h.request(script=[ok(usage=Usage(), cost_usd_micros=0)])
        await h.request(script=[ok(usage=None)])
        await h.request(model="backup", script=[ok()])
        await h.request(model="no-such-model")
        await h.settled()
        assert await settled_states(h) == {"billed": 1, "free": 4, "unpriced": 2}
        found = await get(h, "/reconcile")
        assert not found["in_order"]
        assert {row["model"] for row in found["models_to_look_at"] if row["unpriced"]} == {"chat-a", "backup-a"}


class Racer:
    """Races two legs; the slow one is cancelled after some pieces."""

    def __init__(self, config: PluginConfig) -> None:
        """Need nothing."""

    @hookimpl
    async def pre_route(self, route):
        return dataclasses.replace(route, executor="racer")

    @hookimpl
    async def execute(self, ctx, route, upstream):
        legs = [
            upstream.start(UpstreamRequest(target=target, kind=kind, body=ctx.body, parent=ctx, stream=True))
            for target, kind in (("chat-a", AttemptKind.PRIMARY), ("chat-b", AttemptKind.HEDGE))
        ]
        losing = legs[0].chunks()
        await anext(losing)

        async def winner():
            async for chunk in legs[1].chunks():
                yield chunk

        return Execution(chunks=winner())


RACER = PluginInfo(name="racer", config=PluginConfig, factory=Racer)


async def test_the_loser_of_a_race_is_billed_too(tmp_path: Path) -> None:
    """Also when it is still open when the request ends."""
    async with worker(tmp_path, FILE, others=[RACER]) as h:
        script = {"chat-a": ok("slow " * 50, piece_s=5.0), "chat-b": ok(latency_s=6.0)}
        await h.request(stream=True, script=script)
        rows = await events(h, tmp_path, 3)
        found = {row["kind"]: row for row in by_type(rows, "attempt")}
        assert (found["hedge"]["status"], found["hedge"]["metering"]) == ("ok", "exact")
        assert (found["primary"]["status"], found["primary"]["metering"]) == ("cancelled", "estimated")
        (request,) = by_type(rows, "request")
        assert request["amount_usd_micros"] == sum(row["amount_usd_micros"] for row in found.values())
        assert request["prompt_tokens"] == found["hedge"]["prompt_tokens"]


@pytest.mark.parametrize("kind", [AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE])
async def test_calls_of_our_own_are_billed_to_their_own_account(tmp_path: Path, kind: AttemptKind) -> None:
    """They are never settled, and still durable, delivered, counted and announced."""
    async with worker(tmp_path, FILE, own_tenant="house") as h:
        upstream = h.gateway.upstream
        for tenant, script in (("shadow", ok()), (None, ok()), ("shadow", error(500))):
            upstream.answer(script)
            request = UpstreamRequest(target="chat", kind=kind, body={"messages": []}, tenant=tenant)
            try:
                await h.clock.run(upstream.start(request).response())
            except UpstreamError:
                assert script.error is not None
        rows = await events(h, tmp_path, 2)
        assert [(row["tenant_id"], row["kind"], row["type"]) for row in rows] == [
            ("shadow", str(kind), "attempt"),
            ("house", str(kind), "attempt"),
        ]
        await h.settled()
        spent = [event for event in h.events if isinstance(event, BudgetSpent)]
        assert [(event.tenant, event.settled) for event in spent] == [("shadow", False), ("house", False)]
        assert len({event.request_id for event in spent}) == 2
        found = await get(h, "/reconcile")
        assert (found["requests"]["total"], found["own_calls"]["total"]) == (0, 2)


async def test_prices_and_margins_of_the_configuration(tmp_path: Path) -> None:
    """The first rule that applies counts; a price rule replaces all prices; kinds can be for nothing."""
    section = {
        "prices": [
            {"tenants": ["vip-*"], "models": ["chat"], "input_usd_per_million": 10, "output_usd_per_million": "20.5"},
            {"models": ["backup"], "input_usd_per_million": 0, "output_usd_per_million": 0},
        ],
        "margins": [
            {"kinds": ["fallback"], "margin_ratio": -1},
            {"tenants": ["vip-*"], "margin_ratio": 0},
            {"margin_ratio": "0.5"},
        ],
    }
    usage = Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=500)
    async with worker(tmp_path, FILE, **section) as h:
        for tenant, model, script in (
            ("vip-1", "chat", [ok(usage=usage)]),
            ("other", "chat", [ok(usage=usage)]),
            ("other", "backup", [ok(usage=usage)]),
            ("other", "chat", [error(503), error(503), error(503), ok(usage=usage)]),
        ):
            await h.request(identity=Identity(tenant=tenant), model=model, script=script, fallbacks=["backup"])
        rows = by_type(await events(h, tmp_path, 8), "attempt")
        assert [
            (row["price_source"], row["cost_usd_micros"], row["margin_ratio"], row["amount_usd_micros"]) for row in rows
        ] == [
            ("config", 10_000 + 2050, "0", 12_050),
            ("gateway", 500 + 50 + 200, "0.5", 1125),
            ("config", 0, "0.5", 0),
            ("config", 0, "-1", 0),
        ]


async def test_what_is_charged_is_announced_at_the_start(tmp_path: Path) -> None:
    section = {
        "prices": [
            {"tenants": ["vip-*"], "models": ["chat"], "input_usd_per_million": 10, "output_usd_per_million": 20}
        ],
        "margins": [{"kinds": ["mirror"], "margin_ratio": "0.5"}],
    }
    async with worker(tmp_path, **section) as h:
        (event,) = h.events
    assert event == TariffAnnounced(
        source="billing",
        prices=(
            TariffRule(
                tenants=("vip-*",),
                models=("chat",),
                price=Price(input_usd=Decimal("0.00001"), output_usd=Decimal("0.00002")),
            ),
        ),
        margins=(TariffRule(kinds=("mirror",), margin_ratio=Decimal("0.5")),),
    )
    for quiet in ({}, {**section, "announce": False}):
        async with worker(tmp_path, **quiet) as h:
            assert h.events == []


async def test_what_was_spent_is_announced_once_for_each_request(tmp_path: Path) -> None:
    async with worker(tmp_path, margins=[{"margin_ratio": 1}]) as h:
        first = await h.request(identity=Identity(tenant="acme"))
        await h.request(identity=Identity(tenant="acme"), script=[error(400)], retries=0)
        await h.settled()
        spent = [event for event in h.events if isinstance(event, BudgetSpent)]
        assert [(e.tenant, e.cost_usd_micros, e.settled) for e in spent] == [("acme", 40, True), ("acme", 0, True)]
        assert (spent[0].request_id, spent[0].source) == (first.request_id, "billing")
    async with worker(tmp_path, announce=False, name="quiet") as h:
        await h.request()
        await h.settled()
        assert h.events == []


async def test_an_outbox_that_fails_keeps_settlements_in_the_journal(tmp_path: Path) -> None:
    """And calls of our own in memory; all of them are billed once when it works again."""
    async with worker(tmp_path, FILE) as h:
        plain = h.plugin("billing")._outbox.append

        async def fail(work: Any, **_: Any) -> Any:
            raise OutboxUnavailable("the disk is gone")

        h.plugin("billing")._outbox.append = fail
        await h.request()
        with pytest.raises(AssertionError, match="billing"):
            await h.settled(timeout_s=0.5)
        request = UpstreamRequest(target="chat", kind=AttemptKind.MIRROR, body={"messages": []}, tenant="t")
        await h.clock.run(h.gateway.upstream.start(request).response())
        assert not h.status("billing").ok
        h.plugin("billing")._outbox.append = plain
        await h.clock.advance(10.0)
        await h.settled()
        assert len(await events(h, tmp_path, 3)) == 3
        await settled_as(h, billed=1)
        assert h.status("billing").details["own_calls_waiting"] == 0


def own_call(h: Harness, number: int, **fields: Any) -> None:
    """End a call of our own."""
    ctx = RequestContext(
        request_id=f"own-{number}",
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=False,
        identity=Identity(tenant="acme"),
        received_at=AT,
    )
    h.plugin("billing").post_response(ctx, an_own_attempt(number, **fields))


def an_own_attempt(number: int, **fields: Any) -> Attempt:
    return attempt(number, kind=AttemptKind.JUDGE, request_id=f"own-{number}", **fields)


async def test_a_call_of_our_own_is_compared_with_what_the_gateway_logs_after_its_end(tmp_path: Path) -> None:
    """It waits for that, but not for ever, and not at the end of the worker."""
    async with worker(tmp_path, FILE) as h:
        billing = h.plugin("billing")
        for number in (1, 2, 3):
            own_call(h, number, gateway_cost_usd=None)
        own_call(h, 4, gateway_cost_usd=None, outcome=Outcome.CANCELLED, cut=True)
        assert billing.status().details["own_calls_waiting"] == 4
        attempts = (an_own_attempt(1), an_own_attempt(9))
        await billing.on_event(OwnCallEnded(request_id="own-1", attempts=attempts))
        assert len(await events(h, tmp_path, 2)) == 2
        assert billing.status().details["own_calls_waiting"] == 2
        await h.clock.advance(5.0)
        assert len(await events(h, tmp_path, 4)) == 4
        own_call(h, 5, gateway_cost_usd=None)
        found = {row["finding"]: row["attempts"] for row in (await get(h, "/reconcile"))["comparison"]}
        assert found == {"different": 1, "unseen": 2, "cancelled": 1}
    reports = Reports(tmp_path / ".pointsman-billing", [], 1.0).reconcile(Span(0, 10**11))
    assert reports["own_calls"]["total"] == 5


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_calls_of_our_own_that_end_while_the_worker_stops_are_billed_once(tmp_path: Path, turns: int) -> None:
    """However commits, the end of the worker and the ends of the calls overlap."""
    async with worker(tmp_path) as h:
        plain = h.plugin("billing")._outbox.append
        commits: asyncio.Queue[asyncio.Event] = asyncio.Queue()

        async def slow(work: Any, **given: Any) -> Any:
            found = await plain(work, **given)
            released = asyncio.Event()
            await commits.put(released)
            await released.wait()
            return found

        h.plugin("billing")._outbox.append = slow
        own_call(h, 1)
        first = await commits.get()
        stopping = asyncio.create_task(h.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        own_call(h, 2)
        first.set()
        number = 3
        while not stopping.done():
            waiting = asyncio.ensure_future(commits.get())
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                break
            if number < 5:
                own_call(h, number)
                number += 1
            waiting.result().set()
        await stopping
        assert h.faults == {}
        assert h.status("billing").details["own_calls_lost"] == 0
        found = Reports(tmp_path / ".pointsman-billing", [], 1.0).reconcile(Span(0, 10**11))
        assert found["own_calls"]["total"] == number - 1
        assert number >= 3


async def test_calls_of_our_own_that_cannot_be_written_at_the_end_are_counted(tmp_path: Path) -> None:
    """The rest of the shutdown goes on without them."""
    async with worker(tmp_path, FILE) as h:
        await h.request()
        await h.settled()
        billing = h.plugin("billing")
        plain = billing._outbox.append

        async def fail_own_calls(work: Any, **given: Any) -> Any:
            if h.status("billing").details["own_calls_waiting"]:
                raise OutboxUnavailable("the disk is gone")
            return await plain(work, **given)

        billing._outbox.append = fail_own_calls
        own_call(h, 1)
        await h.stop()
        own_call(h, 2)
        assert h.faults == {}
        assert billing.status().details["own_calls_lost"] == 2


async def test_a_bill_that_no_database_can_hold_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prices and margin give more than 64 bits: the request is unpriced, counted, and settled like the others."""
    section = {
        "prices": [{"input_usd_per_million": 10**6, "output_usd_per_million": 10**6}],
        "margins": [{"margin_ratio": 1000}],
    }
    async with worker(tmp_path, FILE, **section) as h:
        many = Usage(prompt_tokens=10**10, completion_tokens=1)
        await asyncio.gather(h.request(script=[ok(usage=many)]), h.request(), h.request())
        await h.settled()
        await settled_as(h, unpriced=1, billed=2)
        assert h.faults == {}
        assert h.status("billing").details["odd_amounts"] == 1
        assert "would cost 10,010,000,001,001 US dollars" in caplog.text
        assert "deployment 'chat-a'" in caplog.text
        found = await get(h, "/usage", period="total", group_by="none")
        assert [(row["attempts"], row["unpriced"]) for row in found["usage"]] == [(3, 1)]


async def test_what_a_worker_had_settled_before_it_died_is_billed_once(tmp_path: Path) -> None:
    async with worker(tmp_path, FILE) as h:
        for _ in range(20):
            await h.request()
        await h.crash()
        await h.clock.advance(30.0)
        await h.start()
        await h.clock.advance(10.0)
        await h.settled()
        rows = await events(h, tmp_path, 40)
        assert len({row["id"] for row in rows}) == len(rows) == 40
        await settled_as(h, billed=20)


async def test_usage_by_tenant_model_kind_hour_day_and_month(tmp_path: Path) -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)
    async with worker(tmp_path, timezone="Pacific/Auckland") as h:
        for tenant, model in (("a", "chat"), ("a", "backup"), ("b", "chat"), ("b", "chat")):
            await h.request(identity=Identity(tenant=tenant), model=model, script=[ok(usage=usage)])
            await h.clock.skip(3600.0)
        await h.settled()
        found = await get(h, "/usage", period="total", group_by="tenant")
        rows = [(r["tenant"], r["requests"], r["attempts"], r["prompt_tokens"]) for r in found["usage"]]
        assert rows == [("a", 2, 2, 20), ("b", 2, 2, 20)]
        found = await get(h, "/usage", period="hour", group_by="none")
        assert [row["period"] for row in found["usage"]] == [f"2025-06-16T0{n}:00+12:00" for n in (3, 4, 5, 6)]
        found = await get(h, "/usage", period="day", tenant="b", group_by="model,kind")
        assert [(r["period"], r["model"], r["kind"], r["cached_tokens"]) for r in found["usage"]] == [
            ("2025-06-16", "chat", "primary", 8)
        ]
        found = await get(h, "/usage", period="month", model="backup")
        assert [(row["period"], row["tenant"]) for row in found["usage"]] == [("2025-06", "a")]
        start = int(h.clock.now()) // 3600 * 3600 - 3 * 3600
        found = await get(h, "/usage", from_=start, to=start + 3600, period="total", group_by="none")
        assert found["usage"][0]["requests"] == 1
        found = await get(h, "/usage", from_="2020-01-01", to="2020-01-02")
        assert found["usage"] == []
        text = (await h.admin.get("/billing/usage?period=total&group_by=tenant&format=csv")).text
        head, first, *_ = text.splitlines()
        assert head.startswith("tenant,requests,attempts,")
        assert first.startswith("a,2,2,")


async def test_a_name_that_looks_like_a_formula_is_none_in_csv(tmp_path: Path) -> None:
    async with worker(tmp_path) as h:
        await h.request(identity=Identity(tenant="=HYPERLINK(1)"))
        await h.settled()
        text = (await h.admin.get("/billing/usage?format=csv&group_by=tenant&period=total")).text
        assert "\r\n'=HYPERLINK(1)," in text


async def test_several_machines_answer_for_each_other(tmp_path: Path) -> None:
    """Each has an outbox of its own; usage is the sum over all, reconciliation names the others."""
    async with (
        worker(tmp_path / "one", name="one") as h,
        worker(tmp_path / "two", store=h.store, clock=h.clock, name="two") as other,
    ):
        for one in (h, other, other):
            await one.request(identity=Identity(tenant="acme"))
        await h.settled()
        await other.settled()
        for one in (h, other):

            async def all_of_them(one: Harness = one) -> bool:
                return [row["requests"] for row in (await get(one, "/usage", period="total"))["usage"]] == [3]

            await eventually(one, all_of_them)

        async def others_told() -> bool:
            others = (await get(h, "/reconcile"))["other_machines"]
            return [machine["requests"]["billed"] for machine in others] == [2]

        await eventually(h, others_told)
        found = await get(h, "/reconcile")
        assert found["requests"]["total"] == 1
        assert found["other_machines"][0]["machine"] != found["machine"]


async def test_two_workers_of_one_machine_share_the_outbox(tmp_path: Path) -> None:
    async with worker(tmp_path, FILE, name="one") as h, worker(tmp_path, FILE, clock=h.clock, name="two") as other:
        for one in (h, other, h):
            await one.request()
        await h.settled()
        await other.settled()
        for one in (h, other):
            assert (await get(one, "/reconcile"))["requests"]["total"] == 3
        await h.clock.advance(2.0)
        assert len(await events(h, tmp_path, 6)) == 6


async def test_the_bill_of_one_request_can_be_shown(tmp_path: Path) -> None:
    async with worker(tmp_path, FILE) as h:
        result = await h.request(script=[error(503), ok()])
        await h.settled()
        await settled_as(h, billed=1)
        shown = await get(h, f"/requests/{result.request_id}")
        assert (shown["state"], shown["pending_in"], shown["dead_in"]) == ("billed", [], [])
        assert [event["type"] for event in shown["events"]] == ["attempt", "request"]
        assert (await h.admin.get("/billing/requests/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("/usage?from=tomorrow", "from"),
        ("/usage?from=1e999", "from"),
        ("/usage?from=200&to=100", "from"),
        ("/usage?to=-5", "to"),
        ("/usage?period=week", "period"),
        ("/usage?group_by=user", "group_by"),
        ("/usage?format=xml", "format"),
        ("/usage?tenat=x", "tenat"),
        ("/dead?limit=0", "limit"),
        ("/dead?limit=%D9%A3", "limit"),
        ("/reconcile?to=9999999999999", "to"),
    ],
)
async def test_a_wrong_parameter_is_named(tmp_path: Path, query: str, param: str) -> None:
    async with worker(tmp_path) as h:
        answer = await h.admin.get(f"/billing{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [({"sink": "other"}, "sink"), ({"ids": "x"}, "ids"), ({"ids": ["'; --"]}, "ids.0"), ({"x": 1}, "x")],
)
async def test_a_wrong_redrive_is_refused(tmp_path: Path, body: Any, param: str) -> None:
    async with worker(tmp_path, FILE) as h:
        answer = await h.admin.post("/billing/dead/redrive", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


async def test_a_disk_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    h = worker(tmp_path, outbox={"path": "file"})
    with pytest.raises(Exception, match=r"outbox\.path"):
        await h.start()
    await h.stop()


async def test_a_cancelled_attempt_that_never_answered_costs_nothing(tmp_path: Path) -> None:
    async with worker(tmp_path, FILE) as h:
        task = asyncio.create_task(h.request(script=never(), moves_clock=False))
        await h.clock.advance(1.0)
        task.cancel()
        await asyncio.wait({task})
        await h.settled()
        assert await reconciled(h) == {"free": 1}


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (
            {"ndjson": {"pth": "bills.ndjson"}},
            "sinks[0]: sink 'ndjson': path: is missing; pth: unknown key (did you mean 'path'?); allowed: backoff_first_s, ",
        ),
        ("ndjson", "sink 'ndjson': path: is missing"),
        ({"ndjsn": {"path": "x"}}, "there is no sink 'ndjsn' (did you mean 'ndjson'?); installed: "),
        (
            {"ndjson": {"path": "x", "fsync": "SECRET"}},
            "sink 'ndjson': fsync: input should be 'batch', 'rotate' or 'never'",
        ),
        ({"ndjson": {"path": "x", "rotate_mb": 0}}, "rotate_mb: input should be greater than or equal to 1"),
        (
            {"lago": {"url": "http://u:SECRET@lago", "api_kee": "SECRET"}},
            "secrets have keys of their own; api_key: is missing; api_kee: unknown key (did you mean 'api_key'?)",
        ),
        ({"ndjson": "SECRET"}, "a sink is written as its kind with its settings"),
    ],
)
async def test_what_is_wrong_with_a_sink_is_said_in_the_hosts_words(tmp_path: Path, sink: Any, message: str) -> None:
    with pytest.raises(PluginLoadError) as caught:
        await worker(tmp_path, sink).start()
    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)


async def test_the_readmes_example_works(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    document = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])
    (section,) = [plugin["billing"] for plugin in document["pointsman"]["plugins"] if "billing" in plugin]
    section["sinks"] = [sink for sink in section["sinks"] if "ndjson" in sink]
    async with worker(tmp_path, *section.pop("sinks"), **section) as h:
        await h.request()
        await h.settled()
        await settled_as(h, billed=1)


async def test_the_readmes_sink_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point; sent again after a failure; what is rejected becomes a dead letter."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code, project = (readme.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "toml"))
    ((group, points),) = tomllib.loads(project)["project"]["entry-points"].items()
    ((kind, value),) = points.items()
    module = types.ModuleType(value.split(":")[0])
    exec(code, module.__dict__)  # noqa: S102  # our own README
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert group == sinks.GROUP
    monkeypatch.setattr(sinks, "entry_points", lambda group: [EntryPoint(kind, value, group)])
    with SinkServer(sequence("503", "drop", "ok", "422")) as server:
        async with worker(tmp_path, {kind: {"url": server.url, "events": "attempts"}}) as h:
            await h.request()
            await eventually(h, lambda: len(server.events) == 1)
            await h.request()
            await h.settled()
            await eventually(h, lambda: "sink webhook has 1 dead letters" in h.status("billing").summary)
            assert [event["type"] for event in server.events] == ["attempt"]
        assert server.accepted.total() == 1


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ({"acme": ["gone:sink"]}, "the sink 'acme' cannot be imported: ModuleNotFoundError"),
        ({"acme": ["a:sink", "b:sink"]}, "two installed packages provide the sink 'acme': a:sink, b:sink"),
        ({"acme": ["collections:deque"]}, "does not name a SinkInfo"),
        ({}, "there is no sink 'acme'"),
    ],
)
def test_a_sink_that_cannot_be_used_is_an_error_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, points: dict[str, list[str]], says: str
) -> None:
    """A configuration without its name starts."""
    found = [EntryPoint(name, value, sinks.GROUP) for name, values in points.items() for value in values]
    found.append(EntryPoint("stdout", "pointsman_billing.sinks.stdout:stdout", sinks.GROUP))
    monkeypatch.setattr(sinks, "entry_points", lambda **_: found)
    assert sinks.choose("stdout").kind == "stdout"
    with pytest.raises(ValueError, match=says):
        sinks.choose("acme")


@pytest.mark.parametrize("first", [True, False])
def test_no_distribution_replaces_a_built_in_sink(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: bool
) -> None:
    """In whatever order they are found, the built-in one is used, and the log names the other."""
    own = EntryPoint("stdout", "pointsman_billing.sinks.stdout:stdout", sinks.GROUP)
    other = EntryPoint("stdout", "acme:sink", sinks.GROUP)
    monkeypatch.setattr(sinks, "entry_points", lambda **_: [other, own] if first else [own, other])
    assert sinks.choose("stdout").info.config.__module__ == "pointsman_billing.sinks.stdout"
    assert "acme:sink" in caplog.text


async def test_deployments_without_a_price_are_listed(tmp_path: Path) -> None:
    """The gateway knows one, a rule the other, and nothing the third; of the fourth, only what its prompts cost."""
    deployments = [deployment(f"{name}-1", name) for name in ("known", "ruled", "other", "half")]
    deployments.append(deployment("vectors-1", "vectors", mode="embedding"))
    rules = [
        {"models": ["ruled"], "input_usd_per_million": "1", "output_usd_per_million": "1"},
        {"models": ["other"], "tenants": ["acme"], "input_usd_per_million": "1", "output_usd_per_million": "1"},
    ]
    half = Price(input_usd=Decimal(1))
    prices = {"known-1": Price(input_usd=Decimal(0), output_usd=Decimal(0)), "half-1": half, "vectors-1": half}
    section = {"sinks": [], "prices": rules}
    async with Harness([(plugin, section)], deployments=deployments, prices=prices, path=tmp_path) as h:
        assert h.status("billing").details["deployments_without_price"] == ["half-1", "other-1"]


@pytest.mark.parametrize("what", ["file removed", "file replaced", "directory moved", "file overwritten"])
async def test_an_outbox_that_is_lost_while_it_is_in_use_is_said(tmp_path: Path, what: str) -> None:
    """Also without any traffic."""
    async with worker(tmp_path) as h:
        await h.request()
        await h.settled()
        await eventually(h, lambda: h.status("billing").details["sinks"] is not None)
        assert h.status("billing").ok
        directory = tmp_path / ".pointsman-billing"
        file = directory / OUTBOX
        if what == "directory moved":
            directory.rename(tmp_path / "elsewhere")
        elif what == "file overwritten":
            file.write_bytes(b"no database" * 999)
        else:
            file.rename(file.with_name("aside"))
            if what == "file replaced":
                file.touch()
        await eventually(h, lambda: not h.status("billing").ok)
        assert "outbox" in h.status("billing").summary
        if what == "directory moved":
            (tmp_path / "elsewhere").rename(directory)
            await eventually(h, lambda: h.status("billing").ok)
