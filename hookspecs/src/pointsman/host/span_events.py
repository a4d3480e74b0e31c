"""What plugins do to a request, as events of the span that is running: waits and faults. Nothing where nothing is traced."""

from __future__ import annotations

import contextlib
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import context, trace
from opentelemetry.trace import Span

#: A wait that is shorter is none: a hook that never suspends takes microseconds.
LEAST_WAIT_S: Final = 0.001
#: For how long plugins have waited for the store since their last wait was noted, in seconds, by span and plugin.
_in_store: Final[WeakKeyDictionary[Span, dict[str, float]]] = WeakKeyDictionary()


def waited(plugin: str, hook: str, seconds: float, held_s: float) -> None:
    """Note that a plugin's hook took this long, if it was a wait, and why.

    The reason is what the plugin has said as ``waited_for``, else what took half of the time: ``computing`` or ``store``.

    Args:
        plugin: The plugin.
        hook: Its hook.
        seconds: From its call to its answer.
        held_s: For how long of that it has held the event loop.
    """
    if seconds < LEAST_WAIT_S or not context.get_current():
        return
    span = trace.get_current_span()
    with contextlib.suppress(Exception):  # telemetry never harms a request
        if span.is_recording():
            said = getattr(span, "attributes", None) or {}
            reason = said.get(f"pointsman.{plugin}.waited_for")
            store_s = _in_store.get(span, {}).pop(plugin, 0.0)
            if reason is None:
                reason = "computing" if held_s * 2 >= seconds else "store" if store_s * 2 >= seconds else "unknown"
            facts: dict[str, str | float] = {
                "pointsman.plugin": plugin,
                "pointsman.hook": hook,
                "pointsman.wait_ms": round(seconds * 1000, 3),
                "pointsman.reason": str(reason),
            }
            span.add_event("waited", facts)


def stored(plugin: str, seconds: float) -> None:
    """Note that a plugin has waited for the store, in the span that is running."""
    if not context.get_current():  # which is what is there where nothing is traced, in half the time
        return
    span = trace.get_current_span()
    with contextlib.suppress(Exception):  # telemetry never harms a request
        if span.is_recording():
            waits = _in_store.setdefault(span, {})
            waits[plugin] = waits.get(plugin, 0.0) + seconds


def failed(plugin: str, hook: str, err: BaseException) -> None:
    """Note that a plugin's hook failed; the text of its error stays out, since it may quote the request."""
    span = trace.get_current_span()
    with contextlib.suppress(Exception):  # telemetry never harms a request
        if span.is_recording():
            kind = "deadline" if isinstance(err, TimeoutError) else type(err).__name__
            facts = {"pointsman.plugin": plugin, "pointsman.hook": hook, "error.type": kind}
            span.add_event("plugin fault", facts)
