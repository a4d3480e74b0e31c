"""A real PostgreSQL and a real Kafka broker: everything once, also when they are killed in between."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pointsman.testing import Harness, ok
from pointsman.types import Identity

from .kit import eventually, get, settled_as, worker
from .servers import KafkaServer, PostgresServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

FAST = {"timeout_s": 3.0, "backoff_first_s": 0.05, "backoff_most_s": 0.2, "max_tries": 1000}


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pointsman-", dir="/tmp"))  # the server's own user enters it
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def postgres(directory: Path) -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    server = PostgresServer(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed")
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server
    server.stop()


async def some(h: Harness, count: int) -> None:
    for number in range(count):
        await h.request(identity=Identity(tenant=f"tenant-{number % 3}"), script=ok())
    await h.settled()


def rows(postgres: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(postgres.dsn) as connection:
        return connection.execute(query).fetchall()


async def test_postgres_has_every_event_once_although_it_was_killed(postgres: PostgresServer, tmp_path: Path) -> None:
    sink = {"postgres": {"dsn": postgres.dsn, "table": "public.bills", **FAST}}
    async with worker(tmp_path, sink) as h:
        await some(h, 30)
        await settled_as(h, billed=30)
        postgres.stop(signal.SIGQUIT)
        await some(h, 30)
        state: dict[str, Any] = {}

        async def said() -> object:
            (found,) = (await get(h, "/sinks"))["sinks"]
            state.update(found)
            return found["error"]

        await eventually(h, said)
        assert "OperationalError" in state["error"] or "AdminShutdown" in state["error"]
        assert postgres.dsn not in json.dumps(state)
        postgres.start()
        await settled_as(h, billed=60)
    found = rows(
        postgres,
        "SELECT id, type, tenant_id, prompt_tokens, amount_usd_micros, event, extract(epoch FROM finished_at) FROM bills",
    )
    assert len({row[0] for row in found}) == len(found) == 120
    for id_, type_, tenant, tokens, amount, event, at in found:
        assert (event["id"], event["type"], event["tenant_id"], event["prompt_tokens"], event["amount_usd_micros"]) == (
            id_,
            type_,
            tenant,
            tokens,
            amount,
        )
        assert int(at * 1000) == event["finished_at_ms"]
    ((total,),) = rows(postgres, "SELECT sum(amount_usd_micros) FROM bills WHERE type = 'attempt'")
    assert total == 60 * 20


async def test_events_that_come_again_change_no_row(postgres: PostgresServer, tmp_path: Path) -> None:
    """As after a crash between the database's commit and ours: a new sink on the same table starts from the oldest."""
    for name in ("first", "second"):
        sink = {"postgres": {"dsn": postgres.dsn, "name": name, **FAST}}
        async with worker(tmp_path, sink, name=name) as h:
            await some(h, 5)
            await settled_as(h, billed=5 if name == "first" else 10)
    ((count,),) = rows(postgres, "SELECT count(*) FROM pointsman_billing_events")
    assert count == 20


async def test_a_table_that_does_not_fit_holds_events_back(postgres: PostgresServer, tmp_path: Path) -> None:
    """It is for the operator to mend; nothing is given up meanwhile."""
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("CREATE TABLE other (id text PRIMARY KEY)")
    sink = {"postgres": {"dsn": postgres.dsn, "table": "other", **FAST}}
    async with worker(tmp_path, sink) as h:
        await some(h, 1)
        await eventually(h, lambda: h.plugin("billing")._deliveries[0].progress.tries >= 2)
        (state,) = (await get(h, "/sinks"))["sinks"]
        assert (state["pending"], state["dead"]) == (2, 0)
        assert "SyntaxError" in state["error"] or "UndefinedColumn" in state["error"]
        with psycopg.connect(postgres.dsn) as connection:
            connection.execute("DROP TABLE other")
        await settled_as(h, billed=1)


async def test_the_options_of_the_connection_string_hold(postgres: PostgresServer, tmp_path: Path) -> None:
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("CREATE SCHEMA billing")
    sink = {"postgres": {"dsn": f"{postgres.dsn}?options=-c%20search_path%3Dbilling", **FAST}}
    async with worker(tmp_path, sink) as h:
        await some(h, 1)
        await settled_as(h, billed=1)
    assert rows(postgres, "SELECT count(*) FROM billing.pointsman_billing_events") == [(2,)]


async def test_a_statement_that_hangs_is_given_up_in_time(postgres: PostgresServer, tmp_path: Path) -> None:
    """By the server itself, and the next try succeeds."""
    import psycopg  # noqa: PLC0415 - an extra

    sink = {"postgres": {"dsn": postgres.dsn, **FAST, "timeout_s": 0.5}}
    async with worker(tmp_path, sink) as h:
        await some(h, 1)
        await settled_as(h, billed=1)
        with psycopg.connect(postgres.dsn) as connection:
            connection.execute("LOCK TABLE pointsman_billing_events")
            await some(h, 1)
            await eventually(h, lambda: "QueryCanceled" in h.plugin("billing")._deliveries[0].progress.failing)
        await settled_as(h, billed=2)


def consumed(kafka: KafkaServer, topic: str, count: int) -> list[Any]:
    """Return a topic's messages: so many, and those that come in the seconds after."""
    from confluent_kafka import Consumer  # noqa: PLC0415 - an extra

    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": f"test-{time.time()}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    messages: list[Any] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        message = consumer.poll(2.0 if len(messages) >= count else 0.5)
        if message is None:
            if len(messages) >= count:
                break
            continue
        if message.error() is None:
            messages.append(message)
    consumer.close()
    return messages


async def test_kafka_has_every_event_keyed_by_tenant_although_it_was_killed(kafka: KafkaServer, tmp_path: Path) -> None:
    """Without a crash of ours each comes once; within a tenant they keep their order."""
    sink = {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": "bills", **FAST, "timeout_s": 8.0}}
    async with worker(tmp_path, sink) as h:
        await some(h, 30)
        await settled_as(h, billed=30)
        kafka.stop()
        await some(h, 30)
        await eventually(h, lambda: h.plugin("billing")._deliveries[0].progress.failing, timeout_s=60)
        kafka.start()
        for _ in range(8):
            try:
                await settled_as(h, billed=60)
                break
            except AssertionError:
                continue
        (state,) = (await get(h, "/sinks"))["sinks"]
        assert (state["pending"], state["dead"]) == (0, 0)
    messages = consumed(kafka, "bills", 120)
    by_id: dict[bytes, Any] = {}
    partitions: dict[bytes, set[int]] = {}
    for message in messages:
        headers = dict(message.headers())
        event = json.loads(message.value())
        assert headers["id"] == event["id"].encode()
        assert headers["type"] == event["type"].encode()
        assert message.key() == event["tenant_id"].encode()
        by_id.setdefault(headers["id"], event)
        partitions.setdefault(message.key(), set()).add(message.partition())
    assert len(by_id) == 120
    assert all(len(found) == 1 for found in partitions.values())
    assert sum(e["amount_usd_micros"] for e in by_id.values() if e["type"] == "attempt") == 60 * 20


async def test_an_event_that_kafka_will_never_take_becomes_a_dead_letter(kafka: KafkaServer, tmp_path: Path) -> None:
    options = {"message.max.bytes": "1350"}
    sink = {"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": "small", "options": options, **FAST}}
    async with worker(tmp_path, sink) as h:
        await h.request(identity=Identity(tenant="good"))
        await h.request(identity=Identity(tenant="x" * 190), model="chat")
        await h.request(identity=Identity(tenant="good"))
        await h.settled()
        await settled_as(h, billed=2, dead=1)
        found = await get(h, "/dead")
        assert {letter["event"]["tenant_id"] for letter in found["dead"]} == {"x" * 190}
        assert "MSG_SIZE_TOO_LARGE" in found["dead"][0]["error"]
