"""Reports of the outbox: usage, reconciliation, dead letters, one request's bill. Read on a separate connection.

Blocking; run it on a thread. A reader neither waits for writers nor delays them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pointsman.pricing import CONTEXT
from pointsman.types import OWN_CALLS

from . import pricing
from .aggregates import COUNTS, DIMENSIONS, MONEY, QUARTER_S, SUMS, Span, add, empty
from .bill import BILLED, FREE, UNPRICED
from .errors import OutboxUnavailable
from .events import ATTEMPT, CONTRADICTORY, ESTIMATED, EXACT, MISSING, REQUEST
from .reconciliation import OPEN
from .schema import FILE, quoted

PENDING: Final = "pending"
DEAD: Final = "dead"
STATES: Final = (BILLED, UNPRICED, FREE, PENDING, DEAD)
_COLUMNS: Final = ", ".join(("start", *DIMENSIONS, *SUMS))
_KIND: Final = DIMENSIONS.index("kind")
#: The least certain attempt decides what the metering of a request is.
_METERINGS: Final = (MISSING, ESTIMATED, CONTRADICTORY, EXACT)

_DEAD_IDS: Final = (
    "SELECT e.request_id FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink IN ({sinks}) AND NOT d.again"
)
_AGAIN_IDS: Final = (
    "SELECT e.request_id FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink IN ({sinks}) AND d.again"
)


class Reports:
    """Reads the outbox.

    Args:
        directory: The outbox's directory.
        sinks: The names of the configuration's sinks; others do not count.
        timeout_s: Longest wait for the database, in seconds.
    """

    def __init__(self, directory: Path, sinks: Sequence[str], timeout_s: float) -> None:
        self._file = directory / FILE
        self._sinks = tuple(sinks)
        self._timeout_s = timeout_s

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(f"file:{quoted(self._file)}?mode=ro", uri=True, timeout=self._timeout_s)
            ) as connection:
                # One state of the database for all queries of a report.
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as err:
            raise OutboxUnavailable(f"the outbox {self._file} cannot be read: {err}") from err

    def usage(self, span: Span) -> list[tuple[Any, ...]]:
        """Return the sums of what ended within a time: Unix seconds, ``DIMENSIONS`` and ``SUMS``.

        Where sums by second are no longer kept, a quarter of an hour belongs to the time in which it begins.
        """
        with self._open() as connection:
            return _usage_rows(connection, span)

    def written(self, span: Span) -> list[tuple[Any, ...]]:
        """Return what ``usage`` returns, and also what is held: requests that another machine may still take over."""
        with self._open() as connection:
            held = connection.execute("SELECT sums FROM held").fetchall()
            rows = [tuple(row) for (text,) in held for row in json.loads(text)["seconds"]]
            return _usage_rows(connection, span) + [row for row in rows if span.from_s <= row[0] < span.to_s]

    def hours_since(self, hour: int) -> dict[int, list[list[Any]]]:
        """Return the rows of each hour from this one on: Unix seconds, ``DIMENSIONS`` and ``SUMS``."""
        found: dict[int, list[list[Any]]] = {}
        with self._open() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM quarters WHERE start >= ?", (hour,)).fetchall()  # noqa: S608 - our own names
        for row in rows:
            found.setdefault(row[0] // 3600 * 3600, []).append(list(row))
        return found

    def reconcile(self, span: Span) -> dict[str, Any]:
        """Count every settled request in exactly one state, and compare our sums with the gateway's own.

        ``dead``: a sink has given up one of its events. ``pending``: a sink has not confirmed one yet. Otherwise the
        state of the bill: ``unpriced``, ``billed`` or ``free``. Requests that another machine may still take over do not
        count yet.
        """
        with self._open() as connection:
            sinks = self._sink_rows(connection)
            cursor = min((row["cursor"] for row in sinks), default=1 << 62)
            arguments = (*self._sinks, cursor, *self._sinks, span.from_s * 1000, span.to_s * 1000)
            states = connection.execute(
                f"""
                SELECT own, CASE
                    WHEN request_id IN ({self._of_sinks(_DEAD_IDS)}) THEN 'dead'
                    WHEN last_seq > ? OR request_id IN ({self._of_sinks(_AGAIN_IDS)}) THEN 'pending'
                    ELSE state END,
                    count(*)
                FROM requests WHERE at_ms >= ? AND at_ms < ? AND request_id NOT IN (SELECT request_id FROM held)
                GROUP BY 1, 2
                """,  # noqa: S608 - marks
                arguments,
            ).fetchall()
            usage = _usage_rows(connection, span)
            ((since_ms,),) = connection.execute("SELECT min(at_ms) FROM requests").fetchall()
        compared = compare(usage)
        return {
            "from": span.from_s,
            "to": span.to_s,
            "kept_since": None if since_ms is None else since_ms // 1000,
            "requests": {**_counted(states, own=0), **sums_of(usage, own=False)},
            "own_calls": {**_counted(states, own=1), **sums_of(usage, own=True)},
            "comparison": compared,
            "models_to_look_at": [row for row in compared if row["finding"] in OPEN],
            "sinks": sinks,
        }

    def sinks(self) -> list[dict[str, Any]]:
        """Return the state of each sink."""
        with self._open() as connection:
            return self._sink_rows(connection)

    def _sink_rows(self, connection: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = connection.execute(
            f"""
            SELECT s.name, s.cursor, s.delivered, s.tries, s.error, s.worker, s.at_ms,
                (SELECT count(*) FROM events e WHERE e.seq > s.cursor),
                (SELECT min(at_ms) FROM events e WHERE e.seq > s.cursor),
                (SELECT count(*) FROM dead d WHERE d.sink = s.name AND NOT d.again),
                (SELECT count(*) FROM dead d WHERE d.sink = s.name AND d.again),
                (SELECT value FROM meta WHERE meta.name = 'since ' || s.name)
            FROM sinks s WHERE s.name IN ({self._marks}) ORDER BY s.name
            """,  # noqa: S608 - marks
            self._sinks,
        ).fetchall()
        return [
            {
                "name": name,
                "since": None if since_ms is None else int(since_ms) // 1000,
                "cursor": cursor,
                "delivered": delivered,
                "pending": behind + again,
                "oldest_pending_at": None if oldest_ms is None else oldest_ms // 1000,
                "dead": dead,
                "tries": tries,
                "error": error or None,
                "worker": worker or None,
                "heard_at": at_ms // 1000 or None,
            }
            for name, cursor, delivered, tries, error, worker, at_ms, behind, oldest_ms, dead, again, since_ms in rows
        ]

    def dead(self, sink: str | None, limit: int) -> dict[str, Any]:
        """Return dead letters, the oldest first; also those of sinks that are not in the configuration any more."""
        where, arguments = ("WHERE d.sink = ?", [sink]) if sink is not None else ("", [])
        with self._open() as connection:
            ((total,),) = connection.execute(f"SELECT count(*) FROM dead d {where}", arguments).fetchall()  # noqa: S608 - our own text
            rows = connection.execute(
                "SELECT d.sink, d.tries, d.error, d.at_ms, d.again, e.body FROM dead d JOIN events e ON e.seq = d.seq "  # noqa: S608 - as above
                f"{where} ORDER BY d.seq LIMIT ?",
                (*arguments, limit),
            ).fetchall()
        return {
            "total": total,
            "dead": [
                {
                    "sink": name,
                    "sink_removed": name not in self._sinks,
                    "tries": tries,
                    "error": error,
                    "at": at_ms // 1000,
                    "again": bool(again),
                    "event": json.loads(body),
                }
                for name, tries, error, at_ms, again, body in rows
            ],
        }

    def request(self, request_id: str) -> dict[str, Any] | None:
        """Return the record of one request, or None."""
        with self._open() as connection:
            row = connection.execute(
                "SELECT own, tenant, model, at_ms, state, last_seq, cost_usd_micros, amount_usd_micros FROM requests "
                "WHERE request_id = ?",
                (request_id,),
            ).fetchone()
            if row is None:
                return None
            bodies = connection.execute(
                "SELECT body FROM events WHERE request_id = ? ORDER BY seq", (request_id,)
            ).fetchall()
            sinks = self._sink_rows(connection)
            dead = connection.execute(
                f"SELECT d.sink FROM dead d JOIN events e ON e.seq = d.seq WHERE e.request_id = ? "  # noqa: S608 - marks
                f"AND d.sink IN ({self._marks}) AND NOT d.again",
                (request_id, *self._sinks),
            ).fetchall()
        own, tenant, model, at_ms, state, last_seq, cost, amount = row
        events = [json.loads(body) for (body,) in bodies]
        attempts = [event for event in events if event["type"] == ATTEMPT]
        meterings = {event["metering"] for event in attempts}
        gone = sorted({name for (name,) in dead})
        waiting = sorted(s["name"] for s in sinks if s["cursor"] < last_seq)
        return {
            "request_id": request_id,
            "own_call": bool(own),
            "tenant_id": tenant,
            "model": model,
            "finished_at": at_ms // 1000,
            "state": DEAD if gone else PENDING if waiting else state,
            "bill": state,
            "metering": next((name for name in _METERINGS if name in meterings), None),
            "cost_usd": _exactly(attempts, "cost_usd"),
            "cost_usd_micros": cost,
            "amount_usd": _exactly(attempts, "amount_usd"),
            "amount_usd_micros": amount,
            "dead_in": gone,
            "pending_in": waiting,
            "events": events,
        }

    @property
    def _marks(self) -> str:
        return ", ".join("?" * len(self._sinks))

    def _of_sinks(self, query: str) -> str:
        return query.format(sinks=self._marks)


def _exactly(attempts: Sequence[Mapping[str, Any]], name: str) -> str:
    known = [Decimal(event[name]) for event in attempts if event[name] is not None]
    return pricing.decimal_text(pricing.total(known))


def _usage_rows(connection: sqlite3.Connection, span: Span) -> list[tuple[Any, ...]]:
    since = connection.execute("SELECT value FROM meta WHERE name = 'seconds_since'").fetchone()
    seconds_since = int(since[0]) if since is not None else 0
    found = []
    for table, part in pieces(span, seconds_since):
        found += connection.execute(
            f"SELECT {_COLUMNS} FROM {table} WHERE start >= ? AND start < ?",  # noqa: S608 - our own names
            (part.from_s, part.to_s),
        ).fetchall()
    return found


def pieces(span: Span, seconds_since: int) -> Iterator[tuple[str, Span]]:
    """Yield the tables and the times that make up a time, without overlap or gap.

    Args:
        span: The time.
        seconds_since: Unix seconds since when there are sums by second; a multiple of a quarter of an hour.
    """
    first = -(-span.from_s // QUARTER_S) * QUARTER_S
    last = span.to_s // QUARTER_S * QUARTER_S
    if last < first:  # Within one quarter of an hour.
        if last >= seconds_since:
            yield "seconds", span
        return
    if first - QUARTER_S >= seconds_since:
        yield "seconds", Span(span.from_s, first)
    if last >= seconds_since:
        yield "quarters", Span(first, last)
        yield "seconds", Span(last, span.to_s)
    else:
        yield "quarters", Span(first, span.to_s)


def _counted(rows: Sequence[tuple[Any, ...]], *, own: int) -> dict[str, Any]:
    counts: dict[str, Any] = dict.fromkeys(STATES, 0)
    for of_own, state, count in rows:
        if of_own == own:
            counts[state] += count
    return {**counts, "total": sum(counts.values())}


def sums_of(usage: Iterable[Sequence[Any]], *, own: bool) -> dict[str, Any]:
    """Return the amounts of client requests or of own calls, exactly and in micro-dollars."""
    row = empty()
    for _, *values in usage:
        if (values[_KIND] in OWN_CALLS) is own:
            add(row, values[len(DIMENSIONS) :])
    return money_of(row)


def money_of(row: Sequence[int | Decimal]) -> dict[str, Any]:
    """Return the amounts of a row of sums, exactly as text and rounded once to micro-dollars.

    ``difference_usd`` is by how much our own sum exceeds the gateway's.
    """
    amounts = {name: Decimal(value) for name, value in zip(MONEY, row[len(COUNTS) :], strict=True)}
    amounts["difference_usd"] = CONTEXT.subtract(amounts["priced_usd"], amounts["gateway_usd"])
    found: dict[str, Any] = {}
    for name, usd in amounts.items():
        found |= {name: pricing.decimal_text(usd), f"{name}_micros": pricing.micros(usd)}
    return found


def compare(usage: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return our sum and the gateway's own for each provider, model and finding; what needs attention comes first."""
    sums: dict[tuple[str, ...], list[int | Decimal]] = {}
    for _, *values in usage:
        if values[_KIND] != REQUEST:
            row = dict(zip(DIMENSIONS, values, strict=False))
            key = (row["provider"], row["model_served"] or row["model"], row["finding"])
            add(sums.setdefault(key, empty()), values[len(DIMENSIONS) :])
    rows = [
        {
            "provider": provider or None,
            "model": model,
            "finding": finding or "agrees",
            **dict(zip(COUNTS, row, strict=False)),
            **money_of(row),
        }
        for (provider, model, finding), row in sums.items()
    ]
    for row in rows:
        del row["requests"]
    return sorted(
        rows,
        key=lambda row: (row["finding"] not in OPEN, -abs(row["difference_usd_micros"]), row["model"], row["finding"]),
    )


def in_order(report: Mapping[str, Any]) -> bool:
    """Return whether nothing in a reconciliation needs attention. Pending events do not.

    Each attempt has a figure of ours and one of the gateway, and where they differ it is known why.
    """
    return not report["models_to_look_at"] and all(
        not part[UNPRICED] and not part[DEAD] for part in (report["requests"], report["own_calls"])
    )
