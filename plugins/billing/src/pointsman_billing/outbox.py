"""The outbox as the event loop sees it: a thread that owns the database and commits in groups."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from pointsman.store import patience

from .bill import Bill
from .database import Database
from .errors import OutboxFull, OutboxUnavailable

log: Final = logging.getLogger("pointsman.billing")

T = TypeVar("T")


class _Job(NamedTuple):
    """Work for the thread, whether it writes, the caller's future, and the bills it writes down. Without work: close."""

    work: Callable[[Database], Any] | None
    writes: bool
    future: asyncio.Future[Any] | None
    bills: Sequence[Bill] = ()


class Outbox:
    """Carries out work on the database.

    Everything that is waiting when the thread is free goes into one transaction, so the cost of a commit is shared. Work
    that fails by itself is undone alone; when the disk fails, nothing of the transaction is written.

    Args:
        directory: Where the database is.
        sinks: The names of the sinks that have to confirm events.
        fsync: Whether a commit survives a power failure.
        timeout_s: Longest time one piece of work may take.
        max_bytes: How large it may grow.

    Attributes:
        commits: How many transactions were written.
    """

    def __init__(
        self, directory: Path, *, sinks: Sequence[str] = (), fsync: bool, timeout_s: float, max_bytes: int
    ) -> None:
        self.directory = directory
        self.commits = 0
        self._sinks = tuple(sinks)
        self._fsync = fsync
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Open the database.

        Raises:
            OutboxUnavailable: not possible.
        """
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(opened,), name="pointsman-billing", daemon=True)
        self._thread.start()
        try:
            await opened
        except BaseException:
            self.close_soon()
            raise

    async def write(self, work: Callable[[Database], T]) -> T:
        """Carry out work in a transaction; return when it is committed.

        Work that is given up, because the caller is cancelled or it takes too long, may still be carried out.

        Raises:
            OutboxUnavailable: it was not carried out, or there was no answer in time.
        """
        return await self._ask(work, writes=True)

    async def append(self, bills: Sequence[Bill]) -> list[bool]:
        """Write bills down; say for each whether it still has to be announced. Return when they are committed.

        Raises:
            OutboxUnavailable: as for ``write``.
        """
        return await self._ask(lambda db: db.append(bills), writes=True, bills=bills)

    async def read(self, work: Callable[[Database], T]) -> T:
        """Carry out work that only reads.

        Raises:
            OutboxUnavailable: not possible.
        """
        return await self._ask(work, writes=False)

    def write_soon(self, work: Callable[[Database], object]) -> None:
        """Carry out work in the next transaction, whatever comes of it."""
        if not self._closed:
            self._queue.put(_Job(work, True, None))

    def close_soon(self) -> None:
        """Let go of the database when everything that was asked for is done. Harmless when it has been said before."""
        if not self._closed:
            self._closed = True
            self._queue.put(_Job(None, False, None))

    async def close(self) -> None:
        """Let go of the database, and wait until that is done, but not for long."""
        self.close_soon()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self._timeout_s)

    async def _ask(self, work: Callable[[Database], T], *, writes: bool, bills: Sequence[Bill] = ()) -> T:
        if self._closed:
            raise OutboxUnavailable(f"the outbox in {self.directory} has been closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Job(work, writes, future, bills))
        timer = patience.after(self._loop, self._timeout_s, lambda: self._give_up(future))
        try:
            result: T = await future
        finally:
            timer.cancel()
        return result

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(
                OutboxUnavailable(f"the outbox in {self.directory} did not answer within {self._timeout_s:g} s")
            )

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _serve(self, opened: asyncio.Future[None]) -> None:
        try:
            # Less than the callers' patience, so that they hear the reason.
            database = Database(
                self.directory,
                sinks=self._sinks,
                fsync=self._fsync,
                timeout_s=self._timeout_s * 0.8,
                max_bytes=self._max_bytes,
            )
        except BaseException as err:  # noqa: BLE001 - whatever it is belongs to whoever opens the outbox
            self._tell([(opened, None, err)])
            return
        listening = self._tell([(opened, None, None)])
        while listening:
            jobs = [self._queue.get()]
            jobs += [self._queue.get() for _ in range(self._queue.qsize())]
            closing = any(job.work is None for job in jobs)
            listening = self._tell(self._carry_out(database, [job for job in jobs if job.work])) and not closing
        database.close()

    def _carry_out(self, database: Database, jobs: list[_Job]) -> list[tuple[Any, Any, BaseException | None]]:
        writes = any(job.writes for job in jobs)
        try:
            if writes:
                database.begin()
            outcomes = self._append_all(database, [job for job in jobs if job.bills])
            outcomes += [
                (job.future, *self._carry_out_one(database, job, writes=writes)) for job in jobs if not job.bills
            ]
            if writes:
                database.commit()
                self.commits += 1
        except Exception as err:  # noqa: BLE001 - every caller gets an answer, and the thread goes on
            with suppress(sqlite3.Error):
                database.rollback()
            failure = self._failure(err)
            if any(job.future is None for job in jobs):
                log.warning("%s", failure)
            return [(job.future, None, failure) for job in jobs]
        return outcomes

    def _append_all(self, database: Database, jobs: list[_Job]) -> list[tuple[Any, Any, BaseException | None]]:
        """Write the bills of all down together; when that fails, those of each by themselves.

        Raises:
            sqlite3.OperationalError: the database failed.
        """
        if len(jobs) > 1:
            bills = [bill for job in jobs for bill in job.bills]
            together = jobs[0]._replace(work=lambda db: db.append(bills))
            result, failure = self._carry_out_one(database, together, writes=True)
            if failure is None:
                unannounced = iter(result)
                return [(job.future, list(islice(unannounced, len(job.bills))), None) for job in jobs]
        return [(job.future, *self._carry_out_one(database, job, writes=True)) for job in jobs]

    def _carry_out_one(self, database: Database, job: _Job, *, writes: bool) -> tuple[Any, OutboxUnavailable | None]:
        """Return the work's result and None, or None and its error when that is its own.

        Raises:
            sqlite3.OperationalError: the database failed; what becomes of the others' work is unknown.
        """
        assert job.work is not None  # noqa: S101  # the others have been sorted out
        result: Any = None
        failure: OutboxUnavailable | None = None
        if writes:
            database.begin_part()
        try:
            result = job.work(database)
        except OutboxFull as err:
            # It has written nothing, but may have made some room.
            failure = err
        except sqlite3.OperationalError:
            raise
        except Exception as err:  # noqa: BLE001 - an error of one is none of the others
            failure = self._failure(err)
            if writes:
                database.undo_part()
            if job.future is None:
                log.warning("%s", failure)
        if writes:
            database.end_part()
        return result, failure

    def _failure(self, err: Exception) -> OutboxUnavailable:
        failure = OutboxUnavailable(f"the outbox in {self.directory} failed: {err}")
        failure.__cause__ = err
        return failure

    def _tell(self, outcomes: list[tuple[Any, Any, BaseException | None]]) -> bool:
        """Give the callers what came of their work, all in one go; False when their event loop is gone."""
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            return False
        return True


def _resolve(outcomes: list[tuple[Any, Any, BaseException | None]]) -> None:
    for future, result, error in outcomes:
        if future is None or future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
