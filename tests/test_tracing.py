"""What a trace says, collected over OTLP from a real proxy."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from rig import Rig, deployment

from pointsman.testing.otlp import CollectedSpan, Collector
from pointsman.testing.ports import free_port
from pointsman.testing.provider import Behaviour

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]
ASK = [{"role": "user", "content": "Say the secret word xyzzy-4711."}]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
#: The SDK alone would wait for 30 s, and a slow collector for as long as its answer takes.
_END_S = 19.0
_SLOW_S = 20.0


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-1"),
        deployment(upstream, "pair", "gpt-4o-mini", id_="pair-2"),
        deployment(upstream, "broken", "gpt-broken", id_="broken-1"),
        deployment(upstream, "claude", "claude-haiku-4-5", id_="claude-1", provider="anthropic"),
    ]


def start(
    directory: Path,
    collector_url: str,
    *,
    litellm: str = "off",
    auth: bool = False,
    more_env: Mapping[str, str | None] | None = None,
    **tracing: str,
) -> Rig:
    """Return a proxy with LiteLLM's own OTel callback ``off``, ``v1`` or ``v2``, and with Pointsman's ``custom_auth``."""
    defaults: dict[str, str | None] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector_url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=staging,team=gateway",
        **(more_env or {}),
    }
    env = {name: value for name, value in defaults.items() if value is not None}
    callbacks = ["pointsman.litellm.handler"]
    if litellm != "off":
        callbacks.append("otel")
        env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"{collector_url}/v1/traces"}
    if litellm == "v2":
        env["LITELLM_OTEL_V2"] = "true"
    config: dict[str, Any] = {
        "litellm_settings": {"callbacks": callbacks, "fallbacks": [{"broken": ["pair"]}]},
        "router_settings": {"num_retries": 0},
        "pointsman": {"tracing": tracing},
    }
    if auth:
        config["general_settings"] = {"custom_auth": "pointsman.litellm.custom_auth"}
    return Rig(directory, model_list, plugins=["denier"], config=config, env=env)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Collector]]:
    json_lines = {"JSON_LOGS": "true"}
    with Collector() as collector, start(tmp_path_factory.mktemp("tracing"), collector.url, more_env=json_lines) as rig:
        rig.upstream.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        yield rig, collector


def post(rig: Rig, case: str, model: str, *, stream: bool = False, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{rig.proxy.url}/v1/chat/completions",
        json={"model": model, "messages": ASK, "stream": stream},
        headers={**rig.proxy.headers, "x-test-case": case, **headers},
        timeout=60,
    )


def trace_of(collector: Collector, request_id: str) -> dict[str, CollectedSpan]:
    """Wait for a request's spans and return them by name, with its settlement's, which is a trace of its own."""

    def mine(spans: list[CollectedSpan]) -> list[CollectedSpan]:
        roots = {s.trace_id for s in spans if s.attributes.get("pointsman.request_id") == request_id}
        return [s for s in spans if s.trace_id in roots]

    def whole(spans: list[CollectedSpan]) -> bool:
        kinds = {s.attributes.get("pointsman.kind") for s in mine(spans)}
        return {"request", "settlement"} <= kinds

    return {span.name: span for span in mine(collector.wait(whole))}


def test_a_trace_tells_why_the_request_went_where_it_went(traced: tuple[Rig, Collector]) -> None:
    """Request, pre_route, one attempt with its candidates and scores, before_attempt; the settlement is linked."""
    rig, collector = traced
    answer = post(rig, "why", "pair", traceparent=f"00-{TRACE}-{PARENT}-00", **{"x-test-drop": "pair-1"})
    request_id = answer.headers["x-pointsman-request-id"]
    spans = trace_of(collector, request_id)
    root = spans["chat pair"]
    assert (root.trace_id, root.parent_id, root.kind) == (TRACE, PARENT, "server")
    assert answer.headers["x-pointsman-trace-id"] == TRACE
    assert set(spans) == {"chat pair", "pre_route", "chat gpt-4o-mini", "before_attempt", "settle pair"}
    attempt, settled = spans["chat gpt-4o-mini"], spans["settle pair"]
    assert {spans[name].parent_id for name in ("pre_route", "chat gpt-4o-mini")} == {root.span_id}
    assert spans["before_attempt"].parent_id == attempt.span_id
    assert settled.trace_id != TRACE
    assert settled.links == ((TRACE, root.span_id),)
    assert root.links == ((settled.trace_id, settled.span_id),)
    assert root.attributes["gen_ai.request.model"] == "pair"
    assert root.attributes["pointsman.label.case"] == "why"
    assert root.attributes["pointsman.outcome"] == "ok"
    assert root.attributes["gen_ai.usage.output_tokens"] > 0
    assert attempt.attributes["pointsman.deployment"] == "pair-2"
    assert attempt.attributes["pointsman.candidates"] == ["pair-2"]
    assert attempt.attributes["pointsman.scores"] == [1.0]
    assert attempt.attributes["pointsman.dropped"] == ["pair-1: unwanted (recorder)"]
    assert attempt.attributes["gen_ai.provider.name"] == "openai"
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert attempt.attributes["gen_ai.response.id"] == answer.json()["id"]
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attempt.attributes["pointsman.attempt.kind"] == "primary"
    # On a busy machine a hook may wait, which is said as well.
    assert [name for name, _ in spans["pre_route"].events if name != "waited"] == ["recorder"]
    (received,) = [r for r in rig.upstream.requests if r.headers.get("traceparent", "").startswith(f"00-{TRACE}")]
    assert received.headers["traceparent"].split("-")[2] == attempt.span_id
    assert settled.attributes["pointsman.cost_usd_micros"] == attempt.attributes["pointsman.cost_usd_micros"]
    assert {name: root.resource[name] for name in ("service.name", "team", "process.pid")} == {
        "service.name": "pointsman",
        "team": "gateway",
        "process.pid": rig.proxy.pid,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_the_providers_id(traced: tuple[Rig, Collector], stream: bool) -> None:
    """Also where LiteLLM translates Anthropic's answer and gives it an id of its own."""
    rig, collector = traced
    answer = post(rig, "named", "claude", stream=stream)
    assert "chatcmpl-" in answer.text
    spans = trace_of(collector, answer.headers["x-pointsman-request-id"])
    assert spans["chat claude-haiku-4-5"].attributes["gen_ai.response.id"].startswith("msg_")


def test_a_stream_tells_its_model_and_when_it_began(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    answer = post(rig, "stream", "pair", stream=True)
    spans = trace_of(collector, answer.headers["x-pointsman-request-id"])
    for name in ("chat pair", "chat gpt-4o-mini"):
        assert spans[name].attributes["gen_ai.request.stream"] is True
        assert spans[name].attributes["gen_ai.response.model"] == "gpt-4o-mini"
        assert spans[name].attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert spans["chat gpt-4o-mini"].attributes["gen_ai.response.finish_reasons"] == ["stop"]


#: How long a client takes to send its request, in seconds.
_SENDING_S = 0.6
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASK},
    "/v1/messages": {"messages": ASK, "max_tokens": 4},
    "/v1/responses": {"input": "Say something."},
    "/v1/embeddings": {"input": "Say something."},
    "/v1/completions": {"prompt": "Say something."},
}


@pytest.mark.parametrize("path", _BODIES)
def test_a_request_is_measured_from_its_first_byte(traced: tuple[Rig, Collector], path: str) -> None:
    """In its span, in the metrics and in what plugins are told: the time before its admission is the client's time too."""
    rig, collector = traced

    def slowly() -> Iterator[bytes]:
        body = json.dumps({"model": "pair", **_BODIES[path]}).encode()
        yield body[:10]
        time.sleep(_SENDING_S)
        yield body[10:]

    headers = {**rig.proxy.headers, "content-type": "application/json"}
    answer = httpx.post(f"{rig.proxy.url}{path}", content=slowly(), headers=headers, timeout=60)
    request_id = answer.headers["x-pointsman-request-id"]
    root = next(span for span in trace_of(collector, request_id).values() if span.kind == "server")
    shown = httpx.get(f"{rig.proxy.url}/pointsman/requests/{request_id}", headers=rig.proxy.headers, timeout=60).json()
    assert _SENDING_S * 1000 <= shown["duration_ms"] <= (root.end_ns - root.start_ns) / 1e6
    assert shown["at"] - root.start_ns / 1e9 < _SENDING_S
    assert all(route["at_ms"] >= _SENDING_S * 1000 for route in shown["routes"])


def test_a_fallback_and_a_denial_are_told(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    saved = trace_of(collector, post(rig, "saved", "broken").headers["x-pointsman-request-id"])
    assert saved["chat gpt-broken"].status == "error"
    assert saved["chat gpt-broken"].attributes["error.type"] == "server"
    fallback = saved["chat gpt-4o-mini"]
    assert fallback.status == "ok"
    assert fallback.attributes["pointsman.attempt.kind"] == "fallback"
    assert saved["chat broken"].attributes["pointsman.answered_by"] == fallback.attributes["pointsman.deployment"]
    denied = post(rig, "denied", "pair", **{"x-test-deny": "429"})
    spans = trace_of(collector, denied.headers["x-pointsman-request-id"])
    assert set(spans) == {"chat pair", "pre_route", "settle pair"}
    assert spans["chat pair"].attributes["pointsman.denied_by"] == "denier"
    assert (spans["chat pair"].status, spans["chat pair"].parent_id) == ("unset", "")


@pytest.mark.parametrize(
    ("model", "headers", "says"),
    [
        ("pair", {"x-test-mirror": "pair"}, r"mirror: \S+: 'pair': ok, status \d+.*"),
        ("no-such-model", {}, r"unknown model: no deployment serves 'no-such-model'"),
    ],
)
def test_explain_knows_mirrors_and_unknown_models(
    traced: tuple[Rig, Collector], model: str, headers: dict[str, str], says: str
) -> None:
    rig, _ = traced
    request_id = post(rig, "explained", model, **headers).headers["x-pointsman-request-id"]
    url = f"{rig.proxy.url}/pointsman/requests/{request_id}"
    deadline = time.monotonic() + 60
    told: list[str] = []
    while not any(re.fullmatch(says, line) for line in told):
        assert time.monotonic() < deadline, told
        told = httpx.get(url, headers=rig.proxy.headers, timeout=60).json()["lines"]
        time.sleep(0.1)


def test_no_span_outlives_its_parent(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    for case in ("nested", "broken"):
        trace_of(collector, post(rig, case, "broken" if case == "broken" else "pair").headers["x-pointsman-request-id"])
    spans = {span.span_id: span for span in collector.spans}
    nested = [(span, spans[span.parent_id]) for span in spans.values() if span.parent_id in spans]
    assert len(nested) > 8
    for span, parent in nested:
        assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns, (span.name, parent.name)


def test_spans_hold_no_prompt_and_no_key(traced: tuple[Rig, Collector]) -> None:
    rig, collector = traced
    trace_of(collector, post(rig, "secret", "pair").headers["x-pointsman-request-id"])
    text = repr(collector.spans)
    assert "xyzzy-4711" not in text
    assert rig.proxy.master_key not in text


def test_a_line_of_the_log_leads_to_its_trace(traced: tuple[Rig, Collector]) -> None:
    """A plugin's, the host's about a plugin, and LiteLLM's own where it writes JSON."""
    rig, _ = traced
    answer = post(
        rig, "logged", "pair", **{"x-test-log": "number 17", "x-test-executor": "recorder", "x-test-execute": "fault"}
    )
    trace_id = answer.headers["x-pointsman-trace-id"]
    lines = [json.loads(line) for line in rig.proxy.log().splitlines() if line.startswith("{")]
    for says in ("told to log number 17", "plugin 'recorder': hook 'execute'"):
        (line,) = [line for line in lines if says in line["message"] and line.get("otelTraceID") == trace_id]
        assert line["message"].endswith(f" trace_id={trace_id}")
    theirs = [line for line in lines if line.get("otelTraceID") == answer.headers["x-pointsman-trace-id"]]
    assert any("/v1/chat/completions" in line["message"] for line in theirs), lines[-3:]


@pytest.mark.parametrize(("litellm", "auth"), [("v1", False), ("v1", True), ("v2", True)])
def test_litellms_own_spans_belong_to_the_same_tree(tmp_path: Path, litellm: str, auth: bool) -> None:
    """With LiteLLM's OTel callback on, there is one tree, ours at its root, however the caller was authenticated.

    Nothing of a call of our own is in it: LiteLLM's spans of a mirror are in the mirror's trace.
    """
    key = {"authorization": "Bearer tenant-a"} if auth else {}
    with Collector() as collector, start(tmp_path, collector.url, litellm=litellm, auth=auth) as rig:
        theirs = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        answers = [
            post(rig, "plain", "pair", **key),
            post(rig, "stream", "pair", stream=True, **key),
            post(rig, "theirs", "pair", **key, **theirs),
            post(rig, "mirror", "pair", **key, **{"x-test-mirror": "pair"}),
        ]
        refused = post(rig, "refused", "pair", authorization="Bearer unknown")
        # As Prometheus does every few seconds.
        httpx.get(f"{rig.proxy.url}/pointsman/metrics", headers=rig.proxy.headers, timeout=60).raise_for_status()
        for answer in answers:
            trace_of(collector, answer.headers["x-pointsman-request-id"])
        shown = httpx.get(f"{rig.proxy.url}/pointsman/status", headers=rig.proxy.headers, timeout=60).json()
        assert shown["tracing"]["spans"]["exported"] > len(answers)
    spans = collector.spans
    known = {span.span_id: span for span in spans}
    services = {
        (s.scope == "pointsman", s.resource["service.name"]) for s in spans if s.scope in {"pointsman", "litellm"}
    }
    assert services == {(True, "pointsman"), (False, "litellm")}
    assert {s.parent_id for s in spans} - known.keys() == {"", PARENT}
    assert not [s.name for s in spans if "/pointsman" in repr((s.name, s.attributes))]
    for answer in answers:
        trace = [s for s in spans if s.trace_id == answer.headers["x-pointsman-trace-id"]]
        (root,) = [s for s in trace if s.parent_id not in known]
        assert (root.name, root.scope, root.kind) == ("chat pair", "pointsman", "server")
        calls = [s for s in trace if s.attributes.get("litellm.call_id") == answer.headers["x-litellm-call-id"]]
        assert {"pointsman", "litellm"} <= {s.scope for s in calls}
        attempts = [s for s in trace if "pointsman.attempt" in s.attributes]
        assert len(attempts) == 1
        shared = [
            s for s in trace if s.attributes.get("gen_ai.response.id") == attempts[0].attributes["gen_ai.response.id"]
        ]
        assert {"pointsman", "litellm"} <= {s.scope for s in shared}
    assert answers[2].headers["x-pointsman-trace-id"] == TRACE
    (mirror,) = [s for s in spans if s.attributes.get("pointsman.kind") == "mirror"]
    primary = next(
        s
        for s in spans
        if s.trace_id == answers[3].headers["x-pointsman-trace-id"] and s.name == "chat pair" and s.scope == "pointsman"
    )
    assert (mirror.trace_id, mirror.span_id) in primary.links
    assert mirror.links == ((primary.trace_id, primary.span_id),)
    assert {"pointsman", "litellm"} <= {s.scope for s in spans if s.trace_id == mirror.trace_id}
    (root,) = [s for s in spans if s.trace_id == refused.headers["x-pointsman-trace-id"] and s.parent_id not in known]
    assert root.attributes["http.response.status_code"] == refused.status_code
    assert root.attributes["pointsman.outcome"] == ("denied" if auth else "error")


@pytest.mark.parametrize(
    ("litellm", "variables"), [("off", "standard"), ("v1", "standard"), ("v2", "standard"), ("v1", "litellm")]
)
def test_the_spans_of_the_last_moment_arrive(tmp_path: Path, litellm: str, variables: str) -> None:
    """Also where only LiteLLM's variables say where spans go, so that ours leave with LiteLLM's."""
    env: dict[str, str | None] = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    if variables == "litellm":
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = None
    with Collector() as collector, start(tmp_path, collector.url, litellm=litellm, more_env=env) as rig:
        answer = post(rig, "last", "pair")
        assert not collector.spans
        assert rig.proxy.stop(timeout_s=_END_S) != -signal.SIGKILL
        spans = trace_of(collector, answer.headers["x-pointsman-request-id"])
    assert {"chat pair", "pre_route", "chat gpt-4o-mini", "settle pair"} <= set(spans)


@pytest.mark.parametrize("trust", ["none", "link", "sampling"])
def test_a_clients_trace_is_believed_as_far_as_configured(tmp_path: Path, trust: str) -> None:
    with Collector() as collector, start(tmp_path, collector.url, trust_traceparent=trust) as rig:
        unsampled = post(rig, "unsampled", "pair", traceparent=f"00-{TRACE}-{PARENT}-00")
        sampled = post(rig, "sampled", "pair", traceparent=f"00-{TRACE}-{PARENT}-01")
        root = trace_of(collector, sampled.headers["x-pointsman-request-id"])["chat pair"]
        assert (root.trace_id == TRACE) == (trust == "sampling")
        assert ((TRACE, PARENT) in root.links) == (trust == "link")
        assert ("x-pointsman-trace-id" in unsampled.headers) == (trust != "sampling")


class Stranger(socketserver.StreamRequestHandler):
    """Something that speaks another protocol, at the address where a collector should be."""

    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-none\r\n")


@contextlib.contextmanager
def stranger() -> Iterator[str]:
    """Run it; its URL is yielded."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("fault", "litellm"),
    [
        *((fault, "off") for fault in ("refusing", "slow", "hanging", "gone", "stranger")),
        *((fault, version) for fault in ("hanging", "gone") for version in ("v1", "v2")),
    ],
)
def test_a_collector_that_takes_nothing_delays_neither_requests_nor_the_end(
    tmp_path: Path, fault: str, litellm: str
) -> None:
    """Every request is answered, what is lost is counted, and the proxy ends although the exporter would wait for ever."""
    status, latency_s = (200, _SLOW_S) if fault == "slow" else (503, 0.0)
    with Collector(status=status, hang=fault == "hanging", latency_s=latency_s) as collector, stranger() as other:
        url = {"gone": f"http://127.0.0.1:{free_port()}", "stranger": other}.get(fault, collector.url)
        with start(tmp_path, url, litellm=litellm, more_env={"OTEL_EXPORTER_OTLP_TIMEOUT": "1000"}) as rig:
            for n in range(3):
                assert post(rig, f"broken-{n}", "pair").status_code == 200
            shown = httpx.get(f"{rig.proxy.url}/pointsman/status", headers=rig.proxy.headers, timeout=60).json()
            assert shown["tracing"]["spans"]["exported"] == 0
            assert rig.proxy.stop(timeout_s=_END_S) != -signal.SIGKILL
            assert "spans were lost at the end" in rig.proxy.log()


def test_deployments_that_all_cool_down_are_named_with_the_reason(tmp_path: Path) -> None:
    """LiteLLM refuses such a request without asking for a choice; its trace and `explain` say why all the same."""
    config = {"router_settings": {"num_retries": 0, "allowed_fails": 0, "cooldown_time": 600}}
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with Rig(tmp_path, model_list, config=config, env=env) as rig:
            rig.upstream.behave("gpt-4o-mini", Behaviour(error_ratios={429: 1.0}))
            # The cooldown of each begins a moment after its answer.
            for number in range(100):
                refused = post(rig, f"cooling-{number}", "pair")
                if "All deployments for selected model are in cooldown" in refused.text:
                    break
            request_id = refused.headers["x-pointsman-request-id"]
            (event,) = [e for e in trace_of(collector, request_id)["chat pair"].events if e[0] == "no candidate left"]
            for dropped in event[1]["pointsman.dropped"]:
                assert re.fullmatch(
                    r"pair-[12]: in cooldown after status 429, until \d\d:\d\d:\d\dZ \(litellm\)", dropped
                )
            assert len(event[1]["pointsman.dropped"]) == 2
            told = httpx.get(f"{rig.proxy.url}/pointsman/requests/{request_id}", headers=rig.proxy.headers, timeout=60)
            assert any("no candidate was left: pair-1 (litellm: in cooldown" in line for line in told.json()["lines"])


#: Why LiteLLM leaves every deployment out of a request, by model group. Its native router does not say which filter it was
#: where that is a part of the router itself.
FILTERED = {
    "tagged": "its tags do not match the request's",
    "window": "not fit for the request: its context window.*|not offered by LiteLLM: ContextWindowExceededError",
}


@pytest.mark.parametrize("traced", [True, False])
def test_deployments_that_litellms_filters_leave_out_are_named_with_the_reason(tmp_path: Path, traced: bool) -> None:
    """A filter that leaves none raises an error, before a plugin is asked; `explain` says it without tracing too."""

    def models(upstream: str) -> list[dict[str, Any]]:
        window = deployment(upstream, "window", "of-five-tokens", id_="window-1")
        window["model_info"]["max_input_tokens"] = 5
        tagged = [deployment(upstream, "tagged", "gpt-4o-mini", id_=f"tagged-{n}", tags=[f"team-{n}"]) for n in (1, 2)]
        return [window, *tagged]

    config = {
        "router_settings": {"num_retries": 0, "enable_tag_filtering": True, "enable_pre_call_checks": True},
        "pointsman": {"tracing": {"enabled": traced}, "unpriced": "allow"},
    }
    ids = {"tagged": ["tagged-1", "tagged-2"], "window": ["window-1"]}
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with Rig(tmp_path, models, config=config, env=env) as rig:
            for group, reason in FILTERED.items():
                body = {"model": group, "messages": ASK, "metadata": {"tags": ["team-3"]} if group == "tagged" else {}}
                url = f"{rig.proxy.url}/v1/chat/completions"
                refused = httpx.post(url, json=body, headers=rig.proxy.headers, timeout=60)
                assert refused.is_client_error, refused.text
                request_id = refused.headers["x-pointsman-request-id"]
                told = httpx.get(
                    f"{rig.proxy.url}/pointsman/requests/{request_id}", headers=rig.proxy.headers, timeout=60
                )
                (selection,) = told.json()["selections"]
                left_out = {one["deployment"]: one["reason"] for one in selection["left_out"]}
                assert sorted(left_out) == ids[group]
                assert all(re.fullmatch(reason, found) for found in left_out.values()), left_out
                if traced:
                    (event,) = trace_of(collector, request_id)[f"chat {group}"].events
                    assert event[0] == "no candidate left"
                    assert event[1]["pointsman.dropped"] == [f"{n}: {why} (litellm)" for n, why in left_out.items()]
