"""The intervals hold at all times together, and shrink; quantiles are within one percent."""

from __future__ import annotations

import os
import random
from collections import Counter
from math import ceil, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_shadow.statistics import BUCKETS, ConfidenceSequence

ALPHA = 0.1
RUNS = 300 if os.environ.get("POINTSMAN_THOROUGH") else 100
LENGTH = 400
#: Draws of distributions on [0, 1] and their means.
DISTRIBUTIONS = {
    "rare events": (lambda rng: float(rng.random() < 0.05), 0.05),
    "coin": (lambda rng: float(rng.random() < 0.5), 0.5),
    "narrow": (lambda rng: rng.uniform(0.45, 0.55), 0.5),
    "skewed": (lambda rng: rng.betavariate(0.5, 2.0), 0.2),
}


def ever_wrong(draw, mean, seed):
    """Say whether the sequence, and an ordinary normal interval, ever miss the mean while one looks after each value."""
    rng = random.Random(seed)
    running = ConfidenceSequence()
    sequence = ordinary = False
    total = squares = 0.0
    for number in range(1, LENGTH + 1):
        value = draw(rng)
        running = running.add(value, ALPHA)
        found = running.interval(ALPHA)
        sequence = sequence or not found.low <= mean <= found.high
        total, squares = total + value, squares + value * value
        if number >= 10:
            deviation = sqrt(max(squares / number - (total / number) ** 2, 0.0) / number)
            ordinary = ordinary or abs(total / number - mean) > 1.645 * deviation
    return sequence, ordinary


@pytest.mark.thorough
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_looking_after_every_pair_is_allowed(name):
    """At 90 % at most 10 % of the watched runs may ever miss; an ordinary interval, watched, misses in most of them."""
    draw, mean = DISTRIBUTIONS[name]
    missed = [ever_wrong(draw, mean, seed) for seed in range(RUNS)]
    limit = RUNS * ALPHA + 2.33 * sqrt(RUNS * ALPHA * (1 - ALPHA))
    assert sum(sequence for sequence, _ in missed) <= limit
    assert sum(ordinary for _, ordinary in missed) > 2 * limit


def width(draw, number, seed=1):
    rng, running = random.Random(seed), ConfidenceSequence()
    for _ in range(number):
        running = running.add(draw(rng), ALPHA)
    found = running.interval(ALPHA)
    return found.high - found.low


def test_it_shrinks_with_the_number_and_with_the_variance():
    coin, narrow = DISTRIBUTIONS["coin"][0], DISTRIBUTIONS["narrow"][0]
    assert width(coin, 10_000) < width(coin, 1_000) / 2.5 < width(coin, 100) / 4
    assert width(narrow, 1_000) < width(coin, 1_000) / 5


def test_nothing_seen_says_nothing():
    assert ConfidenceSequence().interval(0.05) is None


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_an_observation_outside_is_refused(value):
    with pytest.raises(ValueError, match="0 to 1"):
        ConfidenceSequence().add(value, 0.05)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.0001, 0.5))
def test_the_mean_is_the_mean_and_lies_within(values, alpha):
    running = ConfidenceSequence()
    for value in values:
        running = running.add(value, alpha)
    found = running.interval(alpha)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert found.high <= 1 + 1e-9


def histogram_of(values):
    return Counter(BUCKETS.index(value) for value in values)


def quantile(histogram, ratio):
    (value,) = BUCKETS.quantiles(histogram, [ratio]) or [None]
    return value


@given(st.lists(st.floats(0.01, 1e7), min_size=1, max_size=80), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_value_at_its_rank(values, share):
    exact = sorted(values)[max(1, ceil(share * len(values))) - 1]
    assert quantile(histogram_of(values), share) == pytest.approx(exact, rel=0.0101)


@given(st.floats(allow_nan=False))
def test_every_number_has_a_bucket(value):
    assert BUCKETS.middle(BUCKETS.index(value)) > 0


def test_an_empty_one_has_no_quantile():
    assert quantile({}, 0.5) is None


def test_one_to_a_hundred_as_one_expects():
    counts = histogram_of(range(1, 101))
    assert [round(quantile(counts, share), 0) for share in (0.5, 0.95, 0.99)] == [
        pytest.approx(50, abs=1),
        pytest.approx(95, abs=1),
        pytest.approx(99, abs=1),
    ]
