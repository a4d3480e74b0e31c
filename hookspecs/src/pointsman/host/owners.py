"""Which tenant has made what a provider keeps: files, batches, videos. The provider knows one account only, the gateway's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .deferred import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..store.protocol import StateStore

#: What has not been used for a year is forgotten.
_KEPT_S: Final = 366 * 86_400.0


class Owners:
    """Shared by all workers.

    Args:
        store: The store; its keys are hashes of providers' ids.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def note(self, ids: Iterable[str], tenant: str) -> None:
        """Note whose these are.

        Raises:
            StoreError: it could not be noted.
        """
        for id_ in ids:
            await self._store.put(key_of(id_), tenant, ttl_s=_KEPT_S)

    async def of(self, ids: Sequence[str]) -> list[str | None]:
        """Return whose these are, in their order; None where it is not known.

        Raises:
            StoreError: the store cannot be asked.
        """
        found = await self._store.get_many([key_of(id_) for id_ in ids])
        return [tenant if isinstance(tenant, str) else None for tenant in found]
