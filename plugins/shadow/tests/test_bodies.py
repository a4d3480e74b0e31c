from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Endpoint
from pointsman_shadow import bodies

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from(["messages", "input", "system", "tools", "role", "content", "text", "max_tokens", "prompt", "x"])


@pytest.mark.parametrize(
    ("endpoint", "body", "why"),
    [
        (Endpoint.CHAT, {"messages": []}, None),
        (Endpoint.CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, None),
        (Endpoint.CHAT, {"web_search_options": {}}, None),
        (Endpoint.CHAT, {"web_search_options": {"search_context_size": "low"}}, "server_tools"),
        (Endpoint.CHAT, {"tools": [{"type": "mcp", "server_url": "litellm_proxy"}]}, "server_tools"),
        (Endpoint.MESSAGES, {"tools": [{"name": "f", "input_schema": {}}]}, None),
        (Endpoint.MESSAGES, {"tools": [{"type": "custom", "name": "f"}]}, None),
        (Endpoint.MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server_tools"),
        (Endpoint.MESSAGES, {"mcp_servers": [{"url": "x"}]}, "server_tools"),
        (Endpoint.RESPONSES, {"input": "x", "background": True}, "background"),
        (Endpoint.RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, "state"),
        (Endpoint.RESPONSES, {"input": "x", "conversation": {"id": "c"}}, "state"),
        (Endpoint.RESPONSES, {"input": "x", "store": True}, None),
        (Endpoint.CHAT, {"tools": "garbage"}, None),
        (Endpoint.CHAT, {"tools": ["garbage"]}, None),
    ],
)
def test_what_must_not_be_sent_twice(endpoint, body, why):
    assert bodies.obstacle(endpoint, body, server_tools=False) == why
    assert bodies.obstacle(endpoint, body, server_tools=True) == (None if why == "server_tools" else why)


def test_the_mirror_gets_what_speaks_to_the_model_and_nothing_else():
    body = {
        "model": "chat",
        "stream": True,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.2,
        "response_format": {"type": "json_object"},
        "user": "end-user-7",
        "metadata": {"team": "x"},
        "litellm_metadata": {},
        "litellm_session_id": "s",
        "fallbacks": ["secret"],
        "num_retries": 9,
        "api_base": "http://evil.test",
        "api_key": "sk-client",
        "mock_response": "no",
        "tags": ["a"],
        "store": True,
        "stream_options": {"include_usage": True},
    }
    assert bodies.mirrored(Endpoint.CHAT, body) == {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.2,
        "response_format": {"type": "json_object"},
    }


def test_a_mirrored_response_is_not_stored_at_the_provider():
    assert bodies.mirrored(Endpoint.RESPONSES, {"input": "x", "store": True}) == {"input": "x", "store": False}


def test_the_mirror_has_a_copy_of_its_own():
    """What the gateway does to one request does not reach the other."""
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tools": [{"name": "f"}]}
    before = copy.deepcopy(body)
    made = bodies.mirrored(Endpoint.MESSAGES, body)
    made["messages"][0]["content"][0]["text"] = "changed"
    made["messages"].append("more")
    made["tools"].clear()
    assert body == before


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]},
            "system: be brief\nuser: hi",
        ),
        (
            {"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}]},
            "system: s\nuser: t",
        ),
        ({"instructions": "i", "input": "q"}, "system: i\nuser: q"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]}, "user: q"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "assistant: {}",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}, ""),
        ({"messages": 7}, ""),
    ],
)
def test_the_request_as_text(body, text):
    assert bodies.prompt_text(body, 1000) == text


def test_of_a_long_request_the_end_is_shown():
    assert bodies.prompt_text({"input": "a" * 100 + "end"}, 5) == "aaend"


@given(st.dictionaries(KEYS, ANYTHING, max_size=5))
def test_any_body_can_be_read(body):
    for endpoint in (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES):
        assert bodies.obstacle(endpoint, body, server_tools=False) in {None, "background", "state", "server_tools"}
        bodies.mirrored(endpoint, body)
    assert bodies.prompt_chars(body) >= 0
    assert len(bodies.prompt_text(body, 50)) <= 50
    assert bodies.most_tokens(body, 5) > 0


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 9),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": True}, 9),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": -1}, 9),
    ],
)
def test_the_most_an_answer_may_have(body, tokens):
    assert bodies.most_tokens(body, 9) == tokens
