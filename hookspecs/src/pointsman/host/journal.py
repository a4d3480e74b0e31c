"""Settlements, written down before they are acted on, so that each one is settled even if this worker dies.

A finished request is handed to ``submit``. Those that finish within one window share one row in the store; then the
``settle`` hooks run; then the row is removed. A row whose worker has died (its heartbeat is gone) is taken over by
another worker, atomically. A plugin that fails is asked again with growing delays; the row stays until it succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import Span
from pydantic import TypeAdapter

from ..errors import StoreError
from ..store.base import JSON, Put, StateStore, Update
from ..types import RequestContext, Settlement
from .calls import Calls
from .runtime import TaskGroup
from .tracing import Tracing

if TYPE_CHECKING:
    from ..plugin import Clock

log: Final = logging.getLogger("pointsman")

HEARTBEAT_INTERVAL_S: Final = 5.0
HEARTBEAT_TTL_S: Final = 15.0
RECOVERY_INTERVAL_S: Final = 5.0
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
#: Rows that one plugin settles at the same time; more wait, for this plugin only.
CONCURRENT_ROWS: Final = 32
#: Rows that are kept in memory while a plugin fails to settle them; more wait in the store alone.
RETRIED_ROWS: Final = 500

_ROW: Final = "journal/"
#: Who has ever written a row that may still be there: so that nobody has to read everybody's rows to find the dead's.
_OWNER: Final = "owner/"
_WORKER: Final = "worker/"
_SETTLEMENT: Final[TypeAdapter[Settlement]] = TypeAdapter(Settlement)


@dataclass(slots=True)
class Entry:
    """One settlement and who still has to hear of it."""

    ctx: RequestContext
    settlement: Settlement
    pending: list[str]
    span: Span | None = None
    hook_span: Span | None = None


@dataclass(slots=True)
class Row:
    """What one write to the journal holds."""

    key: str
    entries: list[Entry]
    tries: int = 0
    written: bool = False


@dataclass(slots=True)
class Counts:
    """For the status page."""

    submitted: int = 0
    settled: int = 0
    retried: int = 0
    recovered: int = 0
    unjournaled: int = 0


def restored_context(settlement: Settlement) -> RequestContext:
    """Return the request's context as far as a settlement remembers it: headers and body are never stored."""
    return RequestContext(
        request_id=settlement.request_id,
        call_id=settlement.call_id,
        endpoint=settlement.endpoint,
        model=settlement.model,
        stream=settlement.stream,
        identity=settlement.identity,
        received_at=settlement.started_at,
    )


def dump(entries: Sequence[Entry]) -> JSON:
    """Return a row's value. Provider headers stay out: they are large, and the journal needs none."""
    return {
        "v": 1,
        "entries": [
            {
                "pending": list(entry.pending),
                "settlement": _SETTLEMENT.dump_python(
                    replace(
                        entry.settlement, attempts=tuple(replace(a, headers={}) for a in entry.settlement.attempts)
                    ),
                    mode="json",
                    exclude_defaults=True,
                ),
            }
            for entry in entries
        ],
    }


def parse(value: Any) -> list[Entry]:
    """Read a row's value.

    Raises:
        ValueError: it was not written by ``dump``.
    """
    if not isinstance(value, dict) or value.get("v") != 1:
        raise ValueError("not a journal row of version 1")
    entries = []
    for item in value["entries"]:
        settlement = _SETTLEMENT.validate_python(item["settlement"])
        entries.append(Entry(restored_context(settlement), settlement, list(item["pending"])))
    return entries


class Journal:
    """Runs the ``settle`` hooks, exactly once where nothing dies, at least once where something does.

    Args:
        store: Where rows are written; keys are prefixed by the caller.
        calls: The compiled hooks.
        tracing: For the ``settle`` spans.
        clock: Time.
        tasks: Where the background work runs.
        worker: This worker's name.
        window_s: How long settlements are gathered for one write.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        calls: Calls,
        tracing: Tracing,
        clock: Clock,
        tasks: TaskGroup,
        worker: str,
        window_s: float,
    ) -> None:
        self._store = store
        self._calls = calls
        self._tracing = tracing
        self._clock = clock
        self._tasks = tasks
        self._worker = worker
        self._window_s = window_s
        self._plugins = list(calls.settle)
        self._waiting: list[Entry] = []
        self._wake = asyncio.Event()
        self._rows: dict[str, Row] = {}
        self._finished: list[str] = []
        self._slots = {plugin: asyncio.Semaphore(CONCURRENT_ROWS) for plugin in self._plugins}
        self._forgotten = 0
        self._parked = False
        self._next = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts = Counts()

    async def start(self) -> None:
        """Announce this worker and start the background work."""
        await self._beat()
        if self._plugins:
            await self._store.put(f"{_OWNER}{self._worker}", self._clock.now())
        self._tasks.spawn(self._write_for_ever(), name="journal")
        self._tasks.every(HEARTBEAT_INTERVAL_S, self._beat, name="heartbeat")
        self._tasks.every(RECOVERY_INTERVAL_S, self.recover, name="recovery")

    def submit(self, ctx: RequestContext, settlement: Settlement, span: Span | None) -> None:
        """Hand over a finished request. Returns at once."""
        if not self._plugins:
            return
        self.counts.submitted += 1
        self._waiting.append(Entry(ctx, settlement, list(self._plugins), span))
        self._idle.clear()
        self._wake.set()

    async def _beat(self) -> None:
        await self._store.ping()
        await self._store.put(f"{_WORKER}{self._worker}", self._clock.now(), ttl_s=HEARTBEAT_TTL_S)

    async def _write_for_ever(self) -> None:
        while True:
            if not self._waiting:
                try:
                    async with asyncio.timeout(0.5 if self._finished else None):
                        await self._wake.wait()
                except TimeoutError:
                    await self._remove_finished()
                    if self._finished:
                        await self._clock.sleep(RETRY_FIRST_S)
                    continue
            self._wake.clear()
            if self._window_s:
                await self._clock.sleep(self._window_s)
            await self._write()

    async def _write(self) -> None:
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        finished, self._finished = self._finished, []
        await self._write_row(self._row(entries), finished)

    def _row(self, entries: list[Entry]) -> Row:
        self._next += 1
        row = Row(f"{_ROW}{self._worker}/{self._next:012d}", entries)
        self._rows[row.key] = row
        return row

    async def _write_row(self, row: Row, finished: Sequence[str] = ()) -> None:
        try:
            await self._store.update(Update(puts={row.key: Put(dump(row.entries))}, deletes=tuple(finished)))
            row.written = True
        except (StoreError, ValueError) as err:
            self._finished.extend(finished)
            if isinstance(err, ValueError) and len(row.entries) > 1:
                # A value that the store cannot keep, which some plugin has put into a route: the others are kept.
                parts = [self._row([entry]) for entry in row.entries]
                del self._rows[row.key]
                for part in parts:
                    await self._write_row(part)
                return
            # The hooks still run from memory: only a crash in this moment would lose these settlements.
            self.counts.unjournaled += len(row.entries)
            self._calls.faults.record("pointsman", "journal", row.entries[0].settlement.request_id, err)
        self._tasks.spawn(self._settle(row), name="settle")

    async def _remove_finished(self) -> None:
        finished, self._finished = self._finished, []
        try:
            await self._store.update(Update(deletes=tuple(finished)))
        except StoreError as err:
            self._finished.extend(finished)
            self._calls.faults.record("pointsman", "journal", None, err)

    async def _settle(self, row: Row) -> None:
        while await self._try(row):
            await self._clock.sleep(min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (row.tries - 1)))
        del self._rows[row.key]
        if not row.entries and row.written:
            self._finished.append(row.key)
            self._wake.set()
        if not self._rows and not self._waiting:
            self._idle.set()

    async def _try(self, row: Row) -> bool:
        """Ask every plugin that has not settled yet, each on its own; say whether to try again later."""
        plugins = sorted({plugin for entry in row.entries for plugin in entry.pending})
        spans = self._start_spans(row)
        await asyncio.gather(*(self._settle_with(plugin, row) for plugin in plugins))
        for entry in spans:
            self._tracing.end(entry.hook_span, {"pointsman.waiting": entry.pending} if entry.pending else None)
        self.counts.settled += sum(not entry.pending for entry in row.entries)
        row.entries = [entry for entry in row.entries if entry.pending]
        if not row.entries:
            return False
        row.tries += 1
        self.counts.retried += 1
        await self._note_progress(row)
        for entry in row.entries:
            # Whoever waits for long keeps neither headers nor body in memory.
            entry.ctx, entry.span = restored_context(entry.settlement), None
        if all(plugin not in self._calls.settle for entry in row.entries for plugin in entry.pending):
            # Only plugins that are not loaded are missing; the row waits for a worker that has them.
            self._parked = True
            return False
        if row.written and len(self._rows) > RETRIED_ROWS:
            # It is safe in the store; ``recover`` takes it up again when there is room.
            self._forgotten += 1
            return False
        return True

    def _start_spans(self, row: Row) -> list[Entry]:
        traced = [entry for entry in row.entries if entry.span is not None]
        for entry in traced:
            entry.hook_span = self._tracing.start("settle", parent=entry.span)
        return traced

    async def _settle_with(self, plugin: str, row: Row) -> None:
        slots = self._slots.get(plugin)
        if slots is None:
            return
        async with slots:
            for entry in row.entries:
                if plugin not in entry.pending:
                    continue
                with self._tracing.current(entry.hook_span):
                    settled = await self._calls.run_settle(plugin, entry.ctx, entry.settlement)
                if settled:
                    entry.pending.remove(plugin)

    async def _note_progress(self, row: Row) -> None:
        """Write down who has settled already, so that nobody is asked twice after a crash."""
        try:
            await self._store.put(row.key, dump(row.entries))
            row.written = True
        except (StoreError, ValueError) as err:
            self._calls.faults.record("pointsman", "journal", row.entries[0].settlement.request_id, err)

    async def recover(self) -> None:
        """Take over the rows of workers that have died, and our own that did not fit into memory."""
        # Owners first: a worker that starts in between has a heartbeat before it owns anything.
        owners = await self._store.scan(_OWNER)
        alive = {key.removeprefix(_WORKER) for key, _ in await self._store.scan(_WORKER)}
        for key, _ in owners:
            owner = key.removeprefix(_OWNER)
            if owner == self._worker:
                if self._forgotten and len(self._rows) < RETRIED_ROWS:
                    await self._adopt_all(owner)
            elif owner not in alive and not await self._adopt_all(owner):
                await self._store.delete(key)

    async def _adopt_all(self, owner: str) -> int:
        """Take over a worker's rows; return how many there were."""
        rows = await self._store.scan(f"{_ROW}{owner}/")
        for key, value in rows:
            if len(self._rows) >= RETRIED_ROWS:
                break
            if key not in self._rows and key not in self._finished:
                await self._adopt(key, value, ours=owner == self._worker)
        return len(rows)

    async def _adopt(self, key: str, value: JSON, *, ours: bool) -> None:
        try:
            entries = parse(value)
        except (ValueError, KeyError, TypeError) as err:
            self._calls.faults.record("pointsman", "journal", None, ValueError(f"row {key!r} cannot be read: {err}"))
            return
        if all(plugin not in self._calls.settle for entry in entries for plugin in entry.pending):
            return
        self._next += 1
        row = Row(f"{_ROW}{self._worker}/{self._next:012d}", entries, written=True)
        if await self._store.update(Update(checks={key: value}, deletes=(key,), puts={row.key: Put(value)})):
            if ours:
                self._forgotten -= 1
            else:
                self.counts.recovered += len(entries)
            self._rows[row.key] = row
            self._idle.clear()
            self._tasks.spawn(self._settle(row), name="settle")

    async def idle(self) -> None:
        """Wait until everything handed over so far has been settled."""
        await self._idle.wait()

    def waiting(self) -> Counter[str]:
        """Return how many settlements each plugin still has to hear of."""
        entries = [*self._waiting, *(entry for row in self._rows.values() for entry in row.entries)]
        return Counter(plugin for entry in entries for plugin in entry.pending)

    async def flush(self, timeout_s: float) -> int:
        """Settle everything handed over so far, at most this long.

        Returns:
            How many settlements are left in the journal for another worker.
        """
        if self._waiting:
            self._tasks.spawn(self._write(), name="flush")
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        if self._waiting:
            await self._write()
        if self._finished:
            await self._remove_finished()
        return sum(len(row.entries) for row in self._rows.values())

    async def leave(self) -> None:
        """Withdraw this worker's heartbeat, so that others take over its rows at once."""
        try:
            if not (self._rows or self._forgotten or self._finished or self._parked):
                await self._store.delete(f"{_OWNER}{self._worker}")
            await self._store.delete(f"{_WORKER}{self._worker}")
        except StoreError as err:
            self._calls.faults.record("pointsman", "journal", None, err)
