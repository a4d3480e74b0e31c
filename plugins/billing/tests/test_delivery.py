"""From the outbox to sinks over real HTTP that time out, answer 500 and hang up: nothing lost, nothing claimed early."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pointsman.events import Notice
from pointsman.testing import Harness, ok
from pointsman.types import Identity
from pointsman_billing.database import Database
from pointsman_billing.schema import FILE
from pointsman_billing.sinks.ndjson import NdjsonSink

from .kit import eventually, get, lines, reconciled, settled_as, until, worker
from .sink_server import SinkServer, always, hostile, sequence

FAST = {"timeout_s": 0.5, "backoff_first_s": 0.01, "backoff_most_s": 0.02}


def cloud(server: SinkServer, **given: Any) -> dict[str, Any]:
    return {"cloudevents": {"url": server.url, **FAST, **given}}


async def some(h: Harness, count: int) -> None:
    for _ in range(count):
        await h.request(script=ok())
    await h.settled()


async def all_of(h: Harness, server: SinkServer, count: int) -> None:
    """Wait until a server has so many events."""
    await eventually(h, lambda: len(server.accepted) >= count)


async def test_cloudevents_are_what_the_standard_and_openmeter_want(tmp_path: Path) -> None:
    with SinkServer() as server:
        async with worker(tmp_path, cloud(server, token="s3cret", source="gw-1")) as h:
            await some(h, 1)
            await until(lambda: len(server.accepted) == 2)
            path, headers, batch = server.requests[0]
            assert path == "/api/v1/events"
            assert headers["content-type"] == "application/cloudevents-batch+json"
            assert headers["authorization"] == "Bearer s3cret"
            for event, type_ in zip(batch, ("attempt", "request"), strict=True):
                assert (event["specversion"], event["source"]) == ("1.0", "gw-1")
                assert event["type"] == f"pointsman.billing.{type_}"
                assert (event["id"], event["subject"]) == (event["data"]["id"], event["data"]["tenant_id"])
                assert event["time"].endswith("Z")
                assert event["datacontenttype"] == "application/json"
            assert "s3cret" not in json.dumps((await h.admin.get("/status")).json())


@pytest.mark.parametrize(
    "how", ["500", "503", "429", "401", "404", "drop", "late", "half", "500-after", "drop-after", "307"]
)
async def test_what_the_sink_did_not_confirm_comes_again(tmp_path: Path, how: str) -> None:
    """Whatever goes wrong, every event arrives, is pending until then, and the status says what is wrong."""
    with SinkServer(always(how), late_s=1.0) as server:
        async with worker(tmp_path, cloud(server)) as h:
            await some(h, 3)
            await eventually(h, lambda: server.hows[how] >= 3)
            assert await reconciled(h) == {"pending": 3}
            await until(lambda: h.plugin("billing")._deliveries[0].progress.failing)
            (row,) = (await get(h, "/sinks"))["sinks"]
            assert (row["pending"], row["delivered"], row["tries"] > 0) == (6, 0, True)
            assert row["error"]
            server.behaviour = always("ok")
            await all_of(h, server, 6)
            await settled_as(h, billed=3)
            (row,) = (await get(h, "/sinks"))["sinks"]
            assert (row["pending"], row["delivered"], row["tries"], row["error"]) == (0, 6, 0, None)
    again = {"500-after", "drop-after", "half"}
    assert (max(server.accepted.values()) > 1) == (how in again)
    ids = [event["id"] for event in server.events]
    assert len(ids) == len(set(ids)) == 6


async def test_a_receiver_that_has_an_event_already_has_received_it(tmp_path: Path) -> None:
    """It takes events whose confirmation is lost, and then answers 409 to each batch that contains one of them."""
    with SinkServer(sequence("500-after", "500-after", "ok"), knows=True) as server:
        async with worker(tmp_path, cloud(server, batch_events=2)) as h:
            await some(h, 3)
            await all_of(h, server, 6)
            await settled_as(h, billed=3)
            (row,) = (await get(h, "/sinks"))["sinks"]
            assert (row["pending"], row["delivered"], row["dead"]) == (0, 6, 0)
            assert row["since"] <= (await get(h, "/reconcile"))["kept_since"]


async def test_a_hostile_sink_gets_everything_in_order(tmp_path: Path) -> None:
    # On a busy machine an answer that is on time takes half a second, too.
    with SinkServer(hostile(1, 0.4), late_s=2.5) as server:
        async with worker(tmp_path, cloud(server, batch_events=7, timeout_s=2.0)) as h:
            await some(h, 60)
            await eventually(h, lambda: len(server.accepted) >= 120, timeout_s=180.0)
            await settled_as(h, billed=60)
    assert len(server.hows) >= 5
    numbers = [event["data"]["finished_at_ms"] for event in server.events]
    assert len(server.events) == 120
    assert numbers == sorted(numbers)


async def test_an_event_that_is_refused_is_found_among_others_and_becomes_a_dead_letter(tmp_path: Path) -> None:
    """The others of its batch arrive. It can be delivered again once the other side knows better."""
    with SinkServer(poison=lambda event: event["data"]["tenant_id"] == "bad") as server:
        async with worker(tmp_path, cloud(server)) as h:
            server.behaviour = always("500")
            for tenant in ("good", "bad", "good", "good", "bad", "good"):
                await h.request(identity=Identity(tenant=tenant))
            await h.settled()
            server.behaviour = always("ok")
            await all_of(h, server, 8)
            await settled_as(h, billed=4, dead=2)
            found = await get(h, "/dead")
            assert found["total"] == 4
            assert {letter["event"]["tenant_id"] for letter in found["dead"]} == {"bad"}
            assert all("400" in letter["error"] for letter in found["dead"])
            await eventually(h, lambda: "4 dead letters" in h.status("billing").summary)
            server._poison = lambda _: False
            one = found["dead"][0]["event"]["id"]
            answer = await h.admin.post("/billing/dead/redrive", json={"ids": [one]})
            assert answer.json() == {"redriven": 1}
            await all_of(h, server, 9)
            answer = await h.admin.post("/billing/dead/redrive", json={"sink": "cloudevents"})
            assert answer.json() == {"redriven": 3}
            await settled_as(h, billed=6)
    assert set(server.accepted.values()) == {1}


async def test_after_too_many_failures_events_become_dead_letters_and_the_next_ones_are_tried(tmp_path: Path) -> None:
    with SinkServer(always("500")) as server:
        async with worker(tmp_path, cloud(server, max_tries=3, batch_events=2)) as h:
            await some(h, 2)
            await settled_as(h, dead=2)
            assert server.hows["500"] == 6
            server.behaviour = always("ok")
            await some(h, 1)
            await settled_as(h, dead=2, billed=1)
            told = [event for event in h.events if isinstance(event, Notice)]
            assert {event.kind for event in told} == {"sink", "dead_letters"}
            assert any("2 events are dead letters after 3 tries" in event.text for event in told)
            await h.admin.post("/billing/dead/redrive", json={})
            await settled_as(h, billed=3)


async def test_a_sink_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Each has a cursor of its own; a request is billed when the last one has it."""
    with SinkServer(always("500")) as broken, SinkServer() as working:
        sinks = [cloud(broken, name="broken"), cloud(working, name="working"), {"ndjson": {"path": "bills.ndjson"}}]
        async with worker(tmp_path, *sinks) as h:
            await some(h, 5)
            await until(lambda: len(working.accepted) == 10)
            await until(lambda: len(lines(tmp_path / "bills.ndjson")) == 10)
            assert await reconciled(h) == {"pending": 5}
            broken.behaviour = always("ok")
            await settled_as(h, billed=5)


def cancel_the_caller() -> BaseException:
    """Cancel the running task; then fail."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return RuntimeError("cancelled")


@pytest.mark.parametrize(
    "make",
    [
        asyncio.CancelledError,
        GeneratorExit,
        lambda: SystemExit(1),
        lambda: BaseExceptionGroup("x", [SystemExit(1)]),
        cancel_the_caller,
    ],
    ids=["cancelled", "closed", "exit", "group", "cancels"],
)
async def test_whatever_a_sink_raises_its_events_become_dead_letters_and_the_next_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], BaseException]
) -> None:
    """A cancellation without a request for it is the sink's own error too."""
    plain = NdjsonSink.send

    async def send(sink: NdjsonSink, batch: Sequence[Any]) -> None:
        if any(event.tenant == "bad" for event in batch):
            raise make()
        await plain(sink, batch)

    monkeypatch.setattr(NdjsonSink, "send", send)
    quick = {"path": "bills.ndjson", "backoff_first_s": 0.01, "backoff_most_s": 0.02}
    async with worker(tmp_path, {"ndjson": quick}) as h:
        await h.request(identity=Identity(tenant="bad"))
        await settled_as(h, dead=1)
        await h.request(identity=Identity(tenant="good"))
        await settled_as(h, dead=1, billed=1)
        assert h.faults == {}


async def test_a_sink_can_have_only_the_attempts_or_only_the_requests(tmp_path: Path) -> None:
    with SinkServer() as attempts, SinkServer() as requests:
        sinks = [cloud(attempts, name="a", events="attempts"), cloud(requests, name="r", events="requests")]
        async with worker(tmp_path, *sinks) as h:
            await some(h, 3)
            await settled_as(h, billed=3)
    assert [e["data"]["type"] for e in attempts.events] == ["attempt"] * 3
    assert [e["data"]["type"] for e in requests.events] == ["request"] * 3


async def test_a_new_sink_begins_with_what_is_kept_or_with_now(tmp_path: Path) -> None:
    with SinkServer() as oldest, SinkServer() as now:
        async with worker(tmp_path) as h:
            await some(h, 2)
            assert await reconciled(h) == {"billed": 2}
        sinks = [cloud(oldest, name="oldest"), cloud(now, name="now", start="now")]
        async with worker(tmp_path, *sinks, name="second") as h:
            await some(h, 1)
            await settled_as(h, billed=3)
    assert (len(oldest.accepted), len(now.accepted)) == (6, 2)


async def test_a_shutdown_does_not_wait_for_a_look_at_what_has_been_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written while a whole batch is on its way is in the next one: nothing is left then, and no time has to pass."""
    sending, free = asyncio.Event(), asyncio.Event()
    send = NdjsonSink.send

    async def slowly(sink: NdjsonSink, batch: Sequence[Any]) -> None:
        sending.set()
        await free.wait()
        await send(sink, batch)

    monkeypatch.setattr(NdjsonSink, "send", slowly)
    async with worker(tmp_path, {"ndjson": {"path": "bills.ndjson", "batch_events": 4}}) as h:
        await some(h, 2)
        await eventually(h, sending.is_set)
        await some(h, 1)
        free.set()
        async with asyncio.timeout(10):
            await h.plugin("billing")._deliveries[0].drained()
        assert len(lines(tmp_path / "bills.ndjson")) == 6


async def test_one_worker_of_a_machine_delivers_and_another_takes_over(tmp_path: Path) -> None:
    """While it lives it delivers what both write; when it dies, the other goes on at once; each event comes once."""
    with SinkServer() as server:
        first = worker(tmp_path, cloud(server), name="first")
        await first.start()
        await until(lambda: first.plugin("billing")._deliveries[0].progress.active)
        async with worker(tmp_path, cloud(server), name="second") as second:
            await some(second, 3)
            # Not until the server has them: the first must have noted that, or the second sends them again.
            await settled_as(first, billed=3)
            assert len(server.accepted) == 6
            assert not second.plugin("billing")._deliveries[0].progress.active
            await first.crash()
            await some(second, 3)
            for _ in range(100):
                await second.clock.advance(1.0)
                if second.plugin("billing")._deliveries[0].progress.active:
                    break
            await settled_as(second, billed=6)
    assert set(server.accepted.values()) == {1}
    assert len(server.accepted) == 12


async def test_lago_gets_batches_and_what_it_has_already_is_not_sent_again(tmp_path: Path) -> None:
    """It takes a batch as a whole or not at all: a delivery whose answer was lost must not block the rest."""
    with SinkServer(sequence("drop-after", "ok"), lago=True) as server:
        config = {"url": server.url, "api_key": "k3y", "subscriptions": {"team-1": "sub_7"}, **FAST, "batch_events": 3}
        async with worker(tmp_path, {"lago": config}) as h:
            await some(h, 4)
            await all_of(h, server, 8)
            await settled_as(h, billed=4)
        path, headers, batch = server.requests[0]
        assert (path, headers["authorization"]) == ("/api/v1/events/batch", "Bearer k3y")
        event = batch["events"][0]
        assert set(event) == {"transaction_id", "external_subscription_id", "code", "timestamp", "properties"}
        assert event["code"] == "pointsman_attempt"
        assert event["external_subscription_id"] in {"sub_7", "user:user-1", "team:team-1"}
        assert event["properties"]["prompt_tokens"] > 0
    assert set(server.accepted.values()) == {1}


async def test_an_event_that_lago_refuses_becomes_a_dead_letter_alone(tmp_path: Path) -> None:
    """Also when others of its batch are known to Lago already."""
    wrong = "pointsman_request"
    with SinkServer(always("500"), lago=True, poison=lambda event: event["code"] == wrong) as server:
        async with worker(tmp_path, {"lago": {"url": server.url, "api_key": "k", **FAST}}) as h:
            await some(h, 3)
            server.behaviour = always("ok")
            await all_of(h, server, 3)
            await settled_as(h, dead=3)
            assert (await get(h, "/dead", sink="lago"))["total"] == 3
    assert set(server.accepted.values()) == {1}


async def test_the_secrets_of_sinks_are_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cr3t-t0ken"
    caplog.set_level("DEBUG")
    with SinkServer(always("500")) as server:
        sinks = [cloud(server, token=secret), {"lago": {"url": server.url, "api_key": secret, **FAST}}]
        async with worker(tmp_path, *sinks) as h:
            await some(h, 1)
            await until(lambda: server.hows["500"] >= 2)
            seen = [repr(h.plugin("billing")._config), json.dumps((await h.admin.get("/status")).json())]
            seen += [(await h.admin.get(f"/billing{path}")).text for path in ("/sinks", "/dead", "/reconcile")]
    for text in [*seen, caplog.text]:
        assert secret not in text
    for file in (tmp_path / ".pointsman-billing").iterdir():
        assert secret.encode() not in file.read_bytes()


async def test_a_receiver_that_is_down_for_a_day_gets_everything_in_order(tmp_path: Path) -> None:
    """No event becomes a dead letter, and nothing has to be redriven."""
    with SinkServer(always("503")) as server:
        async with worker(tmp_path, cloud(server, backoff_most_s=3600.0, batch_events=2)) as h:
            await some(h, 3)
            down_until = h.clock.now() + 86_400
            while h.clock.now() < down_until or server.hows["503"] <= 10:
                await h.clock.skip(1800.0)
                await asyncio.sleep(0.01)  # its answers take real time
            assert await reconciled(h) == {"pending": 3}
            assert "behind" in h.status("billing").summary
            await some(h, 2)
            server.behaviour = always("ok")
            for _ in range(3):
                await h.clock.advance(1800.0)
            await all_of(h, server, 10)
            await settled_as(h, billed=5)
            with closing(sqlite3.connect(tmp_path / ".pointsman-billing" / FILE)) as outbox:
                written = [id_ for (id_,) in outbox.execute("SELECT id FROM events ORDER BY seq").fetchall()]
            assert list(server.accepted) == written
            assert h.plugin("billing")._deliveries[0].progress.dead == 0


async def test_after_hours_without_receivers_and_the_death_of_a_worker_each_gets_everything_in_order(
    tmp_path: Path,
) -> None:
    """The worker that waits for them dies meanwhile; each receiver comes back by itself, and nothing has to be redriven."""
    with SinkServer(always("503")) as one, SinkServer(always("drop")) as two:
        sinks = [
            cloud(one, name="one", backoff_most_s=60.0, batch_events=3),
            cloud(two, name="two", backoff_most_s=60.0, batch_events=3),
        ]
        first = worker(tmp_path, *sinks, name="first")
        await first.start()
        await some(first, 4)
        await pass_hours(first, one, two)
        await first.crash()
        async with worker(tmp_path, *sinks, clock=first.clock, name="second") as second:
            await some(second, 3)
            await pass_hours(second, one, two)
            one.behaviour = always("ok")
            await all_of(second, one, 14)
            await some(second, 1)
            await all_of(second, one, 16)
            assert not two.accepted
            two.behaviour = always("ok")
            await settled_as(second, billed=8)
            assert (await get(second, "/dead"))["total"] == 0
            with closing(sqlite3.connect(tmp_path / ".pointsman-billing" / FILE)) as outbox:
                written = [id_ for (id_,) in outbox.execute("SELECT id FROM events ORDER BY seq").fetchall()]
    assert list(one.accepted) == list(two.accepted) == written
    assert {*one.accepted.values(), *two.accepted.values()} == {1}


async def pass_hours(h: Harness, *servers: SinkServer) -> None:
    """Let three hours pass, and all receivers be asked again and again."""
    asked = [server.hows.total() for server in servers]
    until_s = h.clock.now() + 3 * 3600.0
    while h.clock.now() < until_s or any(
        server.hows.total() < before + 8 for server, before in zip(servers, asked, strict=True)
    ):
        await h.clock.skip(120.0)
        await asyncio.sleep(0.005)  # their answers take real time


def full(database: Database) -> None:
    database._max_bytes, database._room_bytes = database.used_bytes(), 0


async def test_an_outbox_that_fills_while_a_receiver_is_down_is_emptied_in_order_when_it_is_back(
    tmp_path: Path,
) -> None:
    """What does not fit waits in the journal, and is billed once there is room, each request once."""
    with SinkServer(always("503")) as server:
        async with worker(tmp_path, cloud(server)) as h:
            outbox = h.plugin("billing")._outbox
            await some(h, 3)
            await outbox.write(full)
            for _ in range(3):
                await h.request(script=ok())
            await eventually(h, lambda: h.host.describe()["journal"]["retried"] >= 2)
            assert await reconciled(h) == {"pending": 3}
            assert h.host.describe()["journal"]["waiting"] == {"billing": 3}
            server.behaviour = always("ok")
            await settled_as(h, billed=6)
            await h.settled()
            assert await reconciled(h) == {"billed": 6}
    assert len(server.accepted) == 12
    assert set(server.accepted.values()) == {1}


async def test_gateways_that_share_an_outbox_by_mistake_bill_and_deliver_each_request_once(tmp_path: Path) -> None:
    """Each has a store of its own and a sink of its own beside a common one; one of them dies, the other goes on."""
    with SinkServer() as common, SinkServer() as here, SinkServer() as there:
        one = worker(tmp_path, cloud(common, name="common"), cloud(here, name="here"), name="one")
        await one.start()
        async with worker(
            tmp_path, cloud(common, name="common"), cloud(there, name="there"), clock=one.clock, name="two"
        ) as two:
            requests = await asyncio.gather(*((one, two)[number % 2].request(script=ok()) for number in range(20)))
            await one.settled()
            await two.settled()
            for server in (common, here, there):
                await all_of(one, server, 40)
            await settled_as(one, billed=20)
            await settled_as(two, billed=20)
            await one.crash()
            requests += [await two.request(script=ok()) for _ in range(3)]
            await two.settled()
            for server in (common, there):
                await all_of(two, server, 46)
            await settled_as(two, billed=23)
    for server in (common, there):
        billed = [event["data"]["request_id"] for event in server.events if event["data"]["type"] == "request"]
        assert sorted(billed) == sorted(result.request_id for result in requests)
        assert set(server.accepted.values()) == {1}
