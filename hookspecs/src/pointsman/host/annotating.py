"""What a plugin writes on the span of the hook that it runs in, under its own name and within bounds."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span

from .attributes import Value, bounded

log: Final = logging.getLogger("pointsman")

Annotate = Callable[[Mapping[str, Value]], None]

#: The most attributes of one annotation; more are left out.
MOST: Final = 16
_NAME: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")

#: The span of the request whose stream is being changed. It is not the running one: what LiteLLM does meanwhile is its child.
_streaming: Final[ContextVar[Span | None]] = ContextVar("pointsman_streaming", default=None)


def annotator(plugin: str) -> Annotate:
    """Return a plugin's ``services.annotate``."""
    warned: set[str] = set()

    def annotate(attributes: Mapping[str, Value]) -> None:
        span = trace.get_current_span()
        if not span.is_recording():
            streaming = _streaming.get()
            if streaming is None:
                return
            span = streaming
        named: dict[str, Value] = {}
        for name, value in attributes.items():
            if not _NAME.fullmatch(name) or len(named) == MOST:
                if name not in warned and len(warned) < MOST:
                    warned.add(name)
                    log.warning(
                        "plugin %r: the annotation %.64r is left out: a name is lower-case letters, digits, '_' and '.', at "
                        "most 64, and one call adds at most %d",
                        plugin,
                        name,
                        MOST,
                    )
                continue
            named[f"pointsman.{plugin}.{name}"] = value
        with contextlib.suppress(Exception):  # telemetry never harms a request
            span.set_attributes(bounded(named))

    return annotate


@contextlib.contextmanager
def streaming(span: Span | None) -> Iterator[None]:
    """Let annotations reach a request's span while a plugin works on its stream."""
    token = _streaming.set(span)
    try:
        yield
    finally:
        _streaming.reset(token)
