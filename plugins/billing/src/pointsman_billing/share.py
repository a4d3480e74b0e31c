"""Several machines: each has an outbox of its own, and writes its sums to the state store for the others' reports.

Keys: ``usage/<machine>/<hour>`` holds the machine's rows of one hour, ``machine/<machine>`` its last reconciliation. Both
go by themselves after their time. What the store holds is a copy: it can always be written again from the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from pointsman.errors import StoreError

from .errors import OutboxUnavailable
from .reports import Reports, Span
from .tables import SUMS

if TYPE_CHECKING:
    from pointsman.plugin import Clock
    from pointsman.store.base import JSON, StateStore

log: Final = logging.getLogger("pointsman.billing")

_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_MACHINE_KEPT_S: Final = 7 * _DAY_S
#: A settlement that was held up belongs to the hour in which its request ended: hours are looked at again for so long.
_LOOK_BACK_S: Final = 2 * _DAY_S


class Sharing:
    """Writes this machine's sums, and reads those of the others.

    Args:
        store: The plugin's part of the state store.
        reports: This machine's.
        machine: This machine's outbox.
        clock: Time.
        kept_s: How long sums are kept, in seconds.
    """

    def __init__(self, store: StateStore, reports: Reports, machine: str, clock: Clock, kept_s: float) -> None:
        self._store = store
        self._reports = reports
        self._machine = machine
        self._clock = clock
        self._kept_s = kept_s
        self._written: dict[int, list[list[Any]]] = {}
        self._told: Mapping[str, Any] | None = None
        #: Nothing older than this has to be looked at; before the first time everything has.
        self._since = 0

    async def write(self) -> None:
        """Write what has changed. Any worker of the machine may do it: they all see the same outbox."""
        hours = await asyncio.to_thread(self._reports.hours_since, self._since)
        for hour, rows in sorted(hours.items()):
            if self._written.get(hour) != rows:
                await self._store.put(f"usage/{self._machine}/{hour}", cast("JSON", rows), ttl_s=self._kept_s)
                self._written[hour] = rows
        now = int(self._clock.now())
        self._since = (now - _LOOK_BACK_S) // _HOUR_S * _HOUR_S
        self._written = {hour: rows for hour, rows in self._written.items() if hour >= self._since}
        report = await asyncio.to_thread(self._reports.reconcile, Span(0, now + _DAY_S))
        told = {"requests": report["requests"], "own_calls": report["own_calls"]}
        if told != self._told:
            value = {"at": now, **told}
            await self._store.put(f"machine/{self._machine}", cast("JSON", value), ttl_s=_MACHINE_KEPT_S)
            self._told = told

    async def write_if_possible(self) -> None:
        """Write what has changed, at the end of this worker's life."""
        try:
            await self.write()
        except (StoreError, OutboxUnavailable) as err:
            log.warning("billing could not share its sums at the end: %s", err)

    async def others_hours(self, span: Span) -> list[tuple[Any, ...]]:
        """Return the other machines' rows that begin within a time: hour, tenant, model, kind, and ``SUMS``.

        Raises:
            StoreError: the store failed.
        """
        found: list[tuple[Any, ...]] = []
        for key, value in await self._store.scan("usage/"):
            _, machine, hour = key.split("/")
            if machine != self._machine and span.from_s <= int(hour) < span.to_s:
                rows = cast("list[list[Any]]", value)
                found += [(int(hour), *row) for row in rows if len(row) == 3 + len(SUMS)]
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
