"""The commands against a whole worker behind a real server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from pointsman.testing import ok
from pointsman.testing.commands import CommandLine, served
from pointsman_racing.commands import racing

SMART = {"name": "smart", "candidates": ["chat", "backup"]}


@pytest.fixture
def run(track):
    """Run commands against a worker after one race."""

    @asynccontextmanager
    async def worker():
        async with track(models=[SMART]) as h:
            await h.request(model="smart", stream=True, script={"chat": ok(latency_s=1), "backup": ok()})
            yield h.app

    with served(worker) as url:
        yield CommandLine(racing, url)


def test_list_and_show(run):
    listed = run("list")
    for part in ("smart", "hedge", "100.00%", "backup-a", "chat-a"):
        assert part in listed
    assert run("list", "--json")["races"][0]["name"] == "smart"
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
