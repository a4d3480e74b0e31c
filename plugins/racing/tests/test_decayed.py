"""Counts and distributions that forget."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_racing.decayed import MAX_MS, MIN_MS, RELATIVE_ERROR, Count, Distribution, quantiles_ms

HALF_LIFE_S = 600.0
NOW = 1_750_000_000.0
values = st.floats(min_value=MIN_MS, max_value=MAX_MS, allow_nan=False)


def filled(numbers, at=NOW):
    made = Distribution(HALF_LIFE_S)
    for number in numbers:
        made.add(number, at)
    return made


def nearest_rank(numbers, ratio):
    return sorted(numbers)[max(1, math.ceil(ratio * len(numbers) - 1e-9)) - 1]


@given(st.lists(values, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_is_right_to_within_the_relative_error(numbers, ratio):
    (found,) = quantiles_ms([filled(numbers)], (ratio,), NOW)
    assert found == pytest.approx(nearest_rank(numbers, ratio), rel=RELATIVE_ERROR * 1.01)


@given(st.lists(values, min_size=1, max_size=50), st.lists(values, min_size=1, max_size=50))
def test_two_together_are_as_one_over_all_values(left, right):
    ratios = (0.5, 0.95, 0.99)
    merged = filled(left)
    merged.merge(filled(right), NOW)
    whole = quantiles_ms([filled(left + right)], ratios, NOW)
    assert quantiles_ms([filled(left), filled(right)], ratios, NOW) == whole
    assert quantiles_ms([merged], ratios, NOW) == whole
    assert merged.mean_ms() == pytest.approx(filled(left + right).mean_ms())


@given(
    st.lists(st.tuples(values, st.floats(min_value=0, max_value=50 * HALF_LIFE_S)), min_size=1, max_size=50),
    st.floats(min_value=0, max_value=20 * HALF_LIFE_S),
)
def test_weights_halve_every_half_life(seen, later_s):
    made = Distribution(HALF_LIFE_S)
    seen.sort(key=lambda one: one[1])
    for value, age_s in seen:
        made.add(value, NOW + age_s)
    at = NOW + seen[-1][1] + later_s
    wanted = sum(2 ** (-(at - NOW - age_s) / HALF_LIFE_S) for _, age_s in seen)
    assert made.weight(at) == pytest.approx(wanted, rel=1e-6)


def test_yesterday_is_forgotten():
    """A thousand quick answers count for nothing against ten slow ones a day later."""
    made = filled([50.0] * 1000)
    for _ in range(10):
        made.add(900.0, NOW + 86_400)
    (median,) = quantiles_ms([made], (0.5,), NOW + 86_400)
    assert median == pytest.approx(900, rel=0.03)
    assert made.mean_ms() == pytest.approx(900, rel=0.03)


@pytest.mark.parametrize("jump_s", [-1e9, -3600.0, 1e5, 1e9, 1e12])
def test_no_jump_of_the_clock_breaks_it(jump_s):
    made = filled([100.0, 200.0])
    made.add(300.0, NOW + jump_s)
    other = filled([50.0], NOW - jump_s)
    made.merge(other, NOW)
    found = quantiles_ms([made, other], (0.5,), NOW + jump_s)
    assert found is None or math.isfinite(found[0])
    assert math.isfinite(made.weight(NOW))
    json.dumps(made.to_json(NOW), allow_nan=False)


@given(st.lists(values, min_size=1, max_size=50))
def test_it_survives_being_written_down(numbers):
    made = filled(numbers)
    again = Distribution.from_json(json.loads(json.dumps(made.to_json(NOW))), NOW, HALF_LIFE_S)
    assert quantiles_ms([again], (0.5, 0.99), NOW) == quantiles_ms([made], (0.5, 0.99), NOW)
    assert again.weight(NOW) == pytest.approx(made.weight(NOW))


@pytest.mark.parametrize(
    "document",
    [None, [], "x", {"a": 1}, {"1": "2"}, {"1": -1}, {"1": float("inf")}, {"99999999": 1}, {"-1x": 1}, {"1": True}],
)
def test_what_is_none_of_ours_is_left_out(document):
    made = Distribution.from_json(document, NOW, HALF_LIFE_S)
    assert made.weight(NOW) in {0.0, 1.0}
    assert quantiles_ms([made], (0.5,), NOW) is None or document == {"1": True}


def test_overtaken_values_do_not_make_it_look_quick():
    """Hedged at its 95th percentile, a candidate keeps that percentile though it never again ends what is overtaken."""
    draw = random.Random(1)
    times = [draw.lognormvariate(math.log(200), 0.5) * (8 if draw.random() < 0.03 else 1) for _ in range(4000)]
    real, left_out, as_they_are = filled(times[:400]), filled(times[:400]), filled(times[:400])
    for value in times[400:]:
        (limit,) = quantiles_ms([real], (0.95,), NOW)
        seen = min(value, limit + 50)
        as_they_are.add(seen, NOW)
        if value > limit + 50:
            real.add_censored(limit + 50, NOW)
        else:
            real.add(value, NOW)
            left_out.add(value, NOW)
    truth = nearest_rank(times, 0.95)
    (found,) = quantiles_ms([real], (0.95,), NOW)
    assert found == pytest.approx(truth, rel=0.1)
    (biased,) = quantiles_ms([left_out], (0.95,), NOW)
    assert biased < truth * 0.9
    assert real.weight(NOW) == pytest.approx(4000)
    assert real.mean_ms() == pytest.approx(sum(times) / len(times), rel=0.15)
    assert as_they_are.mean_ms() < real.mean_ms()


def test_a_censored_value_beyond_all_others_counts_as_it_is():
    made = filled([100.0])
    made.add_censored(500.0, NOW)
    (found,) = quantiles_ms([made], (0.99,), NOW)
    assert found == pytest.approx(500, rel=0.03)


def test_a_count_halves_and_does_not_grow_when_the_clock_goes_back():
    count = Count(HALF_LIFE_S)
    count.add(NOW)
    count.add(NOW)
    assert count.value(NOW + HALF_LIFE_S) == pytest.approx(1)
    assert count.value(NOW - 1e9) == pytest.approx(2)
    count.add(NOW - 1e9)
    assert count.value(NOW) == pytest.approx(3)


def test_an_empty_one_has_nothing_to_say():
    empty = Distribution(HALF_LIFE_S)
    assert (empty.mean_ms(), empty.weight(NOW), empty.to_json(NOW)) == (None, 0.0, {})
    assert quantiles_ms([empty], (0.5,), NOW) is None
    assert quantiles_ms([], (0.5,), NOW) is None
