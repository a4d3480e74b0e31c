from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Attempt, AttemptError, AttemptKind, Deployment, ErrorClass, Outcome, Usage
from pointsman_canary.experiment import Metric, MetricName
from pointsman_canary.metrics import LOG_STEP, Scale, added, figure, halved, index, observe, quantile_bucket

POSITIVE = [MetricName.LATENCY_MS, MetricName.FIRST_TOKEN_MS, MetricName.TOKENS_PER_S, MetricName.COST_USD_MICROS]

histograms = st.dictionaries(st.integers(0, 400), st.integers(1, 50), min_size=1, max_size=12)


def attempt(**fields) -> Attempt:
    defaults = {"outcome": Outcome.OK, "duration_ms": 1000.0}
    return Attempt(
        id="a",
        request_id="r",
        number=1,
        kind=AttemptKind.PRIMARY,
        deployment=Deployment(id="d", group="g", provider="p", model="m"),
        started_at=0.0,
        **{**defaults, **fields},
    )


@pytest.mark.parametrize("name", POSITIVE)
@given(value=st.floats(0.01, 1e5))
def test_figure_of_one_value_is_the_value_within_half_a_percent(name, value):
    for statistic in ("mean", "p50", "p90"):
        shown = figure(Metric(metric=name, statistic=statistic), {index(name, value): 3})
        assert shown == pytest.approx(value, rel=0.0051)


@given(st.floats(0, 1))
def test_score_is_kept_to_a_thousandth(score):
    shown = figure(Metric(metric="score"), {index(MetricName.SCORE, score): 1})
    assert shown == pytest.approx(score, abs=0.000501)


@pytest.mark.parametrize("name", list(MetricName))
@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, 5e-324])
def test_absurd_values_have_a_bucket(name, value):
    assert isinstance(index(name, value), int)


def test_figures_are_those_of_the_observations():
    latency = {}
    for value in range(1, 101):
        latency = added(latency, {index(MetricName.LATENCY_MS, value): 1})
    for quantile in (50, 90, 99):
        shown = figure(Metric(metric="latency_ms", statistic=f"p{quantile}"), latency)
        assert shown == pytest.approx(quantile, rel=0.02)
    assert figure(Metric(metric="latency_ms", statistic="mean"), latency) == pytest.approx(50.5, rel=0.01)
    assert figure(Metric(metric="error_rate"), {0: 98, 1000: 2}) == pytest.approx(0.02)
    assert figure(Metric(metric="error_rate"), {}) is None


def test_low_quantile_of_speed_is_the_slow_end():
    speeds = {index(MetricName.TOKENS_PER_S, value): 1 for value in (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)}
    slow = figure(Metric(metric="tokens_per_s", statistic="p10"), speeds)
    fast = figure(Metric(metric="tokens_per_s", statistic="p90"), speeds)
    assert slow < 25
    assert fast > 85


@given(histograms, st.floats(0.01, 0.99))
def test_quantile_is_the_nearest_rank(histogram, quantile):
    values = sorted(bucket for bucket, count in histogram.items() for _ in range(count))
    assert quantile_bucket(histogram, quantile) == values[max(1, math.ceil(quantile * len(values))) - 1]


@given(histograms, histograms)
def test_sums_and_halves_keep_every_bucket(first, second):
    total = added(first, second)
    assert sum(total.values()) == sum(first.values()) + sum(second.values())
    assert set(halved(total)) == set(first) | set(second)
    assert all(count >= 1 for count in halved(total).values())


def metric_of(name, statistic):
    return Metric(metric=name, statistic=statistic) if statistic else Metric(metric=name)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [("error_rate", None), ("score", None), ("latency_ms", "mean"), ("latency_ms", "p90"), ("tokens_per_s", "p10")],
)
@given(reference=histograms, seen=histograms, excess=st.floats(0, 2))
def test_values_lie_between_0_and_1_and_the_same_observations_are_no_harm(name, statistic, reference, seen, excess):
    """For equal observations the canary's mean is never above stable's, whatever is granted."""
    scale = Scale(metric_of(name, statistic), reference, excess, lenient=excess > 1)
    stable, canary = scale.stable(seen), scale.canary(seen)
    for values in (stable, canary):
        assert sum(values.values()) == sum(seen.values())
        assert all(0 <= value <= 1 for value in values)
    number = sum(seen.values())
    mean = [math.fsum(value * count for value, count in values.items()) / number for values in (stable, canary)]
    assert mean[1] <= mean[0] + 1e-12
    assert 0 < scale.guess() < 1


def mean_of(counts):
    return math.fsum(value * count for value, count in counts.items()) / sum(counts.values())


def test_granted_excess_is_exactly_what_makes_both_arms_equal():
    scale = Scale(Metric(metric="error_rate"), {}, 0.05, lenient=True)
    assert mean_of(scale.stable({0: 98, 1000: 2})) == pytest.approx(mean_of(scale.canary({0: 93, 1000: 7})))
    times = {index(MetricName.LATENCY_MS, value): 1 for value in range(100, 1000, 10)}
    slower = {bucket + 10: count for bucket, count in times.items()}
    scale = Scale(Metric(metric="latency_ms", statistic="mean"), times, math.expm1(10 * LOG_STEP), lenient=True)
    assert mean_of(scale.stable(times)) == pytest.approx(mean_of(scale.canary(slower)))


@given(
    st.lists(st.floats(1, 1e5), min_size=1, max_size=50),
    st.lists(st.floats(1, 1e5), min_size=1, max_size=50),
    st.floats(0, 2),
    st.sampled_from(["p10", "p50", "p90"]),
)
def test_rounding_at_a_quantile_is_on_the_safe_side(before, values, excess, statistic):
    """A canary slower by exactly what is granted does not look worse when harm is sought, nor better otherwise."""

    def counted(times):
        return dict(Counter(index(MetricName.LATENCY_MS, value) for value in times))

    metric = Metric(metric="latency_ms", statistic=statistic)
    slower = counted([value * (1 + excess) for value in values])
    for lenient in (True, False):
        scale = Scale(metric, counted(before), excess, lenient=lenient)
        stable, canary = mean_of(scale.stable(counted(values))), mean_of(scale.canary(slower))
        assert canary <= stable if lenient else canary >= stable


def test_attempt_shows_what_it_cost_and_brought():
    seen = observe(
        attempt(first_token_ms=200.0, usage=Usage(completion_tokens=80), cost_usd_micros=1500, duration_ms=1000.0)
    )
    assert seen == {
        MetricName.ERROR_RATE: 0,
        MetricName.DISCONNECT_RATE: 0,
        MetricName.LATENCY_MS: index(MetricName.LATENCY_MS, 1000),
        MetricName.FIRST_TOKEN_MS: index(MetricName.FIRST_TOKEN_MS, 200),
        MetricName.TOKENS_PER_S: index(MetricName.TOKENS_PER_S, 100),
        MetricName.COST_USD_MICROS: index(MetricName.COST_USD_MICROS, 1500),
    }


def test_failed_attempt_shows_no_latency():
    """A canary that fails fast is not a fast canary."""
    failed = attempt(outcome=Outcome.ERROR, error=AttemptError(kind=ErrorClass.SERVER), duration_ms=3.0)
    assert observe(failed) == {MetricName.ERROR_RATE: 1000, MetricName.DISCONNECT_RATE: 0}


def test_disconnect_is_no_error_and_cancelled_or_cached_attempts_say_nothing():
    assert observe(attempt(outcome=Outcome.DISCONNECTED)) == {MetricName.DISCONNECT_RATE: 1000}
    assert observe(attempt(outcome=Outcome.CANCELLED)) == {}
    assert observe(attempt(cached=True)) == {}
    assert observe(attempt(outcome=None)) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": None},
        {"usage": Usage(completion_tokens=3)},
        {"usage": Usage(completion_tokens=50), "first_token_ms": 1000.0},
        {"usage": Usage(completion_tokens=50), "duration_ms": None},
    ],
)
def test_speed_is_not_guessed(fields):
    assert MetricName.TOKENS_PER_S not in observe(attempt(**fields))
