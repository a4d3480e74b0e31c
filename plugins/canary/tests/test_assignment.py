from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_canary.assignment import FULL_BP, Hasher, Split, fnv1a_64

UNITS = 100_000
FAMILIES = {
    "counted": [f"req-{number}" for number in range(UNITS)],
    "digits": [str(number) for number in range(UNITS)],
    "mail": [f"user{number}@example.com" for number in range(UNITS)],
    "time first": [
        f"{1_763_700_000_000 + number:012x}{number * 2_654_435_761 % 2**80:020x}" for number in range(UNITS)
    ],
}


def within(count: int, chance: float, number: int = UNITS) -> bool:
    """Say whether a count lies within five standard deviations of a binomial one: a chance of 6e-7 to be wrong."""
    return abs(count - number * chance) <= 5 * math.sqrt(number * chance * (1 - chance))


@cache
def buckets(salt: str, family: str) -> list[int]:
    hasher = Hasher.salted(salt)
    return [hasher.bucket(unit) for unit in FAMILIES[family]]


def share(salt: str, family: str, weight_bp: int) -> int:
    split = Split.of([weight_bp])
    return sum(split.arm(bucket, FULL_BP) == 0 for bucket in buckets(salt, family))


def test_known_hashes():
    """The test vectors that come with FNV-1a in 64 bits."""
    assert fnv1a_64(b"") == 0xCBF29CE484222325
    assert fnv1a_64(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a_64(b"foobar") == 0x85944171F73967E8


@pytest.mark.parametrize(("unit", "bucket"), [("", 37), ("a", 996), ("hello", 491), ("req-0", 886), ("req-1", 97)])
def test_unsalted_buckets_are_those_of_plain_fnv(unit, bucket):
    assert Hasher.unsalted().bucket(unit) == bucket


def test_unsalted_units_are_on_the_canary_below_the_weight():
    """Of 1000 buckets those below weight * 1000 are the canary's."""
    hasher = Hasher.unsalted()
    for weight_bp, bucket in itertools.product((0, 1, 10, 370, 371, 380, 9960, 9970, FULL_BP), (0, 37, 996, 999)):
        expected = 0 if bucket < weight_bp / FULL_BP * 1000 else -1
        assert Split.of([weight_bp]).arm(bucket, hasher.buckets) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("salt", ["a", "checkout", "exp-1"])
def test_share_of_units_is_the_weight(family, salt):
    """Over 100 000 units, for ids of several makes."""
    for weight_bp in (0, 100, 1000, 5000, FULL_BP):
        assert within(share(salt, family, weight_bp), weight_bp / FULL_BP)


def test_resolution_is_one_in_ten_thousand():
    """Every bucket is used, and a weight of 1/10 000 takes about that share."""
    used = set(buckets("checkout", "counted"))
    assert used <= set(range(FULL_BP))
    assert len(used) > 0.999 * FULL_BP
    assert within(share("checkout", "counted", 1), 1 / FULL_BP)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("salts", [("checkout", "search"), ("a", "q"), ("exp-1", "exp-2")])
def test_two_salted_experiments_choose_independently(family, salts):
    """The canaries of two experiments share as many units as chance would have it."""
    first, second = (buckets(salt, family) for salt in salts)
    for weight_bp in (1000, 5000):
        both = sum(a < weight_bp and b < weight_bp for a, b in zip(first, second, strict=True))
        assert within(both, (weight_bp / FULL_BP) ** 2)


@given(st.text(), st.text(min_size=1, max_size=20), st.integers(0, FULL_BP), st.integers(0, FULL_BP))
def test_higher_weight_never_moves_a_unit_back(unit, salt, first, second):
    lower, higher = sorted((first, second))
    for hasher in (Hasher.salted(salt), Hasher.unsalted()):
        bucket = hasher.bucket(unit)
        assert bucket == hasher.bucket(unit)
        if Split.of([lower]).arm(bucket, hasher.buckets) == 0:
            assert Split.of([higher]).arm(bucket, hasher.buckets) == 0


@given(
    st.integers(0, FULL_BP - 1),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=5),
)
def test_no_unit_returns_to_stable_while_no_arm_loses_weight(bucket, weights):
    before = Split.of([weight for weight, _ in weights])
    after = Split.of([weight + more for weight, more in weights])
    if before.arm(bucket, FULL_BP) != -1:
        assert after.arm(bucket, FULL_BP) != -1


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4).filter(lambda weights: sum(weights) <= FULL_BP))
def test_arms_have_exactly_their_buckets(weights):
    split = Split.of(weights)
    arms = [split.arm(bucket, FULL_BP) for bucket in range(FULL_BP)]
    assert [arms.count(number) for number in range(len(weights))] == weights


@pytest.mark.parametrize("weights", [[-1], [10_001], [5000, 5001], [3, -1]])
def test_weights_out_of_range_are_refused(weights):
    with pytest.raises(ValueError, match="at least 0 and at most 10000"):
        Split.of(weights)


def test_long_units_and_broken_text_are_units_like_any_other():
    """A long unit does not share its bucket with everything that begins like it."""
    hasher = Hasher.salted("s")
    assert hasher.bucket("\ud800") == hasher.bucket("\ud800")
    spread = [hasher.bucket("x" * 1000 + str(number)) for number in range(1000)]
    assert len(set(spread)) > 900
