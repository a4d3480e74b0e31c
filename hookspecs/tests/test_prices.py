"""Prices that depend on the size of the prompt, and amounts that are not of tokens alone."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from pointsman import pricing
from pointsman.types import Price, Usage

BASE = Price(input_usd=Decimal("0.1"))
LONG = Price(input_usd=Decimal("0.2"))
LONGEST = Price(input_usd=Decimal("0.4"))


def test_the_price_of_a_long_prompt_is_that_of_the_highest_threshold_below_it() -> None:
    price = replace(BASE, above=((100, LONG), (200, LONGEST)))
    assert [price.at(tokens).input_usd for tokens in (0, 100, 101, 200, 201)] == [
        Decimal("0.1"),
        Decimal("0.1"),
        Decimal("0.2"),
        Decimal("0.2"),
        Decimal("0.4"),
    ]


def test_a_price_without_thresholds_is_always_the_same() -> None:
    assert BASE.at(10**9) is BASE


SPOKEN = Usage(prompt_tokens=2629, audio_prompt_tokens=2625, completion_tokens=600, audio_ms=203_500)
TEXT = Price(input_usd=Decimal("0.001"), output_usd=Decimal("0.01"))


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (replace(TEXT, audio_second_usd=Decimal("0.1")), SPOKEN, "26.354"),
        (replace(TEXT, audio_second_usd=Decimal("0.1"), audio_input_usd=Decimal("0.002")), SPOKEN, "11.254"),
        (TEXT, SPOKEN, None),
        (Price(audio_second_usd=Decimal("0.1")), SPOKEN, "20.35"),
        (Price(input_usd=Decimal(0), output_usd=Decimal(0)), SPOKEN, None),
        (TEXT, replace(SPOKEN, audio_ms=None), "8.629"),
        (
            replace(TEXT, above=((100, replace(TEXT, input_usd=Decimal("0.002"))),)),
            replace(SPOKEN, audio_ms=None),
            "11.258",
        ),
        (
            replace(TEXT, tiers={"flex": replace(TEXT, audio_input_usd=Decimal(0))}),
            replace(SPOKEN, service_tier="flex"),
            "6.004",
        ),
    ],
)
def test_sound_is_charged_by_the_second_where_its_tokens_have_no_price(
    price: Price, usage: Usage, cost: str | None
) -> None:
    assert pricing.cost_usd(usage, price) == (None if cost is None else Decimal(cost))


@pytest.mark.parametrize("unit", ["search_unit_usd", "image_usd", "page_usd", "audio_second_usd", "character_usd"])
def test_tokens_that_cost_nothing_do_not_make_free_what_is_charged_by_something_else(unit: str) -> None:
    """A reranker whose searches nobody has counted: how many there were is not known."""
    price = Price(input_usd=Decimal(0), output_usd=Decimal(0), **{unit: Decimal("0.002")})
    assert pricing.cost_usd(Usage(prompt_tokens=20), price) is None
    assert pricing.cost_usd(Usage(prompt_tokens=20), replace(price, **{unit: Decimal(0)})) == 0
