"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.routing import Mount

from pointsman.testing import ok
from pointsman.types import Identity
from pointsman_billing.commands import group

from .kit import lines, settled_as, until, worker
from .sink_server import SinkServer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Serve a worker's routes on a real socket: three requests, of which one sink refuses one."""
    ready, stop = threading.Event(), threading.Event()
    made: list[str] = []

    async def serve(listener: socket.socket, sink: SinkServer) -> None:
        sinks = [{"ndjson": {"path": "bills.ndjson"}}, {"cloudevents": {"url": sink.url, "events": "attempts"}}]
        async with worker(tmp_path, *sinks) as h:
            for tenant in ("acme", "acme", "bad"):
                result = await h.request(identity=Identity(tenant=tenant), script=ok())
                made.append(result.request_id)
            await h.settled()
            await settled_as(h, billed=2, dead=1)
            await until(lambda: len(lines(tmp_path / "bills.ndjson")) == 6)
            app = Starlette(routes=[Mount("/pointsman", h.host.admin)])
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving

    with (
        SinkServer(poison=lambda event: event["data"]["tenant_id"] == "bad") as sink,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener, sink)))
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", made[0]
        finally:
            stop.set()
            thread.join(20)


@pytest.fixture
def run(served: tuple[str, str]) -> Callable[..., Any]:
    def invoke(*args: str, exit_code: int = 0) -> Any:
        result = CliRunner().invoke(group, [*args, "--url", served[0]], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout) if "--json" in args else result.output

    return invoke


def test_what_an_operator_sees(run: Callable[..., Any], served: tuple[str, str]) -> None:
    """Usage, reconciliation, sinks, dead letters, one request; as tables, JSON and CSV."""
    usage = run("usage", "--json")["usage"]
    assert [(row["tenant"], row["requests"]) for row in usage] == [("acme", 2), ("bad", 1)]
    assert "0.00004" in run("usage", "--group-by", "tenant", "--period", "total")
    csv_lines = run("usage", "--csv", "--tenant", "bad", "--period", "month").splitlines()
    assert csv_lines[0].startswith("period,tenant,model,requests")
    assert csv_lines[1].startswith("2025-06,bad,chat,1,1,")
    assert "kind" in run("usage", "--group-by", "kind")
    assert run("reconcile", "--json")["requests"]["dead"] == 1
    assert "$ difference" in run("reconcile")
    assert "needs attention" in run("reconcile", "--strict", exit_code=1)
    assert "cloudevents" in run("sinks")
    assert "1 dead letters" in run("dead")
    shown = run("show", served[1])
    assert "acme" in shown
    assert "billed" in shown
    assert "no request of this id" in run("show", "../x", exit_code=1)


def test_dead_letters_are_delivered_again(run: Callable[..., Any]) -> None:
    (letter,) = run("dead", "--json")["dead"]
    assert run("redrive", "--json", letter["event"]["id"]) == {"redriven": 1}
    assert "name event ids, or give --all" in run("redrive", exit_code=2)
    assert "must be one of" in run("redrive", "--all", "--sink", "other", exit_code=1)


def test_a_file_of_bills_can_be_verified(run: Callable[..., Any], tmp_path: Path) -> None:
    """A changed figure, a repeated line and what is no event are found."""
    file = tmp_path / "bills.ndjson"

    def verify(text: str) -> Any:
        return CliRunner().invoke(group, ["verify", "-"], input=text)

    good = file.read_text()
    result = verify(good)
    assert (result.exit_code, result.stdout) == (0, "3 attempts, 3 requests, 0 wrong\n")
    golden = Path(__file__).with_name("golden_events.ndjson").read_text().splitlines(keepends=True)
    assert verify("".join(golden[:3])).exit_code == 0
    changed = good.replace('"prompt_tokens":10,', '"prompt_tokens":9,')
    assert changed != good
    for text, word in (
        (changed, "gives another bill"),
        (good + good.splitlines()[0] + "\n", "came before"),
        ("{}\n", "no billing event"),
        (good.splitlines()[1] + "\n", "not the sum"),
    ):
        result = verify(text)
        assert result.exit_code == 1
        assert word in result.output
