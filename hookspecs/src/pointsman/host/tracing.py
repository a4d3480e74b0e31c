"""Spans: one per client request, one per attempt, one per async hook.

Sync hooks become attributes and events of the attempt: a recorded span costs 40 to 70 microseconds, a hook call under
one. Attribute names follow OpenTelemetry's GenAI semantic conventions, and ``pointsman.*`` for decisions.

Telemetry never harms a request: every method swallows what the SDK raises, and counts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Link, NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..errors import ConfigError

log: Final = logging.getLogger("pointsman")
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_OTLP_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Value = str | bool | int | float | Sequence[str] | Sequence[float]


class Tracing:
    """Makes spans, or does nothing.

    Args:
        tracer: Where spans are made; None: nowhere.
        provider: A provider of our own to flush at shutdown; None when it is somebody else's.
    """

    def __init__(self, tracer: Tracer | None = None, provider: TracerProvider | None = None) -> None:
        self._tracer = tracer
        self._provider = provider
        self.failures = 0

    @property
    def enabled(self) -> bool:
        """Whether spans are made."""
        return self._tracer is not None

    @property
    def tracer(self) -> Tracer:
        """The tracer for plugins; one that does nothing when tracing is off."""
        return self._tracer or NoOpTracer()

    def _failed(self, err: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("tracing failed, requests are not affected: %s: %s", type(err).__name__, err)

    def start(
        self,
        name: str,
        *,
        parent: Span | Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        link: Span | None = None,
    ) -> Span | None:
        """Start a span; None when tracing is off.

        Args:
            name: The span's name.
            parent: A span, a context, or None for a root.
            kind: As OpenTelemetry defines it.
            attributes: First attributes.
            link: A span to link to instead of nesting under it (a mirror's primary).
        """
        if self._tracer is None:
            return None
        try:
            context = trace.set_span_in_context(parent, Context()) if isinstance(parent, Span) else parent or Context()
            links = [Link(link.get_span_context())] if link is not None else None
            return self._tracer.start_span(name, context=context, kind=kind, attributes=attributes, links=links)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)
            return None

    def set(self, span: Span | None, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""
        if span is None:
            return
        try:
            span.set_attributes(attributes)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def event(self, span: Span | None, name: str, attributes: Mapping[str, Value]) -> None:
        """Add an event."""
        if span is None:
            return
        try:
            span.add_event(name, attributes)
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    def end(self, span: Span | None, attributes: Mapping[str, Value] | None = None, error: str | None = None) -> None:
        """End a span, with last attributes; ``error`` marks it as failed."""
        if span is None:
            return
        try:
            if attributes:
                span.set_attributes(attributes)
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, error))
            span.end()
        except Exception as err:  # noqa: BLE001  # telemetry never harms a request
            self._failed(err)

    @contextlib.contextmanager
    def current(self, span: Span | None) -> Iterator[None]:
        """Make a span the current one, so that a plugin's own spans nest under it."""
        if span is None:
            yield
            return
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                otel_context.detach(token)

    def shutdown(self) -> None:
        """Flush and close a provider of our own; at most what ``OTEL_BSP_EXPORT_TIMEOUT`` allows."""
        if self._provider is not None:
            try:
                self._provider.shutdown()
            except Exception as err:  # noqa: BLE001  # telemetry never harms a shutdown
                self._failed(err)


def remote_parent(headers: Mapping[str, str]) -> Context | None:
    """Return the context of the caller's ``traceparent`` header, or None when there is no valid one."""
    if "traceparent" not in headers:
        return None
    context = _PROPAGATOR.extract(headers, context=Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def outgoing_headers(span: Span | None) -> dict[str, str]:
    """Return the ``traceparent`` header that makes the provider's spans children of this one."""
    if span is None:
        return {}
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span, Context()))
    return carrier


def configure(*, enabled: bool, provider: trace.TracerProvider | None = None) -> Tracing:
    """Decide where spans go.

    An SDK provider that somebody has already set up (LiteLLM's OTel callback, or the global one) is used as it is.
    Otherwise the standard ``OTEL_*`` variables decide: an OTLP endpoint, or ``OTEL_TRACES_EXPORTER`` with ``otlp``,
    ``console`` or ``none``. Without any of them no span is made.

    Args:
        enabled: The configuration's ``tracing.enabled``.
        provider: The gateway's provider, or None.

    Raises:
        ConfigError: ``OTEL_TRACES_EXPORTER`` or ``OTEL_EXPORTER_OTLP_PROTOCOL`` names something that is not supported.
    """
    if not enabled or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Tracing()
    for candidate in (provider, trace.get_tracer_provider()):
        if isinstance(candidate, TracerProvider):
            return Tracing(candidate.get_tracer("pointsman"))
    exporters = _exporters()
    if not exporters:
        return Tracing()
    service = os.environ.get("OTEL_SERVICE_NAME") or "pointsman"
    own = TracerProvider(resource=Resource.create({"service.name": service}))
    for exporter in exporters:
        own.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(own.get_tracer("pointsman"), own)


def _exporters() -> list[SpanExporter]:
    default = "otlp" if any(os.environ.get(name) for name in _OTLP_ENDPOINTS) else "none"
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", default).split(",")]
    exporters: list[SpanExporter] = []
    for name in names:
        if name == "otlp":
            exporters.append(_otlp())
        elif name == "console":
            exporters.append(ConsoleSpanExporter())
        elif name not in {"none", ""}:
            raise ConfigError(f"OTEL_TRACES_EXPORTER: {name!r} is not supported; allowed: otlp, console, none")
    return exporters


def _otlp() -> SpanExporter:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  # slow to import, seldom used
            OTLPSpanExporter,
        )

        return OTLPSpanExporter()
    if protocol == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415  # an optional package
                OTLPSpanExporter as GrpcExporter,
            )
        except ImportError as err:
            raise ConfigError(
                "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' needs the package opentelemetry-exporter-otlp-proto-grpc; "
                "install it or use http/protobuf"
            ) from err
        exporter: SpanExporter = GrpcExporter()
        return exporter
    raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not supported; allowed: http/protobuf, grpc")
