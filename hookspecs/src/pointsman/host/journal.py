"""Settlements, written to the store before they are acted on, so that each is settled even if this worker dies.

A finished request is submitted. Settlements that finish within one window share one row in the store; then the
``settle`` hooks run; then the row is removed. No client waits for any of it, so all of it is ``unhurried``. A row whose
worker has died (its heartbeat is gone) is taken over by another worker, atomically. A plugin that fails is retried with growing delays; the row stays until it succeeds.
What a plugin keeps in a place of its own is final when its row is gone, see ``takeovers``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Span, StatusCode

from ..errors import StoreError
from ..store.protocol import Put, StateStore, Update
from ..store.sqlite import unhurried
from ..types import RequestContext, Settlement
from .attributes import operation, settlement_attributes
from .hooks import Hooks
from .journal_rows import (
    ASIDE,
    HEARTBEAT_TTL_S,
    OWNER,
    ROW,
    WORKER,
    Completing,
    Counts,
    Entry,
    Row,
    dump,
    restored_context,
)
from .recovery import Recovery
from .runtime import TaskGroup
from .span_pipeline import REQUEST
from .store_loss import Lifetime
from .takeovers import Takeovers
from .tracing import Tracing

if TYPE_CHECKING:
    from ..plugin import Clock

log: Final = logging.getLogger("pointsman")

HEARTBEAT_INTERVAL_S: Final = 5.0
RECOVERY_INTERVAL_S: Final = 5.0
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
#: Age of an unsettled settlement from which the status shows a problem, in seconds.
LATE_S: Final = 30.0
#: Rows that one plugin settles at the same time; more wait, for this plugin only.
CONCURRENT_ROWS: Final = 32
#: Settlements of one row that a plugin settles at the same time, if it waits while it does.
TOGETHER: Final = 64
#: Rows kept in memory while a plugin fails to settle them; others wait in the store alone.
RETRIED_ROWS: Final = 500
#: Longest wait for the gateway to log the cost of an answer that is out, in seconds: it does so in the background, at
#: once unless other callbacks are slow.
COST_WAIT_S: Final = 2.0


class Journal:
    """Runs the ``settle`` hooks: exactly once, or at least once when a worker dies.

    Args:
        store: Where rows are written; keys are prefixed by the caller.
        takeovers: What other machines have taken over.
        lifetime: Whether the store has lost everything.
        on_emptied: Called when it has.
        hooks: The compiled hooks.
        tracing: For the ``settle`` spans.
        clock: Time.
        tasks: Where the background work runs.
        worker: This worker's name.
        window_s: Time over which settlements are collected for one write, in seconds. For half of it that write may wait for
            others to the same database; what is asked of databases to settle it, for as long again.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        takeovers: Takeovers,
        lifetime: Lifetime,
        on_emptied: Callable[[], None],
        hooks: Hooks,
        tracing: Tracing,
        clock: Clock,
        tasks: TaskGroup,
        worker: str,
        window_s: float,
    ) -> None:
        self._store = store
        self._takeovers = takeovers
        self._lifetime = lifetime
        self._on_emptied = on_emptied
        self.hooks = hooks
        self._tracing = tracing
        self._clock = clock
        self._tasks = tasks
        self._worker = worker
        self._window_s = window_s
        self._waiting: list[Entry] = []
        #: When the window of the oldest of them is over, in seconds of the monotonic clock.
        self._due = 0.0
        self._wake = asyncio.Event()
        self._rows: dict[str, Row] = {}
        #: Rows to remove, with what is final then.
        self._finished: dict[str, dict[str, list[str]]] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self.use(hooks)
        #: Rows of this worker that are in the store alone.
        self.forgotten = 0
        self._parked = False
        self._next = 0
        #: Whether the store has lost something that is not written again yet.
        self._restore_due = False
        #: Why the store cannot be used; empty while it can.
        self._store_lost = ""
        self._store_back = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts = Counts()
        self.recovery = Recovery(store, takeovers, worker, self, clock.monotonic)

    def use(self, hooks: Hooks) -> None:
        """Settle with these plugins from now on; a request that began with others is still settled with those."""
        self.hooks = hooks
        for plugin in hooks.settle:
            self._slots.setdefault(plugin, asyncio.Semaphore(CONCURRENT_ROWS))

    def waits_for(self, generation: int) -> bool:
        """Return whether a settlement is still to be made with the plugins of an earlier generation than this."""
        entries = [*self._waiting, *(entry for row in self._rows.values() for entry in row.entries)]
        return any(entry.hooks is not None and entry.hooks.generation < generation for entry in entries)

    async def start(self) -> None:
        """Announce this worker and start the background work."""
        if self._takeovers:
            await self._takeovers.refresh()
        await self._lifetime.name_what_was_found()
        self._restore_due = self._lifetime.lost
        await self._beat()
        self.counts.unreadable = await self.recovery.unreadable()
        self._tasks.forever(self._write_until_cancelled, name="journal")
        self._tasks.every(HEARTBEAT_INTERVAL_S, self._beat, name="heartbeat")
        self._tasks.every(RECOVERY_INTERVAL_S, self._recover, name="recovery")

    def submit(
        self,
        ctx: RequestContext,
        settlement: Settlement,
        span: Span | None,
        completing: Completing | None = None,
        *,
        hooks: Hooks | None = None,
    ) -> None:
        """Submit a finished request; returns at once.

        Args:
            ctx: The request.
            settlement: Its settlement as known now. It is written at once, so that a crash does not lose it.
            span: The request's span.
            completing: Completes the settlement; it is waited for, at most ``COST_WAIT_S``, before plugins settle.
            hooks: Those that the request began with; None: the present ones.
        """
        hooks = hooks or self.hooks
        if not hooks.settle:
            return
        self.counts.submitted += 1
        entry = Entry(ctx, settlement, list(hooks.settle), completing=completing, hooks=hooks)
        if span is not None and (recorded := self._tracing.recorded(span)) is not None:
            entry.request = recorded
            entry.span = self._start_span(entry)
            self._tracing.link(span, entry.span, "settlement")
        if not self._waiting:
            self._due = self._clock.monotonic() + self._window_s
        self._waiting.append(entry)
        self._idle.clear()
        self._wake.set()

    async def _beat(self) -> None:
        try:
            await self._store.ping()
            self._restore_due |= await self._lifetime.lost_something()
            beat = self._lifetime.beat()
            now = self._clock.now()
            puts = {**beat.puts, f"{WORKER}{self._worker}": Put(now, ttl_s=HEARTBEAT_TTL_S)}
            if self._slots:
                # With each beat: a store that has come back empty knows neither.
                puts[f"{OWNER}{self._worker}"] = Put({"at": now, "places": self._takeovers.names()})
            await self._store.update(replace(beat, puts=puts))
            self._lifetime.beaten()
        except StoreError as err:
            self._store_lost = str(err)
            raise
        if self._restore_due:
            await self._restore()
            self._restore_due = False
        if self._store_lost:
            self._store_lost = ""
            # What failed while the store was away waits no longer.
            back, self._store_back = self._store_back, asyncio.Event()
            back.set()

    async def _recover(self) -> None:
        if await self._lifetime.is_settled():
            await self.recovery.recover()

    def problems(self) -> list[str]:
        """Return what waits for longer than it should, one sentence each."""
        problems = [f"the store cannot be used: {self._store_lost}"] if self._store_lost else []
        problems += self._lifetime.problems()
        if self.counts.unreadable:
            problems.append(
                f"{self.counts.unreadable} parts of the journal cannot be read and are put aside, so that their requests are "
                f"not settled; they are in the store under {ASIDE!r}: look at them, then delete them"
            )
        entries = [*self._waiting, *(entry for row in self._rows.values() for entry in row.entries)]
        if not entries:
            return problems
        oldest_s = self._clock.now() - min(entry.settlement.finished_at for entry in entries)
        if oldest_s < LATE_S:
            return problems
        waiting = ", ".join(f"{plugin} {count}" for plugin, count in sorted(self.waiting().items()))
        return [*problems, f"settlements wait in the journal, the oldest for {oldest_s:.0f} s: {waiting}"]

    async def _restore(self) -> None:
        """Write again what is only in this worker's memory: its rows that are still to be settled."""
        log.error("%s", "; ".join(self._lifetime.problems()))
        for row in list(self._rows.values()):
            if row.written and row.entries:
                await self._note_progress(row)
        await self._remove_returned()
        self._on_emptied()

    async def _remove_returned(self) -> None:
        """Remove rows of this worker that are settled, and that a store which went back has again."""
        if self.forgotten or self._parked:
            return
        try:
            for key, _ in await self._store.scan(f"{ROW}{self._worker}/"):
                if not self.holds(key):
                    await self._store.delete(key)
        except StoreError as err:
            # Harmless as long as this worker lives; another one would settle them again.
            self.hooks.faults.record("pointsman", "journal", None, err)

    async def _write_until_cancelled(self) -> None:
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
            # What was submitted while the rows before it were written has waited for a part of its window already.
            if self._window_s and (pause_s := self._left_s() - self._window_s / 2) > 0:
                await self._clock.sleep(pause_s)
            await self._write(most_s=self._window_s / 2)

    def _left_s(self) -> float:
        """Return what is left of the window of what waits, in seconds; all of it where only rows are to be removed."""
        return self._due - self._clock.monotonic() if self._waiting else self._window_s

    async def _write(self, *, most_s: float = 0.0) -> None:
        """Write what waits; for what is left of its window, and at most this long for each row, writes may wait for others."""
        due, entries, self._waiting = self._due, self._waiting, []
        if not entries:
            return
        finished, self._finished = self._finished, {}
        for entry in entries:
            entry.complete(final=False)
        # A settlement that waits for its cost does not hold up the others.
        complete = [entry for entry in entries if entry.completing is None]
        incomplete = [entry for entry in entries if entry.completing is not None]
        # Both at once: from here on a stop knows of them, whatever becomes of this task.
        for row in [self._row(some) for some in (complete, incomplete) if some]:
            with unhurried(max(0.0, min(most_s, due - self._clock.monotonic()))):
                await self._write_row(row, finished)
            finished = {}

    def _row(self, entries: list[Entry]) -> Row:
        row = Row(self.next_key(), entries)
        self._rows[row.key] = row
        return row

    async def _step(self, puts: Mapping[str, Put], finished: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Write rows and remove finished ones, atomically; what was settled in those is final then, or was taken over."""
        update = Update(puts=puts, deletes=tuple(finished))
        while not await self._store.update(replace(update, checks=self._takeovers.checks())):
            await self._takeovers.refresh()
        for settled in finished.values():
            self._takeovers.decide(settled)

    async def _write_row(self, row: Row, finished: Mapping[str, dict[str, list[str]]] = MappingProxyType({})) -> None:
        try:
            await self._step({row.key: Put(dump(row.entries))}, finished)
            row.written = True
        except Exception as err:  # noqa: BLE001  # whatever it is, the settlements are still made
            self._finished.update(finished)
            # Another machine might find it.
            row.doubtful = bool(self._takeovers) and not isinstance(err, ValueError)
            if isinstance(err, ValueError) and len(row.entries) > 1:
                # A value that the store cannot keep, which some plugin has put into a route: the others are kept.
                parts = [self._row([entry]) for entry in row.entries]
                del self._rows[row.key]
                for part in parts:
                    await self._write_row(part)
                return
            # The hooks still run from memory: only a crash in this moment would lose these settlements.
            self.counts.unjournaled += len(row.entries)
            self.hooks.faults.record("pointsman", "journal", row.entries[0].settlement.request_id, err)
        self._tasks.spawn(self._settle(row), name="settle")

    async def _remove_finished(self) -> None:
        finished, self._finished = self._finished, {}
        try:
            await self._step({}, finished)
        except Exception as err:  # noqa: BLE001  # whatever it is, they are removed later
            self._finished.update(finished)
            self.hooks.faults.record("pointsman", "journal", None, err)

    async def _complete(self, row: Row) -> None:
        """Wait until all settlements are complete, but not for long: a cost that is never logged is unknown."""
        waiting = [entry for entry in row.entries if entry.completing is not None]
        if not waiting:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COST_WAIT_S):
                for entry in waiting:
                    if entry.completing is not None:
                        await entry.completing.cost_known()
        changed = [entry for entry in waiting if entry.complete(final=True)]
        if changed and row.written:
            await self._note_progress(row)

    async def _settle(self, row: Row) -> None:
        with unhurried(self._window_s):
            while await self._is_left(row):
                await self._pause(min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(row.tries - 1, 10)))
        del self._rows[row.key]
        if not row.entries:
            if row.written or row.doubtful:
                self._finished[row.key] = row.settled
                self._wake.set()
            else:
                self._takeovers.decide(row.settled)
        if not self._rows and not self._waiting:
            self._idle.set()

    async def _is_left(self, row: Row) -> bool:
        """Settle a row once; return whether to try again later, as after an error of the host's own."""
        try:
            await self._complete(row)
            return await self._try(row)
        except Exception as err:  # noqa: BLE001  # a row that no task settles would wait until this worker ends
            self.hooks.faults.record("pointsman", "settle", None, err)
            row.tries += 1
            return True

    async def _pause(self, seconds: float) -> None:
        """Wait this long, or until the store is back."""
        waits = {asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._store_back.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _try(self, row: Row) -> bool:
        """Ask every plugin that has not settled yet, each on its own; say whether to try again later."""
        plugins = sorted({plugin for entry in row.entries for plugin in entry.pending})
        for entry in row.entries:
            if entry.span is None and entry.request is not None:
                entry.span = self._start_span(entry, tries=row.tries + 1)
        await asyncio.gather(*(self._settle_with(plugin, row) for plugin in plugins))
        for entry in row.entries:
            self._end_span(entry)
        self.counts.settled += sum(not entry.pending for entry in row.entries)
        row.entries = [entry for entry in row.entries if entry.pending]
        if not row.entries:
            return False
        row.tries += 1
        self.counts.retried += 1
        await self._note_progress(row)
        for entry in row.entries:
            # A settlement that waits for a retry keeps neither headers nor body in memory.
            entry.ctx = restored_context(entry.settlement)
            entry.hooks = None
        if all(plugin not in self.hooks.settle for entry in row.entries for plugin in entry.pending):
            # Only plugins that are not loaded are missing; the row waits for a worker that has them.
            self._parked = True
            return False
        if row.written and len(self._rows) > RETRIED_ROWS:
            # It is safe in the store; ``recover`` takes it up again when there is room.
            self.forgotten += 1
            return False
        return True

    def _start_span(self, entry: Entry, tries: int = 1) -> Span | None:
        settlement = entry.settlement
        return self._tracing.start(
            f"settle {settlement.model}".strip(),
            attributes={
                "gen_ai.operation.name": operation(settlement.endpoint),
                "gen_ai.request.model": settlement.model,
                "pointsman.kind": "settlement",
                "pointsman.request_id": settlement.request_id,
                "pointsman.tries": tries,
                **({"pointsman.tenant": settlement.identity.tenant} if settlement.identity.tenant else {}),
            },
            link=entry.request,
            linked_as=REQUEST,
        )

    def _end_span(self, entry: Entry) -> None:
        """End the settlement's span: failed while a plugin has not settled."""
        span, entry.span = entry.span, None
        if span is None:
            return
        error = f"not settled yet: {', '.join(entry.pending)}" if entry.pending else None
        attributes = settlement_attributes(entry.settlement, entry.pending)
        self._tracing.end(span, attributes, error=error, status=StatusCode.OK)

    async def _settle_with(self, plugin: str, row: Row) -> None:
        slots = self._slots.get(plugin)
        if slots is None:
            return
        placed = self._takeovers.has_place(plugin)
        async with slots:
            left = [entry for entry in row.entries if plugin in entry.pending]
            while left:
                # A plugin that waits, for a commit as a rule, gets several at once, so that they share one.
                most = TOGETHER if self.hooks.has_waited(plugin) else 1
                some, left = left[:most], left[most:]
                if placed:
                    some = self._not_taken(plugin, some)
                if len(some) == 1:
                    await self._settle_entry(plugin, row, some[0], placed)
                else:
                    await asyncio.gather(*(self._settle_entry(plugin, row, entry, placed) for entry in some))

    def _not_taken(self, plugin: str, entries: Sequence[Entry]) -> list[Entry]:
        """Return what is left to a plugin with a place of its own; another machine has taken over the rest."""
        left = []
        for entry in entries:
            if self._takeovers.is_taken(plugin, entry.settlement.request_id):
                entry.pending.remove(plugin)
            else:
                left.append(entry)
        return left

    async def _settle_entry(self, plugin: str, row: Row, entry: Entry, placed: bool) -> None:
        """Settle one entry, and note it at once: a stop may come while others of the row are still settled."""
        hooks = entry.hooks or self.hooks
        if entry.span is None:
            settled = await hooks.run_settle(plugin, entry.ctx, entry.settlement)
        else:
            with self._tracing.current(entry.span):
                settled = await hooks.run_settle(plugin, entry.ctx, entry.settlement)
        if settled:
            entry.pending.remove(plugin)
            if placed:
                row.settled.setdefault(plugin, []).append(entry.settlement.request_id)

    async def _note_progress(self, row: Row) -> bool:
        """Record which plugins have settled, so that a crash does not repeat them; return whether it is recorded.

        Plugins may settle more of it meanwhile, or all that is left.
        """
        settled, row.settled = row.settled, {}
        first = row.entries[0].settlement.request_id
        try:
            await self._step({row.key: Put(dump(row.entries))}, {})
            row.written = noted = True
            self._takeovers.decide(settled)
        except Exception as err:  # noqa: BLE001  # whatever it is, the row is still settled
            noted = False
            for plugin, ids in settled.items():
                row.settled[plugin] = [*ids, *row.settled.get(plugin, ())]
            self.hooks.faults.record("pointsman", "journal", first, err)
        if not row.entries:
            self._finished.setdefault(row.key, row.settled)
            self._wake.set()
        return noted

    # -- what recovery takes over ---------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another row fits into memory."""
        return len(self._rows) < RETRIED_ROWS

    def holds(self, key: str) -> bool:
        """Return whether a row of the store is in memory, or about to be removed."""
        return key in self._rows or key in self._finished

    def next_key(self) -> str:
        """Return the key of a new row."""
        self._next += 1
        return f"{ROW}{self._worker}/{self._next:012d}"

    def adopted(self, row: Row, *, ours: bool) -> None:
        """Settle a row that has been taken over."""
        if ours:
            self.forgotten -= 1
        else:
            self.counts.recovered += len(row.entries)
        self._rows[row.key] = row
        self._idle.clear()
        self._tasks.spawn(self._settle(row), name="settle")

    # -- its end --------------------------------------------------------------------------------------------------------

    async def idle(self) -> None:
        """Wait until every settlement submitted so far has been settled."""
        await self._idle.wait()

    def waiting(self) -> Counter[str]:
        """Return the number of settlements that each plugin still has to settle."""
        entries = [*self._waiting, *(entry for row in self._rows.values() for entry in row.entries)]
        return Counter(plugin for entry in entries for plugin in entry.pending)

    async def flush(self, timeout_s: float) -> tuple[int, int]:
        """Settle everything submitted so far, at most this long; write what is not settled then.

        Returns:
            The number of settlements left in the journal for another worker, and of those that could not be written.
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
        left = [row for row in self._rows.values() if any(entry.pending for entry in row.entries)]
        for row in left:
            if row.entries and not await self._note_progress(row):
                break  # each further one would wait for the store as long
        if self._finished:
            await self._remove_finished()
        for row in left:
            for entry in row.entries:
                self._end_span(entry)
        kept = [bool(row.written) for row in left for entry in row.entries if entry.pending]
        return kept.count(True), kept.count(False)

    async def leave(self) -> None:
        """Withdraw this worker's heartbeat, so that others take over its rows at once."""
        if self._finished:
            await self._remove_finished()
        try:
            if not (self._rows or self.forgotten or self._finished or self._parked):
                await self._store.delete(f"{OWNER}{self._worker}")
            await self._store.delete(f"{WORKER}{self._worker}")
        except StoreError as err:
            self.hooks.faults.record("pointsman", "journal", None, err)
