from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from pointsman_canary import lifecycle, planning
from pointsman_canary.config import CanaryConfig
from pointsman_canary.experiment import Experiment, MetricName
from pointsman_canary.lifecycle import Cause
from pointsman_canary.metrics import index
from pointsman_canary.rollout import Phase

DAY_S = 86_400.0


def experiment(**fields) -> Experiment:
    return Experiment.model_validate({"name": "x", "model": "m", "canary": "c", **fields})


def test_defaults_promote_within_a_day_at_one_request_per_second():
    estimate = planning.planned(experiment(), 1.0)
    assert estimate.seconds < DAY_S / 2


@pytest.mark.parametrize("requests_per_s", [0.2, 5.0])
def test_no_default_limit_is_reached_at_rare_or_frequent_requests(requests_per_s):
    made = experiment()
    estimate = planning.planned(made, requests_per_s)
    assert estimate.seconds < made.inconclusive_limit_s
    assert estimate.requests < made.inconclusive_samples


def test_estimate_is_near_what_a_simulated_canary_needs():
    """Both arms alike, in exact proportions, so that chance plays no part."""
    made = experiment(steps=[50, 100], metrics=["error_rate"], interval_s=1, min_samples=1)
    estimate = planning.planned(made, 2.0)
    rollout, _ = lifecycle.create(made, "config", Cause("a", "b", 0.0))
    seen = {arm: {"error_rate": {0: 49, 1000: 1}} for arm in ("stable", "canary")}
    requests = 0
    while not rollout.finished and requests < 100_000:
        requests += 100
        rollout, _ = lifecycle.tick(rollout, requests / 2.0, seen)
    assert estimate.requests == pytest.approx(requests, rel=0.35)


@pytest.mark.parametrize(("sigma", "error_rate"), [(0.6, 0.02), (1.2, 0.02), (0.6, 0.25), (1.2, 0.25)])
def test_healthy_canary_is_promoted_within_a_day_at_one_request_per_second(sigma, error_rate):
    """The default definition, with chance in everything: arms, errors, and latencies that vary by a factor of 3 or 11."""
    promoted = [promoted_within_a_day(random.Random(seed), sigma, error_rate) for seed in range(3)]
    assert sum(promoted) >= 2


def promoted_within_a_day(rng: random.Random, sigma: float, error_rate: float) -> bool:
    rollout, _ = lifecycle.create(experiment(), "config", Cause("a", "b", 0.0))
    now = 0.0
    while not rollout.finished and now < DAY_S:
        now += 60
        seen = {arm: {"error_rate": Counter(), "latency_ms": Counter()} for arm in ("stable", "canary")}
        for _ in range(60):
            arm = "canary" if rng.random() < rollout.weights_bp[0] / 10_000 else "stable"
            failed = rng.random() < error_rate
            seen[arm]["error_rate"][1000 if failed else 0] += 1
            if not failed:
                seen[arm]["latency_ms"][index(MetricName.LATENCY_MS, rng.lognormvariate(6.0, sigma))] += 1
        rollout, _ = lifecycle.tick(rollout, now, seen)
    return rollout.phase is Phase.PROMOTED


def test_step_by_samples_needs_the_rarer_arms_samples():
    made = experiment(steps=[10, 100], pass_on="samples", min_samples=50)
    assert planning.planned(made, None) == planning.Estimate(requests=500, seconds=None)
    assert planning.planned(made, 1.0).seconds == made.interval_s


def test_margin_that_cannot_be_shown_is_never():
    made = experiment(metrics=[{"metric": "error_rate", "margin": 1e-9}])
    assert planning.planned(made, 1.0) == planning.Estimate(requests=None, seconds=None)


def test_running_rollout_is_estimated_at_its_own_traffic_and_others_are_not():
    made = experiment(metrics=["error_rate"], interval_s=10)
    rollout, _ = lifecycle.create(made, "config", Cause("a", "b", 0.0))
    assert planning.remaining(rollout).seconds is None
    seen = {
        "stable": {"error_rate": {0: 49}, "disconnect_rate": {0: 49}},
        "canary": {"error_rate": {0: 1}, "disconnect_rate": {0: 1}},
    }
    for number in range(1, 5):
        rollout, _ = lifecycle.tick(rollout, number * 5.0, seen)
    assert rollout.requests_per_s == pytest.approx(200 / 15)
    estimate = planning.remaining(rollout)
    assert 0 < estimate.requests < math.inf
    assert estimate.seconds == pytest.approx(estimate.requests / rollout.requests_per_s, rel=0.3)
    paused, _ = lifecycle.pause(rollout, Cause("a", "b", 30.0))
    assert planning.remaining(paused) is None


def test_check_says_how_long_each_rollout_takes():
    plan = {"stable": "a", "canary": "b", "steps": [50, 100], "interval_s": 60}
    written = [{"name": "one", "model": "m", **plan}, {"name": "two", "model": "n", **plan}]
    config = CanaryConfig.model_validate({"experiments": written})
    one, two = config.notes()
    estimate = planning.planned(config.experiments[0], 1.0)
    assert one.startswith(f"experiment 'one': about {estimate.requests} requests until")
    assert "at one a second" in two


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"steps": [100]}, "the canary is promoted at once, without a comparison"),
        (
            {"steps": [100], "gates": {"before_promotion": "ready"}},
            "as soon as its gate before_promotion allows it, without a comparison",
        ),
        (
            {"steps": [10]},
            "requests until a canary that is like stable has passed its last step and waits for 'promote'",
        ),
        ({"steps": [10, "pause", 100]}, "requests until a canary that is like stable is promoted; at one a second"),
    ],
)
def test_check_says_what_comes_after_the_steps(fields, note):
    written = {"name": "x", "model": "m", "canary": "c", **fields}
    config = CanaryConfig.model_validate(
        {"experiments": [written], "webhooks": {"ready": {"url": "http://127.0.0.1:1/"}}}
    )
    assert note in "".join(config.notes())
    rollout, _ = lifecycle.create(config.experiments[0], "config", Cause("a", "b", 0.0))
    assert (rollout.phase is Phase.PROMOTED) == ("promoted at once" in note)
