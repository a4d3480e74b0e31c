"""Settlement: from what became of a request to what is spent. Until then its lease is renewed."""

from __future__ import annotations

import logging
from collections import deque
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from opentelemetry import trace

from pointsman import pricing
from pointsman.events import BudgetSpent
from pointsman.types import OWN_CALLS, Outcome

from .cost_events import CostEvents
from .ledger import MAX_REQUEST_TOKENS, MAX_REQUEST_USD_MICROS
from .ledger_client import Spent
from .limits import remaining
from .scopes import USD_PICOS, target_from, target_of
from .slots import Ended
from .tenants import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Reservation, Settlement

    from .config import QuotaConfig
    from .estimate import Estimator
    from .ledger import Result
    from .ledger_client import LedgerClient
    from .queue import FairQueue
    from .repository import TenantRepository
    from .scopes import Target
    from .slots import EndedRequests
    from .statistics import Durations
    from .tenants import Tenant

log: Final = logging.getLogger("pointsman.quota")

RENEWALS_A_LEASE: Final = 3
#: A settlement that takes longer than this does not keep a slot.
_LATE_SETTLEMENT_S: Final = 0.1
_MOST_UNSPENT: Final = 10_000
_MOST_TARGETS: Final = 4096
_USD: Final = Decimal("0.000001")
_USD_PICO: Final = Decimal("0.000000000001")
_FAILED: Final = 400


class Accounts:
    """Keeps this worker's reservations alive, settles them, and spends what is announced without one.

    Args:
        config: The plugin's section.
        services: The host's services.
        ledger: The ledger.
        repository: The tenants.
        estimator: Learns the lengths of answers.
        durations: Learns the durations of requests.
        queue: The queue.
        ended: Requests of this worker whose slots are free.
        lost_hold_of: Returns whether the store may have lost a request's hold.

    Attributes:
        reservations: Reservations of this worker by request, with the moments they were made at, in monotonic seconds.
        cost_events: What a billing plugin announces.
        implausible: Attempts whose token count cannot be true.
        announcements: Announcements that were counted.
        unspent: Announcements that the store has not taken yet.
    """

    def __init__(
        self,
        config: QuotaConfig,
        services: Services,
        *,
        ledger: LedgerClient,
        repository: TenantRepository,
        estimator: Estimator,
        durations: Durations,
        queue: FairQueue,
        ended: EndedRequests,
        lost_hold_of: Callable[[Settlement], bool],
    ) -> None:
        self._config = config
        self._lost_hold_of = lost_hold_of
        self._plugin = services.plugin
        self._prices = services.prices
        self._clock = services.clock
        self._ledger = ledger
        self._repository = repository
        self._estimator = estimator
        self._durations = durations
        self._queue = queue
        self._ended = ended
        self.reservations: dict[str, tuple[Reservation, float]] = {}
        #: Scopes that reservations took from, with the tenant as it was when they were read.
        self._targets: dict[tuple[object, ...], tuple[Tenant | None, Target]] = {}
        self.cost_events = CostEvents(config.money_wait_ms, services.clock)
        self.implausible = 0
        self.announcements = 0
        self.unspent: deque[BudgetSpent] = deque(maxlen=_MOST_UNSPENT)

    def opened(self, reservation: Reservation) -> None:
        """Take over a reservation that this worker has made."""
        self.reservations[reservation.id] = (reservation, self._clock.monotonic())

    def answered(self, request_id: str) -> None:
        """Let the slot of a request be taken: its answer is complete."""
        opened = self.reservations.get(request_id)
        if opened is not None and opened[0].data.get("slots") != 0:
            target = self._target(opened[0])
            self._ended.add(Ended(request_id, target, self._clock.monotonic()))
            self._queue.freed(target.scope_keys)

    async def free_late(self) -> NoReturn:
        """Free in the ledger, where all workers see it, the slots of requests whose settlements take long.

        Raises:
            StoreError: the store failed; the settlement frees the slot.
        """
        while True:
            await self._ended.any.wait()
            await self._clock.sleep(_LATE_SETTLEMENT_S)
            while (ended := self._ended.take_older(self._clock.monotonic() - _LATE_SETTLEMENT_S)) is not None:
                await self._ledger.free(ended.target, ended.request_id)

    async def settle(self, settlement: Settlement) -> None:
        """Spend what was used and release the rest of each reservation.

        Raises:
            StoreError: the store failed; try again.
        """
        for reservation in settlement.reservations:
            if reservation.plugin == self._plugin:
                await self._settle(reservation, settlement)

    async def _settle(self, reservation: Reservation, settlement: Settlement) -> None:
        target = self._target(reservation)
        tokens = self._tokens(reservation, settlement) if settlement.generates else 0
        usd = max(Decimal(0), await self._usd(reservation, settlement))
        retries = _tries(settlement) - 1 if reservation.data.get("retries") is True else 0
        local = reservation.data.get("local") is True or self._lost_hold_of(settlement)
        spent = Spent(tokens, usd, max(0, retries))
        result = await self._ledger.settle(target, reservation.id, spent, local=local)
        done = result.done
        span = trace.get_current_span()
        if span.is_recording():
            left = self._left(result, target, reservation, spent, local=local)
            span.set_attributes(
                {
                    "pointsman.quota.tenant": target.tenant,
                    "pointsman.quota.reserved_tokens": reservation.amounts.get("tokens", 0),
                    "pointsman.quota.reserved_usd_micros": reservation.amounts.get("usd_micros", 0),
                    "pointsman.quota.settled_tokens": tokens,
                    "pointsman.quota.settled_usd_micros": round(usd * 1_000_000),
                    "pointsman.quota.settled_before": not done,
                    **{f"pointsman.quota.remaining_{unit}": amount for unit, amount in left.items()},
                }
            )
        self.reservations.pop(reservation.id, None)
        self._ended.forget(reservation.id)
        self.cost_events.forget(settlement.request_id)
        self._queue.freed(target.scope_keys)
        if done and settlement.outcome is Outcome.OK:
            self._durations.add(target.tenant, (settlement.finished_at - settlement.started_at) * 1000)
            if settlement.usage is not None and not settlement.usage.estimated:
                self._estimator.learn(
                    target.tenant, reservation.data, settlement.model, settlement.usage.completion_tokens
                )

    def _left(
        self, result: Result, target: Target, reservation: Reservation, spent: Spent, *, local: bool
    ) -> Mapping[str, int]:
        """Return what a settlement has left of the tightest limits.

        Args:
            result: The ledger's.
            target: The scopes.
            reservation: What was set aside, and is free again.
            spent: What was used.
            local: Whether nothing was set aside in the store.
        """
        taken = (0, 0, 0)
        if result.done:
            tokens, usd = (
                (0, Decimal(0)) if local else (reservation.amounts.get("tokens", 0), _reserved_usd(reservation))
            )
            taken = (spent.requests, spent.tokens - tokens, round((spent.usd - usd) / _USD_PICO))
        return remaining(result.scopes, target.caps, self._ledger.period_at, taken, int(self._clock.now() * 1000))

    async def _usd(self, reservation: Reservation, settlement: Settlement) -> Decimal:
        """Return the money to spend: the announced cost if configured and announced, else the gateway's cost.

        An answer whose cost is unknown costs what was reserved.
        """
        if self._config.money_from == "events" and any(map(_may_cost, settlement.attempts)):
            announced = await self.cost_events.of(settlement.request_id)
            if announced is not None:
                # What is announced leaves out what a bill does not know.
                unknown = any(attempt.usage is None and attempt.unread for attempt in settlement.attempts)
                return announced + _reserved_usd(reservation) if unknown else announced
        if not settlement.generates:
            return Decimal(0)
        known, unknown = Decimal(0), False
        for attempt in settlement.attempts:
            usd = self._attempt_usd(attempt)
            if usd is None:
                unknown = True
            else:
                known += usd
        return known + _reserved_usd(reservation) if unknown else known

    def _attempt_usd(self, attempt: Attempt) -> Decimal | None:
        """Return the cost by the gateway's prices, else what it has logged itself; None when an answer's is unknown."""
        micros, logged = attempt.cost_usd_micros, attempt.gateway_cost_usd
        if attempt.usage is not None and micros is not None:
            exact = pricing.total_usd(attempt.usage, partial(self._prices.get, attempt.deployment))
            if exact is not None and exact.is_finite() and abs(exact - micros * _USD) <= _USD:
                return exact
            if exact is None and logged == micros == 0:
                # What the gateway logs where it does not know the price.
                micros = None
        if logged is not None and logged.is_finite() and logged > 0:
            return logged
        if micros is None:
            answered = attempt.outcome is Outcome.OK or attempt.unread
            return None if answered and not attempt.cached else Decimal(0)
        return micros * _USD

    def _tokens(self, reservation: Reservation, settlement: Settlement) -> int:
        """Return the tokens to spend: those of all attempts, none for a cached answer, the estimate for one without usage."""
        attempts = settlement.attempts
        reserved = reservation.amounts.get("tokens", 0)
        estimate = reserved if settlement.outcome is Outcome.OK else 0
        cached = any(attempt.cached and attempt.outcome is Outcome.OK for attempt in attempts)
        spent = estimate if settlement.usage is None and not cached else 0
        for attempt in attempts:
            if not _uses_tokens(attempt):
                continue
            if attempt.usage is None:
                spent += reserved if attempt.unread else 0
                continue
            tokens = attempt.usage.total_tokens
            if 0 <= tokens <= MAX_REQUEST_TOKENS:
                spent += tokens
                continue
            self.implausible += 1
            log.error("request %s: the provider reports %d tokens; the estimate is used", settlement.request_id, tokens)
            spent += estimate
        return min(MAX_REQUEST_TOKENS, spent)

    async def heard(self, event: BudgetSpent) -> None:
        """Count money that a billing plugin announces, if the configuration says so.

        Raises:
            StoreError: the store failed; it is spent later.
        """
        if self._config.money_from != "events":
            return
        if event.settled:
            self.announcements += 1
            self.cost_events.hear(event.request_id, _announced_usd(event))
        elif (
            self._repository.directory.get(event.tenant) and 0 < _announced_usd(event) <= MAX_REQUEST_USD_MICROS * _USD
        ):
            self.announcements += 1
            self.unspent.append(event)
            await self._spend()

    async def _spend(self) -> None:
        """Spend what belongs to no settlement; what the store does not take is kept and tried again."""
        while self.unspent:
            event = self.unspent[0]
            tenant = self._repository.directory.get(event.tenant)
            if tenant is not None:
                target = target_of(Caller(tenant), (), self._config.gateway_limits)
                await self._ledger.spend(target, _announced_usd(event), once=event.request_id)
            if self.unspent and self.unspent[0] is event:
                self.unspent.popleft()

    async def renew(self) -> None:
        """Renew the leases of long requests, up to the longest time a request may take.

        Raises:
            StoreError: the store failed; try again.
        """
        await self._spend()
        now = self._clock.monotonic()
        due_s = self._config.lease_s / RENEWALS_A_LEASE
        for request_id, (reservation, since) in list(self.reservations.items()):
            age_s = now - since
            if age_s > self._config.max_request_s or (
                age_s >= due_s and await self._ledger.renew(self._target(reservation), request_id) is None
            ):
                self.reservations.pop(request_id, None)

    def _target(self, reservation: Reservation) -> Target:
        data = reservation.data
        tenant = self._repository.directory.get(str(data["tenant"]))
        key = (data["tag"], data["tenant"], data["scopes"])
        known = self._targets.get(key)
        if known is None or known[0] is not tenant:
            if len(self._targets) >= _MOST_TARGETS:
                self._targets.clear()
            known = self._targets[key] = (tenant, target_from(data, tenant, self._config.gateway_limits))
        return known[1]


def _reserved_usd(reservation: Reservation) -> Decimal:
    """Return the money that was set aside, exactly; earlier versions wrote only whole micro-dollars."""
    picos = reservation.data.get(USD_PICOS)
    return picos * _USD_PICO if isinstance(picos, int) else reservation.amounts.get("usd_micros", 0) * _USD


def _announced_usd(event: BudgetSpent) -> Decimal:
    return event.cost_usd_micros * _USD if event.amount_usd is None else event.amount_usd


def _tries(settlement: Settlement) -> int:
    """Return how many attempts the gateway made for a request."""
    return sum(attempt.kind not in OWN_CALLS and not attempt.cached for attempt in settlement.attempts)


def _uses_tokens(attempt: Attempt) -> bool:
    """Return whether the tenant pays for the attempt's tokens: not for own calls, the cache, or an error response.

    A provider that has counted has answered, whatever became of its answer.
    """
    failed = attempt.outcome is Outcome.ERROR and attempt.first_token_ms is None
    counted = attempt.usage is not None and attempt.usage.raw is not None
    refused = failed and (attempt.status_code or 0) >= _FAILED and not counted and not attempt.cut
    return not attempt.cached and attempt.kind not in OWN_CALLS and not refused


def _may_cost(attempt: Attempt) -> bool:
    """Return whether a billing plugin may announce a cost for the attempt."""
    known = bool(attempt.cost_usd_micros or attempt.gateway_cost_usd)
    return not attempt.cached and (known or attempt.usage is not None)
