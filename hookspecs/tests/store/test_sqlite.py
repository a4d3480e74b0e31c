"""The thread with group commit, on a database of a plugin's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time

import pytest
import uvloop

from pointsman.store.sqlite import Outcome, SqliteThread, in_one_transaction, in_parts, unhurried

LOG = logging.getLogger("notebook")


class NotebookUnavailable(Exception):
    """The notebook failed."""


class Notebook:
    """Lines in a table; a line that is not text is refused, and "break" breaks the database."""

    def __init__(self, path):
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("CREATE TABLE IF NOT EXISTS lines (line TEXT)")
        self.groups = []

    def begin(self):
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self):
        self.connection.execute("COMMIT")

    def rollback(self):
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")

    def carry_out(self, works):
        self.groups.append(len(works))
        return in_one_transaction(self, works, self.write, writes=True, failure=self.failure)

    def write(self, works):
        return [self.write_one(work) for work in works]

    def write_one(self, work):
        if isinstance(work, threading.Event):
            return Outcome(work.wait(20))
        if not isinstance(work, str):
            return Outcome(None, TypeError(f"{work!r} is not a line"))
        if work == "break":
            raise sqlite3.OperationalError("disk I/O error")
        return Outcome(self.connection.execute("INSERT INTO lines VALUES (?)", (work,)).lastrowid)

    def failure(self, err):
        return NotebookUnavailable(f"the notebook failed: {err}")

    def close(self):
        self.connection.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "notebook.sqlite3"


@pytest.fixture
def made(path):
    """Return a thread on the notebook, not yet open."""

    def make(open_session=lambda: Notebook(path), timeout_s=5.0):
        return SqliteThread(
            open_session,
            name="notebook",
            where="the notebook",
            timeout_s=timeout_s,
            unavailable=NotebookUnavailable,
            log=LOG,
        )

    return make


def lines(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [line for (line,) in connection.execute("SELECT line FROM lines ORDER BY rowid")]


def thread_of(name):
    return next((thread for thread in threading.enumerate() if thread.name == name), None)


async def test_what_waits_is_one_transaction(made, path):
    """Ten callers behind a busy thread share a commit; each hears of its own line, the wrong one of its own error."""
    notebooks = []
    thread = made(lambda: notebooks.append(Notebook(path)) or notebooks[0])
    await thread.open()
    gate = threading.Event()
    busy = asyncio.create_task(thread.ask(gate))
    await asyncio.sleep(0.05)
    asked = [asyncio.create_task(thread.ask(work)) for work in [*"abcdefghi", 7]]
    await asyncio.sleep(0)
    gate.set()
    *places, wrong = await asyncio.gather(*asked, return_exceptions=True)
    assert places == list(range(1, 10))
    assert isinstance(wrong, TypeError)
    assert await busy is True
    await thread.close()
    assert notebooks[0].groups == [1, 10]
    assert lines(path) == list("abcdefghi")


async def test_what_one_turn_of_the_loop_asks_for_is_one_transaction(made, path):
    """The thread is idle, and is woken once for all of it, with what does not wait; the order is kept."""
    notebooks = []
    thread = made(lambda: notebooks.append(Notebook(path)) or notebooks[0])
    await thread.open()
    asked = [asyncio.ensure_future(thread.ask(line)) for line in "ab"]
    asyncio.get_running_loop().call_soon(thread.send, "c")
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251  # the thread could begin before the loop's next turn
    assert await asyncio.gather(*asked) == [1, 2]
    thread.send("d")
    await thread.close()
    assert notebooks[0].groups == [3, 1]
    assert lines(path) == list("abcd")


async def test_work_that_nothing_waits_for_does_not_wake_the_loop(made, path, monkeypatch):
    thread = made()
    await thread.open()
    loop, woken = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe

    def counted(callback, *args):
        woken.append(callback)
        return wake(callback, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for line in "ab":
        thread.send(line)
        await asyncio.sleep(0.02)
    assert await thread.ask("c") == 3
    assert len(woken) == 1
    await thread.close()
    assert lines(path) == list("abc")


async def unhurried_line(thread, line, seconds):
    with unhurried(seconds):
        return await thread.ask(line)


async def test_unhurried_work_goes_with_the_next_that_is_in_a_hurry_and_before_it(made, path):
    notebooks = []
    thread = made(lambda: notebooks.append(Notebook(path)) or notebooks[0], timeout_s=600)
    await thread.open()
    patient = [asyncio.create_task(unhurried_line(thread, line, 60)) for line in "ab"]
    await asyncio.sleep(0.05)
    assert notebooks[0].groups == []
    assert await thread.ask("c") == 3
    assert await asyncio.gather(*patient) == [1, 2]
    assert notebooks[0].groups == [3]
    await thread.close()
    assert lines(path) == list("abc")


@pytest.mark.parametrize(
    ("seconds", "timeout_s"), [((0.02,), 600), ((60, 0.02), 600), ((60,), 0.2)], ids=["alone", "shorter", "in time"]
)
async def test_unhurried_work_goes_by_itself_when_its_time_is_over(made, path, seconds, timeout_s):
    """Its time is the shortest of what waits, and a small part of what a call may take."""
    thread = made(timeout_s=timeout_s)
    await thread.open()
    async with asyncio.timeout(30):
        await asyncio.gather(*(unhurried_line(thread, "a", wait_s) for wait_s in seconds))
    await thread.close()
    assert lines(path) == ["a"] * len(seconds)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("seconds", [(0.0001, 60), (60, 0.0001), (0.0001, 0.0001), (0.0, 0.0001)])
def test_unhurried_work_may_wait_for_less_than_a_loop_counts(made, path, run, seconds):
    """A journal that writes at the end of its window has such times; uvloop's timers count whole milliseconds."""

    async def write():
        thread = made(timeout_s=600)
        await thread.open()
        async with asyncio.timeout(30):
            await asyncio.gather(*(unhurried_line(thread, "a", wait_s) for wait_s in seconds))
        await thread.close()

    run(write())
    assert lines(path) == ["a", "a"]


async def test_closing_does_not_wait_for_unhurried_work(made, path):
    thread = made(timeout_s=600)
    await thread.open()
    patient = asyncio.create_task(unhurried_line(thread, "a", 60))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await thread.close()
        assert await patient == 1
    assert lines(path) == ["a"]


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 8, 9, 21])
def test_parts_keep_the_order_and_are_as_few_as_can_be(number):
    parts = list(in_parts(range(number), 8))
    assert [item for part in parts for item in part] == list(range(number))
    assert [len(part) for part in parts] == [8] * (number // 8) + [number % 8] * (number % 8 > 0)


async def test_when_the_database_fails_nothing_of_the_group_is_written(made, path):
    """All callers hear of it, each by an error of its own that names the cause, and the thread goes on."""
    thread = made()
    await thread.open()
    gate = threading.Event()
    busy = asyncio.create_task(thread.ask(gate))
    await asyncio.sleep(0.05)
    asked = [asyncio.create_task(thread.ask(work)) for work in ("a", "break", "b")]
    await asyncio.sleep(0)
    gate.set()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in errors] == ["the notebook failed: disk I/O error"] * 3
    assert len({id(error) for error in errors}) == 3
    assert all(isinstance(error.__cause__, sqlite3.OperationalError) for error in errors)
    assert await busy is True
    assert await thread.ask("c") == 1
    await thread.close()
    assert lines(path) == ["c"]


async def test_errors_of_work_without_a_caller_are_logged(made, path, caplog):
    thread = made()
    await thread.open()
    thread.send("a")
    thread.send(7)
    await thread.close()
    assert lines(path) == ["a"]
    assert caplog.record_tuples == [("notebook", logging.WARNING, "7 is not a line")]


async def test_what_was_asked_for_before_close_is_done_and_nothing_after(made, path):
    thread = made()
    await thread.open()
    asked = asyncio.create_task(thread.ask("a"))
    await asyncio.sleep(0)
    await thread.close()
    assert await asked == 1
    thread.send("b")
    with pytest.raises(NotebookUnavailable, match=r"^the notebook has been closed$"):
        await thread.ask("c")
    await thread.close()
    assert lines(path) == ["a"]


async def test_a_thread_that_never_ran_or_could_not_open_closes_at_once(made):
    """Neither makes close wait for its time limit, and no thread is left."""

    def refuse():
        raise NotebookUnavailable("no paper")

    await made(timeout_s=30).close()
    thread = made(refuse, timeout_s=30)
    with pytest.raises(NotebookUnavailable, match="no paper"):
        await thread.open()
    async with asyncio.timeout(10):
        await thread.close()
    if (running := thread_of("notebook")) is not None:
        await asyncio.to_thread(running.join, 10)
    assert thread_of("notebook") is None


async def test_each_call_waits_for_its_own_time_and_none_is_remembered_for_longer(made, path):
    """One timer serves all calls: a later call is not given up with an earlier one, and those with answers are forgotten."""
    thread = made(timeout_s=0.3)
    await thread.open()
    for line in ("a", "b", "c"):
        await thread.ask(line)
    assert len(thread._asked) == 1
    go_on = threading.Event()
    first = asyncio.create_task(thread.ask(go_on))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(thread.ask("d"))
    with pytest.raises(NotebookUnavailable, match=r"did not answer within 0\.3 s"):
        await first
    assert not second.done()
    with pytest.raises(NotebookUnavailable, match=r"did not answer within 0\.3 s"):
        await second
    go_on.set()
    await thread.close()
    assert lines(path) == ["a", "b", "c", "d"]
