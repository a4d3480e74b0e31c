"""A snapshot is a cheap view that is right as of its last refresh."""

from __future__ import annotations

import asyncio

import pytest

from pointsman.store import Put, Snapshot, StoreUnavailable, Update, revision_key, with_revision
from pointsman.store.memory import MemoryStore

PREFIX = "{t}/"


async def nothing():
    """Do nothing."""


class Watched:
    """A memory store that counts its reads, and awaits something between reading and answering."""

    def __init__(self, clock=lambda: 0.0):
        self.inner = MemoryStore(clock=clock)
        self.reads = []
        self.after_get = nothing
        self.after_scan = nothing

    async def get(self, key):
        self.reads.append("get")
        value = await self.inner.get(key)
        await self.after_get()
        return value

    async def scan(self, prefix):
        self.reads.append("scan")
        pairs = await self.inner.scan(prefix)
        await self.after_scan()
        return pairs

    def __getattr__(self, name):
        return getattr(self.inner, name)


async def write(store, **values):
    puts = {f"{PREFIX}{name}": Put(value) for name, value in values.items()}
    assert await store.update(with_revision(Update(puts=puts), PREFIX))


async def test_a_snapshot_shows_what_is_under_its_prefix(store):
    """On every backend: the pairs, none of another prefix, and not the revision itself."""
    snapshot = Snapshot(store, PREFIX)
    assert dict(snapshot.items) == {}
    assert snapshot.revision is None
    assert await snapshot.refresh() is False
    await store.put("elsewhere", 1)
    await write(store, a=1, b={"c": 2})
    assert dict(snapshot.items) == {}
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}a": 1, f"{PREFIX}b": {"c": 2}}
    assert snapshot.revision == 1
    await store.update(snapshot.raising(Update(deletes=[f"{PREFIX}a"])))
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}b": {"c": 2}}
    assert snapshot.revision == 2
    assert await snapshot.refresh() is False


async def test_the_revision_moves_only_with_its_update(store):
    """An update whose checks fail raises no revision."""
    await write(store, a=1)
    assert await store.update(with_revision(Update(checks={f"{PREFIX}a": 2}, adds={f"{PREFIX}n": 1}), PREFIX)) is False
    assert await store.get(revision_key(PREFIX)) == 1
    update = with_revision(Update(adds={f"{PREFIX}n": 5}), PREFIX)
    assert update.adds == {f"{PREFIX}n": 5, revision_key(PREFIX): 1}
    assert await store.update(update) is True
    assert await store.scan(PREFIX) == [(revision_key(PREFIX), 2), (f"{PREFIX}a", 1), (f"{PREFIX}n", 5)]


async def test_a_refresh_without_change_is_one_read():
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    await snapshot.refresh()
    store.reads.clear()
    for _ in range(3):
        assert await snapshot.refresh() is False
    assert store.reads == ["get"] * 3


async def test_the_view_cannot_be_changed_and_does_not_change():
    """Whoever holds the pairs of a moment keeps them."""
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    await snapshot.refresh()
    seen = snapshot.items
    with pytest.raises(TypeError):
        seen[f"{PREFIX}a"] = 2
    await write(store, a=2)
    await snapshot.refresh()
    assert seen == {f"{PREFIX}a": 1}
    assert snapshot.items == {f"{PREFIX}a": 2}


async def test_values_that_die_are_noticed_after_the_maximum_age():
    """The end of a life moves no revision; the view follows when it is old."""
    now = [0.0]
    store = Watched(clock=lambda: now[0])
    snapshot = Snapshot(store, PREFIX, max_age_s=30, clock=lambda: now[0])
    await store.update(with_revision(Update(puts={f"{PREFIX}a": Put(1, ttl_s=5), f"{PREFIX}b": Put(2)}), PREFIX))
    await snapshot.refresh()
    now[0] = 29.9
    assert await snapshot.refresh() is False
    assert len(snapshot.items) == 2
    now[0] = 30
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}b": 2}
    now[0] = 59.9
    store.reads.clear()
    assert await snapshot.refresh() is False
    assert store.reads == ["get"]


async def test_a_store_that_was_emptied_is_noticed():
    """A revision that has gone backwards, or is gone, counts as moved."""
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    await write(store, a=2)
    await snapshot.refresh()
    for key, _ in await store.inner.scan(""):
        await store.delete(key)
    assert await snapshot.refresh() is True
    assert (dict(snapshot.items), snapshot.revision) == ({}, None)
    await write(store, a=3)
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}a": 3}


async def test_a_failing_refresh_keeps_the_view_and_raises():
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    await snapshot.refresh()
    await write(store, a=2)

    async def fail():
        raise StoreUnavailable("gone")

    store.after_scan = fail
    with pytest.raises(StoreUnavailable, match="gone"):
        await snapshot.refresh()
    assert (snapshot.items, snapshot.revision) == ({f"{PREFIX}a": 1}, 1)
    store.after_scan = nothing
    assert await snapshot.refresh() is True
    assert (snapshot.items, snapshot.revision) == ({f"{PREFIX}a": 2}, 2)


async def test_on_change_is_told_of_changes_only():
    """It hears each new set of pairs once, before others see it, and nothing when the pairs are the same."""
    heard = []
    store = Watched()
    snapshot = Snapshot(store, PREFIX, on_change=lambda items: heard.append((dict(items), dict(snapshot.items))))
    await snapshot.refresh()
    await write(store, a=1)
    await snapshot.refresh()
    await snapshot.refresh()
    await write(store, a=1)
    assert await snapshot.refresh() is False
    await write(store, a=2)
    await snapshot.refresh()
    assert heard == [({f"{PREFIX}a": 1}, {}), ({f"{PREFIX}a": 2}, {f"{PREFIX}a": 1})]


async def test_an_on_change_that_fails_is_tried_again():
    """Its error reaches the caller, the view stays, and the next refresh offers the change again."""
    errors = [LookupError("not yet")]

    def on_change(_items):
        if errors:
            raise errors.pop()

    store = Watched()
    snapshot = Snapshot(store, PREFIX, on_change=on_change)
    await write(store, a=1)
    with pytest.raises(LookupError):
        await snapshot.refresh()
    assert dict(snapshot.items) == {}
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}a": 1}


async def test_a_change_during_the_reading_is_not_missed():
    """A write between scan and the end of the refresh is read at once, or at the next refresh at the latest."""
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    writes = iter([2])

    async def write_once_more():
        for value in writes:
            await write(store, a=value)

    store.after_scan = write_once_more
    await snapshot.refresh()
    assert (snapshot.items, snapshot.revision) == ({f"{PREFIX}a": 2}, 2)


async def test_a_prefix_that_never_rests_does_not_stop_the_view():
    """With a write during every scan the view still moves on, and the next refresh reads again."""
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    counter = iter(range(1, 100))

    async def keep_writing():
        await write(store, a=next(counter))

    await keep_writing()
    store.after_scan = keep_writing
    await snapshot.refresh()
    assert store.reads.count("scan") == 3
    assert snapshot.items == {f"{PREFIX}a": 3}
    store.after_scan = nothing
    assert await snapshot.refresh() is True
    assert snapshot.items == {f"{PREFIX}a": 4}


async def test_a_slow_refresh_does_not_undo_a_later_one():
    """An older reading that arrives late never replaces a newer one."""
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    held, answer = asyncio.Event(), asyncio.Event()

    async def hold_the_last_read():
        if store.reads == ["get", "scan", "get"]:
            held.set()
            await answer.wait()

    store.after_get = hold_the_last_read
    slow = asyncio.create_task(snapshot.refresh())
    await held.wait()
    await write(store, a=2)
    quick = asyncio.create_task(snapshot.refresh())
    for _ in range(10):
        await asyncio.sleep(0)
    answer.set()
    await asyncio.gather(slow, quick)
    assert (snapshot.items, snapshot.revision) == ({f"{PREFIX}a": 2}, 2)


async def test_a_cancelled_refresh_leaves_the_view_usable():
    store = Watched()
    snapshot = Snapshot(store, PREFIX)
    await write(store, a=1)
    store.after_scan = asyncio.Event().wait
    refreshing = asyncio.create_task(snapshot.refresh())
    while "scan" not in store.reads:  # noqa: ASYNC110 - a step of the loop is all it takes
        await asyncio.sleep(0)
    refreshing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refreshing
    store.after_scan = nothing
    assert await snapshot.refresh() is True
