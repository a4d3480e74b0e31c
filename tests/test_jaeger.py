"""What an engineer finds in a real Jaeger, asked through its own API, for the shapes that requests have.

The proxy runs the configuration of ``examples/tracing``, with LiteLLM's own OTel callback off, and in both of its versions.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import anthropic
import httpx
import openai
import pytest
import yaml
from attribute_table import documented, is_documented
from jaeger import Jaeger, JaegerSpan
from pictures import keep
from rig import recorder_library
from speaker import speaker
from waterfall import draw
from websockets.sync.client import connect

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer
from pointsman_quota.tenants import hash_key

pytestmark = [pytest.mark.services, pytest.mark.proxy, pytest.mark.timeout(600)]
EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "tracing" / "litellm.yaml"
SERVICE: Final = "gateway"
ACME, TRIAL = "sk-acme-of-this-test", "sk-trial-of-this-test"
ASK: Final = [{"role": "user", "content": "Say the secret word xyzzy-4711."}]
CLIENT_SPAN: Final = "00f067aa0ba902b7"
#: The statuses of shapes that are not answered with 200.
STATUS: Final = {"denial": 429, "refused": 401, "unknown": 403, "socket": 101}
#: Shapes that the example does not settle, since nothing admitted them.
UNSETTLED: Final = frozenset({"refused"})
SHAPES: Final = (
    "plain",
    "stream",
    "retry",
    "fallback",
    "canary",
    "hedge",
    "mirror",
    "denial",
    "disconnect",
    "messages",
    "responses",
    "embeddings",
    "completions",
    "images",
    "socket",
    "fault",
    "refused",
    "unknown",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request: the headers of its answer, the spans of its trace, and of its settlement's."""

    headers: Mapping[str, str]
    status: int
    spans: list[JaegerSpan]
    settlement: list[JaegerSpan]

    @property
    def root(self) -> JaegerSpan:
        """The span without a parent in this process."""
        ids = {span.span_id for span in self.spans}
        (root,) = [span for span in self.spans if span.parent_id not in ids]
        return root

    @property
    def attempts(self) -> list[JaegerSpan]:
        """Our attempts, in order."""
        found = [span for span in self.spans if "pointsman.attempt" in span.tags]
        return sorted(found, key=lambda span: int(span.tags["pointsman.attempt"]))


def _behave(upstream: UpstreamServer) -> None:
    upstream.behave("gpt-4.5-preview", Behaviour(error_ratios={404: 1.0}))
    upstream.behave("gpt-4.1", Behaviour(error_ratios={500: 1.0}))
    upstream.behave("gpt-4.1-nano", Behaviour(latency=Delay(median_ms=5_000)))
    upstream.behave("gpt-4.1-nano-2025-04-14", Behaviour(latency=Delay(median_ms=500)))
    upstream.behave(
        "claude-haiku-4-5", Behaviour(fail_first=1, fail_with=500, per_token=Delay(median_ms=40), tokens=40)
    )


class Client:
    """The real clients, and the shapes that they make."""

    def __init__(self, proxy: ProxyServer) -> None:
        self._url = proxy.url
        #: Of the client that traces itself; another one for each proxy, since all of them send to the same Jaeger.
        self.trace_id = uuid.uuid4().hex
        self._openai = openai.OpenAI(api_key=ACME, base_url=f"{proxy.url}/v1", max_retries=0, timeout=120)
        self._anthropic = anthropic.Anthropic(api_key=ACME, base_url=proxy.url, max_retries=0, timeout=120)

    def run(self, shape: str) -> tuple[int, Mapping[str, str]]:
        """Make one request of this shape; return status and headers of its answer."""
        make: Callable[[], Any] = getattr(self, f"_{shape}")
        try:
            answer = make()
        except openai.APIStatusError as err:
            return err.status_code, dict(err.response.headers)
        return answer.status_code, dict(answer.headers)

    def _chat(self, model: str, **more: Any) -> Any:
        return self._openai.chat.completions.with_raw_response.create(model=model, messages=ASK, **more)

    def _plain(self) -> Any:
        return self._chat("small", extra_headers={"traceparent": f"00-{self.trace_id}-{CLIENT_SPAN}-00"})

    def _stream(self) -> Any:
        answer = self._chat("small", stream=True)
        for _ in answer.parse():
            pass
        return answer

    def _retry(self) -> Any:
        return self._chat("writer", max_tokens=4)

    def _fallback(self) -> Any:
        return self._chat("retired")

    def _canary(self) -> Any:
        return self._chat("assistant")

    def _hedge(self) -> Any:
        return self._chat("fast")

    def _mirror(self) -> Any:
        return self._chat("large")

    def _denial(self) -> Any:
        client = self._openai.with_options(api_key=TRIAL)
        client.chat.completions.create(model="small", messages=ASK)
        return client.chat.completions.create(model="small", messages=ASK)

    def _disconnect(self) -> Any:
        body = {"model": "claude", "messages": ASK, "stream": True}
        headers = {"authorization": f"Bearer {ACME}"}
        with httpx.stream(
            "POST", f"{self._url}/v1/chat/completions", json=body, headers=headers, timeout=120
        ) as answer:
            next(answer.iter_lines())
        return answer

    def _messages(self) -> Any:
        return self._anthropic.messages.with_raw_response.create(model="claude", messages=ASK, max_tokens=4)

    def _responses(self) -> Any:
        return self._openai.responses.with_raw_response.create(model="small", input="Say something.")

    def _embeddings(self) -> Any:
        return self._openai.embeddings.with_raw_response.create(model="vectors", input="Say something.")

    def _completions(self) -> Any:
        answer = self._openai.completions.with_raw_response.create(
            model="legacy", prompt="Say something.", max_tokens=4, stream=True
        )
        for _ in answer.parse():
            pass
        return answer

    def _images(self) -> Any:
        return self._openai.images.with_raw_response.generate(model="pictures", prompt="A cat.")

    def _socket(self) -> Any:
        url = f"{self._url.replace('http', 'ws', 1)}/v1/realtime?model=talk"
        with connect(url, additional_headers={"authorization": f"Bearer {ACME}"}, open_timeout=60) as talk:
            for _ in range(2):
                talk.send(json.dumps({"type": "response.create", "response": {}}))
                while json.loads(talk.recv(60))["type"] != "response.done":
                    pass
            assert talk.response is not None
            headers = {name.lower(): value for name, value in talk.response.headers.raw_items()}
            return SimpleNamespace(status_code=talk.response.status_code, headers=headers)

    def _fault(self) -> Any:
        return self._chat("small", extra_headers={"x-test-executor": "recorder", "x-test-execute": "fault"})

    def _refused(self) -> Any:
        client = self._openai.with_options(api_key="sk-unknown")
        return client.chat.completions.create(model="small", messages=ASK)

    def _unknown(self) -> Any:
        return self._chat("no-such-model")


def _model(group: str, model: str, url: str) -> dict[str, Any]:
    params = {"model": model, "api_base": url, "api_key": "x"}
    return {"model_name": group, "litellm_params": params, "model_info": {"id": f"{group}-a"}}


def _config(directory: Path, litellm: str, speaker_url: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    document["model_list"] += [
        _model("vectors", "openai/text-embedding-3-small", "os.environ/OPENAI_BASE_URL"),
        _model("legacy", "text-completion-openai/gpt-3.5-turbo-instruct", "os.environ/OPENAI_BASE_URL"),
        _model("pictures", "openai/gpt-image-1", "os.environ/OPENAI_BASE_URL"),
        _model("talk", "openai/gpt-realtime", speaker_url),
    ]
    (shadow,) = [plugin["shadow"] for plugin in document["pointsman"]["plugins"] if "shadow" in plugin]
    # On a machine that is busy, a mirror would be left out.
    shadow["max_lag_ms"] = 60_000
    document["pointsman"]["plugins"].append({"recorder": {"file": str(directory / "record.jsonl")}})
    if litellm != "off":
        document["litellm_settings"]["callbacks"].append("otel")
    return document


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="module", params=["off", "v1", "v2"])
def seen(request: pytest.FixtureRequest, jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Every shape once, as Jaeger shows it."""
    directory = tmp_path_factory.mktemp(request.param)
    with UpstreamServer() as upstream, speaker(directory) as spoken:
        _behave(upstream)
        env = {
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": f"{upstream.url}/v1",
            "ANTHROPIC_API_KEY": "x",
            "ANTHROPIC_BASE_URL": upstream.url,
            "LITELLM_MASTER_KEY": "sk-long-and-random-enough",
            "ACME_KEY_HASH": hash_key(ACME, "0" * 32),
            "TRIAL_KEY_HASH": hash_key(TRIAL, "0" * 32),
            "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_SERVICE_NAME": SERVICE,
            "OTEL_METRICS_EXPORTER": "none",
            "SSL_CERT_FILE": str(spoken.certificate),
        }
        if request.param != "off":
            env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"{jaeger.otlp}/v1/traces"}
        if request.param == "v2":
            env["LITELLM_OTEL_V2"] = "true"
        library = recorder_library(directory / "lib")
        with ProxyServer(
            _config(directory, request.param, spoken.url), directory, env=env, python_path=(library,)
        ) as proxy:
            client = Client(proxy)
            answers = {shape: client.run(shape) for shape in SHAPES}
            _judged(jaeger, answers["mirror"][1]["x-pointsman-request-id"])
            return {shape: _seen(jaeger, shape, *answers[shape]) for shape in SHAPES}


def _judged(jaeger: Jaeger, request_id: str) -> None:
    """Wait for the judge of the mirror, which works in the background: it is asked twice."""
    deadline = time.monotonic() + 60
    while len(jaeger.find(SERVICE, {"pointsman.kind": "judge", "pointsman.parent_id": request_id})) < 2:
        assert time.monotonic() < deadline, "no mirror was judged"
        time.sleep(0.2)


def _seen(jaeger: Jaeger, shape: str, status: int, headers: Mapping[str, str]) -> Seen:
    found = jaeger.request(SERVICE, headers["x-pointsman-request-id"], settled=shape not in UNSETTLED)
    trace_id = headers["x-pointsman-trace-id"]
    settlements = [spans for spans in found if any(s.tags.get("pointsman.kind") == "settlement" for s in spans)]
    return Seen(headers, status, jaeger.trace(trace_id), settlements[0] if settlements else [])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_one_tree_with_true_times(seen: dict[str, Seen], shape: str) -> None:
    """One root, ours; no orphan; none of our spans is outside its parent; Jaeger itself has nothing to complain about."""
    found = seen[shape]
    assert found.status == STATUS.get(shape, 200)
    assert found.root.own
    assert found.root.kind == "server"
    assert found.root.tags["http.response.status_code"] == found.status
    spans = {span.span_id: span for span in found.spans}
    for span in found.spans:
        if span.own:
            # The client's own span, which a real client would export itself.
            complaints = [text for text in span.warnings if CLIENT_SPAN not in text]
            assert not complaints, (span.name, complaints)
        parent = spans.get(span.parent_id)
        if parent is not None and span.own and parent.own:
            assert parent.start_us <= span.start_us, (span.name, parent.name)
            assert span.end_us <= parent.end_us, (span.name, parent.name)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in UNSETTLED])
def test_the_settlement_is_a_linked_trace_that_says_what_was_settled(seen: dict[str, Seen], shape: str) -> None:
    found = seen[shape]
    (settlement,) = [span for span in found.settlement if span.own]
    assert settlement.trace_id != found.root.trace_id
    assert (found.root.trace_id, found.root.span_id) in settlement.links
    assert (settlement.trace_id, settlement.span_id) in found.root.links
    assert settlement.status == "ok"
    assert settlement.tags["pointsman.billing.payer"] == ("trial" if shape == "denial" else "acme")
    if shape == "plain":
        tags = settlement.tags
        assert tags["pointsman.quota.reserved_tokens"] > 0
        used = tags["gen_ai.usage.input_tokens"] + tags["gen_ai.usage.output_tokens"]
        assert tags["pointsman.quota.settled_tokens"] == used
        assert tags["pointsman.billing.amount_usd_micros"] == tags["pointsman.cost_usd_micros"]
        assert len(_list(tags["pointsman.billing.events"])) >= 1


def _list(value: Any) -> list[Any]:
    """Return a list of attributes, which Jaeger shows as JSON text."""
    found = yaml.safe_load(value) if isinstance(value, str) else value
    assert isinstance(found, list)
    return found


def test_a_plain_request_tells_what_it_used_and_continues_the_clients_trace(seen: dict[str, Seen]) -> None:
    found = seen["plain"]
    assert found.root.parent_id == CLIENT_SPAN
    assert found.root.trace_id == found.headers["x-pointsman-trace-id"]
    (attempt,) = found.attempts
    assert found.root.name == "chat small"
    assert attempt.name == f"chat {attempt.tags['gen_ai.request.model']}"
    assert (attempt.kind, attempt.status, found.root.status) == ("client", "ok", "ok")
    assert attempt.tags["gen_ai.provider.name"] == "openai"
    assert attempt.tags["server.address"] == "127.0.0.1"
    assert attempt.tags["gen_ai.response.id"].startswith("chatcmpl-")
    assert _list(attempt.tags["gen_ai.response.finish_reasons"]) == ["stop"]
    assert attempt.tags["pointsman.attempt.answered"] is True
    assert _list(attempt.tags["pointsman.candidates"]) == [attempt.tags["pointsman.deployment"]]
    assert "pointsman.notes" in attempt.tags
    assert found.root.tags["pointsman.label.tenant"] == "acme"


def test_a_stream_tells_when_it_began_and_which_model_answered(seen: dict[str, Seen]) -> None:
    (attempt,) = seen["stream"].attempts
    assert attempt.tags["gen_ai.request.stream"] is True
    assert attempt.tags["gen_ai.response.time_to_first_chunk"] > 0
    assert attempt.tags["gen_ai.response.model"] == attempt.tags["gen_ai.request.model"]


def test_a_retry_says_what_it_follows(seen: dict[str, Seen]) -> None:
    first, second = seen["retry"].attempts
    assert (first.status, first.tags["error.type"], second.status) == ("error", "server", "ok")
    assert second.tags["pointsman.attempt.kind"] == "retry"
    assert second.tags["pointsman.after"] == "server of attempt 1"
    assert seen["retry"].root.tags["pointsman.label.version"] == "1"


def test_a_fallback_says_which_rule_made_it(seen: dict[str, Seen]) -> None:
    found = seen["fallback"]
    last = found.attempts[-1]
    assert last.tags["pointsman.attempt.kind"] == "fallback"
    assert last.tags["pointsman.fallback.rule"] == "fallbacks"
    assert last.tags["pointsman.attempt.answered"] is True
    assert found.attempts[0].tags["error.type"] == "not_found"
    assert "waited" in {event.get("event") for event in found.root.events}


def test_a_canary_is_saved_by_stable_and_says_so(seen: dict[str, Seen]) -> None:
    found = seen["canary"]
    assert found.root.tags["pointsman.label.arm"] == "canary"
    last = found.attempts[-1]
    assert last.tags["pointsman.fallback.rule"] == "route (canary)"
    assert (last.tags["pointsman.group"], last.status) == ("large", "ok")
    assert found.root.tags["pointsman.answered_by"] == "large-a"


def test_a_hedge_has_a_winner_and_a_loser(seen: dict[str, Seen]) -> None:
    found = seen["hedge"]
    outcomes = {a.tags["pointsman.deployment"]: (a.status, a.tags["pointsman.outcome"]) for a in found.attempts}
    assert outcomes == {"fast-a": ("unset", "cancelled"), "fast-b": ("ok", "ok")}
    answered = {a.tags["pointsman.deployment"]: a.tags["pointsman.attempt.answered"] for a in found.attempts}
    assert answered == {"fast-a": False, "fast-b": True}
    second = found.attempts[1]
    assert any("attempt" in reason for reason in _list(second.tags["pointsman.dropped"]))


def test_a_mirror_and_its_judge_are_traces_of_their_own(seen: dict[str, Seen], jaeger: Jaeger) -> None:
    found = seen["mirror"]
    assert not [span for span in found.spans if span.tags.get("pointsman.kind") in {"mirror", "judge"}]
    assert len(found.attempts) == 1
    linked = {trace for trace, _ in found.root.links} - {found.settlement[0].trace_id}
    own = [span for trace in linked for span in jaeger.trace(trace) if "pointsman.kind" in span.tags]
    # The judge is asked twice, with the answers in either order.
    assert sorted(span.name for span in own) == ["judge judge", "judge judge", "mirror small"]
    (mirror,) = [root for root in own if root.tags["pointsman.kind"] == "mirror"]
    for root in own:
        assert (found.root.trace_id, found.root.span_id) in root.links
        if root is not mirror:
            assert (mirror.trace_id, mirror.span_id) in root.links
            assert (root.trace_id, root.span_id) in mirror.links
        assert root.tags["pointsman.outcome"] == "ok"
        assert root.tags["pointsman.parent_id"] == found.headers["x-pointsman-request-id"]


def test_a_denial_is_no_error_and_says_which_limit(seen: dict[str, Seen]) -> None:
    found = seen["denial"]
    assert found.attempts == []
    assert found.root.status == "unset"
    assert found.root.tags["pointsman.denied_by"] == "quota"
    assert found.root.tags["pointsman.outcome"] == "denied"
    assert found.root.tags["pointsman.retry_after_s"] > 0


def test_a_client_that_left_is_no_error(seen: dict[str, Seen]) -> None:
    found = seen["disconnect"]
    (attempt,) = found.attempts
    assert {(s.status, s.tags["pointsman.outcome"]) for s in (found.root, attempt)} == {("unset", "disconnected")}
    assert attempt.tags["pointsman.usage.estimated"] is True


def test_the_other_apis_are_named_and_measured_alike(seen: dict[str, Seen]) -> None:
    (messages,), (responses,) = seen["messages"].attempts, seen["responses"].attempts
    assert messages.name == "chat claude-haiku-4-5"
    assert messages.tags["gen_ai.provider.name"] == "anthropic"
    assert seen["messages"].root.tags["pointsman.endpoint"] == "messages"
    assert seen["responses"].root.tags["pointsman.endpoint"] == "responses"
    for attempt in (messages, responses):
        assert attempt.tags["gen_ai.usage.output_tokens"] > 0
        assert attempt.tags["gen_ai.response.id"]
    (embeddings,), (completions,), (images,) = (
        seen[shape].attempts for shape in ("embeddings", "completions", "images")
    )
    assert embeddings.name == "embeddings text-embedding-3-small"
    assert completions.name == "text_completion gpt-3.5-turbo-instruct"
    assert images.name == "images gpt-image-1"
    assert completions.tags["gen_ai.response.time_to_first_chunk"] > 0
    for attempt in (embeddings, completions, images):
        assert attempt.tags["gen_ai.provider.name"] == "openai"
        assert attempt.tags["gen_ai.usage.input_tokens"] > 0
    for attempt in (embeddings, completions):
        assert attempt.tags["gen_ai.response.model"] == attempt.tags["gen_ai.request.model"]


def test_each_response_on_a_websocket_is_a_span_below_the_connections(seen: dict[str, Seen]) -> None:
    found = seen["socket"]
    assert found.root.name == "realtime talk"
    (connection,) = [attempt for attempt in found.attempts if attempt.parent_id == found.root.span_id]
    answers = [attempt for attempt in found.attempts if attempt is not connection]
    assert len(answers) == 2
    responses = [span for span in found.spans if span.own and span.name == "realtime talk" and span is not found.root]
    assert [span.parent_id for span in responses] == [found.root.span_id] * 2
    assert [(span.kind, span.status) for span in responses] == [("internal", "ok")] * 2
    assert {attempt.parent_id for attempt in answers} == {span.span_id for span in responses}
    for attempt in answers:
        assert attempt.name == "realtime gpt-realtime"
        assert attempt.tags["gen_ai.usage.output_tokens"] == 121
        assert attempt.tags["pointsman.attempt.answered"] is True


def test_a_plugins_fault_is_an_event_without_its_text(seen: dict[str, Seen]) -> None:
    found = seen["fault"]
    faults = [event for span in found.spans for event in span.events if event.get("event") == "plugin fault"]
    assert {(f["pointsman.plugin"], f["pointsman.hook"], f["error.type"]) for f in faults} == {
        ("recorder", "execute", "ValueError")
    }
    assert found.root.status == "ok"


def test_what_was_never_admitted_leaves_a_span_too(seen: dict[str, Seen]) -> None:
    refused, unknown = seen["refused"].root, seen["unknown"].root
    assert (refused.tags["pointsman.outcome"], refused.status) == ("denied", "unset")
    assert refused.tags["pointsman.denial.code"] == "invalid_api_key"
    assert unknown.tags["pointsman.unknown_model"] is True
    assert (unknown.status, unknown.tags["pointsman.denied_by"]) == ("unset", "quota")


def test_litellms_spans_of_a_call_share_an_id_with_ours(seen: dict[str, Seen], request: pytest.FixtureRequest) -> None:
    """Where LiteLLM traces as well, its span of the same call is found by the id that ours has."""
    theirs_expected = request.node.callspec.params["seen"] != "off"
    for shape in ("plain", "stream", "messages", "responses", "embeddings", "completions", "images"):
        (attempt,) = seen[shape].attempts
        call_id = attempt.tags["litellm.call_id"]
        theirs = [s for s in seen[shape].spans if not s.own and s.tags.get("litellm.call_id") == call_id]
        assert bool(theirs) == theirs_expected, shape


def test_every_attribute_of_ours_is_in_the_table_and_holds_no_secret(seen: dict[str, Seen]) -> None:
    table = documented()
    for shape, found in seen.items():
        for span in (*found.spans, *found.settlement):
            if not span.own:
                continue
            unknown = [name for name in span.tags if not is_documented(name, table)]
            assert not unknown, (shape, span.name, unknown)
            text = repr(span)
            assert "xyzzy-4711" not in text
            assert ACME not in text


def _searches() -> Iterator[dict[str, str]]:
    """Return the tags of each search in the example's README that has no placeholder."""
    for line in (EXAMPLE.parent / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 4 and "=" in cells[2]:  # two columns
            for tags in re.findall(r"`([^`]+=[^`]*)`", cells[2]):
                if "<" not in tags:
                    yield dict(tag.split("=", 1) for tag in shlex.split(tags))


def test_the_searches_of_the_readme_find_what_they_say(seen: dict[str, Seen], jaeger: Jaeger) -> None:
    """Every trace that is found has a span with all of the tags: some of Jaeger's own it takes for no condition."""
    assert seen
    searches = list(_searches())
    assert len(searches) >= 10
    found_nothing = []
    for tags in searches:
        found = jaeger.find(SERVICE, tags)
        for spans in found:
            assert any(
                all(str(span.tags.get(name)).lower() == value.lower() for name, value in tags.items()) for span in spans
            ), tags
        if not found:
            found_nothing.append(tags)
    # A request without an answer and a settlement that waits: no shape here has them. Which of two is the hedge is chance.
    rare = [
        {"pointsman.kind": "request", "pointsman.outcome": "error"},
        {"pointsman.kind": "settlement", "pointsman.settled": "false"},
        {"pointsman.attempt.kind": "hedge", "pointsman.attempt.answered": "true"},
    ]
    assert [tags for tags in found_nothing if tags not in rare] == []


def test_a_picture_of_a_trace(seen: dict[str, Seen], tmp_path: Path) -> None:
    """The picture in the example's README is drawn from what Jaeger answers; POINTSMAN_PICTURES says where to keep it."""
    picture = draw(seen["hedge"].spans)
    keep(picture, "trace.svg", tmp_path)
    for span in seen["hedge"].spans:
        assert span.name in picture
