"""Carries out the ledger's step in the store, or in this worker's memory while the store is down."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from pointsman.errors import StoreError

from .ledger import LEDGER, Result, Step, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman.plugin import Clock
    from pointsman.store.base import JSON, Put, StateStore

    from .config import QuotaConfig
    from .periods import Calendar, Period
    from .scopes import Target

log: Final = logging.getLogger("pointsman.quota")

#: How long the store is left alone after it failed, so that not every request waits for it.
RETRY_STORE_S: Final = 1.0
_MOST_ABANDONED: Final = 10_000
_SCOPE_KEPT_DAYS: Final = 2
_DAY_MS: Final = 86_400_000
#: A lease is rounded up so that a scope has few moments of expiry to remember.
_LEASE_STEPS: Final = 12


class Reserved(NamedTuple):
    """What became of a reservation.

    Attributes:
        result: The ledger's result.
        now_ms: Unix milliseconds at which it was asked for.
        expires_s: When the lease ends, in Unix seconds.
        local: Whether it is only this worker's own count.
        doubtful: Whether the store may have made it as well, without saying so.
    """

    result: Result
    now_ms: int
    expires_s: int
    local: bool
    doubtful: bool


class LocalLedger:
    """What this worker counts by itself while the store is down: an approximation, as each worker does so."""

    def __init__(self) -> None:
        self._values: dict[str, JSON] = {}

    def __len__(self) -> int:
        return len(self._values)

    def run(self, keys: Sequence[str], step: Step) -> Result:
        """Carry out the step."""
        writes: Mapping[int, Put | None]
        writes, result = run([self._values.get(key) for key in keys], cast("JSON", step))
        for index, put in writes.items():
            if put is None:
                self._values.pop(keys[index], None)
            else:
                self._values[keys[index]] = put.value
        return Result.read(result)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()


class Gate:
    """The ledger as the plugin sees it.

    Args:
        config: The plugin's section.
        store: The plugin's part of the state store.
        clock: Time.
        calendar: Days and months.

    Attributes:
        store_failures: Steps that the store could not carry out.
        local_steps: Reservations made by this worker's own count instead.
    """

    def __init__(self, config: QuotaConfig, store: StateStore, clock: Clock, calendar: Calendar) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._calendar = calendar
        self._local = LocalLedger()
        self._store_down_until: float | None = None
        self._grain_s = max(1, config.lease_s // _LEASE_STEPS)
        #: Requests that nobody will settle: their targets, and until when a hold of theirs can last, monotonic.
        self._abandoned: dict[str, tuple[Target, float]] = {}
        self._any_abandoned = asyncio.Event()
        self.store_failures = 0
        self.local_steps = 0

    @property
    def store_is_down(self) -> bool:
        """Whether the last step failed because of the store."""
        return self._store_down_until is not None

    def period_at(self, now_ms: int) -> Period:
        """Return the day and month of a moment."""
        return self._calendar.at(now_ms)

    async def reserve(
        self, target: Target, request_id: str, take: tuple[int, int], *, force: bool = False, look: bool = False
    ) -> Reserved:
        """Take tokens and micro-dollars from all scopes or from none.

        Args:
            target: The scopes.
            request_id: The request.
            take: Tokens and micro-dollars.
            force: Take although a limit is exceeded.
            look: Take nothing: only the states are of interest.

        Raises:
            StoreError: the store failed, and the policy is to deny. It may have made the reservation all the same: it
                is to be abandoned.
        """
        step = self._step("look" if look else "reserve", target, take, force=force)
        keys = target.keys(request_id)
        doubtful = False
        if self._config.on_failure == "deny" or not self._resting():
            try:
                return Reserved(await self._run(keys, step), step["now_ms"], step["expires_s"], False, False)
            except StoreError as err:
                if self._config.on_failure == "deny":
                    raise
                log.warning("the store failed, so this worker counts by itself: %s", err)
                doubtful = not look
        self.local_steps += 1
        return Reserved(self._local.run(keys, step), step["now_ms"], step["expires_s"], True, doubtful)

    def abandon(self, target: Target, request_id: str) -> None:
        """Let go, in the background, of a reservation that the store may or may not have made: nobody will settle it."""
        while len(self._abandoned) >= _MOST_ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]
        self._abandoned[request_id] = (target, self._clock.monotonic() + self._config.lease_s + self._grain_s)
        self._any_abandoned.set()

    async def release_abandoned(self) -> None:
        """Release what is abandoned, now and whenever something is; return when the store is better left alone.

        Raises:
            StoreError: the store failed; call it again.
        """
        while not self._resting():
            await self._any_abandoned.wait()
            while self._abandoned and not self._resting():
                request_id, (target, until) = next(iter(self._abandoned.items()))
                if self._clock.monotonic() < until:
                    # The mark that it leaves makes a reservation void that reaches the store only after it.
                    await self._run(target.keys(request_id), self._step("settle", target, (0, 0), anew=True))
                self._abandoned.pop(request_id, None)
            if not self._abandoned:
                self._any_abandoned.clear()

    async def settle(self, target: Target, request_id: str, spent: tuple[int, int], *, local: bool) -> bool:
        """End a reservation and spend what was really used. Doing it again changes nothing.

        Args:
            target: The scopes it took from.
            request_id: The request.
            spent: Tokens and micro-dollars used.
            local: Whether it was only this worker's own count, as far as anybody knows.

        Returns:
            Whether this call did it.

        Raises:
            StoreError: the store failed; try again.
        """
        step = self._step("settle", target, spent, anew=local)
        keys = target.keys(request_id)
        if local:
            self._local.run(keys, {**step, "anew": False})
        return (await self._run(keys, step)).done

    async def renew(self, target: Target, request_id: str) -> int | None:
        """Extend a reservation's lease; return its new end in Unix seconds, or None if it is settled.

        Raises:
            StoreError: the store failed.
        """
        step = self._step("renew", target, (0, 0))
        return step["expires_s"] if (await self._run(target.keys(request_id), step)).done else None

    async def spend(self, target: Target, usd_micros: int, *, once: str = "") -> None:
        """Spend money without a reservation.

        Args:
            target: The scopes it is spent from.
            usd_micros: How much.
            once: When not empty, what it is for: it is spent once only.

        Raises:
            StoreError: the store failed; try again.
        """
        if once:
            step = self._step("settle", target, (0, usd_micros), anew=True)
            await self._run(target.keys(f"spent/{once}"), step)
        else:
            await self._run(target.keys("-"), self._step("spend", target, (0, usd_micros)))

    async def look(self, target: Target) -> Result:
        """Return the present states.

        Raises:
            StoreError: the store failed.
        """
        return await self._run(target.keys("-"), self._step("look", target, (0, 0)))

    async def _run(self, keys: Sequence[str], step: Step) -> Result:
        try:
            result = await self._store.run(LEDGER, keys, cast("JSON", step))
        except StoreError:
            self.store_failures += 1
            self._store_down_until = self._clock.monotonic() + RETRY_STORE_S
            raise
        if self._store_down_until is not None:
            self._store_down_until = None
            self._local.clear()
        return Result.read(result)

    def _step(
        self,
        do: Literal["reserve", "settle", "renew", "spend", "look"],
        target: Target,
        amounts: tuple[int, int],
        *,
        force: bool = False,
        anew: bool = False,
    ) -> Step:
        now_ms = int(self._clock.now() * 1000)
        ends_s = now_ms // 1000 + self._config.lease_s
        period = self._calendar.at(now_ms)
        return {
            "do": do,
            "now_ms": now_ms,
            "day": period.day,
            "month": period.month,
            "keep_s": (period.month_ends_ms - now_ms + _SCOPE_KEPT_DAYS * _DAY_MS) // 1000,
            "hold_keep_s": self._config.lease_s + self._config.late_settle_s,
            "caps": target.caps,
            "tokens": amounts[0],
            "usd_micros": amounts[1],
            "expires_s": (ends_s // self._grain_s + 1) * self._grain_s,
            "force": force,
            "anew": anew,
        }

    def _resting(self) -> bool:
        """Say whether the store has failed so lately that it is left alone."""
        return self._store_down_until is not None and self._clock.monotonic() < self._store_down_until
