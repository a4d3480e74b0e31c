"""Active checks against a real server, real files and real commands."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx
import pytest
from pydantic import ValidationError

from pointsman.testing import FakeClock, FakeGateway, no_leaks
from pointsman.types import Deployment
from pointsman_signals.checks import MAX_DOCUMENT_BYTES, TRIES, CheckFailed, Checks, is_local, models_url
from pointsman_signals.config import SignalsConfig
from pointsman_signals.plugin import plugin

from .server import local, server

__all__ = ["server"]


@pytest.fixture
async def checks_of():
    async with httpx.AsyncClient(timeout=5.0) as client:
        yield lambda **config: Checks(SignalsConfig(**config), client, FakeGateway().upstream, FakeClock())


async def run(checks, one):
    check = checks.check_for(one)
    assert check is not None
    return await checks.run(check, one)


# -- which check applies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "api_base", "expected"),
    [
        ("ollama", None, True),
        ("hosted_vllm", "http://gpu-7.example.com:8000", True),
        ("lm_studio", "http://localhost:1234/v1", True),
        ("openai", "http://localhost:8080/v1", True),
        ("openai", "http://192.168.1.20:30000/v1", True),
        ("openai", "http://[::1]:8080", True),
        ("openai", "http://llama.internal:8080", True),
        ("openai", "https://api.openai.com/v1", False),
        ("openai", None, False),
        ("openai", "http://[::1", False),
        ("anthropic", "http://localhost:9999", False),
    ],
)
def test_local_servers_are_known_by_provider_or_address(provider, api_base, expected):
    assert is_local(Deployment(id="d", group="g", provider=provider, model="m", api_base=api_base)) is expected


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1", "http://h:1/v1/models"),
        ("http://h:1/", "http://h:1/v1/models"),
        ("http://h:1/v1", "http://h:1/v1/models"),
        ("http://h:1/v1/", "http://h:1/v1/models"),
        ("http://h:1/llm/v1?x=1", "http://h:1/llm/v1/models"),
    ],
)
def test_the_models_are_asked_for_with_or_without_v1_in_the_base(base, url):
    assert models_url(local(base), "/v1/models") == url


def test_ollama_has_a_place_of_its_own_and_others_need_one():
    assert models_url(local(None, provider="ollama"), "/v1/models") == "http://localhost:11434/v1/models"
    with pytest.raises(CheckFailed, match="has no api_base"):
        models_url(local(None), "/v1/models")


async def test_the_operator_decides_by_deployment_group_or_provider(checks_of):
    checks = checks_of(
        checks={
            "d1": {"kind": "off"},
            "g2": {"kind": "http", "url": "http://h/ok"},
            "ollama": {"kind": "models", "path": "/up"},
        }
    )
    made = lambda id_, group: Deployment(id=id_, group=group, provider="ollama", model="m")  # noqa: E731  # three words
    assert checks.check_for(made("d1", "g2")) is None
    assert checks.check_for(made("d2", "g2")).kind == "http"
    assert checks.check_for(made("d3", "g3")).path == "/up"
    assert checks_of(check_local=False).check_for(made("d3", "g3")) is None


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "http"},
        {"kind": "http", "url": "file:///etc/passwd"},
        {"kind": "models", "path": "no-slash"},
        {"kind": "command", "argv": [], "document": {"status": "/s"}},
        {"kind": "file", "path": "x"},
        {"kind": "pigeon"},
    ],
)
def test_a_check_that_cannot_work_is_refused(check):
    with pytest.raises(ValidationError):
        SignalsConfig(checks={"d": check})


# -- HTTP -------------------------------------------------------------------------------------------------------------


async def test_a_server_that_answers_is_available(server, checks_of):
    finding = await run(checks_of(), local(server.base))
    assert (finding.ok, finding.message) == (True, "")
    assert server.requests[0].startswith("GET /v1/models HTTP/1.1")


@pytest.mark.parametrize(
    ("status", "fine"), [(204, True), (401, True), (403, True), (404, False), (500, False), (302, False)]
)
async def test_the_status_decides_and_a_server_that_wants_a_key_is_there(server, checks_of, status, fine):
    server.status = status
    finding = await run(checks_of(), local(server.base))
    assert finding.ok is fine
    assert fine or f"answered {status}" in finding.message


async def test_a_server_that_is_not_there_is_named_after_a_few_tries(checks_of):
    finding = await run(checks_of(), local("http://user:hunter2@127.0.0.1:1/v1"))
    assert not finding.ok
    assert "http://127.0.0.1:1/v1/models" in finding.message
    assert "hunter2" not in finding.message


async def test_a_connection_that_breaks_is_tried_again(server, checks_of):
    server.drop = TRIES - 1
    assert (await run(checks_of(), local(server.base))).ok
    assert len(server.requests) == TRIES


async def test_an_error_status_is_not_tried_again(server, checks_of):
    server.status = 503
    await run(checks_of(), local(server.base))
    assert len(server.requests) == 1


async def test_headers_are_sent_and_never_shown(server, checks_of):
    config = {"checks": {"local": {"kind": "models", "headers": {"authorization": "Bearer very-secret"}}}}
    assert (await run(checks_of(**config), local(server.base))).ok
    assert "authorization: Bearer very-secret" in server.requests[0]
    assert "very-secret" not in repr(SignalsConfig(**config))
    server.status = 401
    finding = await run(checks_of(**config), local(server.base))
    assert not finding.ok
    assert "correct the check's headers" in finding.message


async def test_the_json_of_a_hosted_provider_tells_the_quota(server, checks_of):
    server.body = json.dumps({"data": {"limit": 10.0, "usage": 7.5, "reset": 1_750_003_600}}).encode()
    document = {
        "limits": [{"axis": "credits", "limit": "/data/limit", "used": "/data/usage", "resets_at": "/data/reset"}]
    }
    check = {"kind": "http", "url": f"{server.base}/key", "document": document}
    finding = await run(checks_of(checks={"local": check}), local())
    assert finding.ok
    (limit,) = finding.reading.limits
    assert (limit.axis, limit.limit, limit.remaining, limit.resets_at) == ("credits", 10.0, 2.5, 1_750_003_600.0)


@pytest.mark.parametrize("body", [b"<html>", b"[" * 5000, b"x" * (MAX_DOCUMENT_BYTES + 1), b'{"other": 1}'])
async def test_an_answer_that_cannot_be_used_says_so(server, checks_of, body):
    server.body = body
    check = {"kind": "http", "url": server.base, "document": {"status": "/status"}}
    finding = await run(checks_of(checks={"local": check}), local())
    assert not finding.ok
    assert finding.message


# -- files and commands -----------------------------------------------------------------------------------------------


async def test_a_quota_file_of_a_harness_is_read(tmp_path, checks_of):
    file = tmp_path / "quota.json"
    file.write_text(json.dumps({"state": "exhausted", "five_hour": {"used": 100}}))
    document = {"status": "/state", "limits": [{"axis": "five_hour", "used_percent": "/five_hour/used"}]}
    checks = checks_of(checks={"local": {"kind": "file", "path": str(file), "document": document}})
    finding = await run(checks, local())
    assert (finding.ok, finding.exhausted) == (True, True)
    assert finding.reading.limits[0].remaining == 0
    file.write_text(json.dumps({"state": "ok"}))
    assert (await run(checks, local())).exhausted is False
    file.write_text(json.dumps({"state": "degraded"}))
    assert not (await run(checks, local())).ok
    file.write_text("{")
    assert "is not JSON" in (await run(checks, local())).message
    file.unlink()
    assert "No such file" in (await run(checks, local())).message


def command(code, **more):
    document = {"status": "/state"}
    return {
        "checks": {"local": {"kind": "command", "argv": [sys.executable, "-c", code], "document": document}},
        **more,
    }


async def test_a_command_is_run_and_its_output_read(checks_of):
    checks = checks_of(**command("import json; print(json.dumps({'state': 'limited'}))"))
    assert (await run(checks, local())).exhausted is True


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "ended with code 3"),
        ("print('nonsense')", "is not JSON"),
        (f"print('x' * {MAX_DOCUMENT_BYTES + 100_000})", "printed more than"),
    ],
)
async def test_a_command_that_fails_says_how(checks_of, code, message):
    async with no_leaks():
        finding = await run(checks_of(**command(code)), local())
    assert not finding.ok
    assert message in finding.message


async def test_a_command_that_is_not_there_says_so(checks_of):
    check = {"kind": "command", "argv": ["/no/such/program"], "document": {"status": "/s"}}
    assert "cannot be run" in (await run(checks_of(checks={"local": check}), local())).message


async def test_a_command_is_not_a_shell(tmp_path, checks_of):
    marker = tmp_path / "marker"
    check = {"kind": "command", "argv": ["echo", f"; touch {marker}"], "document": {"status": "/s"}}
    await run(checks_of(checks={"local": check}), local())
    assert not marker.exists()


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path, harness):
    marker = tmp_path / "still-alive"
    child = f"import time; time.sleep(2); open({str(marker)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); import time; time.sleep(60)"
    section = command(code, check_deadline_s=0.5)
    async with no_leaks(), harness([(plugin, section)], deployments=[local()]) as h:
        answer = (await h.admin.post("/signals/local/refresh")).json()
        assert answer["check"]["message"] == "no answer within 0.5 s"
        assert answer["status"] == "degraded"
    await asyncio.sleep(2.2)
    assert not marker.exists()
