"""Distributions that merge, forget and take censored values, and averages that follow."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.stats import Buckets, DecayingCount, Ewma, Sketch, merged, nearest_rank, quantile_indices

ERROR = 0.02
BUCKETS = Buckets.accurate_to(ERROR, least=0.1, most=1e7)
HALF_LIFE_S = 600.0
NOW = 1_750_000_000.0
RATIOS = (0.01, 0.5, 0.95, 0.99, 1.0)
values = st.floats(min_value=BUCKETS.least, max_value=BUCKETS.most, allow_nan=False)
histograms = st.dictionaries(st.integers(0, 400), st.integers(1, 50), min_size=1, max_size=12)


def filled(numbers, half_life_s=None, at=NOW):
    sketch = Sketch(BUCKETS, half_life_s)
    for number in numbers:
        sketch.add(number, at)
    return sketch


both = pytest.mark.parametrize("half_life_s", [None, HALF_LIFE_S], ids=["counts", "forgets"])


# --- ranks and buckets


@pytest.mark.parametrize(
    ("ratio", "value"),
    [(0.0, 1), (0.001, 1), (0.05, 1), (0.051, 2), (0.07, 2), (0.5, 10), (0.95, 19), (0.951, 20), (1.0, 20)],
)
def test_nearest_rank_of_one_to_twenty(ratio, value):
    assert nearest_rank(range(1, 21), ratio) == value


def test_a_rank_is_not_rounded_up_by_floating_point():
    """0.07 * 100 is 7.000000000000001."""
    assert nearest_rank(range(1, 101), 0.07) == 7
    assert quantile_indices(dict.fromkeys(range(1, 101), 1), [0.07]) == [7]


@given(histograms, st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
def test_quantiles_of_a_histogram_are_those_of_its_values(histogram, ratios):
    ratios.sort()
    ordered = sorted(index for index, count in histogram.items() for _ in range(count))
    assert quantile_indices(histogram, ratios) == [nearest_rank(ordered, ratio) for ratio in ratios]


@given(histograms, histograms, histograms)
def test_merging_adds_every_bucket(one, two, three):
    total = merged(one, two, three)
    assert sum(total.values()) == sum(sum(histogram.values()) for histogram in (one, two, three))
    assert all(total[i] == one.get(i, 0) + two.get(i, 0) + three.get(i, 0) for i in total)
    assert merged() == {}


@given(st.floats(allow_nan=False))
def test_every_number_has_a_bucket(value):
    index = BUCKETS.index(value)
    assert BUCKETS.lowest <= index <= BUCKETS.highest
    if BUCKETS.least <= value <= BUCKETS.most:
        assert BUCKETS.middle(index) == pytest.approx(value, rel=ERROR * 1.001)


# --- sketches


@both
def test_an_empty_sketch_has_no_figures(half_life_s):
    empty = Sketch(BUCKETS, half_life_s)
    assert (bool(empty), empty.weight(NOW), empty.mean(), empty.to_json(NOW)) == (False, 0, None, {})
    assert empty.quantiles((0.5,)) is None
    assert BUCKETS.quantiles(merged(), (0.5,)) is None


@both
@given(numbers=st.lists(values, min_size=1, max_size=200))
def test_a_quantile_is_right_to_within_the_relative_error(half_life_s, numbers):
    exact = [nearest_rank(sorted(numbers), ratio) for ratio in RATIOS]
    assert filled(numbers, half_life_s).quantiles(RATIOS) == pytest.approx(exact, rel=ERROR * 1.001)


@both
@given(left=st.lists(values, min_size=1, max_size=50), right=st.lists(values, min_size=1, max_size=50))
def test_two_together_are_as_one_over_all_values(half_life_s, left, right):
    together = filled(left, half_life_s)
    together.merge(filled(right, half_life_s), NOW)
    whole = filled(left + right, half_life_s)
    assert together.weights(NOW) == whole.weights(NOW)
    assert together.quantiles(RATIOS) == whole.quantiles(RATIOS)
    assert together.mean() == pytest.approx(whole.mean())


@both
@given(numbers=st.lists(values, min_size=1, max_size=50))
def test_a_sketch_survives_being_written_down(half_life_s, numbers):
    sketch = filled(numbers, half_life_s)
    again = Sketch.from_json(json.loads(json.dumps(sketch.to_json(NOW))), BUCKETS, half_life_s, NOW)
    assert again.weights(NOW) == sketch.weights(NOW)
    assert again.quantiles(RATIOS) == sketch.quantiles(RATIOS)
    assert again.mean() == pytest.approx(sketch.mean(), rel=ERROR * 1.001)


@both
@pytest.mark.parametrize(
    "document",
    [
        None, [], "x", {"a": 1}, {"1": "2"}, {"1": -1}, {"1": 0}, {"1": float("inf")}, {"1": float("nan")},
        {"99999999": 1}, {"-1x": 1}, {"1": True}, {"01": 1}, {"-0": 1}, {"\N{ARABIC-INDIC DIGIT ONE}": 1}, {1: 1},
        {"1" * 5000: 1},
    ],
)  # fmt: skip
def test_what_is_none_of_ours_is_left_out(half_life_s, document):
    sketch = Sketch.from_json(document, BUCKETS, half_life_s, NOW)
    assert not sketch
    assert (sketch.weight(NOW), sketch.mean(), sketch.quantiles((0.5,)), sketch.to_json(NOW)) == (0, None, None, {})


def test_counts_stay_whole_numbers():
    sketch = filled([100.0, 100.0, 5.0])
    assert sketch.to_json() == {str(BUCKETS.index(5.0)): 1, str(BUCKETS.index(100.0)): 2}
    assert all(type(count) is int for count in sketch.to_json().values())
    assert not Sketch.from_json({"1": 1.5}, BUCKETS)


@given(
    st.lists(st.tuples(values, st.floats(min_value=0, max_value=50 * HALF_LIFE_S)), min_size=1, max_size=50),
    st.floats(min_value=0, max_value=20 * HALF_LIFE_S),
)
def test_weights_halve_every_half_life(seen, later_s):
    sketch = Sketch(BUCKETS, HALF_LIFE_S)
    seen.sort(key=lambda pair: pair[1])
    for value, age_s in seen:
        sketch.add(value, NOW + age_s)
    at = NOW + seen[-1][1] + later_s
    wanted = sum(2 ** (-(at - NOW - age_s) / HALF_LIFE_S) for _, age_s in seen)
    assert sketch.weight(at) == pytest.approx(wanted, rel=1e-6)


def test_yesterday_is_forgotten():
    """A thousand quick answers count for nothing against ten slow ones a day later."""
    sketch = filled([50.0] * 1000, HALF_LIFE_S)
    for _ in range(10):
        sketch.add(900.0, NOW + 86_400)
    assert sketch.quantiles((0.5,)) == pytest.approx([900], rel=0.03)
    assert sketch.mean() == pytest.approx(900, rel=0.03)


@pytest.mark.parametrize("jump_s", [-1e9, -3600.0, 1e5, 1e9, 1e12])
def test_no_jump_of_the_clock_breaks_it(jump_s):
    sketch = filled([100.0, 200.0], HALF_LIFE_S)
    sketch.add(300.0, NOW + jump_s)
    other = filled([50.0], HALF_LIFE_S, NOW - jump_s)
    sketch.merge(other, NOW)
    found = BUCKETS.quantiles(merged(sketch.weights(NOW + jump_s), other.weights(NOW + jump_s)), (0.5,))
    assert found is None or math.isfinite(found[0])
    assert math.isfinite(sketch.weight(NOW))
    json.dumps(sketch.to_json(NOW), allow_nan=False)


def test_overtaken_values_do_not_make_it_look_quick():
    """Hedged at its 95th percentile, a candidate keeps that percentile though it never again ends what is overtaken."""
    draw = random.Random(1)
    times = [draw.lognormvariate(math.log(200), 0.5) * (8 if draw.random() < 0.03 else 1) for _ in range(4000)]
    real, left_out, as_they_are = (filled(times[:400], HALF_LIFE_S) for _ in range(3))
    for value in times[400:]:
        (limit,) = real.quantiles((0.95,))
        seen = min(value, limit + 50)
        as_they_are.add(seen, NOW)
        if value > limit + 50:
            real.add_censored(limit + 50, NOW)
        else:
            real.add(value, NOW)
            left_out.add(value, NOW)
    truth = nearest_rank(sorted(times), 0.95)
    assert real.quantiles((0.95,)) == pytest.approx([truth], rel=0.1)
    (biased,) = left_out.quantiles((0.95,))
    assert biased < truth * 0.9
    assert real.weight(NOW) == pytest.approx(4000)
    assert real.mean() == pytest.approx(sum(times) / len(times), rel=0.15)
    assert as_they_are.mean() < real.mean()


@both
def test_a_censored_value_beyond_all_others_counts_as_it_is(half_life_s):
    sketch = filled([100.0], half_life_s)
    sketch.add_censored(500.0, NOW)
    assert sketch.quantiles((0.99,)) == pytest.approx([500], rel=0.03)


# --- counts and averages


def test_a_count_halves_and_does_not_grow_when_the_clock_goes_back():
    count = DecayingCount(HALF_LIFE_S)
    count.add(NOW)
    count.add(NOW)
    assert count.value(NOW + HALF_LIFE_S) == pytest.approx(1)
    assert count.value(NOW - 1e9) == pytest.approx(2)
    count.add(NOW - 1e9)
    assert count.value(NOW) == pytest.approx(3)


def test_an_average_follows_with_its_time_constant():
    average = Ewma(10.0)
    average.add(100.0, NOW)
    assert average.value == 100
    average.add(0.0, NOW + 10)
    assert average.value == pytest.approx(100 / math.e)
    average.add(1e6, NOW + 10)
    assert average.value == pytest.approx(100 / math.e)


def test_a_peak_average_goes_up_at_once_and_down_slowly():
    average = Ewma(1e9, min_gain=0.1, peak_gain=0.5)
    for value in (100.0, 300.0, 0.0):
        average.add(value, NOW)
    assert average.value == pytest.approx(180)
    assert average.count == 3
