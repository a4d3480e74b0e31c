from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.stats import merged
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Deployment,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Route,
    Settlement,
    Usage,
)
from pointsman_canary.experiment import Metric, MetricName
from pointsman_canary.metrics import LOG_STEP, Scale, figure, halved, index, observe, quantile_bucket

POSITIVE = [MetricName.LATENCY_MS, MetricName.FIRST_TOKEN_MS, MetricName.TOKENS_PER_S, MetricName.COST_USD_MICROS]

histograms = st.dictionaries(st.integers(0, 400), st.integers(1, 50), min_size=1, max_size=12)


def attempt(**fields) -> Attempt:
    defaults = {
        "id": "a",
        "number": 1,
        "kind": AttemptKind.PRIMARY,
        "outcome": Outcome.OK,
        "duration_ms": 1000.0,
    }
    return Attempt(
        request_id="r",
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
        latency = merged(latency, {index(MetricName.LATENCY_MS, value): 1})
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
    total = merged(first, second)
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


def settled(*attempts, outcome=Outcome.OK, answered_by=0, executor=None, duration_ms=1000.0, first_token_ms=None):
    """Return a request with these attempts, answered by the one of this index."""
    return Settlement(
        request_id="r",
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=first_token_ms is not None,
        identity=Identity(),
        route=Route(target="g", executor=executor),
        outcome=outcome,
        status_code=200,
        started_at=100.0,
        finished_at=102.0,
        duration_ms=duration_ms,
        first_token_ms=first_token_ms,
        attempts=attempts,
        answered_by=None if answered_by is None else attempts[answered_by].id,
    )


def seen_of(request, own=None):
    return observe(request, request.attempts if own is None else own)


FAILED = {MetricName.ERROR_RATE: 1000, MetricName.DISCONNECT_RATE: 0}


def failed(kind=ErrorClass.SERVER, **fields) -> Attempt:
    return attempt(id="failed", outcome=Outcome.ERROR, error=AttemptError(kind=kind, **fields), duration_ms=3.0)


def test_request_shows_what_it_cost_and_brought():
    answer = attempt(usage=Usage(completion_tokens=80), cost_usd_micros=1500, duration_ms=900.0)
    assert seen_of(settled(answer, first_token_ms=200.0)) == {
        MetricName.ERROR_RATE: 0,
        MetricName.DISCONNECT_RATE: 0,
        MetricName.LATENCY_MS: index(MetricName.LATENCY_MS, 1000),
        MetricName.FIRST_TOKEN_MS: index(MetricName.FIRST_TOKEN_MS, 200),
        MetricName.TOKENS_PER_S: index(MetricName.TOKENS_PER_S, 100),
        MetricName.COST_USD_MICROS: index(MetricName.COST_USD_MICROS, 1500),
    }


def test_a_request_that_only_reads_or_opens_a_websocket_says_nothing():
    assert seen_of(replace(settled(attempt(duration_ms=None)), generates=False)) == {}


def test_a_background_response_has_a_cost_and_no_speed():
    """When it is looked at is when its end is seen."""
    answer = attempt(usage=Usage(completion_tokens=80), cost_usd_micros=1500, duration_ms=None)
    assert seen_of(settled(answer)) == {
        MetricName.ERROR_RATE: 0,
        MetricName.DISCONNECT_RATE: 0,
        MetricName.COST_USD_MICROS: index(MetricName.COST_USD_MICROS, 1500),
    }


def test_raced_request_is_as_slow_as_its_client_saw_it_and_costs_what_all_its_attempts_cost():
    slow = attempt(id="slow", outcome=Outcome.CANCELLED, duration_ms=1020.0, cost_usd_micros=900)
    quick = attempt(id="quick", kind=AttemptKind.HEDGE, number=2, duration_ms=20.0, cost_usd_micros=100)
    seen = seen_of(settled(slow, quick, answered_by=1, executor="racing", duration_ms=1030.0))
    assert seen[MetricName.LATENCY_MS] == index(MetricName.LATENCY_MS, 1030)
    assert seen[MetricName.COST_USD_MICROS] == index(MetricName.COST_USD_MICROS, 1000)
    assert seen[MetricName.ERROR_RATE] == 0


def test_race_is_one_attempt_and_a_retry_is_not():
    """A failed attempt of a race that is won is no failure; a failed attempt that a retry makes good is one."""
    requests = [settled(failed(), attempt(number=2), answered_by=1, executor=name) for name in ("racing", None)]
    assert [seen_of(request)[MetricName.ERROR_RATE] for request in requests] == [0, 1000]
    assert {seen_of(request)[MetricName.LATENCY_MS] for request in requests} == {index(MetricName.LATENCY_MS, 1000)}


def test_failed_request_shows_no_latency():
    """A canary that fails fast is not a fast canary, also when a fallback answers for it."""
    assert seen_of(settled(failed(), answered_by=None, outcome=Outcome.ERROR)) == FAILED
    fallback = attempt(kind=AttemptKind.FALLBACK, number=2)
    assert seen_of(settled(failed(), fallback, answered_by=1), own=[failed()]) == FAILED
    assert seen_of(settled(fallback), own=[]) == FAILED


def test_answer_without_content_is_a_failure_and_shows_no_speed():
    empty = attempt(error=AttemptError(kind=ErrorClass.EMPTY))
    assert seen_of(settled(empty)) == FAILED
    assert seen_of(settled(empty, executor="racing")) == FAILED


def test_error_that_the_client_caused_says_nothing():
    timeout = failed(ErrorClass.TIMEOUT, client_caused=True)
    assert seen_of(settled(timeout, answered_by=None, outcome=Outcome.ERROR)) == {}
    assert seen_of(settled(timeout, attempt(number=2), answered_by=1))[MetricName.ERROR_RATE] == 0


def test_refused_attempt_is_none_unless_the_arm_does_not_answer():
    refused = failed(ErrorClass.REFUSED)
    assert seen_of(settled(refused, attempt(number=2), answered_by=1))[MetricName.ERROR_RATE] == 0
    assert seen_of(settled(refused, answered_by=None, outcome=Outcome.ERROR)) == FAILED


def test_disconnect_is_no_error_and_denied_cancelled_or_cached_requests_say_nothing():
    left = attempt(outcome=Outcome.DISCONNECTED)
    assert seen_of(settled(left, outcome=Outcome.DISCONNECTED, answered_by=None)) == {MetricName.DISCONNECT_RATE: 1000}
    waited = settled(failed(), outcome=Outcome.DISCONNECTED, answered_by=None)
    assert seen_of(waited) == {MetricName.ERROR_RATE: 1000, MetricName.DISCONNECT_RATE: 1000}
    for outcome in (Outcome.DENIED, Outcome.CANCELLED):
        assert seen_of(settled(attempt(outcome=Outcome.CANCELLED), outcome=outcome, answered_by=None)) == {}
    assert seen_of(settled(attempt(cached=True))) == {}


def test_settlement_of_an_earlier_release_has_its_duration_in_its_times():
    seen = seen_of(settled(attempt(), duration_ms=None))
    assert seen[MetricName.LATENCY_MS] == index(MetricName.LATENCY_MS, 2000)


@pytest.mark.parametrize(
    ("usage", "first_token_ms"),
    [(None, None), (Usage(completion_tokens=3), None), (Usage(completion_tokens=50), 1000.0)],
)
def test_speed_is_not_guessed(usage, first_token_ms):
    assert MetricName.TOKENS_PER_S not in seen_of(settled(attempt(usage=usage), first_token_ms=first_token_ms))
