"""Taking over the rows of the journal that nothing settles any more: those of workers that have died.

A row is moved to this worker in one atomic step, so that only one worker gets it. Parts of a row that cannot be read are
put aside first, so that they hold up nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from ..store.protocol import JSON, Put, StateStore, Update
from .journal_rows import (
    ASIDE,
    FORMER_OWNER,
    FORMER_ROW,
    FORMER_WORKER,
    HEARTBEAT_TTL_S,
    OWNER,
    ROW,
    VERSION,
    WORKER,
    Counts,
    Entry,
    Row,
    dump,
    parse,
    places_of,
)

if TYPE_CHECKING:
    from .hooks import Hooks
    from .takeovers import Takeovers


class Keeper(Protocol):
    """What gets the rows: the journal of this worker."""

    counts: Counts

    @property
    def hooks(self) -> Hooks:
        """The plugins that settle here."""

    @property
    def forgotten(self) -> int:
        """Rows of this worker that are in the store alone: too many for memory."""

    @property
    def has_room(self) -> bool:
        """Whether another row fits into memory."""

    def holds(self, key: str) -> bool:
        """Return whether a row of the store is in memory, or about to be removed."""

    def next_key(self) -> str:
        """Return the key of a new row."""

    def adopted(self, row: Row, *, ours: bool) -> None:
        """Settle a row that has been taken over.

        Args:
            row: It is in the store.
            ours: Whether it was this worker's before.
        """


class Recovery:
    """Takes rows over.

    Args:
        store: Where rows are; keys are prefixed by the caller.
        takeovers: What other machines have taken over.
        worker: This worker's name.
        keeper: What gets the rows.
        monotonic: Returns the seconds of a clock that never goes back.
    """

    def __init__(
        self, store: StateStore, takeovers: Takeovers, worker: str, keeper: Keeper, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        #: The latest heartbeat of each worker, and since when it is that one, on the monotonic clock.
        self._beats: dict[str, tuple[JSON, float]] = {}
        self._takeovers = takeovers
        self._worker = worker
        self._keeper = keeper
        #: Workers of earlier releases that may have rows; None until they have been looked for.
        self._former: set[str] | None = None

    async def unreadable(self) -> int:
        """Return the number of rows whose parts have been put aside."""
        return len(await self._store.scan(ASIDE))

    async def recover(self) -> None:
        """Take over the rows of workers that have died, and our own that did not fit into memory."""
        # Owners first: a worker that starts in between has a heartbeat before it owns anything.
        owners = await self._store.scan(OWNER)
        alive = await self._alive()
        for key, value in owners:
            owner = key.removeprefix(OWNER)
            if owner == self._worker:
                if self._keeper.forgotten and self._keeper.has_room:
                    await self._adopt_all(ROW, owner)
            elif owner not in alive and not await self._adopt_all(ROW, owner, places_of(value)):
                await self._store.delete(key)
        await self._recover_former()

    async def _alive(self) -> set[str]:
        """Return the workers whose heartbeats are in the store and go on.

        One that stands still is of a worker that has died, although a clock that was set back keeps it: it is removed.
        """
        now, before = self._monotonic(), self._beats
        self._beats = {}
        for key, beat in await self._store.scan(WORKER):
            known = before.get(key)
            since = known[1] if known is not None and known[0] == beat else now
            if now - since <= HEARTBEAT_TTL_S or not await self._store.compare_and_set(key, beat, None):
                self._beats[key] = (beat, since)
        return {key.removeprefix(WORKER) for key in self._beats}

    async def _recover_former(self) -> None:
        """Take over the rows of workers of earlier releases. They are looked for once: none starts after this one."""
        if self._former is None:
            owners = await self._store.scan(FORMER_OWNER)
            self._former = {key.removeprefix(FORMER_OWNER) for key, _ in owners}
        former = sorted(self._former)
        beats = await self._store.get_many([f"{FORMER_WORKER}{owner}" for owner in former])
        for owner, beat in zip(former, beats, strict=True):
            if beat is None and not (await self._adopt_all(FORMER_ROW, owner) + await self._adopt_all(ROW, owner)):
                await self._store.delete(f"{FORMER_OWNER}{owner}")
                self._former.discard(owner)

    async def _adopt_all(self, prefix: str, owner: str, places: Mapping[str, str] = MappingProxyType({})) -> int:
        """Take over a worker's rows; return how many there were."""
        rows = await self._store.scan(f"{prefix}{owner}/")
        for key, value in rows:
            if not self._keeper.has_room:
                break
            if not self._keeper.holds(key):
                await self._adopt(key, value, places, ours=owner == self._worker)
        return len(rows)

    async def _adopt(self, key: str, value: JSON, places: Mapping[str, str], *, ours: bool) -> None:
        if isinstance(value, dict) and isinstance(version := value.get("v"), int) and version > VERSION:
            why = ValueError(f"row {key!r} is of a later version of Pointsman; a worker of that version settles it")
            self._keeper.hooks.faults.record("pointsman", "journal", None, why)
            return
        entries, unreadable = parse(value)
        if unreadable:
            if not await self._put_aside(key, value, unreadable, entries):
                return
            value = dump(entries)
        if all(plugin not in self._keeper.hooks.settle for entry in entries for plugin in entry.pending):
            return
        row = Row(self._keeper.next_key(), entries, written=True)
        if await self._move(key, row, value, places):
            self._keeper.adopted(row, ours=ours)

    async def _put_aside(self, key: str, value: JSON, unreadable: Sequence[JSON], entries: Sequence[Entry]) -> bool:
        """Move what cannot be read out of a row; return whether something is left in the row and it is ours to take."""
        name = key.removeprefix(ROW).removeprefix(FORMER_ROW)
        # First, so that nothing is lost; another worker that does the same writes the same.
        await self._store.put(f"{ASIDE}{name}", {"row": key, "parts": list(unreadable)})
        if not await self._store.compare_and_set(key, value, dump(entries) if entries else None):
            return False
        self._keeper.counts.unreadable += 1
        self._keeper.hooks.faults.record(
            "pointsman", "journal", None, ValueError(f"{len(unreadable)} settlements of row {key!r} cannot be read")
        )
        return bool(entries)

    async def _move(self, key: str, row: Row, value: JSON, places: Mapping[str, str]) -> bool:
        """Move a row, if it is still as it was read."""
        if key.startswith(ROW):
            pending: dict[str, list[str]] = {}
            for entry in row.entries:
                for plugin in entry.pending:
                    # One that is not loaded here settles nothing here: the row waits for a worker that has it.
                    if plugin in self._keeper.hooks.settle:
                        pending.setdefault(plugin, []).append(entry.settlement.request_id)
            await self._takeovers.refresh()
            move = Update(checks={key: value}, deletes=(key,), puts={row.key: Put(value)})
            moved = await self._store.update(await self._takeovers.logged(move, pending, places))
            await self._takeovers.refresh()
            return moved
        # A redis cluster has an earlier release's row on another node. The new row comes first, so that none is lost.
        await self._store.put(row.key, value)
        if await self._store.compare_and_set(key, value, None):
            return True
        await self._store.delete(row.key)
        return False
