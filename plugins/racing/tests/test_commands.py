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

from pointsman.testing import ok
from pointsman_racing.commands import racing

SMART = {"name": "smart", "candidates": ["chat", "backup"]}


@pytest.fixture
def gateway(track):
    """Serve a worker's admin surface on a real socket after one race; yields its URL."""
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener):
        async with track(models=[SMART]) as harness:
            await harness.request(model="smart", stream=True, script={"chat": ok(latency_s=1), "backup": ok()})
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
    """Run a command line against the gateway; returns its output."""

    def invoke(*args, exit_code=0):
        result = CliRunner().invoke(racing, [*args, "--url", gateway], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return result.output

    return invoke


def test_list_and_show(run):
    listed = run("list")
    for part in ("smart", "hedge", "100.00%", "backup-a", "chat-a"):
        assert part in listed
    assert json.loads(run("list", "--json"))["races"][0]["name"] == "smart"
    shown = run("show", "smart")
    for part in ("chat: chat-a", "overtaken", "losers_usd_micros"):
        assert part in shown
    assert "nobody" in run("show", "nobody", exit_code=1)


def test_export_and_import(run, tmp_path):
    file = tmp_path / "perf.json"
    assert "2 deployments" in run("export", str(file))
    assert set(json.loads(file.read_text())["deployments"]) == {"backup-a", "chat-a"}
    assert "chat-a" in run("import", str(file))
    file.write_text("nope")
    assert "not JSON" in run("import", str(file), exit_code=1)
    file.write_text("{}")
    assert "performance file" in run("import", str(file), exit_code=1)
