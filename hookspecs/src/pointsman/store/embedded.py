"""What the embedded backends have in common: every method is a checked step that the backend carries out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from . import encoding, steps
from .base import JSON, AtomicOp, Update

T = TypeVar("T")


class EmbeddedStore(ABC):
    """A ``StateStore`` over rows that a backend holds itself.

    A backend says how a step is carried out, how rows are scanned, and how it is probed and closed.
    """

    @abstractmethod
    async def _carry_out(self, step: steps.Step[T]) -> T:
        """Carry out a step, alone or together with others, and return its result."""

    @abstractmethod
    async def _scan(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and text of all live rows whose key starts with the prefix, in the order of the keys."""

    @abstractmethod
    async def ping(self) -> None:
        """See ``StateStore.ping``."""

    @abstractmethod
    async def close(self) -> None:
        """See ``StateStore.close``."""

    async def get(self, key: str) -> JSON:
        """See ``StateStore.get``."""
        encoding.check_key(key)
        return await self._carry_out(steps.get(key))

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``."""
        for key in keys:
            encoding.check_key(key)
        return await self._carry_out(steps.get_many(tuple(keys)))

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        encoding.check_key(key)
        encoding.check_ttl(ttl_s)
        await self._carry_out(steps.put(key, encoding.encode(value), ttl_s))

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        encoding.check_key(key)
        return await self._carry_out(steps.delete(key))

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        return await self.update(encoding.compare_and_set(key, expected, value, ttl_s))

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        encoding.check_key(key)
        encoding.check_amount(amount)
        encoding.check_ttl(ttl_s)
        return await self._carry_out(steps.add(key, amount, ttl_s))

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        encoding.check_prefix(prefix)
        return [(key, encoding.decode(text, f"key {key!r}")) for key, text in await self._scan(prefix)]

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        return await self._carry_out(steps.update(*encoding.encode_update(update), update))

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        encoding.check_keys(keys)
        encoding.encode_any(args)
        return await self._carry_out(steps.run(op, tuple(keys), args))
