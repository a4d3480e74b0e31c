"""Finds what was left behind: tasks, threads, open files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Threads of the standard library's and Starlette's pools, which keep their workers on purpose.
_POOLS: Final = ("asyncio_", "AnyIO worker thread")
_FILES: Final = Path("/proc/self/fd")
_NOT_OURS: Final = ("/dev/", "/proc/", "anon_inode:", "pipe:")

#: How long something that is about to end may take to do so, in real seconds.
PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.01


class LeakError(AssertionError):
    """Something was left behind; the message says what."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is there at a moment.

    Attributes:
        tasks: Tasks of the running event loop that have not ended; empty where none runs.
        threads: Threads that are alive.
        files: Open files and sockets, by descriptor; empty where the system does not show them.
    """

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]
    files: frozenset[tuple[str, str]]

    @classmethod
    def take(cls) -> Inventory:
        """Look around."""
        try:
            tasks = frozenset(task for task in asyncio.all_tasks() if not task.done())
        except RuntimeError:
            tasks = frozenset()
        threads = frozenset(thread for thread in threading.enumerate() if not thread.name.startswith(_POOLS))
        return cls(tasks, threads, frozenset(open_files()))

    def left_behind(self, before: Inventory) -> list[str]:
        """Return what is here and was not before, in words."""
        current = None
        with contextlib.suppress(RuntimeError):
            current = asyncio.current_task()
        found = [f"task {task.get_name()}" for task in self.tasks - before.tasks if task is not current]
        found += [f"thread {thread.name}" for thread in self.threads - before.threads]
        found += [f"open file {name}" for _, name in self.files - before.files]
        return sorted(found)


def open_files() -> Iterator[tuple[str, str]]:
    """Yield open files and sockets, by descriptor; nothing where the system does not show them."""
    if not _FILES.is_dir():
        return
    for entry in _FILES.iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if not target.startswith(_NOT_OURS):
                yield entry.name, target


@contextlib.contextmanager
def _older_objects_apart() -> Iterator[None]:
    """Keep the garbage collector away from what exists already: with LiteLLM loaded, that takes most of its time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _found(before: Inventory, deadline: float) -> bool:
    """Return whether something is still there that may yet end.

    Raises:
        LeakError: it had long enough.
    """
    left = Inventory.take().left_behind(before)
    if left and time.monotonic() > deadline:
        # An older object may hold what is left.
        gc.unfreeze()
        gc.collect()
        left = Inventory.take().left_behind(before)
        if left:
            raise LeakError(f"left behind: {', '.join(left)}")
    if left:
        # An object that is not referenced any more closes what it holds when it is collected.
        gc.collect()
    return bool(left)


async def at_rest() -> None:
    """Wait until tasks, threads and open files stay the same for a moment, at most ``PATIENCE_S``."""
    deadline = time.monotonic() + PATIENCE_S
    before, found = None, Inventory.take()
    while found != before and time.monotonic() < deadline:
        await asyncio.sleep(5 * _POLL_S)
        before, found = found, Inventory.take()


@contextlib.asynccontextmanager
async def no_leaks() -> AsyncIterator[None]:
    """Check that the block leaves no task, thread or open file behind.

    What is about to end gets a moment to do so.

    Raises:
        LeakError: something is still there.
    """
    with _older_objects_apart():
        before = Inventory.take()
        yield
        deadline = time.monotonic() + PATIENCE_S
        while _found(before, deadline):  # noqa: ASYNC110  # nothing tells when threads and files end
            await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def no_thread_leaks() -> Iterator[None]:
    """Check that the block leaves no thread or open file behind; for code without an event loop.

    Raises:
        LeakError: something is still there.
    """
    with _older_objects_apart():
        before = Inventory.take()
        yield
        deadline = time.monotonic() + PATIENCE_S
        while _found(before, deadline):
            time.sleep(_POLL_S)
