"""Where our messages and the plugins' are logged, and the trace that each line of the log belongs to.

A line that is written while a recorded request is in hand says its trace: ours as ``trace_id=`` at the end of the message, and
every line of the process, LiteLLM's included, in fields by OpenTelemetry's names, which JSON formatters write.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

import litellm
from litellm._logging import JsonFormatter
from opentelemetry import trace

_OURS: Final = "pointsman"
#: The loggers of LiteLLM and of its server.
_LITELLM: Final = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "uvicorn.access", "uvicorn.error")
_FORMAT: Final = "%(asctime)s - %(name)s:%(levelname)s: %(message)s"


def set_up(packages: Collection[str]) -> None:
    """Log our messages where LiteLLM logs its own, and in its form, unless the operator has configured logging.

    Args:
        packages: Those of the plugins.
    """
    names = {_OURS, *packages}
    note = _Note(names)
    for name in _LITELLM:
        _replace(logging.getLogger(name), note)
    # LiteLLM's own JSON handler is at the root; its level would hide what we have to say.
    if logging.getLogger().handlers and not litellm.json_logs:
        for present in logging.getLogger().handlers:
            _replace(present, note)
        return
    handler = logging.StreamHandler()
    handler.addFilter(note)
    handler.setFormatter(JsonFormatter() if litellm.json_logs else logging.Formatter(_FORMAT))
    for logger in map(logging.getLogger, sorted(names)):
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


def _replace(filtered: logging.Filterer, note: _Note) -> None:
    """Let a logger or a handler use this filter instead of that of an earlier configuration."""
    for old in [one for one in filtered.filters if isinstance(one, _Note)]:
        filtered.removeFilter(old)
    filtered.addFilter(note)


class _Note(logging.Filter):
    """Gives a record the ids of the running trace, where it is recorded.

    Args:
        names: The loggers whose messages also say it.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = frozenset(names)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record is logged."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid or not context.trace_flags.sampled or hasattr(record, "otelTraceID"):
            return True
        trace_id = f"{context.trace_id:032x}"
        vars(record).update(otelTraceID=trace_id, otelSpanID=f"{context.span_id:016x}")
        if record.name.partition(".")[0] in self._names:
            record.msg, record.args = f"{record.getMessage()} trace_id={trace_id}", ()
        return True
