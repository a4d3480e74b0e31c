"""The plugin: hooks, wired to the parts that do the work."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from pointsman import PluginInfo, hookimpl
from pointsman.types import OWN_CALLS, BudgetSpent, Identity, Outcome, Route, Status

from .admission import Admission
from .announced import Announced
from .config import QuotaConfig
from .durations import Durations
from .estimate import Estimator
from .gate import RETRY_STORE_S, Gate
from .ledger import MAX_REQUEST_TOKENS, MAX_REQUEST_USD_MICROS
from .outputs import OutputLengths
from .periods import Calendar
from .queue import FairQueue
from .roster import Roster
from .scopes import target_from, target_of
from .surface import Surface
from .tenants import KEY_CLAIM, Caller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Credential, Denial, Event, RequestContext, Reservation, Settlement

    from .scopes import Target

log: Final = logging.getLogger("pointsman.quota")

_RENEWALS_A_LEASE: Final = 3
_MOST_UNSPENT: Final = 10_000
_FAILED: Final = 400


class Quota:
    """Admits requests and accounts for them.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: QuotaConfig) -> None:
        self._config = config
        self._outputs = OutputLengths()
        self._durations = Durations()
        #: Reservations of this worker, and when they were made, on the monotonic clock.
        self._open: dict[str, tuple[Reservation, float]] = {}
        self._odd_settlements = 0
        self._budget_events = 0
        self._unspent: deque[BudgetSpent] = deque(maxlen=_MOST_UNSPENT)

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Load the tenants and begin to renew leases."""
        config = self._config
        self._services = services
        self._gate = Gate(config, services.store, services.clock, Calendar(ZoneInfo(config.timezone)))
        self._announced = Announced(config.money_wait_ms, services.clock)
        self._roster = Roster(config, services.store, services.clock)
        self._estimator = Estimator(config.output, self._outputs, services)
        self._queue = FairQueue(config.queue, services.clock) if config.queue else None
        self._admission = Admission(
            config,
            services,
            gate=self._gate,
            estimator=self._estimator,
            queue=self._queue,
            durations=self._durations,
        )
        await self._roster.refresh()
        if (missing := self._roster.missing_default) is not None:
            # No error: it may be added over HTTP.
            log.warning("quota.default_tenant: %s", missing)
        services.tasks.every(config.refresh_s, self._roster.refresh, name="refresh tenants")
        services.tasks.every(config.lease_s / _RENEWALS_A_LEASE, self._renew, name="renew leases")
        services.tasks.every(RETRY_STORE_S, self._gate.release_abandoned, name="release")

    @hookimpl
    async def authenticate(self, credential: Credential) -> Identity | None:
        """Recognise a tenant's own key, or a trusted front's word."""
        caller = self._roster.directory.by_credential(credential)
        if caller is None:
            return None
        claims = {KEY_CLAIM: caller.key.name} if caller.key else {}
        return Identity(
            tenant=caller.tenant.id,
            key_alias=f"{caller.tenant.id}/{caller.key.name}" if caller.key else None,
            claims=claims,
        )

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Admit the request, or deny it."""
        answer = await self._admission.admit(ctx, route, self._roster.directory)
        if isinstance(answer, Route) and len(answer.reservations) > len(route.reservations):
            self._open[ctx.request_id] = (answer.reservations[-1], self._services.clock.monotonic())
        return answer

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Spend what was really used and let go of the rest."""
        for reservation in settlement.reservations:
            if reservation.plugin == self._services.plugin:
                await self._settle(reservation, settlement)

    async def _settle(self, reservation: Reservation, settlement: Settlement) -> None:
        target = self._target(reservation)
        tokens = self._tokens(reservation, settlement)
        usd_micros = await self._usd_micros(settlement)
        usd_micros = min(MAX_REQUEST_USD_MICROS, max(0, usd_micros))
        local = reservation.data.get("local") is True
        done = await self._gate.settle(target, reservation.id, (tokens, usd_micros), local=local)
        self._open.pop(reservation.id, None)
        self._announced.forget(settlement.request_id)
        if self._queue:
            self._queue.freed(target.scope_keys)
        if done and settlement.outcome is Outcome.OK:
            self._durations.add(target.tenant, (settlement.finished_at - settlement.started_at) * 1000)
            if settlement.usage is not None and not settlement.usage.estimated:
                self._estimator.learn(
                    target.tenant, reservation.data, settlement.model, settlement.usage.completion_tokens
                )

    async def _usd_micros(self, settlement: Settlement) -> int:
        """Return the money to spend: what a billing plugin announces, if it is asked and does; else the gateway's cost."""
        if self._config.money_from == "gateway" or not any(map(_may_cost, settlement.attempts)):
            return settlement.cost_usd_micros
        announced = await self._announced.of(settlement.request_id)
        return settlement.cost_usd_micros if announced is None else announced

    def _tokens(self, reservation: Reservation, settlement: Settlement) -> int:
        """Return the tokens to spend: those of all attempts, none for a cached answer, the estimate for one without usage."""
        attempts = settlement.attempts
        estimate = reservation.amounts.get("tokens", 0) if settlement.outcome is Outcome.OK else 0
        cached = any(attempt.cached and attempt.outcome is Outcome.OK for attempt in attempts)
        spent = estimate if settlement.usage is None and not cached else 0
        for attempt in attempts:
            if attempt.usage is None or not _uses_tokens(attempt):
                continue
            tokens = attempt.usage.total_tokens
            if 0 <= tokens <= MAX_REQUEST_TOKENS:
                spent += tokens
                continue
            self._odd_settlements += 1
            log.error("request %s: the provider reports %d tokens; the estimate is used", settlement.request_id, tokens)
            spent += estimate
        return min(MAX_REQUEST_TOKENS, spent)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Count money that a billing plugin announces, if the configuration says so."""
        if not isinstance(event, BudgetSpent) or self._config.money_from != "events":
            return
        if event.settled:
            self._budget_events += 1
            self._announced.hear(event.request_id, event.cost_usd_micros)
        elif self._roster.directory.get(event.tenant) and 0 < event.cost_usd_micros <= MAX_REQUEST_USD_MICROS:
            self._budget_events += 1
            self._unspent.append(event)
            await self._spend()

    async def _spend(self) -> None:
        """Spend what belongs to no settlement; what the store does not take is kept and tried again."""
        while self._unspent:
            event = self._unspent[0]
            tenant = self._roster.directory.get(event.tenant)
            if tenant is not None:
                target = target_of(Caller(tenant), (), self._config.gateway_limits)
                await self._gate.spend(target, event.cost_usd_micros, once=event.request_id)
            if self._unspent and self._unspent[0] is event:
                self._unspent.popleft()

    @hookimpl
    def status(self) -> Status:
        """Say how many were admitted and refused, and whether the store works."""
        counts, gate = self._admission.counts, self._gate
        refused = sum(counts.refused.values())
        problems = list(self._roster.problems)
        if (missing := self._roster.missing_default) is not None:
            problems.append(missing)
        if gate.store_is_down:
            problems.append(
                "the store is down: "
                + ("each worker counts by itself" if self._config.on_failure == "allow" else "requests are refused")
            )
        return Status(
            ok=not problems,
            summary="; ".join(problems)
            or f"{len(self._roster.directory)} tenants, {counts.admitted} requests admitted, {refused} refused",
            details={
                "tenants": len(self._roster.directory),
                "admitted": counts.admitted,
                "exempt": counts.exempt,
                "refused": dict(counts.refused),
                "would_refuse": dict(counts.would_refuse),
                "in_flight": len(self._open),
                "waiting": self._queue.waiting() if self._queue else 0,
                "queue": {
                    "admitted": self._queue.admitted,
                    "gave_up": self._queue.gave_up,
                    "turned_away": self._queue.turned_away,
                }
                if self._queue
                else None,
                "store_failures": gate.store_failures,
                "counted_locally": gate.local_steps,
                "uncountable_prompts": self._estimator.uncountable,
                "odd_settlements": self._odd_settlements,
                "budget_events": self._budget_events,
                "unannounced": self._announced.missed,
                "unspent": len(self._unspent),
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return Surface(self._config, self._roster, self._gate).routes()

    def _target(self, reservation: Reservation) -> Target:
        tenant = self._roster.directory.get(str(reservation.data["tenant"]))
        return target_from(reservation.data, tenant, self._config.gateway_limits)

    async def _renew(self) -> None:
        """Renew the leases of requests that run for long, up to the longest time a request may take."""
        await self._spend()
        now = self._services.clock.monotonic()
        due_s = self._config.lease_s / _RENEWALS_A_LEASE
        for request_id, (reservation, since) in list(self._open.items()):
            age_s = now - since
            if age_s > self._config.max_request_s or (
                age_s >= due_s and await self._gate.renew(self._target(reservation), request_id) is None
            ):
                self._open.pop(request_id, None)


def _uses_tokens(attempt: Attempt) -> bool:
    """Say whether the tokens of an attempt are the tenant's: not of our own calls, the cache, or an error for an answer."""
    failed = attempt.outcome is Outcome.ERROR and attempt.first_token_ms is None
    refused = failed and (attempt.status_code or 0) >= _FAILED
    return not attempt.cached and attempt.kind not in OWN_CALLS and not refused


def _may_cost(attempt: Attempt) -> bool:
    """Say whether a billing plugin has something to say about an attempt."""
    return not attempt.cached and (bool(attempt.cost_usd_micros) or attempt.usage is not None)


plugin = PluginInfo(
    name="quota",
    config=QuotaConfig,
    factory=Quota,
    summary="Tenants, limits and budgets: reserved before a request, settled after it.",
    commands="pointsman_quota.commands:group",
)
