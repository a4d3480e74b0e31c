"""A store that a test can take away, slow down, and look into."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from ..errors import StoreUnavailable
from ..store.protocol import JSON, AtomicOp, StateStore, Update


class FragileStore:
    """One worker's connection to a store.

    Every call suspends before it reaches the store and again before its answer arrives, as a call over a network does:
    what is cancelled there meets both cases, not carried out and carried out without an answer.

    Args:
        store: The store itself.
        closes: Whether ``close`` closes the store itself; otherwise it outlives this worker.

    Attributes:
        down: While True every call fails with ``StoreUnavailable``.
        calls: How often each method was called.
    """

    def __init__(self, store: StateStore, *, closes: bool = False) -> None:
        self.down = False
        self.calls: Counter[str] = Counter()
        self._store = store
        self._closes = closes
        self._severed = False

    def sever(self) -> None:
        """Cut the connection for ever, as the death of this worker does. Nothing it does reaches the store any more."""
        self._severed = True

    async def _reach(self, method: str) -> StateStore:
        self.calls[method] += 1
        await asyncio.sleep(0)
        if self.down or self._severed:
            raise StoreUnavailable("the store is down: the test has taken it away")
        return self._store

    async def get(self, key: str) -> JSON:
        """See ``StateStore.get``."""
        value = await (await self._reach("get")).get(key)
        await asyncio.sleep(0)
        return value

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``."""
        values = await (await self._reach("get_many")).get_many(keys)
        await asyncio.sleep(0)
        return values

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        await (await self._reach("put")).put(key, value, ttl_s=ttl_s)
        await asyncio.sleep(0)

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        existed = await (await self._reach("delete")).delete(key)
        await asyncio.sleep(0)
        return existed

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        written = await (await self._reach("compare_and_set")).compare_and_set(key, expected, value, ttl_s=ttl_s)
        await asyncio.sleep(0)
        return written

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        total = await (await self._reach("add")).add(key, amount, ttl_s=ttl_s)
        await asyncio.sleep(0)
        return total

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        pairs = await (await self._reach("scan")).scan(prefix)
        await asyncio.sleep(0)
        return pairs

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        done = await (await self._reach("update")).update(update)
        await asyncio.sleep(0)
        return done

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        result = await (await self._reach("run")).run(op, keys, args)
        await asyncio.sleep(0)
        return result

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        await (await self._reach("ping")).ping()

    async def close(self) -> None:
        """Let go of the store, and close it when it belongs to this worker alone."""
        self._severed = True
        if self._closes:
            await self._store.close()
