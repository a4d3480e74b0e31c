"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from pointsman.testing import deployment, ok
from pointsman.testing.commands import CommandLine, served
from pointsman_signals.commands import signals
from pointsman_signals.plugin import plugin

LOW = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "10m"}


@pytest.fixture
def run(harness):
    """Run commands against a worker that knows of two deployments."""

    @asynccontextmanager
    async def worker():
        deployments = [deployment("eu/one two", "chat"), deployment("b", "chat", provider="groq")]
        async with harness([plugin], deployments=deployments) as h:
            await h.request(script={"eu/one two": ok(headers=LOW, latency_s=0.25)})
            await h.clock.advance(1.0)
            yield h.app

    with served(worker) as url:
        yield CommandLine(signals, url)


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
