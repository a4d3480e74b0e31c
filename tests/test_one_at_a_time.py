"""A client that sends one request after another is never refused for want of a slot, whatever it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rig import Rig, deployment
from units import DOORS, Door, model_list, sent

from pointsman.testing.proxy import ProxyServer
from pointsman_quota.tenants import hash_key

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

ASK = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 20}
FIRST = {
    "chat": Door("chat", "openai/gpt-4o-mini", "/v1/chat/completions", ASK, ()),
    "chat-stream": Door("chat", "openai/gpt-4o", "/v1/chat/completions", {**ASK, "stream": True}, ()),
    "messages": Door("messages", "anthropic/claude-haiku-4-5-20251001", "/v1/messages", ASK, ()),
    "messages-stream": Door(
        "messages", "anthropic/claude-sonnet-4-5-20250929", "/v1/messages", {**ASK, "stream": True}, ()
    ),
    "messages-on-openai": Door("messages", "openai/gpt-4.1", "/v1/messages", {**ASK, "stream": True}, ()),
    "responses": Door("responses", "openai/gpt-4.1-mini", "/v1/responses", {"input": "Say something."}, ()),
    "responses-stream": Door(
        "responses", "openai/gpt-4.1-nano", "/v1/responses", {"input": "Say something.", "stream": True}, ()
    ),
    "embeddings": Door("embeddings", "openai/text-embedding-3-small", "/v1/embeddings", {"input": "a"}, ()),
}
ALL = {**FIRST, **DOORS}
#: How often it asks: in turns where there are two gateways.
TIMES = 12


def models(upstream: str) -> list[dict[str, Any]]:
    first = []
    for name, door in FIRST.items():
        provider, _, model = door.model.partition("/")
        first.append(deployment(upstream, name, model, id_=f"{name}-1", provider=provider))
    return [*first, *model_list(upstream)]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProxyServer, ProxyServer]]:
    """Two gateways on one disk."""
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    tenants = [
        {
            "id": name,
            "keys": [{"name": "own", "hash": hash_key(f"sk-of-tenant-{name}", "0123456789abcdef")}],
            "limits": {"max_concurrent_requests": 1},
        }
        for name in ("one", "two")
    ]
    directory: Path = tmp_path_factory.mktemp("slots")
    with Rig(directory, models, plugins=[{"quota": {"tenants": tenants}}], config=config) as rig:
        (directory / "other").mkdir()
        with rig.new_proxy(directory / "other") as other:
            yield rig.proxy, other


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("tenant", ["one", "two"])
def test_who_asks_again_after_each_answer_is_never_refused(
    gateways: tuple[ProxyServer, ProxyServer], tenant: str, name: str
) -> None:
    """Tenant one on one gateway, tenant two on both in turns; with each answer read to its end."""
    door = ALL[name]
    asked = itertools.cycle(gateways if tenant == "two" else gateways[:1])
    with httpx.Client(timeout=60, headers={"authorization": f"Bearer sk-of-tenant-{tenant}"}) as client:
        answers = [
            client.post(f"{gateway.url}{door.path.format(model=name)}", **sent(door, name))
            for gateway in itertools.islice(asked, TIMES)
        ]
    assert [answer.status_code for answer in answers] == [200] * TIMES, answers[-1].text
