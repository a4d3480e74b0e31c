"""The registry in two real LiteLLM proxies that share a store, in front of the bundled upstream.

Two proxies of one worker each instead of one with two workers: a test can then say which of them it asks.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

PATIENCE_S = 20.0
REGISTRY = "/pointsman/registry"


def deployment(upstream, group):
    return {
        "model_name": group,
        "litellm_params": {"model": f"openai/{group}-model", "api_base": f"{upstream.url}/v1", "api_key": "x"},
        "model_info": {"id": f"{group}-id"},
    }


class Gateway:
    """Two proxies and the upstream behind them."""

    def __init__(self, upstream, proxies):
        self.upstream, self.proxies = upstream, proxies
        self._turns = itertools.cycle(proxies)

    def ask(self, endpoint="chat", model="chat", *, stream=False, proxy=None):
        """Make one request, of the two proxies in turn; returns the whole answer."""
        messages = [{"role": "user", "content": "hello"}]
        path, body = {
            "chat": ("/v1/chat/completions", {"messages": messages}),
            "messages": ("/v1/messages", {"messages": messages, "max_tokens": 16}),
            "responses": ("/v1/responses", {"input": "hello"}),
            "embeddings": ("/v1/embeddings", {"input": "hello"}),
        }[endpoint]
        streaming = {"stream": True} if stream else {}
        proxy = proxy or next(self._turns)
        return httpx.post(
            f"{proxy.url}{path}", json={"model": model, **body, **streaming}, headers=proxy.headers, timeout=30
        )

    def everywhere(self, *wanted, model="chat"):
        """Wait until both proxies answer with this status and version."""
        eventually(lambda: [_told(self.ask(model=model, proxy=proxy)) for proxy in self.proxies], [wanted, wanted])


def _told(answer):
    return answer.status_code, answer.headers.get("x-pointsman-version")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with UpstreamServer({"*": Behaviour(tokens=4, per_token=Delay(2))}) as upstream:
        seeds = [
            {"id": "chat-1", "name": "chat", "version": "1.0", "path": "one", "active": True},
            {"id": "chat-2", "name": "chat", "version": "2.0", "path": "two-id"},
            {"id": "embed-1", "name": "team/vectors", "version": "1.0", "path": "vectors", "active": True},
        ]
        config = {
            "model_list": [deployment(upstream, group) for group in ("one", "two", "vectors")],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {
                "store": {"backend": "disk", "path": str(tmp_path_factory.mktemp("store"))},
                "plugins": [{"registry": {"versions": seeds}}],
            },
        }
        proxies = [ProxyServer(config, tmp_path_factory.mktemp("proxy")) for _ in range(2)]
        try:
            for proxy in proxies:
                proxy.launch()
            for proxy in proxies:
                proxy.wait_ready()
            yield Gateway(upstream, proxies)
        finally:
            for proxy in proxies:
                proxy.stop()


@pytest.fixture
def admin(gateway):
    """An admin client; every test begins with chat-1 active and nothing measured."""
    gateway.upstream.reset()
    with gateway.proxies[0].client() as client:
        client.post(f"{REGISTRY}/versions/chat-1/activate").raise_for_status()
        gateway.everywhere(200, "1.0")
        gateway.upstream.reset()
        client.delete(f"{REGISTRY}/metrics").raise_for_status()
        yield client


def eventually(read, wanted):
    """Wait until reading gives what is wanted."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := read()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_name_is_served_by_its_active_version_on_every_endpoint(gateway, admin, endpoint, stream):
    for version_id, version, model in (("chat-1", "1.0", "one-model"), ("chat-2", "2.0", "two-model")):
        admin.post(f"{REGISTRY}/versions/{version_id}/activate").raise_for_status()
        gateway.everywhere(200, version)
        gateway.upstream.reset()
        answer = gateway.ask(endpoint, stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-pointsman-version"] == version
        assert [request.body["model"] for request in gateway.upstream.requests] == [model]


def test_embeddings_of_a_name_with_a_slash(gateway, admin):
    answer = gateway.ask("embeddings", "team/vectors")
    assert (answer.status_code, answer.headers["x-pointsman-version"]) == (200, "1.0")
    assert gateway.upstream.requests[-1].body["model"] == "vectors-model"


def test_names_are_listed_as_models_by_every_worker(gateway, admin):
    def listed(proxy):
        answer = httpx.get(f"{proxy.url}/v1/models", headers=proxy.headers)
        return {"chat", "team/vectors"} <= {model["id"] for model in answer.json()["data"]}

    eventually(lambda: [listed(proxy) for proxy in gateway.proxies], [True, True])


def test_promotion_under_load_fails_no_request(gateway, admin):
    """While the active version moves back and forth, every request is answered, by a version that is registered."""
    done = threading.Event()

    def client(number):
        answers = []
        while not done.is_set():
            answers.append(_told(gateway.ask(stream=number % 4 < 2, proxy=gateway.proxies[number % 2])))
        return answers

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            for version_id, version in itertools.islice(itertools.cycle([("chat-2", "2.0"), ("chat-1", "1.0")]), 2):
                admin.post(f"{REGISTRY}/versions/{version_id}/activate").raise_for_status()
                gateway.everywhere(200, version)
        finally:
            done.set()
        answers = [answer for each in clients for answer in each.result()]
    assert set(answers) == {(200, "1.0"), (200, "2.0")}


def test_name_without_active_version_is_503_until_one_is_active_again(gateway, admin):
    body = {"id": "tmp", "name": "fleeting", "version": "1", "path": "one", "active": True}
    assert admin.post(f"{REGISTRY}/versions", json=body).status_code == 201
    gateway.everywhere(200, "1", model="fleeting")
    assert admin.post(f"{REGISTRY}/versions", json={**body, "id": "tmp-2", "active": False}).status_code == 201
    assert admin.delete(f"{REGISTRY}/versions/tmp").status_code == 409
    assert admin.delete(f"{REGISTRY}/versions/tmp", params={"force": True}).status_code == 200
    gateway.everywhere(503, None, model="fleeting")
    assert gateway.ask(model="fleeting").json()["error"]["code"] == "no_active_version"
    admin.post(f"{REGISTRY}/versions/tmp-2/activate").raise_for_status()
    gateway.everywhere(200, "1", model="fleeting")
    assert admin.delete(f"{REGISTRY}/versions/tmp-2", params={"force": True}).status_code == 200
    gateway.everywhere(400, None, model="fleeting")


def test_live_metrics_of_both_workers_come_together(gateway, admin):
    for number in range(12):
        gateway.ask(stream=number % 4 < 2)
    gateway.upstream.behave("one-model", Behaviour(error_ratios={400: 1.0}))
    for _ in range(2):
        assert gateway.ask().status_code == 400
    gateway.upstream.behave("one-model", Behaviour(error_ratios={404: 1.0}))
    assert gateway.ask().status_code == 404

    def measured():
        found = admin.get(f"{REGISTRY}/metrics/chat-1").json()
        return found["requests"], found["errors"], (found["latency_ms"] or {}).get("count")

    # What a client did wrong is no error of the version.
    eventually(measured, (15, 1, 12))
    found = admin.get(f"{REGISTRY}/metrics/chat-1").json()
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["p99"]
    assert found["first_token_ms"]["count"] == 6


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer sk-wrong"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/versions"), ("POST", "/versions"), ("POST", "/rollback?name=chat"), ("DELETE", "/versions/chat-2")],
)
def test_routes_refuse_everybody_but_an_admin(gateway, admin, method, path, headers):
    answer = httpx.request(method, f"{gateway.proxies[0].url}{REGISTRY}{path}", headers=headers)
    assert answer.status_code in {400, 401, 403}
    assert admin.get(f"{REGISTRY}/versions/chat-2").status_code == 200
