from __future__ import annotations

import random
from collections import Counter

import pytest

from pointsman_canary import analysis
from pointsman_canary.analysis import Verdict
from pointsman_canary.experiment import Experiment, MetricName
from pointsman_canary.metrics import index


def experiment(*metrics, **fields) -> Experiment:
    fields = {"metrics": list(metrics or ("error_rate",)), "min_samples": 20, **fields}
    return Experiment.model_validate({"name": "x", "model": "m", "canary": "c", **fields})


def errors(rng, number, rate):
    bad = sum(rng.random() < rate for _ in range(number))
    return {"error_rate": {bucket: count for bucket, count in ((0, number - bad), (1000, bad)) if count}}


def times(rng, number, slower=1.0):
    seen = Counter(index(MetricName.LATENCY_MS, slower * rng.lognormvariate(6.5, 0.5)) for _ in range(number))
    return {"latency_ms": dict(seen)}


def watch(made, blocks, *, window_s=0.0):
    """Feed blocks of (stable, canary), one second each; return the state and the first verdict that is not open."""
    state = analysis.fresh(made)
    for number, (stable, canary) in enumerate(blocks, 1):
        state = analysis.elapsed(analysis.absorbed(state, made, stable, canary), made, 1.0)
        said = analysis.verdict(analysis.findings(state, made))
        if said is not Verdict.INCONCLUSIVE:
            return state, said, number
    return state, Verdict.INCONCLUSIVE, len(blocks)


def blocks(seed, number, make, **canary):
    rng = random.Random(seed)
    return [(make(rng, 95, *canary.get("stable", ())), make(rng, 5, *canary.get("canary", ()))) for _ in range(number)]


@pytest.mark.parametrize("seed", range(5))
def test_canary_that_fails_five_times_as_often_fails(seed):
    _, said, _ = watch(experiment(), blocks(seed, 200, errors, stable=(0.02,), canary=(0.10,)))
    assert said is Verdict.FAIL


@pytest.mark.parametrize("seed", range(5))
def test_equal_canary_passes(seed):
    _, said, _ = watch(experiment(), blocks(seed, 400, errors, stable=(0.02,), canary=(0.02,)))
    assert said is Verdict.PASS


def test_everything_that_fails_is_noticed_within_a_few_requests():
    state, said, number = watch(experiment(), blocks(1, 10, errors, stable=(0.02,), canary=(1.0,)))
    assert said is Verdict.FAIL
    assert number <= 2
    (found,) = analysis.findings(state, experiment())
    assert found.canary == 1.0
    assert found.canary_samples == 5 * number
    assert found.p_harm <= 0.01


@pytest.mark.parametrize(("slower", "expected"), [(1.0, Verdict.PASS), (1.6, Verdict.FAIL), (3.0, Verdict.FAIL)])
@pytest.mark.parametrize("statistic", ["p50", "p90", "mean"])
def test_latency_is_judged_by_its_margin_of_harm(slower, expected, statistic):
    made = experiment({"metric": "latency_ms", "statistic": statistic})
    _, said, _ = watch(made, blocks(3, 500, times, canary=(slower,)))
    assert said is expected


def test_latency_within_the_tolerance_never_fails():
    """Eight percent slower where ten are tolerated."""
    made = experiment("latency_ms", pass_on="samples", min_samples=10**6)
    _, said, _ = watch(made, blocks(4, 400, times, canary=(1.08,)))
    assert said is Verdict.INCONCLUSIVE


def test_incident_that_hits_both_arms_is_no_evidence_against_either():
    """The error rate jumps from 1 % to 60 % for both: no fail, though the canary is far worse than stable was before."""
    calm = blocks(5, 100, errors, stable=(0.01,), canary=(0.01,))
    storm = blocks(6, 200, errors, stable=(0.6,), canary=(0.6,))
    made = experiment(min_samples=10**6)
    _, said, _ = watch(made, calm + storm)
    assert said is Verdict.INCONCLUSIVE


def test_old_good_record_does_not_hide_a_new_failure():
    """After a thousand good canary requests five times the errors are noticed about as soon as at the beginning."""
    made = experiment(min_samples=10**6, window_s=100)
    good = blocks(7, 200, errors, stable=(0.02,), canary=(0.02,))
    bad = blocks(8, 200, errors, stable=(0.02,), canary=(0.10,))
    _, said, number = watch(made, good + bad)
    assert said is Verdict.FAIL
    assert 200 < number < 200 + 80
    forever = experiment(min_samples=10**6, window_s=10**6)
    _, _, without_windows = watch(forever, good + bad)
    assert number < without_windows


def test_pass_is_taken_back_when_the_record_turns_bad():
    made = experiment(window_s=50)
    state, said, _ = watch(made, blocks(9, 200, errors, stable=(0.02,), canary=(0.02,)))
    assert said is Verdict.PASS
    for stable, canary in blocks(10, 60, errors, stable=(0.02,), canary=(0.2,)):
        state = analysis.elapsed(analysis.absorbed(state, made, stable, canary), made, 1.0)
    assert analysis.verdict(analysis.findings(state, made)) is Verdict.FAIL


def test_few_samples_are_inconclusive_however_good():
    made = experiment(min_samples=500)
    state, said, _ = watch(made, blocks(11, 80, errors, stable=(0.02,), canary=(0.0,)))
    assert said is Verdict.INCONCLUSIVE
    assert analysis.findings(state, made)[0].p_harmless < 0.05


def test_pass_on_samples_needs_no_proof_but_is_held_back_by_suspicion():
    made = experiment(pass_on="samples", min_samples=20)
    _, said, number = watch(made, blocks(12, 50, errors, stable=(0.02,), canary=(0.0,)))
    assert (said, number) == (Verdict.PASS, 4)
    state = analysis.absorbed(
        analysis.fresh(made), made, {"error_rate": {0: 1900, 1000: 40}}, {"error_rate": {0: 92, 1000: 8}}
    )
    (found,) = analysis.findings(state, made)
    assert found.canary_samples >= 20
    assert found.verdict is Verdict.INCONCLUSIVE


def test_block_waits_for_both_arms_and_nothing_of_it_is_lost():
    made = experiment()
    state = analysis.fresh(made)
    for _ in range(10):
        state = analysis.absorbed(state, made, {"error_rate": {0: 7}}, {})
    assert analysis.findings(state, made)[0].stable_samples == 0
    state = analysis.absorbed(state, made, {}, {"error_rate": {1000: 1}})
    (found,) = analysis.findings(state, made)
    assert (found.stable_samples, found.canary_samples) == (70, 1)


def test_step_restarts_statistics_and_keeps_only_what_to_expect_of_stable():
    made = experiment()
    state, _, _ = watch(made, blocks(13, 400, errors, stable=(0.02,), canary=(0.02,)))
    again = analysis.restarted(state)
    (found,) = analysis.findings(again, made)
    assert (found.stable_samples, found.canary_samples, found.verdict) == (0, 0, Verdict.INCONCLUSIVE)
    assert (found.stable, found.canary, found.p_harm, found.p_harmless) == (None, None, 1.0, 1.0)
    before, after = state.comparisons["error_rate:mean"], again.comparisons["error_rate:mean"]
    assert after.reference == before.reference
    assert after.windows[0].restart == before.windows[-1].restart + 1


def test_later_restart_has_a_smaller_part_of_alpha():
    """The same evidence weighs 1/2 in the first window of a run and 1/6 in the second."""
    made = experiment()
    bad = ({"error_rate": {0: 95}}, {"error_rate": {0: 2, 1000: 3}})
    first = analysis.fresh(made)
    second = analysis.restarted(first)
    p_values = []
    for before in (first, second):
        state = analysis.absorbed(before, made, *bad)
        p_values.append(analysis.findings(state, made)[0].p_harm)
    assert p_values[1] == pytest.approx(3 * p_values[0])


def test_alpha_is_divided_among_metrics_by_share_and_among_arms():
    alone = experiment({"metric": "error_rate", "share": 1})
    shared = experiment({"metric": "error_rate", "share": 1}, {"metric": "disconnect_rate", "share": 3})
    two_arms = Experiment.model_validate(
        {
            "name": "x",
            "model": "m",
            "arms": {"b": {"target": "b", "percent": 1}, "c": {"target": "c", "percent": 1}},
            "metrics": ["error_rate"],
        }
    )
    p_values = []
    for made in (alone, shared, two_arms):
        state = analysis.absorbed(analysis.fresh(made), made, {"error_rate": {0: 95}}, {"error_rate": {0: 2, 1000: 3}})
        p_values.append(analysis.findings(state, made)[0].p_harm)
    assert p_values[1] == pytest.approx(4 * p_values[0])
    assert p_values[2] == pytest.approx(2 * p_values[0])


def test_metric_that_is_not_required_can_fail_but_is_not_waited_for():
    made = experiment("error_rate", {"metric": "score", "required": False})
    _, said, _ = watch(made, blocks(14, 400, errors, stable=(0.02,), canary=(0.02,)))
    assert said is Verdict.PASS
    rng = random.Random(15)
    state = analysis.fresh(made)
    for _ in range(100):
        good = {"score": {round(rng.uniform(100, 300)): 1 for _ in range(20)}}
        poor = {"score": {round(rng.uniform(500, 900)): 1 for _ in range(5)}}
        state = analysis.absorbed(state, made, good, poor)
    assert analysis.verdict(analysis.findings(state, made)) is Verdict.FAIL


def test_healthy_canary_is_hardly_ever_failed_however_often_one_looks():
    """150 rollouts of 100 looks at alpha 20 %: at most 30 are expected to fail, and 55 would be six deviations more."""
    made = experiment(alpha=0.2, min_samples=10**6, window_s=40)
    failed = sum(
        watch(made, blocks(1000 + seed, 100, errors, stable=(0.1,), canary=(0.1,)))[1] is Verdict.FAIL
        for seed in range(150)
    )
    assert failed <= 55


def test_reference_forgets():
    """What stable was long ago does not decide what is expected of it."""
    made = experiment()
    state = analysis.fresh(made)
    for _ in range(100):
        state = analysis.absorbed(state, made, {"error_rate": {0: 200}}, {"error_rate": {0: 1}})
    for _ in range(40):
        state = analysis.absorbed(state, made, {"error_rate": {1000: 200}}, {"error_rate": {1000: 1}})
    reference = state.comparisons["error_rate:mean"].reference
    assert sum(reference.values()) <= 4000
    assert reference[1000] > 5 * reference[0]


def test_window_counts_for_its_own_time_and_the_next():
    made = experiment(window_s=10)
    state = analysis.fresh(made)
    samples = []
    for number in range(1, 5):
        state = analysis.absorbed(state, made, {"error_rate": {0: 10 * number}}, {"error_rate": {0: number}})
        samples.append(analysis.findings(state, made)[0].canary_samples)
        state = analysis.elapsed(state, made, 10.0)
    assert samples == [1, 1 + 2, 2 + 3, 3 + 4]
    windows = state.comparisons["error_rate:mean"].windows
    assert [(window.restart, window.in_step) for window in windows] == [(4, 4), (5, 5)]


def broken_stable(canary_latency, *, stable_latency=None, canary_errors=None, number=40):
    stable = {"error_rate": {1000: 10}, **({"latency_ms": stable_latency} if stable_latency else {})}
    canary = {"error_rate": canary_errors or {0: 10}, **({"latency_ms": canary_latency} if canary_latency else {})}
    return [(stable, canary)] * number


@pytest.mark.parametrize("before", [0, 60])
def test_stable_that_answers_nothing_does_not_block_a_canary_that_answers(before):
    """Also when stable has answered in an earlier step, so that there is a reference."""
    made = experiment("error_rate", "latency_ms")
    state = analysis.fresh(made)
    for stable, canary in blocks(20, before, errors, stable=(0.02,), canary=(0.02,)):
        both = (times(random.Random(1), 30), times(random.Random(2), 30))
        state = analysis.absorbed(state, made, {**stable, **both[0]}, {**canary, **both[1]})
    state = analysis.restarted(state)
    for stable, canary in broken_stable({600: 10}):
        state = analysis.absorbed(state, made, stable, canary)
    rate, latency = analysis.findings(state, made)
    assert analysis.verdict((rate, latency)) is Verdict.PASS
    assert (rate.verdict, latency.verdict, latency.needed) == (Verdict.PASS, Verdict.INCONCLUSIVE, False)
    assert latency.canary_waiting == 400
    assert "stable has only 0 observations" in latency.note


@pytest.mark.parametrize("canary", [None, {600: 1}])
def test_latency_that_the_canary_hardly_shows_does_not_keep_a_broken_stable(canary):
    """First tokens of plain answers, speeds of short ones: there is nothing to wait for."""
    made = experiment("error_rate", "latency_ms")
    state, said, _ = watch(made, [*broken_stable(None), *broken_stable(canary, number=1)])
    assert said is Verdict.PASS
    assert not analysis.findings(state, made)[1].needed


def test_broken_stable_does_not_promote_a_canary_that_is_as_broken():
    made = experiment("error_rate", "latency_ms")
    _, said, _ = watch(made, broken_stable(None, canary_errors={1000: 10}, number=200))
    assert said is Verdict.INCONCLUSIVE


def test_latency_that_is_only_rare_is_waited_for():
    """Stable works, but has no observation of the metric: that is not known to be fine."""
    made = experiment("error_rate", "first_token_ms")
    state, said, _ = watch(
        made, [({"error_rate": {0: 98, 1000: 2}}, {"error_rate": {0: 10}, "first_token_ms": {500: 10}})] * 40
    )
    assert said is Verdict.INCONCLUSIVE
    assert analysis.findings(state, made)[1].needed


def test_window_ends_after_enough_observations_too():
    made = experiment(window_s=10**6, window_samples=30)
    state = analysis.fresh(made)
    for _ in range(4):
        state = analysis.absorbed(state, made, {"error_rate": {0: 50}}, {"error_rate": {0: 15}})
        state = analysis.elapsed(state, made, 1.0)
    assert [window.in_step for window in state.comparisons["error_rate:mean"].windows] == [2, 3]


def test_success_below_the_threshold_fails_although_stable_is_no_better():
    made = experiment(min_success_ratio=0.9)
    state, said, number = watch(made, [({"error_rate": {0: 5, 1000: 5}}, {"error_rate": {0: 5, 1000: 5}})] * 50)
    assert said is Verdict.FAIL
    assert number < 10
    found = analysis.findings(state, made)[-1]
    assert (found.metric, found.verdict, found.canary) == ("success_ratio:min", Verdict.FAIL, 0.5)
    assert "threshold 0.9" in found.note


def test_success_above_the_threshold_is_needed_for_a_pass():
    good = [({"error_rate": {0: 98, 1000: 2}}, {"error_rate": {0: 98, 1000: 2}})] * 30
    assert watch(experiment(min_success_ratio=0.9), good)[1] is Verdict.PASS
    slightly_below = experiment(min_success_ratio=0.981)
    assert watch(slightly_below, good[:5])[1] is Verdict.INCONCLUSIVE


def test_threshold_has_its_part_of_alpha():
    """Of 100 arms exactly at the threshold, watched 60 times, at most its half of alpha (20 %) is expected to fail."""
    made = experiment(alpha=0.2, min_success_ratio=0.9, min_samples=10**6)
    failed = 0
    for seed in range(100):
        rng = random.Random(5000 + seed)
        state = analysis.fresh(made)
        for _ in range(60):
            state = analysis.absorbed(state, made, {}, errors(rng, 5, 0.1))
            if analysis.findings(state, made)[-1].verdict is Verdict.FAIL:
                failed += 1
                break
    assert failed <= 20
