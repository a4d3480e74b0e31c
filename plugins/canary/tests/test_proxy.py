"""A name that only an experiment knows, on a real proxy."""

from __future__ import annotations

import time

import httpx
import pytest
from scene import NEW, OLD, config

from pointsman.testing.otlp import Collector
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("canary")
    with UpstreamServer() as upstream, Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with ProxyServer(config(upstream.url, directory / "store"), directory / "proxy", env=env) as proxy:
            yield proxy, upstream, collector


def names(proxy) -> set[str]:
    answer = httpx.get(f"{proxy.url}/v1/models", headers=proxy.headers, timeout=30)
    return {model["id"] for model in answer.json()["data"]}


def eventually(look, wanted):
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == wanted


def test_experiments_name_is_a_model_and_its_streams_are_counted_by_the_provider(gateway):
    """As for any model: LiteLLM lists it, and asks the provider for the usage, so that nothing is estimated."""
    proxy, upstream, collector = gateway
    eventually(lambda: "chat" in names(proxy), True)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    seen = set()
    # The share of the canary is a quarter: both arms are met.
    for _ in range(40):
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers, timeout=30)
        assert answer.status_code == 200
        seen.add(answer.headers["x-pointsman-arm"])
    assert seen == {"stable", "canary"}
    asked = [request for request in upstream.requests if request.model in {OLD, NEW}]
    assert [request.body["stream_options"] for request in asked] == [{"include_usage": True}] * 40

    def attempts(spans):
        return [span.attributes for span in spans if "pointsman.attempt.id" in span.attributes]

    found = attempts(collector.wait(lambda spans: len(attempts(spans)) >= 40, timeout_s=PATIENCE_S))
    assert not any(attributes.get("pointsman.usage.estimated") for attributes in found)


def test_name_of_an_experiment_that_comes_and_goes_over_http(gateway):
    proxy, _, _ = gateway
    made = {"name": "later", "model": "talk", "stable": f"{OLD}-group", "canary": f"{NEW}-group", "steps": [1]}
    with proxy.client() as client:
        client.post("/pointsman/canary", json={"experiment": made}).raise_for_status()
        eventually(lambda: "talk" in names(proxy), True)
        client.delete("/pointsman/canary/later", params={"force": True}).raise_for_status()
        eventually(lambda: "talk" in names(proxy), False)
