"""What the embedded backends have in common: operations as pure steps over rows.

A step reads rows and returns what to write. It either raises before anything is written or is written as a
whole, so a backend may carry out many steps in one transaction without one of them spoiling the others.
``EmbeddedStore`` checks arguments and makes the steps; a backend carries them out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from . import json
from .protocol import JSON, AtomicOp, Put, Update

T = TypeVar("T")


class Row(NamedTuple):
    """A stored value.

    Attributes:
        text: Its canonical JSON text.
        expires_at: Unix seconds at which it is gone, or None to stay.
    """

    text: str
    expires_at: float | None


Read: TypeAlias = Callable[[str], Row | None]
"""Returns the live row of a key, or None."""

Writes: TypeAlias = Mapping[str, Row | None]
"""Key to its new row, or None to remove it."""


class Step(NamedTuple, Generic[T]):
    """One operation.

    Attributes:
        reads: The keys whose rows ``work`` may look at.
        writes: Whether it may write.
        work: ``(read, now) -> (writes, result)``, ``now`` in Unix seconds.
    """

    reads: Sequence[str]
    writes: bool
    work: Callable[[Read, float], tuple[Writes, T]]


def _expiry(ttl_s: float | None, now: float) -> float | None:
    """Return when a value written now is gone."""
    return None if ttl_s is None else now + ttl_s


def _get(key: str) -> Step[JSON]:
    """Read one value."""

    def work(read: Read, _now: float) -> tuple[Writes, JSON]:
        return {}, _value(key, read(key))

    return Step((key,), writes=False, work=work)


def _get_many(keys: Sequence[str]) -> Step[list[JSON]]:
    """Read several values."""

    def work(read: Read, _now: float) -> tuple[Writes, list[JSON]]:
        return {}, [_value(key, read(key)) for key in keys]

    return Step(keys, writes=False, work=work)


def _put(key: str, text: str, ttl_s: float | None) -> Step[None]:
    """Write one value."""

    def work(_read: Read, now: float) -> tuple[Writes, None]:
        return {key: Row(text, _expiry(ttl_s, now))}, None

    return Step((), writes=True, work=work)


def _delete(key: str) -> Step[bool]:
    """Remove one value."""

    def work(read: Read, _now: float) -> tuple[Writes, bool]:
        return {key: None}, read(key) is not None

    return Step((key,), writes=True, work=work)


def _add(key: str, amount: int, ttl_s: float | None) -> Step[int]:
    """Add to a counter."""

    def work(read: Read, now: float) -> tuple[Writes, int]:
        row, total = _added(key, read(key), amount, _expiry(ttl_s, now))
        return {key: row}, total

    return Step((key,), writes=True, work=work)


def _update(checks: Mapping[str, str | None], puts: Mapping[str, tuple[str, float | None]], rest: Update) -> Step[bool]:
    """Carry out an ``Update``.

    Args:
        checks: Its checks as canonical texts.
        puts: Its puts as canonical texts with their time to live in seconds.
        rest: The update itself, for its deletes and adds.
    """

    def work(read: Read, now: float) -> tuple[Writes, bool]:
        for key, expected in checks.items():
            row = read(key)
            if (None if row is None else row.text) != expected and not _means(key, row, expected):
                return {}, False
        writes: dict[str, Row | None] = {key: Row(text, _expiry(ttl_s, now)) for key, (text, ttl_s) in puts.items()}
        writes.update(dict.fromkeys(rest.deletes))
        for key, amount in rest.adds.items():
            writes[key], _ = _added(key, read(key), amount, None)
        return writes, True

    return Step((*checks, *rest.adds), writes=True, work=work)


def _run(op: AtomicOp, keys: Sequence[str], args: JSON) -> Step[JSON]:
    """Carry out the Python side of an ``AtomicOp``."""

    def work(read: Read, now: float) -> tuple[Writes, JSON]:
        changes, result = op.python([_value(key, read(key)) for key in keys], args)
        writes = {keys[index]: _new_row(change, now) for index, change in changes.items()}
        return writes, json.as_returned(result)

    return Step(keys, writes=True, work=work)


def _means(key: str, row: Row | None, expected: str | None) -> bool:
    """Return whether a row is another spelling of the expected value: another release of the encoder may have written it."""
    return row is not None and expected is not None and json.encode(_value(key, row)) == expected


def _value(key: str, row: Row | None) -> JSON:
    return None if row is None else json.decode(row.text, f"key {key!r}")


def _added(key: str, row: Row | None, amount: int, new_expires_at: float | None) -> tuple[Row, int]:
    total = json.counter(key, None if row is None else row.text, amount)
    return Row(str(total), new_expires_at if row is None else row.expires_at), total


def _new_row(change: Put | None, now: float) -> Row | None:
    if change is None:
        return None
    json.check_ttl(change.ttl_s)
    return Row(json.encode(change.value), _expiry(change.ttl_s, now))


class EmbeddedStore(ABC):
    """A ``StateStore`` over rows that a backend holds itself.

    A backend implements carrying out a step, scanning rows, probing and closing.
    """

    @abstractmethod
    def _carry_out(self, step: Step[T]) -> Awaitable[T]:
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
        json.check_key(key)
        return await self._carry_out(_get(key))

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``."""
        for key in keys:
            json.check_key(key)
        return await self._carry_out(_get_many(tuple(keys)))

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        json.check_key(key)
        json.check_ttl(ttl_s)
        await self._carry_out(_put(key, json.encode(value), ttl_s))

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        json.check_key(key)
        return await self._carry_out(_delete(key))

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        return await self.update(json.compare_and_set(key, expected, value, ttl_s))

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        json.check_key(key)
        json.check_amount(amount)
        json.check_ttl(ttl_s)
        return await self._carry_out(_add(key, amount, ttl_s))

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        json.check_prefix(prefix)
        return [(key, json.decode(text, f"key {key!r}")) for key, text in await self._scan(prefix)]

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        return await self._carry_out(_update(*json.encode_update(update), update))

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        json.check_keys(keys)
        json.encode_any(args)
        return await self._carry_out(_run(op, tuple(keys), args))
