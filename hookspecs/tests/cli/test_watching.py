"""``--watch`` and the figures of ``top``."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from pointsman import client
from pointsman.cli import top
from pointsman.cli.top import Distribution, deployments, increase, traffic
from pointsman.client import AdminFailure, watchable


def test_a_watched_command_is_repeated_and_goes_on_after_a_failure(monkeypatch):
    """It ends with Ctrl-C only, which is no failure."""
    calls, waited = [], []

    @click.command()
    @watchable
    def command():
        calls.append(1)
        if len(calls) == 2:
            raise AdminFailure("the proxy restarts")

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(client.time, "sleep", sleep)
    result = CliRunner().invoke(command, ["--watch", "2"])
    assert (len(calls), waited) == (3, [2.0, 2.0, 2.0])
    assert result.exit_code == 0
    assert "Aborted" not in result.output
    assert "the proxy restarts" in result.output
    assert CliRunner().invoke(command, []).exit_code == 0
    assert len(calls) == 4


def series(count: int, answered: int) -> dict:
    return {
        ("pointsman.request.duration", frozenset({("pointsman.outcome", "ok")})): ([0.1, 1.0], [count, count, 0], 1.0),
        (
            "pointsman.attempts",
            frozenset({("pointsman.deployment", "a"), ("pointsman.attempt.result", "answered")}),
        ): answered,
        ("gen_ai.client.operation.duration", frozenset({("pointsman.deployment", "a")})): (
            [0.1, 1.0],
            [0, answered, 0],
            1.0,
        ),
        ("pointsman.workers", frozenset()): 2,
    }


def test_rates_and_quantiles_are_those_of_the_interval():
    before, after = series(10, 5), series(30, 25)
    now = traffic(before, after, 4.0)
    assert now["requests_per_s"] == 10.0
    assert now["workers"] == 2
    assert now["p50_s"] == pytest.approx(0.1)
    assert now["p95_s"] == pytest.approx(0.91)
    (row,) = deployments(before, after, 4.0)
    assert (row["deployment"], row["answered"], row["attempts_per_s"]) == ("a", 20, 5.0)
    # A worker that ended takes the last seconds of its counts with it: nothing is negative.
    assert increase(after, before, "pointsman.attempts") == 0
    assert Distribution((), ()).quantile(0.5) is None


def test_top_shows_a_running_host(run, install, serving, tmp_path):
    install("good")
    with serving({"store": {"backend": "memory"}, "plugins": ["good"]}, tmp_path) as (url, _):
        shown = run("top", "--url", url, "--once", "--interval", "0.2")
        figures = json.loads(run("top", "--url", url, "--once", "--interval", "0.2", "--json").stdout)
        listed = run("requests", "--url", url)
        missing = run("explain", "--url", url, "nothing")
    assert shown.exit_code == 0, shown.output
    assert "Traffic of the last" in shown.output
    assert figures["traffic"]["workers"] == 1
    assert listed.exit_code == 0
    assert missing.exit_code == 1
    assert "no worker remembers the request 'nothing'" in missing.output


def test_top_goes_on_after_a_failure_and_ends_calmly_with_ctrl_c(run, install, serving, tmp_path, monkeypatch):
    install("good")
    looks = []

    def sleep(_seconds):
        if len(looks) == 3:
            raise KeyboardInterrupt

    def read(admin):
        looks.append(1)
        if len(looks) == 2:
            raise AdminFailure("the proxy restarts")
        return read_metrics(admin)

    read_metrics = top.read
    monkeypatch.setattr(top, "read", read)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a screen is drawn on terminals only
    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with serving({"store": {"backend": "memory"}, "plugins": ["good"]}, tmp_path) as (url, _):
        shown = run("top", "--url", url)
    assert (len(looks), shown.exit_code) == (3, 0), shown.output
    assert "Aborted" not in shown.output
    assert "the proxy restarts" in shown.output
    assert "Traffic of the last" in shown.output
