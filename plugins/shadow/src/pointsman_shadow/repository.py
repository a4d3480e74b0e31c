"""Mirrors in the store. Every change is one atomic step, so that no worker's figures are lost or added twice.

Keys, those of one mirror in one hash tag::

    {shadow:<mirror>}/state           the state: phase, counts, figures
    {shadow:<mirror>}/result/<slot>   one result; the slots are a ring
    {shadow:<mirror>}/tokens/<day>    tokens spent or set aside on a UTC day
    {shadow:<mirror>}/money/<day>     millionths of a dollar, the same

Whoever writes a state checks that it is still the one that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pointsman.errors import Conflict
from pointsman.store.base import JSON, Put, StateStore, Update

from . import codec
from .evidence import Evidence, JsonObject

_TRIES: Final = 20


class Repository:
    """Reads and writes mirrors.

    Args:
        store: The plugin's store.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def load(self, mirror: str) -> Evidence | None:
        """Return a mirror's state, or None when there is none.

        Raises:
            StoreCorrupt: the store holds something else there.
        """
        raw = await self._store.get(_key(mirror, "state"))
        return None if raw is None else codec.decode(raw)

    async def change(
        self,
        mirror: str,
        step: Callable[[Evidence | None], Evidence],
        results: Sequence[JsonObject] = (),
        room: int = 0,
    ) -> Evidence:
        """Change a state; repeated when somebody else was faster.

        Args:
            mirror: Its name.
            step: Returns the next state; may raise, and then nothing is written.
            results: Results to write into the ring, in the slots that follow those written so far.
            room: How many slots the ring has.

        Raises:
            StoreUnavailable: it may or may not have been written: do not repeat it.
            Conflict: others are faster all the time.
        """
        key = _key(mirror, "state")
        kept = results[-room:] if room else ()
        for _ in range(_TRIES):
            raw = await self._store.get(key)
            after = step(None if raw is None else codec.decode(raw))
            first = after.results - len(kept)
            puts = {_slot(mirror, (first + n) % room): Put(result) for n, result in enumerate(kept)}
            puts[key] = Put(codec.encode(after))
            if await self._store.update(Update(checks={key: raw}, puts=puts)):
                return after
        raise Conflict(f"the mirror {mirror!r} is being changed by somebody else all the time; try again")

    async def results(self, mirror: str, evidence: Evidence, room: int, limit: int) -> list[Mapping[str, Any]]:
        """Return the newest results of the present run, the oldest of them first."""
        count = min(evidence.results, room, limit)
        if not count:
            return []
        slots = [_slot(mirror, number % room) for number in range(evidence.results - count, evidence.results)]
        found = await self._store.get_many(slots)
        # A slot may be missing or from an earlier run when the room has been changed in the configuration.
        return [row for row in found if isinstance(row, Mapping) and row.get("run") == evidence.run]

    async def forget_results(self, mirror: str) -> None:
        """Remove all results: those of a run that is over, and those in slots that no longer exist."""
        rows = await self._store.scan(_key(mirror, "result/"))
        for start in range(0, len(rows), 500):
            await self._store.update(Update(deletes=tuple(key for key, _ in rows[start : start + 500])))

    async def spent(self, mirror: str, day: str) -> tuple[int, int]:
        """Return tokens and millionths of a dollar, spent or set aside on a day."""
        tokens, money = await self._store.get_many(
            [budget_key(mirror, "tokens", day), budget_key(mirror, "money", day)]
        )
        return _whole(tokens), _whole(money)


def budget_key(mirror: str, what: str, day: str) -> str:
    """Return the key of a day's counter; ``what`` is ``tokens`` or ``money``."""
    return _key(mirror, f"{what}/{day}")


def _key(mirror: str, rest: str) -> str:
    return f"{{shadow:{mirror}}}/{rest}"


def _slot(mirror: str, number: int) -> str:
    return _key(mirror, f"result/{number:05d}")


def _whole(value: JSON) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
