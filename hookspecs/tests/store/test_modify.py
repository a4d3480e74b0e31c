"""Read, compute, write: nothing that another worker has written meanwhile is lost."""

from __future__ import annotations

import asyncio

import pytest

from pointsman.errors import Conflict
from pointsman.store import Put, Snapshot, StoreUnavailable, Update, modify, revision_key
from pointsman.store.memory import MemoryStore

PREFIX = "{t}/"


def appending(item):
    """Return a change that appends to a list and results in the new length."""

    def change(present):
        items = [*(present or []), item]
        return Put(items), len(items)

    return change


async def test_all_workers_changes_arrive(store):
    """On every backend: twenty concurrent appends, each of them is there and knows its place."""
    works = [modify(store, "list", appending(number), attempts=100) for number in range(20)]
    places = await asyncio.gather(*works)
    assert sorted(await store.get("list")) == list(range(20))
    assert sorted(places) == list(range(1, 21))


async def test_a_whole_step_is_written_with_the_check_of_the_key(store):
    key, other, gone, count = keys = [f"{PREFIX}{name}" for name in ("key", "other", "gone", "count")]

    def change(present):
        return Update(puts={key: Put("new"), other: Put(present)}, deletes=[gone], adds={count: 2}), "done"

    await store.put(gone, 1)
    await store.put(key, "old")
    assert await modify(store, key, change) == "done"
    assert await store.get_many(keys) == ["new", "old", None, 2]


async def test_a_change_that_writes_nothing_leaves_everything_as_it_is(store):
    assert await modify(store, "key", lambda present: (None, present)) is None
    assert await store.get("key") is None


class Rivalled(MemoryStore):
    """A memory store on which another worker writes a key, so many times, before each update."""

    def __init__(self, key, rivals):
        super().__init__()
        self.key = key
        self.rivals = rivals

    async def update(self, update):
        if self.rivals:
            self.rivals -= 1
            await self.add(self.key)
        return await super().update(update)


async def test_a_change_is_computed_again_from_what_is_there_now():
    store = Rivalled("key", rivals=2)
    seen = []

    def change(present):
        seen.append(present)
        return Put((present or 0) + 10), present

    assert await modify(store, "key", change, attempts=3) == 2
    assert seen == [None, 1, 2]
    assert await store.get("key") == 12


async def test_who_is_always_too_late_hears_of_a_conflict():
    store = Rivalled("key", rivals=3)
    with pytest.raises(Conflict, match=r"^the mirror 'm' was modified concurrently; retry$"):
        await modify(store, "key", lambda _: (Put("mine"), None), what="the mirror 'm'", attempts=3)
    assert await store.get("key") == 3


async def test_all_workers_changes_of_a_snapshot_arrive(store):
    """On every backend: each adds a pair only if there are fewer than five, and five there are."""

    def adding(number):
        def change(pairs):
            if len(pairs) >= 5:
                return None, False
            return Update(puts={f"{PREFIX}{number}": Put(number)}), True

        return change

    views = [Snapshot(store, PREFIX) for _ in range(8)]
    added = await asyncio.gather(*(view.modify(adding(number), attempts=100) for number, view in enumerate(views)))
    assert sum(added) == 5
    assert len(await store.scan(PREFIX)) == 6  # the revision is one of them
    assert await store.get(revision_key(PREFIX)) == 5
    for view, mine in zip(views, added, strict=True):
        assert not mine or view.items


async def test_a_snapshot_waits_between_tries_and_gives_up():
    store = Rivalled(revision_key(PREFIX), rivals=3)
    waits = []

    async def pause(tried):
        waits.append(tried)

    snapshot = Snapshot(store, PREFIX)
    with pytest.raises(Conflict, match=r"^the registry was modified concurrently; retry$"):
        await snapshot.modify(
            lambda _: (Update(puts={f"{PREFIX}a": Put(1)}), None), what="the registry", attempts=3, pause=pause
        )
    assert waits == [1, 2]
    assert await store.get(f"{PREFIX}a") is None


async def test_a_change_that_cannot_be_read_back_is_done():
    """The store fails right after the write: the change counts, and the view is as it was."""

    class Failing(MemoryStore):
        broken = False

        async def update(self, update):
            done = await super().update(update)
            self.broken = True
            return done

        async def get(self, key):
            if self.broken:
                raise StoreUnavailable("away")
            return await super().get(key)

    store = Failing()
    snapshot = Snapshot(store, PREFIX)
    assert await snapshot.modify(lambda _: (Update(puts={f"{PREFIX}a": Put(1)}), "done")) == "done"
    assert dict(snapshot.items) == {}
    store.broken = False
    assert await store.get(f"{PREFIX}a") == 1
