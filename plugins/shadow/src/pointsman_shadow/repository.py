"""Mirrors in the store. Every change is one atomic step, so that no worker's figures are lost or added twice.

Keys, those of one mirror in one hash tag::

    {shadow:<mirror>}/state                   the state: phase, counts, figures
    {shadow:<mirror>}/result/<run>/<number>   one result; whoever writes one removes the one that has no room any more
    {shadow:<mirror>}/tokens/<day>            tokens spent or set aside on a UTC day
    {shadow:<mirror>}/money/<day>             millionths of a dollar, the same

Whoever writes a state checks that it is still the one that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pointsman.errors import Conflict, StoreCorrupt
from pointsman.store.base import JSON, Put, StateStore, Update

from . import codec
from .evidence import SIDES, Evidence, JsonObject

if TYPE_CHECKING:
    from .config import Mirror

_TRIES: Final = 20
#: Rows changed in one step.
_ROWS: Final = 200
#: What a side of a result has only while texts are kept.
_TEXTS: Final = frozenset({"text", "tools"})


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
        keeping: Mirror | None = None,
    ) -> Evidence:
        """Change a state; repeated when somebody else was faster.

        Args:
            mirror: Its name.
            step: Returns the next state; may raise, and then nothing is written.
            results: Results to write after those written so far; the step has counted them.
            keeping: How many results are kept, and how long.

        Raises:
            StoreCorrupt: the store holds something else there.
            StoreUnavailable: it may or may not have been written: do not repeat it.
            Conflict: others are faster all the time.
        """
        key = _key(mirror, "state")
        for _ in range(_TRIES):
            raw = await self._store.get(key)
            after = step(None if raw is None else codec.decode(raw))
            puts = {key: Put(codec.encode(after))}
            deletes: list[str] = []
            if keeping is not None:
                kept = results[-keeping.keep_results :] if keeping.keep_results else ()
                for number, result in enumerate(kept, after.results - len(kept)):
                    puts[_result(mirror, after.run, number)] = Put(result, keeping.keep_results_s)
                oldest = after.results - keeping.keep_results
                gone = range(max(oldest - len(results), 0), max(oldest, 0))
                deletes = [_result(mirror, after.run, number) for number in gone]
            if await self._store.update(Update(checks={key: raw}, puts=puts, deletes=deletes)):
                return after
        raise Conflict(f"the mirror {mirror!r} is being changed by somebody else all the time; try again")

    async def begin(self, mirror: str, step: Callable[[Evidence | None], Evidence]) -> Evidence:
        """Change a state, as ``change`` does; one that nobody can read counts as none."""
        try:
            return await self.change(mirror, step)
        except StoreCorrupt:
            after = step(None)
            await self._store.put(_key(mirror, "state"), codec.encode(after))
            return after

    async def results(self, mirror: str, evidence: Evidence, room: int, limit: int) -> list[Mapping[str, Any]]:
        """Return the newest results of the present run, the oldest of them first."""
        count = min(evidence.results, room, limit)
        if not count:
            return []
        numbers = range(evidence.results - count, evidence.results)
        found = await self._store.get_many([_result(mirror, evidence.run, number) for number in numbers])
        # Some may be missing: their time is over, or there was less room when they were written.
        return [row for row in found if isinstance(row, Mapping)]

    async def tidy(self, mirror: Mirror, evidence: Evidence, now: float) -> None:
        """Remove what is not to be kept: results of other runs, beyond the room or too old; texts.

        Args:
            mirror: The mirror as it is configured now.
            evidence: Its state.
            now: Unix seconds.
        """
        rows = await self._store.scan(_key(mirror.name, "result/"))
        present = _result(mirror.name, evidence.run, max(evidence.results - mirror.keep_results, 0))
        run = present.rpartition("/")[0]
        for start in range(0, len(rows), _ROWS):
            puts: dict[str, Put] = {}
            deletes: list[str] = []
            for key, row in rows[start : start + _ROWS]:
                left_s = _written_at(row) + mirror.keep_results_s - now
                if key.rpartition("/")[0] != run or key < present or left_s <= 0:
                    deletes.append(key)
                elif not mirror.keep_texts and (bare := _without_texts(row)) != row:
                    puts[key] = Put(bare, left_s)
            if puts or deletes:
                await self._store.update(Update(puts=puts, deletes=deletes))

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


def _result(mirror: str, run: int, number: int) -> str:
    # Their order as text is that of the numbers.
    return _key(mirror, f"result/{run}/{number:016d}")


def _written_at(row: JSON) -> float:
    at = row.get("at") if isinstance(row, Mapping) else None
    return at if isinstance(at, int | float) else 0.0


def _without_texts(row: JSON) -> JSON:
    if not isinstance(row, Mapping):
        return row
    return {
        name: {key: value for key, value in part.items() if key not in _TEXTS}
        if name in SIDES and isinstance(part, Mapping)
        else part
        for name, part in row.items()
    }


def _whole(value: JSON) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
