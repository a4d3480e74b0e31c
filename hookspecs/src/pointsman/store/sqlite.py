"""One thread that owns a SQLite database and commits in groups: for the disk store, and for plugins' own databases.

Part of the contract of plugins: nothing here knows a table. A database is a ``Session``, which the thread opens, uses
and closes; whatever waits when the thread is free is one group, and a group is one transaction, so the cost of a commit
is shared. Work for which no client waits is ``unhurried``, and shares the transaction of what comes soon after it::

    class Session:
        def carry_out(self, works: Sequence[Work]) -> list[Outcome]:
            return in_one_transaction(self._database, works, self._all_of, writes=any(...), failure=self._failure)

    thread = SqliteThread(
        lambda: Session(directory, timeout_s * BUSY_RATIO),
        name="pointsman-billing", where="the outbox in /var/lib/outbox", timeout_s=5, unavailable=OutboxUnavailable,
    )
    await thread.open()
    rows = await thread.ask(work)
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from .. import deadline

W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)

#: Part of a caller's time that SQLite may wait for another process: less than all of it, so that the caller hears why.
BUSY_RATIO: Final = 0.8
#: Part of it that unhurried work may wait for other work.
_PATIENCE_RATIO: Final = 0.1
_patience_s: Final = ContextVar("pointsman_patience_s", default=0.0)

OPEN_LOCK: Final = "open.lock"
_PRIVATE_FILE: Final = 0o600
_LOOK_AGAIN_S: Final = 0.005


@contextmanager
def alone_in_opening(directory: Path, timeout_s: float) -> Iterator[None]:
    """Let one process at a time open the database in a directory.

    SQLite does not wait when two connections turn a new file to WAL at the same time: one of them fails at once,
    whatever its timeout. Workers that start together do just that.

    Args:
        directory: Where the database is; it must exist.
        timeout_s: The longest wait for another process that opens it, in seconds.

    Raises:
        TimeoutError: another process has been opening it for all that time.
        OSError: the directory cannot be written.
    """
    from filelock import FileLock  # noqa: PLC0415  # its import writes files, to try out the file system

    with FileLock(directory / OPEN_LOCK, timeout_s, mode=_PRIVATE_FILE, poll_interval=_LOOK_AGAIN_S):
        yield


@contextmanager
def unhurried(seconds: float) -> Iterator[None]:
    """Let what this block asks of a database wait for other work, so that they share a transaction.

    It goes with the next work that is in a hurry, before it, or by itself when its time is over. This holds for tasks that
    start within the block, too, but not for periodic and endless ones of ``Tasks``.

    Args:
        seconds: The longest wait; 0: none.
    """
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


def file_numbers(database: Path) -> list[int]:
    """Return the inodes of a database in WAL mode: they stay the same as long as a connection is open.

    Another log would lose what is not in the database yet when the process is killed.

    Raises:
        OSError: one of the files is missing.
    """
    return [database.with_name(database.name + suffix).stat().st_ino for suffix in ("", "-wal", "-shm")]


def in_parts(items: Sequence[W], most: int) -> Iterator[Sequence[W]]:
    """Yield the items in as few parts as possible.

    A statement releases the interpreter lock several times, and on a busy event loop it takes milliseconds to get it back: a
    statement for many rows costs less than compiling one for each number of rows, which SQLite does once.

    Args:
        items: The items.
        most: The largest part.
    """
    for start in range(0, len(items), most):
        yield items[start : start + most]


class Outcome(NamedTuple):
    """The outcome of one piece of work: a result, or an error of its own."""

    result: Any
    error: BaseException | None = None


class Session(Protocol[W_contra]):
    """An open database. Everything happens on the thread that opened it."""

    def carry_out(self, works: Sequence[W_contra], /) -> list[Outcome]:
        """Carry out a group of works; return the outcomes in the same order. Raises nothing."""

    def close(self) -> None:
        """Close the database."""


class Database(Protocol):
    """What can be changed in transactions."""

    def begin(self) -> None:
        """Start a transaction that writes."""

    def commit(self) -> None:
        """End the transaction: all of it survives the end of this process."""

    def rollback(self) -> None:
        """Undo the transaction if there is one. Raises nothing."""


def in_one_transaction(
    database: Database,
    works: Sequence[W],
    carry_out: Callable[[Sequence[W]], list[Outcome]],
    *,
    writes: bool,
    failure: Callable[[BaseException], Exception],
) -> list[Outcome]:
    """Carry out a group of works atomically.

    Args:
        database: The database.
        works: The group.
        carry_out: Carries it out and returns the outcomes in the same order. An error that belongs to one work is an
            outcome, and its work has left no trace; an error that it raises is the whole group's.
        writes: Whether the group may write; a group that only reads needs no lock.
        failure: Returns the error for the callers when the database fails. Called for each, so none shares a traceback.

    Returns:
        The outcomes. If the database failed, nothing was written and each of them says so.
    """
    try:
        if writes:
            database.begin()
        outcomes = carry_out(works)
        if writes:
            database.commit()
    except BaseException as err:  # noqa: BLE001 - every caller gets an answer, and the thread goes on
        database.rollback()
        return [Outcome(None, _because(failure(err), err)) for _ in works]
    return outcomes


def _because(failure: Exception, err: BaseException) -> Exception:
    failure.__cause__ = err
    return failure


#: Work for the thread, and the caller's future for the outcome; None if the caller does not wait.
_Job: TypeAlias = "tuple[Any, asyncio.Future[Any] | None]"
#: The future of a call that waits, and when its time is over, in seconds of the loop's clock.
_Asked: TypeAlias = tuple[asyncio.Future[Any], float]


class SqliteThread(Generic[W]):
    """Carries out work on a database, in the order in which it is asked for.

    All calls come from the event loop that made it.

    Args:
        open_session: Opens the database. Runs on the thread.
        name: The thread's name.
        where: The database in messages, for example ``the store in /var/lib/pointsman``.
        timeout_s: Longest time a call may take, in seconds. Opening takes as long as it takes.
        unavailable: The class of the errors of this object itself: no answer in time, or closed.
        log: Gets the errors of works that have no caller.
    """

    def __init__(
        self,
        open_session: Callable[[], Session[W]],
        *,
        name: str,
        where: str,
        timeout_s: float,
        unavailable: Callable[[str], Exception],
        log: logging.Logger | None = None,
    ) -> None:
        self._open_session = open_session
        self._name = name
        self._where = where
        self._timeout_s = timeout_s
        self._unavailable = unavailable
        self._log = log or logging.getLogger(__name__)
        self._loop = asyncio.get_running_loop()
        #: In the order of their deadlines.
        self._asked: deque[_Asked] = deque()
        #: Whether a timer runs for the oldest of them.
        self._watching = False
        #: What was asked for in this turn of the event loop, and unhurried work of earlier ones.
        self._turn: list[_Job] = []
        #: Hands it over: at the end of this turn, or when the time of unhurried work is over.
        self._handing_over: asyncio.Handle | None = None
        self._handing_over_later: asyncio.Handle | None = None
        #: When that time is over, on the loop's clock: uvloop's timers of less than half a millisecond do not say.
        self._later_at = 0.0
        #: What was asked for in a turn; None closes.
        self._queue: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._opened: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Start the thread and wait until the database is open; raise what opening it raises."""
        self._opened = self._loop.create_future()
        threading.Thread(target=self._serve, args=(self._opened,), name=self._name, daemon=True).start()
        try:
            await self._opened
        except BaseException:
            self.close_soon()
            raise

    def allow(self, timeout_s: float) -> None:
        """Change the longest time that a call may take, also for the calls that wait now."""
        self._timeout_s = timeout_s
        latest = self._loop.time() + timeout_s
        self._asked = deque((future, min(due, latest)) for future, due in self._asked)
        self._watch()

    async def ask(self, work: W) -> Any:
        """Carry out work; return its result when it is committed, or raise its error.

        It is carried out even if the caller stops waiting or gets no answer in time.
        """
        return await self.submit(work)

    def submit(self, work: W) -> asyncio.Future[Any]:
        """Carry out work; return the future of what ``ask`` returns or raises, without a coroutine around it."""
        if self._closed is not None:
            raise self._unavailable(f"{self._where} has been closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        asked = self._asked
        while asked and asked[0][0].done():
            asked.popleft()
        asked.append((future, self._loop.time() + self._timeout_s))
        if not self._watching:
            self._watch()
        self._take((work, future))
        return future

    def send(self, work: W) -> None:
        """Carry out work without waiting for it; an error of it is logged. Does nothing once this is closed."""
        if self._closed is None:
            self._take((work, None))

    def close_soon(self) -> None:
        """Close the database when everything that was asked for is done. Harmless when it has been called before."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._hand_over()
            self._queue.put(None)
            if self._opened is None:
                self._closed.set_result(None)

    async def close(self) -> None:
        """Finish everything that was asked for, then close the database."""
        self.close_soon()
        assert self._closed is not None  # noqa: S101  # close_soon has just seen to it
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(self._closed)
        except TimeoutError:
            raise self._unavailable(f"{self._silence} What was asked for last may not have been written.") from None

    def _take(self, job: _Job) -> None:
        """Collect what is asked for until the event loop has nothing else to do in this turn; wait longer with unhurried work.

        The thread is then woken once, when it need not wait for the loop's thread to let go of the interpreter.
        """
        self._turn.append(job)
        if self._handing_over is not None:
            return
        patience_s = min(_patience_s.get(), self._timeout_s * _PATIENCE_RATIO)
        if patience_s <= 0:
            self._handing_over = self._loop.call_soon(self._hand_over)
            return
        later, at = self._handing_over_later, self._loop.time() + patience_s
        if later is None or self._later_at > at:
            if later is not None:
                later.cancel()
            self._later_at = at
            self._handing_over_later = self._loop.call_later(patience_s, self._hand_over)

    def _hand_over(self) -> None:
        if self._handing_over_later is not None:
            self._handing_over_later.cancel()
        self._handing_over = self._handing_over_later = None
        if self._turn:
            turn, self._turn = self._turn, []
            self._queue.put(turn)

    def _watch(self) -> None:
        """Look again when the time of the oldest call that waits is over; one timer is enough, since all have the same time."""
        while self._asked and self._asked[0][0].done():
            self._asked.popleft()
        self._watching = bool(self._asked)
        if self._asked:
            _, due = self._asked[0]
            deadline.Timer(self._loop, max(0.0, due - self._loop.time()), lambda: self._overdue(due))

    def _overdue(self, due: float) -> None:
        while self._asked and self._asked[0][1] <= due:
            future, _ = self._asked.popleft()
            if not future.done():
                future.set_exception(self._unavailable(self._silence))
        self._watch()

    @property
    def _silence(self) -> str:
        return f"{self._where} did not answer within {self._timeout_s:g} s; is its disk stuck?"

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _serve(self, opened: asyncio.Future[None]) -> None:
        try:
            session = self._open_session()
        except BaseException as err:  # noqa: BLE001 - the error belongs to the caller of open, who closes then
            if self._answer([opened], [Outcome(None, err)]) and self._queue.get() is None:
                self._answer([self._closed], [Outcome(None)])
            return
        listening, closing = self._answer([opened], [Outcome(None)]), False
        while listening and not closing:
            waiting = [self._queue.get()]
            waiting += [self._queue.get() for _ in range(self._queue.qsize())]
            jobs = [job for turn in waiting if turn is not None for job in turn]
            closing = None in waiting
            if jobs:
                outcomes = session.carry_out([work for work, _ in jobs])
                listening = self._answer([future for _, future in jobs], outcomes)
        session.close()
        if listening:
            self._answer([self._closed], [Outcome(None)])

    def _answer(self, futures: Sequence[asyncio.Future[Any] | None], outcomes: Sequence[Outcome]) -> bool:
        """Give the callers their outcomes, all in one go; False when their event loop is gone."""
        for lost in {str(error) for future, (_, error) in zip(futures, outcomes, strict=True) if error and not future}:
            self._log.warning("%s", lost)
        if not any(futures):
            return not self._loop.is_closed()  # nothing waits, so the loop is not woken
        try:
            self._loop.call_soon_threadsafe(_resolve, futures, outcomes)
        except RuntimeError:
            return False
        return True


def _resolve(futures: Sequence[asyncio.Future[Any] | None], outcomes: Sequence[Outcome]) -> None:
    for future, (result, error) in zip(futures, outcomes, strict=True):
        if future is None or future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
