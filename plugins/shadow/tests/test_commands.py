"""The commands against a whole worker behind a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.routing import Mount

from pointsman.testing import Harness, error, ok
from pointsman_shadow.commands import shadow
from pointsman_shadow.plugin import plugin


@pytest.fixture
def gateway(kit):
    """Serve a worker that has mirrored three requests; yields its URL."""
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener):
        section = {"mirrors": [kit.mirror(budget={"usd_per_day": 2}, keep_texts=True)]}
        async with Harness([(plugin, section)], deployments=kit.deployments) as harness:
            harness.gateway.upstream.answer({"new": [ok("a"), ok("b"), error(500)]})
            for _ in range(3):
                await harness.request(script=ok("a"))
            await harness.settled()
            await harness.clock.advance(3)
            app = Starlette(routes=[Mount("/pointsman", app=harness.host.admin)])
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        assert ready.wait(20)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join(20)


@pytest.fixture
def run(gateway):
    """Run a command line against the gateway; returns its output, or its JSON with ``--json``."""

    def invoke(*args, exit_code=0):
        result = CliRunner().invoke(shadow, [*args, "--url", gateway], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.output) if "--json" in args else result.output

    return invoke


def test_a_mirror_is_watched_and_led_by_commands_alone(run, tmp_path):
    listed = run("list")
    assert "next" in listed
    assert "running" in listed
    report = run("report", "next")
    for word in ("cost_ratio", "challenger errors: server", "95 % intervals", "of 2", "shadow:next"):
        assert word in report
    assert run("report", "next", "--json")["pairs"] == 3
    rows = [json.loads(line) for line in run("export", "next").splitlines()]
    assert [row["challenger"].get("text") for row in rows] == ["a", "b", None]
    run("export", "next", "--limit", "1", "--output", str(tmp_path / "rows.jsonl"))
    (row,) = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row) == rows[-1]
    assert len(run("export", "next", "--json")["results"]) == 3
    assert "paused" in run("pause", "next", "--who", "anna", "--reason", "dear")
    assert "by anna: dear" in run("report", "next")
    assert "running" in run("resume", "next")
    assert "graduated" in run("graduate", "next", "--reason", "good")
    assert "is graduated" in run("graduate", "next", exit_code=1)
    assert run("reset", "next", "--json")["run"] == 2


def test_an_unknown_mirror_is_an_error(run):
    assert "known: next" in run("report", "nobody", exit_code=1)
