"""Answers that a provider has given and LiteLLM cannot read: their cost is unknown, which is never free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.provider import PICK_HEADER, RecordedExchange, ReplayIndex, UpstreamServer
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
MODELS = {"mini": "openai/gpt-4o-mini", "claude": "anthropic/claude-sonnet-4-5-20250929"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    RESPONSES: {"input": "hi"},
}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
LOST = {"id": "x", "object": "chat.completion", "model": "gpt-4o-mini", "choices": None}
COUNTED = {**LOST, "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}}


def event(data: object) -> str:
    return f"event: error\ndata: {json.dumps(data)}\n\n"


#: By name: model, path, whether it is streamed, the provider's status and answer, and how it is billed and metered.
CASES: dict[str, tuple[str, str, bool, int, str, str, str | None]] = {
    "chat-unreadable": ("mini", CHAT, False, 200, json.dumps(LOST), "unpriced", "missing"),
    "chat-unreadable-counted": ("mini", CHAT, False, 200, json.dumps(COUNTED), "billed", "exact"),
    "chat-no-json": ("mini", CHAT, False, 200, "{", "unpriced", "missing"),
    "chat-error-as-answer": ("mini", CHAT, False, 200, json.dumps(OVERLOADED), "free", None),
    "chat-error": ("mini", CHAT, False, 500, json.dumps(LOST), "free", None),
    "chat-stream-unreadable": ("mini", CHAT, True, 200, "data: {\n\n", "billed", "estimated"),
    "chat-stream-error": ("mini", CHAT, True, 200, event(OVERLOADED), "free", None),
    "claude-unreadable": ("claude", CHAT, False, 200, json.dumps(LOST), "unpriced", "missing"),
    "claude-stream-error": ("claude", CHAT, True, 200, event(OVERLOADED), "free", None),
    "messages-stream-error": ("claude", MESSAGES, True, 200, event(OVERLOADED), "free", None),
    "responses-unreadable": ("mini", RESPONSES, False, 200, json.dumps(LOST), "unpriced", "missing"),
}


def recorded(name: str) -> RecordedExchange:
    _, _, stream, status, body, _, _ = CASES[name]
    headers = {"content-type": "text/event-stream" if stream else "application/json"}
    return RecordedExchange(id=name, path="/", request={"stream": stream}, status=status, headers=headers, body=body)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with UpstreamServer(replay=ReplayIndex([*map(recorded, CASES)])) as upstream:
        config = {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {
                        "model": model,
                        "api_base": upstream.url + ("" if name == "claude" else "/v1"),
                        "api_key": "any",
                    },
                }
                for name, model in MODELS.items()
            ],
            "general_settings": {"forward_client_headers_to_llm_api": True},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {}}]},
        }
        with ProxyServer(config, tmp_path_factory.mktemp("unread")) as proxy, proxy.client(timeout=60) as client:
            yield client


@pytest.mark.parametrize("name", CASES)
def test_an_answer_that_cannot_be_read_is_not_free(client: httpx.Client, name: str) -> None:
    """Only what the provider itself calls an error is, by its status or within its answer, plain and streamed alike."""
    model, path, stream, _, _, bill, metering = CASES[name]
    answer = client.post(path, json={"model": model, "stream": stream, **BODIES[path]}, headers={PICK_HEADER: name})
    assert answer.is_error or stream
    at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
    found = eventually(lambda: client.get(at), lambda one: one.status_code == 200).json()
    attempts = [one["metering"] for one in found["events"] if one["type"] == "attempt"]
    assert (found["bill"], attempts) == (bill, [] if metering is None else [metering])


def test_the_books_are_not_in_order_while_such_an_answer_is_unpriced(client: httpx.Client) -> None:
    lost = client.post(CHAT, json={"model": "mini", **BODIES[CHAT]}, headers={PICK_HEADER: "chat-unreadable"})
    assert lost.is_error

    def report() -> dict[str, Any]:
        return dict(client.get("/pointsman/billing/reconcile").json())

    seen = eventually(report, lambda found: found["requests"]["unpriced"] and not found["requests"]["pending"])
    assert not seen["in_order"]
    assert any(row["finding"] == "unpriced" for row in seen["models_to_look_at"])
