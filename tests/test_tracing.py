"""What a trace says, collected over OTLP from a real proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rig import Rig, deployment

from pointsman.testing.otlp import CollectedSpan, Collector
from pointsman.testing.upstream import Behaviour

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]
ASK = [{"role": "user", "content": "Say the secret word xyzzy-4711."}]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-1"),
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-2"),
        deployment(upstream, "broken", "gpt-broken", id_="broken-1"),
    ]


def start(directory: Path, collector_url: str, *, litellm_otel: bool = False) -> Rig:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector_url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    callbacks = ["pointsman.litellm.handler"]
    if litellm_otel:
        callbacks.append("otel")
        env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"{collector_url}/v1/traces"}
    config = {
        "litellm_settings": {"callbacks": callbacks, "fallbacks": [{"broken": ["pair"]}]},
        "router_settings": {"num_retries": 0},
    }
    return Rig(directory, model_list, plugins=["denier"], config=config, env=env)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Collector]]:
    with Collector() as collector, start(tmp_path_factory.mktemp("tracing"), collector.url) as rig:
        rig.upstream.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        yield rig, collector


def post(rig: Rig, case: str, model: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{rig.proxy.url}/v1/chat/completions",
        json={"model": model, "messages": ASK},
        headers={**rig.proxy.headers, "x-test-case": case, **headers},
        timeout=30,
    )


def trace_of(collector: Collector, request_id: str) -> dict[str, CollectedSpan]:
    """Wait for a request's spans and return them by name."""

    def mine(spans: list[CollectedSpan]) -> list[CollectedSpan]:
        roots = [s for s in spans if s.attributes.get("pointsman.request_id") == request_id]
        return [s for s in spans if roots and s.trace_id == roots[0].trace_id]

    spans = collector.wait(lambda spans: any(s.name == "settle" for s in mine(spans)))
    return {span.name: span for span in mine(spans)}


def test_a_trace_tells_why_the_request_went_where_it_went(traced: tuple[Rig, Collector]) -> None:
    """Request, pre_route, one attempt with its candidates and scores, before_attempt, settle; all of one trace."""
    rig, collector = traced
    answer = post(rig, "why", "pair", traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-test-drop": "pair-1"})
    request_id = answer.headers["x-pointsman-request-id"]
    spans = trace_of(collector, request_id)
    root = spans["pointsman chat"]
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    assert set(spans) == {"pointsman chat", "pre_route", "attempt pair-2", "before_attempt", "settle"}
    attempt = spans["attempt pair-2"]
    assert {spans[name].parent_id for name in ("pre_route", "attempt pair-2", "settle")} == {root.span_id}
    assert spans["before_attempt"].parent_id == attempt.span_id
    assert root.attributes["gen_ai.request.model"] == "pair"
    assert root.attributes["pointsman.label.case"] == "why"
    assert root.attributes["pointsman.outcome"] == "ok"
    assert root.attributes["gen_ai.usage.output_tokens"] > 0
    assert attempt.attributes["pointsman.candidates"] == ["pair-2"]
    assert attempt.attributes["pointsman.scores"] == [1.0]
    assert attempt.attributes["pointsman.dropped"] == ["pair-1: unwanted (recorder)"]
    assert attempt.attributes["gen_ai.provider.name"] == "openai"
    assert attempt.attributes["pointsman.attempt.kind"] == "primary"
    assert [name for name, _ in spans["pre_route"].events] == ["recorder"]
    (received,) = [r for r in rig.upstream.requests if r.headers.get("traceparent", "").startswith(f"00-{TRACE}")]
    assert received.headers["traceparent"].split("-")[2] == attempt.span_id


def test_a_fallback_and_a_denial_are_told(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    saved = trace_of(collector, post(rig, "saved", "broken").headers["x-pointsman-request-id"])
    assert saved["attempt broken-1"].error
    assert saved["attempt broken-1"].attributes["error.type"] == "server"
    (fallback,) = [s for name, s in saved.items() if name.startswith("attempt pair")]
    assert fallback.attributes["pointsman.attempt.kind"] == "fallback"
    denied = post(rig, "denied", "pair", **{"x-test-deny": "429"})
    spans = trace_of(collector, denied.headers["x-pointsman-request-id"])
    assert set(spans) == {"pointsman chat", "pre_route", "settle"}
    assert spans["pointsman chat"].attributes["pointsman.denied_by"] == "denier"
    assert spans["pointsman chat"].parent_id == ""


def test_spans_hold_no_prompt_and_no_key(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    trace_of(collector, post(rig, "secret", "pair").headers["x-pointsman-request-id"])
    text = repr(collector.spans)
    assert "xyzzy-4711" not in text
    assert rig.proxy.master_key not in text


def test_litellms_own_request_span_is_the_parent(tmp_path: Path) -> None:
    """With LiteLLM's OTel callback on, ours are its children, in its trace."""
    with Collector() as collector, start(tmp_path, collector.url, litellm_otel=True) as rig:
        answer = post(rig, "nested", "pair", traceparent=f"00-{TRACE}-{PARENT}-01")
        spans = trace_of(collector, answer.headers["x-pointsman-request-id"])
        root = spans["pointsman chat"]
        assert root.trace_id == TRACE
        everything = collector.wait(lambda spans: any(s.span_id == root.parent_id for s in spans))
        (parent,) = [s for s in everything if s.span_id == root.parent_id]
        assert parent.scope != "pointsman"


def test_a_broken_collector_harms_no_request(tmp_path: Path) -> None:
    with Collector(status=503) as collector, start(tmp_path, collector.url) as rig:
        for n in range(10):
            assert post(rig, f"broken-{n}", "pair").status_code == 200
        assert len([row for row in rig.rows() if row["hook"] == "settle"]) >= 1
        collector_down = collector.url
    with start(tmp_path / "down", collector_down) as rig:
        assert post(rig, "down", "pair").status_code == 200
