"""What is known, shared with the other workers and kept over a restart: written behind, never on the request path.

Each worker adds what it has seen since its last writing to the deployment's record by compare-and-set, so a record counts
every attempt of every worker once, and a worker that restarts knows what it knew.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pointsman.errors import StoreError

from .records import PREFIX, Record, from_json, key_of, to_json
from .state import State
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pointsman.plugin import Services
    from pointsman.store.base import JSON

    from .book import Book

log: Final = logging.getLogger("pointsman.signals")

TRIES: Final = 5
#: Deployments written and read in one round; the rest follows in the next one.
AT_ONCE: Final = 200
#: Writes under way at the same time: the disk store commits them together.
TOGETHER: Final = 32


class Cache:
    """The store's side of a ``Book``.

    Args:
        book: The states.
        services: For the store, the clock and ids.
    """

    def __init__(self, book: Book, services: Services) -> None:
        self._book = book
        self._store = services.store
        self._clock = services.clock
        self._new_id = services.new_id
        self._next = 0
        self._round = asyncio.Lock()
        self.writes = 0
        self.failures = 0

    async def restore(self) -> int:
        """Load what the store still knows; return how many deployments that is.

        Raises:
            StoreError: the store cannot be read.
        """
        now, book = self._clock.now(), self._book
        records = [
            record
            for _, value in await self._store.scan(PREFIX)
            if (record := from_json(value, book.slice_s, book.rules)) is not None
            and record.useful(now, book.rules.ttl_s)
        ]
        records.sort(key=lambda record: record.written_at, reverse=True)
        for record in records[: book.config.max_deployments]:
            state = State(record.deployment_id, book.slice_s, book.rules)
            self._learn(state, record, now)
            book.restored(state)
        return len(book.states)

    async def share(self) -> None:
        """Write what is new here, then read what is new elsewhere. A store that fails is logged and tried again."""
        try:
            async with self._round:
                await self._write_all(self._unsaved()[:AT_ONCE])
                await self._pull()
        except StoreError as err:
            self.failures += 1
            level = logging.WARNING if self.failures == 1 else logging.DEBUG
            log.log(level, "signals are not shared with the other workers for now: %s", err)
        else:
            self.failures = 0

    async def write(self, state: State) -> None:
        """Add what is new about a deployment to its record.

        Raises:
            StoreError: the store cannot be written; nothing is lost, the next call writes it.
        """
        if state.pending is not None:
            return
        book, key = self._book, key_of(state.id)
        state.pending, state.delta, state.unsaved = state.delta, Window(book.slice_s), False
        written = False
        try:
            for _ in range(TRIES):
                before = await self._store.get(key)
                now = self._clock.now()
                record = self._merged(state, before, state.pending, now)
                ttl_s = max(book.rules.ttl_s, book.config.window_s, state.quota.ends_at(now) - now)
                if await self._store.compare_and_set(key, before, to_json(record), ttl_s=ttl_s):
                    state.base, state.revision = record.window, record.revision
                    self.writes += 1
                    written = True
                    return
        finally:
            pending, state.pending = state.pending, None
            if not written:
                state.delta.merge(pending)
                state.unsaved = True
            book.changed(state)

    async def read(self, states: Sequence[State]) -> None:
        """Take over what other workers have written about these deployments.

        Raises:
            StoreError: the store cannot be read.
        """
        values = await self._store.get_many([key_of(state.id) for state in states])
        now = self._clock.now()
        for state, value in zip(states, values, strict=True):
            record = from_json(value, self._book.slice_s, self._book.rules) if value is not None else None
            if record is None or record.revision == state.revision or state.pending is not None:
                continue
            if record.useful(now, self._book.rules.ttl_s):
                self._learn(state, record, now)
                self._book.changed(state)

    async def flush(self) -> None:
        """Write everything that is not written yet, at shutdown."""
        try:
            async with self._round:
                await self._write_all(self._unsaved())
        except StoreError as err:
            log.warning("what was last seen of the deployments is lost: %s", err)

    def _unsaved(self) -> list[State]:
        return [state for state in self._book.states.values() if state.unsaved or state.delta.slices]

    async def _write_all(self, states: Sequence[State]) -> None:
        for first in range(0, len(states), TOGETHER):
            writes = (self.write(state) for state in states[first : first + TOGETHER])
            failed = [one for one in await asyncio.gather(*writes, return_exceptions=True) if one is not None]
            if failed:
                raise failed[0]

    async def _pull(self) -> None:
        states = list(self._book.states.values())
        if self._next >= len(states):
            self._next = 0
        if chosen := states[self._next : self._next + AT_ONCE]:
            self._next += AT_ONCE
            await self.read(chosen)

    def _merged(self, state: State, before: JSON, pending: Window, now: float) -> Record:
        """Return the record to write; the state learns what the present one knows on the way."""
        window = Window(self._book.slice_s)
        state.facts.clean()
        present = from_json(before, self._book.slice_s, self._book.rules) if before is not None else None
        if present is not None and present.deployment_id == state.id:
            state.facts.merge(present.facts)
            state.quota.merge(present.quota)
            window.merge(present.window)
        window.merge(pending)
        window.prune(now)
        return Record(
            deployment_id=state.id,
            revision=self._new_id(),
            written_at=now,
            facts=state.facts,
            quota=state.quota,
            window=window,
            recent_ms=state.recent,
        )

    def _learn(self, state: State, record: Record, now: float) -> None:
        record.window.prune(now)
        state.facts.merge(record.facts)
        state.quota.merge(record.quota)
        state.base, state.revision = record.window, record.revision
        if not state.recent:
            _fill(state, record.recent_ms)


def _fill(state: State, recent_ms: Iterable[float]) -> None:
    for value in recent_ms:
        state.add_recent(value)
