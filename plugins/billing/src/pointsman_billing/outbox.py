"""The outbox as the event loop sees it: works for the SQLite thread that owns the database and commits in groups."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pointsman.store.sqlite import BUSY_RATIO, Outcome, SqliteThread, in_one_transaction

from .bill import Bill
from .database import Database
from .errors import OutboxFull, OutboxUnavailable

log: Final = logging.getLogger("pointsman.billing")

T = TypeVar("T")


class _Work(NamedTuple):
    """A call of the database, whether it writes, and the bills it writes down, with their holder."""

    call: Callable[[Database], Any]
    writes: bool
    bills: Sequence[Bill] = ()
    holder: str | None = None


class Outbox:
    """Carries out work on the database.

    Everything that is waiting when the thread is free goes into one transaction, so the cost of a commit is shared. Work
    that fails by itself is undone alone: all of them are carried out again, each in a part of the transaction that can be
    undone. When the disk fails, nothing of the transaction is written.

    Args:
        directory: Where the database is.
        sinks: The names of the sinks that have to confirm events.
        fsync: Whether a commit survives a power failure.
        timeout_s: Longest time one piece of work may take, in seconds.
        max_bytes: How large it may grow.

    Attributes:
        commits: How many transactions were written.
    """

    def __init__(
        self, directory: Path, *, sinks: Sequence[str] = (), fsync: bool, timeout_s: float, max_bytes: int
    ) -> None:
        self.directory = directory
        self.commits = 0
        where = f"the outbox in {directory}"
        self._thread: SqliteThread[_Work] = SqliteThread(
            lambda: _Session(
                Database(directory, sinks=sinks, fsync=fsync, timeout_s=timeout_s * BUSY_RATIO, max_bytes=max_bytes),
                where,
                self._count_commit,
            ),
            name="pointsman-billing",
            where=where,
            timeout_s=timeout_s,
            unavailable=OutboxUnavailable,
            log=log,
        )

    def _count_commit(self) -> None:
        self.commits += 1

    async def open(self) -> None:
        """Open the database.

        Raises:
            OutboxUnavailable: not possible.
        """
        await self._thread.open()

    async def write(self, call: Callable[[Database], T]) -> T:
        """Carry out work in a transaction; return its result when it is committed.

        Work that is given up, because the caller is cancelled or it takes too long, may still be carried out.

        Raises:
            OutboxUnavailable: it was not carried out, or there was no answer in time.
        """
        result: T = await self._thread.submit(_Work(call, writes=True))
        return result

    async def append(self, bills: Sequence[Bill], *, holder: str | None = None) -> list[bool]:
        """Write bills down; return for each whether it still has to be announced, when they are committed.

        Args:
            bills: The bills.
            holder: The worker that releases them later; None: they count at once.

        Raises:
            OutboxUnavailable: as for ``write``.
        """
        work = _Work(lambda db: db.append(bills, holder=holder), writes=True, bills=bills, holder=holder)
        result: list[bool] = await self._thread.submit(work)
        return result

    async def read(self, call: Callable[[Database], T]) -> T:
        """Carry out work that only reads.

        Raises:
            OutboxUnavailable: not possible.
        """
        result: T = await self._thread.submit(_Work(call, writes=False))
        return result

    def write_soon(self, call: Callable[[Database], object]) -> None:
        """Carry out work in the next transaction without waiting for it; an error is logged."""
        self._thread.send(_Work(call, writes=True))

    def close_soon(self) -> None:
        """Close the database when everything that was asked for is done. Harmless when it has been called before."""
        self._thread.close_soon()

    async def close(self) -> None:
        """Close the database and wait for it, at most ``timeout_s``."""
        try:
            await self._thread.close()
        except OutboxUnavailable as err:
            log.warning("%s", err)


class _WorkFailed(Exception):
    """A work failed by itself; why is its cause."""


class _Session:
    """The open database; lives on the thread.

    Args:
        database: The database.
        where: The database in messages.
        on_commit: Called after each transaction that wrote.
    """

    def __init__(self, database: Database, where: str, on_commit: Callable[[], None]) -> None:
        self._database = database
        self._where = where
        self._on_commit = on_commit

    def carry_out(self, works: Sequence[_Work]) -> list[Outcome]:
        """Carry out a group of works in one transaction."""
        writes = any(work.writes for work in works)
        return in_one_transaction(
            self, works, lambda group: self._carry_out_all(group, writes=writes), writes=writes, failure=self._failure
        )

    def begin(self) -> None:
        """Begin a transaction that writes."""
        self._database.begin()

    def commit(self) -> None:
        """Commit the transaction."""
        self._database.commit()
        self._on_commit()

    def rollback(self) -> None:
        """Undo the transaction if there is one."""
        with suppress(sqlite3.Error):
            self._database.rollback()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _carry_out_all(self, works: Sequence[_Work], *, writes: bool) -> list[Outcome]:
        try:
            return self._carry_out_each(works)
        except _WorkFailed:
            # Rare, so that parts, each of which takes two statements, are only made then.
            if writes:
                self._database.rollback()
                self._database.begin()
            return [self._carry_out_part(work.call, writes=writes) for work in works]

    def _carry_out_each(self, works: Sequence[_Work]) -> list[Outcome]:
        """Carry out works; the bills of those with the same holder are written down together.

        Raises:
            _WorkFailed: one of them failed by itself.
            sqlite3.OperationalError: the database failed.
        """
        outcomes: dict[int, Outcome] = {}
        for holder in {work.holder for work in works if work.bills}:
            indexes = [index for index, work in enumerate(works) if work.bills and work.holder == holder]
            appended = self._append_all([works[index] for index in indexes], holder)
            outcomes |= zip(indexes, appended, strict=True)
        for index, work in enumerate(works):
            if not work.bills:
                outcomes[index] = self._carry_out_one(work.call)
        return [outcomes[index] for index in range(len(works))]

    def _append_all(self, works: Sequence[_Work], holder: str | None) -> list[Outcome]:
        if len(works) > 1:
            bills = [bill for work in works for bill in work.bills]
            together = self._carry_out_one(lambda db: db.append(bills, holder=holder))
            if together.error is None:
                unannounced = iter(together.result)
                return [Outcome(list(islice(unannounced, len(work.bills)))) for work in works]
        return [self._carry_out_one(work.call) for work in works]

    def _carry_out_one(self, call: Callable[[Database], Any]) -> Outcome:
        try:
            return Outcome(call(self._database))
        except OutboxFull as err:
            # It wrote nothing, but may have made some room.
            return Outcome(None, err)
        except sqlite3.OperationalError:
            raise
        except Exception as err:
            raise _WorkFailed from err

    def _carry_out_part(self, call: Callable[[Database], Any], *, writes: bool) -> Outcome:
        """Return the outcome of one work; one that fails by itself is undone alone.

        Raises:
            sqlite3.OperationalError: the database failed; the state of the other works is unknown.
        """
        if writes:
            self._database.begin_part()
        try:
            outcome = self._carry_out_one(call)
        except _WorkFailed as failed:
            failure = self._failure(failed.__cause__)
            failure.__cause__ = failed.__cause__
            outcome = Outcome(None, failure)
            if writes:
                self._database.undo_part()
        if writes:
            self._database.end_part()
        return outcome

    def _failure(self, err: BaseException | None) -> OutboxUnavailable:
        return OutboxUnavailable(f"{self._where} failed: {err}")
