"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner
from starlette.types import ASGIApp

from pointsman.testing import Harness
from pointsman.testing.commands import CommandLine, served
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
def run() -> Iterator[CommandLine]:
    """Run commands against a worker with one tenant of the configuration."""

    @asynccontextmanager
    async def worker() -> AsyncIterator[ASGIApp]:
        async with Harness([(plugin, {"tenants": [{"id": "fixed"}]})]) as h:
            yield h.app

    with served(worker) as url:
        yield CommandLine(group, url)


def test_a_tenants_whole_life(run: CommandLine) -> None:
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


def test_what_goes_wrong_is_one_line_and_exit_code_1(run: CommandLine) -> None:
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
