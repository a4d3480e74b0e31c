"""What the standard ``OTEL_*`` variables say about where spans go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables

from ..errors import nearest

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("http/protobuf", "grpc")
_SAMPLERS: Final = tuple(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
_DEFAULT_ENDPOINTS: Final = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HTTP_PATH: Final = "/v1/traces"
#: Only what looks like a slip of the fingers: LiteLLM and others have OTEL_* variables of their own.
_SLIP_RATIO: Final = 0.92
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


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What becomes of spans.

    Attributes:
        words: For people.
        enabled: Whether spans are made.
        endpoint: Where OTLP sends them, None when it does not.
        problems: What stops the start, or loses every span.
        warnings: What is probably not meant.
    """

    words: str
    enabled: bool = False
    endpoint: Endpoint | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def read(env: Mapping[str, str], *, enabled: bool = True) -> Telemetry:
    """Say what becomes of spans.

    Args:
        env: The environment that the proxy will see.
        enabled: The configuration's ``tracing.enabled``.
    """
    if not enabled:
        return Telemetry("off: tracing.enabled is false")
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry("off: OTEL_SDK_DISABLED is true")
    warnings = _warnings(env)
    given = env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    names = [name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "otlp" if given else "none").split(",")]
    for name in names:
        if name and name not in _EXPORTERS:
            text = f"OTEL_TRACES_EXPORTER: {name!r} is not supported{nearest(name, _EXPORTERS)}; allowed: {', '.join(_EXPORTERS)}"
            return Telemetry("wrong", problems=(text,), warnings=warnings)
    words, endpoint, problems = [], None, []
    if "otlp" in names:
        endpoint, problem = _otlp(env)
        words.append(f"to OTLP at {endpoint.url}" if endpoint else "to OTLP")
        problems += [problem] if problem else []
    if "console" in names:
        words.append("to the console")
    if not words:
        return Telemetry("off: no OTEL_* variable names an exporter", warnings=warnings)
    text = f"on: spans go {' and '.join(words)}"
    return Telemetry(text, enabled=not problems, endpoint=endpoint, problems=tuple(problems), warnings=warnings)


def _otlp(env: Mapping[str, str]) -> tuple[Endpoint | None, str | None]:
    """Return where OTLP goes, or what is wrong with that."""
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get(name, "http/protobuf")
    if protocol not in _PROTOCOLS:
        return (
            None,
            f"{name}: {protocol!r} is not supported{nearest(protocol, _PROTOCOLS)}; allowed: {', '.join(_PROTOCOLS)}",
        )
    if protocol == "grpc" and not _has_grpc():
        return (
            None,
            f"{name}: 'grpc' needs the package opentelemetry-exporter-otlp-proto-grpc; install it or use http/protobuf",
        )
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    url = env.get(name, "")
    if not url:
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        url = env.get(name) or _DEFAULT_ENDPOINTS[protocol]
        if protocol != "grpc":
            url = url.rstrip("/") + _HTTP_PATH
    if protocol == "grpc" and "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None, f"{name}: is not a URL that begins with http:// or https://, as {_DEFAULT_ENDPOINTS[protocol]}"
    if not parts.hostname:
        return None, f"{name}: names no host; write it as {_DEFAULT_ENDPOINTS[protocol]}"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(f"{parts.scheme}://{host}:{port}{parts.path} ({protocol})", parts.hostname, port), None


def _has_grpc() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False


def _warnings(env: Mapping[str, str]) -> tuple[str, ...]:
    found = [
        f"{name}: is no variable of OpenTelemetry{near}"
        for name in sorted(env)
        if name.startswith("OTEL_") and name not in _KNOWN and (near := nearest(name, _KNOWN, cutoff=_SLIP_RATIO))
    ]
    sampler = env.get("OTEL_TRACES_SAMPLER", "")
    if sampler and sampler not in _SAMPLERS:
        found.append(
            f"OTEL_TRACES_SAMPLER: {sampler!r} is unknown{nearest(sampler, _SAMPLERS)} and ignored; allowed: {', '.join(_SAMPLERS)}"
        )
    return tuple(found)
