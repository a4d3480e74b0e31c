"""The plugin: hooks, wired to the modules that do the work."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from opentelemetry import trace

from pointsman import PluginInfo, hookimpl
from pointsman.errors import Conflict, StoreError
from pointsman.events import BudgetsLost, PastSpending
from pointsman.types import OWN_CALLS, OwnCallEnded, StoreEmptied

from . import bill, views
from .aggregates import SharedAggregates, Span
from .config import BillingConfig
from .delivery import LOOK_S as LOOK_FOR_EVENTS_S
from .delivery import Delivery
from .errors import OutboxUnavailable
from .held import Held
from .instruments import instrument
from .neighbours import LOOK_S, Neighbours
from .outbox import Outbox
from .own_calls import OwnCalls, Unlogged
from .past_spending import by_spender
from .pricing import Tariff, announced
from .recorder import Recorder
from .reports import Reports
from .routes import AdminRoutes
from .tenant import key_of, tenant_of_own_call, tenant_of_request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Event, RequestContext, Settlement, Status

    from .pricing import Quote

log: Final = logging.getLogger("pointsman.billing")

_DAY_S: Final = 86_400
_MEGABYTE: Final = 1_000_000
_PRUNE_S: Final = 60.0
_STATUS_S: Final = 5.0
_LATE_S: Final = 1.0
#: Seconds between looks for bills that a worker that has died has left held.
_HELD_S: Final = 5.0
_DRAIN_S: Final = 2.0
#: How long budgets that a store has lost may take to be rebuilt, in seconds.
_NOTE_LIFE_S: Final = 60.0


class Billing:
    """Records what every attempt cost, and delivers it.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: BillingConfig) -> None:
        self._config = config
        self._sinks = tuple(sink.name for sink in config.sinks)
        self._machine = ""
        self._deliveries: list[Delivery] = []
        self._sink_rows: list[dict[str, Any]] = []
        self._implausible_usages = 0
        #: Why the outbox could not be read last time; empty when it could.
        self._trouble = ""

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Open the outbox and start to deliver."""
        config = self._config
        self._services = services
        self._tariff = Tariff(
            services.prices,
            overrides=config.prices,
            margins=config.margins,
            trust_gateway=config.cost_from == "gateway",
        )
        directory = services.base / config.outbox.path
        self._outbox = Outbox(
            directory,
            sinks=self._sinks,
            fsync=config.outbox.fsync,
            timeout_s=config.outbox.timeout_s,
            max_bytes=config.outbox.max_size_mb * _MEGABYTE,
        )
        await self._outbox.open()
        try:
            machine = await self._outbox.write(lambda db: db.meta("machine", services.new_id()))
            lives = await self._outbox.read(lambda db: db.lives())
            self._life = services.store_life(lives)
            if not lives:
                await self._outbox.write(lambda db: db.note_life(self._life))
            for sink in config.sinks:
                await self._join(sink.name, from_now=sink.config.start == "now")
        except BaseException:
            self._outbox.close_soon()
            raise
        self._machine = machine
        self._neighbours = Neighbours(self._outbox, services, machine, self._life)
        self._held = Held(self._outbox, services, self._wake_deliveries, self._neighbours)
        held = services.takeovers.keep_at(machine, final=self._held.release, taken=self._held.discard)
        self._recorder = Recorder(
            self._outbox,
            services.publish if config.announce else None,
            self._wake_deliveries,
            holder=services.worker if held else None,
        )
        self._own_calls = OwnCalls(self._recorder, services.clock)
        self._unlogged = Unlogged(services.clock, self._bill_own_call)
        self._reports = Reports(directory, self._sinks, config.outbox.timeout_s)
        self._shared = SharedAggregates(
            services.store, self._reports, machine, services.clock, float(config.outbox.usage_retention_days * _DAY_S)
        )
        self._deliveries = [Delivery(sink, self._outbox, services) for sink in config.sinks]
        instrument(
            services.meter,
            bills=lambda: self._recorder.recorded,
            lost=lambda: self._own_calls.lost,
            unpriced=lambda: len(self._tariff.without_price(services.catalog.deployments())),
            sinks=lambda: self._sink_rows,
        )
        if config.announce and (config.prices or config.margins):
            services.publish(announced(config.prices, config.margins))
        services.tasks.spawn(self._keep_open(), name="outbox")
        for delivery in self._deliveries:
            services.tasks.forever(delivery.run, name=f"deliver to {delivery.name}")
            services.tasks.every(LOOK_FOR_EVENTS_S, delivery.look, name=f"look for events for {delivery.name}")
        services.tasks.forever(self._own_calls.run, name="own calls")
        services.tasks.every(_LATE_S, self._unlogged.give_up, name="own calls without a logged cost")
        services.tasks.every(_PRUNE_S, self._prune, name="prune")
        services.tasks.every(_STATUS_S, self._read_sinks, name="read sinks")
        services.tasks.every(config.share_s, self._shared.write, name="share sums")
        services.tasks.spawn(self._note_life(), name="note the store's life")
        # Before the first request, so that gateways with another store leave what it holds; the task tries again what fails.
        with suppress(OutboxUnavailable, StoreError, Conflict):
            await self._neighbours.look()
        services.tasks.every(LOOK_S, self._neighbours.look, name="other users of the outbox")
        services.tasks.every(_HELD_S, self._held.resolve, name="resolve held")

    async def _note_life(self) -> None:
        # Not at once: a worker that ends before budgets are rebuilt leaves it to the next one. To do so twice is harmless.
        await self._services.clock.sleep(_NOTE_LIFE_S)
        life = self._life
        await self._outbox.write(lambda db: db.note_life(life))

    async def _join(self, sink: str, *, from_now: bool) -> None:
        now_ms = int(self._services.clock.now() * 1000)
        since_ms = await self._outbox.write(lambda db: db.join(sink, from_now=from_now, now_ms=now_ms))
        if since_ms is not None:
            since = datetime.fromtimestamp(since_ms / 1000, UTC).isoformat(timespec="seconds")
            log.info("billing sink %s is new: it gets what has ended since %s", sink, since)

    async def _keep_open(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # However this worker ends, its thread ends with it.
            self._outbox.close_soon()

    @hookimpl
    async def shutdown(self) -> None:
        """Deliver what can be delivered at once, and release everything."""
        self._unlogged.stop()
        self._neighbours.stop()
        try:
            await self._own_calls.flush_if_possible()
            await self._held.flush()
            try:
                async with asyncio.timeout(_DRAIN_S):
                    for delivery in self._deliveries:
                        await delivery.drained()
            except TimeoutError:
                pass  # The rest stays in the outbox.
            await self._shared.write_if_possible()
            for delivery in self._deliveries:
                await delivery.stop()
            # Calls that ended in the meantime.
            await self._own_calls.flush_if_possible()
        finally:
            self._own_calls.stop()
            self._recorder.note_announced()
            await self._outbox.close()

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Bill an own call; the attempts of a client request are billed when it is settled."""
        self._add_own_call(ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Bill what an own call used before it failed."""
        self._add_own_call(ctx, attempt)

    def _add_own_call(self, ctx: RequestContext, attempt: Attempt) -> None:
        if attempt.kind in OWN_CALLS:
            self._unlogged.add(ctx, attempt)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Bill own calls that the gateway has logged; answer a store that was emptied, and budgets that it has lost."""
        if isinstance(event, OwnCallEnded):
            self._unlogged.complete(event.attempts)
        elif isinstance(event, StoreEmptied):
            self._shared.write_again()
            self._life = event.life
            self._neighbours.lives_on_as(event.life)
            self._services.tasks.spawn(self._note_life(), name="note the store's life")
        elif isinstance(event, BudgetsLost):
            since_s, to_s = int(max(event.month_began, event.since)), int(event.at) + 1
            rows = await asyncio.to_thread(self._reports.written, Span(since_s, to_s))
            self._services.publish(
                PastSpending(
                    asked=event,
                    place=self._machine,
                    months=by_spender(rows),
                    days=by_spender(row for row in rows if row[0] >= event.day_began),
                )
            )

    def _bill_own_call(self, ctx: RequestContext, attempt: Attempt) -> None:
        tenant = tenant_of_own_call(attempt.labels, ctx.identity, self._config.own_tenant, payer=ctx.payer)
        owed = bill.of_own_call(ctx, attempt, tenant, self._quote(tenant, ctx.model, attempt), key_of(ctx.identity))
        if owed is not None:
            self._own_calls.add(owed)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Record the bill; the settlement is done when it is committed."""
        tenant = tenant_of_request(settlement.labels, settlement.identity, self._config.default_tenant)
        owed = bill.of_settlement(
            settlement,
            tenant,
            lambda attempt: self._quote(tenant, settlement.model, attempt),
            key_of(settlement.identity),
        )
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(views.span_attributes(owed))
        await self._recorder.record([owed], settled=bool(settlement.attempts))

    def _quote(self, tenant: str, model: str, attempt: Attempt) -> Quote:
        if attempt.usage is not None and bill.plausible_usage(attempt.usage) is None:
            self._implausible_usages += 1
            log.error(
                "request %s: deployment %r reports %s, which cannot be, so its usage counts as unknown; look up the request "
                "in the provider's own account",
                attempt.request_id,
                attempt.deployment.id,
                bill.implausible_counts(attempt.usage),
            )
        return self._tariff.quote(tenant, model, attempt)

    def _wake_deliveries(self) -> None:
        for delivery in self._deliveries:
            delivery.wake()

    async def _prune(self) -> None:
        now = self._services.clock.now()
        before_ms = int((now - self._config.outbox.retention_days * _DAY_S) * 1000)
        usage_s = int(now - self._config.outbox.usage_retention_days * _DAY_S)
        more = True
        while more:
            more = await self._outbox.write(lambda db: db.prune(before_ms=before_ms, usage_before_s=usage_s))

    async def _read_sinks(self) -> None:
        try:
            await self._outbox.read(lambda db: db.check_place())
            self._sink_rows = await asyncio.to_thread(self._reports.sinks)
        except OutboxUnavailable as err:
            if not self._trouble:
                log.error("billing: %s", err)  # noqa: TRY400  # the message says all
            self._trouble = str(err)
        else:
            self._trouble = ""

    @hookimpl
    def status(self) -> Status:
        """Report what was billed, and the state of each sink."""
        return views.status(
            machine=self._machine,
            recorder=self._recorder,
            troubles=(self._trouble, *self._neighbours.problems),
            own_calls=self._own_calls,
            unlogged=len(self._unlogged),
            outbox=self._outbox,
            deliveries=self._deliveries,
            sink_rows=self._sink_rows,
            now=self._services.clock.now(),
            implausible_usages=self._implausible_usages,
            without_price=self._tariff.without_price(self._services.catalog.deployments()),
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return AdminRoutes(
            outbox=self._outbox,
            reports=self._reports,
            shared=self._shared,
            machine=self._machine,
            sinks=self._sinks,
            clock=self._services.clock,
            zone=ZoneInfo(self._config.timezone),
            redriven=self._wake_deliveries,
        ).routes()


plugin = PluginInfo(
    name="billing",
    config=BillingConfig,
    factory=Billing,
    summary="Every token that was paid for, once: durable events, sinks, prices, reconciliation.",
    commands="pointsman_billing.commands:group",
    meters=True,
    requires=">=0.1,<0.2",
)
