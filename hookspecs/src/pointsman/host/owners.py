"""Which tenant has made what a provider keeps: files, batches, videos. The provider knows one account only, the gateway's."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from .deferred import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..store.protocol import StateStore

#: What has not been used for a year is forgotten.
_KEPT_S: Final = 366 * 86_400.0


class Owners:
    """Shared by all workers.

    Args:
        store: The store; its keys are hashes of providers' ids.
        shared: Returns the patterns of what every tenant may use.
    """

    def __init__(self, store: StateStore, shared: Callable[[], Sequence[str]] = tuple) -> None:
        self._store = store
        self._shared = shared
        #: What is being written.
        self._noting: dict[str, str] = {}

    def is_shared(self, id_: str) -> bool:
        """Return whether the configuration says that every tenant may use this."""
        return any(fnmatchcase(id_, pattern) for pattern in self._shared())

    async def note(self, ids: Iterable[str], tenant: str) -> None:
        """Note whose these are.

        Raises:
            StoreError: it could not be noted.
        """
        keys = [key_of(id_) for id_ in ids]
        self._noting |= dict.fromkeys(keys, tenant)
        try:
            await asyncio.gather(*(self._store.put(key, tenant, ttl_s=_KEPT_S) for key in keys))
        finally:
            for key in keys:
                self._noting.pop(key, None)

    async def of(self, ids: Sequence[str]) -> list[str | None]:
        """Return whose these are, in their order; None where it is not known.

        Raises:
            StoreError: the store cannot be asked.
        """
        keys = [key_of(id_) for id_ in ids]
        found = [
            self._noting.get(key, tenant) for key, tenant in zip(keys, await self._store.get_many(keys), strict=True)
        ]
        return [tenant if isinstance(tenant, str) else None for tenant in found]
