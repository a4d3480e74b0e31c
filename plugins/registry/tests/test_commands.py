"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from pointsman.testing.commands import CommandLine, served
from pointsman_registry.commands import registry


@pytest.fixture
def workers():
    """The worker, once it runs."""
    return []


@pytest.fixture
def run(kit, workers):
    """Run commands against a started plugin."""

    @asynccontextmanager
    async def worker():
        async with kit.open_store("memory", None) as store:
            workers.append(await kit.start(store))
            yield workers[0].app()

    with served(worker) as url:
        yield CommandLine(registry, url)


def register(run, id_, *more):
    return run("register", "--id", id_, "--name", "chat/x", "--version", "1.0", "--path", "small", *more)


def test_register_activate_roll_back_delete(run):
    """The whole life of two versions through the commands alone, with ids that need escaping."""
    assert "a/1" in register(run, "a/1", "--metric", "accuracy=0.5", "--metric", "k=v=2", "--activate")
    made = register(run, "ü 2", "--format", "openai", "--json")
    assert (made["active"], made["format"], made["metrics"]) == (False, "openai", {})
    assert run("get", "a/1", "--json")["metrics"] == {"accuracy": 0.5, "k=v": 2.0}
    assert [v["id"] for v in run("list", "--name", "chat/x", "--json")["versions"]] == ["a/1", "ü 2"]
    assert run("activate", "ü 2", "--who", "anna", "--reason", "better", "--json")["active"] is True
    assert "anna" in run("history", "chat/x")
    assert run("rollback", "chat/x", "--who", "berta", "--json")["id"] == "a/1"
    assert run("history", "--limit", "1", "--json")["history"][0]["who"] == "berta"
    refused = run("delete", "a/1", exit_code=1)
    assert "is the active version" in refused
    assert "--force" in refused
    assert "[id]" not in refused
    assert run("delete", "a/1", "--force", "--reason", "old", "--json") == {"deleted": "a/1"}
    assert "ü 2" in run("delete", "ü 2")
    assert run("list", "--json") == {"versions": []}


def test_tables_show_what_people_look_for(run):
    register(run, "a/1", "--metric", "accuracy=0.5", "--activate")
    shown = run("list")
    for part in ("a/1", "chat/x", "1.0", "small", "yes", "accuracy=0.5", "2027-01-15 08:00:00Z"):
        assert part in shown


def test_metrics_are_shown_and_reset(run, workers, kit):
    (worker,) = workers
    register(run, "a/1")
    register(run, "b")
    worker.plugin.post_response(kit.context(), kit.attempt("a/1", duration_ms=1234.5, first_token_ms=67.25))
    shown = run("metrics", "a/1")
    for part in ("1234.5", "67.25", "0.0%"):
        assert part in shown
    assert [m["requests"] for m in run("metrics", "--json")["metrics"]] == [1, 0]
    assert "0.0%" in run("metrics", "--name", "chat/x")
    worker.clock.at += 1
    assert run("metrics", "a/1", "--reset", "--json") == {"reset": ["a/1"]}
    assert run("metrics", "a/1", "--json")["requests"] == 0
    assert "b" in run("metrics", "--reset")


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["get", "x"], 1, "there is no version 'x'"),
        (["activate", "x"], 1, "there is no version 'x'"),
        (["rollback", "x"], 1, "there is no registered name 'x'"),
        (["register", "--id", "1", "--name", "n", "--version", "1", "--path", "smal"], 1, "did you mean 'small'?"),
        (["register", "--id", "1"], 2, "Missing option '--name'"),
        (["register", "--id", "1", "--name", "n", "--version", "1", "--path", "p", "--metric", "a"], 2, "NAME=NUMBER"),
        (
            ["register", "--id", "1", "--name", "n", "--version", "1", "--path", "p", "--metric", "a=nan"],
            2,
            "NAME=NUMBER",
        ),
        (["metrics", "1", "--name", "n"], 2, "not both"),
        (["history", "--limit", "0"], 2, "1<=x<=1000"),
    ],
)
def test_mistakes_are_one_clear_message(run, args, exit_code, message):
    output = run(*args, exit_code=exit_code)
    assert message in output
    if exit_code == 1:
        assert "[" not in output, "parts of a path have no names on the command line"
