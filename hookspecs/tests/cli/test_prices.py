"""Which models have no price, as ``check`` sees it from the configuration and LiteLLM's cost map."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.cli.prices import unpriced_models


@pytest.mark.parametrize(
    ("params", "info", "priced"),
    [
        ({"model": "openai/gpt-4o-mini"}, {}, True),
        ({"model": "openai/own"}, {}, False),
        ({"model": "openai/own"}, {"cost_center": "4711"}, False),
        ({"model": "openai/own"}, {"base_model": "gpt-4o-mini"}, True),
        ({"model": "openai/own", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}, {}, True),
        ({"model": "openai/own", "input_cost_per_token": 1e-6}, {"output_cost_per_token": 0}, True),
        ({"model": "openai/own", "input_cost_per_token": 1e-6}, {}, False),
        ({"model": "openai/own"}, {"output_cost_per_token": 1e-6}, False),
        ({"model": "openai/own", "input_cost_per_token": 1e-6}, {"output_cost_per_token": None}, False),
        ({"model": "openai/own", "input_cost_per_token": 1e-6}, {"mode": "embedding"}, True),
        ({"model": "openai/own", "input_cost_per_second": 1e-4}, {}, True),
        ({"model": "openai/*"}, {}, True),
        ({"model": "gpt-4o-mini"}, {}, True),
        ({"model": "openrouter/openai/gpt-4o-mini"}, {}, False),
        ({"model": "hosted_vllm/gpt-4o-mini"}, {}, False),
        ({"model": "gpt-4o-mini", "custom_llm_provider": "openai"}, {}, True),
        ({"model": "bedrock/amazon.nova-lite-v1:0"}, {}, True),
        ({"model": "vertex_ai/gemini-2.5-flash"}, {}, True),
        ({"model": "mistral/mistral-embed"}, {}, True),
        ({"model": "bedrock/twelvelabs.pegasus-1-2-v1:0"}, {}, False),
    ],
)
def test_a_price_is_known_or_missing(params: dict[str, Any], info: dict[str, Any], priced: bool) -> None:
    document = {"model_list": [{"model_name": "group", "litellm_params": params, "model_info": info}]}
    assert [model.name for model in unpriced_models(document)] == ([] if priced else ["group"])
