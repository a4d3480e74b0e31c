"""What answers used on endpoints that do not count tokens, or in a provider's own words."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.litellm.usage_units import (
    answer_usage,
    gemini_usage,
    interaction_usage,
    logged_base_usd,
    logged_cost_usd,
    logged_counts,
    logged_usage,
    passed_usage,
)
from pointsman.types import Endpoint, Usage


@pytest.mark.parametrize(
    ("breakdown", "base"),
    [
        ({"margin_total_amount": 0.1, "discount_amount": 0.0}, "0.2"),
        ({"margin_total_amount": 0.0, "discount_amount": 0.1}, "0.4"),
        ({"margin_total_amount": 0.1, "discount_amount": 0.05, "guardrail_cost": 0.05}, "0.2"),
        ({"additional_costs": {"flat": 0.1}}, "0.2"),
        ({"margin_total_amount": 0.0, "discount_amount": 0.0, "original_cost": 0.3}, None),
        ({"margin_total_amount": None, "additional_costs": [1], "discount_amount": "x"}, None),
        ({"margin_total_amount": float("nan")}, None),
        ({}, None),
        (None, None),
    ],
)
def test_what_litellm_adds_itself_is_known(breakdown, base):
    found = logged_base_usd({"response_cost": 0.3, "cost_breakdown": breakdown})
    assert found == (None if base is None else Decimal(base))


TOKENS = {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}


@pytest.mark.parametrize(
    ("endpoint", "response", "body", "expected"),
    [
        (
            Endpoint.IMAGES,
            {"data": [{}, {}], "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}},
            {"size": "1024x1024", "quality": "hd"},
            Usage(images=2, image_size="1024x1024", image_quality="hd"),
        ),
        (Endpoint.IMAGES, {"data": []}, {}, None),
        (Endpoint.SPEECH, None, {"input": "four"}, Usage(characters=4)),
        (Endpoint.SPEECH, None, {"input": 4}, None),
        (Endpoint.TRANSCRIPTIONS, {"text": "", "duration": 1.5}, {}, Usage(audio_ms=1500)),
        (Endpoint.TRANSCRIPTIONS, {"text": "", "usage": {"type": "duration", "seconds": 3}}, {}, Usage(audio_ms=3000)),
        (Endpoint.TRANSCRIPTIONS, {"text": ""}, {}, None),
        (Endpoint.RERANK, {"meta": {"billed_units": {"search_units": 2}}}, {}, Usage(search_units=2)),
        (Endpoint.RERANK, {"meta": {"tokens": {"input_tokens": 7}}}, {}, Usage(prompt_tokens=7)),
        (Endpoint.RERANK, {"results": []}, {}, None),
        (Endpoint.OCR, {"usage_info": {"pages_processed": 3}}, {}, Usage(pages=3)),
        (Endpoint.OCR, {"pages": []}, {}, None),
        (Endpoint.VIDEOS, {"seconds": "8", "size": "720x1280"}, {}, Usage(video_ms=8000, video_resolution="720x1280")),
        (Endpoint.VIDEOS, {"id": "v"}, {}, None),
        (Endpoint.SEARCH, {}, {}, Usage(searches=1)),
        (Endpoint.CHAT, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {}, None),
    ],
)
def test_each_endpoint_is_read_in_its_own_units(endpoint, response, body, expected):
    """Unknown stays unknown: no unit is taken for zero."""
    found = answer_usage(endpoint, response, body)
    if endpoint is Endpoint.CHAT:
        assert found is not None
        assert (found.prompt_tokens, found.completion_tokens) == (1, 2)
    else:
        assert found == expected


def test_tokens_of_images_and_audio_are_told_from_text():
    drawn = answer_usage(
        Endpoint.IMAGES, {"data": [{}], "usage": {**TOKENS, "input_tokens_details": {"image_tokens": 4}}}, {}
    )
    assert drawn is not None
    assert (drawn.image_prompt_tokens, drawn.image_completion_tokens, drawn.images) == (4, 20, None)
    heard = answer_usage(
        Endpoint.TRANSCRIPTIONS, {"text": "", "usage": {**TOKENS, "input_token_details": {"audio_tokens": 9}}}, {}
    )
    assert heard is not None
    assert (heard.prompt_tokens, heard.audio_prompt_tokens, heard.audio_ms) == (10, 9, None)


def test_gemini_counts_thoughts_and_tools_apart():
    metadata = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 40,
        "thoughtsTokenCount": 5,
        "toolUsePromptTokenCount": 10,
        "cachedContentTokenCount": 30,
        "totalTokenCount": 155,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 40}],
    }
    assert gemini_usage(metadata) == Usage(
        prompt_tokens=110, completion_tokens=45, cached_tokens=30, reasoning_tokens=5, audio_prompt_tokens=40
    )
    assert gemini_usage({"promptTokenCount": 3, "totalTokenCount": 9}) == Usage(prompt_tokens=3, completion_tokens=6)
    assert gemini_usage({}) is None


@pytest.mark.parametrize(
    ("billed", "expected"),
    [
        ({"search_units": 2}, Usage(search_units=2)),
        ({"search_units": 2, "images": 3}, Usage(search_units=2, other_tools=3)),
        ({"classifications": 3}, Usage(other_tools=3)),
        ({"search_units": None, "images": None}, None),
        ({}, None),
    ],
)
def test_what_a_reranker_charges_and_has_no_price_is_not_free(billed, expected):
    assert answer_usage(Endpoint.RERANK, {"meta": {"billed_units": billed}}, {}) == expected


def test_interactions_count_like_gemini_under_other_names():
    usage = {"total_input_tokens": 10, "total_output_tokens": 20, "total_reasoning_tokens": 5, "total_tokens": 35}
    assert interaction_usage(usage) == Usage(prompt_tokens=10, completion_tokens=25, reasoning_tokens=5)
    assert interaction_usage({}) is None


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        ({"response_cost": 0.085}, Decimal("0.085")),
        ({"response_cost": 0.0}, Decimal("0.0")),
        ({"response_cost": 0.1 + 0.2}, Decimal("0.3")),
        ({"response_cost": 1.23456789e-13}, Decimal("1.23456789e-13")),
        ({"response_cost": None}, None),
        ({"response_cost": 0.0, "response_cost_failure_debug_info": {"error_str": "not mapped"}}, None),
        ({"response_cost": -1.0}, None),
        ({"response_cost": float("nan")}, None),
        ({}, None),
    ],
)
def test_a_logged_cost_counts_only_where_litellm_could_compute_it(logged, expected):
    assert logged_cost_usd(logged) == expected


def test_logged_usage_without_tokens_is_unknown():
    assert logged_usage({"metadata": {"usage_object": {"prompt_tokens": 3, "completion_tokens": 4}}}) is not None
    assert logged_usage({"metadata": {"usage_object": {}}}) is None
    assert logged_usage({"metadata": None}) is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}', 7),
        (
            'data: {"choices": []}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\ndata: [DONE]',
            2,
        ),
        ('data: {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 9}}', 9),
        ("not JSON, though it says usage", None),
        ('{"usage": {}}', None),
        ("", None),
    ],
)
def test_what_a_pass_through_answered_is_read(text, tokens):
    found = passed_usage({"response": text})
    assert (None if found is None else found.total_tokens) == tokens


NAMES = st.sampled_from(
    [
        "usage",
        "data",
        "meta",
        "billed_units",
        "search_units",
        "tokens",
        "input_tokens",
        "output_tokens",
        "usage_info",
        "pages_processed",
        "usageMetadata",
        "promptTokenCount",
        "totalTokenCount",
        "promptTokensDetails",
        "duration",
        "seconds",
        "total_input_tokens",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@given(
    endpoint=st.sampled_from(Endpoint), response=JSON, body=st.dictionaries(NAMES | st.just("input"), JSON, max_size=3)
)
def test_malformed_answers_give_no_error_and_no_negative_count(endpoint, response, body):
    found = answer_usage(endpoint, response, body)
    assert found is None or min(found.prompt_tokens, found.completion_tokens, found.images or 0, found.pages or 0) >= 0


@pytest.mark.parametrize(
    ("logged", "used", "expected"),
    [
        ({"status": "success"}, None, Usage()),
        ({"status": "success"}, Usage(prompt_tokens=3), Usage()),
        ({"status": "success", "response_cost": 0.1}, Usage(prompt_tokens=3), Usage(prompt_tokens=3)),
        ({"status": "failure"}, None, None),
        ({"prompt_tokens": 5, "completion_tokens": 2}, None, Usage(prompt_tokens=5, completion_tokens=2)),
        ({"prompt_tokens": None}, None, None),
    ],
)
def test_litellm_may_have_counted_nothing(logged, used, expected):
    assert logged_counts({"prompt_tokens": 0, "completion_tokens": 0, **logged}, used) == expected
