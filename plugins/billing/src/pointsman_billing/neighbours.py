"""Who else uses the outbox, and who uses a copy of it.

Of gateways with different stores on one outbox, neither knows what the other's workers hold, so it counts twice. A copy of an
outbox has the same name in the store: each gateway overwrites the other's sums there, and takes its settlements for its own.
A worker that is found in the store under the outbox's name, and not in the outbox itself, uses a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pointsman.store.protocol import Put
from pointsman.store.views import modify

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.store.protocol import JSON

    from .database import Database
    from .outbox import Outbox

#: Interval at which a worker notes that it uses the outbox, in seconds.
LOOK_S: Final = 10.0
#: Looks after which a worker that lives has been seen to.
_LOOKS: Final = 3
#: How long such a note is believed, in seconds.
_FRESH_S: Final = 3 * LOOK_S
OTHER_STORE: Final = (
    "gateways with different stores use it, so that bills may count twice; give each an outbox of its own"
)

COPIED: Final = (
    "another gateway uses a copy of it, so that reports miss what one of them bills, and bills may count twice; stop one of "
    "them and start it again with an empty outbox"
)


class Neighbours:
    """The other users of an outbox, as far as its file and the store know them.

    Args:
        outbox: The outbox.
        services: The host's services.
        machine: The name of the outbox.
        life: The life of this gateway's store; empty where each worker has its own.

    Attributes:
        life: As given, or that of the store since it was emptied.
        elsewhere: Workers that have been seen to use a copy of the outbox. What they held when it was copied is theirs.
    """

    def __init__(self, outbox: Outbox, services: Services, machine: str, life: str) -> None:
        self._outbox = outbox
        self._services = services
        self._key = f"users/{machine}"
        self._seen: dict[str, int] = {}
        #: Workers in the store under this outbox's name, and when each was there as first seen, in Unix seconds.
        self._there: Mapping[str, int] = {}
        self.life = life
        #: Lives that the store had before it lost something: workers that have yet to notice it use it with these.
        self._former: set[str] = set()
        self._other_store = False
        self._copied = False
        self._looks = 0
        self.elsewhere: set[str] = set()
        self._stopped = asyncio.Event()

    def lives_on_as(self, life: str) -> None:
        """Note the life of the store after it has lost something."""
        self._former.add(self.life)
        self.life = life

    def stop(self) -> None:
        """Ask the outbox no more, which is about to be closed."""
        self._stopped.set()

    @property
    def problems(self) -> list[str]:
        """What is wrong, as far as the outbox and the store last told, one sentence each."""
        return [text for text, found in ((OTHER_STORE, self._other_store), (COPIED, self._copied)) if found]

    async def look(self) -> None:
        """Note that this outbox is in use, and see who else does.

        Raises:
            OutboxUnavailable, StoreError, Conflict: not possible now.
        """
        if not self.life or self._stopped.is_set():
            return
        now, life, worker = int(self._services.clock.now()), self.life, self._services.worker
        users = await self._outbox.write(lambda db: db.used(life, worker, now))
        # What ended a moment ago is noted, too: it is in use where the note is renewed.
        self._seen = users | self._seen
        own = {life, *self._former}
        others = [one for one, at in users.items() if one not in own and self._seen[one] < at and now - at < _FRESH_S]
        self._other_store = bool(others)
        there = await self._note_in_store(now)
        # As first seen: what changes afterwards is of a worker that lives.
        self._there = {one: self._there.get(one, at) for one, at in there.items()}
        if self._stopped.is_set():
            return
        # Each worker notes itself in the outbox before the store.
        here = await self._outbox.write(lambda db: self._answered(db, life, now))
        elsewhere = {one for one, at in there.items() if self._there[one] < at and here.get(one, 0) < at}
        self._copied = bool(elsewhere)
        self.elsewhere |= elsewhere
        self._looks += 1

    @staticmethod
    def _answered(db: Database, life: str, now: int) -> Mapping[str, int]:
        # Only now: heartbeats are not counted while the store is away, so that a later time would say it had gone back.
        db.answered(life, now)
        return db.workers()

    async def _note_in_store(self, now: int) -> Mapping[str, int]:
        def noted(present: JSON) -> tuple[Put, Mapping[str, int]]:
            known = present if isinstance(present, Mapping) else {}
            fresh = {one: at for one, at in known.items() if isinstance(at, int) and abs(now - at) < _FRESH_S}
            there = {**fresh, self._services.worker: now}
            return Put(there, ttl_s=_FRESH_S), there

        return await modify(self._services.store, self._key, noted, what="the users of the outbox")

    async def are_known(self) -> bool:
        """Return whether all users of the outbox are known, and use this store and no copy.

        What a gateway with another store holds is not known here; what a worker had held that has died, the gateway with
        the copy has as well.

        Raises:
            OutboxUnavailable: the outbox cannot be read.
        """
        # Where each worker has a store of its own, no look finds others.
        looked = not self.life or self._looks >= _LOOKS
        return looked and not self._copied and not await self._has_other_store()

    async def _has_other_store(self) -> bool:
        since, life = int(self._services.clock.now() - _FRESH_S), self.life

        def other(db: Database) -> bool:
            return any(one != life and at > since for one, at in db.users().items())

        return await self._outbox.read(other)
