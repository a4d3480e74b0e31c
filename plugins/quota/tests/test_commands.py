"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.routing import Mount

from pointsman.testing import Harness
from pointsman_quota.commands import group
from pointsman_quota.plugin import plugin
from pointsman_quota.tenants import hash_key

KEY = "sk-acme-0123456789abcdef"
ACME = {
    "id": "acme",
    "name": "Acme Ltd",
    "limits": {"tokens_per_day": 1000, "requests_per_minute": 60},
    "api_keys": [{"name": "ci", "key": KEY}],
}


@pytest.fixture
def url() -> Iterator[str]:
    """Serve a started plugin's routes on a real socket."""
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener: socket.socket) -> None:
        async with Harness([(plugin, {"tenants": [{"id": "fixed"}]})]) as h:
            app = Starlette(routes=[Mount("/pointsman", h.host.admin)])
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
def run(url: str) -> Callable[..., Any]:
    def invoke(*args: str, exit_code: int = 0, **given: Any) -> Any:
        result = CliRunner().invoke(group, [*args, "--url", url], catch_exceptions=False, **given)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout) if "--json" in args else result.output

    return invoke


def test_a_tenants_whole_life(run: Callable[..., Any]) -> None:
    """Added from standard input, listed, shown, replaced, removed; the key itself is never printed."""
    shown = [run("add", "-", input=json.dumps(ACME)), run("list"), run("show", "acme")]
    for text in shown:
        assert "Acme Ltd" in text
        assert KEY not in text
    assert "tokens_per_day=1000" in shown[1]
    assert "hmac-sha256$" in shown[2]
    assert run("show", "acme", "--json")["usage"][0]["requests_left"] == 60
    assert "already" in run("add", "-", input=json.dumps(ACME), exit_code=1)
    changed = json.dumps({**ACME, "priority": 7})
    assert run("add", "-", "--replace", "--json", input=changed)["priority"] == 7
    assert run("remove", "acme", "--json") == {"removed": "acme"}
    assert [tenant["id"] for tenant in run("list", "--json")["tenants"]] == ["fixed"]


def test_what_goes_wrong_is_one_line_and_exit_code_1(run: Callable[..., Any]) -> None:
    assert "no tenant '../x'" in run("show", "../x", exit_code=1)
    assert "part of the configuration" in run("remove", "fixed", exit_code=1)
    assert "is not JSON" in run("add", "-", input="{", exit_code=1)
    assert "one JSON object" in run("add", "-", input="[]", exit_code=1)
    assert "limits.x" in run("add", "-", input='{"id": "a", "limits": {"x": 1}}', exit_code=1)


def test_a_key_is_hashed_without_being_shown() -> None:
    """Each time under a new salt, or under that of another hash."""
    outputs = [CliRunner().invoke(group, ["hash-key"], input=KEY + "\n").stdout.strip() for _ in range(2)]
    assert outputs[0] != outputs[1]
    for made in outputs:
        assert made == hash_key(KEY, made.split("$")[1])
        assert KEY not in made
    again = CliRunner().invoke(group, ["hash-key", "--like", outputs[0]], input=KEY + "\n")
    assert again.stdout.strip() == outputs[0]
    for like in ("nonsense", f"hmac-sha256${'0' * 17}${'a' * 64}", f"other${'0' * 16}${'a' * 64}"):
        assert CliRunner().invoke(group, ["hash-key", "--like", like], input=KEY).exit_code == 2
