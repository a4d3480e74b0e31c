"""LiteLLM's cost map read into prices."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from pointsman.types import Deployment, Price, Usage

# The first test that needs LiteLLM loads it; it must not fetch its prices from the network.


@pytest.fixture
def prices() -> Any:
    return pytest.importorskip("pointsman.litellm.prices")


def test_prices_above_a_threshold_and_of_other_kinds_of_tokens_are_read(
    prices: Any, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(prices.litellm, "get_model_info", lambda *_: info)
    price = prices.CostMap().get(Deployment(id="d", group="g", provider="openai", model="m"))
    assert (price.input_usd, price.output_usd) == (Decimal("0.000001"), Decimal("0.000004"))
    assert (price.cache_write_usd, price.cache_read_usd) == (Decimal("0.00000125"), None)
    assert (price.audio_input_usd, price.reasoning_usd) == (Decimal("0.00003"), None)
    assert [(least, tier.input_usd, tier.output_usd, tier.cache_write_usd) for least, tier in price.above] == [
        (1000, Decimal("0.0000015"), Decimal("0.000004"), Decimal("0.00000125")),
        (200_000, Decimal("0.000002"), Decimal("0.000008"), Decimal("0.00000125")),
    ]
    assert price.at(200_001).audio_input_usd == Decimal("0.00003")


def test_a_model_that_is_known_by_name_only_has_no_price(prices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM enters the models of its configuration into the map, without prices, and then reports that they cost 0."""
    entries = {"named": {"max_tokens": 8}, "free": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}}
    monkeypatch.setattr(prices.litellm, "model_cost", entries)
    info = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    monkeypatch.setattr(prices.litellm, "get_model_info", lambda key, _: {"key": key, **info})
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    named, free = (Deployment(id="d", group="g", provider="openai", model=model) for model in entries)
    assert prices.CostMap().get(named) == Price()
    assert prices.CostMap().cost_usd_micros(named, usage) is None
    assert (prices.CostMap().get(free).input_usd, prices.CostMap().get(free).output_usd) == (0, 0)
    assert prices.CostMap().cost_usd_micros(free, usage) == 0


@pytest.mark.parametrize(
    ("base", "provider", "like"),
    [("gpt-4o-mini", "openai", "gpt-4o-mini"), ("azure/gpt-4o", "azure", "gpt-4o"), ("unknown-model", "openai", None)],
)
def test_a_deployment_costs_what_its_base_model_costs(prices: Any, base: str, provider: str, like: str | None) -> None:
    """The name of an Azure deployment is the operator's; ``model_info.base_model`` names the model."""
    cost_map = prices.CostMap()
    one = Deployment(id="d", group="g", provider=provider, model="our-name", info={"base_model": base})
    usage = Usage(prompt_tokens=1000, completion_tokens=100)
    if like is None:
        assert (cost_map.get(one), cost_map.cost_usd_micros(one, usage)) == (Price(), None)
        return
    other = Deployment(id="o", group="g", provider=provider, model=like)
    assert cost_map.get(one) == cost_map.get(other) != Price()
    assert cost_map.cost_usd_micros(one, usage) == cost_map.cost_usd_micros(other, usage) > 0


@pytest.mark.parametrize(
    ("provider", "api", "model"),
    [
        ("openai", "text-completion-openai", "gpt-3.5-turbo-instruct"),
        ("azure", "azure_text", "gpt-35-turbo-instruct"),
        ("cohere", "cohere_chat", "command-r-08-2024"),
    ],
)
def test_a_model_of_another_api_of_a_provider_has_its_price(prices: Any, provider: str, api: str, model: str) -> None:
    """The map has it under the name of that API, and a deployment may be of the provider."""
    cost_map = prices.CostMap()
    one, other = (Deployment(id=name, group="g", provider=name, model=model) for name in (provider, api))
    usage = Usage(prompt_tokens=1000, completion_tokens=100)
    assert cost_map.cost_usd_micros(one, usage) == cost_map.cost_usd_micros(other, usage) > 0


ROUTERS = [
    ("azure_ai", "model_router/mine"),
    ("azure_ai", "model-router"),
    ("azure", "model-router"),
    ("azure", "my-Model-Router"),
]


@pytest.mark.parametrize(("provider", "model"), ROUTERS)
def test_an_answer_of_a_model_router_costs_what_its_model_does_and_the_fee(
    prices: Any, provider: str, model: str
) -> None:
    """Of a model that the map does not know, the fee alone is not the price."""
    cost_map = prices.CostMap()
    deployment = Deployment(id="router", group="g", provider=provider, model=model)
    usage = Usage(
        prompt_tokens=1_000_000, cached_tokens=200_000, completion_tokens=100_000, model="gpt-5-mini-2025-08-07"
    )
    alone = cost_map.cost_usd_micros(
        replace(deployment, model="gpt-5-mini", provider="azure"), replace(usage, model=None)
    )
    assert cost_map.cost_usd_micros(deployment, usage) == alone + 140_000
    assert cost_map.cost_usd_micros(deployment, replace(usage, is_part=True)) == alone + 140_000
    for unknown in ("a-new-model", model, None):
        assert cost_map.cost_usd_micros(deployment, replace(usage, model=unknown)) is None
    # Before there is an answer, the fee is all that is known.
    assert cost_map.get(deployment).input_usd == Decimal("1.4E-7")


@pytest.mark.parametrize("provider", ["openai", "azure_ai"])
def test_only_azures_model_routers_have_its_fee(prices: Any, provider: str) -> None:
    model = "gpt-5-mini" if provider == "azure_ai" else "model-router"
    deployment = Deployment(id="router", group="g", provider=provider, model=model)
    assert prices.CostMap().get(deployment, Usage(model="gpt-5-mini")).input_usd in {None, Decimal("2.5E-7")}


@pytest.mark.parametrize("unset", [(), ("off_peak_pricing", "tiered_pricing")])
def test_prices_are_made_again_only_when_the_map_has_changed(
    prices: Any, monkeypatch: pytest.MonkeyPatch, unset: tuple[str, ...]
) -> None:
    """They are looked up again after a while; what was changed meanwhile counts, also deep inside an entry.

    LiteLLM's router writes fields without a value into the entries of the models that it serves.
    """
    searches = {"search_context_size_medium": 0.01}
    entry = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "search_context_cost_per_query": searches}
    entry |= dict.fromkeys(unset)
    monkeypatch.setattr(prices.litellm, "model_cost", {"m": entry})
    monkeypatch.setattr(prices.litellm, "get_model_info", lambda key, _: {"key": key, **entry})
    now = [0.0]
    cost_map = prices.CostMap(lambda: now[0])
    one = Deployment(id="d", group="g", provider="openai", model="m")

    def later() -> Price:
        now[0] += 3600.0
        price: Price = cost_map.get(one)
        return price

    first = later()
    assert later() is first
    searches["search_context_size_medium"] = 0.02
    assert (first.search_medium_usd, later().search_medium_usd) == (Decimal("0.01"), Decimal("0.02"))
    entry["input_cost_per_token"] = 3e-06
    assert later().input_usd == Decimal("0.000003")


@pytest.mark.parametrize(
    ("model", "tier", "usd"),
    [
        ("gpt-4o-mini", None, "0.00000015"),
        ("gpt-4o-mini", "default", "0.00000015"),
        ("gpt-4o-mini", "priority", "0.00000025"),
        ("gpt-4o-mini", "flex", None),
        ("gpt-4o-mini", "scale", None),
        ("claude-sonnet-4-5-20250929", "standard", "0.000003"),
        ("claude-sonnet-4-5-20250929", "priority", None),
        ("claude-sonnet-4-5-20250929", "fast", None),
    ],
)
def test_a_service_tier_without_a_price_does_not_cost_what_is_usual(
    prices: Any, model: str, tier: str | None, usd: str | None
) -> None:
    provider = "anthropic" if model.startswith("claude") else "openai"
    cost_map = prices.CostMap()
    deployment = Deployment(id="d", group="g", provider=provider, model=model)
    price = cost_map.get(deployment).at(1, tier)
    assert price.input_usd == (None if usd is None else Decimal(usd))
    assert (price.output_usd is None, price.search_medium_usd) == (
        usd is None,
        cost_map.get(deployment).search_medium_usd,
    )
    known = cost_map.cost_usd_micros(deployment, Usage(prompt_tokens=10**6, completion_tokens=1, service_tier=tier))
    assert (known is None) == (usd is None)


@pytest.mark.parametrize("base", [None, "claude-sonnet-4-5"])
@pytest.mark.parametrize(
    ("named", "like"),
    [
        ("claude-opus-4-5-20251101", "claude-opus-4-5-20251101"),
        ("claude-sonnet-4-5-20290101", "claude-sonnet-4-5-20250929"),
        (None, "claude-sonnet-4-5-20250929"),
        ("claude-nobody-knows", None),
        ("gpt-4o-mini", None),
    ],
)
def test_a_part_of_an_answer_costs_what_the_model_that_it_names_does(
    prices: Any, base: str | None, named: str | None, like: str | None
) -> None:
    """Where the map does not know that model, its price is unknown; a whole answer by it is the deployment's."""
    info = {} if base is None else {"base_model": base}
    model = "claude-sonnet-4-5-20250929"
    deployment = Deployment(id="d", group="g", provider="anthropic", model=model, info=info)
    cost_map = prices.CostMap()
    right = Price() if like is None else cost_map.get(Deployment(id="x", group="g", provider="anthropic", model=like))
    assert cost_map.get(deployment, Usage(model=named, is_part=True)) == right
    if like is None:
        assert cost_map.get(deployment, Usage(model=named)).input_usd is not None


@pytest.mark.parametrize(
    ("provider", "model", "micros"),
    [("openai", "gpt-4.1", 60_000), ("azure", "gpt-4.1", 66_000), ("anthropic", "claude-opus-4-5-20251101", None)],
)
def test_a_sandbox_costs_what_the_map_says_of_its_provider(
    prices: Any, provider: str, model: str, micros: int | None
) -> None:
    deployment = Deployment(id="d", group="g", provider=provider, model=model)
    cost_map = prices.CostMap()
    assert cost_map.get(deployment).input_usd is not None
    assert cost_map.cost_usd_micros(deployment, Usage(code_sessions=2)) == micros
