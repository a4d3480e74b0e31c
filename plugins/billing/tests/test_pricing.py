"""Exact money: parts of a usage, margins, rounding."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Price, Usage
from pointsman_billing import pricing

units = st.decimals(min_value=0, max_value=1, places=12)
counts = st.integers(0, 10**10)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    cached_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
    audio_prompt_tokens=counts,
    audio_completion_tokens=counts,
)
maybe = st.none() | units
prices = st.builds(
    Price,
    input_usd=units,
    output_usd=units,
    cache_read_usd=maybe,
    cache_write_usd=maybe,
    audio_input_usd=maybe,
    audio_output_usd=maybe,
    reasoning_usd=maybe,
)


def test_each_part_of_a_usage_is_charged_once_at_its_own_price() -> None:
    usage = Usage(
        prompt_tokens=1000,
        cached_tokens=600,
        cache_write_tokens=100,
        audio_prompt_tokens=50,
        completion_tokens=500,
        reasoning_tokens=300,
        audio_completion_tokens=40,
    )
    price = Price(
        input_usd=Decimal("0.001"),
        cache_read_usd=Decimal("0.0001"),
        cache_write_usd=Decimal("0.00125"),
        audio_input_usd=Decimal("0.01"),
        output_usd=Decimal("0.002"),
        reasoning_usd=Decimal("0.003"),
        audio_output_usd=Decimal("0.02"),
    )
    expected = 250 * Decimal("0.001") + 600 * Decimal("0.0001") + 100 * Decimal("0.00125") + 50 * Decimal("0.01")
    expected += 160 * Decimal("0.002") + 300 * Decimal("0.003") + 40 * Decimal("0.02")
    assert pricing.cost_usd(usage, price) == expected


def test_parts_without_a_price_of_their_own_cost_what_the_whole_costs() -> None:
    price = Price(input_usd=Decimal("0.001"), output_usd=Decimal("0.002"))
    usage = Usage(prompt_tokens=10, cached_tokens=9, completion_tokens=5, reasoning_tokens=5)
    assert pricing.cost_usd(usage, price) == Decimal("0.02")


def test_a_price_that_is_needed_and_not_known_makes_the_cost_unknown() -> None:
    usage = Usage(prompt_tokens=10)
    assert pricing.cost_usd(usage, Price(input_usd=Decimal(0))) == 0
    assert pricing.cost_usd(usage, Price(output_usd=Decimal(1))) is None
    assert pricing.cost_usd(Usage(completion_tokens=1), Price(input_usd=Decimal(1))) is None


@given(usage=usages, price=prices)
def test_no_token_is_charged_twice_or_not_at_all(usage: Usage, price: Price) -> None:
    """At one price for everything the cost is that price times all tokens, however odd the parts are; exactly."""
    assert price.input_usd is not None
    one = Price(input_usd=price.input_usd, output_usd=price.input_usd)
    cost = pricing.cost_usd(usage, one)
    assert cost is not None
    assert Fraction(cost) == usage.total_tokens * Fraction(price.input_usd)
    known = [
        unit
        for unit in (
            price.input_usd,
            price.output_usd,
            price.cache_read_usd,
            price.cache_write_usd,
            price.audio_input_usd,
            price.audio_output_usd,
            price.reasoning_usd,
        )
        if unit is not None
    ]
    cost = pricing.cost_usd(usage, price)
    assert cost is not None
    assert min(known) * usage.total_tokens <= cost <= max(known) * usage.total_tokens


@pytest.mark.parametrize(
    ("usd", "micros"), [("0.0000005", 0), ("0.0000015", 2), ("0.00000051", 1), ("123456.7890125", 123456789012)]
)
def test_micro_dollars_are_rounded_half_to_even(usd: str, micros: int) -> None:
    assert pricing.micros(Decimal(usd)) == micros


@given(st.decimals(min_value=-1, max_value=1000, places=6), st.integers(0, 10**15))
def test_a_margin_is_exact(margin: Decimal, cost_micros: int) -> None:
    cost = pricing.from_micros(cost_micros)
    assert Fraction(pricing.with_margin(cost, margin)) == Fraction(cost) * (1 + Fraction(margin))


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=15))
def test_text_is_the_same_for_the_same_value(value: Decimal) -> None:
    text = pricing.decimal_text(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert text == pricing.decimal_text(Decimal(f"{value:f}" + ("0" if "." in f"{value:f}" else ".0")))


@pytest.mark.parametrize("tokens", [0, 12])
def test_units_are_charged_where_tokens_cost_nothing_and_are_never_free_for_want_of_a_price(tokens: int) -> None:
    """As rerankers in LiteLLM's cost map: tokens at zero, searches at a price; no price for searches is no price."""
    usage = Usage(prompt_tokens=tokens, search_units=1)
    free = Price(input_usd=Decimal(0), output_usd=Decimal(0))
    assert pricing.cost_usd(usage, replace(free, search_unit_usd=Decimal("0.002"))) == Decimal("0.002")
    assert pricing.cost_usd(usage, free) is None


def test_a_rule_has_prices_for_what_is_not_a_token() -> None:
    rule = pricing.PriceRule.model_validate(
        {
            "input_usd_per_million": "1",
            "output_usd_per_million": "2",
            "cache_write_1h_usd_per_million": "3",
            "search_usd": "0.01",
            "image_usd": "0.04",
            "audio_second_usd": "0.0001",
            "character_usd_per_million": "15",
            "request_usd": "0.001",
        }
    )
    price, request = pricing.price_of(rule), Decimal("0.001")
    for usage, usd in (
        (Usage(prompt_tokens=10, cache_write_tokens=10, cache_write_1h_tokens=10), "0.00003"),
        (Usage(prompt_tokens=1, searches=2, search_context="low"), "0.020001"),
        (Usage(images=2), "0.08"),
        (Usage(audio_ms=1500), "0.00015"),
        (Usage(characters=6000), "0.09"),
    ):
        assert pricing.cost_usd(usage, price) == Decimal(usd) + request
    assert pricing.cost_usd(Usage(pages=1), price) is None
