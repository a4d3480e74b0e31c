"""The disk store's group commits, and what it does when its file is locked, stuck or full."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

import pytest

from pointsman.store import AtomicOp, Put, StoreCorrupt, StoreUnavailable, Update, rows
from pointsman.store.disk import DiskStore, GroupCommit
from pointsman.store.embedded import Row
from pointsman.store.rows import RowCache
from pointsman.store.sqlite import alone_in_opening

# --- locks, stuck disks, full disks


async def test_a_locked_store_is_unavailable_at_open(directory, database):
    await (await DiskStore.open(directory)).close()
    with database(directory) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked by another process") as caught:
            await DiskStore.open(directory, timeout_s=0.2)
        other.execute("ROLLBACK")
    assert str(directory) in str(caught.value)


async def test_a_start_waits_longer_for_another_process_than_a_request(directory, opened, database):
    """Opening and what is asked for before ``started`` wait for the lock; afterwards a call fails in time."""
    await (await DiskStore.open(directory)).close()
    loop = asyncio.get_running_loop()
    with database(directory) as other:
        other.execute("BEGIN IMMEDIATE")
        loop.call_later(0.5, other.execute, "ROLLBACK")
        store = await opened(DiskStore.open(directory, timeout_s=0.1, start_timeout_s=60))
        other.execute("BEGIN IMMEDIATE")
        loop.call_later(0.5, other.execute, "ROLLBACK")
        await store.put("a", 1)
        store.started()
        await store.ping()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.put("a", 2)
        other.execute("ROLLBACK")
    await until_it_answers(store)


async def test_a_call_of_the_start_that_still_waits_is_a_request_afterwards(directory, opened):
    store = await opened(DiskStore.open(directory, timeout_s=0.1, start_timeout_s=60))
    gate = threading.Event()
    stuck = asyncio.create_task(store.run(holding(gate), ["key"], None))
    await asyncio.sleep(0)
    store.started()
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await stuck
    gate.set()
    await until_it_answers(store)


async def test_one_process_at_a_time_opens_a_store(directory):
    """SQLite fails at once, whatever its timeout, where two turn a new file to WAL at the same time."""
    directory.mkdir(mode=0o700)
    with alone_in_opening(directory, 1), pytest.raises(StoreUnavailable, match="being opened by another process"):
        await DiskStore.open(directory, timeout_s=0.1)
    await (await DiskStore.open(directory)).close()


async def test_a_locked_store_is_unavailable_in_traffic_and_recovers(directory, opened, database):
    """While another process holds the lock, writes fail in time and reads succeed; afterwards all is well."""
    store = await opened(DiskStore.open(directory, timeout_s=4))
    await store.put("a", 1)
    with database(directory) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await store.get("a") == 1
        errors = await asyncio.gather(store.put("a", 2), store.ping(), store.add("b"), return_exceptions=True)
        assert [type(error) for error in errors] == [StoreUnavailable] * 3
        assert "locked by another process" in str(errors[0])
        # Those that were not in the first one's transaction wait for the lock after it, and may be told less.
        assert all("locked by another process" in str(e) or "did not answer" in str(e) for e in errors[1:])
        other.execute("ROLLBACK")
    await store.ping()
    await store.put("a", 3)
    # What its caller no longer waited for may be carried out once the lock is free.
    assert await store.scan("") in ([("a", 3)], [("a", 3), ("b", 1)])


async def until_it_answers(store):
    for _ in range(100):
        with contextlib.suppress(StoreUnavailable):
            return await store.ping()
    raise AssertionError("the store does not come back")


def holding(gate):
    """An atomic step that keeps the store's thread busy until the gate opens."""
    return AtomicOp("hold", lambda _values, _args: ({}, gate.wait(20)), "")


async def test_a_stuck_disk_is_unavailable_in_time(directory, opened):
    """Callers do not wait for a thread that does not come back; when it does, the store works again."""
    store = await opened(DiskStore.open(directory, timeout_s=0.2))
    gate = threading.Event()
    stuck = asyncio.create_task(store.run(holding(gate), ["key"], None))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await store.get("a")
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await stuck
    gate.set()
    await until_it_answers(store)
    await store.put("a", 1)
    assert await store.get("a") == 1


async def test_closing_a_stuck_store_is_an_error_in_time(directory):
    store = await DiskStore.open(directory, timeout_s=0.2)
    gate = threading.Event()
    stuck = asyncio.create_task(store.run(holding(gate), ["key"], None))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="may not have been written"):
        await store.close()
    gate.set()
    await store.close()
    with contextlib.suppress(StoreUnavailable):
        await stuck


async def test_a_full_disk_is_unavailable_and_nothing_is_half_written(directory, opened, monkeypatch):
    monkeypatch.setitem(rows._SETTINGS, "sqlite_max_page_count", 60)
    store = await opened(DiskStore.open(directory))
    await store.put("a", 1)
    with pytest.raises(StoreUnavailable, match="make room"):
        await store.update(Update(puts={"a": Put(2), **{f"big{number}": Put("x" * 10_000) for number in range(100)}}))
    assert await store.scan("") == [("a", 1)]
    await store.put("a", 3)
    assert await store.get("a") == 3


@pytest.mark.parametrize("files", ["*", "*-wal", "*-shm", "cache.db"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_removed_and_replaced_files_are_noticed_by_ping(directory, store, files, replaced):
    """Without its log, a store that is killed has nothing of what was written since it was opened."""
    await store.ping()
    for file in list(directory.glob(files)):
        content = file.read_bytes()
        file.rename(file.with_name(f"{file.name}.old"))
        if replaced:
            file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await store.ping()


async def test_files_that_a_new_connection_makes_are_in_place(directory):
    cache = RowCache(directory, 1.0)
    for _ in range(2):
        cache.close()
        cache.begin()
        cache.check_place()
        cache.commit()
    cache.close()


# --- group commit


@pytest.fixture
def commits(monkeypatch):
    """How many operations each transaction carried out."""
    sizes = []
    carry_out = GroupCommit.carry_out

    def spy(self, works):
        outcomes = carry_out(self, works)
        sizes.append(len(works))
        return outcomes

    monkeypatch.setattr(GroupCommit, "carry_out", spy)
    return sizes


async def behind_a_busy_thread(store, calls):
    """Queue calls while the thread is busy; return their tasks and the gate that lets the thread go on."""
    gate = threading.Event()
    tasks = [asyncio.create_task(store.run(holding(gate), ["key"], None))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    return tasks, gate


async def test_what_waits_is_committed_together(store, commits):
    tasks, gate = await behind_a_busy_thread(store, [store.put(f"{number:03}", number) for number in range(100)])
    gate.set()
    await asyncio.gather(*tasks)
    assert commits == [1, 100]
    assert await store.scan("0") == [(f"{number:03}", number) for number in range(100)]


async def test_operations_of_a_group_see_those_before_them(store, commits):
    """Within one transaction, reads, scans and steps see what was asked for earlier, in order."""
    noted = AtomicOp("note", lambda values, _args: ({0: Put([values[0]])}, values[0]), "")
    tasks, gate = await behind_a_busy_thread(
        store,
        [
            store.put("a", 1),
            store.get("a"),
            store.scan("a"),
            store.add("a"),
            store.compare_and_set("a", 1, 9),
            store.compare_and_set("a", 2, 5),
            store.run(noted, ["a"], None),
            store.scan("a"),
            store.update(Update(checks={"a": [5]}, deletes=["a"], adds={"b": 2})),
            store.delete("a"),
            store.get_many(["a", "b"]),
            store.scan(""),
            store.ping(),
        ],
    )
    gate.set()
    results = (await asyncio.gather(*tasks))[1:]
    assert results == [None, 1, [("a", 1)], 2, False, True, 5, [("a", [5])], True, False, [None, 2], [("b", 2)], None]
    assert commits == [1, 13]


async def test_one_failing_operation_does_not_disturb_its_group(store, plant):
    """Errors of single operations reach their callers alone; the others are committed."""
    await store.put("text", "x")
    plant(mode=4, value=b"pickle")

    def fail(_values, _args):
        raise LookupError("no")

    broken = [
        AtomicOp("fail", fail, ""),
        AtomicOp("nan", lambda _values, _args: ({0: Put(float("nan"))}, 1), ""),
        AtomicOp("result", lambda _values, _args: ({0: Put(1)}, object()), ""),
        AtomicOp("index", lambda _values, _args: ({0: Put(1), 7: Put(1)}, 1), ""),
        AtomicOp("ttl", lambda _values, _args: ({0: Put(1, ttl_s=-1)}, 1), ""),
    ]
    bad = [store.run(op, ["never"], None) for op in broken]
    bad += [store.add("text"), store.get("planted"), store.scan("planted"), store.add("planted")]
    good = [store.put(f"good{number}", number) for number in range(10)]
    tasks, gate = await behind_a_busy_thread(store, [*bad, *good])
    gate.set()
    results = (await asyncio.gather(*tasks, return_exceptions=True))[1:]
    assert [type(result) for result in results] == [
        LookupError,
        ValueError,
        ValueError,
        IndexError,
        ValueError,
        ValueError,
        StoreCorrupt,
        StoreCorrupt,
        StoreCorrupt,
        *[type(None)] * 10,
    ]
    assert len(await store.scan("good")) == 10
    assert await store.get("never") is None
    assert await store.get("text") == "x"


async def test_a_failing_transaction_fails_for_all_of_its_group(store, monkeypatch):
    """When the database itself fails, every caller gets an error and nothing is written."""
    write = RowCache.write

    def fail_late(self, changes, now):
        write(self, changes, now)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "write", fail_late)
        tasks, gate = await behind_a_busy_thread(store, [store.put("a", 1), store.add("b"), store.get("c")])
        gate.set()
        results = (await asyncio.gather(*tasks, return_exceptions=True))[1:]
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert len({id(result) for result in results}) == 3
    assert await store.scan("") == []
    await store.put("a", 2)
    assert await store.get("a") == 2


async def test_a_caller_that_goes_away_loses_nothing(store, commits):
    """Cancelled callers neither break the group nor keep their own operation from being carried out."""
    tasks, gate = await behind_a_busy_thread(store, [store.put(f"{number:02}", number) for number in range(40)])
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[1::2]] == [asyncio.CancelledError] * 20
    assert results[2::2] == [None] * 20
    assert len(await store.scan("")) == 40
    assert commits[:2] == [1, 40]


async def test_close_finishes_what_was_asked_for(directory, opened):
    """Everything handed over before close is there afterwards, and its callers hear of it."""
    store = await DiskStore.open(directory)
    tasks, gate = await behind_a_busy_thread(store, [store.put(f"{number:03}", number) for number in range(200)])
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert await asyncio.gather(*tasks[1:]) == [None] * 200
    again = await opened(DiskStore.open(directory))
    assert len(await again.scan("")) == 200


async def test_a_cancelled_open_leaves_nothing_open(directory):
    """The thread ends, and with it the hold on the directory."""
    opening = asyncio.create_task(DiskStore.open(directory))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for thread in threading.enumerate():
        if thread.name == "pointsman-store":
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()


def test_a_store_whose_event_loop_is_gone_lets_go(directory):
    """A loop that ends in the middle of an operation leaves no thread behind."""
    gate = threading.Event()

    async def leave():
        store = await DiskStore.open(directory)
        task = asyncio.create_task(store.run(holding(gate), ["key"], None))
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(leave())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "pointsman-store"]
    gate.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("changed", [1, 40, 200])
def test_a_group_takes_few_statements_however_many_rows_it_changes(directory, changed):
    """Each statement gives the interpreter lock away, and on a busy event loop it takes milliseconds to get it back."""
    cache = rows.open_rows(directory, 5)
    kept = {f"kept {number}": Row(str(number), 100.5 + number) for number in range(changed)}
    try:
        cache.begin()
        cache.write({f"gone {number}": Row("0", None) for number in range(changed)}, 1)
        cache.write({f"kept {number}": Row("false", None) for number in range(changed)}, 1)
        steps = []
        cache._con.set_trace_callback(lambda statement: steps.append(statement.split()[0]))
        cache.write({**kept, **{f"gone {number}": None for number in range(changed)}}, 2)
        cache._con.set_trace_callback(None)
        cache.commit()
        assert cache.read([*kept, *(f"gone {number}" for number in range(changed))]) == kept
        assert steps.count("DELETE") == 1
        assert steps.count("INSERT") <= changed // 64 + 6
    finally:
        cache.close()
