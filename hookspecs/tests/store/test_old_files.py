"""A disk store written by the first release is read, compared and written by this one.

``fixtures/store.sql`` is the dump of its file after traffic through all plugins and the sudden end of the worker,
``fixtures/rows.json`` what that release itself read from it, ``fixtures/answers.json`` what its admin surface said.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from pointsman.store import open_store

FIXTURES = Path(__file__).parent / "fixtures"
ROWS = json.loads((FIXTURES / "rows.json").read_text(encoding="utf-8"))
NOW = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))["now"]
YEAR_S = 366 * 86_400


@pytest.fixture
async def old(tmp_path):
    """Return the opener of the old store at a time."""
    directory = tmp_path / "store"
    directory.mkdir(0o700)
    with contextlib.closing(sqlite3.connect(directory / "cache.db")) as connection:
        connection.executescript((FIXTURES / "store.sql").read_text(encoding="utf-8"))
    async with contextlib.AsyncExitStack() as stack:

        async def open_at(now):
            store = await open_store("disk", path=directory, clock=lambda: now)
            stack.push_async_callback(store.close)
            return store

        yield open_at


async def test_every_row_is_read_as_it_was(old):
    store = await old(NOW)
    assert {key.partition("/")[0] for key in ROWS} == {
        "balance", "billing", "canary", "host", "quota", "racing", "registry", "shadow", "signals",
    }  # fmt: skip
    assert dict(await store.scan("")) == ROWS
    assert await store.get_many(list(ROWS)) == list(ROWS.values())


async def test_every_row_equals_its_value_and_can_be_replaced(old):
    store = await old(NOW)
    for key, value in ROWS.items():
        assert await store.compare_and_set(key, value, {"new": value}), key
    assert dict(await store.scan("")) == {key: {"new": value} for key, value in ROWS.items()}


async def test_rows_end_at_their_old_time(old):
    """Leases, heartbeats and measurements are gone after a year; what operators have registered stays."""
    left = set(dict(await (await old(NOW + YEAR_S)).scan("")))
    assert "host/worker/old-1" not in left
    assert not any(key.startswith("racing/standing/") for key in left)
    assert {
        "registry/{registry}state/name/assistant",
        "quota/{tenants}/stored",
        "canary/{canary}/state/assistant-rollout",
    } < left
