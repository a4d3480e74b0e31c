"""A scoped store is a part of a store that cannot reach beyond itself."""

from __future__ import annotations

import pytest

from pointsman.store import AtomicOp, Put, ScopedStore, Update
from pointsman.store.memory import MemoryStore

SWAP = AtomicOp("swap", lambda values, _args: ({0: Put(values[1]), 1: Put(values[0])}, values), "")


async def test_every_operation_stays_within_its_scope(store):
    """All operations work as on a whole store, and what they write is found under the prefix only."""
    await store.put("a", "outside")
    scoped = ScopedStore(store, "plugin:")
    await scoped.put("{t}a", 1)
    await scoped.put("life", 1, ttl_s=1000)
    assert await scoped.get("{t}a") == 1
    assert await scoped.get("a") is None
    assert await scoped.get_many(["a", "{t}a"]) == [None, 1]
    assert await scoped.add("{t}n", 2) == 2
    assert await scoped.add("{t}n", ttl_s=5) == 3
    assert await scoped.compare_and_set("{t}a", 1, 5) is True
    assert await scoped.compare_and_set("{t}a", 1, 6, ttl_s=5) is False
    assert await scoped.delete("a") is False
    assert await scoped.delete("life") is True
    update = Update(checks={"{t}a": 5, "{t}b": None}, puts={"{t}b": Put(7)}, deletes=["{t}n"], adds={"{t}m": 4})
    assert await scoped.update(update) is True
    assert await scoped.scan("") == [("{t}a", 5), ("{t}b", 7), ("{t}m", 4)]
    assert await scoped.scan("{t}b") == [("{t}b", 7)]
    await scoped.ping()
    await scoped.close()
    assert await store.scan("") == [("a", "outside"), ("plugin:{t}a", 5), ("plugin:{t}b", 7), ("plugin:{t}m", 4)]


async def test_run_sees_the_keys_of_its_scope():
    store = MemoryStore()
    scoped = ScopedStore(store, "plugin:")
    await scoped.put("a", 1)
    await scoped.put("b", 2)
    assert await scoped.run(SWAP, ["a", "b"], None) == [1, 2]
    assert await store.scan("") == [("plugin:a", 2), ("plugin:b", 1)]


async def test_scopes_nest_and_do_not_overlap():
    store = MemoryStore()
    inner = ScopedStore(ScopedStore(store, "a:"), "b:")
    await inner.put("a:b:c", 1)
    assert await store.scan("") == [("a:b:a:b:c", 1)]
    assert await inner.scan("a:") == [("a:b:c", 1)]


async def test_keys_are_checked_before_the_prefix_is_added():
    """An empty key is not the prefix itself, and a key has to fit with its prefix."""
    scoped = ScopedStore(MemoryStore(), "plugin:")
    for key in ("", "x" * 506):
        with pytest.raises(ValueError, match="1 to 512 characters"):
            await scoped.put(key, 1)
        with pytest.raises(ValueError, match="1 to 512 characters"):
            await scoped.update(Update(puts={key: Put(1)}))
    await scoped.put("x" * 505, 1)
    with pytest.raises(ValueError, match="prefix"):
        ScopedStore(MemoryStore(), "x" * 513)
