"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    results = [CliRunner().invoke(group, ["hash-key"], input=KEY + "\n") for _ in range(2)]
    assert [result.stderr for result in results] == ["", ""]
    outputs = [result.stdout.strip() for result in results]
    assert outputs[0] != outputs[1]
    for made in outputs:
        assert made == hash_key(KEY, made.split("$")[1])
        assert KEY not in made
    again = CliRunner().invoke(group, ["hash-key", "--like", outputs[0]], input=KEY + "\n")
    assert again.stdout.strip() == outputs[0]
    for like in ("nonsense", f"hmac-sha256${'0' * 17}${'a' * 64}", f"other${'0' * 16}${'a' * 64}"):
        assert CliRunner().invoke(group, ["hash-key", "--like", like], input=KEY).exit_code == 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "has 0"),
        ("x", "has 1"),
        (KEY[:15], "has 15"),
        ("x" * 513, "has 513"),
        (f"{KEY}\n{KEY}", "must not contain white space"),
    ],
)
def test_what_is_no_key_is_refused_as_over_http(run: CommandLine, key: str, said: str) -> None:
    made = CliRunner().invoke(group, ["hash-key"], input=key + "\n")
    assert (made.exit_code, made.stdout) == (1, "")
    posted = run("add", "-", input=json.dumps({"id": "a", "api_keys": [{"name": "x", "key": key}]}), exit_code=1)
    for text in (made.stderr, posted):
        assert said in text
        assert KEY[:15] not in text


def test_a_terminal_is_asked_for_the_key() -> None:
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", "from pointsman_quota.commands import group; group(['hash-key'])"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stderr is not None
        assert process.stderr.read(9) == b"API key: "
        os.write(ours, f"{KEY}\n".encode())
        output, errors = process.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    made = output.decode().strip()
    assert (process.returncode, made, errors.strip()) == (0, hash_key(KEY, made.split("$")[1]), b"")
