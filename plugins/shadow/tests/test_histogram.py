from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_shadow.histogram import added, bucket, middle, quantile


def of(values):
    counts = {}
    for value in values:
        counts = added(counts, {bucket(value): 1})
    return counts


@given(st.lists(st.floats(0.01, 1e7), min_size=1, max_size=80), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_value_at_its_rank(values, share):
    exact = sorted(values)[max(1, ceil(share * len(values))) - 1]
    assert quantile(of(values), share) == pytest.approx(exact, rel=0.0101)


@given(st.floats(allow_nan=False))
def test_every_number_has_a_bucket(value):
    assert middle(bucket(value)) > 0


def test_an_empty_one_has_no_quantile():
    assert quantile({}, 0.5) is None


def test_one_to_a_hundred_as_one_expects():
    counts = of(range(1, 101))
    assert [round(quantile(counts, share), 0) for share in (0.5, 0.95, 0.99)] == [
        pytest.approx(50, abs=1),
        pytest.approx(95, abs=1),
        pytest.approx(99, abs=1),
    ]
