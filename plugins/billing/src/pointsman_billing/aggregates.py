"""Sums of bills by time and by what was used, and their copies in the state store for the reports of other machines.

Every machine has an outbox of its own. It writes its sums to the state store: ``usage/<machine>/<hour>`` holds the
machine's rows of one hour, ``machine/<machine>`` its last reconciliation. Both expire by themselves. They are copies that
can be written again from the outbox at any time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from pointsman.errors import StoreError
from pointsman.pricing import CONTEXT

from . import events, pricing, reconciliation
from .bill import Bill, Line
from .errors import OutboxUnavailable

if TYPE_CHECKING:
    from pointsman.plugin import Clock
    from pointsman.store.protocol import JSON, StateStore

log: Final = logging.getLogger("pointsman.billing")

_HOUR_S: Final = 3600
#: Time zones differ from UTC by a multiple of this, so that each day and each month consists of whole ones.
QUARTER_S: Final = 900
_DAY_S: Final = 86_400
_MACHINE_KEPT_S: Final = 7 * _DAY_S
#: A settlement that was delayed belongs to the time at which its request ended; hours this old are still read again.
_LOOK_BACK_S: Final = 2 * _DAY_S

#: What sums are kept by, in the order of the columns. ``finding`` is what reconciliation found; the rest is in the events.
DIMENSIONS: Final = (
    "tenant",
    "key",
    "model",
    "model_served",
    "deployment",
    "provider",
    "version",
    "experiment",
    "arm",
    "kind",
    "endpoint",
    "finding",
)
COUNTS: Final = (
    "requests",
    "attempts",
    "estimated",
    "unpriced",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
)
#: Exact amounts in US dollars. ``difference_usd`` is kept for the machines that read it; reports subtract the two sums.
MONEY: Final = ("gateway_usd", "priced_usd", "cost_usd", "amount_usd", "difference_usd")
#: The sums, in the order of the columns.
SUMS: Final = (*COUNTS, *MONEY)

Key: TypeAlias = tuple[int | str, ...]
"""Unix seconds of the beginning of the time, then ``DIMENSIONS``. The kind of the request itself is ``request``."""

_FIRST_KEY: Final = 3
_FIRST_MONEY: Final = 4
_FIRST_ROW: Final = _FIRST_KEY + len(COUNTS) + _FIRST_MONEY


_WIDTH: Final = 1 + len(DIMENSIONS) + len(SUMS)


@dataclass(frozen=True, slots=True)
class Span:
    """A time span in Unix seconds: from, inclusive, to, exclusive."""

    from_s: int
    to_s: int


def of_bills(bills: Iterable[Bill], step_s: int) -> dict[Key, list[int | Decimal]]:
    """Return the sums of all bills for each ``step_s`` seconds, in the order of ``SUMS``."""
    sums: dict[Key, list[int | Decimal]] = {}
    for bill in bills:
        if not bill.own:
            _row(sums, _key(bill, bill.at_ms, step_s, events.REQUEST))[0] += 1
        for line in bill.lines:
            key, values = _key(bill, line.at_ms, step_s, line.kind, line), _of_line(line)
            if (row := sums.get(key)) is None:
                sums[key] = values
            else:
                add(row, values)
    return sums


def coarser(sums: Mapping[Key, list[int | Decimal]], step_s: int) -> dict[Key, list[int | Decimal]]:
    """Return the sums for each ``step_s`` seconds, of those for each of a part of them."""
    found: dict[Key, list[int | Decimal]] = {}
    for (start, *rest), values in sums.items():
        add(_row(found, (int(start) // step_s * step_s, *rest)), values)
    return found


def _row(sums: dict[Key, list[int | Decimal]], key: Key) -> list[int | Decimal]:
    return sums.setdefault(key, empty())


def empty() -> list[int | Decimal]:
    """Return sums of nothing."""
    return [0] * len(COUNTS) + [Decimal(0)] * len(MONEY)


def add(row: list[int | Decimal], values: Sequence[Any]) -> None:
    """Add values, in the order of ``SUMS``, to a row; amounts may be text."""
    for index in range(len(COUNTS)):
        row[index] += values[index]
    add_money(row, values[len(COUNTS) :])


def add_money(row: list[int | Decimal], amounts: Iterable[Decimal | str]) -> None:
    """Add amounts, in the order of ``MONEY``, to a row."""
    for index, amount in enumerate(amounts, len(COUNTS)):
        # Most are nothing. To compare a decimal with text takes long.
        if amount != "0" if isinstance(amount, str) else amount:
            row[index] = CONTEXT.add(Decimal(row[index]), Decimal(amount))


def _key(bill: Bill, at_ms: int, step_s: int, kind: str, line: Line | None = None) -> Key:
    of_attempt = (
        ("",) * 6
        if line is None
        else (line.model_served, line.deployment, line.provider, line.version, line.experiment, line.arm)
    )
    finding = "" if line is None else line.finding
    at_s = at_ms // 1000 // step_s * step_s
    return (at_s, bill.tenant, bill.key, bill.model, *of_attempt, kind, bill.endpoint, finding)


def _of_line(line: Line) -> list[int | Decimal]:
    usage, ours, gateway = line.usage, line.priced_usd, line.gateway_usd
    zero = Decimal(0)
    return [
        0,
        1,
        int(usage is not None and usage.estimated),
        int(line.amount_usd is None),
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        usage.cached_tokens if usage else 0,
        usage.cache_write_tokens if usage else 0,
        usage.reasoning_tokens if usage else 0,
        usage.audio_prompt_tokens + usage.audio_completion_tokens if usage else 0,
        gateway or zero,
        ours or zero,
        line.cost_usd or zero,
        line.amount_usd or zero,
        zero if ours is None or gateway is None else CONTEXT.subtract(ours, gateway),
    ]


def of_first_version(row: Sequence[Any]) -> list[Any]:
    """Return a row of the first version, without its time, in today's form.

    It had tenant, model and kind, and amounts in micro-dollars; its figure of the gateway was computed here.
    """
    tenant, model, kind, *values = row
    counts, micros = values[: len(COUNTS)], values[len(COUNTS) :]
    gateway, cost, amount, difference = (pricing.from_micros(value) for value in micros)
    unpriced = counts[COUNTS.index("unpriced")]
    finding = reconciliation.UNPRICED if unpriced else reconciliation.DIFFERENT if difference else reconciliation.AGREES
    known = {"tenant": tenant, "model": model, "kind": kind, "finding": finding}
    money = (gateway, gateway + difference, cost, amount, difference)
    return [*(known.get(name, "") for name in DIMENSIONS), *counts, *map(pricing.decimal_text, money)]


class LocalReports(Protocol):
    """What this machine's outbox reports."""

    def hours_since(self, hour: int) -> dict[int, list[list[Any]]]:
        """Return the rows of each hour from this one on: Unix seconds, ``DIMENSIONS`` and ``SUMS``."""

    def reconcile(self, span: Span) -> dict[str, Any]:
        """Count the settled requests by state."""


def _today(hour: int, row: list[Any]) -> tuple[Any, ...]:
    return (hour, *of_first_version(row)) if len(row) == _FIRST_ROW else tuple(row)


class SharedAggregates:
    """Writes this machine's sums, and reads those of other machines.

    Args:
        store: The plugin's part of the state store.
        reports: This machine's reports.
        machine: The id of this machine's outbox.
        clock: Time.
        kept_s: How long sums are kept, in seconds.
    """

    def __init__(self, store: StateStore, reports: LocalReports, machine: str, clock: Clock, kept_s: float) -> None:
        self._store = store
        self._reports = reports
        self._machine = machine
        self._clock = clock
        self._kept_s = kept_s
        self._written: dict[int, list[list[Any]]] = {}
        self._written_totals: Mapping[str, Any] | None = None
        #: Hours before this one are not read again; 0 reads all, the first time.
        self._since = 0

    def write_again(self) -> None:
        """Write all of it next time: the store has lost it."""
        self._written, self._written_totals, self._since = {}, None, 0

    async def write(self) -> None:
        """Write what has changed. Any worker of the machine may do it, because all share the outbox."""
        hours = await asyncio.to_thread(self._reports.hours_since, self._since)
        for hour, rows in sorted(hours.items()):
            if self._written.get(hour) != rows:
                await self._store.put(f"usage/{self._machine}/{hour}", cast("JSON", rows), ttl_s=self._kept_s)
                self._written[hour] = rows
        now = int(self._clock.now())
        self._since = (now - _LOOK_BACK_S) // _HOUR_S * _HOUR_S
        self._written = {hour: rows for hour, rows in self._written.items() if hour >= self._since}
        report = await asyncio.to_thread(self._reports.reconcile, Span(0, now + _DAY_S))
        totals = {"requests": report["requests"], "own_calls": report["own_calls"]}
        if totals != self._written_totals:
            value = {"at": now, **totals}
            await self._store.put(f"machine/{self._machine}", cast("JSON", value), ttl_s=_MACHINE_KEPT_S)
            self._written_totals = totals

    async def write_if_possible(self) -> None:
        """Write what has changed, unless the store or the outbox fails; for the shutdown of the worker."""
        try:
            await self.write()
        except (StoreError, OutboxUnavailable) as err:
            log.warning("billing could not share its sums during shutdown: %s", err)

    async def others_rows(self, span: Span) -> list[tuple[Any, ...]]:
        """Return the other machines' rows that begin within a time: Unix seconds, ``DIMENSIONS`` and ``SUMS``.

        Raises:
            StoreError: the store failed.
        """
        found: list[tuple[Any, ...]] = []
        for key, value in await self._store.scan("usage/"):
            _, machine, hour = key.split("/")
            if machine != self._machine and span.from_s - _HOUR_S < int(hour) < span.to_s:
                rows = [_today(int(hour), row) for row in cast("list[list[Any]]", value)]
                found += [row for row in rows if len(row) == _WIDTH and span.from_s <= row[0] < span.to_s]
        return found

    async def others(self) -> list[dict[str, Any]]:
        """Return the other machines' last reconciliations.

        Raises:
            StoreError: the store failed.
        """
        pairs = await self._store.scan("machine/")
        return [
            {"machine": name, **cast("dict[str, Any]", value)}
            for key, value in pairs
            if (name := key.removeprefix("machine/")) != self._machine
        ]
