"""Bills that wait until no other machine can settle their request any more; see ``pointsman.plugin.Takeovers``.

The outbox holds them: they are neither delivered nor counted. When their settlement is final they are released; when a
worker of another machine has taken it over, that machine bills it and they go.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from .errors import OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pointsman.plugin import Services

    from .database import Database
    from .neighbours import Neighbours
    from .outbox import Outbox

log: Final = logging.getLogger("pointsman.billing")


class Held:
    """The held bills of one machine, as one of its workers sees them.

    Args:
        outbox: Where they are.
        services: The host's services.
        on_events: Called when there are new events to deliver.
        neighbours: The other users of the outbox.
    """

    def __init__(
        self, outbox: Outbox, services: Services, on_events: Callable[[], None], neighbours: Neighbours
    ) -> None:
        self._neighbours = neighbours
        self._outbox = outbox
        self._services = services
        self._on_events = on_events
        self._final: list[str] = []
        self._taken: list[str] = []

    def release(self, request_ids: Sequence[str]) -> None:
        """Let bills count and be delivered, as soon as the outbox takes it."""
        self._final += request_ids
        self._services.tasks.spawn(self.flush(), name="release")

    def discard(self, request_ids: Sequence[str]) -> None:
        """Remove bills of requests that another machine bills, as soon as the outbox takes it."""
        _say_taken(len(request_ids))
        self._taken += request_ids
        self._services.tasks.spawn(self.flush(), name="discard")

    async def flush(self) -> None:
        """Write down what is known; what the outbox does not take is tried again by ``resolve``."""
        final, self._final = self._final, []
        taken, self._taken = self._taken, []
        if not final and not taken:
            return

        def write(db: Database) -> None:
            db.discard(taken)
            db.release(final)

        try:
            await self._outbox.write(write)
        except OutboxUnavailable as err:
            self._final += final
            self._taken += taken
            log.warning("%d bills stay held: %s", len(final) + len(taken), err)
        else:
            self._on_events()

    async def resolve(self) -> None:
        """Decide on what workers of this machine that have died have left, and repeat what has failed.

        Raises:
            OutboxUnavailable, StoreError: not possible now.
        """
        if self._taken:
            # What could not be removed in time may have come back since.
            taken = await self._services.takeovers.taken()
            self._taken = [id_ for id_ in self._taken if id_ in taken]
        await self.flush()
        held = await self._outbox.read(lambda db: db.held_by_others(self._services.worker))
        for worker in held.keys() & self._neighbours.elsewhere:
            ids = held.pop(worker)
            log.warning("worker %s decides in another copy of the outbox on %d bills that it held", worker, len(ids))
            await self._outbox.write(partial(_discard, worker, ids))
            self._on_events()
        if held and not await self._neighbours.are_known():
            return
        for worker, ids in held.items():
            if await self._services.takeovers.has_left(worker):
                taken = await self._services.takeovers.taken()
                await self._outbox.write(partial(_decide, worker, ids, taken))
                self._on_events()


def _decide(worker: str, request_ids: Sequence[str], taken: Collection[str], db: Database) -> None:
    # A request that has come back meanwhile is held by the worker that settles it now, which decides on it.
    still = db.held_by(worker, request_ids)
    if gone := [id_ for id_ in still if id_ in taken]:
        _say_taken(len(gone))
    db.discard(gone)
    db.release([id_ for id_ in still if id_ not in taken])


def _discard(worker: str, request_ids: Sequence[str], db: Database) -> None:
    db.discard(db.held_by(worker, request_ids))


def _say_taken(count: int) -> None:
    log.warning("another machine has taken over %d requests; they are billed there", count)
