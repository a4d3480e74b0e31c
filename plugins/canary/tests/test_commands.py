"""The commands against a whole worker behind a real server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import yaml

from pointsman.testing import Harness
from pointsman.testing.commands import CommandLine, served
from pointsman_canary.commands import canary
from pointsman_canary.plugin import plugin


@pytest.fixture
def run(kit):
    """Run commands against a worker with one rollout."""

    @asynccontextmanager
    async def worker():
        experiments = [kit.rollout(steps=[1, 5, "pause", 100])]
        async with Harness([(plugin, {"experiments": experiments})], deployments=kit.deployments) as h:
            yield h.app

    with served(worker) as url:
        yield CommandLine(canary, url)


def test_rollout_is_led_by_commands_alone(run):
    shown = run("list")
    for part in ("chat-v2", "running", "1/3", "canary 1 %"):
        assert part in shown
    assert run("pause", "chat-v2", "--who", "anna", "--reason", "lunch", "--json")["phase"] == "paused"
    assert run("resume", "chat-v2", "--json")["phase"] == "running"
    assert run("weight", "chat-v2", "3.5", "--json")["weights_percent"] == {"canary": 3.5}
    assert run("weight", "chat-v2", "canary=4", "--json")["weights_percent"] == {"canary": 4}
    assert run("promote", "chat-v2", "--json")["phase"] == "promoted"
    assert "rolled_back" in run("rollback", "chat-v2")
    assert run("restart", "chat-v2", "--json")["run"] == 2
    trail = run("audit", "chat-v2")
    assert "anna" in trail
    assert "lunch" in trail
    assert len(run("audit", "chat-v2", "--limit", "3", "--json")["audit"]) == 3
    assert "error_rate:mean" in run("show", "chat-v2")


def test_experiment_is_made_from_a_file_and_removed(run, kit, tmp_path):
    file = tmp_path / "experiment.yaml"
    arms = {"b": {"target": "new", "percent": 20}}
    file.write_text(
        yaml.safe_dump(kit.rollout(name="ab", model="old", canary=None, steps=None, stable=None, arms=arms))
    )
    assert run("create", str(file), "--json")["kind"] == "ab"
    assert "A/B" in run("list")
    assert "canary" not in run("show", "ab")
    assert "this arm n" in run("show", "ab")
    file.write_text(json.dumps(kit.rollout(name="ab", model="old", canary="newer", stable=None)))
    assert run("restart", "ab", "--file", str(file), "--json")["kind"] == "rollout"
    assert "canary n" in run("show", "ab")
    assert "is running; promote it, roll it back, or force the deletion (force=true, --force)" in run(
        "delete", "ab", exit_code=1
    )
    assert run("delete", "ab", "--force", "--json") == {"deleted": "ab"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "nothing"), "there is no experiment 'nothing'; known: chat-v2"),
        (("audit", "nothing"), "there has never been an experiment 'nothing'"),
        (("show", "A"), "names have lower-case letters"),
        (("resume", "chat-v2"), "not paused"),
        (("weight", "chat-v2", "101"), "less than or equal to 100"),
        (("promote", "chat-v2", "--arm", "b"), "no arm 'b'"),
    ],
)
def test_refusal_of_the_gateway_is_one_line_and_exit_code_1(run, args, message):
    said = run(*args, exit_code=1)
    assert message in said
    assert "[" not in said, "parts of a path have no names on the command line"


@pytest.mark.parametrize(
    "args",
    [("weight", "chat-v2"), ("weight", "chat-v2", "x"), ("weight", "chat-v2", "b=1", "2"), ("create", "/nowhere.yaml")],
)
def test_wrong_usage_is_exit_code_2(run, args):
    run(*args, exit_code=2)


def test_file_that_is_no_yaml_is_refused(run, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("{")
    assert "neither YAML nor JSON" in run("create", str(file), exit_code=2)
