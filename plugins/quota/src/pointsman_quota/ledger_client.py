"""Carries out the ledger's step in the store, or in this worker's memory while the store is down."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from pointsman.errors import StoreError

from .ledger import LEDGER, MAX_AHEAD_MS, MAX_AMOUNT, MAX_REQUEST_USD_MICROS, PICOS, Result, Step, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman.plugin import Clock
    from pointsman.store.protocol import JSON, Put, StateStore

    from .config import QuotaConfig
    from .ledger import Do
    from .periods import Calendar, Period
    from .scopes import Target

log: Final = logging.getLogger("pointsman.quota")

#: Seconds without calls of the store after it failed, so that not every request waits for it.
RETRY_STORE_S: Final = 1.0
_MOST_ABANDONED: Final = 10_000
_SCOPE_KEPT_DAYS: Final = 2
_DAY_MS: Final = 86_400_000
#: A lease is rounded up so that a scope has few moments of expiry to remember.
_LEASE_STEPS: Final = 12


class Reserved(NamedTuple):
    """The outcome of a reservation.

    Attributes:
        result: The ledger's result.
        now_ms: Unix milliseconds at which it was asked for.
        expires_s: When the lease ends, in Unix seconds.
        local: Whether only this worker counted it.
        doubtful: Whether the store may have made it as well, although its answer is missing.
    """

    result: Result
    now_ms: int
    expires_s: int
    local: bool
    doubtful: bool


class Spent(NamedTuple):
    """What a request has used.

    Attributes:
        tokens: Tokens.
        usd: US dollars, exactly.
        requests: Further requests that count against the rate.
    """

    tokens: int = 0
    usd: Decimal = Decimal(0)
    requests: int = 0


class LocalLedger:
    """This worker's own count while the store is down: an approximation, as each worker counts alone."""

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
        """Drop everything."""
        self._values.clear()


class LedgerClient:
    """The ledger as the plugin sees it.

    Args:
        config: The plugin's section.
        store: The plugin's part of the state store.
        clock: Time.
        calendar: Days and months.

    Attributes:
        store_failures: Steps that the store could not carry out.
        local_steps: Reservations made by this worker's own count instead.
        set_back_at: Unix seconds at which the clock was found to be set back to an earlier day, by more than the ledger
            bridges; None: it was not.
    """

    def __init__(self, config: QuotaConfig, store: StateStore, clock: Clock, calendar: Calendar) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._calendar = calendar
        self._local = LocalLedger()
        self._store_down_until: float | None = None
        self._grain_s = max(1, config.lease_s // _LEASE_STEPS)
        #: Requests that will not be settled: their targets, and until when a hold of theirs can last, in monotonic seconds.
        self._abandoned: dict[str, tuple[Target, float]] = {}
        self._any_abandoned = asyncio.Event()
        #: The latest time of a step, in Unix milliseconds, and its day: the ledger keeps both where a clock goes back little.
        self._day = 0
        self._latest_ms = 0
        self.store_failures = 0
        self.local_steps = 0
        self.set_back_at: float | None = None

    @property
    def store_is_down(self) -> bool:
        """Whether the last step failed because of the store."""
        return self._store_down_until is not None

    def period_at(self, now_ms: int) -> Period:
        """Return the day and month of a moment."""
        return self._calendar.at(now_ms)

    async def reserve(
        self,
        target: Target,
        request_id: str,
        take: tuple[int, int],
        *,
        slots: int = 1,
        force: bool = False,
        look: bool = False,
    ) -> Reserved:
        """Take tokens and picodollars from all scopes or from none.

        Args:
            target: The scopes.
            request_id: The request.
            take: Tokens and picodollars.
            slots: 0 for a request that shares another's slot.
            force: Take even if a limit is exceeded.
            look: Take nothing, only return the states.

        Raises:
            StoreError: the store failed, and the policy is to deny. It may still have made the reservation: abandon
                it.
        """
        do: Do = "look" if look else "reserve"
        step = self._step(do, target, take[0], divmod(take[1], PICOS), slots=slots, force=force)
        keys = target.keys(request_id)
        doubtful = False
        if self._config.on_failure == "deny" or not self._resting():
            try:
                return Reserved(await self._run(keys, step), step["now_ms"], step["expires_s"], False, False)
            except StoreError as err:
                if self._config.on_failure == "deny":
                    raise
                log.warning("the store failed, so this worker counts alone: %s", err)
                doubtful = not look
        self.local_steps += 1
        return Reserved(self._local.run(keys, step), step["now_ms"], step["expires_s"], True, doubtful)

    def abandon(self, target: Target, request_id: str) -> None:
        """Release, in the background, a reservation that the store may have made and that will not be settled."""
        while len(self._abandoned) >= _MOST_ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]
        self._abandoned[request_id] = (target, self._clock.monotonic() + self._config.lease_s + self._grain_s)
        self._any_abandoned.set()

    async def release_abandoned(self) -> None:
        """Release abandoned reservations, now and whenever there is one; return while the store is avoided.

        Raises:
            StoreError: the store failed; call it again.
        """
        while not self._resting():
            await self._any_abandoned.wait()
            while self._abandoned and not self._resting():
                request_id, (target, until) = next(iter(self._abandoned.items()))
                if self._clock.monotonic() < until:
                    # It leaves a mark that voids a reservation which reaches the store later.
                    await self._run(target.keys(request_id), self._step("settle", target, without_hold=True))
                self._abandoned.pop(request_id, None)
            if not self._abandoned:
                self._any_abandoned.clear()

    async def free(self, target: Target, request_id: str) -> None:
        """Free the slot of a request whose answer is complete and that is not settled yet. Idempotent.

        Raises:
            StoreError: the store failed, and the policy is to deny.
        """
        step = self._step("free", target)
        keys = target.keys(request_id)
        self._local.run(keys, step)
        if self._config.on_failure == "deny" or not self._resting():
            try:
                await self._run(keys, step)
            except StoreError:
                if self._config.on_failure == "deny":
                    raise

    async def settle(self, target: Target, request_id: str, spent: Spent, *, local: bool) -> Result:
        """End a reservation and spend the real usage; return whether this call settled it, and the states before. Idempotent.

        Args:
            target: The scopes it took from.
            request_id: The request.
            spent: What was used.
            local: Whether only this worker is known to have counted it.

        Raises:
            StoreError: the store failed; try again.
        """
        step = self._spending("settle", target, spent, without_hold=local)
        keys = target.keys(request_id)
        if local:
            self._local.run(keys, {**step, "without_hold": False})
        return await self._run(keys, step)

    async def renew(self, target: Target, request_id: str) -> int | None:
        """Extend a reservation's lease; return its new end in Unix seconds, or None if it is settled.

        Raises:
            StoreError: the store failed.
        """
        step = self._step("renew", target)
        return step["expires_s"] if (await self._run(target.keys(request_id), step)).done else None

    async def spend(self, target: Target, usd: Decimal, *, once: str = "") -> None:
        """Spend money without a reservation.

        Args:
            target: The scopes it is spent from.
            usd: How much.
            once: If not empty, an id of the expense, which is then spent only once.

        Raises:
            StoreError: the store failed; try again.
        """
        if once:
            step = self._spending("settle", target, Spent(usd=usd), without_hold=True)
            await self._run(target.keys(f"spent/{once}"), step)
        else:
            await self._run(target.keys("-"), self._spending("spend", target, Spent(usd=usd)))

    async def restore(self, target: Target, mark: str, at_ms: int, month: Spent, day: Spent) -> bool:
        """Add what was spent before the store lost it to the sums of that time's day and month.

        Args:
            target: The scopes it was spent from.
            mark: An id of the expense, which is added only once.
            at_ms: Unix milliseconds: when it was lost.
            month: What was spent in the month.
            day: The part of it that was spent on the day.

        Returns:
            Whether this call added it.

        Raises:
            StoreError: the store failed; try again.
        """
        step = self._step("restore", target, month.tokens)
        period = self._calendar.at(at_ms)
        usd_micros, usd_picos = _micros(month.usd, MAX_AMOUNT)
        day_usd_micros, day_usd_picos = _micros(day.usd, MAX_AMOUNT)
        keys = target.keys(f"restored/{mark}")
        # The mark lasts as long as the sums: a worker may notice the loss hours after the others.
        about: Step = {
            **step,
            "of_day": period.day,
            "of_month": period.month,
            "hold_keep_s": step["keep_s"],
            "usd_micros": usd_micros,
            "usd_picos": usd_picos,
            "day_tokens": day.tokens,
            "day_usd_micros": day_usd_micros,
            "day_usd_picos": day_usd_picos,
        }
        return (await self._run(keys, about)).done

    async def look(self, target: Target) -> Result:
        """Return the current states.

        Raises:
            StoreError: the store failed.
        """
        return await self._run(target.keys("-"), self._step("look", target))

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

    def _spending(self, do: Do, target: Target, spent: Spent, *, without_hold: bool = False) -> Step:
        usd = _micros(spent.usd, MAX_REQUEST_USD_MICROS)
        return self._step(do, target, spent.tokens, usd, requests=spent.requests, without_hold=without_hold)

    def _step(
        self,
        do: Do,
        target: Target,
        tokens: int = 0,
        usd: tuple[int, int] = (0, 0),
        *,
        requests: int = 0,
        slots: int = 1,
        force: bool = False,
        without_hold: bool = False,
    ) -> Step:
        now_ms = int(self._clock.now() * 1000)
        ends_s = now_ms // 1000 + self._config.lease_s
        period = self._calendar.at(now_ms)
        if period.day < self._day and now_ms + MAX_AHEAD_MS < self._latest_ms:
            self._go_back(period.day, now_ms)
        elif now_ms > self._latest_ms:
            self._day, self._latest_ms = period.day, now_ms
        return {
            "do": do,
            "now_ms": now_ms,
            "day": period.day,
            "month": period.month,
            "keep_s": (period.month_ends_ms - now_ms + _SCOPE_KEPT_DAYS * _DAY_MS) // 1000,
            "hold_keep_s": self._config.lease_s + self._config.late_settle_s,
            "caps": target.caps,
            "tokens": tokens,
            "usd_micros": usd[0],
            "usd_picos": usd[1],
            "requests": requests,
            "slots": slots,
            "expires_s": (ends_s // self._grain_s + 1) * self._grain_s,
            "force": force,
            "without_hold": without_hold,
        }

    def _go_back(self, day: int, now_ms: int) -> None:
        self.set_back_at = now_ms / 1000
        log.error(
            "the clock was set back from %d to %d: budgets may miss what had been spent before it was wrong",
            self._day,
            day,
        )
        self._day, self._latest_ms = day, now_ms

    def _resting(self) -> bool:
        """Return whether the store failed so recently that it is avoided."""
        return self._store_down_until is not None and self._clock.monotonic() < self._store_down_until


def _micros(usd: Decimal, most: int) -> tuple[int, int]:
    """Return an amount in micro-dollars, limited to ``most``, and the remaining picodollars."""
    usd_micros, usd_picos = divmod(round(usd * PICOS**2), PICOS)
    return min(most, usd_micros), usd_picos
