"""Prices that depend on the size of the prompt."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from pointsman.types import Price

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
