"""The commands against a real LiteLLM proxy that runs the very file they are given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pointsman.testing.distribution import fake_distribution
from pointsman.testing.proxy import MASTER_KEY, ProxyServer

PLUGIN = """
from pointsman import PluginConfig, PluginInfo, hookimpl

class Plugin:
    def __init__(self, config):
        pass

    @hookimpl
    async def settle(self, ctx, settlement):
        pass

plugin = PluginInfo(name="quiet", config=PluginConfig, factory=Plugin, summary="Does nothing.")
"""


@pytest.mark.proxy
def test_check_doctor_and_status_agree_with_a_running_proxy(tmp_path):
    """As a user would: the installed program, in a process of its own, without colours in its output."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "quiet.py").write_text(PLUGIN)
    fake_distribution(library, "pointsman-quiet", {"quiet": "quiet:plugin"})
    document = {
        "model_list": [{"model_name": "chat", "litellm_params": {"model": "openai/gpt-4o", "api_key": "none"}}],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "pointsman": {"store": {"path": "state"}, "plugins": ["quiet", {"gone": {"optional": True}}]},
    }

    def pointsman(*args: str | Path) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        env |= {"PYTHONPATH": str(library), "POINTSMAN_KEY": MASTER_KEY, "PYTHONWARNINGS": "error"}
        program = Path(sys.executable).with_name("pointsman")
        return subprocess.run([program, *args], capture_output=True, text=True, env=env, check=False)  # noqa: S603 - our own words

    with ProxyServer(document, tmp_path / "proxy", python_path=(library,)) as proxy:
        checked = pointsman("check", proxy.config_path)
        examined = pointsman("doctor", proxy.config_path, "--url", proxy.url, "--json")
        shown = pointsman("status", "--url", proxy.url)
        refused = pointsman("doctor", proxy.config_path, "--url", proxy.url, "--key", "sk-wrong")

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "settle" in checked.stdout
    answer = json.loads(examined.stdout)
    assert examined.returncode == 0, examined.stdout
    levels = [(found["subject"], found["level"]) for found in answer["checks"]]
    assert ("quiet", "ok") in levels
    assert levels.count(("gone", "warning")) == 2, "left out by the file, and left out by the proxy"
    assert ("journal", "ok") in levels
    assert [level for subject, level in levels if subject == "proxy"] == ["ok"], "the proxy runs what the file says"
    assert shown.returncode == 0, shown.stderr
    assert "left out: plugin 'gone'" in shown.stdout
    assert refused.returncode == 1
    assert "refuses the key" in refused.stdout
    assert "sk-wrong" not in refused.stdout + refused.stderr
    for done in (checked, examined, shown, refused):
        assert "\x1b" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
