"""The book and the tallies between the workers, through the store and off the request path.

Every worker writes what it has seen itself under its own name, one row a deployment, and reads what the others have
written. So nobody waits for anybody, a row that is lost costs nothing but its observations, and what a worker has left
behind counts on until it has decayed. Rows disappear by themselves after ``KEPT_HALF_LIVES`` half-lives.

::

    standing/<worker>/<deployment id>   what one worker knows about one deployment
    tally/<worker>                      its counts, by race name
    imported                            the performance file was read; disappears with the rows that came of it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .standing import Standing
from .tally import Tally

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.store.base import JSON

    from .book import Book

KEPT_HALF_LIVES: Final = 10
MIN_KEPT_S: Final = 86_400.0
_STANDING: Final = "standing/"
_TALLY: Final = "tally/"
_IMPORTED: Final = "imported"
#: Stands where a worker's name does: what was imported belongs to nobody.
_NOBODY: Final = "import"
_IMPORT: Final = f"{_STANDING}{_NOBODY}/"


class Sharing:
    """Exchanges observations with the store.

    Args:
        book: The standings.
        tallies: This worker's counts, by race name.
        services: For store, clock and the worker's name.

    Attributes:
        others: The counts of all other workers together, by race name.
        failures: Exchanges in a row that have failed.
    """

    def __init__(self, book: Book, tallies: Mapping[str, Tally], services: Services) -> None:
        self.others: Mapping[str, Tally] = {}
        self.failures = 0
        self._book = book
        self._tallies = tallies
        self._store = services.store
        self._clock = services.clock
        self._worker = services.worker
        self._ttl_s = max(MIN_KEPT_S, book.half_life_s * KEPT_HALF_LIVES)
        self._written: JSON = None

    async def exchange(self) -> None:
        """Write what is new and read what the others know.

        Raises:
            StoreError: the store failed; what was not written is written the next time.
        """
        try:
            await self._write()
            await self._read()
        except BaseException:
            self.failures += 1
            raise
        self.failures = 0

    async def _write(self) -> None:
        book, now = self._book, self._clock.now()
        # What changes from here on is for the next exchange: traffic may be quicker than the store.
        left, book.changed = book.changed, set()
        try:
            for deployment_id in tuple(left):
                if (standing := book.own.get(deployment_id)) is not None:
                    row = _row(deployment_id, standing, now)
                    await self._store.put(_key(self._worker, deployment_id), row, ttl_s=self._ttl_s)
                left.discard(deployment_id)
        finally:
            book.changed |= left
        counts: JSON = {name: tally.to_json() for name, tally in self._tallies.items() if tally.requests}
        if counts and counts != self._written:
            await self._store.put(f"{_TALLY}{self._worker}", counts, ttl_s=self._ttl_s)
            self._written = counts

    async def _read(self) -> None:
        book, now = self._book, self._clock.now()
        mine = f"{_STANDING}{self._worker}/"
        merged: dict[str, Standing] = {}
        for key, row in await self._store.scan(_STANDING):
            if key.startswith(mine) or not isinstance(row, Mapping):
                continue
            deployment_id, standing = row.get("deployment_id"), Standing.from_json(row, book.half_life_s)
            if standing is None or not isinstance(deployment_id, str):
                continue
            if deployment_id not in merged:
                merged[deployment_id] = Standing(book.half_life_s)
            merged[deployment_id].merge(standing, now)
        book.others = merged
        others: dict[str, Tally] = {}
        for key, row in await self._store.scan(_TALLY):
            if key == f"{_TALLY}{self._worker}" or not isinstance(row, Mapping):
                continue
            for name, counts in row.items():
                others.setdefault(name, Tally()).merge(Tally.from_json(counts))
        self.others = others

    # -- import -------------------------------------------------------------------------------------------------------

    async def knows_nothing(self) -> bool:
        """Say whether the store has no observations, or nothing but those of an import that has not come to its end."""
        rows = await self._store.scan(_STANDING)
        if not all(key.startswith(_IMPORT) for key, _ in rows):
            return False
        return not rows or await self._store.get(_IMPORTED) is None

    async def put_first(self, standings: Mapping[str, Standing]) -> None:
        """Write what was read at the start, and that it was read. Workers that start together write the same."""
        await self.put_imported(standings)
        await self._store.put(_IMPORTED, self._clock.now(), ttl_s=self._ttl_s)

    async def put_imported(self, standings: Mapping[str, Standing]) -> None:
        """Write what was imported, as a worker's that is gone. What was imported before is replaced."""
        now = self._clock.now()
        rows = {_key(_NOBODY, name): _row(name, standing, now) for name, standing in standings.items()}
        before = await self._store.scan(_IMPORT)
        for key, row in rows.items():
            await self._store.put(key, row, ttl_s=self._ttl_s)
        for key, _ in before:
            if key not in rows:
                await self._store.delete(key)
        await self._read()


def _row(deployment_id: str, standing: Standing, now: float) -> JSON:
    return {"deployment_id": deployment_id, **standing.to_json(now)}


def _key(worker: str, deployment_id: str) -> str:
    # Ids are the operator's: any characters, any length. A key has at most 512.
    return f"{_STANDING}{worker}/{hashlib.sha256(deployment_id.encode()).hexdigest()[:32]}"
