"""Which tenant has made what a provider keeps: files, batches, videos. The provider knows one account only, the gateway's."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from .deferred import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..store.protocol import JSON, StateStore

#: What has not been used for a year is forgotten.
_KEPT_S: Final = 366 * 86_400.0
_MOST_TOKENS: Final = 10**9


class Note(NamedTuple):
    """What is known of an object.

    Attributes:
        tenant: Whose it is; None when it is not known.
        tokens: Of an answer that a provider keeps, how many tokens those who go on from it read again; 0 when it is not known.
    """

    tenant: str | None = None
    tokens: int = 0


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
        self._noting: dict[str, JSON] = {}

    def is_shared(self, id_: str) -> bool:
        """Return whether the configuration says that every tenant may use this."""
        return any(fnmatchcase(id_, pattern) for pattern in self._shared())

    async def note(self, ids: Iterable[str], tenant: str, tokens: int = 0) -> None:
        """Note whose these are.

        Args:
            ids: The provider's ids.
            tenant: Whose they are.
            tokens: As in ``Note``.

        Raises:
            StoreError: it could not be noted.
        """
        keys = [key_of(id_) for id_ in ids]
        value: JSON = [tenant, min(tokens, _MOST_TOKENS)] if tokens > 0 else tenant
        self._noting |= dict.fromkeys(keys, value)
        try:
            await asyncio.gather(*(self._store.put(key, value, ttl_s=_KEPT_S) for key in keys))
        finally:
            for key in keys:
                self._noting.pop(key, None)

    async def of(self, ids: Sequence[str]) -> list[str | None]:
        """Return whose these are, in their order; None where it is not known.

        Raises:
            StoreError: the store cannot be asked.
        """
        return [note.tenant for note in await self.notes(ids)]

    async def notes(self, ids: Sequence[str]) -> list[Note]:
        """Return what is known of these, in their order.

        Raises:
            StoreError: the store cannot be asked.
        """
        keys = [key_of(id_) for id_ in ids]
        found = await self._store.get_many(keys)
        return [_note(self._noting.get(key, value)) for key, value in zip(keys, found, strict=True)]


def _note(value: JSON) -> Note:
    match value:
        case str():
            return Note(value)
        case [str(tenant), int(tokens)]:
            return Note(tenant, tokens)
    return Note()
