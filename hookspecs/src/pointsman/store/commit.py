"""Group commit: many operations of the disk store carried out in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ..errors import StoreCorrupt, StoreError
from .directory import store_error
from .steps import Row, Step

if TYPE_CHECKING:
    from .rows import RowCache

_PURGE_EVERY_S: Final = 60.0
_PURGE_ROWS: Final = 256


class Scan(NamedTuple):
    """Return all live pairs whose key starts with the prefix."""

    prefix: str


class Probe(NamedTuple):
    """Make sure that the store can be locked for writing and is still where it was."""


Work: TypeAlias = Step[Any] | Scan | Probe


class Outcome(NamedTuple):
    """What came of one piece of work: a result, or an error of its own."""

    result: Any
    error: BaseException | None = None


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

        Work that raises leaves no trace and does not disturb the rest. If the database fails, nothing was done and
        every outcome says so. Raises nothing.
        """
        now = self._clock()
        writes = any(isinstance(work, Probe) or (isinstance(work, Step) and work.writes) for work in works)
        try:
            if writes:
                self._cache.begin()
            group = _Group(self._cache, works, now)
            outcomes = [group.carry_out(work) for work in works]
            group.save()
            if writes:
                self._purge(now)
                self._cache.commit()
        except BaseException as err:  # noqa: BLE001 - every caller gets an answer, and the thread must go on
            self._roll_back()
            return [Outcome(None, self._failure(err)) for _ in works]
        return outcomes

    def _purge(self, now: float) -> None:
        """Clear away some dead rows from time to time; soon again while there are many."""
        if now >= self._next_purge_at and not self._cache.purge(now, _PURGE_ROWS):
            self._next_purge_at = now + _PURGE_EVERY_S

    def _roll_back(self) -> None:
        try:
            self._cache.rollback()
        except sqlite3.Error:
            # The database fails altogether; closing the connection ends the transaction, the next use opens a new one.
            self._cache.close()

    def _failure(self, err: BaseException) -> StoreError:
        where = self._cache.directory
        failure = store_error(where, err) if isinstance(err, sqlite3.Error) else StoreError(f"{where}: {err!r}")
        failure.__cause__ = err
        return failure


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
