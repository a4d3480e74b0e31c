"""A part of a store, as if it were the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from . import encoding
from .base import JSON, AtomicOp, StateStore, Update

V = TypeVar("V")


class ScopedStore:
    """Puts a prefix before every key that goes in, and takes it off every key that comes out.

    Args:
        store: The whole store.
        prefix: The prefix; together with it a key has at most as many characters as any key.
    """

    def __init__(self, store: StateStore, prefix: str) -> None:
        encoding.check_prefix(prefix)
        self._store = store
        self._prefix = prefix

    async def get(self, key: str) -> JSON:
        """See ``StateStore.get``."""
        return await self._store.get(self._full(key))

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``."""
        return await self._store.get_many([self._full(key) for key in keys])

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        await self._store.put(self._full(key), value, ttl_s=ttl_s)

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        return await self._store.delete(self._full(key))

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        return await self._store.compare_and_set(self._full(key), expected, value, ttl_s=ttl_s)

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        return await self._store.add(self._full(key), amount, ttl_s=ttl_s)

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        pairs = await self._store.scan(self._prefix + prefix)
        return [(key.removeprefix(self._prefix), value) for key, value in pairs]

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        return await self._store.update(
            replace(
                update,
                checks=self._full_names(update.checks),
                puts=self._full_names(update.puts),
                deletes=[self._full(key) for key in update.deletes],
                adds=self._full_names(update.adds),
            )
        )

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        return await self._store.run(op, [self._full(key) for key in keys], args)

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        await self._store.ping()

    async def close(self) -> None:
        """Do nothing: the whole store belongs to whoever opened it."""

    def _full(self, key: str) -> str:
        if type(key) is not str or not key:
            encoding.check_key(key)  # it says what is wrong; all else is said of the whole key
        return self._prefix + key

    def _full_names(self, values: Mapping[str, V]) -> dict[str, V]:
        return {self._full(key): value for key, value in values.items()}
