"""What the ``OTEL_*`` variables mean is said as the host itself reads them."""

from __future__ import annotations

import re

import pytest

from pointsman.errors import ConfigError
from pointsman.host.exporters import plan
from pointsman.host.tracing import configure

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
EXPORTER = "OTEL_TRACES_EXPORTER"


@pytest.mark.parametrize(
    ("env", "url", "address"),
    [
        ({ENDPOINT: "http://h:1"}, "http://h:1/v1/traces", ("h", 1)),
        ({ENDPOINT: "https://h/x/"}, "https://h:443/x/v1/traces", ("h", 443)),
        ({ENDPOINT: "http://h:1", TRACES: "http://t:2/own"}, "http://t:2/own", ("t", 2)),
        ({EXPORTER: "otlp"}, "http://localhost:4318/v1/traces", ("localhost", 4318)),
        ({EXPORTER: "console, otlp", ENDPOINT: "http://u:hunter2@[::1]:5"}, "http://[::1]:5/v1/traces", ("::1", 5)),
    ],
)
def test_where_spans_go(env, url, address):
    found = plan(env)
    assert found.enabled
    assert (found.problem, found.lost, found.warnings) == (None, None, ())
    assert found.endpoint is not None
    assert found.endpoint.url == f"{url} (http/protobuf)"
    assert (found.endpoint.host, found.endpoint.port) == address
    assert url in found.summary
    assert "hunter2" not in found.summary


def test_grpc_takes_an_address_without_a_scheme(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra 'grpc' is not installed")
    env = {ENDPOINT: "127.0.0.1:4317", PROTOCOL: "grpc"}
    planned = plan(env)
    assert planned.summary == "on: spans go to OTLP at http://127.0.0.1:4317 (grpc)"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    tracing = configure(enabled=True)
    tracing.shutdown()
    assert tracing.enabled


@pytest.mark.parametrize(
    ("env", "summary"),
    [
        ({}, "off: no OTEL_* variable"),
        ({EXPORTER: "none", ENDPOINT: "http://h"}, "off: no OTEL_* variable"),
        ({"OTEL_SDK_DISABLED": " TRUE ", ENDPOINT: "http://h"}, "off: OTEL_SDK_DISABLED is true"),
        ({EXPORTER: "console"}, "on: spans go to the console"),
    ],
)
def test_spans_that_do_not_go_to_otlp(env, summary):
    assert plan(env).summary.startswith(summary)
    assert plan(env).endpoint is None


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({EXPORTER: "oltp"}, "OTEL_TRACES_EXPORTER: 'oltp' is not supported (did you mean 'otlp'?); allowed: otlp, console, none"),
        ({EXPORTER: "otlp", PROTOCOL: "http/json"}, "'http/json' is not supported; allowed: http/protobuf, grpc"),
        ({EXPORTER: "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'json'"),
    ],
)  # fmt: skip
def test_what_stops_the_start_is_a_problem(env, expected):
    assert expected in str(plan(env).problem)
    assert not plan(env).enabled


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({ENDPOINT: "127.0.0.1:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL"),
        ({ENDPOINT: "h:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL"),
        ({TRACES: "http://h:port"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: is not a URL"),
        ({TRACES: "http:///v1"}, "names no host"),
    ],
)
def test_an_address_that_loses_every_span_does_not_stop_the_start(env, expected, monkeypatch):
    assert expected in str(plan(env).lost)
    assert plan(env).problem is None
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    tracing = configure(enabled=True)
    tracing.shutdown()
    assert tracing.enabled


@pytest.mark.parametrize(
    "env", [{ENDPOINT: "http://h:1", PROTOCOL: ""}, {ENDPOINT: "http://h:1", EXPORTER: "", TRACES: ""}]
)
def test_an_empty_variable_counts_as_unset(env):
    assert plan(env) == plan({ENDPOINT: "http://h:1"})


def test_slips_of_the_fingers_are_warned_of_and_other_peoples_variables_are_not():
    env = {"OTEL_EXPORTER_OTLP_ENDPIONT": "x", "OTEL_ENDPOINT": "y", "OTEL_TRACES_SAMPLER": "always", "OTELX": "z"}
    first, second = plan(env).warnings
    assert (
        "OTEL_EXPORTER_OTLP_ENDPIONT: is not a variable of OpenTelemetry (did you mean 'OTEL_EXPORTER_OTLP_ENDPOINT'?)"
        in first
    )
    assert "OTEL_TRACES_SAMPLER: 'always' is unknown (did you mean 'always_on'?)" in second


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({ENDPOINT: "http://h:1/v1/traces/"}, "OTEL_EXPORTER_OTLP_ENDPOINT: /v1/traces is added to it"),
        ({ENDPOINT: "http://h:1/v1/traces", TRACES: "http://h:1/v1/traces"}, None),
        ({ENDPOINT: "http://h:1", "OTEL_HEADERS": "a=b"}, "OTEL_HEADERS: is read by LiteLLM alone"),
        ({ENDPOINT: "http://h:1", "OTEL_HEADERS": "a=b", "OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, None),
    ],
)
def test_what_is_written_for_litellms_callback_alone_is_warned_of(env, says):
    assert [says in warning for warning in plan(env).warnings] == ([] if says is None else [True])


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    "env",
    [
        {},
        {ENDPOINT: "http://127.0.0.1:9"},
        {TRACES: "http://127.0.0.1:9"},
        {ENDPOINT: ""},
        {EXPORTER: ""},
        {EXPORTER: "", ENDPOINT: "http://127.0.0.1:9"},
        {ENDPOINT: "127.0.0.1:4318"},
        {EXPORTER: "none"},
        {EXPORTER: "none,otlp"},
        {EXPORTER: "console"},
        {EXPORTER: "zipkin"},
        {EXPORTER: "OTLP"},
        {EXPORTER: "otlp", PROTOCOL: "grpc"},
        {EXPORTER: "otlp", PROTOCOL: ""},
        {EXPORTER: "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "", PROTOCOL: "http/protobuf"},
        {EXPORTER: "none", PROTOCOL: "nonsense"},
        {ENDPOINT: "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "1"},
    ],
)
def test_host_reads_them_in_the_same_way(env, enabled, monkeypatch):
    """Spans are made exactly where the plan says so, and the start stops exactly where there is a problem."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    planned = plan(env, enabled=enabled)
    if planned.problem is not None:
        with pytest.raises(ConfigError, match=re.escape(planned.problem)):
            configure(enabled=enabled)
        return
    tracing = configure(enabled=enabled)
    tracing.shutdown()
    assert planned.enabled is tracing.enabled
