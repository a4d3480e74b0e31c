"""Each feature of LiteLLM's router holds with each plugin as without: real proxies of one configuration, one of them bare.

Balance takes turns, so that it would choose what a filter of LiteLLM excludes in every second request. Each other plugin is
switched on for every model group: a version or an arm for it, a race in it, a mirror of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pointsman.testing.otlp import Collector
from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(400)]

ASK = [{"role": "user", "content": "Say hello."}]


def deployment(upstream, group, id_, *, info=None, **params):
    return {
        "model_name": group,
        "litellm_params": {"model": f"openai/{id_}", "api_base": f"{upstream}/v1", "api_key": "k", **params},
        "model_info": {"id": id_, **(info or {})},
    }


def model_list(upstream):
    return [
        deployment(upstream, "tagged", "t-free", tags=["free"]),
        deployment(upstream, "tagged", "t-paid", tags=["paid"]),
        deployment(upstream, "ordered", "o-1", order=1),
        deployment(upstream, "ordered", "o-2", order=2),
        deployment(upstream, "window", "w-small", info={"max_input_tokens": 20}),
        deployment(upstream, "window", "w-large", info={"max_input_tokens": 100_000}),
        deployment(upstream, "region", "r-eu", region_name="eu"),
        deployment(upstream, "region", "r-us", region_name="us"),
        deployment(upstream, "session", "s-1"),
        deployment(upstream, "session", "s-2"),
        deployment(upstream, "stored", "p-1"),
        deployment(upstream, "stored", "p-2"),
        deployment(upstream, "failover", "f-broken", weight=1),
        deployment(upstream, "failover", "f-good", weight=1),
        deployment(upstream, "lost", "l-broken"),
        deployment(upstream, "lost", "l-broken-too"),
        deployment(upstream, "spare", "spare-1"),
        deployment(upstream, "drained", "d-0", weight=0),
        deployment(upstream, "drained", "d-1", weight=1),
        deployment(upstream, "teams", "team-blue", info={"team_id": "blue"}),
        deployment(upstream, "teams", "team-red", info={"team_id": "red"}),
    ]


#: The team of a caller, which LiteLLM otherwise reads from its database, is what a header says.
CUSTOM_AUTH = """
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth


async def of_header(request, api_key):
    team = request.headers.get("x-team")
    return UserAPIKeyAuth(api_key=api_key, user_role=LitellmUserRoles.PROXY_ADMIN, team_id=team)
"""


class LocalModels(BaseHTTPRequestHandler):
    """A server of local models that loads and unloads whatever it is told to."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def local_models():
    """Run the server of local models; its URL is yielded."""
    with ThreadingHTTPServer(("127.0.0.1", 0), LocalModels) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def collector():
    with Collector() as running:
        yield running


GROUPS = ("tagged", "ordered", "window", "region", "session", "stored", "failover", "lost", "drained", "teams")
#: What is before the name of a model group that a client asks for.
NAMES = {"registry": "version-of-", "canary": "trial-of-"}


def plugins(name, directory, models):
    """Return the plugins of a gateway; ``models`` is the URL of a server of local models."""
    arms = {"stable": "spare", "steps": [100], "interval_s": 3600}
    tenant = {"id": "acme", "limits": {"requests_per_minute": 100_000, "max_concurrent_requests": 100}}
    version = {"version": "1", "active": True}
    section = {
        "quota": {"tenants": [tenant], "default_tenant": "acme"},
        "registry": {
            "versions": [{"id": g, "name": f"{NAMES['registry']}{g}", "path": g, **version} for g in GROUPS],
        },
        "canary": {
            "experiments": [{"name": g, "model": f"{NAMES['canary']}{g}", "canary": g, **arms} for g in GROUPS],
        },
        "signals": {"check_local": False},
        "racing": {"groups": {group: {} for group in GROUPS}},
        "residency": {
            "pools": {
                "gpu": {
                    "budget": 100,
                    "server": {"kind": "generic", "url": models},
                    "models": {d["model_info"]["id"]: {"footprint": 1} for d in model_list("")},
                }
            }
        },
        "balance": {"tactic": "round_robin"},
        "shadow": {
            "mirrors": [{"name": g, "model": g, "challenger": "spare", "sample_rate": 1.0} for g in GROUPS],
        },
        "billing": {
            "sinks": [{"ndjson": {"path": str(directory / "bills.ndjson")}}],
            "outbox": {"path": str(directory / "outbox.sqlite")},
        },
    }
    before = [{"signals": section["signals"]}] if name == "balance" else []
    return [*before, {name: section[name]}]


PLUGINS = ("quota", "canary", "registry", "signals", "residency", "racing", "balance", "shadow", "billing")


@pytest.fixture(scope="module")
def gateways(tmp_path_factory, collector):
    """Return a function that returns the client of a gateway, started when it is first asked for."""
    directory = tmp_path_factory.mktemp("features")
    with UpstreamServer() as upstream, local_models() as models, contextlib.ExitStack() as stack:
        for broken in ("f-broken", "l-broken", "l-broken-too"):
            upstream.behave(broken, Behaviour(error_ratios={503: 1.0}))
        config = {
            "model_list": model_list(upstream.url),
            "general_settings": {
                "custom_auth": "team_auth.of_header",
                "dangerously_allow_mock_testing_request_params": True,
            },
            "router_settings": {
                "num_retries": 0,
                "disable_cooldowns": True,
                "enable_pre_call_checks": True,
                "enable_tag_filtering": True,
                "enable_weighted_failover": True,
                "optional_pre_call_checks": ["session_affinity", "responses_api_deployment_check"],
                "fallbacks": [{"lost": ["spare"]}, {"drained": ["spare"]}],
                "context_window_fallbacks": [{"drained": ["spare"]}],
                "content_policy_fallbacks": [{"drained": ["spare"]}],
            },
        }

        def ours(name):
            return {
                "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
                "pointsman": {"store": {"backend": "memory"}, "plugins": plugins(name, directory, models)},
            }

        @functools.cache
        def client(name):
            document = config if name == "bare" else config | ours(name)
            traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if name == "balance" else {}
            (directory / name).mkdir()
            (directory / name / "team_auth.py").write_text(CUSTOM_AUTH, encoding="utf-8")
            proxy = stack.enter_context(ProxyServer(document, directory / name, env=traced))
            return stack.enter_context(proxy.client(timeout=60))

        yield client


@pytest.fixture(params=["bare", *PLUGINS])
def ask(request, gateways):
    """Return a function that sends a request to one of the gateways and returns status, deployment and body."""

    def send(model, path="/v1/chat/completions", headers=None, **body):
        body = body or {"messages": ASK}
        name = f"{NAMES.get(request.param, '')}{model}"
        answer = gateways(request.param).post(path, json={"model": name, **body}, headers=headers)
        return (
            answer.status_code,
            answer.headers.get("x-litellm-model-id"),
            answer.json() if not body.get("stream") else answer.text,
        )

    return send


def served(answers):
    assert {status for status, _, _ in answers} == {200}, [body for status, _, body in answers if status != 200][:1]
    return Counter(one for _, one, _ in answers)


def test_tags(ask):
    answers = [ask("tagged", messages=ASK, metadata={"tags": ["paid"]}) for _ in range(6)]
    assert served(answers) == {"t-paid": 6}


def test_order(ask):
    assert served([ask("ordered") for _ in range(6)]) == {"o-1": 6}


def test_context_window(ask):
    long = [{"role": "user", "content": "word " * 200}]
    assert served([ask("window", messages=long) for _ in range(6)]) == {"w-large": 6}


def test_region(ask):
    assert served([ask("region", messages=ASK, allowed_model_region="eu") for _ in range(6)]) == {"r-eu": 6}


def test_session_affinity(ask):
    headers = {"x-litellm-session-id": "the-session"}
    assert len(served([ask("session", headers=headers) for _ in range(6)])) == 1


def test_responses_are_continued_where_they_are_stored(ask):
    _, first, body = ask("stored", "/v1/responses", input="Hello.")
    later = [ask("stored", "/v1/responses", input="More.", previous_response_id=body["id"]) for _ in range(4)]
    assert {one for _, one, _ in later} == {first}


def test_weighted_failover(ask):
    assert served([ask("failover") for _ in range(8)]) == {"f-good": 8}


def test_fallbacks(ask):
    assert served([ask("lost") for _ in range(10)]) == {"spare-1": 10}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["fallbacks", "context_fallbacks", "content_policy_fallbacks"])
def test_litellms_own_trial_of_fallbacks(ask, kind, stream):
    answers = [ask("drained", messages=ASK, stream=stream, **{f"mock_testing_{kind}": True}) for _ in range(2)]
    assert {status for status, _, _ in answers} == {200}
    assert {one for _, one, _ in answers} == {"spare-1"}


@pytest.mark.parametrize("stream", [False, True])
def test_no_fallback_where_the_client_wants_none(ask, stream):
    answers = [ask("lost", messages=ASK, stream=stream, disable_fallbacks=True) for _ in range(2)]
    assert {status for status, _, _ in answers} == {503}


@pytest.mark.parametrize("team", ["blue", "red"])
def test_deployments_of_a_team(ask, team):
    assert served([ask("teams", headers={"x-team": team}) for _ in range(6)]) == {f"team-{team}": 6}


def test_deployments_of_a_team_are_nobody_elses(ask):
    assert ask("teams", headers={"x-team": "green"})[0] in {400, 429}


def test_a_drained_deployment(ask):
    assert served([ask("drained") for _ in range(6)]) == {"d-1": 6}


@pytest.mark.parametrize(
    ("model", "body", "left_out"),
    [
        ("tagged", {"metadata": {"tags": ["paid"]}}, "t-free: its tags do not match the request's"),
        ("ordered", {}, "o-2: its order is 2; those of order 1 come first"),
        (
            "window",
            {"messages": [{"role": "user", "content": "word " * 200}]},
            "w-small: not fit for the request: its context window, region, rate limit or parameters",
        ),
        (
            "region",
            {"allowed_model_region": "eu"},
            "r-us: not fit for the request: its context window, region, rate limit or parameters",
        ),
        ("teams", {}, "team-red: of another team"),
    ],
)
def test_the_trace_names_the_filter_that_left_a_deployment_out(gateways, collector, model, body, left_out):
    answer = gateways("balance").post(
        "/v1/chat/completions", json={"model": model, "messages": ASK, **body}, headers={"x-team": "blue"}
    )
    attempt = attempts_of(collector, answer)[0]
    assert attempt.attributes["pointsman.dropped"] == [f"{as_named(left_out)} (litellm)"]


def test_the_trace_names_what_the_request_has_just_tried(gateways, collector):
    for _ in range(8):
        attempts = attempts_of(collector, gateways("balance").post("/v1/chat/completions", json=FAILOVER))
        if attempts[1:]:
            break
    reason = as_named("f-broken: just tried by this request")
    assert attempts[1].attributes["pointsman.dropped"] == [f"{reason} (litellm)"]


FAILOVER = {"model": "failover", "messages": ASK}
#: From 1.109 on, LiteLLM filters, except by tags, where nothing can be watched.
UNWATCHED = importlib.util.find_spec("litellm.router_rust") is not None


def as_named(left_out):
    """Return what a trace says of a deployment: without the filter's name where it is not known."""
    deployment, _, reason = left_out.partition(": ")
    known = not UNWATCHED or reason.startswith(("its order", "its tags", "of another team"))
    return left_out if known else f"{deployment}: not offered by LiteLLM"


def attempts_of(collector, answer):
    """Return the spans of a request's attempts, in order."""
    trace_id = answer.headers["x-pointsman-trace-id"]

    def whole(spans):
        return any(s.trace_id == trace_id and s.attributes.get("pointsman.kind") == "request" for s in spans)

    spans = collector.wait(whole)
    found = [s for s in spans if s.trace_id == trace_id and "pointsman.attempt" in s.attributes]
    return sorted(found, key=lambda s: s.attributes["pointsman.attempt"])


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_fallbacks(ask, stream):
    answers = [ask("lost", messages=ASK, fallbacks=["spare"], stream=stream) for _ in range(4)]
    assert {status for status, _, _ in answers} == {200}
    assert {one for _, one, _ in answers} == {"spare-1"}
    assert not stream or all("[DONE]" in body for _, _, body in answers)
