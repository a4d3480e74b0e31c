"""The budget of extra attempts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_racing.budget import Bucket, delay_factor, take_from_all


@given(
    st.lists(st.integers(0, 4), max_size=500),
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=1, max_value=50),
)
def test_extra_attempts_never_exceed_the_share_and_one_burst(wishes, ratio, burst):
    """Whatever is wished for, over any number of requests."""
    bucket = Bucket(ratio, burst)
    extra = 0
    for requests, wished in enumerate(wishes, 1):
        bucket.earn()
        extra += sum(take_from_all([bucket]) for _ in range(wished))
        assert extra <= ratio * requests + burst + 1e-6
        assert 0 <= bucket.tokens <= burst


def test_a_slow_fleet_is_not_amplified():
    """When every request wants an extra attempt, one in twenty gets it."""
    bucket = Bucket(0.05, 10)
    granted = 0
    for _ in range(10_000):
        bucket.earn()
        granted += take_from_all([bucket])
    assert granted == pytest.approx(510, abs=1)
    assert bucket.refused == 10_000 - granted


def test_no_bucket_is_charged_when_one_of_several_is_empty():
    full, empty = Bucket(0.05, 5), Bucket(0.05, 5)
    empty.tokens = 0.5
    assert not take_from_all([full, empty])
    assert (full.tokens, full.refused, empty.refused) == (5, 0, 1)


def test_without_a_share_there_is_nothing_from_the_start():
    assert not take_from_all([Bucket(0.0, 100)])


def test_shares_that_add_up_to_one_are_one():
    """Twenty times 0.05 is a little less than 1 in floating point."""
    bucket = Bucket(0.05, 1)
    bucket.take()
    for _ in range(20):
        bucket.earn()
    assert take_from_all([bucket])


def test_the_less_is_left_the_longer_a_race_waits():
    """The emptiest bucket decides; one that is nearly empty does so emphatically."""
    full, other = Bucket(0.05, 10), Bucket(0.05, 4)
    assert delay_factor([full, other]) == 1.0
    other.take()
    assert delay_factor([full, other]) == pytest.approx(1.05)
    other.take()
    assert delay_factor([full, other]) == pytest.approx(1.1)
    other.take()
    assert delay_factor([full, other]) == pytest.approx(1.15)
    other.take()
    assert delay_factor([full, other]) == pytest.approx(1.2 * math.exp(8 * 0.25))
