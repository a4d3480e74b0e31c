"""The leak check: what it finds, and what it lets pass."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings

import pytest

from pointsman.testing import LeakError, no_leaks
from pointsman.testing.leaks import no_thread_leaks


async def test_a_task_is_found():
    tasks = []
    with pytest.raises(LeakError, match="task forgotten"):
        async with no_leaks():
            tasks.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))
    tasks[0].cancel()


async def test_a_thread_is_found():
    done = threading.Event()
    with pytest.raises(LeakError, match="thread forgotten"):
        async with no_leaks():
            threading.Thread(target=done.wait, name="forgotten").start()
    done.set()


async def test_an_open_file_is_found(tmp_path):
    files = []
    with pytest.raises(LeakError, match=r"open file .*forgotten\.txt"):
        async with no_leaks():
            files.append((tmp_path / "forgotten.txt").open("w"))
    files[0].close()


async def test_an_open_socket_is_found():
    sockets = []
    with pytest.raises(LeakError, match="socket:"):
        async with no_leaks():
            sockets.append(socket.socket())
    sockets[0].close()


def test_threads_and_files_are_found_without_an_event_loop(tmp_path):
    files = []
    with pytest.raises(LeakError, match="forgotten"), no_thread_leaks():
        files.append((tmp_path / "forgotten.txt").open("w"))
    files[0].close()
    with no_thread_leaks():
        (tmp_path / "closed.txt").write_text("x")


async def test_what_is_about_to_end_may_do_so(tmp_path):
    """What ends by itself soon, was there before, is pooled, or has been closed is no leak."""
    before = asyncio.create_task(asyncio.sleep(60))
    async with no_leaks():
        asyncio.get_running_loop().call_later(0.05, asyncio.create_task(asyncio.sleep(60)).cancel)
        threading.Thread(target=threading.Event().wait, args=(0.05,)).start()
        await asyncio.to_thread((tmp_path / "closed.txt").write_text, "x")
    assert not before.done()
    before.cancel()


class Holder:
    """Keeps itself and a file alive until the garbage collector comes by."""

    def __init__(self):
        self.itself = self
        self.file = None


async def test_a_file_that_only_garbage_holds_is_no_leak(tmp_path):
    """Whether the garbage is from the block or older than it."""
    older = Holder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with no_leaks():
            Holder().file = (tmp_path / "younger.txt").open("w")
        async with no_leaks():
            older.file = (tmp_path / "older.txt").open("w")
            del older


async def test_the_collector_is_as_before_after_the_block():
    frozen = gc.get_freeze_count()
    async with no_leaks():
        assert gc.get_freeze_count() > frozen
    assert gc.get_freeze_count() <= frozen


async def test_the_blocks_own_error_is_not_hidden():
    tasks = []

    async def fail():
        async with no_leaks():
            tasks.append(asyncio.create_task(asyncio.sleep(60)))
            raise KeyError("the error")

    with pytest.raises(KeyError):
        await fail()
    tasks[0].cancel()
