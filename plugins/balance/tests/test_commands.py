"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner

from pointsman.testing import deployment, error
from pointsman.testing.commands import CommandLine, served
from pointsman.testing.distribution import fake_distribution
from pointsman_balance.commands import balance
from pointsman_balance.plugin import plugin
from pointsman_balance.tactics import BUILT_IN, ENTRY_POINTS


@pytest.fixture
def run(harness):
    """Run commands against a worker with a deployment whose credentials are refused."""

    @asynccontextmanager
    async def worker():
        deployments = [deployment("eu/one two", "chat"), deployment("b", "chat")]
        async with harness([plugin], deployments=deployments) as h:
            for _ in range(20):
                await h.request(script={"eu/one two": error(401)})
            yield h.app

    with served(worker) as url:
        yield CommandLine(balance, url)


def test_list_reset_probe_and_settings(run):
    overview = run("list")
    assert "eu/one two" in overview
    assert "the provider rejects the credentials" in overview
    assert "open" in overview

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


def test_tactics_are_listed_without_a_proxy(monkeypatch):
    monkeypatch.setenv("POINTSMAN_URL", "http://127.0.0.1:1")
    shown = CliRunner().invoke(balance, ["tactics"], catch_exceptions=False)
    assert (shown.exit_code, "cache_affinity" in shown.output) == (0, True)
    answer = json.loads(CliRunner().invoke(balance, ["tactics", "--json"], catch_exceptions=False).stdout)
    assert answer.keys() >= BUILT_IN.keys()


def test_a_tactic_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "acme", {"acme": "no_such_module:X"}, group=ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    shown = CliRunner().invoke(balance, ["tactics"], catch_exceptions=False)
    assert (shown.exit_code, "cache_affinity" in shown.stdout) == (0, True)
    assert "Left out: entry point 'acme'" in shown.stderr


def test_what_is_wrong_is_named(run):
    assert "nobody" in run("reset", "nobody", exit_code=1)
    assert "did you mean 'p2c'" in run("set", "chat", "--tactic", "p3c", exit_code=1)
    assert "NAME=VALUE" in run("set", "chat", "--breaker", "classic", exit_code=2)
    assert "nothing to change" in run("set", "chat", exit_code=2)
    assert "give --tactic as well" in run("set", "chat", "--setting", "a=1", exit_code=2)
