"""The state store of one machine: a directory shared by all its processes, and a thread that commits in groups."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from ..errors import StoreUnavailable
from . import patience
from .commit import GroupCommit, Outcome, Probe, Scan, Work
from .directory import open_directory
from .embedded import EmbeddedStore
from .steps import Step

if TYPE_CHECKING:
    import os

T = TypeVar("T")


class _Job(NamedTuple):
    """Work for the thread (None: close), and the caller's future for what comes of it."""

    work: Work | None
    future: asyncio.Future[Any]


class DiskStore(EmbeddedStore):
    """JSON texts in a SQLite database that diskcache keeps in a private directory.

    Everything that is waiting when the thread is free goes into one transaction, so the cost of a commit is shared. A
    call that has returned survives the end of the process, ``kill -9`` included; after a power failure the last moments
    may be missing, but never a part of a step. Several processes of one machine may use one directory (not one on a
    network file system).

    Use ``open``. All calls come from the event loop that opened it.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float, clock: Callable[[], float]) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._closed: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str], *, timeout_s: float = 5.0, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open the store in a directory, which is made if need be.

        Args:
            path: The directory.
            timeout_s: Longest time a call may take, in seconds. Opening takes longer when the file is large: it is
                checked from end to end.
            clock: Returns Unix seconds; the same in all processes that share the directory.

        Raises:
            StoreUnavailable: the directory cannot be made, made private or written, or stays locked.
            StoreCorrupt: the file in it is no sound database.
        """
        store = cls(path, timeout_s, clock)
        opened: asyncio.Future[None] = store._loop.create_future()
        threading.Thread(target=store._serve, args=(opened,), name="pointsman-store", daemon=True).start()
        try:
            await opened
        except asyncio.CancelledError:
            store._hand_over(None)
            raise
        return store

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        await self._ask(Probe())

    async def close(self) -> None:
        """Finish everything that was asked for, then let go of the directory."""
        if self._closed is None:
            self._closed = self._hand_over(None)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(self._closed)
        except TimeoutError:
            raise StoreUnavailable(f"{self._silence} What was asked for last may not have been written.") from None

    async def _carry_out(self, step: Step[T]) -> T:
        result: T = await self._ask(step)
        return result

    async def _scan(self, prefix: str) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = await self._ask(Scan(prefix))
        return pairs

    async def _ask(self, work: Work) -> Any:
        """Have the thread do something. It will, even if the caller stops waiting."""
        if self._closed is not None:
            raise StoreUnavailable(f"the store in {self._path} has been closed")
        future = self._hand_over(work)
        timer = patience.after(self._loop, self._timeout_s, lambda: self._give_up(future))
        try:
            return await future
        finally:
            timer.cancel()

    def _hand_over(self, work: Work | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Job(work, future))
        return future

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(StoreUnavailable(self._silence))

    @property
    def _silence(self) -> str:
        return f"the store in {self._path} did not answer within {self._timeout_s:g} s; is its disk stuck?"

    def _serve(self, opened: asyncio.Future[None]) -> None:
        """Open, carry out what is asked for, close when told to. Runs on the thread, the only one to touch the rows."""
        try:
            # Less than the callers' patience, so that they hear the reason.
            cache = open_directory(self._path, self._timeout_s * 0.8)
        except BaseException as err:  # noqa: BLE001 - whatever it is belongs to whoever opens the store
            self._tell([opened], [Outcome(None, err)])
            return
        self._tell([opened], [Outcome(None)])
        group = GroupCommit(cache, self._clock)
        closing: _Job | None = None
        listening = True
        while closing is None and listening:
            jobs = [self._queue.get()]
            jobs += [self._queue.get() for _ in range(self._queue.qsize())]
            if jobs[-1].work is None:
                closing = jobs.pop()
            if jobs:
                outcomes = group.carry_out([job.work for job in jobs if job.work is not None])
                listening = self._tell([job.future for job in jobs], outcomes)
        cache.close()
        if closing is not None:
            self._tell([closing.future], [Outcome(None)])

    def _tell(self, futures: list[asyncio.Future[Any]], outcomes: list[Outcome]) -> bool:
        """Give the callers what came of their jobs, all in one go; False when their event loop is gone."""
        try:
            self._loop.call_soon_threadsafe(_resolve, futures, outcomes)
        except RuntimeError:
            return False
        return True


def _resolve(futures: list[asyncio.Future[Any]], outcomes: list[Outcome]) -> None:
    for future, (result, error) in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
