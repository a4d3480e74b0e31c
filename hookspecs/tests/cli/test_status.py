"""``pointsman status`` and ``doctor --url`` against the admin surface of a real host over HTTP."""

from __future__ import annotations

import json

import pytest

from pointsman.cli.check import Report
from pointsman.cli.doctor import judge
from pointsman.host.settings import parse


@pytest.fixture
def findings(run, write):
    """Return what ``doctor`` finds with a proxy, by level and subject."""

    def examine(section, url):
        result = run("doctor", write(section), "--url", url, "--json")
        answer = json.loads(result.stdout)
        assert result.exit_code == (0 if answer["ok"] else 1)
        return [(found["level"], found["subject"], found["message"]) for found in answer["checks"]]

    return examine


def about(found, subject):
    return [(level, message) for level, of, message in found if of == subject]


def test_status_shows_plugins_worker_and_faults(run, install, serving, tmp_path):
    install("good")
    install("ill", ('ok=True, summary="fine"', 'ok=False, summary="the disk is [red]full[/red]"'))
    with serving({"store": {"backend": "memory"}, "plugins": ["good", "ill"]}, tmp_path) as (url, host):
        assert "Faults" not in run("status", "--url", url).output
        host.faults.record("ill", "settle", None, ValueError("x"))
        result = run("status", "--url", url)
        answer = json.loads(run("status", "--url", url, "--json").stdout)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]
    assert "good yes fine" in lines
    assert "ill no the disk is [red]full[/red]" in lines
    assert "ill settle 1" in lines
    assert "store memory" in lines
    assert f"worker {host.worker}" in lines
    assert [plugin["name"] for plugin in answer["plugins"]] == ["good", "ill"]
    assert "\x1b" not in result.output


def test_what_holds_up_all_requests_is_shown_with_its_line(run, findings, install, serving, tmp_path):
    install("good")
    section = {"store": {"backend": "memory"}, "plugins": ["good"]}
    with serving(section, tmp_path) as (url, host):
        before = run("status", "--url", url).output
        timing = next(impl.timing for impl in host.hooks.implementations())
        timing.seen_at = "work (good.py:7)"
        timing.calls = 1
        timing.held(0.25)
        result = run("status", "--url", url)
        found = findings(section, url)
    assert "Held up" not in before
    lines = [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]
    assert f"good {timing.hook} 1 250 ms work (good.py:7)" in lines
    says = f"{timing.hook} has held up all other requests 1 times, for up to 250 ms, in work (good.py:7)"
    assert ("warning", says) in about(found, "good")


def test_reload_says_what_has_changed_and_what_is_wrong(run, install, serving, tmp_path):
    install("good")
    section = {"store": {"backend": "memory"}, "plugins": ["good"]}
    with serving(section, tmp_path) as (url, host):
        none = run("reload", "--url", url)
        host.enable_reload(lambda: parse(section, "litellm.yaml", tmp_path))
        same = run("reload", "--url", url)
        section["plugins"] = [{"good": {"limit": 9}}]
        changed = json.loads(run("reload", "--url", url, "--json").stdout)
        section["plugins"] = [{"good": {"limit": "many"}}]
        wrong = run("reload", "--url", url)
        shown = run("status", "--url", url).output
    assert (none.exit_code, wrong.exit_code) == (1, 1)
    assert "not started from a configuration file" in none.output
    assert same.exit_code == 0, same.output
    assert "generation" in same.output
    assert (changed["generation"], changed["started"], changed["stopped"]) == (3, ["good"], ["good"])
    assert "nothing has changed" in wrong.output
    assert "plugins[0].good.limit" in " ".join(wrong.output.split())
    assert "generation 3; the reload of" in " ".join(shown.split())


def test_status_without_a_proxy_is_one_line(run):
    result = run("status", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot reach the proxy")


def test_healthy_proxy_is_fine(findings, install, serving, tmp_path):
    install("good")
    section = {"store": {"backend": "memory"}, "plugins": ["good"]}
    with serving(section, tmp_path) as (url, host):
        found = findings(section, url)
    assert about(found, "good") == [("ok", "fine")]
    assert about(found, "proxy")[0][0] == "ok"
    assert host.worker in about(found, "proxy")[0][1]
    assert about(found, "journal") == [("ok", "0 of 0 settled")]


def test_ill_plugin_fails_and_faults_and_differences_are_warnings(findings, install, serving, tmp_path):
    install("good")
    install("ill", ('ok=True, summary="fine"', 'ok=False, summary="no disk"'))
    install(
        "lame",
        ("async def startup(self, services):\n        pass", "async def startup(self, services):\n        1 / 0"),
    )
    running = {"store": {"backend": "memory"}, "plugins": ["good", "ill", {"lame": {"optional": True}}]}
    with serving(running, tmp_path) as (url, host):
        host.faults.record("good", "settle", None, ValueError("x"))
        host.tracing.failures = 3
        found = findings({"store": {"backend": "disk"}, "plugins": ["good", "ill"]}, url)
    assert about(found, "ill") == [("failed", "no disk")]
    assert ("warning", "settle failed 1 times since the start; the proxy's log says why") in about(found, "good")
    (lame,) = about(found, "lame")
    assert lame[0] == "failed"
    assert "left out: plugin 'lame': its start-up failed" in lame[1]
    assert [message for level, message in about(found, "tracing") if level == "warning"] == [
        "failed 3 times since the start; the proxy's log says why"
    ]
    warnings = [message for level, message in about(found, "proxy") if level == "warning"]
    assert len(warnings) == 2
    assert "runs the plugins good, ill, lame, but the file says good, ill; restart the proxy" in warnings[0]
    assert "uses the memory store, but the file says disk" in warnings[1]


def test_plugin_left_out_on_purpose_is_a_warning(findings, install, serving, tmp_path):
    install("broken", ("import PluginConfig", "import PluginConfigg"))
    section = {"store": {"backend": "memory"}, "plugins": [{"broken": {"optional": True}}]}
    with serving(section, tmp_path) as (url, _):
        found = findings(section, url)
    assert [level for level, _ in about(found, "broken")] == ["warning", "warning"]


def test_proxy_that_cannot_be_asked_fails(findings):
    (found,) = about(findings({"plugins": []}, "http://127.0.0.1:1"), "proxy")
    assert found[0] == "failed"
    assert "cannot reach the proxy at http://127.0.0.1:1" in found[1]


JOURNAL = {"submitted": 9, "settled": 7, "retried": 0, "recovered": 0, "unjournaled": 0, "waiting": {}}


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        ({}, [("ok", "7 of 9 settled")]),
        ({"waiting": {"quota": 2}}, [("ok", "7 of 9 settled")]),
        (
            {"waiting": {"quota": 2}, "retried": 4},
            [("warning", "settlements are waiting: 2 for quota; 4 retries so far")],
        ),
        ({"waiting": {"quota": 5000}}, [("warning", "settlements are waiting: 5000 for quota")]),
        ({"unjournaled": 3}, [("ok", "7 of 9"), ("warning", "3 settlements could not be written")]),
    ],
)
def test_backlog_of_settlements(journal, expected, tmp_path):
    """Those of the requests of the moment are no backlog."""
    answer = {
        "version": "0",
        "worker": "w",
        "uptime_s": 1.0,
        "requests": 1,
        "requests_open": 0,
        "plugins": [],
        "faults": [],
        "store": {"backend": "disk"},
        "tracing": {"enabled": False, "failures": 0},
        "journal": {**JOURNAL, **journal},
    }
    found = [found for found in judge(answer, Report(tmp_path, tmp_path, {})) if found.subject == "journal"]
    assert [found.level.value for found in found] == [level for level, _ in expected]
    assert all(part in each.message for each, (_, part) in zip(found, expected, strict=True))
