from __future__ import annotations

import json

import httpx
import pytest
from click.testing import CliRunner

from pointsman.testing.provider import Behaviour, Delay, UpstreamProcess
from pointsman.testing.provider.__main__ import main

CHAT = "/v1/chat/completions"
BODY = {"model": "gpt-a", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    script = tmp_path_factory.mktemp("upstream") / "script.yaml"
    script.write_text("gpt-scripted: {error_ratios: {503: 1}}\n")
    with UpstreamProcess({"gpt-given": Behaviour(error_ratios={404: 1})}, script=script) as running:
        yield running


@pytest.fixture
def http(process):
    process.reset()
    with httpx.Client(base_url=process.url, trust_env=False, timeout=20) as client:
        yield client


def status(http, model):
    return http.post(CHAT, json={**BODY, "model": model}).status_code


def test_process_behaves_as_scripted_as_given_and_as_told(process, http):
    assert [status(http, name) for name in ("gpt-a", "gpt-scripted", "gpt-given")] == [200, 503, 404]
    process.behave("gpt-a", Behaviour(error_ratios={500: 1}))
    assert status(http, "gpt-a") == 500
    process.reset()
    assert [status(http, name) for name in ("gpt-a", "gpt-scripted", "gpt-given")] == [200, 503, 404]


def test_process_tells_what_it_received(process, http):
    process.behave("gpt-a", Behaviour(latency=Delay(60_000)))
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=BODY, headers={"authorization": "Bearer sk-secret"}, timeout=httpx.Timeout(30, read=0.2))
    (request,) = process.wait_for(lambda found: found and found[0].ended_ms is not None)
    assert request.closed_early
    assert request.body == BODY
    assert request.headers["authorization"] == "[redacted]"
    with pytest.raises(TimeoutError, match="1 requests"):
        process.wait_for(lambda found: len(found) > 1, timeout_s=0.05)


def test_control_surface_lists_and_refuses(http):
    assert set(http.get("/_control/behaviour").json()) == {"gpt-scripted", "gpt-given"}
    wrong = http.post("/_control/behaviour", json={"model": "gpt-a", "behaviour": {"fault": "explode"}})
    assert wrong.status_code == 422
    assert "fault" in wrong.json()["error"]


def test_process_serves_a_recording(tmp_path):
    path = tmp_path / "exchanges.jsonl"
    line = {"id": "a", "path": "/x", "request": {}, "status": 201, "headers": {}, "body": "recorded"}
    path.write_text(json.dumps(line))
    with UpstreamProcess(replay=path) as process:
        answer = httpx.post(f"{process.url}/x", json={}, trust_env=False)
    assert (answer.status_code, answer.text) == (201, "recorded")


def test_process_that_cannot_start_says_so(tmp_path):
    script = tmp_path / "script.yaml"
    script.write_text("gpt-a: {fault: explode}")
    with pytest.raises(RuntimeError, match="did not start"):
        UpstreamProcess(script=script).start()
    answer = CliRunner().invoke(main, ["--script", str(script)])
    assert answer.exit_code == 1
    assert "script.yaml" in answer.output


def test_process_that_does_not_run_says_so():
    with pytest.raises(RuntimeError, match="call start"):
        _ = UpstreamProcess().url
