from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Endpoint
from pointsman_shadow import eligibility
from pointsman_shadow.eligibility import Sampler

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
        (Endpoint.MESSAGES, {"messages": [], "container": "container_1"}, "state"),
        (Endpoint.MESSAGES, {"messages": [], "container": None}, None),
        (Endpoint.CHAT, {"tools": "garbage"}, None),
        (Endpoint.CHAT, {"tools": ["garbage"]}, None),
    ],
)
def test_what_must_not_be_sent_twice(endpoint, body, why):
    assert eligibility.obstacle(endpoint, body, server_tools=False) == why
    assert eligibility.obstacle(endpoint, body, server_tools=True) == (None if why == "server_tools" else why)


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
    assert eligibility.mirrored(Endpoint.CHAT, body) == {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.2,
        "response_format": {"type": "json_object"},
    }


#: What a client may send in addition to what shapes the answer.
NOT_SENT = {
    **dict.fromkeys(["model", "stream", "user", "safety_identifier", "metadata", "litellm_metadata", "tags"], "x"),
    **dict.fromkeys(["api_key", "api_base", "base_url", "api_version", "organization", "custom_llm_provider"], "x"),
    **dict.fromkeys(["aws_access_key_id", "aws_secret_access_key", "aws_bedrock_runtime_endpoint"], "x"),
    **dict.fromkeys(["azure_ad_token", "azure_username", "vertex_credentials", "vertex_project", "region_name"], "x"),
    **dict.fromkeys(["extra_body", "extra_headers", "default_headers", "headers", "extra_query", "client"], "x"),
    **dict.fromkeys(["model_info", "model_list", "deployment_id", "input_cost_per_token", "secret_fields"], "x"),
    **dict.fromkeys(["proxy_server_request", "user_config", "fallbacks", "guardrails", "mock_response"], "x"),
    "a_parameter_of_tomorrow": 1,
}
SHAPING = {
    Endpoint.CHAT: {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 7,
        "stop": ["."],
        "n": 2,
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "logit_bias": {"1": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "functions": [],
        "function_call": "auto",
        "reasoning_effort": "low",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "verbosity": "low",
        "modalities": ["text"],
        "audio": {"voice": "a"},
        "prediction": {"type": "content", "content": "x"},
        "web_search_options": {},
    },
    Endpoint.MESSAGES: {
        "messages": [{"role": "user", "content": "hi"}],
        "system": "be brief",
        "max_tokens": 5,
        "stop_sequences": ["."],
        "temperature": 0.1,
        "top_k": 5,
        "top_p": 0.9,
        "thinking": {"type": "adaptive"},
        "tools": [{"name": "f"}],
        "tool_choice": {"type": "auto"},
        "output_config": {"effort": "low"},
        "output_format": {"type": "json_schema"},
        "context_management": {"edits": []},
        "cache_control": {"type": "ephemeral"},
        "mcp_servers": [],
    },
    Endpoint.RESPONSES: {
        "input": "hi",
        "instructions": "be brief",
        "max_output_tokens": 5,
        "max_tool_calls": 1,
        "temperature": 0.1,
        "top_p": 0.9,
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "context_management": [],
    },
}


@pytest.mark.parametrize("endpoint", SHAPING)
def test_no_credential_and_no_switch_reaches_a_challenger(endpoint):
    """Nor anything else that is not known to shape the answer; all that is known does."""
    stored = {"store": False} if endpoint is Endpoint.RESPONSES else {}
    assert (
        eligibility.mirrored(endpoint, {**NOT_SENT, **SHAPING[endpoint], "store": True}) == SHAPING[endpoint] | stored
    )


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.MESSAGES, {"mcp_servers": [{"url": "x", "authorization_token": "t"}]}),
        (Endpoint.RESPONSES, {"tools": [{"type": "mcp", "server_url": "x", "headers": {"authorization": "t"}}]}),
        (Endpoint.RESPONSES, {"tools": [{"type": "mcp", "server_url": "x", "authorization": "t"}]}),
    ],
)
def test_tools_that_run_with_the_clients_credentials_are_never_run_twice(endpoint, body):
    assert eligibility.obstacle(endpoint, body, server_tools=True) == "credentials"
    assert eligibility.obstacle(endpoint, body, server_tools=False) == "server_tools"


def test_a_mirrored_response_is_not_stored_at_the_provider():
    assert eligibility.mirrored(Endpoint.RESPONSES, {"input": "x", "store": True}) == {"input": "x", "store": False}


def test_the_mirror_has_a_copy_of_its_own():
    """What the gateway does to one request does not reach the other."""
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tools": [{"name": "f"}]}
    before = copy.deepcopy(body)
    made = eligibility.mirrored(Endpoint.MESSAGES, body)
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
    assert eligibility.prompt_text(body, 1000) == text


def test_of_a_long_request_the_end_is_shown():
    assert eligibility.prompt_text({"input": "a" * 100 + "end"}, 5) == "aaend"


@given(st.dictionaries(KEYS, ANYTHING, max_size=5))
def test_any_body_can_be_read(body):
    for endpoint in (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES):
        assert eligibility.obstacle(endpoint, body, server_tools=False) in {None, "background", "state", "server_tools"}
        eligibility.mirrored(endpoint, body)
    assert eligibility.prompt_chars(body) >= 0
    assert len(eligibility.prompt_text(body, 50)) <= 50
    assert eligibility.most_tokens(body, 5) > 0


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 9),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": True}, 9),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": -1}, 9),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"n": 3}, 27),
        ({"max_tokens": 5, "n": 0}, 5),
        ({"max_tokens": 10**400}, 10**12),
        ({"max_tokens": 10**400, "n": 10**400}, 10**12),
    ],
)
def test_the_most_an_answer_may_have(body, tokens):
    assert eligibility.most_tokens(body, 9) == tokens


IDS = [f"req-{number}" for number in range(20_000)]


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_the_share_is_the_rate(rate):
    """Within four standard deviations of a binomial count."""
    chosen = sum(map(Sampler.of("m", rate).chooses, IDS))
    assert abs(chosen - rate * len(IDS)) < 4 * (rate * (1 - rate) * len(IDS)) ** 0.5


def test_nothing_and_everything():
    assert not any(map(Sampler.of("m", 0.0).chooses, IDS))
    assert all(map(Sampler.of("m", 1.0).chooses, IDS))


def test_a_higher_rate_keeps_what_a_lower_one_has_chosen():
    low, high = Sampler.of("m", 0.1), Sampler.of("m", 0.4)
    assert all(high.chooses(unit) for unit in IDS if low.chooses(unit))


def test_salts_choose_independently():
    """Two mirrors at 30 % share 9 % of the requests, not 30 %."""
    one, other = Sampler.of("one", 0.3), Sampler.of("other", 0.3)
    both = sum(one.chooses(unit) and other.chooses(unit) for unit in IDS)
    assert abs(both - 0.09 * len(IDS)) < 4 * (0.09 * 0.91 * len(IDS)) ** 0.5


@given(st.text(max_size=200), st.text(max_size=200), st.floats(0, 1))
def test_any_text_gets_the_same_answer_twice(salt, unit, rate):
    assert Sampler.of(salt, rate).chooses(unit) == Sampler.of(salt, rate).chooses(unit)
