"""The operations of the embedded backends as pure steps over rows, carried out by whoever holds the rows.

A step reads rows, decides, and says what to write. It either raises before anything is written or is written as a
whole, so a backend may carry out many steps in one transaction without one of them spoiling the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from . import encoding
from .base import JSON, AtomicOp, Put, Update

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


def expiry(ttl_s: float | None, now: float) -> float | None:
    """Return when a value written now is gone."""
    return None if ttl_s is None else now + ttl_s


def get(key: str) -> Step[JSON]:
    """Read one value."""

    def work(read: Read, _now: float) -> tuple[Writes, JSON]:
        return {}, _value(key, read(key))

    return Step((key,), writes=False, work=work)


def get_many(keys: Sequence[str]) -> Step[list[JSON]]:
    """Read several values."""

    def work(read: Read, _now: float) -> tuple[Writes, list[JSON]]:
        return {}, [_value(key, read(key)) for key in keys]

    return Step(keys, writes=False, work=work)


def put(key: str, text: str, ttl_s: float | None) -> Step[None]:
    """Write one value."""

    def work(_read: Read, now: float) -> tuple[Writes, None]:
        return {key: Row(text, expiry(ttl_s, now))}, None

    return Step((), writes=True, work=work)


def delete(key: str) -> Step[bool]:
    """Remove one value."""

    def work(read: Read, _now: float) -> tuple[Writes, bool]:
        return {key: None}, read(key) is not None

    return Step((key,), writes=True, work=work)


def add(key: str, amount: int, ttl_s: float | None) -> Step[int]:
    """Add to a counter."""

    def work(read: Read, now: float) -> tuple[Writes, int]:
        row, total = _added(key, read(key), amount, expiry(ttl_s, now))
        return {key: row}, total

    return Step((key,), writes=True, work=work)


def update(checks: Mapping[str, str | None], puts: Mapping[str, tuple[str, float | None]], rest: Update) -> Step[bool]:
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
        writes: dict[str, Row | None] = {key: Row(text, expiry(ttl_s, now)) for key, (text, ttl_s) in puts.items()}
        writes.update(dict.fromkeys(rest.deletes))
        for key, amount in rest.adds.items():
            writes[key], _ = _added(key, read(key), amount, None)
        return writes, True

    return Step((*checks, *rest.adds), writes=True, work=work)


def run(op: AtomicOp, keys: Sequence[str], args: JSON) -> Step[JSON]:
    """Carry out the Python side of an ``AtomicOp``."""

    def work(read: Read, now: float) -> tuple[Writes, JSON]:
        changes, result = op.python([_value(key, read(key)) for key in keys], args)
        writes = {keys[index]: _new_row(change, now) for index, change in changes.items()}
        return writes, encoding.as_returned(result)

    return Step(keys, writes=True, work=work)


def _means(key: str, row: Row | None, expected: str | None) -> bool:
    """Say whether a row spells the expected value differently: another release of the encoder may have written it."""
    return row is not None and expected is not None and encoding.encode(_value(key, row)) == expected


def _value(key: str, row: Row | None) -> JSON:
    return None if row is None else encoding.decode(row.text, f"key {key!r}")


def _added(key: str, row: Row | None, amount: int, new_expires_at: float | None) -> tuple[Row, int]:
    total = encoding.counter(key, None if row is None else row.text, amount)
    return Row(str(total), new_expires_at if row is None else row.expires_at), total


def _new_row(change: Put | None, now: float) -> Row | None:
    if change is None:
        return None
    encoding.check_ttl(change.ttl_s)
    return Row(encoding.encode(change.value), expiry(change.ttl_s, now))
