"""Metrics of one worker: what the host counts about requests, attempts, hooks and the store, and what plugins add.

Names follow OpenTelemetry's semantic conventions for generative AI where those have one, else ``pointsman.*``. Everything is
counted when a request has ended, off its path; ``services.meter`` is an OpenTelemetry meter of the SDK. Nothing is collected
until ``GET /pointsman/metrics`` or an exporter asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import Meter, NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    InMemoryMetricReader,
    MetricsData,
    Sum,
)
from opentelemetry.sdk.metrics.export import (
    Histogram as SdkHistogram,
)
from opentelemetry.sdk.resources import Resource
from pydantic import Field

from ..config import Section
from ..types import AttemptKind, ErrorClass, Outcome
from .attributes import operation as operation_of
from .attributes import provider_name
from .counters import OTHER, Counter, Exemplar, Family, Histogram, Kind, Point
from .plugin_meter import Callbacks, PluginMeter

if TYPE_CHECKING:
    from ..types import Attempt, Deployment, Settlement
    from .tracing import SpanIds

log: Final = logging.getLogger("pointsman")

#: Bounds that the semantic conventions give for durations and for token counts.
SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_CHUNK_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TOKENS: Final = tuple(4.0**power for power in range(14))
SHORT_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_GEN_AI: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
#: Models of one deployment that are told apart: clients choose the names of a wildcard group's and of pass-through routes.
MOST_MODELS: Final = 50
#: How often the loop's lag is measured, in seconds.
_LAG_EVERY_S: Final = 0.5


class MetricsConfig(Section):
    """Whether metrics are counted; the standard ``OTEL_*`` variables decide whether they are also sent by OTLP."""

    enabled: bool = Field(
        default=True, description="Whether metrics are counted, for GET /pointsman/metrics and OTLP; false counts none."
    )


class Metrics:
    """What one worker counts, or nothing.

    Args:
        enabled: Whether anything is counted.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._provider: MeterProvider | None = None
        self._reader: InMemoryMetricReader | None = None
        self.instruments: list[Counter | Histogram] = []
        self._views: list[Callable[[], Iterable[Family]]] = []
        #: What plugins' observable instruments ask, by plugin.
        self.callbacks: dict[str, Callbacks] = {}
        self._lag: asyncio.TimerHandle | None = None
        #: The models of each deployment that are told apart.
        self._models: dict[str, set[str]] = {}
        self.request_duration = self._histogram(
            "pointsman.request.duration",
            "From a request's arrival to the end of its answer.",
            "s",
            ("pointsman.endpoint", "pointsman.group", "pointsman.outcome", "pointsman.stream"),
            SECONDS,
        )
        self.first_content = self._histogram(
            "pointsman.request.time_to_first_content",
            "From a request's arrival to the first content of its streamed answer.",
            "s",
            ("pointsman.endpoint", "pointsman.group"),
            FIRST_CHUNK_S,
        )
        self.operation_duration = self._histogram(
            "gen_ai.client.operation.duration",
            "Duration of one attempt at a deployment; with error.type, it failed.",
            "s",
            (*_GEN_AI, "pointsman.deployment", "pointsman.attempt.kind", "pointsman.attempt.result", "error.type"),
            SECONDS,
        )
        self.token_usage = self._histogram(
            "gen_ai.client.token.usage",
            "Tokens that one attempt used.",
            "{token}",
            (*_GEN_AI, "gen_ai.token.type"),
            TOKENS,
        )
        self.first_chunk = self._histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "From the call of a deployment to its first content.",
            "s",
            (*_GEN_AI, "pointsman.deployment"),
            FIRST_CHUNK_S,
        )
        self.attempts = self._counter(
            "pointsman.attempts",
            "Attempts by why they were made and what became of them: answered, lost to another attempt, failed, refused, left "
            "by the client, cancelled, or ok for calls of our own.",
            "{attempt}",
            ("pointsman.group", "pointsman.deployment", "pointsman.attempt.kind", "pointsman.attempt.result"),
        )
        self.denials = self._counter(
            "pointsman.denials",
            "Requests that a plugin, Pointsman or LiteLLM denied, those whose key was refused included.",
            "{request}",
            ("pointsman.plugin", "pointsman.denial.code"),
        )
        self.cost = self._counter(
            "pointsman.cost",
            "What attempts cost by the gateway's prices, in US dollars.",
            "USD",
            ("pointsman.group", "pointsman.deployment", "pointsman.attempt.kind"),
        )
        self.unpriced = self._counter(
            "pointsman.unpriced",
            "Attempts that used something whose price is unknown.",
            "{attempt}",
            ("pointsman.group", "pointsman.deployment"),
        )
        self.store_duration = self._histogram(
            "pointsman.store.duration",
            "Duration of operations of the state store.",
            "s",
            ("pointsman.plugin", "pointsman.store.operation", "error.type"),
            SHORT_S,
        )
        self.loop_lag = self._histogram(
            "pointsman.loop.lag", "How late the event loop runs what is due.", "s", (), SHORT_S
        )
        self.notices = self._counter(
            "pointsman.notices",
            "Notices for operators, by what they are about.",
            "{notice}",
            ("pointsman.plugin", "pointsman.notice.kind"),
        )

    def _histogram(self, *arguments: Any) -> Histogram:
        histogram = Histogram(*arguments)
        self.instruments.append(histogram)
        return histogram

    def _counter(self, *arguments: Any) -> Counter:
        counter = Counter(*arguments)
        self.instruments.append(counter)
        return counter

    # -- what plugins count -------------------------------------------------------------------------------------------

    def meter(self, plugin: str) -> Meter:
        """Return a plugin's meter; one that does nothing when metrics are off."""
        if not self.enabled:
            return NoOpMeter(f"pointsman.{plugin}")
        if self._provider is None:
            # Cumulative sums: several readers may ask, and workers are added up.
            self._reader = InMemoryMetricReader()
            self._provider = MeterProvider(
                metric_readers=[self._reader], resource=Resource.get_empty(), shutdown_on_exit=False
            )
        return PluginMeter(self._provider.get_meter(f"pointsman.{plugin}"), self.callbacks.setdefault(plugin, {}))

    def ask(self, plugin: str, callbacks: Callbacks) -> None:
        """Let a plugin's observable instruments ask these from now on; one that has none here shows nothing."""
        asked = self.callbacks.setdefault(plugin, {})
        asked.clear()
        asked.update(callbacks)

    def add_view(self, view: Callable[[], Iterable[Family]]) -> None:
        """Add something that is read when metrics are collected."""
        self._views.append(view)

    # -- what the host counts -----------------------------------------------------------------------------------------

    def record(self, settlement: Settlement, span: SpanIds | None, *, own: bool) -> None:
        """Count one request that has ended, with its attempts.

        Args:
            settlement: What became of it.
            span: The ids of its span, for exemplars.
            own: Whether it is a plugin's own call, for which no client waits.
        """
        if not self.enabled:
            return
        seen = None
        if span is not None and span.sampled:
            seen = (span.trace_id, span.span_id, settlement.finished_at)
        attempts = settlement.attempts
        for attempt in attempts:
            self._learn_model(attempt)
        group = self._group(attempts[0].deployment) if attempts else ""
        if not own:
            endpoint = str(settlement.endpoint)
            duration_s = (settlement.duration_ms or 0.0) / 1000
            stream = "true" if settlement.stream else "false"
            self.request_duration.record((endpoint, group, str(settlement.outcome), stream), duration_s, seen)
            if settlement.stream and settlement.first_token_ms is not None:
                self.first_content.record((endpoint, group), settlement.first_token_ms / 1000, seen)
            if settlement.denial is not None:
                self.denied(settlement.denial.plugin, settlement.denial.code)
        operation = operation_of(settlement.endpoint)
        for attempt in attempts:
            self._record_attempt(operation, attempt, settlement, seen, own=own)

    def denied(self, plugin: str, code: str) -> None:
        """Count a request that was denied.

        Args:
            plugin: The plugin; empty for Pointsman itself.
            code: The denial's.
        """
        if self.enabled:
            self.denials.add((plugin or "pointsman", code))

    def _record_attempt(
        self,
        operation: str,
        attempt: Attempt,
        settlement: Settlement,
        seen: tuple[str, str, float] | None,
        *,
        own: bool,
    ) -> None:
        deployment = attempt.deployment
        kind, group = str(attempt.kind), self._group(deployment)
        result = result_of(attempt, settlement.answered_by, own=own)
        self.attempts.add((group, deployment.id, kind, result))
        if result == "refused":
            return  # nothing was called
        model = (operation, provider_name(deployment.provider), self._model(deployment))
        if attempt.duration_ms is not None:
            error = _error_type(attempt) if result == "failed" else ""
            labels = (*model, deployment.id, kind, result, error)
            self.operation_duration.record(labels, attempt.duration_ms / 1000, seen)
        if attempt.first_token_ms is not None:
            self.first_chunk.record((*model, deployment.id), attempt.first_token_ms / 1000, seen)
        usage = attempt.usage
        if usage is not None:
            self.token_usage.record((*model, "input"), usage.prompt_tokens, seen)
            self.token_usage.record((*model, "output"), usage.completion_tokens, seen)
            if attempt.cost_usd_micros is None and attempt.gateway_cost_usd is None and not usage.is_empty:
                self.unpriced.add((group, deployment.id))
        if attempt.cost_usd_micros:
            self.cost.add((group, deployment.id, kind), attempt.cost_usd_micros / 1_000_000)

    def _learn_model(self, attempt: Attempt) -> None:
        """Tell a deployment's model apart from now on: its first one, and others that it has answered as.

        A name that a client has made up is answered by an error, and displaces no other.
        """
        deployment = attempt.deployment
        known = self._models.setdefault(deployment.id, set())
        if not known or (attempt.outcome is Outcome.OK and len(known) < MOST_MODELS):
            known.add(deployment.model)

    def _model(self, deployment: Deployment) -> str:
        return deployment.model if deployment.model in self._models.get(deployment.id, ()) else OTHER

    def _group(self, deployment: Deployment) -> str:
        """Return the label of a deployment's group; that of a pass-through route is the model that the client names."""
        return self._model(deployment) if deployment.group == deployment.model else deployment.group

    def watch_loop(self) -> None:
        """Measure from now on how late the running event loop is, in real time, until ``stop``."""
        if not self.enabled or self._lag is not None:
            return
        loop = asyncio.get_running_loop()

        def tick(due: float) -> None:
            self.loop_lag.record((), max(0.0, loop.time() - due))
            due = loop.time() + _LAG_EVERY_S
            self._lag = loop.call_at(due, tick, due)

        due = loop.time() + _LAG_EVERY_S
        self._lag = loop.call_at(due, tick, due)

    def stop(self) -> None:
        """Stop measuring."""
        if self._lag is not None:
            self._lag.cancel()
            self._lag = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def collect(self) -> list[Family]:
        """Return everything that this worker has counted. Call it in the event loop's thread: plugins are asked."""
        if not self.enabled:
            return []
        families = [family for instrument in self.instruments if (family := instrument.read()).points]
        for view in self._views:
            families += view()
        if self._reader is not None:
            data = self._reader.get_metrics_data()
            if data is not None:
                families += from_sdk(data)
        return families


def result_of(attempt: Attempt, answered_by: str | None, *, own: bool) -> str:
    """Return what became of an attempt, in one word: answered, lost, failed, refused, left, cancelled, ok."""
    if attempt.error is not None and attempt.error.kind is ErrorClass.REFUSED:
        return "refused"
    if attempt.id == answered_by and attempt.outcome is Outcome.OK:
        return "ok" if own else "answered"
    if attempt.outcome is Outcome.OK:
        return "ok" if own or attempt.kind in {AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE} else "lost"
    if attempt.outcome is Outcome.CANCELLED:
        return "lost" if answered_by is not None else "cancelled"
    return "left" if attempt.outcome is Outcome.DISCONNECTED else "failed"


def _error_type(attempt: Attempt) -> str:
    return str(attempt.error.kind) if attempt.error is not None else str(attempt.outcome)


# -- OpenTelemetry's SDK ------------------------------------------------------------------------------------------------


def from_sdk(data: MetricsData) -> list[Family]:
    """Return what instruments of the SDK have counted; attributes become text."""
    families = []
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                family = _family(metric.name, metric.unit or "", metric.description or "", metric.data)
                if family is not None:
                    families.append(family)
    return families


def _family(name: str, unit: str, description: str, data: object) -> Family | None:
    if isinstance(data, SdkHistogram):
        points = [
            Point(_text(p.attributes), p.sum, tuple(p.bucket_counts), tuple(_exemplars(p.exemplars)))
            for p in data.data_points
        ]
        bounds = tuple(data.data_points[0].explicit_bounds) if data.data_points else ()
        return Family(name, "histogram", unit, description, bounds, tuple(points))
    kind: Kind
    if isinstance(data, Sum):
        kind = "counter" if data.is_monotonic else "updown"
    elif isinstance(data, Gauge):
        kind = "gauge"
    else:
        return None  # an exponential histogram, which only a view makes
    values = tuple(Point(_text(p.attributes), p.value) for p in data.data_points)
    return Family(name, kind, unit, description, points=values)


def _text(attributes: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in (attributes or {}).items()))


def _exemplars(exemplars: Iterable[Any]) -> Iterator[Exemplar]:
    for each in exemplars:
        if each.trace_id and each.span_id:
            yield Exemplar(
                float(each.value), each.time_unix_nano / 1e9, f"{each.trace_id:032x}", f"{each.span_id:016x}"
            )
