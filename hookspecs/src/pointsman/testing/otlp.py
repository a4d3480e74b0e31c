"""An OTLP/HTTP collector that keeps the spans it gets, to look at what a real proxy has exported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One exported span; ids are hexadecimal text, empty when there is none."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    error: bool = False
    scope: str = ""
    resource: Mapping[str, Any] = field(default_factory=dict)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def decode(body: bytes) -> list[CollectedSpan]:
    """Read the spans of one export request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        CollectedSpan(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            events=tuple((event.name, _attributes(event.attributes)) for event in span.events),
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            error=span.status.code == span.status.STATUS_CODE_ERROR,
            scope=scope.scope.name,
            resource=_attributes(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Collector:
    """Listens on a free loopback port during the ``with`` block; point ``OTEL_EXPORTER_OTLP_ENDPOINT`` at ``url``.

    Args:
        status: The HTTP status of its answers; 503 plays a collector that is broken.
    """

    def __init__(self, status: int = 200) -> None:
        self._spans: list[CollectedSpan] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802  # the library's name
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip  # noqa: PLC0415  # seldom needed

                    body = gzip.decompress(body)
                if status < 300:  # noqa: PLR2004  # HTTP's own limit
                    with collector._lock:
                        collector._spans.extend(decode(body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[CollectedSpan]:
        """Everything collected so far."""
        with self._lock:
            return list(self._spans)

    def wait(self, enough: Callable[[list[CollectedSpan]], bool], timeout_s: float = 30.0) -> list[CollectedSpan]:
        """Wait until the collected spans are enough and return them.

        Raises:
            TimeoutError: they never were.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if enough(spans := self.spans):
                return spans
            time.sleep(0.05)
        names = sorted({span.name for span in self.spans})
        raise TimeoutError(f"not enough spans within {timeout_s:.0f} s; have {len(self.spans)}: {names}")

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="otlp-collector", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
