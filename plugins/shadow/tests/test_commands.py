"""The commands against a whole worker behind a real server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from pointsman.testing import Harness, error, ok
from pointsman.testing.commands import CommandLine, served
from pointsman_shadow.commands import shadow
from pointsman_shadow.plugin import plugin


@pytest.fixture
def run(kit):
    """Run commands against a worker that has mirrored three requests."""

    @asynccontextmanager
    async def worker():
        section = {"mirrors": [kit.mirror(budget={"usd_per_day": 2}, keep_texts=True)]}
        async with Harness([(plugin, section)], deployments=kit.deployments) as h:
            h.gateway.upstream.answer({"new": [ok("a"), ok("b"), error(500)]})
            for _ in range(3):
                await h.request(script=ok("a"))
            await h.settled()
            await h.clock.advance(3)
            yield h.app

    with served(worker) as url:
        yield CommandLine(shadow, url)


def test_a_mirror_is_watched_and_led_by_commands_alone(run, tmp_path):
    listed = run("list")
    assert "next" in listed
    assert "running" in listed
    report = run("report", "next")
    for word in ("cost_ratio", "challenger errors: server", "95 % intervals", "of 2", "shadow:next"):
        assert word in report
    assert run("report", "next", "--json")["pairs"] == 3
    rows = [json.loads(line) for line in run("export", "next").splitlines()]
    assert [row["challenger"].get("text") for row in rows] == ["a", "b", None]
    run("export", "next", "--limit", "1", "--output", str(tmp_path / "rows.jsonl"))
    (row,) = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row) == rows[-1]
    assert len(run("export", "next", "--json")["results"]) == 3
    assert "paused" in run("pause", "next", "--who", "anna", "--reason", "dear")
    assert "by anna: dear" in run("report", "next")
    assert "running" in run("resume", "next")
    assert "graduated" in run("graduate", "next", "--reason", "good")
    assert "is graduated" in run("graduate", "next", exit_code=1)
    assert run("reset", "next", "--json")["run"] == 2


def test_an_unknown_mirror_is_an_error(run):
    assert "known: next" in run("report", "nobody", exit_code=1)
