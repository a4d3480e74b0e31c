"""What the outbox says: usage, reconciliation, dead letters, one request's bill. Read on a connection of its own.

Blocking; run it on a thread. A reader neither waits for writers nor holds them up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .bill import BILLED, FREE, UNPRICED
from .database import FILE
from .errors import OutboxUnavailable
from .tables import SUMS

PENDING: Final = "pending"
DEAD: Final = "dead"
STATES: Final = (BILLED, UNPRICED, FREE, PENDING, DEAD)
_MONEY: Final = ("gateway_usd_micros", "cost_usd_micros", "amount_usd_micros", "difference_usd_micros")

_DEAD_IDS: Final = (
    "SELECT e.request_id FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink IN ({sinks}) AND NOT d.again"
)
_AGAIN_IDS: Final = (
    "SELECT e.request_id FROM dead d JOIN events e ON e.seq = d.seq WHERE d.sink IN ({sinks}) AND d.again"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in Unix seconds: from, inclusive, to, exclusive."""

    from_s: int
    to_s: int


class Reports:
    """Reads the outbox.

    Args:
        directory: Where it is.
        sinks: The names of the configuration's sinks; others do not count.
        timeout_s: Longest wait for the database.
    """

    def __init__(self, directory: Path, sinks: Sequence[str], timeout_s: float) -> None:
        self._file = directory / FILE
        self._sinks = tuple(sinks)
        self._timeout_s = timeout_s

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(f"file:{_quoted(self._file)}?mode=ro", uri=True, timeout=self._timeout_s)
            ) as connection:
                # One state of the database for all queries of a report.
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as err:
            raise OutboxUnavailable(f"the outbox {self._file} cannot be read: {err}") from err

    def hours(self, span: Span) -> list[tuple[Any, ...]]:
        """Return the rows of ``hours`` that begin within a time: hour, tenant, model, kind, and ``SUMS``."""
        with self._open() as connection:
            return connection.execute(
                f"SELECT hour, tenant, model, kind, {', '.join(SUMS)} FROM hours WHERE hour >= ? AND hour < ?",  # noqa: S608 - our own names
                (span.from_s, span.to_s),
            ).fetchall()

    def hours_since(self, hour: int) -> dict[int, list[list[Any]]]:
        """Return the rows of each hour from this one on."""
        found: dict[int, list[list[Any]]] = {}
        for at, *row in self.hours(Span(hour, 1 << 60)):
            found.setdefault(int(at), []).append(row)
        return found

    def reconcile(self, span: Span) -> dict[str, Any]:
        """Count every settled request in exactly one state, and add up the money.

        ``dead``: a sink has given up one of its events. ``pending``: a sink has not confirmed one yet. Else what the
        bill says: ``unpriced``, ``billed`` or ``free``.
        """
        with self._open() as connection:
            sinks = self._sink_rows(connection)
            cursor = min((row["cursor"] for row in sinks), default=1 << 62)
            arguments = (*self._sinks, cursor, *self._sinks, span.from_s * 1000, span.to_s * 1000)
            rows = connection.execute(
                f"""
                SELECT own, CASE
                    WHEN request_id IN ({self._of_sinks(_DEAD_IDS)}) THEN 'dead'
                    WHEN last_seq > ? OR request_id IN ({self._of_sinks(_AGAIN_IDS)}) THEN 'pending'
                    ELSE state END,
                    count(*), sum(gateway_usd_micros), sum(cost_usd_micros), sum(amount_usd_micros),
                    sum(difference_usd_micros)
                FROM requests WHERE at_ms >= ? AND at_ms < ? GROUP BY 1, 2
                """,  # noqa: S608 - marks
                arguments,
            ).fetchall()
            differences = connection.execute(
                "SELECT model, sum(attempts), sum(unpriced), sum(difference_usd_micros) FROM hours WHERE hour >= ? "
                "AND hour < ? GROUP BY model HAVING abs(sum(difference_usd_micros)) > sum(attempts) OR sum(unpriced) > 0 "
                "ORDER BY abs(sum(difference_usd_micros)) DESC, 1 LIMIT 100",
                (span.from_s // 3600 * 3600, span.to_s),
            ).fetchall()
            ((since_ms,),) = connection.execute("SELECT min(at_ms) FROM requests").fetchall()
        return {
            "from": span.from_s,
            "to": span.to_s,
            "kept_since": None if since_ms is None else since_ms // 1000,
            "requests": _counted(rows, own=0),
            "own_calls": _counted(rows, own=1),
            "models_to_look_at": [
                {"model": model, "attempts": attempts, "unpriced": unpriced, "difference_usd_micros": difference}
                for model, attempts, unpriced, difference in differences
            ],
            "sinks": sinks,
        }

    def sinks(self) -> list[dict[str, Any]]:
        """Return how each sink is doing."""
        with self._open() as connection:
            return self._sink_rows(connection)

    def _sink_rows(self, connection: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = connection.execute(
            f"""
            SELECT s.name, s.cursor, s.delivered, s.tries, s.error, s.worker, s.at_ms,
                (SELECT count(*) FROM events e WHERE e.seq > s.cursor),
                (SELECT min(at_ms) FROM events e WHERE e.seq > s.cursor),
                (SELECT count(*) FROM dead d WHERE d.sink = s.name AND NOT d.again),
                (SELECT count(*) FROM dead d WHERE d.sink = s.name AND d.again)
            FROM sinks s WHERE s.name IN ({self._marks}) ORDER BY s.name
            """,  # noqa: S608 - marks
            self._sinks,
        ).fetchall()
        return [
            {
                "name": name,
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
            for name, cursor, delivered, tries, error, worker, at_ms, behind, oldest_ms, dead, again in rows
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
        """Return what is on record about one request, or None."""
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
            "cost_usd_micros": cost,
            "amount_usd_micros": amount,
            "dead_in": gone,
            "pending_in": waiting,
            "events": [json.loads(body) for (body,) in bodies],
        }

    @property
    def _marks(self) -> str:
        return ", ".join("?" * len(self._sinks))

    def _of_sinks(self, query: str) -> str:
        return query.format(sinks=self._marks)


def _counted(rows: Sequence[tuple[Any, ...]], *, own: int) -> dict[str, Any]:
    counts: dict[str, Any] = dict.fromkeys(STATES, 0)
    money = [0, 0, 0, 0]
    for of_own, state, count, *sums in rows:
        if of_own == own:
            counts[state] += count
            money = [total + part for total, part in zip(money, sums, strict=True)]
    return {**counts, "total": sum(counts.values()), **dict(zip(_MONEY, money, strict=True))}


def in_order(report: Mapping[str, Any]) -> bool:
    """Say whether nothing in a reconciliation needs anybody's attention; what is pending has its time.

    The gateway computes in floating point and rounds each figure: a micro-dollar a request is no difference.
    """
    return all(
        not part[UNPRICED] and not part[DEAD] and abs(part["difference_usd_micros"]) <= part["total"]
        for part in (report["requests"], report["own_calls"])
    )


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
