"""Metrics and recent requests of two workers as one, on real proxies, read by the installed program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.testing.otlp import Collector
from pointsman.testing.provider.process import UpstreamProcess
from pointsman.testing.proxy import MASTER_KEY, ProxyServer
from pointsman_quota.tenants import hash_key

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

REQUESTS = 24
KEY = "sk-acme-of-this-test"
#: Why a request is refused, by whether Pointsman authenticates and by what is wrong with it.
REASONS = {
    (False, "unknown key"): "ended by the gateway: no_db_connection",
    (True, "unknown key"): "denied by pointsman: invalid_api_key: Missing or unknown API key.",
    (True, "limit"): "denied by quota: ",
}
#: What is counted for them, as plugin and code.
DENIALS = {
    False: [],  # LiteLLM answers 400 without a database
    True: [("pointsman", "invalid_api_key"), ("quota", "requests_per_minute_exceeded")],
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    directory = tmp_path_factory.mktemp("observing")
    with UpstreamProcess() as provider:
        params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "none"}
        config = {
            "model_list": [
                {"model_name": "chat", "litellm_params": params, "model_info": {"id": f"chat-{letter}"}}
                for letter in "ab"
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {
                "store": {"path": "state"},
                "plugins": [
                    {"quota": {"tenants": [{"id": "all"}], "default_tenant": "all"}},
                    "signals",
                    "balance",
                    {"billing": {"sinks": [{"ndjson": {"path": "bills.ndjson"}}]}},
                ],
            },
        }
        with ProxyServer(config, directory, workers=2) as running:
            yield running


def pointsman(proxy: ProxyServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {"POINTSMAN_URL": proxy.url, "POINTSMAN_KEY": MASTER_KEY, "PYTHONWARNINGS": "error"}
    program = Path(sys.executable).with_name("pointsman")
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=env, check=False)  # noqa: S603 - our own words


@pytest.fixture(scope="module")
def answered(proxy: ProxyServer) -> list[str]:
    """Ids of requests that both workers have answered: each goes out on a connection of its own."""
    ids = []
    for number in range(REQUESTS):
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=MASTER_KEY, max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(
                model="chat", messages=[{"role": "user", "content": "private-prompt"}], stream=bool(number % 2)
            )
            made: Any = raw.parse()
            if number % 2:
                assert list(made)
            ids.append(raw.headers["x-pointsman-request-id"])
    return ids


def counted(text: str, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and set(labels.items()) <= set(sample.labels.items())
    )


def test_every_worker_shows_the_metrics_of_both(proxy: ProxyServer, answered: list[str]) -> None:
    deadline = time.monotonic() + 60
    found = 0.0
    while time.monotonic() < deadline:
        with proxy.client() as client:
            text = client.get("/pointsman/metrics").raise_for_status().text
        found = counted(text, "gen_ai_client_operation_duration_seconds_count")
        if found == len(answered) and counted(text, "pointsman_workers") == 2:
            break
        time.sleep(1)
    assert found == len(answered)
    assert counted(text, "pointsman_workers") == 2
    assert counted(text, "pointsman_attempts_total", pointsman_attempt_result="answered") == len(answered)
    assert counted(text, "pointsman_loop_lag_seconds_count") > 0
    assert "private-prompt" not in text


def test_metrics_need_the_admin_key(proxy: ProxyServer) -> None:
    for path in ("/pointsman/metrics", "/pointsman/requests", "/pointsman/requests/x"):
        assert httpx.get(proxy.url + path, timeout=60).status_code in {400, 401, 403}


def test_a_request_is_explained_whichever_worker_made_it(proxy: ProxyServer, answered: list[str]) -> None:
    workers = set()
    for request_id in answered[-8:]:
        done = pointsman(proxy, "explain", request_id)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{request_id}: chat")
        assert "attempt 1 (primary) at chat-" in done.stdout
        assert "answered by attempt 1" in done.stdout
        assert "private-prompt" not in done.stdout
        assert len(done.stdout.splitlines()) <= 10
        workers.add(json.loads(pointsman(proxy, "explain", request_id, "--json").stdout)["worker"])
    if len(workers) < 2:
        pytest.skip("the system gave all connections to one worker")


def test_an_unknown_request_is_said_to_be_unknown(proxy: ProxyServer) -> None:
    done = pointsman(proxy, "explain", "0123")
    assert done.returncode == 1
    assert "no worker remembers the request '0123'" in done.stderr


def test_top_and_the_list_of_requests_show_what_runs(proxy: ProxyServer, answered: list[str]) -> None:
    listed = pointsman(proxy, "requests", "--limit", "1000")
    assert any(request_id in listed.stdout for request_id in answered)
    screen = pointsman(proxy, "top", "--once", "--interval", "0.5")
    assert screen.returncode == 0, screen.stderr
    for heading in ("Traffic of the last", "Deployments", "Plugins", "Recent requests"):
        assert heading in screen.stdout
    figures = json.loads(pointsman(proxy, "top", "--once", "--interval", "0.2", "--json").stdout)
    assert {row["deployment"] for row in figures["deployments"]} <= {"chat-a", "chat-b"}


@pytest.mark.parametrize("custom_auth", [False, True])
def test_a_request_that_was_refused_is_explained_without_its_key(tmp_path: Path, custom_auth: bool) -> None:
    """By LiteLLM or by a plugin, before it was admitted or afterwards; found by its id and by its trace's."""
    tenant = {
        "id": "acme",
        "keys": [{"name": "one", "hash": hash_key(KEY, "0" * 32)}],
        "limits": {"requests_per_minute": 1},
    }
    with UpstreamProcess() as provider, Collector() as collector:
        params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "none"}
        quota: dict[str, Any] = {"tenants": [tenant]} if custom_auth else {"tenants": [{"id": "acme"}]}
        config: dict[str, Any] = {
            "model_list": [{"model_name": "chat", "litellm_params": params}],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {"recent_requests": 4, "plugins": [{"quota": quota}]},
        }
        if custom_auth:
            config["general_settings"] = {"custom_auth": "pointsman.litellm.custom_auth"}
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with ProxyServer(config, tmp_path, env=env) as running:

            def ask(key: str) -> httpx.Response:
                body = {"model": "chat", "messages": [{"role": "user", "content": "private-prompt"}]}
                headers = {"authorization": f"Bearer {key}"}
                return httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

            refused = {"unknown key": ask("sk-wrongkey-4711")}
            if custom_auth:
                assert ask(KEY).is_success
                refused["limit"] = ask(KEY)
            for case, answer in refused.items():
                assert answer.is_error, case
                for name in ("x-pointsman-request-id", "x-pointsman-trace-id"):
                    done = pointsman(running, "explain", answer.headers[name])
                    assert done.returncode == 0, (case, name, done.stderr)
                    assert REASONS[custom_auth, case] in done.stdout
                    assert f"status {answer.status_code}" in done.stdout
                    assert f"trace: {answer.headers['x-pointsman-trace-id']}" in done.stdout
                    assert not [part for part in ("4711", "sk-", "private-prompt") if part in done.stdout]
            with running.client() as client:
                text = client.get("/pointsman/metrics").raise_for_status().text
            for plugin, code in DENIALS[custom_auth]:
                labels = {"pointsman_plugin": plugin, "pointsman_denial_code": code}
                assert counted(text, "pointsman_denials_total", **labels) == 1, text
            admitted = json.loads(pointsman(running, "requests", "--json").stdout)["requests"]
            assert admitted[0]["request_id"] == list(refused.values())[-1].headers["x-pointsman-request-id"]
            # As many as are remembered, and no more; what was admitted stays.
            latest = [ask("sk-wrongkey-4711").headers["x-pointsman-request-id"] for _ in range(5)]
            assert pointsman(running, "explain", latest[0]).returncode == 1
            assert {pointsman(running, "explain", each).returncode for each in latest[1:]} == {0}
            if custom_auth:
                limited = refused["limit"].headers["x-pointsman-request-id"]
                assert pointsman(running, "explain", limited).returncode == 0
