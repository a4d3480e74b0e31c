"""Lines of the log say the trace of the request that is in hand, also where the operator has configured logging."""

from __future__ import annotations

import io
import json
import logging

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.fixture
def root(monkeypatch):
    """Python's logging with loggers of a test's own, and as if nothing had been configured."""
    import litellm  # noqa: PLC0415  # slow to import

    from pointsman.litellm import logs  # noqa: PLC0415  # needs LiteLLM

    present = logging.getLogger()
    monkeypatch.setattr(logs, "_OURS", "ours_of_this_test")
    monkeypatch.setattr(litellm, "json_logs", False)
    yield present
    for name in [
        n for n in logging.root.manager.loggerDict if n.startswith(("ours_of_this_test", "theirs_of_this_test"))
    ]:
        del logging.root.manager.loggerDict[name]


def traced(*, sampled=True):
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return trace.use_span(NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), False, flags)))


@pytest.mark.parametrize("form", ["text", "json", "operator's"])
@pytest.mark.parametrize("name", ["ours_of_this_test", "ours_of_this_test.part", "theirs_of_this_test.plugin"])
@pytest.mark.parametrize(("sampled", "said"), [(True, True), (False, False)])
def test_our_lines_say_the_trace_once(root, monkeypatch, form, name, sampled, said):  # noqa: PLR0917
    import litellm  # noqa: PLC0415

    from pointsman.litellm import logs  # noqa: PLC0415

    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(litellm, "json_logs", form == "json")
    # Here, since pytest has added one of its own.
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(stream)] if form == "operator's" else []
    monkeypatch.setattr(root, "handlers", handlers)
    for _ in range(2):  # as a reload does
        logs.set_up({"theirs_of_this_test"})
    with traced(sampled=sampled):
        logging.getLogger(name).warning("%d faults", 3)
    logging.getLogger(name).warning("in no request")
    lines = stream.getvalue().splitlines()
    assert len(lines) == (4 if form == "operator's" else 2)
    assert [line.count(f"3 faults trace_id={TRACE}") for line in lines] == [int(said and "faults" in x) for x in lines]
    if form == "json":
        assert json.loads(lines[0]).get("otelTraceID") == (TRACE if said else None)


def test_lines_of_others_have_the_trace_in_fields_alone(root, monkeypatch):
    from pointsman.litellm import logs  # noqa: PLC0415

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        logging.Formatter("%(message)s %(otelTraceID)s %(otelSpanID)s", defaults={"otelTraceID": "", "otelSpanID": ""})
    )
    monkeypatch.setattr(root, "handlers", [handler])
    logs.set_up(())
    with traced():
        logging.getLogger("a.library").warning("hello")
    assert stream.getvalue() == f"hello {TRACE} {SPAN}\n"
