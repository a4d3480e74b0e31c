"""The outbox's file: its tables, and whether it is sound.

``events``    the events to deliver, in the order they were written. A sink's cursor is the last ``seq`` it is done with; the
              database hands them out in the order of the commits, so none appears behind a cursor.
``requests``  one row for each settled request and each billed call of our own: it makes writing idempotent, and is what
              reconciliation counts.
``quarters``  sums by quarter of an hour and everything that usage reports group by. Written with the events, in one
              transaction.
``seconds``   the same by second, as long as events are kept: for the parts of a quarter at both ends of a report.
``sinks``     each sink's cursor and state.
``dead``      what a sink did not take; ``again`` marks those that are to be delivered again.
``held``      requests that another machine may still take over, and their sums. They are neither delivered nor counted until
              they are released, and go without a trace when the other machine bills them.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from .aggregates import COUNTS, DIMENSIONS, MONEY, QUARTER_S

FILE: Final = "outbox.sqlite3"
_MEGABYTE: Final = 1_000_000
MAGIC: Final = b"SQLite format 3\0"
WAY_OUT: Final = (
    "restore it from a backup, or move it away together with the files next to it to start with an empty outbox; what it had "
    "not delivered can be read from it with `sqlite3 FILE .recover`"
)
#: Largest file that is checked from end to end before it is used: about a second for each gigabyte.
_CHECKED_BYTES: Final = 2_000 * _MEGABYTE
VERSION: Final = "2"
FIRST_VERSION: Final = "1"
#: The tables of sums and the seconds that a row of each covers.
STEPS_S: Final = {"quarters": QUARTER_S, "seconds": 1}

_USAGE: Final = "".join(
    f"CREATE TABLE IF NOT EXISTS {table} (start INTEGER NOT NULL, "
    + "".join(f"{name} TEXT NOT NULL, " for name in DIMENSIONS)
    + "".join(f"{name} INTEGER NOT NULL, " for name in COUNTS)
    + "".join(f"{name} TEXT NOT NULL, " for name in MONEY)
    + f"PRIMARY KEY (start, {', '.join(DIMENSIONS)})) WITHOUT ROWID;\n"
    for table in ("quarters", "seconds")
)
SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    request_id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_request ON events (request_id);
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY,
    own INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    last_seq INTEGER NOT NULL,
    gateway_usd_micros INTEGER NOT NULL,
    cost_usd_micros INTEGER NOT NULL,
    amount_usd_micros INTEGER NOT NULL,
    difference_usd_micros INTEGER NOT NULL,
    announced INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (at_ms);
{_USAGE}
CREATE TABLE IF NOT EXISTS sinks (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    worker TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (
    sink TEXT NOT NULL,
    seq INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    again INTEGER NOT NULL,
    PRIMARY KEY (sink, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    request_id TEXT PRIMARY KEY,
    worker TEXT NOT NULL,
    first_seq INTEGER NOT NULL,
    sums TEXT NOT NULL
) WITHOUT ROWID;
"""


def problem_of(directory: Path) -> str | None:
    """Return what is wrong with the outbox in a directory, without changing it; None if there is none or it is sound."""
    path = directory / FILE
    if not path.exists():
        return None
    if not os.access(directory, os.W_OK) or not os.access(path, os.W_OK):
        return f"the outbox {path} cannot be written by this user; run this command as the user of the proxy"
    try:
        with closing(sqlite3.connect(f"file:{quoted(path)}?mode=ro", uri=True)) as connection:
            return damage_of(connection, path)
    except sqlite3.Error as err:
        return f"the outbox {path} cannot be read: {err}"


def quoted(path: Path) -> str:
    """Return a path as part of an URI."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def damage_of(connection: sqlite3.Connection, path: Path) -> str | None:
    """Return how a file is damaged, or None."""
    try:
        if path.stat().st_size > _CHECKED_BYTES:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            return None
        ((text,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        verdict = text.splitlines()[-1]
    except sqlite3.DatabaseError as err:
        if (getattr(err, "sqlite_errorcode", 0) & 0xFF) not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise
        verdict = str(err)
    if verdict == "ok":
        return None
    return f"the outbox {path} is damaged ({verdict}); {WAY_OUT}"
