"""A client that leaves while the provider never answers holds no slot, and its request is settled."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from rig import deployment

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

BODY = {"messages": [{"role": "user", "content": "Hello"}]}
#: Longer than it takes to notice that a client has left.
HEDGE_AFTER_S = 3.0


def test_a_client_that_has_left_is_neither_hedged_nor_mirrored(tmp_path: Path) -> None:
    """Its attempt goes on for ``left_timeout_s``, since what it costs may still become known. Alone."""
    with UpstreamServer({"hangs": Behaviour(fault="hang"), "too": Behaviour(fault="hang")}) as provider:
        config = {
            "model_list": [
                deployment(provider.url, "silent", "hangs", id_="silent-1"),
                deployment(provider.url, "silent", "hangs", id_="silent-2"),
                deployment(provider.url, "other", "too", id_="other-1"),
            ],
            "router_settings": {"num_retries": 0},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {
                "store": {"backend": "disk", "path": str(tmp_path / "store")},
                "left_timeout_s": 2 * HEDGE_AFTER_S,
                "unpriced": "allow",
                "plugins": [
                    {"racing": {"groups": {"silent": {"delay": {"fixed_plain_ms": 1000 * HEDGE_AFTER_S}}}}},
                    {
                        "shadow": {
                            "max_lag_ms": 60_000,
                            "mirrors": [
                                {
                                    "name": "next",
                                    "model": "silent",
                                    "challenger": "other",
                                    "sample_rate": 1.0,
                                    "max_concurrent": 1,
                                }
                            ],
                        }
                    },
                    {"billing": {}},
                ],
            },
        }
        with ProxyServer(config, tmp_path) as proxy, proxy.client(timeout=60.0) as client:
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    client.post(
                        "/v1/chat/completions", json={**BODY, "model": "silent"}, timeout=httpx.Timeout(60, read=2.0)
                    )
            give_up_at = time.monotonic() + 60.0
            while (status := client.get("/pointsman/status").json())["journal"]["settled"] < 2:
                assert time.monotonic() < give_up_at, status
                time.sleep(0.2)
            asked = [request.model for request in provider.requests]
            # The second request's mirror waited for the slot of the first's.
            assert asked.count("hangs") == 2, asked
            assert asked.count("too") <= 1, asked


def test_the_slot_of_a_client_that_has_left_is_free_again(tmp_path: Path) -> None:
    with UpstreamServer({"hangs": Behaviour(fault="hang")}) as provider:
        config = {
            "model_list": [
                deployment(provider.url, "silent", "hangs", id_="silent-1"),
                deployment(provider.url, "good", "gpt-4o-mini", id_="good-1"),
            ],
            "router_settings": {"num_retries": 0},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "pointsman": {
                "store": {"backend": "disk", "path": str(tmp_path / "store")},
                "left_timeout_s": 0,
                "unpriced": "allow",
                "plugins": [
                    {
                        "quota": {
                            "tenants": [{"id": "all", "limits": {"max_concurrent_requests": 1}}],
                            "default_tenant": "all",
                        }
                    }
                ],
            },
        }
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        with ProxyServer(config, tmp_path) as proxy, proxy.client(timeout=60.0) as client:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json={**body, "model": "silent"}, timeout=5.0)
            give_up_at = time.monotonic() + 60.0
            while (answer := client.post("/v1/chat/completions", json={**body, "model": "good"})).status_code == 429:
                assert time.monotonic() < give_up_at, "the slot is still taken"
                time.sleep(0.5)
            assert answer.status_code == 200, answer.text
            while (status := client.get("/pointsman/status").json())["journal"]["settled"] < 2:
                assert time.monotonic() < give_up_at, status
                time.sleep(0.2)
            assert status["requests_open"] == 0
