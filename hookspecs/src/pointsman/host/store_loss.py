"""Whether the store is the one that this worker began with, or has lost everything since.

A key names the store's life. A store that comes back without it, as a redis without persistence does, has been emptied;
the first worker that sees this names the new life, and every other one sees that the name is another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from ..store.protocol import JSON, StateStore

_KEY: Final = "{journal}life"
#: How long the loss is a problem in the status, in seconds: budgets of a day are right again after it.
SHOWN_S: Final = 86_400.0


class Lifetime:
    """The life of one worker's store.

    Args:
        store: The host's part of the store.
        new_id: Returns a new unique id.
        now: Returns Unix seconds.
    """

    def __init__(self, store: StateStore, new_id: Callable[[], str], now: Callable[[], float]) -> None:
        self._store = store
        self._new_id = new_id
        self._now = now
        self._known: JSON = None
        self._emptied_at: float | None = None
        self._when = ""

    async def emptied(self) -> bool:
        """Return whether the store has lost everything since the last call; the first call never finds that.

        Raises:
            StoreError: the store failed.
        """
        present = await self._store.get(_KEY)
        if present is None:
            await self._store.compare_and_set(_KEY, None, self._new_id())
            present = await self._store.get(_KEY)
        before, self._known = self._known, present
        if before in {None, present} or present is None:
            return False
        self._emptied_at, self._when = self._now(), "was emptied"
        return True

    def known(self, noted: Collection[str]) -> str:
        """Return the present life. Lives that were noted before the start, without this one, mean that the store is another.

        Args:
            noted: Every life that a plugin's own file has seen; empty when it is new.
        """
        if noted and self.name and self.name not in noted:
            self._emptied_at, self._when = (
                self._now(),
                "was emptied or exchanged while the gateway was down, which was found",
            )
        return self.name

    @property
    def lost(self) -> bool:
        """Whether the store has lost what is known of it."""
        return self._emptied_at is not None

    @property
    def name(self) -> str:
        """The name of the store's present life, the same in all workers; empty before the first call of ``emptied``."""
        return str(self._known or "")

    def problems(self) -> list[str]:
        """Return what has been lost, as one sentence, or nothing."""
        if self._emptied_at is None or self._now() - self._emptied_at > SHOWN_S:
            return []
        ago_s = self._now() - self._emptied_at
        return [
            (
                f"the store {self._when} {ago_s:.0f} s ago: what the configuration says has been written again; tenants, versions "
                "and experiments that were added over HTTP are lost, and what budgets had spent is, unless billing knows it; "
                "keep the store on a disk that survives its restart"
            )
        ]
