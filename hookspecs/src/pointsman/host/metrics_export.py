"""Sends this worker's metrics by OTLP, where the standard ``OTEL_*`` variables ask for it.

Collected in the event loop, sent from a thread of its own: a collector that is slow or gone delays nothing, and the last
export at shutdown is waited for ``LAST_S`` seconds at most. Sums are cumulative.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import (
    Histogram as SdkHistogram,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from .tracing import resource

if TYPE_CHECKING:
    from ..plugin import Clock
    from .counters import Family, Point

log: Final = logging.getLogger("pointsman")

DEFAULT_INTERVAL_S: Final = 60.0
#: Longest wait for the last export, in seconds.
LAST_S: Final = 1.5
_THREAD: Final = "pointsman-metrics"
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


def interval_s(env: Mapping[str, str]) -> float:
    """Return the seconds between two exports: ``OTEL_METRIC_EXPORT_INTERVAL``, which is in milliseconds."""
    try:
        value = float(env.get("OTEL_METRIC_EXPORT_INTERVAL") or DEFAULT_INTERVAL_S * 1000) / 1000
    except ValueError:
        return DEFAULT_INTERVAL_S
    return value if 0 < value < float("inf") else DEFAULT_INTERVAL_S


class Sender:
    """Sends one worker's metrics.

    Args:
        found: The exporters.
        collect: Returns the metrics; called in the event loop.
        clock: Time.
        worker: This worker's name: the resource's ``service.instance.id``.
    """

    def __init__(
        self, found: Iterable[MetricExporter], collect: Callable[[], list[Family]], clock: Clock, worker: str
    ) -> None:
        self._exporters = list(found)
        self._collect = collect
        self._clock = clock
        self._started_ns = int(clock.now() * 1e9)
        self._resource = resource(worker)
        self._busy: asyncio.Future[bool] | None = None
        self._last: asyncio.Future[None] | None = None
        self.exports = 0
        self.failures = 0
        if self._exporters:
            logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter").addFilter(_not_ours)

    @property
    def enabled(self) -> bool:
        """Whether there is anything to send to."""
        return bool(self._exporters)

    async def send(self) -> None:
        """Send once, unless the export before has not ended yet."""
        if self._busy is not None and not self._busy.done():
            return
        data = self.data()
        self._busy = _in_thread(lambda: self._export(data))
        try:
            sent = await asyncio.shield(self._busy)
        except Exception as err:  # noqa: BLE001  # telemetry never harms the proxy
            self._failed(f"{type(err).__name__}: {err}")
            return
        if sent:
            self.exports += 1
        else:
            self._failed("the collector did not accept them")

    def _failed(self, why: str) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning(
                "metrics could not be sent by OTLP, requests are not affected: %s; if the collector takes no metrics, set "
                "OTEL_METRICS_EXPORTER=none",
                why,
            )

    def end(self) -> None:
        """Begin to send for the last time."""
        if self._exporters:
            self._last = asyncio.ensure_future(self.send())

    async def close(self) -> None:
        """Wait until that is done, and give up after ``LAST_S`` seconds."""
        if self._last is None:
            return
        await asyncio.wait({self._last}, timeout=LAST_S)
        if not self._last.done():
            self._last.cancel()
            self.failures += 1
        for exporter in self._exporters:
            # It may wait for the thread that still sends.
            threading.Thread(target=exporter.shutdown, name=_THREAD, daemon=True).start()

    def _export(self, data: MetricsData) -> bool:
        results = [exporter.export(data) for exporter in self._exporters]
        return all(result is MetricExportResult.SUCCESS for result in results)

    def data(self) -> MetricsData:
        """Return the present metrics as OpenTelemetry's exporters want them."""
        now_ns = int(self._clock.now() * 1e9)
        metrics = [self._metric(family, now_ns) for family in self._collect()]
        scope = ScopeMetrics(InstrumentationScope("pointsman", __version__), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, family: Family, now_ns: int) -> Metric:
        points = family.points
        data: Any
        if family.kind == "histogram":
            data = SdkHistogram([self._distribution(family, point, now_ns) for point in points], _CUMULATIVE)
        else:
            values = [
                NumberDataPoint(dict(point.labels), self._started_ns, now_ns, float(point.value), [])
                for point in points
            ]
            data = (
                Gauge(values)
                if family.kind == "gauge"
                else Sum(values, _CUMULATIVE, is_monotonic=family.kind == "counter")
            )
        return Metric(family.name, family.description, family.unit, data)

    def _distribution(self, family: Family, point: Point, now_ns: int) -> HistogramDataPoint:
        exemplars = [
            Exemplar({}, e.value, int(e.at * 1e9), int(e.span_id, 16), int(e.trace_id, 16)) for e in point.exemplars
        ]
        unknown: Any = None  # neither the least nor the greatest value is kept
        return HistogramDataPoint(
            dict(point.labels),
            self._started_ns,
            now_ns,
            sum(point.counts),
            point.value,
            point.counts,
            family.bounds,
            unknown,
            unknown,
            exemplars,
        )


def _in_thread(work: Callable[[], bool]) -> asyncio.Future[bool]:
    """Run in a daemon thread, which the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()

    def settle(result: bool | None, err: BaseException | None) -> None:
        if future.done():
            return
        if err is not None:
            future.set_exception(err)
        else:
            future.set_result(bool(result))

    def run() -> None:
        result: bool | None = None
        failed: BaseException | None = None
        try:
            result = work()
        except Exception as err:  # noqa: BLE001  # handed to the waiting side
            failed = err
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return future


def _not_ours(record: logging.LogRecord) -> bool:
    """Return whether another thread than ours logs: what fails here is logged once, by us."""
    return record.threadName != _THREAD
