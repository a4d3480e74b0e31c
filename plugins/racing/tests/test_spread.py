"""How long a high quantile is believed to be."""

from __future__ import annotations

from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_racing.spread import Spread, usual


@pytest.mark.parametrize(("ratio", "borrowed"), [(0.9, 200), (0.95, 400), (0.99, 2000)])
def test_the_others_weigh_as_much_as_twenty_samples_beyond_the_quantile(ratio, borrowed):
    own = Spread(samples=borrowed, median_ms=100.0, log_factor=1.0)
    assert own.quantile_ms(0.0, ratio) == pytest.approx(100 * e**0.5)


@given(
    samples=st.floats(20, 1e6),
    median_ms=st.floats(0.1, 1e6),
    factor=st.floats(1.0, 1e3),
    others=st.floats(0.0, 7.0),
    ratio=st.floats(0.5, 0.999),
)
def test_it_lies_between_what_was_seen_and_what_is_usual(samples, median_ms, factor, others, ratio):
    own = Spread.of(samples, median_ms, median_ms * factor)
    low, high = sorted((median_ms * factor, median_ms * e**others))
    assert low * 0.999 <= own.quantile_ms(others, ratio) <= high * 1.001


def test_what_is_usual_is_said_by_those_of_whom_enough_is_known():
    own, young, half = (Spread(samples, 1.0, factor) for samples, factor in ((100, 3.0), (49, 1.0), (50, 2.0)))
    assert usual(own, [own, young]) == 3.0
    assert usual(own, [own, young, half]) == 2.0
    assert usual(young, [own, young, half]) == 2.0
    assert usual(own, [young]) == usual(own, []) == 3.0
