"""The commands against the plugin's routes behind a real server."""

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

from pointsman.testing import deployment, ok
from pointsman_signals.commands import signals
from pointsman_signals.plugin import plugin

LOW = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "10m"}


@pytest.fixture
def gateway(harness):
    """Serve a started plugin's routes on a real socket; yields the URL."""
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener):
        deployments = [deployment("eu/one two", "chat"), deployment("b", "chat", provider="groq")]
        async with harness([plugin], deployments=deployments) as h:
            await h.request(script={"eu/one two": ok(headers=LOW, latency_s=0.25)})
            await h.clock.advance(1.0)
            app = Starlette(routes=[Mount("/pointsman", app=h.host.admin)])
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
        result = CliRunner().invoke(signals, [*args, "--url", gateway], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.output) if "--json" in args else result.output

    return invoke


def test_list_show_refresh(run):
    overview = run("list")
    assert "eu/one two" in overview
    assert "exhausted" in overview
    assert "0% tokens" in overview
    assert "groq@upstream.test" in overview
    assert [row["deployment_id"] for row in run("list", "--provider", "groq", "--json")["signals"]] == ["b"]
    assert "Accounts" not in run("list", "--status", "unknown")

    shown = run("show", "eu/one two")
    assert "Quotas" in shown
    assert "recent p50 ms" not in shown
    assert "recent_p50_ms" in shown
    assert run("show", "eu/one two", "--json")["limits"][0]["remaining"] == 0

    assert "No check is configured" in run("refresh", "b")
    assert run("refresh", "b", "--json")["checked"] is False


def test_what_is_not_there_is_named(run):
    assert "nobody" in run("show", "nobody", exit_code=1)
    assert "nobody" in run("refresh", "nobody", exit_code=1)
    assert "Invalid value for '--status'" in run("list", "--status", "sleepy", exit_code=2)
