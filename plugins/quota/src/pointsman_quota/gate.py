"""Carries out the ledger's step in the store, or in this worker's memory while the store is down."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, cast

from pointsman.errors import StoreError

from .ledger import LEDGER, Result, Step, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman.plugin import Clock
    from pointsman.store.base import JSON, Put, StateStore

    from .config import QuotaConfig
    from .periods import Calendar, Period
    from .scopes import Target

log: Final = logging.getLogger(__name__)

#: How long the store is left alone after it failed, so that not every request waits for it.
_RETRY_STORE_S: Final = 1.0
_SCOPE_KEPT_DAYS: Final = 2
_DAY_MS: Final = 86_400_000
#: A lease is rounded up so that a scope has few moments of expiry to remember.
_LEASE_STEPS: Final = 12


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
        self.store_failures = 0
        self.local_steps = 0

    @property
    def store_is_down(self) -> bool:
        """Whether the last step failed because of the store."""
        return self._store_down_until is not None

    def period(self) -> Period:
        """Return the present day and month."""
        return self._calendar.at(self._now_ms())

    def expiry_s(self) -> int:
        """Return when a lease taken now ends, in Unix seconds."""
        ends_s = self._now_ms() // 1000 + self._config.lease_s
        return (ends_s // self._grain_s + 1) * self._grain_s

    async def reserve(
        self, target: Target, request_id: str, take: tuple[int, int], *, expires_s: int, force: bool
    ) -> tuple[Result, bool]:
        """Take tokens and micro-dollars from all scopes or from none.

        Returns:
            The result, and whether it is only this worker's own count.

        Raises:
            StoreError: the store failed, and the policy is to deny.
        """
        step = self._step("reserve", target, take, expires_s=expires_s, force=force)
        keys = target.keys(request_id)
        down = self._store_down_until is not None and self._clock.monotonic() < self._store_down_until
        if self._config.on_failure == "deny" or not down:
            try:
                return await self._run(keys, step), False
            except StoreError as err:
                if self._config.on_failure == "deny":
                    raise
                log.warning("the store failed, so this worker counts by itself: %s", err)
        self.local_steps += 1
        return self._local.run(keys, step), True

    async def settle(self, target: Target, request_id: str, spent: tuple[int, int], *, local: bool) -> bool:
        """End a reservation and spend what was really used. Doing it again changes nothing.

        Args:
            target: The scopes it took from.
            request_id: The request.
            spent: Tokens and micro-dollars used.
            local: Whether it was only this worker's own count.

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
        expires_s = self.expiry_s()
        step = self._step("renew", target, (0, 0), expires_s=expires_s)
        return expires_s if (await self._run(target.keys(request_id), step)).done else None

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
            self._store_down_until = self._clock.monotonic() + _RETRY_STORE_S
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
        expires_s: int = 0,
        force: bool = False,
        anew: bool = False,
    ) -> Step:
        now_ms = self._now_ms()
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
            "expires_s": expires_s,
            "force": force,
            "anew": anew,
        }

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)
