"""The plugin: hooks, wired to the modules that do the work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from pointsman import PluginInfo, hookimpl
from pointsman.events import BudgetSpent, PastSpending, TariffAnnounced
from pointsman.types import Identity, Route, StoreEmptied

from . import views
from .admission import MARK_LABEL, TENANT_LABEL, Admission
from .config import QuotaConfig
from .estimate import Estimator
from .instruments import READ_EVERY_S, Levels, instrument
from .ledger_client import RETRY_STORE_S, LedgerClient
from .periods import Calendar
from .queue import FairQueue
from .repository import TenantRepository
from .restoring import Restoration
from .routes import AdminRoutes
from .scopes import unpriced_limits
from .settlement import RENEWALS_A_LEASE, Accounts
from .slots import EndedRequests
from .statistics import Durations, OutputLengths
from .tariff import Tariff
from .tenants import KEY_CLAIM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Credential, Denial, Event, RequestContext, Settlement, Status

log: Final = logging.getLogger("pointsman.quota")


class Quota:
    """Admits requests and accounts for them.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: QuotaConfig) -> None:
        self._config = config

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Load the tenants and start to renew leases."""
        config = self._config
        self._services = services
        durations = Durations()
        self._ledger = LedgerClient(config, services.store, services.clock, Calendar(ZoneInfo(config.timezone)))
        self._repository = TenantRepository(config, services.store, services.clock)
        self._estimator = Estimator(config, OutputLengths(), services)
        self._queue = FairQueue(config.waiting, services.clock)
        self._restoration = Restoration(config, self._ledger, self._repository, services.publish)
        ended = EndedRequests()
        self._admission = Admission(
            config,
            services,
            ledger=self._ledger,
            estimator=self._estimator,
            queue=self._queue,
            durations=durations,
            ended=ended,
        )
        self._accounts = Accounts(
            config,
            services,
            ledger=self._ledger,
            repository=self._repository,
            estimator=self._estimator,
            durations=durations,
            queue=self._queue,
            ended=ended,
            lost_hold_of=self._restoration.lost_hold_of,
        )
        await self._repository.refresh()
        if (missing := self._repository.missing_default) is not None:
            # Not an error: the tenant may be added over HTTP.
            log.warning("quota.default_tenant: %s", missing)
        levels = Levels(self._repository, self._ledger, config.gateway_limits)
        instrument(services.meter, levels, self._admission.counts, self._queue.waiting)
        services.tasks.every(READ_EVERY_S, levels.refresh, name="read levels")
        services.tasks.every(config.refresh_s, self._repository.refresh, name="refresh tenants")
        services.tasks.every(config.lease_s / RENEWALS_A_LEASE, self._accounts.renew, name="renew leases")
        services.tasks.every(RETRY_STORE_S, self._ledger.release_abandoned, name="release")
        services.tasks.every(RETRY_STORE_S, self._accounts.free_late, name="free slots")
        services.tasks.every(config.lease_s / RENEWALS_A_LEASE, self._restoration.proceed, name="restore budgets")

    @hookimpl
    async def authenticate(self, credential: Credential) -> Identity | None:
        """Recognise a tenant's own key, or the header of a trusted front."""
        caller = self._repository.directory.by_credential(credential)
        if caller is None:
            return None
        dry = self._config.dry_run or caller.tenant.dry_run
        return Identity(
            tenant=caller.tenant.id,
            key_alias=f"{caller.tenant.id}/{caller.key.name}" if caller.key else None,
            claims={KEY_CLAIM: caller.key.name} if caller.key else {},
            models=None if dry else caller.tenant.models or None,
        )

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Admit the request, or deny it."""
        answer = await self._admission.admit(ctx, route, self._repository.directory)
        if isinstance(answer, Route) and len(answer.reservations) > len(route.reservations):
            self._accounts.opened(answer.reservations[-1])
        return answer

    @hookimpl
    def answered(self, ctx: RequestContext) -> None:
        """Free the request's slot."""
        self._accounts.answered(ctx.request_id)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Spend what was used and release the rest of the reservation."""
        await self._accounts.settle(settlement)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Count money that a billing plugin announces, if the configuration says so; rebuild budgets that the store lost."""
        if isinstance(event, BudgetSpent):
            await self._accounts.heard(event)
        elif isinstance(event, StoreEmptied):
            self._restoration.lost(event)
        elif isinstance(event, PastSpending):
            await self._restoration.heard(event)
        elif isinstance(event, TariffAnnounced) and self._config.money_from == "events":
            self._estimator.tariff = Tariff(event)

    @hookimpl
    def status(self) -> Status:
        """Report how many requests were admitted and refused, and whether the store works."""
        return views.status(
            admission=self._admission.counts,
            loss=self._restoration.loss,
            now=self._services.clock.now(),
            accounts=self._accounts,
            ledger=self._ledger,
            repository=self._repository,
            queue=self._queue,
            uncountable_prompts=self._estimator.uncountable,
            unpriced=unpriced_limits(
                self._repository.directory.all(),
                self._config.gateway_limits,
                self._estimator.unpriced(),
                self._services.unpriced,
            ),
            on_failure=self._config.on_failure,
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return AdminRoutes(self._config, self._repository, self._ledger).routes()


plugin = PluginInfo(
    name="quota",
    config=QuotaConfig,
    factory=Quota,
    summary="Tenants, limits and budgets: reserved before a request, settled after it.",
    commands="pointsman_quota.commands:group",
    meters=True,
    labels=(TENANT_LABEL, MARK_LABEL),
    requires=">=0.1,<0.2",
)
