"""The example with all plugins, as it stands in the repository, on a real proxy."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
import yaml

from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy
EXAMPLE = Path(__file__).parents[1] / "examples" / "all-plugins" / "litellm.yaml"


def test_all_plugins(tmp_path: Path) -> None:
    """Each has its say in one request, and none has a problem but the server of local models, which may be missing."""
    config = yaml.safe_load(EXAMPLE.read_text())
    names = [name for plugin in config["pointsman"]["plugins"] for name in plugin]
    assert len(names) == 9
    with UpstreamServer() as upstream:
        env = {
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": f"{upstream.url}/v1",
            "LITELLM_MASTER_KEY": "sk-long-and-random-enough",
        }
        with ProxyServer(EXAMPLE, tmp_path, env=env) as proxy, proxy.client() as admin:
            client = openai.OpenAI(api_key=proxy.master_key, base_url=f"{proxy.url}/v1", max_retries=0)
            with client:
                assert "assistant" in [model.id for model in client.models.list()]
                answer = client.chat.completions.with_raw_response.create(
                    model="assistant", messages=[{"role": "user", "content": "Say something."}]
                )
            told = answer.headers
            assert told["x-pointsman-attempts"] == "1"
            assert told["x-pointsman-arm"] in {"stable", "canary"}
            assert int(told["x-ratelimit-remaining-requests"]) < 600
            if told["x-pointsman-arm"] == "stable":
                assert told["x-pointsman-version"] == "1"
                assert told["x-pointsman-raced"].startswith("gpt-4o-mini")
            status = admin.get("/pointsman/status").raise_for_status().json()
            assert [plugin["name"] for plugin in status["plugins"]] == names
            problems = {plugin["name"]: plugin["summary"] for plugin in status["plugins"] if not plugin["ok"]}
            missing = problems.pop("residency", "cannot be reached")
            assert "cannot be reached" in missing
            assert problems == {}
            assert status["faults"] == []
