"""The contract of ``settle``: the same settlement again changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from ...host.journal_rows import Entry, dump, parse, restored_context
from ...store.protocol import JSON
from ...types import Event
from ..harness import Harness
from .base import SCENARIOS, ContractBase, ContractViolation, Scenario, check
from .interrupt import CancelPoint

#: How long what is stored has to stay the same, in real seconds.
_REST_S: Final = 0.03

_MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class World:
    """What can be seen of a plugin from outside.

    Attributes:
        stored: Its keys and values.
        events: What it has announced.
    """

    stored: dict[str, JSON]
    events: tuple[Event, ...]

    def differences(self, other: World, *, events_may_be_lost: bool = False) -> list[str]:
        """Return what is different there, in words.

        An announcement lives in one worker's memory: one that was cut off may lose it, but never make it twice.
        """
        found = [
            f"key {key!r}: {self.stored.get(key)!r:.200} became {other.stored.get(key)!r:.200}"
            for key in sorted(self.stored.keys() | other.stored.keys())
            if self.stored.get(key) != other.stored.get(key)
        ]
        lost = len(self.events) - len(other.events)
        if self.events != other.events and not (events_may_be_lost and lost > 0):
            found.append(
                f"events: {[type(e).__name__ for e in self.events]} became {[type(e).__name__ for e in other.events]}"
            )
        return found


Settle = Callable[[Any, Any], Awaitable[None]]


class SettlingContract(ContractBase):
    """``settle`` again, interrupted, and in another life."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
    def test_settling_again_changes_nothing(self, scenario: Scenario) -> None:
        """The same settlement twice leaves store and announcements as once does."""

        async def twice(settle: Settle, ctx: Any, settlement: Any) -> None:
            await settle(ctx, settlement)
            await settle(ctx, settlement)

        self.need("settle")
        self.run(self._compare(scenario, twice, "the same settlement twice"))

    def test_settling_at_the_same_time_changes_nothing(self) -> None:
        """Two workers that settle the same request at once leave what one does."""

        async def both(settle: Settle, ctx: Any, settlement: Any) -> None:
            await asyncio.gather(settle(ctx, settlement), settle(ctx, settlement))

        self.need("settle")
        self.run(self._compare(SCENARIOS[0], both, "the same settlement from two sides at once"))

    def test_settling_again_in_another_life_changes_nothing(self) -> None:
        """A settlement that comes again from the journal, after a restart, changes nothing."""
        self.need("settle")
        self.run(self._in_another_life())

    def test_an_interrupted_settlement_can_be_repeated(self) -> None:
        """Wherever ``settle`` is cut off, settling again ends where one uninterrupted call does."""
        self.need("settle")
        self.run(self._interrupted())

    async def _world(
        self,
        scenario: Scenario,
        how: Callable[[Settle, Any, Any], Awaitable[None]] | None,
        *,
        restart: bool = False,
        redeliver: bool = False,
    ) -> World:
        async with self.worker(after=scenario.after) as h:
            if how is not None:
                settle, chosen = self.hooks(h)["settle"], how
                self.rewire(h, "settle", lambda ctx, settlement: chosen(settle, ctx, settlement))
            await self.ask(h, **scenario.request)
            await h.settled()
            if restart:
                await h.restart()
            if redeliver:
                await self._redeliver(h)
            if restart and self.background_s:
                # Work in the background has the same turns, whether or not a settlement has let it run in between.
                await h.clock.advance(self.background_s)
            self.check_healthy(h, "after the settlement")
            # What it buffers is written by its shutdown.
            await h.restart()
            return World(await self._at_rest(h), tuple(h.events))

    async def _at_rest(self, h: Harness) -> Any:
        """Return what is stored once threads of the plugin, which need real time, change it no more."""
        found = await h.stored(self.info.name)
        while True:
            await asyncio.sleep(_REST_S)
            before, found = found, await h.stored(self.info.name)
            if found == before:
                return found

    async def _redeliver(self, h: Harness) -> None:
        """Settle once more what the journal would bring: without headers and body, and through JSON."""
        settlement = h.settlements[-1]
        ((entry,), _) = parse(dump([Entry(restored_context(settlement), settlement, [])]))
        await self.hooks(h)["settle"](entry.ctx, entry.settlement)

    async def _compare(self, scenario: Scenario, how: Callable[[Settle, Any, Any], Awaitable[None]], what: str) -> None:
        differences = (await self._world(scenario, None)).differences(await self._world(scenario, how))
        check(not differences, f"{what} is not the same as once: {'; '.join(differences)}")

    async def _in_another_life(self) -> None:
        # Both worlds see as many restarts: what a plugin keeps about its worker is no difference.
        once = await self._world(SCENARIOS[0], None, restart=True)
        again = await self._world(SCENARIOS[0], None, restart=True, redeliver=True)
        differences = once.differences(again)
        check(not differences, f"a settlement that came again after a restart was counted: {'; '.join(differences)}")

    async def _interrupted(self) -> None:
        once = await self._world(SCENARIOS[0], None)
        for at in range(1, _MOST_POINTS):
            point = CancelPoint(at)

            async def cut_off(settle: Any, ctx: Any, settlement: Any, point: CancelPoint = point) -> None:
                first = asyncio.create_task(point.run(settle(ctx, settlement)))
                await asyncio.wait({first})
                if first.cancelled() or point.fired:
                    await settle(ctx, settlement)

            differences = once.differences(await self._world(SCENARIOS[0], cut_off), events_may_be_lost=True)
            check(not point.swallowed, f"settle goes on when it is cancelled where it waits for the {at}. time")
            check(
                not differences,
                f"settle cut off where it waits for the {at}. time, then repeated, is not the same as once: "
                f"{'; '.join(differences)}",
            )
            if not point.fired:
                return
        raise ContractViolation(f"settle waits more than {_MOST_POINTS} times for one request")
