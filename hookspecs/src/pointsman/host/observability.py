"""What operators see of one worker: metrics and recent requests, shared with the other workers."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from ..errors import StoreError
from ..store.protocol import JSON, StateStore
from ..types import Outcome
from .counters import Family, merged, simple
from .exporters import metric_exporters
from .hook_costs import MeasuredStore
from .metrics_export import Sender, interval_s
from .recent import NotAdmitted, Recent, Record, explanation
from .tracing import ids
from .workers import TICK_S, Peers

if TYPE_CHECKING:
    from ..plugin import Clock
    from ..types import Settlement, Status
    from .exchange import Exchange
    from .isolation import Faults
    from .journal_rows import Counts
    from .metrics import Metrics
    from .runtime import TaskGroup

log: Final = logging.getLogger("pointsman")


class Observed:
    """What one worker counts and remembers.

    Args:
        metrics: What is counted.
        recent_requests: Finished requests to remember.
        worker: This worker's name.
        clock: Time.
        new_id: Returns a unique id.
        present: Returns what is counted elsewhere, or is true just now.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        recent_requests: int,
        worker: str,
        clock: Clock,
        new_id: Callable[[], str],
        present: Callable[[], list[Family]],
    ) -> None:
        self.metrics = metrics
        self.recent = Recent(recent_requests)
        #: Whether nothing is counted or remembered of a request.
        self.blind = not metrics.enabled and not recent_requests
        self.worker = worker
        self._clock = clock
        self._new_id = new_id
        self._peers: Peers | None = None
        self._sender: Sender | None = None
        metrics.add_view(present)

    def measured(self, store: StateStore, plugin: str) -> StateStore:
        """Return the store with a plugin's waits for it measured."""
        return MeasuredStore(store, plugin, self.metrics.store_duration) if self.metrics.enabled else store

    def count(self, exchange: Exchange, settlement: Settlement) -> None:
        """Count and remember a request that has ended."""
        seen = None if exchange.span is None else ids(exchange.span)
        trace_id = seen.trace_id if seen is not None else None
        self.metrics.record(settlement, seen, own=exchange.detached)
        ctx = exchange.ctx
        self.recent.keep(
            Record(
                settlement,
                exchange.decisions,
                trace_id,
                own=exchange.detached,
                parent_id=ctx.parent_id,
                unknown_model=exchange.unknown_model,
            )
        )

    def not_admitted(self, ended: NotAdmitted) -> None:
        """Count and remember a request that was never admitted."""
        if ended.denial is not None:
            self.metrics.denied(ended.denial.plugin, ended.denial.code)
        elif ended.outcome is Outcome.DENIED:
            self.metrics.denied("litellm", ended.error_type or str(ended.status))
        self.recent.keep_not_admitted(ended)

    # -- life ---------------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send metrics by OTLP where the environment asks for it, and measure the event loop; called before ``start``.

        Raises:
            ConfigError: an ``OTEL_*`` variable names something that is not supported.
        """
        if self.metrics.enabled:
            self._sender = Sender(metric_exporters(os.environ), self.metrics.collect, self._clock, self.worker)
            self.metrics.watch_loop()

    def start(self, store: StateStore | None, tasks: TaskGroup) -> None:
        """Begin to share with other workers, and to send.

        Args:
            store: The host's part of the store; None where no other worker shares it.
            tasks: Where the background work runs.
        """
        if store is not None:
            self._peers = Peers(
                store,
                worker=self.worker,
                clock=self._clock,
                collect=self.metrics.collect,
                answer=self.explain,
                new_id=self._new_id,
            )
            tasks.every(TICK_S, self._peers.tick, name="share metrics")
        if self._sender is not None and self._sender.enabled:
            tasks.every(interval_s(os.environ), self._sender.send, name="send metrics")

    async def close(self) -> None:
        """Begin to send for the last time, and leave what was counted to the other workers."""
        self.metrics.stop()
        if self._sender is not None:
            self._sender.end()
        if self._peers is not None:
            with contextlib.suppress(StoreError):
                await self._peers.leave()

    async def sent(self) -> None:
        """Wait until what was sent last has arrived, but not for long."""
        if self._sender is not None:
            await self._sender.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read_metrics(self) -> list[Family]:
        """Return the metrics of all workers as one; those of this one alone where the store does not answer."""
        if self._peers is not None:
            try:
                return await self._peers.metrics()
            except StoreError as err:
                log.warning("the metrics of other workers are missing: %s", err)
        return merged([self.metrics.collect()])

    def explain(self, request_id: str) -> JSON:
        """Return why one of this worker's recent requests went where it went, or None when it is not among them."""
        record = self.recent.find(request_id)
        return None if record is None else explanation(record, self.worker, self.recent.related(record))

    async def explain_anywhere(self, request_id: str) -> JSON:
        """Return why a recent request of any worker went where it went, or None when it is none's.

        Raises:
            StoreError: the other workers cannot be asked.
        """
        found = self.explain(request_id)
        if found is not None or self._peers is None:
            return found
        return await self._peers.ask(request_id)


def present_families(
    *,
    open_requests: int,
    settlements: Counts,
    waiting: Mapping[str, int],
    faults: Faults,
    statuses: Mapping[str, Status],
    dropped_events: int,
    tracing_failures: int,
) -> list[Family]:
    """Return the host's own figures as metrics."""
    states = {
        "submitted": settlements.submitted,
        "settled": settlements.settled,
        "retried": settlements.retried,
        "recovered": settlements.recovered,
        "unjournaled": settlements.unjournaled,
    }
    faulty = [({"pointsman.plugin": p, "pointsman.hook": hook}, count) for (p, hook), count in faults.counts.items()]
    by_plugin = [({"pointsman.plugin": plugin}, count) for plugin, count in waiting.items()]
    fine = [({"pointsman.plugin": name}, float(status.ok)) for name, status in statuses.items()]
    by_state = [({"pointsman.settlement.state": state}, count) for state, count in states.items()]
    return [
        simple("pointsman.requests.open", "updown", "{request}", "Requests that run.", [({}, open_requests)]),
        simple("pointsman.workers", "updown", "{worker}", "Workers that run.", [({}, 1)]),
        simple("pointsman.settlements", "counter", "{settlement}", "Settlements by what became of them.", by_state),
        simple(
            "pointsman.settlements.waiting",
            "updown",
            "{settlement}",
            "Settlements that a plugin still has to settle.",
            by_plugin,
        ),
        simple(
            "pointsman.plugin.faults",
            "counter",
            "{fault}",
            "Faults of plugins' hooks and background tasks, missed deadlines included.",
            faulty,
        ),
        simple("pointsman.plugin.ok", "updown", "{worker}", "Workers in which the plugin's status is ok.", fine),
        simple(
            "pointsman.events.dropped",
            "counter",
            "{event}",
            "Events between plugins that were lost because too many waited.",
            [({}, dropped_events)],
        ),
        simple(
            "pointsman.tracing.failures", "counter", "{failure}", "Failures to make spans.", [({}, tracing_failures)]
        ),
    ]
