"""Where spans and metrics go: the standard ``OTEL_*`` variables read once, for the host and for ``pointsman check`` alike.

As OpenTelemetry specifies, an empty variable counts as unset.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables

from ..errors import ConfigError, nearest
from ..text import one_line

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("http/protobuf", "grpc")
_SAMPLERS: Final = tuple(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
_DEFAULT_ENDPOINTS: Final = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MOST_REASON_CHARS: Final = 200
_HTTP_PATH: Final = "/v1/traces"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_TRACES_HEADERS: Final = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_TRACES_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_METRICS_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"
#: Prometheus reads metrics from the admin route, whatever is named here.
_METRIC_EXPORTERS: Final = ("otlp", "console", "none", "prometheus")
#: Only near misses: LiteLLM and others have OTEL_* variables of their own.
_TYPO_RATIO: Final = 0.92
_KNOWN: Final = frozenset(
    name
    for module in (opentelemetry.environment_variables, opentelemetry.sdk.environment_variables)
    for name in vars(module)
    if name.startswith("OTEL_")
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans are sent: a URL without credentials, and what to connect to."""

    url: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of spans.

    Attributes:
        off: Why no spans are made; empty when they are.
        exporters: Where spans go: ``otlp``, ``console`` or both.
        protocol: The protocol of OTLP.
        endpoint: Where OTLP sends spans; None when it does not, or when its address is wrong.
        problem: What stops the start, or None.
        lost: Why OTLP loses every span although the proxy starts, or None.
        warnings: What is probably a mistake.
    """

    off: str = ""
    exporters: tuple[str, ...] = ()
    protocol: str = ""
    endpoint: Endpoint | None = None
    problem: str | None = None
    lost: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether spans are made."""
        return bool(self.exporters) and self.problem is None

    @property
    def summary(self) -> str:
        """What becomes of spans, for people."""
        if self.off:
            return f"off: {self.off}"
        if self.problem is not None:
            return "wrong"
        otlp = f"to OTLP at {self.endpoint.url}" if self.endpoint else "to OTLP"
        return f"on: spans go {' and '.join({'otlp': otlp, 'console': 'to the console'}[e] for e in self.exporters)}"


def disabled(env: Mapping[str, str], *, enabled: bool = True) -> str:
    """Return why no spans are made whatever exporters are configured, or an empty text."""
    if not enabled:
        return "tracing.enabled is false"
    return "OTEL_SDK_DISABLED is true" if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" else ""


def plan(env: Mapping[str, str], *, enabled: bool = True) -> Plan:
    """Return what becomes of spans.

    Args:
        env: The environment of the proxy.
        enabled: The configuration's ``tracing.enabled``.
    """
    if reason := disabled(env, enabled=enabled):
        return Plan(off=reason)
    warnings = _warnings(env)
    default = "otlp" if env.get(_ENDPOINT) or env.get(_TRACES_ENDPOINT) else "none"
    names = [name.strip() for name in (env.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    for name in names:
        if name and name not in _EXPORTERS:
            problem = f"OTEL_TRACES_EXPORTER: {name!r} is not supported{nearest(name, _EXPORTERS)}; allowed: {', '.join(_EXPORTERS)}"
            return Plan(problem=problem, warnings=warnings)
    exporters = tuple(name for name in ("otlp", "console") if name in names)
    if not exporters:
        return Plan(off="no OTEL_* variable names an exporter", warnings=warnings)
    if "otlp" not in exporters:
        return Plan(exporters=exporters, warnings=warnings)
    protocol = env.get(_TRACES_PROTOCOL) or env.get(_PROTOCOL) or _PROTOCOLS[0]
    unusable = _protocol_problem(protocol, _TRACES_PROTOCOL if env.get(_TRACES_PROTOCOL) else _PROTOCOL)
    if unusable is not None:
        return Plan(exporters=exporters, problem=unusable, warnings=warnings)
    endpoint, lost = _endpoint(env, protocol)
    return Plan(exporters=exporters, protocol=protocol, endpoint=endpoint, lost=lost, warnings=warnings)


def build(chosen: Plan) -> list[SpanExporter]:
    """Build the exporters of a plan; their addresses are read from the environment by OpenTelemetry itself.

    Raises:
        ConfigError: the plan has a problem.
    """
    if chosen.problem is not None:
        raise ConfigError(chosen.problem)
    exporters: list[SpanExporter] = []
    if "otlp" in chosen.exporters:
        exporters.append(_otlp(chosen))
    if "console" in chosen.exporters:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

        exporters.append(ConsoleSpanExporter())
    return exporters


def trial_export(chosen: Plan, env: Mapping[str, str], timeout_s: float) -> str | None:
    """Send an export without spans, as the proxy would send one, and return why it was not taken; None when it was.

    Args:
        chosen: A plan with an endpoint.
        env: The environment of the proxy.
        timeout_s: Longest wait for the answer, in seconds.
    """
    from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415  # slow to import

    # The exporter says why only in its log.
    reasons: list[str] = []
    handler = _Collecting(reasons)
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        with _environment(env):
            exporter = _otlp(chosen, timeout_s)
        result = exporter.export([])
        exporter.shutdown()
    except Exception as err:  # noqa: BLE001  # whatever it is, spans would be lost the same way
        reasons.append(f"{type(err).__name__}: {err}")
        result = SpanExportResult.FAILURE
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    if result is SpanExportResult.SUCCESS:
        return None
    return one_line(reasons[-1], _MOST_REASON_CHARS) if reasons else "it gave no reason"


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Let OpenTelemetry, which reads the environment of the process, see this one."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in env.items() if name.startswith("OTEL_")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _otlp(chosen: Plan, timeout_s: float | None = None) -> SpanExporter:
    """Return OpenTelemetry's exporter with our encoder, for this exporter alone: LiteLLM's callback has one of its own."""
    from .span_encoding import encode_spans  # noqa: PLC0415  # slow to import and seldom used

    # gRPC's is an optional package.
    package = "grpc" if chosen.protocol == "grpc" else "http"
    module = _copy_of(f"opentelemetry.exporter.otlp.proto.{package}.trace_exporter")
    module.encode_spans = encode_spans
    exporter: SpanExporter = module.OTLPSpanExporter(timeout=timeout_s)
    return exporter


def _copy_of(name: str) -> Any:
    """Return a module that is loaded once more, apart from the one that others import."""
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101  # a module of a package that is installed
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Collecting(logging.Handler):
    """Keeps the texts of log records."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


def metric_exporters(env: Mapping[str, str]) -> list[MetricExporter]:
    """Return the exporters that the environment asks for.

    ``OTEL_METRICS_EXPORTER`` names ``otlp``, ``console``, ``prometheus`` (served anyway) or ``none``; without it, an OTLP
    endpoint is enough.

    Raises:
        ConfigError: a variable names something that is not supported.
    """
    problem = metrics_problem(env)
    if problem is not None:
        raise ConfigError(problem)
    names = _metric_exporters(env)
    found: list[MetricExporter] = []
    if "otlp" in names:
        found.append(_otlp_metrics(env))
    if "console" in names:
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter  # noqa: PLC0415  # seldom used

        found.append(ConsoleMetricExporter())
    return found


def metrics_problem(env: Mapping[str, str]) -> str | None:
    """Return what is wrong with the variables that say where metrics are sent, or None."""
    names = _metric_exporters(env)
    for name in names:
        if name not in _METRIC_EXPORTERS:
            return (
                f"OTEL_METRICS_EXPORTER: {name!r} is not supported{nearest(name, _METRIC_EXPORTERS)}; "
                f"allowed: {', '.join(_METRIC_EXPORTERS)}"
            )
    if "otlp" not in names:
        return None
    protocol = env.get(_METRICS_PROTOCOL) or env.get(_PROTOCOL) or _PROTOCOLS[0]
    return _protocol_problem(protocol, _METRICS_PROTOCOL if env.get(_METRICS_PROTOCOL) else _PROTOCOL)


def _metric_exporters(env: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters that the environment asks for, as they are written."""
    if disabled(env):
        return []
    default = "otlp" if env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") else ""
    return [name.strip() for name in (env.get("OTEL_METRICS_EXPORTER") or default).split(",") if name.strip()]


def _otlp_metrics(env: Mapping[str, str]) -> MetricExporter:
    protocol = env.get(_METRICS_PROTOCOL) or env.get(_PROTOCOL) or _PROTOCOLS[0]
    # Slow to import and seldom used, and gRPC's is an optional package.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc  # noqa: PLC0415

        grpc: MetricExporter = Grpc()
        return grpc
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

    return OTLPMetricExporter()


def _protocol_problem(protocol: str, name: str) -> str | None:
    if protocol not in _PROTOCOLS:
        return f"{name}: {protocol!r} is not supported{nearest(protocol, _PROTOCOLS)}; allowed: {', '.join(_PROTOCOLS)}"
    if protocol == "grpc" and not _has_grpc():
        return f"{name}: 'grpc' needs the package opentelemetry-exporter-otlp-proto-grpc; install pointsman[grpc] or use http/protobuf"
    return None


def _endpoint(env: Mapping[str, str], protocol: str) -> tuple[Endpoint | None, str | None]:
    """Return where OTLP sends spans, or why they are lost."""
    name, url = _TRACES_ENDPOINT, env.get(_TRACES_ENDPOINT, "")
    if not url:
        name, url = _ENDPOINT, env.get(_ENDPOINT) or _DEFAULT_ENDPOINTS[protocol]
        if protocol != "grpc":
            url = url.rstrip("/") + _HTTP_PATH
    if protocol == "grpc" and "://" not in url:
        url = f"http://{url}"
    example = _DEFAULT_ENDPOINTS[protocol]
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None, f"{name}: is not a URL that begins with http:// or https://; write it as {example}"
    if not parts.hostname:
        return None, f"{name}: names no host; write it as {example}"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(f"{parts.scheme}://{host}:{port}{parts.path} ({protocol})", parts.hostname, port), None


def _has_grpc() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False


def _warnings(env: Mapping[str, str]) -> tuple[str, ...]:
    warnings = [
        f"{name}: is not a variable of OpenTelemetry{near}"
        for name in sorted(env)
        if name.startswith("OTEL_") and name not in _KNOWN and (near := nearest(name, _KNOWN, cutoff=_TYPO_RATIO))
    ]
    if env.get(_ENDPOINT, "").rstrip("/").endswith(_HTTP_PATH) and not env.get(_TRACES_ENDPOINT):
        warnings.append(
            f"{_ENDPOINT}: {_HTTP_PATH} is added to it; leave it out, or name the variable {_TRACES_ENDPOINT}"
        )
    if env.get("OTEL_HEADERS") and not (env.get(_HEADERS) or env.get(_TRACES_HEADERS)):
        warnings.append(f"OTEL_HEADERS: is read by LiteLLM alone; set {_HEADERS}, which both read")
    sampler = env.get("OTEL_TRACES_SAMPLER", "")
    if sampler and sampler not in _SAMPLERS:
        warnings.append(
            f"OTEL_TRACES_SAMPLER: {sampler!r} is unknown{nearest(sampler, _SAMPLERS)} and ignored; allowed: {', '.join(_SAMPLERS)}"
        )
    return tuple(warnings)
