"""What can be done with a store beyond its protocol.

``ScopedStore`` is a part of a store as if it were the whole, ``Snapshot`` a view of a part that costs a dict lookup,
``modify`` a read-modify-write with optimistic locking, ``take`` a bounded counter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from ..errors import Conflict, StoreError
from . import json
from .protocol import JSON, AtomicOp, Put, StateStore, Update

T = TypeVar("T")

#: Tries of a read-modify-write before it counts as a conflict.
ATTEMPTS: Final = 8
_STEADY_TRIES: Final = 3


class ScopedStore:
    """Puts a prefix before every key that goes in, and takes it off every key that comes out.

    Args:
        store: The whole store.
        prefix: The prefix; together with it a key has at most as many characters as any key.
    """

    def __init__(self, store: StateStore, prefix: str) -> None:
        json.check_prefix(prefix)
        self._store = store
        self._prefix = prefix

    # Plain functions, which return the store's own coroutines: requests make several of these calls.

    def get(self, key: str) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.get``."""
        return self._store.get(self._full(key))

    def get_many(self, keys: Sequence[str]) -> Coroutine[Any, Any, list[JSON]]:
        """See ``StateStore.get_many``."""
        return self._store.get_many([self._full(key) for key in keys])

    def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> Coroutine[Any, Any, None]:
        """See ``StateStore.put``."""
        return self._store.put(self._full(key), value, ttl_s=ttl_s)

    def delete(self, key: str) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.delete``."""
        return self._store.delete(self._full(key))

    def compare_and_set(
        self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None
    ) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.compare_and_set``."""
        return self._store.compare_and_set(self._full(key), expected, value, ttl_s=ttl_s)

    def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> Coroutine[Any, Any, int]:
        """See ``StateStore.add``."""
        return self._store.add(self._full(key), amount, ttl_s=ttl_s)

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        pairs = await self._store.scan(self._prefix + prefix)
        return [(key.removeprefix(self._prefix), value) for key, value in pairs]

    def update(self, update: Update) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.update``."""
        return self._store.update(
            Update(
                checks=self._full_names(update.checks),
                puts=self._full_names(update.puts),
                deletes=[self._full(key) for key in update.deletes],
                adds=self._full_names(update.adds),
            )
        )

    def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.run``."""
        return self._store.run(op, [self._full(key) for key in keys], args)

    def ping(self) -> Coroutine[Any, Any, None]:
        """See ``StateStore.ping``."""
        return self._store.ping()

    async def close(self) -> None:
        """Do nothing: the code that opened the whole store closes it."""

    def _full(self, key: str) -> str:
        if type(key) is not str or not key:
            json.check_key(key)  # its message is about the key itself; all others are about the whole key
        return self._prefix + key

    def _full_names(self, values: Mapping[str, T]) -> dict[str, T]:
        return {self._full(key): value for key, value in values.items()}


def revision_key(prefix: str) -> str:
    """Return the key that counts the changes of the pairs under a prefix. It is not one of them."""
    return f"{prefix}@revision"


def with_revision(update: Update, prefix: str) -> Update:
    """Return the update with the revision of a prefix raised in the same atomic step, for every ``Snapshot`` to see.

    All writes under the prefix go through this. For a redis cluster the prefix contains the hash tag that
    all its keys share, such as ``{registry}/``.
    """
    return replace(update, adds={**update.adds, revision_key(prefix): 1})


class Snapshot:
    """All pairs under a prefix, in memory.

    A refresh reads the revision, and all pairs only if it has moved. A pair that has disappeared by itself at the end
    of its time to live moves no revision, so the pairs are read again when the view is ``max_age_s`` old, whatever the
    revision says: a dead pair is seen for up to ``max_age_s`` and one refresh interval longer. For an
    exact end, store its time in the value and compare.

    The pairs belong together: on a store that cannot scan in one step they are read again while the revision moves,
    up to three times. A refresh that fails leaves the view as it was.

    Args:
        store: The store.
        prefix: What the keys start with.
        on_change: Called with the new pairs when they differ from the ones before, before the view shows them. If
            it raises, the view stays as it was, the error goes to the caller of ``refresh``, and the next refresh
            tries again.
        max_age_s: Seconds after which everything is read again.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        store: StateStore,
        prefix: str,
        *,
        on_change: Callable[[Mapping[str, JSON]], None] | None = None,
        max_age_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._on_change = on_change
        self._max_age_s = max_age_s
        self._clock = clock
        self._items: Mapping[str, JSON] = MappingProxyType({})
        self._revision: JSON = None
        self._read_at: float | None = None
        self._refreshing = asyncio.Lock()

    @property
    def items(self) -> Mapping[str, JSON]:
        """The pairs, by their whole key. Read-only, and never changed: a refresh puts another mapping in its place."""
        return self._items

    @property
    def revision(self) -> int | None:
        """The revision of the pairs; None when nothing has been written with one yet."""
        return self._revision if isinstance(self._revision, int) else None

    def raising(self, update: Update) -> Update:
        """Return the update with the revision raised; see ``with_revision``."""
        return with_revision(update, self._prefix)

    async def refresh(self) -> bool:
        """Bring the view up to date; return whether the pairs have changed.

        Raises:
            StoreError: the store failed; the view is as it was.
        """
        async with self._refreshing:  # an older reading must not replace a newer one
            started_at = self._clock()
            revision = await self._store.get(revision_key(self._prefix))
            old = self._read_at is not None and started_at - self._read_at >= self._max_age_s
            if self._read_at is not None and revision == self._revision and not old:
                return False
            items, revision = await self._read(revision)
            changed = items != self._items
            if changed and self._on_change is not None:
                self._on_change(items)
            self._items, self._revision, self._read_at = items, revision, started_at
            return changed

    async def modify(
        self,
        change: Callable[[Mapping[str, JSON]], tuple[Update | None, T]],
        *,
        what: str | None = None,
        attempts: int = ATTEMPTS,
        pause: Callable[[int], Awaitable[object]] | None = None,
    ) -> T:
        """Change the pairs by what is computed from all of them, unless one has changed meanwhile; then compute again.

        Args:
            change: ``(pairs) -> (update, result)``; an update of None leaves everything as it is. The check of the
                revision, and its raising, are added. Called once for each try, so it has no effects of its own.
            what: What is modified, for the message.
            attempts: Tries in all.
            pause: Waits before the next try; gets the number of tries so far. None: at once.

        Returns:
            The result of the ``change`` that was written; the view shows it, unless the store fails to be read again.

        Raises:
            Conflict: others were faster each time; nothing was written.
            StoreError: the store failed.
        """
        revision = revision_key(self._prefix)
        for tried in range(1, attempts + 1):
            await self.refresh()
            update, result = change(self._items)
            if update is None:
                return result
            checked = replace(update, checks={**update.checks, revision: self._revision})
            if await self._store.update(self.raising(checked)):
                # The change is done, so a failure to read it back is not a failure of the change.
                with suppress(StoreError):
                    await self.refresh()
                return result
            if pause is not None and tried < attempts:
                await pause(tried)
        raise _conflict(what or f"what is below {self._prefix!r}")

    async def _read(self, revision: JSON) -> tuple[Mapping[str, JSON], JSON]:
        """Return the pairs, and the revision they have at least."""
        after = revision
        for _ in range(_STEADY_TRIES):
            revision = after
            pairs = dict(await self._store.scan(self._prefix))
            pairs.pop(revision_key(self._prefix), None)
            after = await self._store.get(revision_key(self._prefix))
            if after == revision:
                break
        return MappingProxyType(pairs), revision


async def modify(
    store: StateStore,
    key: str,
    change: Callable[[JSON], tuple[Put | Update | None, T]],
    *,
    what: str | None = None,
    attempts: int = ATTEMPTS,
) -> T:
    """Replace a value by what is computed from it, unless it has changed meanwhile; then compute again.

    Args:
        store: The store.
        key: The key of the value.
        change: ``(present) -> (write, result)``: ``present`` is the value or None, ``write`` a ``Put`` for the key, a
            whole ``Update`` (to which the check of the key is added) or None to leave everything as it is. Called once
            for each try, so it has no effects of its own.
        what: What is modified, for the message, for example ``"the mirror 'm'"``.
        attempts: Tries in all.

    Returns:
        The result of the ``change`` that was written.

    Raises:
        Conflict: others were faster each time; nothing was written.
        StoreError: the store failed.
    """
    for _ in range(attempts):
        present = await store.get(key)
        write, result = change(present)
        if write is None:
            return result
        update = Update(puts={key: write}) if isinstance(write, Put) else write
        if await store.update(replace(update, checks={**update.checks, key: present})):
            return result
    raise _conflict(what or f"the value of {key!r}")


def _conflict(what: str) -> Conflict:
    return Conflict(f"{what} was modified concurrently; retry")


def _take_python(values: Sequence[JSON], args: JSON) -> tuple[Mapping[int, Put | None], JSON]:
    given = cast("Mapping[str, JSON]", args)
    amount, limit = cast("int", given["amount"]), cast("int", given["limit"])
    taken = cast("int", values[0] or 0)
    total = taken + amount
    if total > limit:
        return {}, {"granted": False, "total": taken}
    return {0: Put(max(total, 0), ttl_s=cast("float", given["ttl_s"]))}, {"granted": True, "total": max(total, 0)}


TAKE: Final = AtomicOp(
    name="take",
    python=_take_python,
    lua="""
local args = json_decode(ARGV[1])
local taken = tonumber(redis.call('GET', KEYS[1]) or '0')
local total = taken + args.amount
if total > args.limit then
  return json_encode({granted = false, total = taken})
end
total = math.max(total, 0)
redis.call('SET', KEYS[1], json_encode(total), 'PX', math.ceil(args.ttl_s * 1000))
return json_encode({granted = true, total = total})
""",
)
"""Take from a bounded counter unless that would exceed the limit. Use ``take``."""


async def take(store: StateStore, key: str, amount: int, *, limit: int, ttl_s: float) -> tuple[bool, int]:
    """Take ``amount`` out of ``limit``, or nothing at all; a negative amount gives back, never beyond the whole.

    Args:
        store: The store.
        key: The counter of what has been taken.
        amount: How much to take.
        limit: The most that may be taken in all.
        ttl_s: Seconds after the last success at which all of it counts as given back.

    Returns:
        Whether it was granted, and how much is taken now.
    """
    json.check_amount(amount)
    json.check_amount(limit)
    json.check_ttl(ttl_s)
    result = await store.run(TAKE, [key], {"amount": amount, "limit": limit, "ttl_s": ttl_s})
    answer = cast("Mapping[str, JSON]", result)
    return cast("bool", answer["granted"]), cast("int", answer["total"])
