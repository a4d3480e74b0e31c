"""What the workers know of each mirror together: handed in, read, changed by people, handed over."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from pointsman.errors import Conflict, NotFound, StoreCorrupt, StoreError, StoreUnavailable
from pointsman.types import MirrorGraduated

from . import evidence as states
from .evidence import Batch, Count, Evidence, Phase
from .repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Engine
    from .line import Line

log: Final = logging.getLogger("pointsman.shadow")


_UNDER_WAY: Final = frozenset({Phase.RUNNING, Phase.PAUSED, Phase.FINISHED})
_OVER: Final = frozenset({Phase.PAUSED, Phase.FINISHED, Phase.GRADUATED})


class _OutdatedError(Exception):
    """The run that a batch belongs to is over."""


class Desk:
    """Keeps the mirrors' states.

    Args:
        engine: The mirrors of this worker.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.repository = Repository(engine.services.store)
        self.blind = False

    async def start(self) -> None:
        """Begin the mirrors that have never been begun, or that are defined differently now; take up the others."""
        for line in self.engine.lines.values():
            try:
                await self._start(line)
            except StoreCorrupt as err:
                _unreadable(line, err)

    async def _start(self, line: Line) -> None:
        mirror, now = line.mirror, self.engine.services.clock.now()
        wanted = mirror.definition()

        def begin(state: Evidence | None) -> Evidence:
            if state is None:
                return states.begun(wanted, now, "config", "in the configuration")
            if state.definition == wanted:
                return state
            return states.begun(wanted, now, "config", "the configuration defines it differently", run=state.run + 1)

        after = await self.repository.load(mirror.name)
        if after is None or after.definition != wanted:
            before, after = after, await self.repository.change(mirror.name, begin)
            if before is not None:
                log.info("%s: the configuration defines it differently; run %d begins", mirror.name, after.run)
        _take(line, after)
        await self.repository.tidy(mirror, after, now)

    async def tick(self) -> None:
        """Look up versions, sweep, hand in."""
        self.engine.resolve()
        self.engine.sweep()
        await self.hand_in()

    async def hand_in(self) -> None:
        """Give the store what was seen, and learn what others have changed.

        What the store cannot take now is kept, unless it may have been taken: it is given up rather than counted twice.
        A mirror whose state cannot be read stops, alone.

        Raises:
            StoreError, Conflict, ValueError: what a mirror has shown is lost; the other mirrors' is handed in.
        """
        failed: Exception | None = None
        for name, line in self.engine.lines.items():
            try:
                state = await self.repository.load(name)
            except StoreCorrupt as err:
                _unreadable(line, err)
                continue
            except StoreUnavailable as err:
                if not self.blind:
                    log.warning("the store does not answer; what the mirrors show is kept meanwhile: %s", err)
                self.blind = True
                return
            self.blind = False
            line.unreadable = None
            if state is not None:
                _take(line, state)
            if not line.batch:
                continue
            batch, line.batch = line.batch, Batch()
            pairs = batch.counts[Count.PAIRS]
            line.handing += pairs
            try:
                _take(line, await self._grow(line, batch))
            except _OutdatedError:
                continue
            except (StoreError, Conflict, ValueError) as err:
                line.lost += len(batch.values)
                failed = failed or err
            finally:
                line.handing -= pairs
        if failed is not None:
            raise failed

    async def _grow(self, line: Line, batch: Batch) -> Evidence:
        mirror, run, now = line.mirror, line.run, self.engine.services.clock.now()
        wanted = mirror.definition()

        def grow(state: Evidence | None) -> Evidence:
            if state is None:
                # The store has been emptied.
                state = states.begun(wanted, now, "config", "the store had forgotten it")
            elif state.run != run or state.definition != wanted:
                raise _OutdatedError
            return states.grown(state, batch, mirror, now)

        return await self.repository.change(mirror.name, grow, batch.results, mirror)

    # -- people -------------------------------------------------------------------------------------------------------

    def line(self, name: str) -> Line:
        """Return a mirror.

        Raises:
            NotFound: there is none of this name.
        """
        line = self.engine.lines.get(name)
        if line is None:
            known = ", ".join(self.engine.lines) or "none"
            raise NotFound(f"there is no mirror {name!r}; known: {known}", param="mirror")
        return line

    async def state(self, name: str) -> Evidence:
        """Return a mirror's state, this worker's latest figures included.

        Raises:
            NotFound: there is none of this name.
            StoreCorrupt: the state cannot be read.
        """
        line = self.line(name)
        await self.hand_in()
        state = await self.repository.load(name)
        if state is None:
            return states.begun(line.mirror.definition(), self.engine.services.clock.now(), "config", "")
        return state

    async def pause(self, name: str, who: str, reason: str) -> Evidence:
        """Stop mirroring until ``resume``."""
        return await self._move(name, Phase.PAUSED, (who, reason), allowed={Phase.RUNNING})

    async def resume(self, name: str, who: str, reason: str) -> Evidence:
        """Mirror again: after a pause or a hand-over, or for as many pairs again as were wanted."""
        return await self._move(name, Phase.RUNNING, (who, reason), allowed=_OVER)

    async def reset(self, name: str, who: str, reason: str) -> Evidence:
        """Forget figures and results and begin a new run, also when the state cannot be read."""
        line = self.line(name)
        now = self.engine.services.clock.now()
        line.batch = Batch()
        wanted = line.mirror.definition()

        def begin(state: Evidence | None) -> Evidence:
            last = line.run if state is None else state.run
            return states.begun(wanted, now, who, reason or "reset", run=last + 1)

        after = await self.repository.begin(name, begin)
        _take(line, after)
        await self.repository.tidy(line.mirror, after, now)
        return after

    async def graduate(self, name: str, who: str, reason: str) -> Evidence:
        """End the mirror and hand its figures to the other plugins.

        Raises:
            Conflict: it has no pair yet, or has graduated already.
        """
        line = self.line(name)
        await self.hand_in()

        def check(state: Evidence) -> None:
            if not state.count(Count.PAIRS):
                raise Conflict(f"the mirror {name!r} has not compared a single pair yet; there is nothing to hand over")

        after = await self._move(name, Phase.GRADUATED, (who, reason), allowed=_UNDER_WAY, check=check)
        challenger = line.mirror.challenger
        self.engine.services.publish(
            MirrorGraduated(
                mirror=name,
                model=line.mirror.model,
                challenger=line.target or line.mirror.challenger_text,
                version_id=None if isinstance(challenger, str) else challenger.version,
                who=who,
                reason=reason,
                at=after.changed_at,
                pairs=after.count(Count.PAIRS),
                confidence_ratio=line.mirror.confidence,
                figures={
                    str(figure.metric): {
                        "mean": figure.mean,
                        "low": figure.low,
                        "high": figure.high,
                        "count": figure.count,
                    }
                    for figure in states.figures(after, line.mirror)
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
        line = self.line(name)
        now = self.engine.services.clock.now()

        def move(state: Evidence | None) -> Evidence:
            if state is None:
                raise Conflict(
                    f"the store has forgotten the mirror {name!r}; it begins again within {self._flush_s:g} s"
                )
            if state.phase not in allowed:
                raise Conflict(f"the mirror {name!r} is {state.phase}")
            if check is not None:
                check(state)
            if phase is Phase.RUNNING:
                return states.resumed(state, line.mirror, now, who, reason)
            return states.changed(state, phase, now, who, reason)

        after = await self.repository.change(name, move)
        log.info("%s: %s by %s: %s", name, phase, who, reason)
        _take(line, after)
        return after

    @property
    def _flush_s(self) -> float:
        return self.engine.config.flush_s


def _unreadable(line: Line, err: StoreCorrupt) -> None:
    """Stop a mirror whose state nobody can read; the others go on."""
    if line.unreadable is None:
        log.error("%s: %s", line.mirror.name, err)
    line.unreadable = str(err)


def _take(line: Line, state: Evidence) -> None:
    """Work by what the store says."""
    line.unreadable = None
    line.superseded = state.definition != line.mirror.definition()
    if not line.superseded and line.run != state.run:
        if line.run:
            # Somebody has begun a new run: what was seen before belongs to the old one.
            line.batch = Batch()
        line.run = state.run
    line.phase = state.phase
    wanted = states.pairs_wanted(state, line.mirror)
    line.missing = None if wanted is None else wanted - state.count(Count.PAIRS)
