"""Which API a request speaks, whether a model works for it, and where its path names a model."""

from __future__ import annotations

import pytest

from pointsman.litellm import endpoints
from pointsman.types import Endpoint

#: Call types of LiteLLM that belong to no kind of API of ours.
UNKNOWN = (
    "mcp",
    "message",
    "skill",
    "decisions",
    "systemone",
    "extraction",
    "sandbox",
    "run_code",
    "code_interpreter",
    "cancel_fine",
)


@pytest.fixture
def call_types() -> list[str]:
    """Return LiteLLM's own list."""
    return [call.value for call in pytest.importorskip("litellm.types.utils").CallTypes]


def test_every_call_type_of_litellm_has_an_endpoint(call_types):
    """A new one of a later version shows up here; until then it is ``other``, which the guard keeps closed."""
    unknown = [name for name in call_types if endpoints.endpoint(name) is Endpoint.OTHER]
    assert [name for name in unknown if not any(word in name for word in UNKNOWN)] == []


@pytest.mark.parametrize(
    ("call_type", "method", "expected"),
    [
        ("acompletion", "POST", True),
        ("aimage_edit", "POST", True),
        ("avideo_generation", "POST", True),
        ("acreate_batch", "POST", True),
        ("aget_responses", "GET", False),
        ("adelete_responses", "DELETE", False),
        ("acancel_responses", "POST", False),
        ("alist_batches", "GET", False),
        ("acancel_batch", "POST", False),
        ("acreate_file", "POST", False),
        ("afile_content", "GET", False),
        ("avideo_content", "GET", False),
        ("pass_through_endpoint", "GET", True),
        ("not_known_yet", "GET", True),
        ("not_known_yet", "POST", True),
    ],
)
def test_reading_and_cancelling_do_not_generate(call_type, method, expected):
    """What is not understood generates."""
    assert endpoints.generates(call_type, method) is expected


@pytest.mark.parametrize(
    ("path", "model", "provider"),
    [
        ("/anthropic/v1/messages", None, "anthropic"),
        ("/gemini/v1beta/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", "gemini"),
        ("/vertex-ai/v1/projects/p/locations/l/publishers/google/models/g-1:predict", "g-1", "vertex_ai"),
        ("/bedrock/model/anthropic.claude-v2%3A1/invoke", "anthropic.claude-v2:1", "bedrock"),
        ("/azure/openai/deployments/d-1/chat/completions", "d-1", "azure"),
        ("/openai_passthrough/v1/chat/completions", None, "openai"),
        ("/gemini/v1beta/models/a/models/b:generateContent", "a,b", "gemini"),
        ("/gemini/v1beta/models/a/models/a:generateContent", "a", "gemini"),
        ("/mine", None, "mine"),
        ("/" + "x" * 5_000, None, "x" * 200),
    ],
)
def test_a_pass_through_path_names_its_model_and_provider(path, model, provider):
    assert (endpoints.path_model(path), endpoints.path_provider(path)) == (model, provider)


@pytest.mark.parametrize(
    ("path", "named", "asked"),
    [
        ("/openai/v1/chat/completions", "b", "b"),
        ("/openai/v1/chat/completions", ["b"], None),
        # OpenAI has no such paths: what is behind it may look into the body.
        ("/openai/deployments/a/chat/completions", "b", "a,b"),
        ("/openai/deployments/a/chat/completions", "a", "a"),
        ("/mine/models/a", "b", "a,b"),
        ("/anthropic/v1/models/a/messages/count_tokens", "b", "a,b"),
        ("/azure/openai/deployments/a/chat/completions", "b", "a"),
        ("/azure/openai/v1/chat/completions", "b", "b"),
        ("/gemini/v1beta/models/a:generateContent", "b", "a"),
        ("/v1beta/models/a:countTokens", "b", "a"),
        ("/vertex-ai/v1/projects/p/locations/l/publishers/google/models/a:predict", "b", "a"),
    ],
)
def test_a_model_in_the_path_hides_none_in_the_body(path, named, asked):
    assert endpoints.asked_model(path, named) == asked


@pytest.mark.parametrize(
    ("path", "dots"),
    [
        ("/v1/chat/completions", False),
        ("/v1/models/gpt-4.1", False),
        ("/v1/models/..gpt..", False),
        ("/v1/models/a%2Fb", False),
        ("/", False),
        ("", False),
        ("/v1/../v1", True),
        ("/v1/./v1", True),
        ("/v1/..", True),
        ("..", True),
        ("/a/%2e%2E/b", True),
        ("/a%2F..%2Fb", True),
        ("/a%252F..%252Fb", True),
        ("/a\\..\\b", True),
        ("/a%5c..%5cb", True),
        # what is encoded without end
        ("/%" + "25" * 30_000, True),
    ],
)
def test_a_path_that_leads_elsewhere_is_seen(path, dots):
    assert endpoints.has_dots(path) is dots


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
@pytest.mark.parametrize("path", ["/openai/v1/chat/completions", "/openai/v1/chat/completions/chatcmpl-1/messages"])
def test_what_a_provider_has_stored_is_not_read_through_pass_throughs(method, path):
    """It is what all tenants have stored; an operator's own pass-through may do so."""
    assert not endpoints.answers_with_usage(method, path, ["/mine"])
    assert endpoints.answers_with_usage(method, "/mine/messages", ["/mine"])


@pytest.mark.parametrize(
    ("path", "metered"),
    [
        ("/openai/v1/chat/completions", True),
        ("/gemini/v1beta/models/gemini-2.5-pro:streamGenerateContent", True),
        ("/bedrock/model/anthropic.claude-v2%3A1/invoke", True),
        ("/mine", True),
        ("/mine/any", True),
        ("/mines", False),
        ("/openai/v1/realtime/client_secrets", False),
        ("/openai/v1/realtime/calls", False),
        ("/openai/v1/threads/t/runs", False),
        ("/anthropic/v1/messages/batches", False),
        ("/gemini/v1beta/models/veo-3:predictLongRunning", False),
        ("/openai/v1/files", False),
        ("/openai/v1/not_known_yet", False),
    ],
)
def test_a_pass_through_is_metered_where_its_answer_says_what_was_used(path, metered):
    """What starts something that is charged later or elsewhere is not; configured ones are the operator's choice."""
    assert endpoints.answers_with_usage("POST", path, ["/mine"]) is metered


@pytest.mark.parametrize(
    "path",
    ["/v1/messages/count_tokens", "/v1/responses/input_tokens", "/utils/token_counter", "/v1beta/models/a:countTokens"],
)
def test_counters_are_known_by_their_paths(path):
    assert endpoints.counts_tokens(path)
    assert not endpoints.counts_tokens(path + "/more")


def test_only_a_batch_names_its_models_in_a_file(call_types):
    assert [name for name in call_types if endpoints.in_file(name)] == ["create_batch", "acreate_batch"]
