"""What status and routes show: the plugin's status, and usage by whatever it is kept by, for each hour, day or month."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from pointsman.text import one_line
from pointsman.types import Status

from .aggregates import COUNTS, DIMENSIONS, add, empty
from .bill import UNPRICED
from .events import REQUEST
from .reports import money_of

if TYPE_CHECKING:
    from .bill import Bill
    from .delivery import Delivery
    from .outbox import Outbox
    from .own_calls import OwnCalls
    from .recorder import Recorder

#: Names that a report can be grouped by.
GROUPS: Final = tuple(name for name in DIMENSIONS if name != "finding")
#: Age of an event that is not delivered from which the status shows a problem, in seconds.
_LATE_S: Final = 60
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
PERIODS: Final = ("hour", "day", "month", "total")
#: What a request as a whole has; the others are an attempt's.
_OF_REQUEST: Final = frozenset({"tenant", "key", "model", "endpoint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query of the usage report.

    Attributes:
        tenant: Only this one, or None.
        model: Only this one, or None.
        group_by: The dimensions of a row.
        period: The time that one row covers.
    """

    tenant: str | None = None
    model: str | None = None
    group_by: tuple[str, ...] = ("tenant", "model")
    period: str = "day"


def report(usage: Iterable[Sequence[Any]], question: Question, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Return the rows of the report, in order.

    Args:
        usage: Rows of Unix seconds, ``DIMENSIONS`` and ``SUMS``.
        question: The query.
        zone: The time zone of hours, days and months.
    """
    by_attempt = not _OF_REQUEST.issuperset(question.group_by)
    sums: dict[tuple[str, ...], list[int | Decimal]] = {}
    periods: dict[int, str] = {}
    begins: dict[str, int] = {}
    for start, *values in usage:
        names = dict(zip(DIMENSIONS, values, strict=False))
        if question.tenant not in {None, names["tenant"]} or question.model not in {None, names["model"]}:
            continue
        if by_attempt and names["kind"] == REQUEST:
            # A request has no kind and no deployment: it would be a row without tokens.
            continue
        period = periods.get(start)
        if period is None:
            period = periods[start] = _period(start, question.period, zone)
            begins[period] = min(start, begins.get(period, start))
        key = (period, *(names[name] for name in question.group_by))
        add(sums.setdefault(key, empty()), values[len(DIMENSIONS) :])
    # Not by name: of two hours of one name, when clocks are set back, the earlier one comes first.
    ordered = sorted(sums.items(), key=lambda item: (begins[item[0][0]], item[0]))
    return [_row(key, values, question, by_attempt=by_attempt) for key, values in ordered]


def _row(
    key: tuple[str, ...], values: Sequence[int | Decimal], question: Question, *, by_attempt: bool
) -> dict[str, Any]:
    period, *names = key
    row: dict[str, Any] = {} if question.period == "total" else {"period": period}
    row |= dict(zip(question.group_by, names, strict=True))
    row |= dict(zip(COUNTS, values, strict=False))
    if by_attempt:
        del row["requests"]
    return row | money_of(values)


def _period(start: int, period: str, zone: ZoneInfo) -> str:
    if period == "total":
        return ""
    at = datetime.fromtimestamp(start, zone)
    # Its own offset: where clocks change within an hour, its beginning has another one.
    hour = at.replace(minute=0, second=0, tzinfo=timezone(at.utcoffset() or timedelta())).isoformat(timespec="minutes")
    return {"hour": hour, "day": f"{at:%Y-%m-%d}", "month": f"{at:%Y-%m}"}[period]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the report as CSV (RFC 4180) with a line of headings; empty when there are no rows."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell that a spreadsheet does not take for a formula: names of tenants and models come from outside."""
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if value[:1] in set("=+-@\t\r") else value


def status(
    *,
    machine: str,
    recorder: Recorder,
    troubles: Sequence[str],
    own_calls: OwnCalls,
    unlogged: int,
    outbox: Outbox,
    deliveries: Sequence[Delivery],
    sink_rows: Sequence[Mapping[str, Any]],
    now: float,
    implausible_usages: int,
    without_price: Sequence[str],
) -> Status:
    """Return the plugin's status.

    Args:
        machine: The id of this machine's outbox.
        recorder: Counts what was billed.
        troubles: What is wrong with the outbox; empty texts count for nothing.
        own_calls: The bills that wait.
        unlogged: Own calls that wait for what the gateway logs about them.
        outbox: The outbox.
        deliveries: The deliveries of the configured sinks.
        sink_rows: What the outbox last reported about each sink.
        now: Unix seconds.
        implausible_usages: Attempts whose token counts cannot be true.
        without_price: The gateway's deployments whose tokens have no price.
    """
    rows = {row["name"]: row for row in sink_rows}
    problems = [f"outbox: {text}" for text in dict.fromkeys((*troubles, recorder.trouble)) if text]
    if own_calls.lost:
        problems.append(f"{own_calls.lost} calls of our own were not billed")
    for delivery in deliveries:
        row = rows.get(delivery.name, {})
        if row.get("tries"):
            problems.append(f"sink {delivery.name} fails ({row['tries']} times): {row['error']}")
        pending_since = row.get("oldest_pending_at")
        if pending_since is not None and now - pending_since > _LATE_S:
            problems.append(f"sink {delivery.name} is {now - pending_since:.0f} s behind, {row['pending']} events wait")
        if row.get("dead"):
            problems.append(f"sink {delivery.name} has {row['dead']} dead letters")
    pending = sum(row["pending"] for row in sink_rows)
    return Status(
        ok=not problems,
        summary=one_line("; ".join(problems))
        or f"{recorder.recorded} bills written, {len(deliveries)} sinks, {pending} events to deliver",
        details={
            "machine": machine or None,
            "bills_written": recorder.recorded,
            "refused_by_outbox": recorder.refused,
            "own_calls_waiting": len(own_calls) + unlogged,
            "own_calls_lost": own_calls.lost,
            "odd_usages": implausible_usages,
            "odd_amounts": recorder.implausible_amounts,
            "deployments_without_price": list(without_price),
            "commits": outbox.commits,
            "sinks": [
                {**rows.get(delivery.name, {"name": delivery.name}), "delivers_here": delivery.progress.active}
                for delivery in deliveries
            ],
            "problems": problems,
        },
    )


def span_attributes(owed: Bill) -> Mapping[str, str | int | Sequence[str]]:
    """Return the span attributes that describe a bill. Amounts are in micro-dollars; those of an unknown cost are left out."""
    attributes: dict[str, str | int | Sequence[str]] = {
        "pointsman.billing.payer": owed.tenant,
        "pointsman.billing.state": owed.state,
        "pointsman.billing.events": [event.id for event in owed.events],
    }
    if owed.state != UNPRICED:
        attributes["pointsman.billing.cost_usd_micros"] = owed.cost_usd_micros
        attributes["pointsman.billing.amount_usd_micros"] = owed.amount_usd_micros
    return attributes
