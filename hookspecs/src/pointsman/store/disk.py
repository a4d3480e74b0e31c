"""The state store of one machine: a directory shared by all its processes, and a thread that commits in groups."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias, TypeVar

from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from .embedded import EmbeddedStore, Row, Step
from .rows import RowCache, open_rows, store_error
from .sqlite import BUSY_RATIO, Outcome, SqliteThread, in_one_transaction

if TYPE_CHECKING:
    import os

T = TypeVar("T")

_PURGE_EVERY_S: Final = 60.0
_PURGE_ROWS: Final = 256


class DiskStore(EmbeddedStore):
    """JSON texts in a SQLite database that diskcache keeps in a private directory.

    Everything that is waiting when the thread is free goes into one transaction, so the cost of a commit is shared. A
    call that has returned survives the end of the process, ``kill -9`` included; after a power failure the last moments
    may be missing, but never a part of a step. Several processes of one machine may use one directory (not one on a
    network file system).

    Use ``open``. All calls come from the event loop that opened it.
    """

    def __init__(
        self, path: str | os.PathLike[str], timeout_s: float, start_timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._timeout_s = timeout_s
        self._thread: SqliteThread[Work] = SqliteThread(
            lambda: GroupCommit(open_rows(path, start_timeout_s * BUSY_RATIO), clock),
            name="pointsman-store",
            where=f"the store in {path}",
            timeout_s=start_timeout_s,
            unavailable=StoreUnavailable,
        )

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        timeout_s: float = 5.0,
        start_timeout_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the store in a directory, which is made if need be.

        Args:
            path: The directory.
            timeout_s: Longest time a call may take, in seconds. Opening takes longer when the file is large: it is
                checked from end to end.
            start_timeout_s: Instead of it for opening and for calls before ``started``; None: the same.
            clock: Returns Unix seconds; the same in all processes that share the directory.

        Raises:
            StoreUnavailable: the directory cannot be made, made private or written, or stays locked.
            StoreCorrupt: the file in it is not a sound database.
        """
        store = cls(path, timeout_s, timeout_s if start_timeout_s is None else start_timeout_s, clock)
        await store._thread.open()
        return store

    def started(self) -> None:
        """Let calls take ``timeout_s`` from now on."""
        self._thread.allow(self._timeout_s)
        self._thread.send(Busy(self._timeout_s * BUSY_RATIO))

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        await self._thread.ask(Probe())

    async def close(self) -> None:
        """Finish everything that was asked for, then close the database."""
        await self._thread.close()

    def _carry_out(self, step: Step[T]) -> Awaitable[T]:
        return self._thread.submit(step)

    async def _scan(self, prefix: str) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = await self._thread.ask(Scan(prefix))
        return pairs


class Scan(NamedTuple):
    """Return all live pairs whose key starts with the prefix."""

    prefix: str


class Probe(NamedTuple):
    """Make sure that the store can be locked for writing and is still where it was."""


class Busy(NamedTuple):
    """Wait so long for another process that writes, from now on.

    Attributes:
        seconds: How long.
    """

    seconds: float


Work: TypeAlias = Step[Any] | Scan | Probe | Busy


class GroupCommit:
    """Carries out work on the rows. Use it on the thread of its cache.

    Args:
        cache: The rows.
        clock: Returns Unix seconds.
    """

    def __init__(self, cache: RowCache, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._clock = clock
        self._next_purge_at = 0.0

    def carry_out(self, works: Sequence[Work]) -> list[Outcome]:
        """Carry out all of it in the given order, atomically, and return the outcomes in the same order.

        Work that raises leaves no trace and does not disturb the rest. If the database fails, nothing is done and every
        outcome is an error. Raises nothing.
        """
        now = self._clock()
        writes = any(isinstance(work, Probe) or (isinstance(work, Step) and work.writes) for work in works)

        def carry_out(works: Sequence[Work]) -> list[Outcome]:
            group = _Group(self._cache, works, now)
            outcomes = [group.carry_out(work) for work in works]
            group.save()
            if writes:
                self._purge(now)
            return outcomes

        return in_one_transaction(self._cache, works, carry_out, writes=writes, failure=self._failure)

    def close(self) -> None:
        """Close the database."""
        self._cache.close()

    def _purge(self, now: float) -> None:
        """Clear away some dead rows from time to time; soon again while there are many."""
        if now >= self._next_purge_at and not self._cache.purge(now, _PURGE_ROWS):
            self._next_purge_at = now + _PURGE_EVERY_S

    def _failure(self, err: BaseException) -> StoreError:
        where = self._cache.directory
        return store_error(where, err) if isinstance(err, sqlite3.Error) else StoreError(f"{where}: {err!r}")


class _Group:
    """The rows that a group of works looks at, with what the group has changed so far."""

    def __init__(self, cache: RowCache, works: Sequence[Work], now: float) -> None:
        wanted = {key for work in works if isinstance(work, Step) for key in work.reads}
        self._cache = cache
        self._now = now
        self._rows: dict[str, Row | StoreCorrupt | None] = dict(cache.read(wanted)) if wanted else {}
        self._unsaved: dict[str, Row | None] = {}

    def carry_out(self, work: Work) -> Outcome:
        """Carry out one work; raise only what the database raises."""
        try:
            if isinstance(work, Step):
                changes, result = work.work(self._read, self._now)
                self._rows.update(changes)
                self._unsaved.update(changes)
                return Outcome(result)
            self.save()
            if isinstance(work, Scan):
                return Outcome(self._cache.scan(work.prefix, self._now))
            if isinstance(work, Busy):
                self._cache.wait_for_others(work.seconds)
                return Outcome(None)
            self._cache.check_place()
            return Outcome(None)
        except sqlite3.Error:
            raise
        except Exception as err:  # noqa: BLE001 - it belongs to the caller of this work alone
            return Outcome(None, err)

    def save(self) -> None:
        """Write what has been changed."""
        if self._unsaved:
            self._cache.write(self._unsaved, self._now)
            self._unsaved.clear()

    def _read(self, key: str) -> Row | None:
        row = self._rows.get(key)
        if isinstance(row, StoreCorrupt):
            raise StoreCorrupt(*row.args)
        return row if row is not None and (row.expires_at is None or row.expires_at > self._now) else None
