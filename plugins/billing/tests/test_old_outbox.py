"""An outbox written by the first release is read, delivered and added to by this one.

``fixtures/outbox.sql`` is the dump of its file: traffic of all plugins, one sink that has everything, and one
that has refused four events and has not been given the others. ``fixtures/answers.json`` is what that release said of it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from pointsman.testing import FakeClock, Harness, deployment
from pointsman_billing.plugin import plugin

from .kit import eventually, lines

FIXTURES = Path(__file__).parent / "fixtures"
OLD = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))
DUMP = (FIXTURES / "outbox.sql").read_text(encoding="utf-8")
EVENTS, REFUSED = 78, 4


@pytest.fixture
async def worker(tmp_path):
    outbox = tmp_path / "outbox"
    outbox.mkdir(0o700)
    with contextlib.closing(sqlite3.connect(outbox / "outbox.sqlite3")) as connection:
        connection.executescript(DUMP)
    section = {
        "outbox": {"path": str(outbox)},
        "sinks": [{"ndjson": {"path": str(tmp_path / f"{name}.ndjson"), "name": name}} for name in ("ndjson", "late")],
    }
    async with Harness(
        [(plugin, section)],
        deployments=[deployment("fast-1", "fast")],
        path=tmp_path,
        clock=FakeClock(OLD["now"] + 1),
        name="new",
    ) as h:
        yield h


async def shown(h, path):
    return (await h.admin.get(path)).raise_for_status().json()


async def delivered(h, tmp_path, name, count):
    """Return the sequence of events in a sink's file once it has so many."""
    file = tmp_path / f"{name}.ndjson"
    await eventually(h, lambda: len(lines(file)) >= count)
    return lines(file)


async def test_reports_are_the_old_ones(worker):
    usage = (await shown(worker, "/billing/usage"))["usage"]
    assert [row | was for row, was in zip(usage, OLD["/billing/usage"]["usage"], strict=True)] == usage
    old, now = OLD["/billing/reconcile"], await shown(worker, "/billing/reconcile")
    for part in ("machine", "kept_since", "models_to_look_at"):
        assert now[part] == old[part], part
    # What is billed and what pending has changed: there is a second sink.
    for part in ("requests", "own_calls"):
        sums = {name: value for name, value in old[part].items() if name == "total" or name.endswith("usd_micros")}
        assert now[part] | sums == now[part], part


async def test_each_sink_gets_what_it_has_not_confirmed(worker, tmp_path):
    """Nothing, or all but the refused ones, and the refused ones when they are asked for; every event once."""
    await delivered(worker, tmp_path, "late", EVENTS - REFUSED)
    assert await delivered(worker, tmp_path, "ndjson", 0) == []
    dead = (await shown(worker, "/billing/dead"))["dead"]
    assert [(each["sink"], each["error"]) for each in dead] == [("late", "HTTP 400: no such tenant")] * REFUSED
    (await worker.admin.post("/billing/dead/redrive", json={"sink": "late"})).raise_for_status()
    whole = await delivered(worker, tmp_path, "late", EVENTS)
    assert len({event["id"] for event in whole}) == EVENTS
    assert lines(tmp_path / "ndjson.ndjson") == []


async def test_new_bills_come_after_the_old_ones(worker, tmp_path):
    await worker.request(model="fast")
    await worker.settled()
    events = await delivered(worker, tmp_path, "ndjson", 2)
    assert [event["type"] for event in events] == ["attempt", "request"]
    requests = (await shown(worker, "/billing/reconcile"))["requests"]
    assert requests["total"] == OLD["/billing/reconcile"]["requests"]["total"] + 1
