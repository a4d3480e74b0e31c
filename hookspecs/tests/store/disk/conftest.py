"""A disk store, and ways to look at its file behind its back."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from pointsman.store.disk import DiskStore


@pytest.fixture
def directory(tmp_path):
    """Name the directory of the store."""
    return tmp_path / "store"


@pytest.fixture
async def store(directory, opened):
    """Open a disk store."""
    return await opened(DiskStore.open(directory, timeout_s=5))


@pytest.fixture
def database():
    """Open the file of a store in a directory."""

    @contextlib.contextmanager
    def open_file(directory):
        with contextlib.closing(sqlite3.connect(directory / "cache.db", isolation_level=None, timeout=5)) as connection:
            yield connection

    return open_file


@pytest.fixture
def plant(directory, database):
    """Write a row as diskcache might have."""

    def write(*, key="planted", raw=1, mode=1, filename=None, value=None, where=directory):
        with database(where) as connection:
            connection.execute(
                "INSERT INTO Cache(key, raw, store_time, access_time, mode, filename, value) VALUES (?, ?, 0, 0, ?, ?, ?)",
                (key, raw, mode, filename, value),
            )

    return write
