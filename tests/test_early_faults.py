"""A stream that fails before its first content: its attempt ends with the provider's error.

LiteLLM reads the beginning of a stream itself, to retry or fall back while the client has seen nothing; it reports such a
failure to no callback of the attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rig import Rig, deployment, only

from pointsman.testing.provider import Behaviour

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(400)]

#: Endpoint: its path and LiteLLM's provider.
ENDPOINTS = {
    "chat": ("/v1/chat/completions", "openai"),
    "messages": ("/v1/messages", "anthropic"),
    "messages-adapted": ("/v1/messages", "openai"),
    "responses": ("/v1/responses", "openai"),
}
FAULTS = {
    "break": Behaviour(fault="break"),
    "error_event": Behaviour(fault="error_event"),
    "drop": Behaviour(fault="drop"),
    "status": Behaviour(error_ratios={503: 1.0}),
}
#: LiteLLM makes errors of the server of connections that break; so do the providers' own errors.
KINDS = {
    "break": {"connection", "server"},
    "error_event": {"connection", "server"},
    "drop": {"connection", "server"},
    "status": {"server"},
}


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, f"{endpoint}-{name}", f"{endpoint}-{name}", id_=f"{endpoint}-{name}", provider=provider)
        for endpoint, (_, provider) in ENDPOINTS.items()
        for name in (*FAULTS, *(f"saved-{fault}" for fault in FAULTS), "spare")
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    fallbacks = [{f"{e}-saved-{fault}": [f"{e}-spare"]} for e in ENDPOINTS for fault in FAULTS]
    config = {"router_settings": {"num_retries": 0, "disable_cooldowns": True, "fallbacks": fallbacks}}
    with Rig(tmp_path_factory.mktemp("early"), model_list, config=config) as running:
        for endpoint in ENDPOINTS:
            for name, fault in FAULTS.items():
                running.upstream.behave(f"{endpoint}-{name}", fault)
                running.upstream.behave(f"{endpoint}-saved-{name}", fault)
        yield running


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("saved", [False, True], ids=["lost", "saved"])
@pytest.mark.parametrize("endpoint", list(ENDPOINTS))
def test_the_attempt_ends_with_the_providers_error(rig: Rig, endpoint: str, saved: bool, fault: str) -> None:
    path, _ = ENDPOINTS[endpoint]
    case = f"{endpoint}-{saved}-{fault}"
    body: dict[str, Any] = {"model": f"{endpoint}-saved-{fault}" if saved else f"{endpoint}-{fault}", "stream": True}
    if endpoint == "responses":
        body["input"] = "Say something."
    else:
        body |= {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 64}
    with rig.proxy.client(timeout=60) as client:
        answer = client.post(path, json=body, headers={"x-test-case": case})
    rows = rig.of_case(case)
    errors = [row for row in rows if row["hook"] == "on_error"]
    assert [row["outcome"] for row in errors] == ["error"], answer.text
    assert errors[0]["error"]["kind"] in KINDS[fault]
    assert [row["outcome"] for row in rows if row["hook"] == "post_response"] == ["ok"] * saved
    if saved:
        assert answer.status_code == 200
        assert only(rows, "settle")["settlement"]["outcome"] == "ok"
