"""The way of spans out of the worker: a bounded queue, an exporter, a count of what is lost, and an end that is quick.

OpenTelemetry's own batch processor does the work. What is added: spans that do not fit or that the collector does not take
are counted, and a collector that is gone does not delay the end of the proxy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, TracerProvider
    from opentelemetry.util.types import Attributes

log: Final = logging.getLogger("pointsman")

#: The attribute of a link: what the other span is to the one that has the link.
LINK: Final = "pointsman.link"
#: The link to the client's request that a settlement, or a call of a plugin's, belongs to.
REQUEST: Final = "request"
#: The longest wait for the collector at the end of the proxy, in seconds.
SHUTDOWN_S: Final = 1.5


@dataclass(slots=True)
class SpanCounts:
    """What became of the spans that have ended.

    Attributes:
        exported: Taken by every exporter's collector.
        dropped: Lost: they did not fit into the queue, or a collector did not take them.
        waiting: In a queue, or on their way.
    """

    exported: int = 0
    dropped: int = 0
    waiting: int = 0


class Pipeline(SpanProcessor):
    """One exporter with its queue.

    Args:
        exporter: Sends spans.
        queue_spans: The most spans that wait; a span that ends while as many wait is lost.
    """

    def __init__(self, exporter: SpanExporter, queue_spans: int | None = None) -> None:
        self._most = queue_spans or _environment("_default_max_queue_size")
        self._lock = threading.Lock()
        self._closed = False
        self.counts = SpanCounts()
        self._exporter = _Counted(exporter, self._exported)
        batch = min(self._most, _environment("_default_max_export_batch_size"))
        # Its queue never fills: what does not fit is not given to it.
        self._batch = BatchSpanProcessor(self._exporter, max_queue_size=self._most, max_export_batch_size=batch)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that is sampled."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            if self.counts.waiting >= self._most:
                self.counts.dropped += 1
                return
            self.counts.waiting += 1
        self._batch.on_end(span)

    def _exported(self, spans: int, taken: bool) -> None:
        with self._lock:
            if self._closed:
                return  # given up already
            self.counts.waiting -= spans
            if taken:
                self.counts.exported += spans
            else:
                self.counts.dropped += spans

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export everything that is queued."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Export what is queued, for at most ``timeout_s``; what is left then is lost, and logged."""
        before = self.counts.dropped
        # Not in a pool: the interpreter waits for its threads at exit, and a collector that hangs has no end.
        ended = threading.Thread(target=self._batch.shutdown, name="pointsman-spans", daemon=True)
        ended.start()
        ended.join(timeout_s)
        if ended.is_alive():
            # Interrupts the waits between its tries.
            threading.Thread(target=self._exporter.shutdown, name="pointsman-exporter", daemon=True).start()
        with self._lock:
            self._closed = True
            self.counts.dropped += self.counts.waiting
            self.counts.waiting = 0
        if lost := self.counts.dropped - before:
            log.warning("%d spans were lost at the end: the collector did not take them within %g s", lost, timeout_s)


def begin_flush(provider: TracerProvider) -> threading.Thread:
    """Begin to export what waits in another's pipeline, which the end of the proxy would lose."""
    # Not in a pool, as above.
    thread = threading.Thread(target=_flush, args=(provider,), name="pointsman-flush", daemon=True)
    thread.start()
    return thread


def _flush(provider: TracerProvider) -> None:
    with contextlib.suppress(Exception):
        provider.force_flush(round(SHUTDOWN_S * 1000))


class _Counted(SpanExporter):
    """An exporter that reports what became of each batch."""

    def __init__(self, exporter: SpanExporter, report: Callable[[int, bool], None]) -> None:
        self._exporter = exporter
        self._report = report

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._report(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class FollowsLink(Sampler):
    """Samples a trace that belongs to a client's request like that request; any other as another sampler decides.

    A mirror's trace without its primary's, or a settlement without its request, explains nothing. A link to what a client
    says it comes from decides nothing.
    """

    def __init__(self, other: Sampler) -> None:
        self._other = other

    def should_sample(  # noqa: PLR0917  # OpenTelemetry's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about a span."""
        followed = [link for link in links or () if (link.attributes or {}).get(LINK) == REQUEST]
        if followed and not get_current_span(parent_context).get_span_context().is_valid:
            sampled = any(link.context.trace_flags.sampled for link in followed)
            return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes, trace_state)
        return self._other.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return what it is, for people."""
        return f"FollowsLink{{{self._other.get_description()}}}"


def _environment(name: str) -> int:
    """Return what the SDK reads from ``OTEL_BSP_*``, or its default."""
    read: Any = getattr(BatchSpanProcessor, name)
    return int(read())
