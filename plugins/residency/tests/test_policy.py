"""The policy in simulated time, beside plain LRU and the offline optimum."""

from __future__ import annotations

import random

import pytest

from pointsman_residency.policy import Policy

from .simulation import LRU, Simulation, belady, clairvoyant, zipf

NAMES = [f"m{number}" for number in range(10)]
EQUAL = dict.fromkeys(NAMES, 1)


def closed(policy, trace, clients=20):
    simulation = Simulation(EQUAL, 3, policy, load_s=0.3, serve_s=0.05)
    return simulation.closed_loop([trace[client::clients] for client in range(clients)])


@pytest.mark.parametrize("seed", range(3))
def test_twenty_clients_need_far_fewer_loads_than_with_lru(seed):
    """Ten models by Zipf, room for three: fewer loads than the optimum for the order of the requests, since they collect."""
    trace = zipf(NAMES, 300, seed=seed)
    ours, lru = closed(Policy(), trace), closed(LRU, trace)
    assert ours.loads <= min(50, 0.65 * lru.loads, 1.3 * belady(trace, 3))
    assert ours.finished_at <= 15.0
    assert ours.p(0.95) <= 1.8
    assert len(ours.waits) == 300


@pytest.mark.parametrize("seed", range(3))
def test_not_to_know_the_requests_beforehand_costs_less_than_as_many_loads_again(seed):
    """Beside a schedule that knows all of them and lets no request wait longer than five loads."""
    trace = zipf(NAMES, 300, seed=seed)
    known = clairvoyant([trace[client::20] for client in range(20)], 3, patience=5)
    assert known <= 35
    assert closed(Policy(), trace).loads <= 1.75 * known


@pytest.mark.parametrize(
    ("clients", "room", "loads"),
    [(["ab", "ba"], 1, 3), (["ab", "ba"], 2, 2), (["aaa", "a"], 1, 1), (["abc"] * 9, 1, 3)],
)
def test_who_knows_the_requests_needs_as_few_loads_as_can_be_seen_to_do(clients, room, loads):
    assert clairvoyant(clients, room, patience=10) == loads


def test_a_thousand_requests_at_once_load_each_model_once():
    trace = zipf(NAMES, 1000)
    result = Simulation(EQUAL, 3, Policy(), load_s=0.3, serve_s=0.05).open_loop([(0.0, name) for name in trace])
    assert (result.loads, len(result.waits)) == (10, 1000)


def test_a_higher_swap_ratio_loads_less_often():
    trace = zipf(NAMES, 300, seed=5)
    loads = [closed(Policy(swap_ratio=ratio), trace).loads for ratio in (0.0, 2.0, 16.0)]
    assert loads == sorted(loads, reverse=True)
    assert loads[0] > 1.2 * loads[2]


@pytest.mark.parametrize("load_s", [0.3, 3.0, 30.0])
def test_six_busy_clients_do_not_keep_a_rare_model_out_for_ever(load_s):
    """Its wait is bounded by max_wait_s, one request of the busy model and two loads: out, and in again."""
    policy = Policy(max_wait_s=10.0)
    simulation = Simulation({"hot": 1, "cold": 1}, 1, policy, load_s=load_s, serve_s=0.5, parallel=1)
    result = simulation.closed_loop([["hot"] * 60] * 6 + [["cold"] * 4])
    queued = 6 * 0.5
    assert max(result.by_model["cold"]) <= 10.0 + queued + 2 * load_s + 0.1
    assert len(result.by_model["cold"]) == 4
    assert len(result.by_model["hot"]) == 360


def test_the_busy_model_loses_little_to_the_rare_one():
    """One request for the rare model now and then costs the busy one at most a fifth of its throughput."""
    alone = Simulation({"hot": 1}, 1, Policy(), load_s=1.0, serve_s=0.5, parallel=1).closed_loop([["hot"] * 60] * 6)
    policy = Policy(max_wait_s=10.0, swap_ratio=5.0)
    both = Simulation({"hot": 1, "cold": 1}, 1, policy, load_s=1.0, serve_s=0.5, parallel=1)
    result = both.closed_loop([["hot"] * 60] * 6 + [["cold"] * 30])
    hot_ended_at = max(both.ended["hot"])
    assert hot_ended_at <= 1.25 * alone.finished_at
    assert result.by_model["cold"]


def test_a_model_asked_for_once_a_minute_waits_for_its_turn_behind_one_asked_for_ten_times_a_second():
    rng = random.Random(3)
    trace, now = [(60.0 * minute + 30.0, "rare") for minute in range(5)], 0.0
    while now < 300.0:
        now += rng.expovariate(10.0)
        trace.append((now, "busy"))
    policy = Policy(max_wait_s=8.0)
    ours = Simulation({"busy": 1, "rare": 1}, 1, policy, load_s=1.0, serve_s=0.02).open_loop(sorted(trace))
    lru = Simulation({"busy": 1, "rare": 1}, 1, LRU, load_s=1.0, serve_s=0.02).open_loop(sorted(trace))
    # Each of the five is met once, when it is overdue.
    assert ours.loads == lru.loads == 11
    assert all(8.0 <= wait <= 9.5 for wait in ours.by_model["rare"])


def test_after_a_burst_everything_has_been_answered_within_its_deadline():
    trace = zipf(NAMES, 1000, seed=9)
    simulation = Simulation(EQUAL, 3, Policy(max_wait_s=5.0), load_s=0.3, serve_s=0.05, deadline_s=30.0)
    result = simulation.open_loop([(0.0, name) for name in trace])
    assert (result.late, len(result.waits)) == (0, 1000)


@pytest.mark.parametrize(
    ("trace", "room", "loads"), [("abcabc", 2, 4), ("aaaa", 1, 1), ("abab", 1, 4), ("abcdabc", 3, 5)]
)
def test_the_optimum_is_the_known_one(trace, room, loads):
    assert belady(list(trace), room) == loads
