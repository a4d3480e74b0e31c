"""What the host without a plugin does for a request, in calls of its own functions: what no plugin asks for is not done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from own_calls import REQUESTS, counting, per_request
from rig import deployment

from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(600)]

#: About an eighth more than on LiteLLM 1.108: other versions ask a little more often.
MOST: Final = {"chat": 405, "chat, streamed": 605, "messages": 470, "responses": 460, "embeddings": 410}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    with UpstreamServer() as upstream:
        config = {
            "model_list": [
                deployment(upstream.url, "good", "gpt-4o-mini", id_="good-1"),
                deployment(upstream.url, "small", "text-embedding-3-small", id_="small-1"),
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {"store": {"backend": "memory"}, "plugins": []},
        }
        with counting(config, tmp_path_factory.mktemp("calls") / "proxy") as running:
            yield running


@pytest.mark.parametrize("name", REQUESTS)
def test_the_host_without_a_plugin_does_little_for_a_request(proxy: ProxyServer, name: str) -> None:
    path, body = REQUESTS[name]
    assert 100 < per_request(proxy, path, body) <= MOST[name]
