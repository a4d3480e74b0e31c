"""LiteLLM's cost map read into prices."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from pointsman.types import Deployment, Price, Usage

# LiteLLM is loaded once by whoever needs it; it must not fetch its prices from the network.


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return pytest.importorskip("pointsman.litellm.catalog")


def test_prices_above_a_threshold_and_of_other_kinds_of_tokens_are_read(
    catalog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys for service tiers, batches and other lifetimes of the cache are none of them."""
    info = {
        "input_cost_per_token": 1e-06,
        "input_cost_per_token_priority": 9e-06,
        "input_cost_per_token_above_200k_tokens": 2e-06,
        "input_cost_per_token_above_200k_tokens_priority": 9e-06,
        "input_cost_per_token_above_1000_tokens": 1.5e-06,
        "output_cost_per_token": 4e-06,
        "output_cost_per_token_above_200k_tokens": 8e-06,
        "cache_creation_input_token_cost": 1.25e-06,
        "cache_creation_input_token_cost_above_1hr": 9e-06,
        "input_cost_per_audio_token": 3e-05,
        "output_cost_per_reasoning_token": None,
    }
    monkeypatch.setattr(catalog.litellm, "get_model_info", lambda *_: info)
    price = catalog.CostMap().get(Deployment(id="d", group="g", provider="openai", model="m"))
    assert (price.input_usd, price.output_usd) == (Decimal("0.000001"), Decimal("0.000004"))
    assert (price.cache_write_usd, price.cache_read_usd) == (Decimal("0.00000125"), None)
    assert (price.audio_input_usd, price.reasoning_usd) == (Decimal("0.00003"), None)
    assert [(least, tier.input_usd, tier.output_usd, tier.cache_write_usd) for least, tier in price.above] == [
        (1000, Decimal("0.0000015"), Decimal("0.000004"), Decimal("0.00000125")),
        (200_000, Decimal("0.000002"), Decimal("0.000008"), Decimal("0.00000125")),
    ]
    assert price.at(200_001).audio_input_usd == Decimal("0.00003")


def test_a_model_that_is_known_by_name_only_has_no_price(catalog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM enters the models of its configuration into the map, without prices, and then says that they cost 0."""
    entries = {"named": {"max_tokens": 8}, "free": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}}
    monkeypatch.setattr(catalog.litellm, "model_cost", entries)
    info = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    monkeypatch.setattr(catalog.litellm, "get_model_info", lambda key, _: {"key": key, **info})
    monkeypatch.setattr(catalog, "cost_per_token", lambda **_: (0.0, 0.0))
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    named, free = (Deployment(id="d", group="g", provider="openai", model=model) for model in entries)
    assert catalog.CostMap().get(named) == Price()
    assert catalog.CostMap().cost_usd_micros(named, usage) is None
    assert catalog.CostMap().get(free) == Price(input_usd=Decimal(0), output_usd=Decimal(0))
    assert catalog.CostMap().cost_usd_micros(free, usage) == 0


def test_an_answer_without_usage_is_told_from_one_of_zero_tokens(catalog: Any) -> None:
    values = catalog.values
    body = {"choices": [], "usage": None}
    zero = {**body, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    assert values.without_usage({"original_response": json.dumps(body)})
    assert values.without_usage({"original_response": {"data": []}})
    assert not values.without_usage({"original_response": json.dumps(zero)})
    for odd in (None, "", "{", "[]", 5, {"message": "another dialect"}):
        assert not values.without_usage({"original_response": odd})
    assert not values.without_usage({})


@pytest.mark.parametrize(
    ("base", "provider", "like"),
    [("gpt-4o-mini", "openai", "gpt-4o-mini"), ("azure/gpt-4o", "azure", "gpt-4o"), ("nobody-knows", "openai", None)],
)
def test_a_deployment_costs_what_its_base_model_costs(catalog: Any, base: str, provider: str, like: str | None) -> None:
    """The name of an Azure deployment is the operator's; ``model_info.base_model`` says what it is."""
    prices = catalog.CostMap()
    one = Deployment(id="d", group="g", provider=provider, model="our-name", info={"base_model": base})
    usage = Usage(prompt_tokens=1000, completion_tokens=100)
    if like is None:
        assert (prices.get(one), prices.cost_usd_micros(one, usage)) == (Price(), None)
        return
    other = Deployment(id="o", group="g", provider=provider, model=like)
    assert prices.get(one) == prices.get(other) != Price()
    assert prices.cost_usd_micros(one, usage) == prices.cost_usd_micros(other, usage) > 0
