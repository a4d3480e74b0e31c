"""What the front page shows, as it stands there: the configuration, and the plugin of somebody who knows only the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pointsman.host.settings import HostConfig
from pointsman.testing import FakeClock, Harness, deployment, eventually
from pointsman.testing.distribution import fake_distribution
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:yaml|python)\n(# [\w.]+\.(?:yaml|py)\b.*?)^```", README, re.DOTALL | re.MULTILINE)
MASTER_KEY = "sk-of-the-front-page"


def block(file: str) -> str:
    """Return the text of a file that the page shows; its first line names it."""
    (found,) = [text for text in BLOCKS if re.match(rf"# {re.escape(file)}\b", text)]
    return str(found)


def config() -> dict[str, Any]:
    """Return the page's configuration."""
    read: dict[str, Any] = yaml.safe_load(block("litellm.yaml"))
    return read


def environment(upstream: UpstreamServer) -> dict[str, str]:
    """Return what the configuration takes from the environment."""
    return {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": f"{upstream.url}/v1", "LITELLM_MASTER_KEY": MASTER_KEY}


def ask(admin: httpx.Client) -> httpx.Response:
    """Ask for the model that clients know."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Say something."}]}
    return admin.post("/v1/chat/completions", json=body).raise_for_status()


@pytest.mark.parametrize("setting", HostConfig.model_fields)
def test_it_explains_each_setting_of_the_host(setting):
    assert re.search(rf"^\| `{setting}\b", README, re.MULTILINE)


@pytest.fixture
def third_party(tmp_path: Path) -> Path:
    """Install the page's plugin, and give the folder with its tests."""
    for file in ("my_plugin.py", "test_contract.py"):
        (tmp_path / file).write_text(block(file), encoding="utf-8")
    points = re.search(r"\[project\.entry-points\.pointsman\]\n(\S+) = \"(\S+)\"", README)
    assert points is not None
    fake_distribution(tmp_path, "my-plugin", {points[1]: points[2]})
    return tmp_path


@pytest.mark.proxy
def test_the_configuration(tmp_path: Path) -> None:
    """One command moves all clients to the other version."""
    with (
        UpstreamServer() as upstream,
        ProxyServer(config(), tmp_path, env=environment(upstream)) as proxy,
        proxy.client() as admin,
    ):
        assert ask(admin).headers["x-pointsman-version"] == "1"
        command = [str(Path(sys.executable).with_name("pointsman")), "registry", "activate", "assistant-2"]
        where = {"POINTSMAN_URL": proxy.url, "POINTSMAN_KEY": MASTER_KEY}
        subprocess.run(command, env={**os.environ, **where}, check=True, timeout=60)  # noqa: S603  # fixed
        eventually(lambda: ask(admin).headers["x-pointsman-version"], lambda version: version == "2")


def test_the_plugin_passes_the_contract(third_party: Path) -> None:
    """With nothing around it but what the page says."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_contract.py"]
    ran = subprocess.run(command, cwd=third_party, capture_output=True, text=True, timeout=150, check=False)  # noqa: S603  # fixed
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout


@pytest.mark.parametrize(("hour", "target", "labels"), [(3, "backup", {"shift": "night"}), (12, "assistant", {})])
async def test_the_plugin_knows_the_hour(hour: int, target: str, labels: dict[str, str]) -> None:
    """Whatever the hour of the test."""
    names: dict[str, Any] = {}
    exec(block("my_plugin.py"), names)  # noqa: S102  # our own page
    groups = [deployment("one", "assistant"), deployment("two", "backup")]
    at = FakeClock(datetime(2026, 1, 1, hour, tzinfo=UTC).timestamp())
    async with Harness([(names["plugin"], {"night_model": "backup"})], deployments=groups, clock=at) as h:
        result = await h.request(model="assistant")
    assert (result.route.target, dict(result.route.labels)) == (target, labels)
    assert result.attempts[0].deployment.group == target


@pytest.mark.proxy
def test_the_plugin_routes(third_party: Path, tmp_path: Path) -> None:
    """At night, by the wall clock of the test, the request goes to the other model."""
    asked = config()
    asked["pointsman"]["plugins"].append({"night-shift": {"night_model": "gpt-4o-mini"}})
    with (
        UpstreamServer() as upstream,
        ProxyServer(asked, tmp_path / "proxy", env=environment(upstream), python_path=(third_party,)) as proxy,
        proxy.client() as admin,
    ):
        status = admin.get("/pointsman/status").raise_for_status().json()
        assert [(plugin["name"], plugin["ok"]) for plugin in status["plugins"]] == [
            ("registry", True),
            ("night-shift", True),
        ]
        before = datetime.now(UTC)
        ask(admin)
        after = datetime.now(UTC)
        assert upstream.requests[-1].model in {
            "gpt-4o" if 6 <= when.hour < 22 else "gpt-4o-mini"  # the page's hours
            for when in (before, after)
        }
