from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_shadow.sampling import Sampler

IDS = [f"req-{number}" for number in range(20_000)]


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_the_share_is_the_rate(rate):
    """Within four standard deviations of a binomial count."""
    chosen = sum(map(Sampler.of("m", rate).chooses, IDS))
    assert abs(chosen - rate * len(IDS)) < 4 * (rate * (1 - rate) * len(IDS)) ** 0.5


def test_nothing_and_everything():
    assert not any(map(Sampler.of("m", 0.0).chooses, IDS))
    assert all(map(Sampler.of("m", 1.0).chooses, IDS))


def test_a_higher_rate_keeps_what_a_lower_one_has_chosen():
    low, high = Sampler.of("m", 0.1), Sampler.of("m", 0.4)
    assert all(high.chooses(unit) for unit in IDS if low.chooses(unit))


def test_salts_choose_independently():
    """Two mirrors at 30 % share 9 % of the requests, not 30 %."""
    one, other = Sampler.of("one", 0.3), Sampler.of("other", 0.3)
    both = sum(one.chooses(unit) and other.chooses(unit) for unit in IDS)
    assert abs(both - 0.09 * len(IDS)) < 4 * (0.09 * 0.91 * len(IDS)) ** 0.5


@given(st.text(max_size=200), st.text(max_size=200), st.floats(0, 1))
def test_any_text_gets_the_same_answer_twice(salt, unit, rate):
    assert Sampler.of(salt, rate).chooses(unit) == Sampler.of(salt, rate).chooses(unit)
