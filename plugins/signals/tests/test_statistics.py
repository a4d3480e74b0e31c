"""Distributions in bounded memory, and windows that can be merged."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.stats import Sketch
from pointsman.types import ErrorClass, Usage
from pointsman_signals.statistics import BUCKETS, RELATIVE_ERROR, SLICES, Sample, Slice, Window, quantiles, recent_p50

MAX_BUCKETS = BUCKETS.highest - BUCKETS.lowest + 1

VALUES = st.lists(st.floats(min_value=BUCKETS.least, max_value=BUCKETS.most), min_size=1, max_size=200)
RANKS = (0.01, 0.5, 0.95, 0.99, 1.0)


def sketch_of(values):
    sketch = Sketch(BUCKETS)
    for value in values:
        sketch.add(value)
    return sketch


def nearest_rank(values, ratio):
    return sorted(values)[max(1, math.ceil(ratio * len(values) - 1e-9)) - 1]


@given(VALUES)
def test_every_quantile_is_the_exact_one_within_the_relative_error(values):
    for ratio, found in zip(RANKS, sketch_of(values).quantiles(RANKS), strict=True):
        assert found == pytest.approx(nearest_rank(values, ratio), rel=RELATIVE_ERROR * 1.001)


def test_one_to_a_hundred_has_the_quantiles_50_95_99():
    found = quantiles(sketch_of(range(1, 101)))
    assert found.count == 100
    assert (found.p50, found.p95, found.p99) == pytest.approx((50, 95, 99), rel=RELATIVE_ERROR)


@given(VALUES, VALUES, VALUES)
def test_merging_gives_the_sketch_of_all_values_in_any_order(one, two, three):
    left, right = sketch_of(one), sketch_of(three)
    left.merge(sketch_of(two))
    left.merge(sketch_of(three))
    right.merge(sketch_of(one))
    right.merge(sketch_of(two))
    whole = sketch_of([*one, *two, *three])
    assert left.weights() == right.weights() == whole.weights()
    assert left.weight() == right.weight() == whole.weight()


@given(st.lists(st.floats(allow_nan=False), max_size=100))
def test_no_value_breaks_a_sketch_or_its_bound(values):
    sketch = sketch_of(values)
    assert sketch.weight() == len(values)
    assert len(sketch.weights()) <= MAX_BUCKETS
    if values:
        assert all(math.isfinite(value) and value > 0 for value in sketch.quantiles(RANKS))


def test_a_sketch_of_everything_has_no_more_buckets_than_the_bound():
    sketch = sketch_of(BUCKETS.least * 1.01**step for step in range(10_000))
    assert len(sketch.weights()) <= MAX_BUCKETS < 600


def test_an_empty_sketch_has_no_quantiles():
    assert quantiles(Sketch(BUCKETS)) is None


@given(VALUES)
def test_a_sketch_survives_json(values):
    sketch = sketch_of(values)
    again = Sketch.from_json(json.loads(json.dumps(sketch.to_json())), BUCKETS)
    assert (again.weights(), again.weight()) == (sketch.weights(), sketch.weight())


def test_a_sketch_leaves_out_what_it_cannot_have_written():
    assert Sketch.from_json({"x": 1, "1": -5, "2": "3", "999999": 1, "--3": 1, "4": 2}, BUCKETS).weights() == {4: 2}


@pytest.mark.parametrize(
    ("samples", "middle"),
    [([], 0.0), ([7.0], 7.0), ([3.0, 1.0], 3.0), ([5.0, 1.0, 3.0], 3.0), ([4.0, 1.0, 3.0, 2.0], 3.0)],
)
def test_the_recent_p50_is_the_upper_middle_of_the_samples(samples, middle):
    assert recent_p50(samples) == middle


def sample(**changes):
    usage = Usage(prompt_tokens=100, completion_tokens=20, cached_tokens=60)
    return Sample(**{"latency_ms": 250.0, "first_token_ms": 50.0, "usage": usage, "cost_usd_micros": 7, **changes})


def test_a_window_counts_tokens_cost_cache_and_errors():
    window = Window(10.0)
    window.add(sample(), 1000.0)
    window.add(sample(usage=Usage(prompt_tokens=10, completion_tokens=5)), 1001.0)
    window.add(Sample(error=ErrorClass.TIMEOUT), 1002.0)
    window.add(Sample(cancelled=True), 1003.0)
    total = window.total(1004.0)
    assert (total.requests, total.cancelled, total.errors) == (4, 1, {"timeout": 1})
    assert (total.input_tokens, total.output_tokens, total.cached_tokens) == (110, 25, 60)
    assert total.cost_tokens == 40 + 20 + 10 + 5
    assert (total.cache_hits, total.cache_misses, total.cost_usd_micros) == (1, 1, 14)
    assert (total.latency_ms.weight(), total.first_token_ms.weight(), total.tokens_per_s.weight()) == (2, 2, 0)


def test_what_is_older_than_the_window_no_longer_counts():
    window = Window(10.0)
    window.add(sample(), 1000.0)
    window.add(sample(), 1000.0 + 10.0 * (SLICES - 1))
    assert window.total(1000.0 + 10.0 * (SLICES - 1)).requests == 2
    assert window.total(1000.0 + 10.0 * SLICES).requests == 1
    assert window.total(9999.0).requests == 0
    assert not window.slices


def test_a_window_never_has_more_slices_than_it_is_made_of():
    window = Window(1.0)
    for second in range(1000):
        window.add(sample(), float(second))
    assert len(window.slices) <= SLICES


EVENTS = st.lists(st.tuples(st.floats(1000.0, 1050.0), st.sampled_from([*ErrorClass, None])), max_size=40)


@given(EVENTS, EVENTS)
def test_merged_windows_count_what_one_window_would_have(ours, theirs):
    one, two, whole = Window(10.0), Window(10.0), Window(10.0)
    for window, events in ((one, ours), (two, theirs)):
        for at, error in sorted(events, key=lambda event: event[0]):
            window.add(sample(error=error), at)
    for at, error in sorted(ours + theirs, key=lambda event: event[0]):
        whole.add(sample(error=error), at)
    one.merge(two)
    assert one.total(1050.0).to_json() == whole.total(1050.0).to_json()


@given(EVENTS)
def test_a_window_survives_json(events):
    window = Window(10.0)
    for at, error in events:
        window.add(sample(error=error), at)
    again = Window.from_json(json.loads(json.dumps(window.to_json())), 10.0)
    assert again.to_json() == window.to_json()


@pytest.mark.parametrize(
    "value", [None, [], {"1": None}, {"1": [[1], {}, []]}, {"x": Slice().to_json()}, {"1": [[], {}]}]
)
def test_what_is_no_window_is_refused(value):
    with pytest.raises(ValueError):  # noqa: PT011  # the message of int() is not ours
        Window.from_json(value, 10.0)
