"""An OTLP/HTTP collector that keeps the spans it gets, to look at what a real proxy has exported."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_OF_ONE_HOP: Final = frozenset({"host", "connection", "content-length", "accept-encoding"})
_FORWARD_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One exported span; ids are hexadecimal text, empty when there is none.

    ``kind`` and ``status`` are OpenTelemetry's names in lower case: ``server``, ``client``, ``internal``; ``ok``, ``error``,
    ``unset``.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    kind: str = "internal"
    status: str = "unset"
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
            kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
            status=span.status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_").lower(),
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
        hang: Whether it accepts exports and never answers.
        latency_s: How long it takes for an answer.
        forward: URL for traces of another collector that gets everything too (``http://localhost:4318/v1/traces``).

    Attributes:
        not_forwarded: How many exports the other collector did not take.
    """

    def __init__(
        self, status: int = 200, *, forward: str | None = None, hang: bool = False, latency_s: float = 0.0
    ) -> None:
        self.not_forwarded = 0
        self._let_go = threading.Event()
        self._forward = forward
        self._spans: list[CollectedSpan] = []
        self._more = threading.Condition()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), _handler(self._take_in, status, self._let_go, None if hang else latency_s)
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[CollectedSpan]:
        """Everything collected so far."""
        with self._more:
            return list(self._spans)

    def wait(self, enough: Callable[[list[CollectedSpan]], bool], timeout_s: float = 30.0) -> list[CollectedSpan]:
        """Wait until the collected spans are enough and return them.

        Raises:
            TimeoutError: they never were.
        """
        with self._more:
            if not self._more.wait_for(lambda: enough(list(self._spans)), timeout_s):
                names = sorted({span.name for span in self._spans})
                raise TimeoutError(f"not enough spans within {timeout_s:.0f} s; have {len(self._spans)}: {names}")
            return list(self._spans)

    def take(self, timeout_s: float) -> list[CollectedSpan]:
        """Return what has been collected and forget it; wait at most this long for something, then return nothing."""
        with self._more:
            self._more.wait_for(lambda: self._spans, timeout_s)
            taken, self._spans = self._spans, []
            return taken

    def _take_in(self, body: bytes, headers: Mapping[str, str]) -> None:
        with self._more:
            self._spans += decode(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
            self._more.notify_all()
        if self._forward is None:
            return
        passed_on = {name: value for name, value in headers.items() if name not in _OF_ONE_HOP}
        try:
            taken = httpx.post(self._forward, content=body, headers=passed_on, timeout=_FORWARD_TIMEOUT_S).is_success
        except httpx.HTTPError:
            taken = False
        self.not_forwarded += not taken

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="otlp-collector", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(
    take_in: Callable[[bytes, Mapping[str, str]], None], status: int, let_go: threading.Event, latency_s: float | None
) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers one export request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            if latency_s != 0:
                let_go.wait(latency_s)
            # A collector takes metrics and logs as well; they are not kept.
            if status < 300 and self.path.endswith("/v1/traces"):  # noqa: PLR2004  # HTTP's own limit
                take_in(body, headers)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Be quiet."""

    return Handler
