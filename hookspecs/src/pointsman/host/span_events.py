"""What plugins do to a request, as events of the span that is running: waits and faults. Nothing where nothing is traced."""

from __future__ import annotations

import contextlib
from typing import Final

from opentelemetry import trace

#: A wait that is shorter is none: a hook that never suspends takes microseconds.
LEAST_WAIT_S: Final = 0.001


def waited(plugin: str, hook: str, seconds: float) -> None:
    """Note that a plugin's hook took this long, if it was a wait; what for, if the plugin has said it as ``waited_for``."""
    if seconds < LEAST_WAIT_S:
        return
    span = trace.get_current_span()
    with contextlib.suppress(Exception):  # telemetry never harms a request
        if span.is_recording():
            wait_ms = round(seconds * 1000, 3)
            facts: dict[str, str | float] = {
                "pointsman.plugin": plugin,
                "pointsman.hook": hook,
                "pointsman.wait_ms": wait_ms,
            }
            said = getattr(span, "attributes", None) or {}
            if (reason := said.get(f"pointsman.{plugin}.waited_for")) is not None:
                facts["pointsman.reason"] = str(reason)
            span.add_event("waited", facts)


def failed(plugin: str, hook: str, err: BaseException) -> None:
    """Note that a plugin's hook failed; the text of its error stays out, since it may quote the request."""
    span = trace.get_current_span()
    with contextlib.suppress(Exception):  # telemetry never harms a request
        if span.is_recording():
            kind = "deadline" if isinstance(err, TimeoutError) else type(err).__name__
            facts = {"pointsman.plugin": plugin, "pointsman.hook": hook, "error.type": kind}
            span.add_event("plugin fault", facts)
