"""Keeps the mirrors of all workers in step through the store: flushes figures, adopts states, changes them on request."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from pointsman.errors import Conflict, NotFound, StoreCorrupt, StoreError, StoreUnavailable
from pointsman.events import MirrorGraduated

from . import evidence as states
from .evidence import Batch, Count, Evidence, Phase
from .repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dispatcher import Dispatcher
    from .mirror import Mirror

log: Final = logging.getLogger("pointsman.shadow")


_CAN_GRADUATE: Final = frozenset({Phase.RUNNING, Phase.PAUSED, Phase.FINISHED})
_CAN_RESUME: Final = frozenset({Phase.PAUSED, Phase.FINISHED, Phase.GRADUATED})


class _OutdatedError(Exception):
    """The run of a batch has ended."""


class Coordinator:
    """Keeps the mirrors' states in the store and in this worker the same.

    Args:
        dispatcher: The mirrors of this worker.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.repository = Repository(dispatcher.services.store)
        self.blind = False

    async def start(self) -> None:
        """Begin a run of each mirror that is new or defined differently; continue the others."""
        for mirror in self.dispatcher.mirrors.values():
            try:
                await self._start(mirror)
            except StoreCorrupt as err:
                _stop(mirror, err)

    async def _start(self, mirror: Mirror) -> None:
        now = self.dispatcher.services.clock.now()
        wanted = mirror.config.definition()

        def begin(state: Evidence | None) -> Evidence:
            if state is None:
                return states.begun(wanted, now, "config", "defined in the configuration")
            if state.definition == wanted:
                return state
            return states.begun(wanted, now, "config", "the definition has changed", run=state.run + 1)

        after = await self.repository.load(mirror.config.name)
        if after is None or after.definition != wanted:
            before, after = after, await self.repository.change(mirror.config.name, begin)
            if before is not None:
                log.info("%s: the definition has changed; run %d begins", mirror.config.name, after.run)
        _adopt(mirror, after)
        await self.repository.tidy(mirror.config, after, now)

    async def tick(self) -> None:
        """Look up versions, sweep, flush."""
        self.dispatcher.resolve()
        self.dispatcher.sweep()
        await self.flush()

    async def flush(self) -> None:
        """Add this worker's figures to the store, and adopt changes of other workers and of people.

        Figures that the store cannot take are kept. Figures that it may have taken are given up rather than counted
        twice. A mirror whose state cannot be read stops; the others continue.

        Raises:
            StoreError, Conflict, ValueError: the figures of a mirror are lost; those of the others are flushed.
        """
        failed: Exception | None = None
        for name, mirror in self.dispatcher.mirrors.items():
            try:
                state = await self.repository.load(name)
            except StoreCorrupt as err:
                _stop(mirror, err)
                continue
            except StoreUnavailable as err:
                if not self.blind:
                    log.warning("the store does not answer; figures are kept in memory: %s", err)
                self.blind = True
                return
            self.blind = False
            mirror.unreadable = None
            if state is not None:
                _adopt(mirror, state)
            if not mirror.batch:
                continue
            batch, mirror.batch = mirror.batch, Batch()
            pairs = batch.counts[Count.PAIRS]
            mirror.flushing += pairs
            try:
                _adopt(mirror, await self._grow(mirror, batch))
            except _OutdatedError:
                continue
            except (StoreError, Conflict, ValueError) as err:
                mirror.lost += len(batch.values)
                failed = failed or err
            finally:
                mirror.flushing -= pairs
        if failed is not None:
            raise failed

    async def _grow(self, mirror: Mirror, batch: Batch) -> Evidence:
        run, now = mirror.run, self.dispatcher.services.clock.now()
        wanted = mirror.config.definition()

        def grow(state: Evidence | None) -> Evidence:
            if state is None:
                # The store has been emptied.
                state = states.begun(wanted, now, "config", "the store was emptied")
            elif state.run != run or state.definition != wanted:
                raise _OutdatedError
            return states.grown(state, batch, mirror.config, now)

        return await self.repository.change(mirror.config.name, grow, batch.results, mirror.config)

    # -- requests of people -------------------------------------------------------------------------------------------------------

    def mirror(self, name: str) -> Mirror:
        """Return a mirror.

        Raises:
            NotFound: there is no mirror of this name.
        """
        mirror = self.dispatcher.mirrors.get(name)
        if mirror is None:
            known = ", ".join(self.dispatcher.mirrors) or "none"
            raise NotFound(f"there is no mirror {name!r}; known: {known}", param="mirror")
        return mirror

    async def state(self, name: str) -> Evidence:
        """Return a mirror's state, this worker's latest figures included.

        Raises:
            NotFound: there is no mirror of this name.
            StoreCorrupt: the state cannot be read.
        """
        mirror = self.mirror(name)
        await self.flush()
        state = await self.repository.load(name)
        if state is None:
            return states.begun(mirror.config.definition(), self.dispatcher.services.clock.now(), "config", "")
        return state

    async def pause(self, name: str, who: str, reason: str) -> Evidence:
        """Stop mirroring until ``resume``."""
        return await self._move(name, Phase.PAUSED, (who, reason), allowed={Phase.RUNNING})

    async def resume(self, name: str, who: str, reason: str) -> Evidence:
        """Mirror again: after a pause or a graduation, or for ``pairs_wanted`` more pairs."""
        return await self._move(name, Phase.RUNNING, (who, reason), allowed=_CAN_RESUME)

    async def reset(self, name: str, who: str, reason: str) -> Evidence:
        """Delete figures and results and begin a new run, also when the state cannot be read."""
        mirror = self.mirror(name)
        now = self.dispatcher.services.clock.now()
        mirror.batch = Batch()
        wanted = mirror.config.definition()

        def begin(state: Evidence | None) -> Evidence:
            last = mirror.run if state is None else state.run
            return states.begun(wanted, now, who, reason or "reset", run=last + 1)

        after = await self.repository.begin(name, begin)
        _adopt(mirror, after)
        await self.repository.tidy(mirror.config, after, now)
        return after

    async def graduate(self, name: str, who: str, reason: str) -> Evidence:
        """End the mirror and publish its figures to the other plugins.

        Raises:
            Conflict: it has no pair yet, or has graduated already.
        """
        mirror = self.mirror(name)
        await self.flush()

        def check(state: Evidence) -> None:
            if not state.count(Count.PAIRS):
                raise Conflict(f"the mirror {name!r} has not compared any pair yet, so there are no figures to publish")

        after = await self._move(name, Phase.GRADUATED, (who, reason), allowed=_CAN_GRADUATE, check=check)
        challenger = mirror.config.challenger
        self.dispatcher.services.publish(
            MirrorGraduated(
                mirror=name,
                model=mirror.config.model,
                challenger=mirror.target or mirror.config.challenger_text,
                version_id=None if isinstance(challenger, str) else challenger.version,
                who=who,
                reason=reason,
                at=after.changed_at,
                pairs=after.count(Count.PAIRS),
                confidence_ratio=mirror.config.confidence,
                figures={
                    str(figure.metric): {
                        "mean": figure.mean,
                        "low": figure.low,
                        "high": figure.high,
                        "count": figure.count,
                    }
                    for figure in states.figures(after, mirror.config)
                },
            )
        )
        return after

    async def _move(
        self,
        name: str,
        phase: Phase,
        cause: tuple[str, str],
        *,
        allowed: AbstractSet[Phase],
        check: Callable[[Evidence], None] | None = None,
    ) -> Evidence:
        who, reason = cause
        mirror = self.mirror(name)
        now = self.dispatcher.services.clock.now()

        def move(state: Evidence | None) -> Evidence:
            if state is None:
                raise Conflict(
                    f"the store has no state of the mirror {name!r}; a new run begins within {self._flush_s:g} s, retry then"
                )
            if state.phase not in allowed:
                raise Conflict(f"the mirror {name!r} is {state.phase}")
            if check is not None:
                check(state)
            if phase is Phase.RUNNING:
                return states.resumed(state, mirror.config, now, who, reason)
            return states.changed(state, phase, now, who, reason)

        after = await self.repository.change(name, move)
        log.info("%s: %s by %s: %s", name, phase, who, reason)
        _adopt(mirror, after)
        return after

    @property
    def _flush_s(self) -> float:
        return self.dispatcher.config.flush_s


def _stop(mirror: Mirror, err: StoreCorrupt) -> None:
    """Stop a mirror whose state cannot be read; the others continue."""
    if mirror.unreadable is None:
        log.error("%s: %s", mirror.config.name, err)
    mirror.unreadable = str(err)


def _adopt(mirror: Mirror, state: Evidence) -> None:
    """Adopt the state in the store."""
    mirror.unreadable = None
    mirror.superseded = state.definition != mirror.config.definition()
    if not mirror.superseded and mirror.run != state.run:
        if mirror.run:
            # Another worker or a person has begun a new run: the figures belong to the old one.
            mirror.batch = Batch()
        mirror.run = state.run
    mirror.phase = state.phase
    wanted = states.pairs_wanted(state, mirror.config)
    mirror.remaining = None if wanted is None else wanted - state.count(Count.PAIRS)
