"""The book and the tallies between the workers, through the store and off the request path.

Every worker writes what it has seen itself under its own name, one row a deployment, and reads what the others have
written. So nobody waits for anybody, a row that is lost costs nothing but its observations, and what a worker has left
behind counts on until it has decayed. Rows disappear by themselves after ``KEPT_HALF_LIVES`` half-lives.

::

    standing/<worker>/<deployment id>   what one worker knows about one deployment
    tally/<worker>                      its counts, by race name
    imported                            the performance file has been read
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
        while book.changed:
            deployment_id = book.changed.pop()
            standing = book.own.get(deployment_id)
            if standing is None:
                continue
            try:
                await self._store.put(
                    _key(self._worker, deployment_id), _row(deployment_id, standing, now), ttl_s=self._ttl_s
                )
            except BaseException:
                book.changed.add(deployment_id)
                raise
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
        """Claim the right to import, if nothing was ever written or imported; one worker gets it."""
        if await self._store.scan(_STANDING):
            return False
        return await self._store.compare_and_set(_IMPORTED, None, self._clock.now())

    async def put_imported(self, standings: Mapping[str, Standing]) -> None:
        """Write what was imported, as a worker's that is gone. What was imported before is replaced."""
        now = self._clock.now()
        for key, _ in await self._store.scan(f"{_STANDING}{_NOBODY}/"):
            await self._store.delete(key)
        for deployment_id, standing in standings.items():
            await self._store.put(_key(_NOBODY, deployment_id), _row(deployment_id, standing, now), ttl_s=self._ttl_s)
        await self._read()


def _row(deployment_id: str, standing: Standing, now: float) -> JSON:
    return {"deployment_id": deployment_id, **standing.to_json(now)}


def _key(worker: str, deployment_id: str) -> str:
    # Ids are the operator's: any characters, any length. A key has at most 512.
    return f"{_STANDING}{worker}/{hashlib.sha256(deployment_id.encode()).hexdigest()[:32]}"
