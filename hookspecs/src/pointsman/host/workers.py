"""The workers of one proxy as one: each writes its metrics to the store, and answers what another is asked.

A row of metrics has no time to live: when a worker ends, or is found dead, what it has counted is added to the sums of the
ended, in one atomic step, so that no sum ever falls. A question is one key that every worker reads once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..store import modify
from ..store.protocol import JSON, Put, StateStore, Update
from .counters import Family, Point, bounded, dump, lasting, load, merged

if TYPE_CHECKING:
    from ..plugin import Clock

log: Final = logging.getLogger("pointsman")

TICK_S: Final = 1.0
#: How old another worker's part of the metrics may be, in seconds.
PUBLISH_EVERY_S: Final = 10.0
#: Age of a worker's row from which what was true at its time is left out, in seconds: it may have been killed.
STALE_S: Final = 25.0
#: Age of a worker's row from which it counts as dead, in seconds.
DEAD_S: Final = 60.0
#: Longest wait for another worker's answer, in seconds.
ASK_S: Final = 3.0
_LOOK_S: Final = 0.1
_QUESTION_TTL_S: Final = 10.0
_MOST_QUESTIONS: Final = 32
_TRIES: Final = 5

#: One hash tag for all: a row is taken over in one step.
_ROW: Final = "{metrics}/worker/"
_ENDED: Final = "{metrics}/ended"
_ASKED: Final = "{metrics}/asked"
_ANSWER: Final = "{metrics}/answer/"


class Peers:
    """What one worker shares with the others.

    Args:
        store: The host's part of the shared store.
        worker: This worker's name.
        clock: Time.
        collect: Returns this worker's metrics.
        answer: Returns what this worker knows about a request, as JSON, or None.
        new_id: Returns a unique id.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        worker: str,
        clock: Clock,
        collect: Callable[[], list[Family]],
        answer: Callable[[str], JSON],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._key = _ROW + worker
        self._clock = clock
        self._collect = collect
        self._answer = answer
        self._new_id = new_id
        self._row: JSON = None
        self._published_at = float("-inf")
        #: What has been added to the sums of the ended while this worker was thought dead.
        self._taken: list[Family] = []
        self._answered: set[str] = set()
        self._left = False

    async def tick(self) -> None:
        """Answer questions; write the metrics when it is time to, and look for the dead."""
        if self._left:
            return
        await self._answer_questions()
        now = self._clock.monotonic()
        if now - self._published_at >= PUBLISH_EVERY_S:
            self._published_at = now
            await self.publish()
            await self._bury()

    # -- metrics ------------------------------------------------------------------------------------------------------

    async def metrics(self) -> list[Family]:
        """Return the metrics of all workers as one: this one's as of now, the others' at most ten seconds old.

        Raises:
            StoreError: the store failed.
        """
        rows = await self._store.scan(_ROW)
        now = self._clock.now()
        others = [
            parsed if _age_s(value, now) < STALE_S else lasting(parsed)
            for key, value in rows
            if key != self._key and (parsed := _parsed(value)) is not None
        ]
        ended = _parsed(await self._store.get(_ENDED)) or []
        return merged([self._own(), *others, ended])

    def _own(self) -> list[Family]:
        families = self._collect()
        return subtracted(families, self._taken) if self._taken else families

    async def publish(self) -> None:
        """Write this worker's row."""
        row: JSON = {"at": self._clock.now(), "families": dump(self._own())}
        # Not when another worker has taken the row over meanwhile: what it held is counted already.
        if await self._store.update(Update(checks={self._key: self._row}, puts={self._key: Put(row)})):
            self._row = row
            return
        present = await self._store.get(self._key)
        if present is None and self._row is not None:
            self._taken = merged([self._taken, lasting(_parsed(self._row) or [])])
        self._row = present

    async def leave(self) -> None:
        """Add this worker's sums to those of the ended."""
        await self.publish()
        self._left = True
        if self._row is not None:
            await self._end(self._key, self._row)

    async def _bury(self) -> None:
        now = self._clock.now()
        for key, value in await self._store.scan(_ROW):
            if key != self._key and _age_s(value, now) >= DEAD_S:
                await self._end(key, value)

    async def _end(self, key: str, row: JSON) -> None:
        for _ in range(_TRIES):
            if await self._store.get(key) != row:
                return  # another worker was faster, or it lives
            present = await self._store.get(_ENDED)
            sums = bounded(merged([_parsed(present) or [], lasting(_parsed(row) or [])]))
            ended: JSON = {"at": self._clock.now(), "families": dump(sums)}
            update = Update(checks={key: row, _ENDED: present}, puts={_ENDED: Put(ended)}, deletes=[key])
            if await self._store.update(update):
                return

    # -- questions ----------------------------------------------------------------------------------------------------

    async def ask(self, request_id: str) -> JSON:
        """Return what another worker knows about a request, or None when none has answered in time.

        Raises:
            StoreError: the store failed.
            Conflict: the question could not be written.
        """
        question = self._new_id()
        self._answered.add(question)

        def add(present: JSON) -> tuple[Put, None]:
            others = list(present.items())[-_MOST_QUESTIONS:] if isinstance(present, Mapping) else []
            return Put({**dict(others), question: request_id}, ttl_s=_QUESTION_TTL_S), None

        await modify(self._store, _ASKED, add, what="the questions to other workers")
        deadline = self._clock.monotonic() + ASK_S
        while self._clock.monotonic() < deadline:
            answer = await self._store.get(_ANSWER + question)
            if answer is not None:
                return answer
            await self._clock.sleep(_LOOK_S)
        return None

    async def _answer_questions(self) -> None:
        asked = await self._store.get(_ASKED)
        if not isinstance(asked, Mapping):
            self._answered.clear()
            return
        for question, request_id in asked.items():
            if question in self._answered:
                continue
            self._answered.add(question)
            answer = self._answer(request_id) if isinstance(request_id, str) else None
            if answer is not None:
                await self._store.put(_ANSWER + question, answer, ttl_s=_QUESTION_TTL_S)


def _age_s(row: Any, now: float) -> float:
    at = row.get("at") if isinstance(row, Mapping) else None
    return now - at if isinstance(at, int | float) else float("inf")


def _parsed(value: Any) -> list[Family] | None:
    if not isinstance(value, Mapping):
        return None
    try:
        return load(value.get("families"))
    except ValueError as err:
        log.warning("metrics of another worker are left out: %s", err)
        return None


def subtracted(families: list[Family], counted: list[Family]) -> list[Family]:
    """Return the metrics without what has been counted elsewhere."""
    known = {(family.name, point.labels): point for family in counted for point in family.points}
    result = []
    for family in families:
        points = []
        for point in family.points:
            less = known.get((family.name, point.labels))
            if less is None:
                points.append(point)
                continue
            counts = tuple(a - b for a, b in zip(point.counts, less.counts, strict=False))
            points.append(Point(point.labels, point.value - less.value, counts, point.exemplars))
        result.append(Family(family.name, family.kind, family.unit, family.description, family.bounds, tuple(points)))
    return result
