"""The span of a client's request, from its first byte to its last: the root of everything that the process traces for it.

It begins in the outermost layer, before LiteLLM has authenticated the request, so that a refused key leaves a span too. The
application sees it as the request's ``traceparent``: whatever LiteLLM traces, by whichever of its callbacks and whichever
way of authentication, becomes a part of the same tree.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from litellm.proxy.auth.route_checks import RouteChecks
from opentelemetry.trace import NonRecordingSpan, SpanContext

from ..host.attributes import Value, denial_attributes, status_of
from ..types import Outcome
from . import request_values, unadmitted
from .endpoints import route_path

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import Scope

    from ..host.tracing import Tracing
    from .call import ClientCall

_LISTS: Final = ("/models", "/models/")
_ADMIN: Final = "/pointsman/"
_READS: Final = frozenset({"GET", "HEAD"})
_TRACEPARENT: Final = b"traceparent"
#: A parent that is not recorded, so that what asks for its sampling decision records nothing either.
_HIDDEN: Final = NonRecordingSpan(SpanContext(7 << 124 | 1, 7 << 60 | 1, is_remote=True))
_NOT_RECORDED: Final = b"00-%032x-%016x-00" % (_HIDDEN.get_span_context().trace_id, _HIDDEN.get_span_context().span_id)


@lru_cache(maxsize=4096)
def asks_a_model(path: str) -> bool:
    """Return whether a path is one of LiteLLM's to models; lists of models are not."""
    return bool(RouteChecks.is_llm_api_route(path)) and not path.endswith(_LISTS)


class RequestSpans:
    """Begins and ends the spans of clients' requests.

    Args:
        tracing: Returns where spans go.
        asks_a_model: Whether a path leads to a model, rather than to LiteLLM's administration, health checks or pages.
    """

    def __init__(self, tracing: Callable[[], Tracing], asks_a_model: Callable[[str], bool]) -> None:
        self._tracing = tracing
        self._asks_a_model = asks_a_model

    def covers(self, scope: Scope) -> bool:
        """Return whether a request gets a span."""
        return (
            scope["type"] in {"http", "websocket"} and self._tracing().enabled and self._asks_a_model(route_path(scope))
        )

    @staticmethod
    def hides(scope: Scope) -> bool:
        """Return whether a request is a look at our admin routes, such as Prometheus's every few seconds.

        LiteLLM begins spans for it that it does not end. One that is traced by its client is left alone.
        """
        return (
            scope["type"] == "http"
            and scope["method"] in _READS
            and route_path(scope).startswith(_ADMIN)
            and not any(name == _TRACEPARENT for name, _ in scope["headers"])
        )

    @staticmethod
    def hidden(scope: Scope) -> Scope:
        """Return the scope of a hidden request as the application gets it."""
        return {**scope, "headers": [*scope["headers"], (_TRACEPARENT, _NOT_RECORDED)]}

    def unrecorded(self) -> AbstractContextManager[None]:
        """Let what LiteLLM traces of a hidden request be children of what is not recorded.

        Of paths that its instrumentation leaves out, such as ``/pointsman/metrics``, nothing takes up the header.
        """
        return self._tracing().parenting(_HIDDEN)

    def open(self, scope: Scope, request_id: str) -> Span | None:
        """Begin a request's span; None when there is to be none."""
        tracing = self._tracing()
        if not tracing.enabled or not self.covers(scope):
            return None
        path = route_path(scope)
        method = str(scope.get("method") or "GET")
        attributes: dict[str, Value] = {
            "http.request.method": method,
            "url.path": path,
            "pointsman.kind": "request",
            "pointsman.request_id": request_id,
        }
        return tracing.request(method, request_values.request_headers(scope["headers"]), attributes)

    def inner_scope(self, scope: Scope, span: Span) -> Scope:
        """Return the scope as the application gets it."""
        return {**scope, "headers": self._tracing().inner_headers(scope["headers"], span)}

    def around(self, span: Span) -> AbstractContextManager[None]:
        """Let what the application traces become children of the span."""
        return self._tracing().parenting(span)

    def trace_id(self, call: ClientCall) -> str | None:
        """Return the id of a request's trace; None when it is not recorded."""
        return self._tracing().trace_id(call.span)

    def close(self, call: ClientCall) -> None:
        """End the span of a request that was never opened as an exchange, which ends it otherwise."""
        span = call.span
        if span is None or call.exchange is not None:
            return
        tracing = self._tracing()
        attributes: dict[str, Value] = {}
        if call.denial is not None:
            attributes |= denial_attributes(call.denial)
        if call.status:
            attributes["http.response.status_code"] = call.status
        outcome = unadmitted.outcome(call)
        attributes["pointsman.outcome"] = str(outcome)
        error = str(call.status or "_OTHER") if outcome is Outcome.ERROR else None
        if error is not None:
            attributes["error.type"] = error
        route: Any = call.scope.get("route")
        if isinstance(template := getattr(route, "path", None), str):
            attributes["http.route"] = template
            tracing.rename(span, f"{call.scope.get('method') or 'GET'} {template}")
        tracing.end(span, attributes, error=error, status=status_of(outcome))


class FrameworkTelemetry:
    """FastAPI's own telemetry, without spans for requests that have one of ours.

    FastAPI's span would stand above ours, and follow the client's sampling decision. FastAPI leaves it out by itself where
    OpenTelemetry's instrumentation has made one.

    Args:
        original: FastAPI's.
        spans: Decides which requests have a span of ours.
    """

    def __init__(self, original: Any, spans: RequestSpans) -> None:
        self._original = original
        self._spans = spans
        #: Asked for each request.
        self.enabled = original.enabled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    async def __call__(self, *, scope: Scope, legacy_otel: bool = False, **more: Any) -> None:
        """Serve a request."""
        without = legacy_otel or self._spans.covers(scope) or self._spans.hides(scope)
        await self._original(scope=scope, legacy_otel=without, **more)
