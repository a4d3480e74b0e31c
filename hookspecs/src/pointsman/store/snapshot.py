"""A view of a part of the store that costs a dict lookup and is as old as its last refresh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from .base import JSON, StateStore, Update

_STEADY_TRIES: Final = 3


def revision_key(prefix: str) -> str:
    """Return the key that counts the changes of the pairs under a prefix. It is not one of them."""
    return f"{prefix}@revision"


def with_revision(update: Update, prefix: str) -> Update:
    """Return the update with the revision of a prefix raised in the same atomic step, for every ``Snapshot`` to see.

    Everyone who writes under the prefix writes through this. For a redis cluster the prefix contains the hash tag that
    all its keys share, such as ``{registry}/``.
    """
    return replace(update, adds={**update.adds, revision_key(prefix): 1})


class Snapshot:
    """All pairs under a prefix, in memory.

    A refresh reads the revision, and all pairs only if it has moved. A pair that has disappeared by itself at the end
    of its time to live moves no revision, so the pairs are read again when the view is ``max_age_s`` old, whatever the
    revision says: a dead pair is seen for up to ``max_age_s`` and one refresh interval longer. Who needs it sharper
    stores the time of its end in the value and compares.

    The pairs belong together: on a store that cannot scan in one step they are read again while the revision moves,
    up to three times. A refresh that fails leaves the view as it was.

    Args:
        store: The store.
        prefix: What the keys start with.
        on_change: Called with the new pairs when they differ from the ones before, before anybody else sees them. If
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
        """Bring the view up to date; say whether the pairs have changed.

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
