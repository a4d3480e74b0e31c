"""The outbox's database: one SQLite file in WAL mode for all workers of a machine.

Blocking; the object belongs to one thread. Every method is one part of a transaction that the caller begins and commits.
``schema`` has its tables.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from pointsman.store.sqlite import alone_in_opening, file_numbers, in_parts

from . import pricing
from .aggregates import (
    COUNTS,
    DIMENSIONS,
    MONEY,
    QUARTER_S,
    Key,
    add,
    add_money,
    coarser,
    empty,
    of_bills,
    of_first_version,
)
from .bill import Bill
from .errors import OutboxFull, OutboxUnavailable
from .events import BillEvent
from .schema import FILE, FIRST_VERSION, MAGIC, SCHEMA, STEPS_S, VERSION, WAY_OUT, damage_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PRIVATE: Final = 0o700
_PRIVATE_FILE: Final = 0o600
#: How long opening waits for workers that start at the same time; each does little, but on a busy machine that takes time.
_OPEN_S: Final = 30.0
_MEGABYTE: Final = 1_000_000
_WAL_BYTES: Final = 64 * _MEGABYTE
#: Begins the names of facts: a life of the state store, see ``StoreEmptied``.
_LIFE: Final = "life/"
#: The same of one whose gateways use the outbox, and when last.
_USED: Final = "used/"
#: The same of a worker that uses the outbox, and when last.
_WORKER: Final = "worker/"
#: Rows that one pruning step removes, so that it never holds the lock for long.
_PRUNED_ROWS: Final = 2000
#: Most rows that one statement inserts.
_MOST_ROWS: Final = 64
_DAY_MS: Final = 86_400_000
_DAY_S: Final = 86_400
_HOUR_S: Final = 3600
_KEY_NAMES: Final = ("start", *DIMENSIONS)
_Sums: TypeAlias = "dict[Key, list[int | Decimal]]"

#: Counts are added; amounts have been, see ``_add_sums``.
_ADD: Final = (
    f"ON CONFLICT ({', '.join(_KEY_NAMES)}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTS)
    + "".join(f", {name} = excluded.{name}" for name in MONEY)
)
_HEADS_AND_BODIES: Final = "json_group_array(json_array(seq, id, type, tenant, at_ms)), group_concat(body, char(10))"
#: Room that a bill and its events take beyond the events' bodies, in bytes, and the bodies with their indexes, at most.
_BILL_BYTES: Final = 4000
_BODY_FACTOR: Final = 2
#: The room that is left is measured again when this part of it may be used up, or this number of bytes: other workers write, too.
_ROOM_PARTS: Final = 8
_ROOM_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """The next events of a sink.

    Attributes:
        events: With their sequence numbers.
        upto: The sink's cursor once they are confirmed.
        again: Whether they are dead letters that are delivered again; they do not move the cursor.
    """

    events: tuple[tuple[int, BillEvent], ...]
    upto: int
    again: bool = False


class _Descriptor:
    """The descriptor of an outbox's file: one in a process, open as long as any connection of the process to the file.

    To close any descriptor of a file takes SQLite's locks on it away from the whole process, also from the connection that
    follows after a reload: another worker that ends would then take itself for the last one, and remove the log
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """

    _open: ClassVar[dict[tuple[int, int], _Descriptor]] = {}
    _lock: Final = threading.Lock()

    def __init__(self, number: int) -> None:
        self.number = number
        self._users = 0

    @classmethod
    def of(cls, path: Path) -> _Descriptor:
        """Return the descriptor of a file, which is made if need be; call ``release`` afterwards."""
        with cls._lock:
            if not path.exists() or (found := cls._open.get(_file_of(path.stat()))) is None:
                number = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
                found = cls._open[_file_of(os.fstat(number))] = cls(number)
            found._users += 1
            return found

    def release(self) -> None:
        """Close it, unless another connection needs it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                del self._open[_file_of(os.fstat(self.number))]
                os.close(self.number)


def _file_of(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


class Database:
    """The open file.

    Args:
        directory: Its directory; created if need be, with mode 0700.
        sinks: The names of the sinks that have to confirm events.
        fsync: Whether a commit survives a power failure.
        timeout_s: How long to wait for other workers that write.
        max_bytes: How large it may grow.

    Raises:
        OutboxUnavailable: it cannot be opened, or is not an outbox of this version.
    """

    def __init__(
        self, directory: Path, *, sinks: Sequence[str] = (), fsync: bool, timeout_s: float, max_bytes: int
    ) -> None:
        self.path = directory / FILE
        self._sinks = tuple(sinks)
        self._max_bytes = max_bytes
        #: What may be written before the room that is left is measured again.
        self._room_bytes = 0
        try:
            if not directory.exists():
                directory.parent.mkdir(parents=True, exist_ok=True)
                directory.mkdir(_PRIVATE, exist_ok=True)
            with alone_in_opening(directory, _OPEN_S):
                self._descriptor = _Descriptor.of(self.path)
                try:
                    self._connection = sqlite3.connect(self.path, timeout=_OPEN_S, isolation_level=None)
                    self._prepare(fsync=fsync)
                    self._file_numbers = file_numbers(self.path)
                    self._connection.execute(f"PRAGMA busy_timeout = {round(timeout_s * 1000)}")
                except BaseException:
                    self._descriptor.release()
                    raise
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
        if (damage := damage_of(self._connection, self.path)) is not None:
            raise OutboxUnavailable(damage)
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        run(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        run("PRAGMA cache_size = -16000")
        # One transaction, so that workers that start together see all tables or none.
        self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        run("BEGIN IMMEDIATE")
        version = self.meta("version", VERSION)
        if version == FIRST_VERSION:
            self._migrate()
            version = VERSION
        run("COMMIT")
        if version != VERSION:
            raise OutboxUnavailable(
                f"the file {self.path} is an outbox of version {version}; this is version {VERSION}"
            )

    def _migrate(self) -> None:
        """Turn a file of the first version into one of this version; it kept sums by hour, in micro-dollars."""
        run = self._connection.execute
        rows = run("SELECT * FROM hours").fetchall()
        self._insert_rows("INSERT INTO quarters", [(row[0], *of_first_version(row[1:])) for row in rows])
        self._note_seconds_since(max((row[0] + _HOUR_S for row in rows), default=0))
        run("DROP TABLE hours")
        run("UPDATE meta SET value = ? WHERE name = 'version'", (VERSION,))

    def check_place(self) -> None:
        """Raise ``OutboxUnavailable`` when its files are no longer where they were opened, or it is no database any more.

        What is written would be lost.
        """
        try:
            in_place = file_numbers(self.path) == self._file_numbers
        except OSError:
            in_place = False
        if not in_place:
            raise OutboxUnavailable(
                f"the outbox {self.path}, or its -wal or -shm file, was removed or replaced while it was in use: put the old one "
                "back, or restart the gateway with SIGTERM; with SIGKILL it loses more"
            )
        if os.pread(self._descriptor.number, len(MAGIC), 0) != MAGIC:
            raise OutboxUnavailable(f"the outbox {self.path} was overwritten while it was in use; {WAY_OUT}")

    # -- transactions -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction that writes."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit everything since ``begin``."""
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
        # What was removed to make room is there again.
        self._room_bytes = 0
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._descriptor.release()

    # -- bills --------------------------------------------------------------------------------------------------------

    def append(self, bills: Sequence[Bill], *, holder: str | None = None) -> list[bool]:
        """Write bills down, each once; return for each whether it still has to be announced.

        Args:
            bills: The bills.
            holder: The worker that releases them later; None: they count at once.

        Raises:
            OutboxFull: there is no room.
        """
        self._make_room(bills)
        ids = [bill.request_id for bill in bills]
        # As one row: fetching a row releases the interpreter lock and waits for it again.
        ((known_text, seq),) = self._connection.execute(
            "SELECT (SELECT json_group_object(request_id, announced) FROM requests "
            "WHERE request_id IN (SELECT value FROM json_each(?))), "
            # The value that AUTOINCREMENT has given last: there is no other writer during this transaction.
            "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events')",
            (json.dumps(ids),),
        ).fetchall()
        known: dict[str, int] = json.loads(known_text)
        new: dict[str, Bill] = {}
        for bill in bills:
            if bill.request_id not in known:
                new.setdefault(bill.request_id, bill)
        if new:
            self._insert(new.values(), seq, holder)
        if holder is not None and known:
            self._hand_over(list(known), holder)
        return [not known.get(id_) for id_ in ids]

    def _make_room(self, bills: Sequence[Bill]) -> None:
        """Make sure that there is room for bills, or raise ``OutboxFull``."""
        for bill in bills:
            self._room_bytes -= _BILL_BYTES + sum(len(event.body) * _BODY_FACTOR for event in bill.events)
        if self._room_bytes > 0:
            return
        left = self._max_bytes - self.used_bytes()
        if left <= 0:
            self.prune(before_ms=0, usage_before_s=0)
            left = self._max_bytes - self.used_bytes()
            if left <= 0:
                raise OutboxFull(
                    f"the outbox {self.path} has reached outbox.max_size_mb and everything in it is still to be "
                    "delivered; see which sink is failing, or raise the limit"
                )
        self._room_bytes = min(left // _ROOM_PARTS, _ROOM_BYTES)

    def _insert(self, bills: Collection[Bill], seq: int, holder: str | None) -> None:
        events: list[tuple[object, ...]] = []
        requests: list[tuple[object, ...]] = []
        held: list[tuple[object, ...]] = []
        for bill in bills:
            if holder is not None:
                held.append((bill.request_id, holder, seq + 1 if bill.events else 0, _sums_text([bill])))
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
                    pricing.micros(bill.gateway_usd),
                    bill.cost_usd_micros,
                    bill.amount_usd_micros,
                    pricing.micros(bill.difference_usd),
                    0,
                )
            )
        self._insert_rows("INSERT OR IGNORE INTO events", events)
        self._insert_rows("INSERT INTO requests", requests)
        if holder is None:
            self._add_sums(_sums_of(bills))
        else:
            self._insert_rows("INSERT INTO held", held)

    def _add_sums(self, sums: Mapping[str, _Sums]) -> None:
        """Add sums to those of their tables.

        Amounts are text, and added here: SQLite's own numbers are binary, and a function of ours that it calls waits for the
        interpreter lock each time.
        """
        sums = {table: rows for table, rows in sums.items() if rows}
        if not sums:
            return
        if any(len(rows) > _MOST_ROWS for rows in sums.values()):
            for table, rows in sums.items():
                for some in in_parts(list(rows.items()), _MOST_ROWS):
                    self._add_sums({table: dict(some)})
            return
        (present,) = self._connection.execute(
            "SELECT " + ", ".join(_select_money(table, len(rows)) for table, rows in sums.items()),
            [value for rows in sums.values() for key in rows for value in key],
        ).fetchall()
        for (table, rows), text in zip(sums.items(), present, strict=True):
            for values in json.loads(text):
                add_money(rows[tuple(values[: len(_KEY_NAMES)])], values[len(_KEY_NAMES) :])
            self._insert_rows(
                f"INSERT INTO {table}", [(*key, *_columns(row)) for key, row in sorted(rows.items())], _ADD
            )

    def _insert_rows(self, into: str, rows: Sequence[tuple[object, ...]], on_conflict: str = "") -> None:
        """Insert rows, many to a statement.

        Each statement releases the interpreter lock and gets it back only when the event loop releases it, which takes
        longer than the rows do.
        """
        for some in in_parts(rows, _MOST_ROWS):
            statement = _insert_values(into, len(some[0]), len(some), on_conflict)
            self._connection.execute(statement, [value for row in some for value in row])

    def announced(self, request_ids: Sequence[str]) -> None:
        """Note that what was spent has been announced."""
        for some in in_parts(request_ids, _MOST_ROWS):
            self._connection.execute(
                f"UPDATE requests SET announced = 1 WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                some,
            )

    # -- held bills ---------------------------------------------------------------------------------------------------

    def _hand_over(self, request_ids: Sequence[str], holder: str) -> None:
        for some in in_parts(request_ids, _MOST_ROWS):
            self._connection.execute(
                f"UPDATE held SET worker = ? WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                (holder, *some),
            )

    def release(self, request_ids: Sequence[str]) -> None:
        """Count and deliver held bills from now on; ids that are not held are left alone."""
        found: list[tuple[str, str]] = []
        for some in in_parts(request_ids, _MOST_ROWS):
            found += self._connection.execute(
                f"SELECT request_id, sums FROM held WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                some,
            ).fetchall()
        if not found:
            return
        sums: dict[str, _Sums] = {table: {} for table in STEPS_S}
        for _, text in found:
            for table, rows in json.loads(text).items():
                for row in rows:
                    add(sums[table].setdefault(tuple(row[: len(_KEY_NAMES)]), empty()), row[len(_KEY_NAMES) :])
        self._add_sums(sums)
        self._drop_held([id_ for id_, _ in found])

    def discard(self, request_ids: Sequence[str]) -> int:
        """Remove held bills, which another machine bills; return how many. Ids that are not held are left alone."""
        gone = 0
        for id_ in request_ids:
            if self._connection.execute("DELETE FROM held WHERE request_id = ?", (id_,)).rowcount:
                gone += 1
                self._connection.execute("DELETE FROM events WHERE request_id = ?", (id_,))
                self._connection.execute("DELETE FROM requests WHERE request_id = ?", (id_,))
        return gone

    def _drop_held(self, request_ids: Sequence[str]) -> None:
        for some in in_parts(request_ids, _MOST_ROWS):
            self._connection.execute(
                f"DELETE FROM held WHERE request_id IN ({_marks(len(some))})",  # noqa: S608 - marks
                some,
            )

    def held_by(self, worker: str, request_ids: Sequence[str]) -> list[str]:
        """Return which of these requests a worker holds."""
        found: list[str] = []
        for some in in_parts(request_ids, _MOST_ROWS):
            marks = _marks(len(some))
            held = self._connection.execute(
                f"SELECT request_id FROM held WHERE worker = ? AND request_id IN ({marks})",  # noqa: S608 - marks
                (worker, *some),
            )
            found += [id_ for (id_,) in held.fetchall()]
        return found

    def held_by_others(self, worker: str) -> dict[str, list[str]]:
        """Return the held requests of other workers, by worker."""
        found: dict[str, list[str]] = {}
        for holder, id_ in self._connection.execute(
            "SELECT worker, request_id FROM held WHERE worker <> ?", (worker,)
        ).fetchall():
            found.setdefault(holder, []).append(id_)
        return found

    # -- sinks --------------------------------------------------------------------------------------------------------

    def join(self, sink: str, *, from_now: bool, now_ms: int = 0) -> int | None:
        """Give a new sink its place, and return since when it gets events (Unix milliseconds).

        One that has a place keeps it; then return None.
        """
        joined = self._connection.execute(
            "INSERT OR IGNORE INTO sinks SELECT ?, CASE WHEN ? THEN coalesce(max(seq), 0) ELSE 0 END, 0, 0, '', '', 0 "
            "FROM events",
            (sink, from_now),
        ).rowcount
        if not joined:
            return None
        ((oldest_ms,),) = self._connection.execute("SELECT min(at_ms) FROM events").fetchall()
        since_ms = now_ms if from_now or oldest_ms is None else int(oldest_ms)
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"since {sink}", str(since_ms)))
        return since_ms

    def next_batch(self, sink: str, most: int) -> Batch:
        """Return what the sink gets next: dead letters that are to be tried again, else what is behind its cursor."""
        ((heads, bodies, cursor, again),) = self._connection.execute(
            f"SELECT {_HEADS_AND_BODIES}, (SELECT cursor FROM sinks WHERE name = :sink), "  # noqa: S608 - our own
            "EXISTS (SELECT 1 FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink = :sink AND d.again) FROM ("
            "SELECT * FROM events WHERE seq > (SELECT cursor FROM sinks WHERE name = :sink) "
            "AND seq < coalesce((SELECT min(first_seq) FROM held WHERE first_seq > 0), 1 << 62) ORDER BY seq LIMIT :most)",
            {"sink": sink, "most": most},
        ).fetchall()
        if again:
            ((heads, bodies),) = self._connection.execute(
                f"SELECT {_HEADS_AND_BODIES} FROM (SELECT e.* FROM dead d JOIN events e ON e.seq = d.seq "  # noqa: S608 - our own
                "WHERE d.sink = ? AND d.again ORDER BY d.seq LIMIT ?)",
                (sink, most),
            ).fetchall()
            return Batch(_events(heads, bodies), 0, again=True)
        events = _events(heads, bodies)
        return Batch(events, events[-1][0] if events else cursor)

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
        """Mark dead letters for delivery: of one sink or of all, all of them or those with these event ids.

        Those of a sink that is not in the configuration stay as they are, because nothing would deliver them.
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

    def prune(self, *, before_ms: int, usage_before_s: int) -> bool:
        """Remove what is delivered to all sinks and older than this; return whether there may be more.

        A dead letter stays, unless its sink has been taken out of the configuration. When the file is nearly full,
        delivered events are removed early, the oldest first. Gateways with different sinks may share the outbox by
        mistake: a sink that another one delivers to counts, too.
        """
        run = self._connection.execute
        sinks = self._served_sinks()
        done = self._done(sinks)
        if self.used_bytes() > self._max_bytes * 9 // 10:
            before_ms = 1 << 62
        removed = run(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= ? AND at_ms < ? "  # noqa: S608 - marks
            f"AND seq NOT IN (SELECT seq FROM dead WHERE sink IN ({_marks(len(sinks))})) ORDER BY seq LIMIT ?)",
            (done, before_ms, *sinks, _PRUNED_ROWS),
        ).rowcount
        run("DELETE FROM dead WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = dead.seq)")
        requests_before_ms = min(before_ms, self._newest_ms() - _DAY_MS)
        removed_requests = run(
            "DELETE FROM requests WHERE request_id IN (SELECT request_id FROM requests r WHERE at_ms < ? "
            "AND NOT EXISTS (SELECT 1 FROM events e WHERE e.request_id = r.request_id) ORDER BY at_ms LIMIT ?)",
            (requests_before_ms, _PRUNED_ROWS),
        ).rowcount
        run("DELETE FROM quarters WHERE start < ?", (usage_before_s,))
        seconds_before = requests_before_ms // 1000 // QUARTER_S * QUARTER_S
        if run("DELETE FROM seconds WHERE start < ?", (seconds_before,)).rowcount:
            self._note_seconds_since(seconds_before)
        return _PRUNED_ROWS in {removed, removed_requests}

    def _note_seconds_since(self, at_s: int) -> None:
        """Note since when the sums by second are whole."""
        self._connection.execute(
            "INSERT INTO meta VALUES ('seconds_since', ?) ON CONFLICT (name) DO UPDATE "
            "SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))",
            (str(at_s),),
        )

    def _newest_ms(self) -> int:
        """Return when the newest request ended: the record of the last day is what makes writing idempotent."""
        ((newest,),) = self._connection.execute("SELECT coalesce(max(at_ms), 0) FROM requests").fetchall()
        return int(newest)

    def _served_sinks(self) -> list[str]:
        """Return the sinks of this gateway, and those that another gateway on this outbox delivers to at present."""
        known = [name for (name,) in self._connection.execute("SELECT name FROM sinks").fetchall()]
        others = (name for name in known if name not in self._sinks)
        return [*self._sinks, *(name for name in others if _is_held(sink_lock(self.path.parent, name)))]

    def _done(self, sinks: Sequence[str]) -> int:
        """Return the last event that these sinks are done with."""
        if not sinks:
            ((last,),) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchall()
            return int(last)
        rows = self._connection.execute(
            f"SELECT coalesce(min(cursor), 0) FROM sinks WHERE name IN ({_marks(len(sinks))})",  # noqa: S608 - marks
            sinks,
        ).fetchall()
        return int(rows[0][0])

    def lives(self) -> dict[str, int]:
        """Return the lives of state stores that this outbox was used with; when each last answered, in Unix seconds, or 0."""
        return self._times(_LIFE)

    def note_life(self, life: str) -> None:
        """Note with which life of the state store this outbox is used."""
        if life:
            self.meta(f"{_LIFE}{life}", "")

    def answered(self, life: str, now: int) -> None:
        """Note that the state store with this life, where it is noted, has answered now."""
        self._connection.execute("UPDATE meta SET value = ? WHERE name = ?", (str(now), f"{_LIFE}{life}"))

    def used(self, life: str, worker: str, now: int) -> dict[str, int]:
        """Note that a worker with this life of the state store uses the outbox now; return all lives that have, and when."""
        run = self._connection.execute
        for name in (f"{_USED}{life}", f"{_WORKER}{worker}"):
            run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, str(now)))
        run(
            "DELETE FROM meta WHERE name > ? AND name < ? AND CAST(value AS INTEGER) < ?",
            (*_range(_WORKER), now - _DAY_S),
        )
        return self.users()

    def users(self) -> dict[str, int]:
        """Return the lives of state stores whose gateways use the outbox, or have; and when last, in Unix seconds."""
        return self._times(_USED)

    def workers(self) -> dict[str, int]:
        """Return the workers that use the outbox, or have in the last day; and when last, in Unix seconds."""
        return self._times(_WORKER)

    def _times(self, prefix: str) -> dict[str, int]:
        rows = self._connection.execute("SELECT name, value FROM meta WHERE name > ? AND name < ?", _range(prefix))
        return {name.removeprefix(prefix): int(at or 0) for name, at in rows.fetchall()}

    def meta(self, name: str, value: str) -> str:
        """Return a fact about this outbox; ``value`` becomes it if there is none."""
        self._connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        ((found,),) = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchall()
        return str(found)


def _range(prefix: str) -> tuple[str, str]:
    """Return what the names with a prefix that ends with a slash lie between."""
    return prefix, f"{prefix[:-1]}0"


def sink_lock(directory: Path, sink: str) -> BaseFileLock:
    """Return the lock that the worker which delivers to a sink holds.

    The kernel releases it when its holder dies, however it dies. It needs a local disk.
    """
    from filelock import FileLock  # noqa: PLC0415  # its import writes files, to try out the file system

    return FileLock(directory / f"sink-{sink}.lock", mode=_PRIVATE_FILE, thread_local=False)


def _is_held(lock: BaseFileLock) -> bool:
    """Return whether another holds a lock."""
    try:
        with lock.acquire(blocking=False):
            return False
    except TimeoutError:
        return True


def _events(heads: str, bodies: str | None) -> tuple[tuple[int, BillEvent], ...]:
    """Return events in their order; a body is JSON on one line."""
    return tuple(
        (seq, BillEvent(id=id_, type=type_, tenant=tenant, at_ms=at_ms, body=body))
        for (seq, id_, type_, tenant, at_ms), body in zip(json.loads(heads), (bodies or "").splitlines(), strict=True)
    )


def _sums_of(bills: Collection[Bill]) -> dict[str, _Sums]:
    """Return the sums of bills for each table."""
    seconds = of_bills(bills, 1)
    return {table: seconds if step_s == 1 else coarser(seconds, step_s) for table, step_s in STEPS_S.items()}


@cache
def _insert_values(into: str, width: int, count: int, on_conflict: str) -> str:
    """Return the statement that inserts this number of rows of this number of values."""
    rows = ", ".join([f"({_marks(width)})"] * count)
    return f"{into} VALUES {rows} {on_conflict}"


@cache
def _select_money(table: str, count: int) -> str:
    """Return the keys and amounts of the rows with these keys, as one row."""
    columns = ", ".join(f"s.{name}" for name in (*_KEY_NAMES, *MONEY))
    same = " AND ".join(f"s.{name} = k.column{number}" for number, name in enumerate(_KEY_NAMES, 1))
    keys = ", ".join([f"({_marks(len(_KEY_NAMES))})"] * count)
    return f"(SELECT json_group_array(json_array({columns})) FROM (VALUES {keys}) k CROSS JOIN {table} s ON {same})"  # noqa: S608 - our own names


def _sums_text(bills: Collection[Bill]) -> str:
    """Return the sums of bills as JSON text."""
    return json.dumps(
        {table: [[*key, *_columns(row)] for key, row in rows.items()] for table, rows in _sums_of(bills).items()},
        separators=(",", ":"),
    )


def _columns(row: Sequence[int | Decimal]) -> list[int | str]:
    counts, money = row[: len(COUNTS)], row[len(COUNTS) :]
    return [*map(int, counts), *(pricing.decimal_text(Decimal(usd)) for usd in money)]


def _marks(count: int) -> str:
    return ", ".join("?" * count)
