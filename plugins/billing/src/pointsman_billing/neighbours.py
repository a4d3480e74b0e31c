"""Whether gateways with different stores use one outbox: neither knows what the other's workers hold, so it counts twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman.plugin import Services

    from .database import Database
    from .outbox import Outbox

#: Interval at which a worker notes that it uses the outbox, in seconds.
LOOK_S: Final = 10.0
#: How long such a note is believed, in seconds.
_FRESH_S: Final = 3 * LOOK_S
OTHER_STORE: Final = (
    "gateways with different stores use it, so that bills may count twice; give each an outbox of its own"
)


class Neighbours:
    """The other users of an outbox, as far as its file knows them.

    Args:
        outbox: The outbox.
        services: The host's services.
        life: The life of this gateway's store; empty where each worker has its own.

    Attributes:
        life: As given, or that of the store since it was emptied.
        problems: What is wrong, one sentence each.
    """

    def __init__(self, outbox: Outbox, services: Services, life: str) -> None:
        self._outbox = outbox
        self._services = services
        self._seen: dict[str, int] = {}
        self.life = life
        self.problems: list[str] = []

    async def look(self) -> None:
        """Note that this outbox is in use, and see who else does.

        Raises:
            OutboxUnavailable: not possible now.
        """
        if not self.life:
            return
        now, life = int(self._services.clock.now()), self.life
        users = await self._outbox.write(lambda db: db.used(life, now))
        # What ended a moment ago is noted, too: it is in use where the note is renewed.
        self._seen = users | self._seen
        others = [one for one, at in users.items() if one != life and self._seen[one] < at and now - at < _FRESH_S]
        self.problems = [OTHER_STORE] if others else []

    async def has_other_store(self) -> bool:
        """Return whether a gateway with another store may use the outbox: what its workers hold is not known here.

        Raises:
            OutboxUnavailable: the outbox cannot be read.
        """
        since, life = int(self._services.clock.now() - _FRESH_S), self.life

        def other(db: Database) -> bool:
            return any(one != life and at > since for one, at in db.users().items())

        return await self._outbox.read(other)
