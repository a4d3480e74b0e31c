"""Whether the store is the one that this worker began with, or has lost something since.

A key names the store's life, another one counts the heartbeats of all workers, a third one says when the latest was. A
store that comes back without them, as a redis without persistence does, has been emptied. One that has counted fewer
heartbeats than before has gone back to an earlier state, as a redis does that reads its last snapshot after a crash. The
first worker that sees either names the new life, and every other one sees that the name is another. A loss without a
heartbeat in it is not noticed.

A worker that starts cannot tell whether the store went back a moment ago or all workers were down. If the latest heartbeat
is old, it leaves that time as it is, and takes nothing over, until each living worker has looked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from ..store.protocol import JSON, Put, StateStore, Update
from .journal_rows import HEARTBEAT_TTL_S

log: Final = logging.getLogger("pointsman")

_KEY: Final = "{journal}life"
_BEATS: Final = "{journal}beats"
_BEAT_AT: Final = "{journal}beat_at"
#: All workers together send fewer, so that the Unix time times this number is more than they have ever counted.
_MOST_BEATS_A_SECOND: Final = 1000
#: The latest heartbeat of a worker that leaves ``_BEAT_AT`` as it is.
_QUIET_AT: Final = "{journal}quiet_at"
#: The life once more, for a server that drops one of the two.
_COPY: Final = "{journal}life_copy"
#: How long the loss is a problem in the status, in seconds: budgets of a day are right again after it.
SHOWN_S: Final = 86_400.0
#: How much later than the store's last heartbeat a plugin's file may say that it was used, in seconds: it is noted every ten
#: seconds, and clocks differ.
_NOTED_LATER_S: Final = 60.0
#: Lives that are remembered in the store.
_MOST_FORMER: Final = 100
_EMPTIED: Final = (
    "what the configuration says has been written again; tenants, versions and experiments that were added over HTTP are lost, "
    "and what budgets had spent is, unless billing knows it; keep the store on a disk that survives its restart"
)
_WENT_BACK: Final = (
    "what was changed over HTTP since then is lost, and what budgets had spent since then is, unless billing knows it; let the "
    "store write everything to its disk (redis: appendonly yes)"
)

_CLOCK: Final = (
    "the clock has been set back since this gateway last ran, so that a store that went back meanwhile is not found"
)


class Lifetime:
    """The life of one worker's store.

    Args:
        store: The host's part of the store.
        new_id: Returns a new unique id.
        now: Returns Unix seconds.

    Attributes:
        since: Unix seconds since which what was written is lost; 0 when everything is.
    """

    def __init__(self, store: StateStore, new_id: Callable[[], str], now: Callable[[], float]) -> None:
        self._store = store
        self._new_id = new_id
        self._now = now
        #: Every life that this worker has seen, the present one last.
        self._seen: list[str] = []
        self._life: JSON = None
        #: The latest heartbeat before the first one of this worker; 0 afterwards.
        self._beat_at = 0.0
        #: Heartbeats that the store has at least.
        self._beats = 0
        #: When this worker started, if others may not have seen yet that the store went back.
        self._quiet_at: float | None = None
        #: Whether the present life is still called as it was before the loss.
        self._unnamed = False
        self._lost_at: float | None = None
        self._when = ""
        self.since = 0.0

    def beat(self) -> Update:
        """Return the step that counts a heartbeat; call ``beaten`` when it has been carried out."""
        return Update(
            puts={_QUIET_AT if self._lately(self._quiet_at) else _BEAT_AT: Put(self._now())}, adds={_BEATS: 1}
        )

    def beaten(self) -> None:
        """Note that the store has counted a heartbeat."""
        self._beats += 1
        self._beat_at = 0.0

    async def lost_something(self) -> bool:
        """Return whether the store has lost something since the last call; the first call never finds that.

        Call it before each ``beat``.

        Raises:
            StoreError: the store failed; the next call finds what this one would have found.
        """
        keys = [_KEY, _COPY, _BEATS, _BEAT_AT, _QUIET_AT]
        life, copy, beats, beat_at, quiet_at = await self._store.get_many(keys)
        if beats is None and (beat_at is not None or quiet_at is not None):
            # One step writes the count and a time, so a server that drops keys has dropped the count.
            beats = await self._count_from(int(self._now() * _MOST_BEATS_A_SECOND))
        count = int(_number(beats))
        if life is None:
            # Where the heartbeats are still counted, nothing else is missing: a server that drops keys has dropped this one.
            known = (copy or self.name) if 0 < count >= self._beats else None
            life = await self._put_life(None, known or self._new_id())
        elif count < self._beats and _name(life) in self._seen:
            life = await self._rename(life, _number(beat_at) or self._now())
        elif copy != life:
            life = await self._put_life(life, life)
        self._life, self._beats = life, count
        if not self._seen:
            self._beat_at = max(_number(beat_at), _number(quiet_at))
            self._seen.append(_name(life))
            if (count and not self._lately(_number(beat_at))) or self._lately(_named_at(life)):
                self._quiet_at = self._now()
            return False
        if life is None or _name(life) == self.name:
            return False
        self.since = _since(life, self._seen)
        self._seen.append(_name(life))
        self._lose("" if self.since else "was emptied")
        return True

    async def is_settled(self) -> bool:
        """Return whether heartbeats in the store show which workers live, and each has removed what came back and is settled.

        That takes ``HEARTBEAT_TTL_S`` after a loss, and after a start that may have followed one.

        Raises:
            StoreError: the store failed.
        """
        if self._lately(self._lost_at) or self._lately(self._quiet_at):
            return False
        return _number(await self._store.get(_BEATS)) >= self._beats

    def _lately(self, at: float | None) -> bool:
        """Return whether a living worker may not have sent a heartbeat since then. Clocks may be set back."""
        return at is not None and abs(self._now() - at) <= HEARTBEAT_TTL_S

    async def _count_from(self, count: int) -> JSON:
        """Count heartbeats from here, if they are not counted; return their count as it is then."""
        await self._store.compare_and_set(_BEATS, None, count)
        return await self._store.get(_BEATS)

    async def _rename(self, life: JSON, since: float) -> JSON:
        """Name the life of a store that has lost what was written since then; return it as it is then."""
        former = [*_former(life), [_name(life), since]]
        renamed: JSON = {"life": self._new_id(), "at": self._now(), "former": former[-_MOST_FORMER:]}
        return await self._put_life(life, renamed)

    async def _put_life(self, present: JSON, life: JSON) -> JSON:
        """Write the life, with its copy, if it is still the present one; return it as it is then."""
        await self._store.update(Update(checks={_KEY: present}, puts={_KEY: Put(life), _COPY: Put(life)}))
        return await self._store.get(_KEY)

    def known(self, noted: Collection[str]) -> str:
        """Return the present life, and compare it with what was noted before the start.

        Lives without this one mean that the store is another, or has lost something; a time that is later than its last
        heartbeat, that it has gone back.

        Args:
            noted: Every life that a plugin's own file has seen, where known with the Unix seconds at which it was last used;
                empty when the file is new.
        """
        if noted and self.name and self.name not in noted:
            self.since = _since(self._life, noted)
            self._lose(
                f"{'' if self.since else 'was emptied or exchanged '}while the gateway was down, which was found"
            )
        elif (
            isinstance(noted, Mapping) and self._beat_at and noted.get(self.name, 0.0) > self._beat_at + _NOTED_LATER_S
        ):
            if noted[self.name] > self._now() + _NOTED_LATER_S:
                log.warning("%s", _CLOCK)
                return self.name
            self.since, self._unnamed = self._beat_at, True
            self._lose("while the gateway was down, which was found")
        return self.name

    async def name_what_was_found(self) -> None:
        """Name the new life of a store that went back while the gateway was down.

        Raises:
            StoreError: the store failed.
        """
        if self._unnamed:
            life = await self._store.get(_KEY)
            if _name(life) == self.name:
                life = await self._rename(life, self.since)
            self._seen.append(_name(life))
            self._unnamed = False

    def _lose(self, when: str) -> None:
        self._lost_at, self._when = self._now(), when

    @property
    def lost(self) -> bool:
        """Whether the store has lost what is known of it."""
        return self._lost_at is not None

    @property
    def name(self) -> str:
        """The name of the store's present life, the same in all workers; empty before the first look."""
        return self._seen[-1] if self._seen else ""

    def problems(self) -> list[str]:
        """Return what has been lost, as one sentence, or nothing."""
        if self._lost_at is None or self._now() - self._lost_at > SHOWN_S:
            return []
        ago_s = self._now() - self._lost_at
        if not self.since:
            return [f"the store {self._when} {ago_s:.0f} s ago: {_EMPTIED}"]
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        return [
            f"the store went back {self._when + ' ' if self._when else ''}{ago_s:.0f} s ago to what it had at {since}: {_WENT_BACK}"
        ]


def _name(life: JSON) -> str:
    return str(life["life"] if isinstance(life, Mapping) else life or "")


def _named_at(life: JSON) -> float:
    """Return the Unix seconds at which a store that has gone back got its name; 0 for every other."""
    return _number(life.get("at")) if isinstance(life, Mapping) else 0.0


def _former(life: JSON) -> list[Any]:
    """Return the former lives of a store that has gone back, with the Unix seconds since which each has lost what was written."""
    return list(cast("Sequence[Any]", life["former"])) if isinstance(life, Mapping) else []


def _since(life: JSON, seen: Collection[str]) -> float:
    """Return since when what was written is lost, after the last of these lives: 0 where the store knows none of them."""
    former = _former(life)
    last = max((index for index, (name, _) in enumerate(former) if name in seen), default=None)
    return 0.0 if last is None else min(float(since) for _, since in former[last:])


def _number(value: JSON) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
