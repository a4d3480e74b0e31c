from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_canary.eprocess import NO_EVIDENCE, ODDS_RATIOS, grow, guess, log_mean_exp, log_share

means = st.floats(0.0, 1.0)
guesses = st.floats(1e-4, 1 - 1e-4)


def binomial(number: int, mean: float) -> list[float]:
    return [math.comb(number, k) * mean**k * (1 - mean) ** (number - k) for k in range(number + 1)]


def expected(number: int, other: int, stable_mean: float, canary_mean: float, guessed: float, *, worse: bool):
    """Return the exact expectation of a block's e-value, for each odds ratio."""
    total = [0.0] * len(ODDS_RATIOS)
    chances = itertools.product(enumerate(binomial(number, stable_mean)), enumerate(binomial(other, canary_mean)))
    for (bad, chance), (also_bad, also_chance) in chances:
        stable = {0.0: number - bad, 1.0: bad}
        canary = {0.0: other - also_bad, 1.0: also_bad}
        for index, log in enumerate(grow(NO_EVIDENCE, stable, canary, guessed, worse=worse)):
            total[index] += chance * also_chance * math.exp(log)
    return total


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), means, means, guesses)
def test_expected_evidence_is_at_most_one_when_the_canary_is_not_worse(number, other, first, second, guessed):
    """The supermartingale property, by adding up all outcomes of a block, whatever was guessed."""
    canary_mean, stable_mean = sorted((first, second))
    assert max(expected(number, other, stable_mean, canary_mean, guessed, worse=True)) <= 1 + 1e-9


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), means, means, guesses)
def test_expected_evidence_of_harmlessness_is_at_most_one_when_the_canary_is_not_better(
    number, other, first, second, guessed
):
    stable_mean, canary_mean = sorted((first, second))
    assert max(expected(number, other, stable_mean, canary_mean, guessed, worse=False)) <= 1 + 1e-9


@given(guesses, means, means, means)
def test_value_between_0_and_1_counts_as_the_coin_with_that_chance(guessed, value, first, second):
    """The e-value of one observation is linear in it, so only its mean matters."""
    factors = [[math.exp(log) for log in grow(NO_EVIDENCE, {first: 1}, {y: 1}, guessed)] for y in (0.0, 1.0, value)]
    for at_0, at_1, between in zip(*factors, strict=True):
        assert between == pytest.approx((1 - value) * at_0 + value * at_1, rel=1e-9)
    assert all(math.isfinite(log) for log in grow(NO_EVIDENCE, {first: 10**6}, {second: 10**6}, guessed))


def test_arm_without_observations_says_nothing():
    assert grow(NO_EVIDENCE, {0.0: 5}, {}, 0.1) == NO_EVIDENCE
    assert grow(NO_EVIDENCE, {}, {1.0: 5}, 0.1) == NO_EVIDENCE


def test_harm_gathers_evidence_and_its_absence_loses_it():
    worse = grow(NO_EVIDENCE, {0.0: 98, 1.0: 2}, {0.0: 80, 1.0: 20}, 0.02)
    same = grow(NO_EVIDENCE, {0.0: 98, 1.0: 2}, {0.0: 98, 1.0: 2}, 0.02)
    assert log_mean_exp(worse) > 5
    assert log_mean_exp(same) < 0


def test_guess_is_never_certain():
    assert 0 < guess({0.0: 10**9}) < guess({0.0: 100}) < guess({0.0: 90, 1.0: 10}) < guess({1.0: 10**9}) < 1


def test_parts_of_alpha_add_up_to_one():
    parts = [math.exp(log_share(number)) for number in range(1, 10_000)]
    assert parts[:3] == pytest.approx([1 / 2, 1 / 6, 1 / 12])
    assert sum(parts) < 1
    assert sum(parts) == pytest.approx(1, abs=1e-3)


def test_mean_of_exponentials_does_not_overflow():
    assert log_mean_exp((1000.0, 0.0)) == pytest.approx(1000 - math.log(2))
    assert log_mean_exp(()) == float("-inf")
