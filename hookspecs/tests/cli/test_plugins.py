"""``pointsman plugins list`` shows everything that is installed, the broken ones too."""

from __future__ import annotations

import json


def listed(run):
    return {plugin["name"]: plugin for plugin in json.loads(run("plugins", "list", "--json").stdout)["plugins"]}


def test_installed_plugins_are_listed_with_hooks_and_package(run, install):
    install("plain")
    install("made", ("factory=Plugin", "factory=lambda config: Plugin(config)"))
    install("needy", ("limit: int = 3", "limit: int"), ("factory=Plugin", "factory=lambda config: Plugin(config)"))
    found = listed(run)
    assert found["plain"] == {
        "name": "plain",
        "packages": ["pointsman-plain 0"],
        "summary": "For tests.",
        "commands": False,
        "hooks": ["startup", "shutdown", "pre_route", "status"],
        "error": None,
    }
    assert found["made"]["hooks"] == found["plain"]["hooks"]
    assert found["needy"]["hooks"] is None
    assert "depends on its configuration" in run("plugins", "list").output


def test_broken_plugins_do_not_hide_the_others(run, install):
    install("good")
    install("broken", ("import PluginConfig", "import PluginConfigg"))
    install("twin", package="acme-twin")
    install("twin")
    found = listed(run)
    assert found["good"]["error"] is None
    assert "cannot be imported: ImportError" in found["broken"]["error"]
    assert found["twin"]["packages"] == ["acme-twin 0", "pointsman-twin 0"]
    assert "uninstall one of them" in found["twin"]["error"]
    result = run("plugins", "list")
    assert result.exit_code == 0
    assert "pointsman-broken 0" in result.output
    assert [line.split()[:2] for line in result.output.splitlines() if line.startswith("failed")] == [
        ["failed", "broken"],
        ["failed", "twin"],
    ]


def test_nothing_installed_says_what_to_do(run, monkeypatch):
    monkeypatch.setattr("pointsman.cli.status.discover", dict)
    assert "pip install pointsman-registry" in run("plugins", "list").output
