from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import StoreCorrupt
from pointsman.types import AttemptError, AttemptKind, Deployment, ErrorClass, Outcome, Quantiles
from pointsman_registry.metrics import WINDOW, LiveMetrics, Sample, Timing, quantiles, sample, serves
from pointsman_registry.repository import decode_metrics, encode_metrics

times = st.integers(0, 60_000).map(lambda ms: ms / 1000)
ms = st.integers(0, 5000).map(float)
timings = st.builds(Timing, times, ms, st.none() | ms)
samples = st.builds(Sample, at=times, error=st.booleans(), cancelled=st.booleans(), timing=st.none() | timings)


def test_nearest_rank_of_1_to_100_is_50_95_99():
    values = [float(value) for value in range(100, 0, -1)]
    assert quantiles(values) == Quantiles(p50=50.0, p95=95.0, p99=99.0, count=100)


@given(st.lists(ms, min_size=1, max_size=300))
def test_nearest_rank_is_the_smallest_value_with_its_share_at_or_below(values):
    found = quantiles(values)
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value == min(v for v in values if sum(w <= v for w in values) * 100 >= percent * len(values))


def test_nothing_measured_has_no_quantiles():
    empty = LiveMetrics(since=0.0)
    assert (empty.latency_ms(), empty.first_token_ms(), empty.error_ratio, empty.updated_at) == (None, None, 0.0, None)


@given(st.lists(st.lists(samples, max_size=6), max_size=6), st.randoms(use_true_random=False))
def test_batches_of_several_workers_add_up_in_any_order(batches, shuffler):
    """Merging is commutative and associative: only what was seen decides, not who handed it in when."""
    together = LiveMetrics(since=5.0).plus([each for batch in batches for each in batch])
    shuffler.shuffle(batches)
    one_by_one = LiveMetrics(since=5.0)
    for batch in batches:
        one_by_one = one_by_one.plus(batch)
    assert one_by_one == together
    counted = [each for batch in batches for each in batch if each.at >= 5.0]
    assert (together.requests, together.errors) == (len(counted), sum(each.error for each in counted))


def test_window_keeps_the_newest_answers_only():
    """Memory is bounded, counts go on, and a version that became slow shows it."""
    metrics = LiveMetrics(since=0.0)
    for value in range(3 * WINDOW):
        metrics = metrics.plus([Sample(at=value, timing=Timing(value, float(value)))])
    assert len(metrics.window) == WINDOW
    assert metrics.requests == 3 * WINDOW
    assert metrics.latency_ms() == Quantiles(p50=2499.0, p95=2949.0, p99=2989.0, count=WINDOW)


def test_first_token_times_come_from_streams_only():
    seen = [Sample(at=1, timing=Timing(1, 90.0, 30.0)), Sample(at=2, timing=Timing(2, 10.0)), Sample(at=3, error=True)]
    metrics = LiveMetrics(since=0.0).plus(seen)
    assert metrics.first_token_ms() == Quantiles(p50=30.0, p95=30.0, p99=30.0, count=1)
    assert metrics.latency_ms().count == 2
    assert metrics.error_ratio == pytest.approx(1 / 3)


@given(st.lists(samples, max_size=20))
def test_stored_metrics_are_read_back_as_they_were(seen):
    metrics = LiveMetrics(since=1.5).plus(seen)
    assert decode_metrics("v", json.loads(json.dumps(encode_metrics(metrics)))) == metrics


@pytest.mark.parametrize("row", [1, [], {}, {"window": [[1, 2]]}, {"window": []}, {"window": "x", "since": 0}])
def test_foreign_row_is_refused(row):
    with pytest.raises(StoreCorrupt, match="live/tally/v"):
        decode_metrics("v", row)


REFUSED = AttemptError(kind=ErrorClass.REFUSED)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"first_token_ms": 4.0}, {"timing": Timing(9.0, 10.0, 4.0)}),
        ({"kind": AttemptKind.RETRY}, {"timing": Timing(9.0, 10.0)}),
        ({"kind": AttemptKind.HEDGE}, {"timing": Timing(9.0, 10.0)}),
        ({"cached": True}, {}),
        ({"duration_ms": None}, {}),
        ({"outcome": Outcome.ERROR}, {"error": True}),
        ({"outcome": Outcome.CANCELLED}, {"cancelled": True}),
        ({"outcome": Outcome.DISCONNECTED}, {"cancelled": True}),
        ({"kind": AttemptKind.MIRROR}, None),
        ({"kind": AttemptKind.PROBE}, None),
        ({"kind": AttemptKind.JUDGE, "outcome": Outcome.ERROR}, None),
        ({"outcome": Outcome.ERROR, "error": REFUSED}, None),
        ({"outcome": Outcome.ERROR, "error": AttemptError(kind=ErrorClass.TIMEOUT)}, {"error": True}),
        ({"outcome": Outcome.ERROR, "error": AttemptError(kind=ErrorClass.TIMEOUT, client_caused=True)}, None),
        ({"outcome": Outcome.ERROR, "error": AttemptError(kind=ErrorClass.AUTH, client_caused=True)}, None),
        ({"outcome": Outcome.ERROR, "error": AttemptError(kind=ErrorClass.CLIENT, status=400)}, {}),
        ({"error": AttemptError(kind=ErrorClass.EMPTY, status=200)}, {"error": True}),
        ({"error": AttemptError(kind=ErrorClass.EMPTY, status=200), "cached": True}, {}),
    ],
)
def test_what_an_attempt_counts_as(kit, fields, expected):
    """Own calls and refused attempts are not client traffic; a client's own mistake is no error; no content is one."""
    seen = sample(kit.attempt("v", **fields), 9.0)
    wanted = None if expected is None else {"at": 9.0, "error": False, "cancelled": False, "timing": None, **expected}
    assert (seen and {**asdict(seen), "timing": seen.timing}) == wanted


def test_only_the_deployments_of_the_path_count():
    deployment = Deployment(id="dep-a", group="small", provider="openai", model="gpt")
    assert [serves(path, deployment) for path in ("dep-a", "small", "large")] == [True, True, False]
