"""Answers whose usage comes after their requests: background responses and batches.

What such an answer uses is in the stored answer, which a client may read any number of times, from any worker, or never:
the first that sees it, a read or a worker that looks after it, takes its note from the store and charges it.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final

from ..errors import StoreError

if TYPE_CHECKING:
    from ..store.protocol import JSON, StateStore

log: Final = logging.getLogger("pointsman")

#: Providers keep answers for thirty days, and a batch may take one.
_KEPT_S: Final = 32 * 86_400.0


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that an answer belongs to.

    Attributes:
        model: The model that it asked for.
        deployment: The id of the deployment that works for it; empty when it is not known.
        answer: How the gateway calls the answer; empty where no worker looks after it.
        endpoint: The kind of API; empty for a response.
        provider: LiteLLM's name of the provider, for a batch.
        account: The id of the deployment whose credentials a batch without a deployment was created with.
        tenant: Whose it is; empty when it is not known, as all that follow.
        key_hash: LiteLLM's hash of the key.
        key_alias: The key's name.
        user_id: The user.
        team_id: The team.
        org_id: The organisation.
    """

    model: str
    deployment: str
    answer: str = ""
    tenant: str = ""
    key_hash: str = ""
    key_alias: str = ""
    user_id: str = ""
    team_id: str = ""
    org_id: str = ""
    endpoint: str = ""
    provider: str = ""
    account: str = ""


class Deferred:
    """What has not been charged yet, shared by all workers.

    Args:
        store: The store; its keys are hashes of providers' ids.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def remember(self, answer_id: str, origin: Origin) -> bool:
        """Note that what an answer uses is charged when it is first seen; return whether it could be noted.

        Args:
            answer_id: The provider's id of the answer.
            origin: Its request.
        """
        value: dict[str, JSON] = {name: text for name, text in asdict(origin).items() if text}
        try:
            await self._store.put(key_of(answer_id), value, ttl_s=_KEPT_S)
        except StoreError as err:
            log.warning("the usage of an answer that comes later cannot be charged when it is read: %s", err)
            return False
        return True

    async def claim(self, answer_id: str) -> Origin | None:
        """Return the request that an answer belongs to, for the one who charges it; None for all others."""
        return await self.claim_key(key_of(answer_id))

    async def claim_key(self, key: str) -> Origin | None:
        """Return the request of a note, for the one who charges it; None for all others.

        Args:
            key: From ``pending``, or of ``key_of``.
        """
        try:
            found = _origin(await self._store.get(key))
            if found is None or not await self._store.delete(key):
                return None
        except StoreError as err:
            log.warning("an answer that was seen may not have been charged yet; it is when it is seen next: %s", err)
            return None
        return found

    async def is_pending(self, key: str) -> bool:
        """Return whether a note has not been taken yet; also when the store cannot be asked."""
        try:
            return await self._store.get(key) is not None
        except StoreError:
            return True

    async def pending(self) -> list[tuple[str, Origin]]:
        """Return all notes with their keys; none when the store cannot be asked."""
        try:
            found = await self._store.scan("")
        except StoreError as err:
            log.warning(
                "background responses and batches of earlier workers are not looked after until the next start: %s", err
            )
            return []
        return [(key, origin) for key, value in found if (origin := _origin(value)) is not None]


def key_of(answer_id: str) -> str:
    """Return the key of an answer's note.

    Args:
        answer_id: The provider's id of the answer.
    """
    return hashlib.sha256(answer_id.encode()).hexdigest()


_NAMES: Final = frozenset(field.name for field in fields(Origin))


def _origin(value: JSON) -> Origin | None:
    if not isinstance(value, dict):
        return None
    known = {name: str(text) for name, text in value.items() if name in _NAMES}
    return Origin(**{"model": "", "deployment": "", **known})
