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

from pointsman.testing import deployment, error
from pointsman_balance.commands import balance
from pointsman_balance.plugin import plugin


@pytest.fixture
def gateway(harness):
    """Serve a started plugin's routes on a real socket; yields the URL."""
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener):
        deployments = [deployment("eu/one two", "chat"), deployment("b", "chat")]
        async with harness([plugin], deployments=deployments) as h:
            for _ in range(20):
                await h.request(script={"eu/one two": error(401)})
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
        result = CliRunner().invoke(balance, [*args, "--url", gateway], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.output) if "--json" in args else result.output

    return invoke


def test_list_reset_probe_and_settings(run):
    overview = run("list")
    assert "eu/one two" in overview
    assert "the provider refuses the credentials" in overview
    assert "open" in overview
    assert "cache_affinity" in run("tactics")

    assert "closed" in run("reset", "eu/one two")
    assert "open" not in run("list")
    assert "It answered." in run("probe", "b")

    assert "p2c" in run("set", "chat", "--tactic", "p2c", "--breaker", "preset=classic", "--breaker", "open_s=60")
    shown = run("show", "chat")
    assert "breaker.open_s" in shown
    assert run("show", "chat", "--json")["breaker"]["open_s"] == 60.0
    assert (
        run("set", "chat", "--tactic", "cache_affinity", "--setting", "key=prefix", "--json")["tactic"]["key"]
        == "prefix"
    )
    assert run("unset", "chat", "--json") == {"group": "chat", "changed": False}


def test_what_is_wrong_is_named(run):
    assert "nobody" in run("reset", "nobody", exit_code=1)
    assert "did you mean 'p2c'" in run("set", "chat", "--tactic", "p3c", exit_code=1)
    assert "NAME=VALUE" in run("set", "chat", "--breaker", "classic", exit_code=2)
    assert "nothing to change" in run("set", "chat", exit_code=2)
    assert "give --tactic too" in run("set", "chat", "--setting", "a=1", exit_code=2)
