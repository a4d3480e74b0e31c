"""Whole tactics over a fleet in which one deployment falls ill for a while. Simulated, so the same in every run."""

from __future__ import annotations

from statistics import mean

import pytest

from .simulation import Simulation

SEEDS = range(1, 6)
NAIVE = {"tactic": "random", "breaker": {"enabled": False}}


def runs(config, **changes):
    return [Simulation(config, seed=seed, **changes).run() for seed in SEEDS]


@pytest.fixture(scope="module")
def naive():
    return runs(NAIVE)


@pytest.mark.parametrize("tactic", ["adaptive", "p2c"])
def test_the_slowest_hundredth_is_at_most_half_of_a_random_choice(naive, tactic):
    ours = runs({"tactic": tactic})
    assert mean(run.quantile(0.99) for run in ours) <= mean(run.quantile(0.99) for run in naive) / 2
    assert mean(run.quantile(0.5) for run in ours) <= mean(run.quantile(0.5) for run in naive)
    assert sum(run.errors for run in ours) == 0


@pytest.mark.parametrize("tactic", ["adaptive", "p2c"])
def test_the_sick_one_gets_less_than_a_twentieth_after_three_seconds(naive, tactic):
    ours = runs({"tactic": tactic})
    assert mean(run.share(15, 24) for run in ours) < 0.05
    assert mean(run.share(15, 24) for run in naive) > 0.1


def test_the_sick_one_is_asked_again_soon_after_it_has_recovered():
    ours = runs({"tactic": "adaptive"}, length_s=50.0)
    for run in ours:
        again = [at for at, name in run.attempts if name == "sick" and at >= 24]
        assert again[0] - 24 < 12
    assert mean(run.share(38, 50) for run in ours) > 0.02


def test_a_limit_is_met_once_in_its_window():
    """The others do not run into a 429 that one has met: the breaker is open until the reset."""
    for run in runs({"tactic": "random"}):
        in_first = sum(name == "limited" for at, name in run.attempts if at < 10)
        assert in_first <= 20 + 4, "the quota, and who was on the way"


def test_breakers_alone_keep_a_random_choice_from_a_dead_deployment():
    """It fails at once, so that no tactic that looks at times would see anything wrong."""
    dead = {"error_ratio": 1.0, "slower": 0.1}
    ours, naive = runs({"tactic": "random"}, **dead), runs(NAIVE, **dead)
    assert mean(run.share(15, 24) for run in naive) > 0.1
    assert mean(run.share(15, 24) for run in ours) < 0.03
    assert all(any(name == "sick" and 24 <= at < 34 for at, name in run.attempts) for run in ours)
