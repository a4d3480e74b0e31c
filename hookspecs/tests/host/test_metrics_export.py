"""Metrics by OTLP: what a real exporter sends, and that a collector that is gone delays nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pointsman.errors import ConfigError
from pointsman.host.counters import Counter, Family, Histogram, Point
from pointsman.host.exporters import metric_exporters
from pointsman.host.metrics_export import LAST_S, Sender, interval_s
from pointsman.host.runtime import SystemClock


class Collector:
    """An OTLP endpoint that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[ExportMetricsServiceRequest] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/metrics"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = Thread(target=running.server.serve_forever, daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


def families() -> list[Family]:
    counter = Counter("pointsman.attempts", "Attempts.", "{attempt}", ("pointsman.group",))
    counter.add(("chat",), 3)
    histogram = Histogram("gen_ai.client.operation.duration", "D.", "s", ("pointsman.group",), (0.1, 1.0))
    histogram.record(("chat",), 0.5, ("0" * 31 + "1", "0" * 15 + "2", 5.0))
    gauge = Family("pointsman.level", "gauge", "1", "L.", points=(Point((), 0.25),))
    open_now = Family("pointsman.requests.open", "updown", "1", "O.", points=(Point((), 2.0),))
    return [counter.read(), histogram.read(), gauge, open_now]


def sender(url: str) -> Sender:
    exporter = OTLPMetricExporter(endpoint=url, timeout=1, compression=Compression.NoCompression)
    return Sender([exporter], families, SystemClock(), "worker-1")


async def test_an_export_has_every_kind_with_units_resource_and_exemplars(collector: Collector) -> None:
    sending = sender(collector.url)
    await sending.send()
    sending.end()
    await sending.close()
    resource = collector.got[0].resource_metrics[0]
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert attributes["service.name"] == "pointsman"
    assert attributes["service.instance.id"] == "worker-1"
    assert metrics["pointsman.attempts"].sum.is_monotonic
    assert metrics["pointsman.attempts"].sum.data_points[0].as_double == 3
    assert not metrics["pointsman.requests.open"].sum.is_monotonic
    assert metrics["pointsman.level"].gauge.data_points[0].as_double == 0.25
    (point,) = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert (list(point.bucket_counts), list(point.explicit_bounds), point.count) == ([0, 1, 0], [0.1, 1.0], 1)
    assert not point.HasField("min")
    assert point.exemplars[0].trace_id == bytes(15) + b"\x01"
    assert len(collector.got) == 2
    assert (sending.exports, sending.failures) == (2, 0)


async def test_a_collector_that_hangs_delays_neither_the_worker_nor_its_end(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sending = sender(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics")
        first = asyncio.create_task(sending.send())
        await asyncio.sleep(0)
        await sending.send()  # the export before still runs: nothing piles up
        started = time.monotonic()
        sending.end()
        await sending.close()
        assert time.monotonic() - started < LAST_S + 5
        first.cancel()
        await asyncio.wait({first})
    with caplog.at_level(logging.WARNING):
        refused = sender("http://127.0.0.1:9/v1/metrics")
        await refused.send()
        await refused.send()
        refused.end()
        await refused.close()
    assert refused.failures >= 2
    assert caplog.text.count("metrics could not be sent by OTLP") == 1


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, 0),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, 1),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://localhost:4318/v1/metrics"}, 1),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_METRICS_EXPORTER": "none"}, 0),
        ({"OTEL_METRICS_EXPORTER": "otlp,console"}, 2),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, 0),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, 0),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, 1),
    ],
)
def test_the_standard_variables_decide(env: dict[str, str], count: int) -> None:
    found = metric_exporters(env)
    assert len(found) == count
    for exporter in found:
        exporter.shutdown()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"OTEL_METRICS_EXPORTER": "otpl"}, "OTEL_METRICS_EXPORTER: 'otpl' is not supported (did you mean 'otlp'?)"),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: 'http/json' is not supported",
        ),
    ],
)
def test_a_wrong_variable_is_named(env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        metric_exporters(env)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("value", "seconds"), [("5000", 5.0), ("", 60.0), ("often", 60.0), ("-1", 60.0), ("inf", 60.0)]
)
def test_the_interval_is_the_standard_variables(value: str, seconds: float) -> None:
    assert interval_s({"OTEL_METRIC_EXPORT_INTERVAL": value}) == seconds
