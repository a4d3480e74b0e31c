"""The usage report: sums by tenant, model and kind, a row for each hour, day or month. Pure functions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from . import money
from .tables import SUMS

DIMENSIONS: Final = ("tenant", "model", "kind")
PERIODS: Final = ("hour", "day", "month", "total")
_KIND_OF_REQUEST: Final = "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        tenant: Only this one, or None.
        model: Only this one, or None.
        group_by: By what rows are told apart.
        period: The stretch of time that one row covers.
    """

    tenant: str | None = None
    model: str | None = None
    group_by: tuple[str, ...] = ("tenant", "model")
    period: str = "day"


def report(hours: Iterable[Sequence[Any]], question: Question, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Return the rows of the report, in order.

    Args:
        hours: Rows of hour (Unix seconds), tenant, model, kind and ``SUMS``.
        question: What is asked.
        zone: In which days and months begin.
    """
    by_kind = "kind" in question.group_by
    sums: dict[tuple[str, ...], list[int]] = {}
    for hour, tenant, model, kind, *values in hours:
        if question.tenant not in {None, tenant} or question.model not in {None, model}:
            continue
        if by_kind and kind == _KIND_OF_REQUEST:
            # A request is of no kind: it would be a row without tokens.
            continue
        names = {"tenant": tenant, "model": model, "kind": kind}
        key = (_period(hour, question.period, zone), *(names[name] for name in question.group_by))
        row = sums.setdefault(key, [0] * len(SUMS))
        for index, value in enumerate(values):
            row[index] += value
    return [_row(key, values, question) for key, values in sorted(sums.items())]


def _row(key: tuple[str, ...], values: Sequence[int], question: Question) -> dict[str, Any]:
    period, *names = key
    row: dict[str, Any] = {} if question.period == "total" else {"period": period}
    row |= dict(zip(question.group_by, names, strict=True))
    row |= dict(zip(SUMS, values, strict=True))
    if "kind" in question.group_by:
        del row["requests"]
    row["amount_usd"] = money.text(money.from_micros(row["amount_usd_micros"]))
    return row


def _period(hour: int, period: str, zone: ZoneInfo) -> str:
    if period == "total":
        return ""
    at = datetime.fromtimestamp(hour, zone)
    return {"hour": at.isoformat(timespec="minutes"), "day": f"{at:%Y-%m-%d}", "month": f"{at:%Y-%m}"}[period]


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
    """Return a cell that no spreadsheet takes for a formula: a tenant's or model's name is not ours."""
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value
