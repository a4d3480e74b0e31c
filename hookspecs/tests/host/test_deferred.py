"""Usage that is seen later: charged once, whichever worker reads it first."""

from __future__ import annotations

import asyncio

from pointsman.errors import StoreError
from pointsman.host.deferred import Deferred, Origin
from pointsman.store.memory import MemoryStore

ORIGIN = Origin("chat", "chat-1")


class Broken(MemoryStore):
    """A store that cannot be reached."""

    async def put(self, *_: object, **__: object) -> None:
        raise StoreError("gone")

    async def get(self, *_: object) -> None:
        raise StoreError("gone")


async def test_one_read_of_many_is_charged() -> None:
    store = MemoryStore()
    workers = [Deferred(store) for _ in range(3)]
    assert await workers[0].remember("resp_1", ORIGIN)
    found = await asyncio.gather(*(worker.claim("resp_1") for worker in workers * 5))
    assert [origin for origin in found if origin is not None] == [ORIGIN]


async def test_what_was_not_remembered_is_not_charged() -> None:
    deferred = Deferred(MemoryStore())
    assert await deferred.claim("resp_1") is None
    await deferred.remember("resp_1", ORIGIN)
    assert await deferred.claim("resp_2") is None


async def test_a_store_that_fails_charges_at_once_instead_of_later() -> None:
    """The request then settles as one without usage, which is not free; and a read that cannot ask is asked again."""
    deferred = Deferred(Broken())
    assert not await deferred.remember("resp_1", ORIGIN)
    assert await deferred.claim("resp_1") is None
