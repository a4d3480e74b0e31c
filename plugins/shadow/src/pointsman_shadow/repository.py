"""Mirrors in the store. Every change is one atomic step, so that no worker's figures are lost or added twice.

Keys, those of one mirror in one hash tag::

    {shadow:<mirror>}/state                   the state: phase, counts, figures
    {shadow:<mirror>}/result/<run>/<number>   one result; writing one removes the one that exceeds keep_results
    {shadow:<mirror>}/tokens/<day>            tokens spent or reserved on a UTC day
    {shadow:<mirror>}/money/<day>             millionths of a dollar, the same

A write of a state checks that the state is still the one that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import StoreCorrupt
from pointsman.store import JSON, Put, StateStore, Update, modify

from .evidence import Evidence, JsonObject
from .results import without_texts

if TYPE_CHECKING:
    from .config import MirrorConfig

#: Every worker flushes to the same key, so a few conflicts in succession are normal.
_ATTEMPTS: Final = 20
#: Rows changed in one step.
_ROWS: Final = 200

_EVIDENCE: Final = TypeAdapter(Evidence)


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
            StoreCorrupt: the stored value is not a state.
        """
        raw = await self._store.get(_key(mirror, "state"))
        return None if raw is None else decode(raw)

    async def change(
        self,
        mirror: str,
        step: Callable[[Evidence | None], Evidence],
        results: Sequence[JsonObject] = (),
        keeping: MirrorConfig | None = None,
    ) -> Evidence:
        """Change a state; repeated when another worker has changed it in between.

        Args:
            mirror: Its name.
            step: Returns the next state; may raise, and then nothing is written.
            results: Results to write after those written so far; the step has counted them.
            keeping: How many results are kept, and how long.

        Raises:
            StoreCorrupt: the stored value is not a state.
            StoreUnavailable: the change may or may not have been written: do not repeat it.
            Conflict: the state was modified concurrently at every try.
        """
        key = _key(mirror, "state")

        def change(raw: JSON) -> tuple[Update, Evidence]:
            after = step(None if raw is None else decode(raw))
            puts = {key: Put(encode(after))}
            deletes: list[str] = []
            if keeping is not None:
                kept = results[-keeping.keep_results :] if keeping.keep_results else ()
                for number, result in enumerate(kept, after.results - len(kept)):
                    puts[_result(mirror, after.run, number)] = Put(result, keeping.keep_results_s)
                oldest = after.results - keeping.keep_results
                gone = range(max(oldest - len(results), 0), max(oldest, 0))
                deletes = [_result(mirror, after.run, number) for number in gone]
            return Update(puts=puts, deletes=deletes), after

        return await modify(self._store, key, change, what=f"the mirror {mirror!r}", attempts=_ATTEMPTS)

    async def begin(self, mirror: str, step: Callable[[Evidence | None], Evidence]) -> Evidence:
        """Change a state, as ``change`` does; one that cannot be read counts as none."""
        try:
            return await self.change(mirror, step)
        except StoreCorrupt:
            after = step(None)
            await self._store.put(_key(mirror, "state"), encode(after))
            return after

    async def results(self, mirror: str, evidence: Evidence, room: int, limit: int) -> list[Mapping[str, Any]]:
        """Return the newest results of the present run, the oldest of them first."""
        count = min(evidence.results, room, limit)
        if not count:
            return []
        numbers = range(evidence.results - count, evidence.results)
        found = await self._store.get_many([_result(mirror, evidence.run, number) for number in numbers])
        # Some may be missing: they have expired, or keep_results was smaller when they were written.
        return [row for row in found if isinstance(row, Mapping)]

    async def tidy(self, mirror: MirrorConfig, evidence: Evidence, now: float) -> None:
        """Remove what the configuration does not keep: results of other runs, too many or too old; texts.

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
                elif not mirror.keep_texts and (bare := without_texts(row)) != row:
                    puts[key] = Put(bare, left_s)
            if puts or deletes:
                await self._store.update(Update(puts=puts, deletes=deletes))

    async def spent(self, mirror: str, day: str) -> tuple[int, int]:
        """Return tokens and millionths of a dollar, spent or reserved on a day."""
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


def _whole(value: JSON) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def encode(evidence: Evidence) -> Any:
    """Return a state as JSON."""
    return _EVIDENCE.dump_python(evidence, mode="json")


def decode(raw: JSON) -> Evidence:
    """Return the state of a JSON value.

    Raises:
        StoreCorrupt: it is not a state.
    """
    try:
        return _EVIDENCE.validate_python(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(f"a mirror's state in the store cannot be read: {where}: {first['msg']}") from err
