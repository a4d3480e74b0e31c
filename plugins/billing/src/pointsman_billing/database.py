"""The outbox's database: one SQLite file in WAL mode for all workers of a machine.

Blocking; the object belongs to one thread. Every method is one part of a transaction that the caller begins and commits.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from . import sums
from .bill import Bill
from .errors import OutboxFull, OutboxUnavailable
from .events import BillEvent
from .lock import opening
from .tables import ADD_TO_HOUR, SCHEMA, VERSION

T = TypeVar("T")

FILE: Final = "outbox.sqlite3"
_PRIVATE: Final = 0o700
_MEGABYTE: Final = 1_000_000
_WAL_BYTES: Final = 64 * _MEGABYTE
#: Rows that one step of clearing away removes, so that it never holds the lock for long.
_PRUNED_ROWS: Final = 2000
#: Most rows that one statement inserts.
_MOST_ROWS: Final = 64
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Batch:
    """What a sink gets next.

    Attributes:
        events: With their sequence numbers.
        upto: The sink's cursor once they are confirmed.
        again: Whether they are dead letters that are tried once more; they do not move the cursor.
    """

    events: tuple[tuple[int, BillEvent], ...]
    upto: int
    again: bool = False


class Database:
    """The open file.

    Args:
        directory: Where it is; made if need be, with mode 0700.
        sinks: The names of the sinks that have to confirm events.
        fsync: Whether a commit survives a power failure.
        timeout_s: How long to wait for other workers that write.
        max_bytes: How large it may grow.

    Raises:
        OutboxUnavailable: it cannot be opened, or is not ours.
    """

    def __init__(
        self, directory: Path, *, sinks: Sequence[str] = (), fsync: bool, timeout_s: float, max_bytes: int
    ) -> None:
        self.path = directory / FILE
        self._sinks = tuple(sinks)
        self._max_bytes = max_bytes
        try:
            if not directory.exists():
                directory.parent.mkdir(parents=True, exist_ok=True)
                directory.mkdir(_PRIVATE, exist_ok=True)
            with opening(directory):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
                self._connection = sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None)
                self._prepare(fsync=fsync)
        except (OSError, sqlite3.Error) as err:
            raise OutboxUnavailable(
                f"the outbox in {directory} cannot be opened: {err}; set billing's outbox.path to a directory on a local "
                "disk that this user can write"
            ) from err

    def _prepare(self, *, fsync: bool) -> None:
        try:
            self._set_up(fsync=fsync)
        except sqlite3.Error as err:
            self._connection.close()
            raise OutboxUnavailable(f"the file {self.path} cannot be used as an outbox: {err}") from err
        except BaseException:
            self._connection.close()
            raise

    def _set_up(self, *, fsync: bool) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        run(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        run("PRAGMA cache_size = -16000")
        # One transaction, so that workers that start together see all tables or none.
        self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        run("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (VERSION,))
        ((version,),) = run("SELECT value FROM meta WHERE name = 'version'").fetchall()
        if version != VERSION:
            raise OutboxUnavailable(
                f"the file {self.path} is an outbox of version {version}; this is version {VERSION}"
            )

    # -- transactions -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction that writes."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since ``begin`` last."""
        self._connection.execute("COMMIT")

    def begin_part(self) -> None:
        """Begin a part of a transaction that can be undone by itself."""
        self._connection.execute("SAVEPOINT part")

    def end_part(self) -> None:
        """Make everything since ``begin_part`` belong to the transaction."""
        self._connection.execute("RELEASE part")

    def undo_part(self) -> None:
        """Undo everything since ``begin_part``; the part goes on."""
        self._connection.execute("ROLLBACK TO part")

    def rollback(self) -> None:
        """Undo everything since ``begin``."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    # -- bills --------------------------------------------------------------------------------------------------------

    def append(self, bills: Sequence[Bill]) -> list[bool]:
        """Write bills down, each once; say for each whether it still has to be announced.

        Raises:
            OutboxFull: there is no room.
        """
        if self.used_bytes() >= self._max_bytes:
            self.prune(before_ms=0, hours_before_s=0)
        if self.used_bytes() >= self._max_bytes:
            raise OutboxFull(
                f"the outbox {self.path} has reached outbox.max_size_mb and everything in it is still to be delivered; "
                "see which sink is failing, or raise the limit"
            )
        ids = [bill.request_id for bill in bills]
        known: dict[str, int] = {}
        for some in _in_parts(ids):
            known |= self._connection.execute(
                f"SELECT request_id, announced FROM requests WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                some,
            ).fetchall()
        new: dict[str, Bill] = {}
        for bill in bills:
            if bill.request_id not in known:
                new.setdefault(bill.request_id, bill)
        if new:
            self._insert(new.values())
        return [not known.get(id_) for id_ in ids]

    def _insert(self, bills: Collection[Bill]) -> None:
        # What AUTOINCREMENT would hand out: nobody else writes during our transaction.
        last = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        seq = last[0] if last is not None else 0
        events: list[tuple[object, ...]] = []
        requests: list[tuple[object, ...]] = []
        for bill in bills:
            different: dict[str, BillEvent] = {}
            for event in bill.events:
                different.setdefault(event.id, event)
            for event in different.values():
                seq += 1
                events.append((seq, event.id, event.type, bill.request_id, event.tenant, event.at_ms, event.body))
            requests.append(
                (
                    bill.request_id,
                    bill.own,
                    bill.tenant,
                    bill.model,
                    bill.at_ms,
                    bill.state,
                    seq if different else 0,
                    bill.gateway_usd_micros,
                    bill.cost_usd_micros,
                    bill.amount_usd_micros,
                    bill.difference_usd_micros,
                    0,
                )
            )
        self._insert_rows("INSERT OR IGNORE INTO events", events)
        self._insert_rows("INSERT INTO requests", requests)
        self._insert_rows(
            "INSERT INTO hours", [(*key, *row) for key, row in sorted(sums.of_bills(bills).items())], ADD_TO_HOUR
        )

    def _insert_rows(self, into: str, rows: Sequence[tuple[object, ...]], on_conflict: str = "") -> None:
        """Insert rows, many to a statement.

        Each statement lets go of the interpreter and gets it back only when the event loop gives it away, which takes
        longer than the rows do.
        """
        for some in _in_parts(rows):
            marks = ", ".join([f"({_marks(len(some[0]))})"] * len(some))
            self._connection.execute(f"{into} VALUES {marks} {on_conflict}", [value for row in some for value in row])

    def announced(self, request_ids: Sequence[str]) -> None:
        """Note that what was spent has been announced."""
        for some in _in_parts(request_ids):
            self._connection.execute(
                f"UPDATE requests SET announced = 1 WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                some,
            )

    # -- sinks --------------------------------------------------------------------------------------------------------

    def join(self, sink: str, *, from_now: bool) -> None:
        """Give a new sink its place; one that has a place keeps it."""
        self._connection.execute(
            "INSERT OR IGNORE INTO sinks SELECT ?, CASE WHEN ? THEN coalesce(max(seq), 0) ELSE 0 END, 0, 0, '', '', 0 "
            "FROM events",
            (sink, from_now),
        )

    def next_batch(self, sink: str, most: int) -> Batch:
        """Return what the sink gets next: dead letters that are to be tried again, else what is behind its cursor."""
        again = self._events(
            "SELECT e.* FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink = ? AND d.again ORDER BY d.seq LIMIT ?",
            (sink, most),
        )
        if again:
            return Batch(again, 0, again=True)
        ((cursor,),) = self._connection.execute("SELECT cursor FROM sinks WHERE name = ?", (sink,)).fetchall()
        events = self._events("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (cursor, most))
        return Batch(events, events[-1][0] if events else cursor)

    def _events(self, select: str, arguments: tuple[object, ...]) -> tuple[tuple[int, BillEvent], ...]:
        """Return events in their order.

        As one row: fetching each lets go of the interpreter and waits for it again. A body is JSON on one line.
        """
        ((heads, bodies),) = self._connection.execute(
            "SELECT json_group_array(json_array(seq, id, type, tenant, at_ms)), group_concat(body, char(10)) "  # noqa: S608 - our own
            f"FROM ({select})",
            arguments,
        ).fetchall()
        return tuple(
            (seq, BillEvent(id=id_, type=type_, tenant=tenant, at_ms=at_ms, body=body))
            for (seq, id_, type_, tenant, at_ms), body in zip(
                json.loads(heads), (bodies or "").splitlines(), strict=True
            )
        )

    def confirm(self, sink: str, batch: Batch, delivered: int, worker: str, now_ms: int) -> None:
        """Note that the sink has confirmed a batch."""
        if batch.again:
            self._connection.executemany(
                "DELETE FROM dead WHERE sink = ? AND seq = ?", [(sink, seq) for seq, _ in batch.events]
            )
        self._connection.execute(
            "UPDATE sinks SET cursor = max(cursor, ?), delivered = delivered + ?, tries = 0, error = '', worker = ?, "
            "at_ms = ? WHERE name = ?",
            (batch.upto, delivered, worker, now_ms, sink),
        )

    def failed(self, sink: str, tries: int, error: str, worker: str, now_ms: int) -> None:
        """Note that a delivery has failed."""
        self._connection.execute(
            "UPDATE sinks SET tries = ?, error = ?, worker = ?, at_ms = ? WHERE name = ?",
            (tries, error, worker, now_ms, sink),
        )

    def bury(self, sink: str, batch: Batch, tries: int, error: str, now_ms: int) -> None:
        """Put a batch aside as dead letters."""
        self._connection.executemany(
            "INSERT INTO dead VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (sink, seq) DO UPDATE SET "
            "tries = tries + excluded.tries, error = excluded.error, at_ms = excluded.at_ms, again = 0",
            [(sink, seq, tries, error, now_ms) for seq, _ in batch.events],
        )
        if not batch.again:
            self._connection.execute("UPDATE sinks SET cursor = max(cursor, ?) WHERE name = ?", (batch.upto, sink))

    def redrive(self, sink: str | None, ids: Sequence[str]) -> int:
        """Have dead letters delivered again: of one sink or of all, all of them or those with these event ids.

        Those of a sink that is not in the configuration stay as they are: nobody would deliver them.
        """
        arguments = [name for name in self._sinks if sink in {None, name}]
        where = f"NOT again AND sink IN ({', '.join('?' * len(arguments))})"
        if ids:
            where += f" AND seq IN (SELECT seq FROM events WHERE id IN ({', '.join('?' * len(ids))}))"  # noqa: S608 - marks
            arguments += ids
        return self._connection.execute(f"UPDATE dead SET again = 1 WHERE {where}", arguments).rowcount  # noqa: S608 - as above

    # -- room ---------------------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Return how much of the file is in use."""
        ((used,),) = self._connection.execute(
            "SELECT (page_count - freelist_count) * page_size "
            "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchall()
        return int(used)

    def prune(self, *, before_ms: int, hours_before_s: int) -> bool:
        """Remove what is delivered to all sinks and older than this; say whether there may be more.

        A dead letter stays, unless its sink has been taken out of the configuration. When the file is nearly full, what
        is delivered goes before its time, the oldest first.
        """
        run = self._connection.execute
        done = self._done()
        if self.used_bytes() > self._max_bytes * 9 // 10:
            before_ms = 1 << 62
        removed = run(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= ? AND at_ms < ? "  # noqa: S608 - marks
            f"AND seq NOT IN (SELECT seq FROM dead WHERE sink IN ({self._marks})) ORDER BY seq LIMIT ?)",
            (done, before_ms, *self._sinks, _PRUNED_ROWS),
        ).rowcount
        run("DELETE FROM dead WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = dead.seq)")
        removed_requests = run(
            "DELETE FROM requests WHERE request_id IN (SELECT request_id FROM requests r WHERE at_ms < ? "
            "AND NOT EXISTS (SELECT 1 FROM events e WHERE e.request_id = r.request_id) ORDER BY at_ms LIMIT ?)",
            (min(before_ms, self._newest_ms() - _DAY_MS), _PRUNED_ROWS),
        ).rowcount
        run("DELETE FROM hours WHERE hour < ?", (hours_before_s,))
        return _PRUNED_ROWS in {removed, removed_requests}

    def _newest_ms(self) -> int:
        """Return when the newest request ended: the record of the last day is what makes writing idempotent."""
        ((newest,),) = self._connection.execute("SELECT coalesce(max(at_ms), 0) FROM requests").fetchall()
        return int(newest)

    def _done(self) -> int:
        """Return the last event that all sinks are done with."""
        if not self._sinks:
            ((last,),) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchall()
            return int(last)
        rows = self._connection.execute(
            f"SELECT coalesce(min(cursor), 0) FROM sinks WHERE name IN ({self._marks})",  # noqa: S608 - marks
            self._sinks,
        ).fetchall()
        return int(rows[0][0])

    @property
    def _marks(self) -> str:
        return _marks(len(self._sinks))

    def meta(self, name: str, value: str) -> str:
        """Return a fact about this outbox; ``value`` becomes it if there is none."""
        self._connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        ((found,),) = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchall()
        return str(found)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _in_parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items, so many at a time that few different statements have to be compiled for them."""
    start = 0
    while left := len(items) - start:
        end = start + min(1 << left.bit_length() - 1, _MOST_ROWS)
        yield items[start:end]
        start = end
