"""Metrics as text for Prometheus: its own format, or OpenMetrics, which has exemplars.

Names follow OpenTelemetry's rules for Prometheus: dots become underscores, the unit is a suffix, counters end in
``_total``.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import Exemplar, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from .counters import Family, Point

_ODD: Final = re.compile(r"[^a-zA-Z0-9_]+")
_UNITS: Final = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "USD": "usd"}
_OPENMETRICS: Final = "application/openmetrics-text"


def prometheus_name(name: str, unit: str, kind: str) -> str:
    """Return the name of a metric in Prometheus, without the ``_total`` of a counter."""
    result = _ODD.sub("_", name).strip("_")
    suffix = _UNITS.get(unit, "ratio" if unit == "1" and kind == "gauge" else "")
    return result if not suffix or result.endswith(f"_{suffix}") else f"{result}_{suffix}"


def render(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """Return the text and its content type.

    Args:
        families: The metrics.
        accept: The ``accept`` header of the request; OpenMetrics where it names it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([_converted(family) for family in families]))
    if _OPENMETRICS in accept:
        content: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # the library's
        return content, openmetrics.CONTENT_TYPE_LATEST
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class _Collected(Collector):
    """Metrics that have been collected already, as prometheus_client wants them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return them."""
        yield from self._metrics


def _converted(family: Family) -> Metric:
    name = prometheus_name(family.name, family.unit, family.kind)
    if family.kind == "counter":
        metric = Metric(name.removesuffix("_total"), family.description, "counter")
        for point in family.points:
            metric.add_sample(f"{metric.name}_total", _labels(point), point.value)
    elif family.kind == "histogram":
        metric = Metric(name, family.description, "histogram")
        for point in family.points:
            _add_buckets(metric, family, point)
    else:
        metric = GaugeMetricFamily(name, family.description)
        for point in family.points:
            metric.add_sample(name, _labels(point), point.value)
    return metric


def _add_buckets(metric: Metric, family: Family, point: Point) -> None:
    labels = _labels(point)
    exemplars = {bisect_left(family.bounds, e.value): e for e in point.exemplars}
    total = 0
    bounds = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
    for index, (bound, count) in enumerate(zip(bounds, point.counts, strict=True)):
        total += count
        found = exemplars.get(index)
        exemplar = None
        if found is not None:
            exemplar = Exemplar({"trace_id": found.trace_id, "span_id": found.span_id}, found.value, found.at)
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, total, exemplar=exemplar)
    metric.add_sample(f"{metric.name}_count", labels, total)
    metric.add_sample(f"{metric.name}_sum", labels, point.value)


def _labels(point: Point) -> dict[str, str]:
    return {_ODD.sub("_", name): value for name, value in point.labels}
