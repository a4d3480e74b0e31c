"""The plugin: hooks, wired to the parts that do the work."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from pointsman import PluginInfo, hookimpl
from pointsman.types import OWN_CALLS, BudgetSpent, Status

from . import bill, payer
from .config import BillingConfig
from .delivery import Delivery
from .errors import OutboxUnavailable
from .outbox import Outbox
from .reports import Reports
from .rules import Tariff
from .share import Sharing
from .surface import Surface

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, RequestContext, Settlement

    from .bill import Bill, Quote

log: Final = logging.getLogger("pointsman.billing")

_DAY_S: Final = 86_400
_MEGABYTE: Final = 1_000_000
_PRUNE_S: Final = 60.0
_STATUS_S: Final = 5.0
#: Bills of our own calls that wait in memory while the outbox fails; more are lost, and counted.
_MOST_WAITING: Final = 10_000
_RETRY_S: Final = 1.0
_DRAIN_S: Final = 2.0


class Billing:
    """Writes down what every attempt cost, and delivers it.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: BillingConfig) -> None:
        self._config = config
        self._sinks = tuple(sink.name for sink in config.sinks)
        self._waiting: deque[Bill] = deque()
        self._more = asyncio.Event()
        self._deliveries: list[Delivery] = []
        self._rows: list[dict[str, Any]] = []
        self._announced: dict[str, None] = {}
        self._unnoted: list[str] = []
        self._flushing = asyncio.Lock()
        self._stopped = False
        self._billed = self._lost = self._refused = self._odd = self._odd_amounts = 0
        self._trouble = ""

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Open the outbox and begin to deliver."""
        config = self._config
        self._services = services
        self._tariff = Tariff(config, services.prices, services.clock)
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
            for sink in config.sinks:
                await self._join(sink.name, from_now=sink.config.start == "now")
        except BaseException:
            self._outbox.close_soon()
            raise
        self._machine = machine
        self._reports = Reports(directory, self._sinks, config.outbox.timeout_s)
        self._sharing = Sharing(
            services.store, self._reports, machine, services.clock, float(config.outbox.usage_retention_days * _DAY_S)
        )
        self._deliveries = [Delivery(sink, self._outbox, services) for sink in config.sinks]
        services.tasks.spawn(self._keep_open(), name="outbox")
        for delivery in self._deliveries:
            services.tasks.spawn(delivery.run(), name=f"deliver to {delivery.name}")
        services.tasks.spawn(self._write_own_calls(), name="own calls")
        services.tasks.every(_PRUNE_S, self._prune, name="clear away")
        services.tasks.every(_STATUS_S, self._look, name="look at the sinks")
        services.tasks.every(config.share_s, self._sharing.write, name="share sums")

    async def _join(self, sink: str, *, from_now: bool) -> None:
        await self._outbox.write(lambda db: db.join(sink, from_now=from_now))

    async def _keep_open(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # However this worker ends, its thread does too.
            self._outbox.close_soon()

    @hookimpl
    async def shutdown(self) -> None:
        """Deliver what can be delivered at once, and let go of everything."""
        try:
            await self._flush_own_calls_if_possible()
            try:
                async with asyncio.timeout(_DRAIN_S):
                    for delivery in self._deliveries:
                        await delivery.drained()
            except TimeoutError:
                pass  # It waits in the outbox.
            await self._sharing.write_if_possible()
            for delivery in self._deliveries:
                await delivery.stop()
            # Those that have ended meanwhile.
            await self._flush_own_calls_if_possible()
        finally:
            self._stopped = True
            for made in self._waiting:
                self._lose(made)
            await self._outbox.close()

    # -- traffic ------------------------------------------------------------------------------------------------------

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Bill a call of our own; what belongs to a client request is billed when that is settled."""
        self._observe(ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Bill what a call of our own had used before it failed."""
        self._observe(ctx, attempt)

    def _observe(self, ctx: RequestContext, attempt: Attempt) -> None:
        if attempt.kind not in OWN_CALLS:
            return
        tenant = payer.of_own_call(attempt.labels, ctx.identity, self._config.own_tenant)
        made = bill.of_own_call(ctx, attempt, tenant, self._quote(tenant, ctx.model, attempt))
        if made is None:
            return
        if self._stopped or len(self._waiting) >= _MOST_WAITING:
            self._lose(made)
            return
        self._waiting.append(made)
        self._more.set()

    def _lose(self, made: Bill) -> None:
        self._lost += 1
        why = "the worker has ended" if self._stopped else "the outbox fails and too many wait"
        log.error("billing lost the %s call %s: %s", made.lines[0].kind, made.request_id, why)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Write the bill down; the settlement is done when it is committed."""
        tenant = payer.of_request(settlement.labels, settlement.identity, self._config.default_tenant)
        made = bill.of_settlement(settlement, tenant, lambda attempt: self._quote(tenant, settlement.model, attempt))
        await self._append([made], settled=bool(settlement.attempts))

    def _quote(self, tenant: str, model: str, attempt: Attempt) -> Quote:
        if attempt.usage is not None and bill.believable(attempt.usage) is None:
            self._odd += 1
            log.error("request %s: the provider reports impossible tokens; they count as unknown", attempt.request_id)
        return self._tariff.quote(tenant, model, attempt)

    async def _append(self, bills: Sequence[Bill], *, settled: bool) -> None:
        """Write bills down and announce what was spent.

        Raises:
            OutboxUnavailable: they were not written.
        """
        try:
            unannounced = await self._outbox.append(bills)
        except OutboxUnavailable as err:
            self._refused += 1
            self._trouble = str(err)
            raise
        self._trouble = ""
        if any(made.events for made in bills):
            for delivery in self._deliveries:
                delivery.wake()
        new = [made for made, first in zip(bills, unannounced, strict=True) if first]
        self._billed += len(new)
        for made in new:
            if made.refused:
                self._odd_amounts += made.refused
                log.error(
                    "request %s: the prices or the margin give an impossible amount; it is unpriced", made.request_id
                )
        if self._config.announce:
            self._announce(new, settled=settled)

    def _announce(self, bills: Sequence[Bill], *, settled: bool) -> None:
        # The outbox says who has been announced before; those of this moment it does not know yet.
        told = [made for made in bills if made.request_id not in self._announced]
        for made in told:
            self._announced[made.request_id] = None
            if made.lines or (settled and not made.own):
                self._services.publish(
                    BudgetSpent(
                        tenant=made.tenant,
                        cost_usd_micros=made.amount_usd_micros,
                        at=made.at_ms / 1000,
                        request_id=made.request_id,
                        settled=not made.own,
                    )
                )
        if told and not self._unnoted:
            asyncio.get_running_loop().call_soon(self._note_announced)
        self._unnoted += (made.request_id for made in told)
        while len(self._announced) > _MOST_WAITING:
            del self._announced[next(iter(self._announced))]

    def _note_announced(self) -> None:
        """Note all that was announced in this turn of the event loop: those of one commit go on together."""
        noted, self._unnoted = self._unnoted, []
        self._outbox.write_soon(lambda db: db.announced(noted))

    async def _write_own_calls(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self._flush_own_calls()
            except OutboxUnavailable:
                await self._services.clock.sleep(_RETRY_S)
                self._more.set()

    async def _flush_own_calls(self) -> None:
        """Write down what waits.

        Raises:
            OutboxUnavailable: not all of it was written; it still waits.
        """
        async with self._flushing:
            while self._waiting:
                bills = list(self._waiting)
                await self._append(bills, settled=False)
                # More may have come behind them; nobody else takes any away.
                for _ in bills:
                    self._waiting.popleft()

    async def _flush_own_calls_if_possible(self) -> None:
        try:
            await self._flush_own_calls()
        except OutboxUnavailable as err:
            log.warning("billing could not write down calls of our own at the end: %s", err)

    # -- upkeep -------------------------------------------------------------------------------------------------------

    async def _prune(self) -> None:
        now = self._services.clock.now()
        before_ms = int((now - self._config.outbox.retention_days * _DAY_S) * 1000)
        hours_s = int(now - self._config.outbox.usage_retention_days * _DAY_S)
        more = True
        while more:
            more = await self._outbox.write(lambda db: db.prune(before_ms=before_ms, hours_before_s=hours_s))

    async def _look(self) -> None:
        self._rows = await asyncio.to_thread(self._reports.sinks)

    @hookimpl
    def status(self) -> Status:
        """Say what was billed, and how each sink is doing."""
        rows = {row["name"]: row for row in self._rows}
        problems = [f"outbox: {self._trouble}"] if self._trouble else []
        if self._lost:
            problems.append(f"{self._lost} calls of our own were not billed")
        for name in self._sinks:
            row = rows.get(name, {})
            if row.get("tries"):
                problems.append(f"sink {name} fails ({row['tries']} times): {row['error']}")
            if row.get("dead"):
                problems.append(f"sink {name} has {row['dead']} dead letters")
        pending = sum(row["pending"] for row in self._rows)
        return Status(
            ok=not problems,
            summary=" ".join("; ".join(problems).split())
            or f"{self._billed} bills written, {len(self._sinks)} sinks, {pending} events to deliver",
            details={
                "machine": getattr(self, "_machine", None),
                "bills_written": self._billed,
                "refused_by_outbox": self._refused,
                "own_calls_waiting": len(self._waiting),
                "own_calls_lost": self._lost,
                "odd_usages": self._odd,
                "odd_amounts": self._odd_amounts,
                "commits": self._outbox.commits,
                "sinks": [
                    {**rows.get(delivery.name, {"name": delivery.name}), "delivers_here": delivery.progress.active}
                    for delivery in self._deliveries
                ],
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""

        def redriven() -> None:
            for delivery in self._deliveries:
                delivery.wake()

        return Surface(
            outbox=self._outbox,
            reports=self._reports,
            sharing=self._sharing,
            machine=self._machine,
            sinks=self._sinks,
            clock=self._services.clock,
            zone=ZoneInfo(self._config.timezone),
            redriven=redriven,
        ).routes()


plugin = PluginInfo(
    name="billing",
    config=BillingConfig,
    factory=Billing,
    summary="Every token that was paid for, once: durable events, sinks, prices, reconciliation.",
    commands="pointsman_billing.commands:group",
)
