"""What each tactic does, and that none has the faults such tactics usually have."""

from __future__ import annotations

from collections import Counter

import pytest

from pointsman.types import ErrorClass, Limit, Quantiles, Signal, SignalStatus
from pointsman_balance.tactics import BUILT_IN

NOW = 1_700_000_000.0


def counts(table, number=400, now=NOW, **changes):
    return Counter(table.choose(now=now, **changes) for _ in range(number))


def quota(id_, *limits, **changes):
    made = [
        Limit(axis=axis, limit=size, remaining=left, resets_at=NOW + reset_s, window_s=60.0)
        for axis, size, left, reset_s in limits
    ]
    return Signal(deployment_id=id_, status=SignalStatus.AVAILABLE, recorded_at=NOW, limits=tuple(made), **changes)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_ties_are_broken_at_random_and_cold_deployments_are_explored(table_of, request_of, name):
    """Without any knowledge all are used, and the first in the list is not favoured."""
    table = table_of("a", "b", "c", tactic={"name": name, **({"block_tokens": 1} if name == "token_based" else {})})
    seen = Counter()
    for number in range(300):
        request = request_of(session_id=f"s{number}")
        chosen = table.choose(request)
        seen[chosen] += 1
        if name in {"speed_based", "token_based"}:
            table.see(chosen, NOW + number, request=request)
    assert min(seen[one] for one in "abc") > 50, seen


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_cold_deployment_among_warm_ones_is_explored(table_of, request_of, name):
    table = table_of("a", "b", "cold", tactic=name)
    for one in "ab":
        for _ in range(6):
            table.see(one)
    seen = {table.choose(request_of(session_id=f"s{number}")) for number in range(200)}
    assert "cold" in seen or name == "token_based"
    if name == "token_based":
        table.see("a", usage=None)
        assert "cold" in {table.choose() for _ in range(50)}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_tactic_finds_someone_whatever_is_known(table_of, request_of, deployment_of, name):
    """Weights of 0, no capacity, quotas of 0 and of the past, prices unknown."""
    odd = [
        deployment_of("a", weight=0.0),
        deployment_of("b", weight=0.0, rpm=0),
        deployment_of("c", weight=0.0, info={"capacity": -1}),
    ]
    table = table_of(*odd, tactic=name)
    table.signals["a"] = quota("a", ("requests", 0.0, 0.0, -5), ("tokens", 10.0, 0.0, 0))
    table.signals["b"] = quota("b", ("requests", 5.0, 5.0, 1e9))
    table.see("c", error=ErrorClass.SERVER)
    for stream in (True, False):
        assert {table.choose(request_of(stream=stream, body={})) for _ in range(20)} <= {"a", "b", "c"}


def test_random_goes_by_weight(table_of, deployment_of):
    table = table_of(
        deployment_of("a", weight=3.0), deployment_of("b"), deployment_of("none", weight=0.0), tactic="random"
    )
    seen = counts(table)
    assert seen["none"] == 0
    assert seen["a"] == pytest.approx(300, abs=45)


def test_capacity_goes_by_what_each_can_take(table_of, deployment_of):
    table = table_of(
        deployment_of("a", info={"capacity": 30}), deployment_of("b", rpm=10), deployment_of("c"), tactic="capacity"
    )
    seen = counts(table)
    assert seen["a"] == pytest.approx(200, abs=45), "30 of 60: who does not say counts as the mean"
    assert seen["b"] == pytest.approx(67, abs=35)


def test_round_robin_takes_turns_by_weight_and_evenly(table_of, deployment_of):
    table = table_of(deployment_of("a", weight=2.0), deployment_of("b"), deployment_of("c"), tactic="round_robin")
    turns = [table.choose() for _ in range(40)]
    assert Counter(turns) == {"a": 20, "b": 10, "c": 10}
    assert all(turns[i : i + 3] != ["a", "a", "a"] for i in range(38))


def test_round_robin_gives_no_burst_to_who_comes_back(table_of):
    table = table_of("a", "b", "c", tactic="round_robin")
    two = table.candidates[:2]
    for _ in range(100):
        table.choose(candidates=two)
    assert Counter(table.choose() for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_least_busy_goes_by_what_runs_relative_to_the_weight(table_of, deployment_of):
    table = table_of(deployment_of("a", weight=4.0), deployment_of("b"), tactic="least_busy")
    for _ in range(3):
        table.begin("a")
    table.begin("b")
    assert table.choose() == "a"


def test_token_based_stays_for_a_block_and_then_goes_to_who_has_had_least(table_of):
    table = table_of("a", "b", "c", tactic={"name": "token_based", "block_tokens": 500})
    turns = []
    for number in range(30):
        turns.append(table.choose(now=NOW + number))
        table.see(turns[-1], NOW + number)
    blocks = [turns[0]] + [one for one, before in zip(turns[1:], turns, strict=False) if one != before]
    assert len(set(blocks[:3])) == 3
    assert Counter(turns) == dict.fromkeys("abc", pytest.approx(10, abs=4))


def test_latency_based_spreads_over_those_that_are_quick_enough(table_of):
    table = table_of("a", "b", "slow", tactic={"name": "latency_based", "good_ms": 1000})
    for one, first_ms in {"a": 100, "b": 800, "slow": 3000}.items():
        table.see(one, first_ms=first_ms)
    assert set(counts(table)) == {"a", "b"}
    table.begin("a")
    assert set(counts(table)) == {"b"}, "the less busy of the two"


def test_latency_based_takes_the_fastest_when_none_is_fast_enough(table_of):
    table = table_of("a", "b", tactic={"name": "latency_based", "good_ms": 10})
    table.see("a", first_ms=500)
    table.see("b", first_ms=300)
    assert set(counts(table)) == {"b"}


def test_speed_based_measures_first_and_then_takes_the_fastest(table_of):
    table = table_of("a", "b", "c", tactic={"name": "speed_based", "min_samples": 5, "min_tokens_per_s": 50})
    speeds = {"a": 200, "b": 80, "c": 20}
    measured = []
    for _ in range(15):
        one = table.choose()
        measured.append(one)
        table.see(one, ms=100 + 40 / speeds[one] * 1e3, first_ms=100)
    assert Counter(measured) == {"a": 5, "b": 5, "c": 5}
    assert set(counts(table)) == {"a"}
    for _ in range(3):
        table.begin("a")
    assert set(counts(table)) == {"b"}, "a is busy, and c is not fast enough"


def test_speed_based_does_not_measure_for_ever_who_tells_no_figure(table_of):
    table = table_of("a", "silent", tactic={"name": "speed_based", "min_samples": 5})
    measured = []
    for number in range(200):
        one = table.choose(now=NOW + number)
        measured.append(one)
        table.see(one, NOW + number, **({"usage": None, "ms": 5000.0} if one == "silent" else {}))
    assert Counter(measured)["silent"] <= 12
    assert measured.count("silent") >= 6, "and now and then it is asked again"
    quiet = [table.choose(now=NOW + 200 + 60 * number) for number in range(20)]
    assert "a" in quiet, "also when there is little to do"


def test_speed_based_lets_the_unmeasured_have_what_the_others_cannot_take(table_of):
    table = table_of("a", "silent", tactic={"name": "speed_based", "min_samples": 1})
    table.see("a")
    table.see("silent", usage=None)
    for _ in range(3):
        table.begin("a")
    assert set(counts(table)) == {"silent"}


@pytest.mark.parametrize("name", ["adaptive", "headroom"])
def test_a_negative_quota_is_none(table_of, name):
    table = table_of("a", "b", tactic=name)
    table.signals["a"] = quota("a", ("tokens", 1000.0, -5.0, 60))
    table.signals["b"] = quota("b", ("tokens", 1000.0, 500.0, 60))
    for one in "ab":
        table.see(one)
    assert set(counts(table)) == {"b"}
    table.signals["a"] = quota("a", ("tokens", -1000.0, 5.0, 60), tokens_per_s=Quantiles(p50=-1, p95=0, p99=0, count=9))
    counts(table)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_who_only_rejects_does_not_draw_the_traffic(table_of, request_of, name):
    """Its quick errors keep it idle and unmeasured, which must not make it look best; also after it was good."""
    for good_before in (False, True):
        table = table_of(
            "a", "b", "bad", tactic={"name": name, **({"block_tokens": 50} if name == "token_based" else {})}
        )
        now, seen, running = NOW, Counter(), []
        for number in range(600):
            now += 0.1
            while running and running[0][0] <= now:
                _, one, request = running.pop(0)
                table.see(one, now, request=request)
            request = request_of(session_id=str(number))
            one = table.choose(request, now)
            if one == "bad" and not (good_before and number < 100):
                table.see(one, now, request=request, error=ErrorClass.CLIENT, ms=10.0)
                seen[number // 100] += 1
            else:
                table.begin(one, request, now)
                running.append((now + 1.0, one, request))
        assert table.member("bad").breaker.healthy
        assert sum(seen[hundred] for hundred in range(2, 6)) <= 60, seen


def test_clients_who_send_nothing_good_hurt_no_deployment(table_of):
    table = table_of("a", "b", "c", tactic="random")
    for one in "abc":
        for _ in range(10):
            table.see(one, error=ErrorClass.CLIENT)
    assert min(counts(table).values()) > 80, "all are in the same boat"
    for one in "ab":
        table.see(one)
    seen = counts(table, 1000)
    assert 10 <= seen["c"] <= 80, "it keeps enough to show that it is well"
    table.see("c")
    assert counts(table)["c"] > 80


def test_without_breakers_none_loses_traffic_for_errors(table_of):
    table = table_of("a", "b", tactic="random", breaker={"enabled": False})
    for _ in range(10):
        table.see("a", error=ErrorClass.CLIENT)
    assert counts(table)["a"] > 150


def test_speed_based_knows_what_a_signal_tells(table_of):
    table = table_of("a", "b", tactic="speed_based")
    for one, speed in {"a": 60.0, "b": 90.0}.items():
        table.signals[one] = quota(one, tokens_per_s=Quantiles(p50=speed, p95=speed, p99=speed, count=50))
    assert set(counts(table)) == {"b"}


def test_p2c_compares_two_by_wait_times_in_flight(table_of):
    table = table_of("a", "b", "c", tactic="p2c")
    for one, first_ms in {"a": 100, "b": 300, "c": 300}.items():
        table.see(one, first_ms=first_ms)
    seen = counts(table, 600)
    assert seen["a"] == pytest.approx(400, abs=50), "whenever it is one of the two"
    for _ in range(4):
        table.begin("a")
    assert set(counts(table)) == {"b", "c"}, "5 x 100 is more than 1 x 300"


def test_p2c_avoids_who_fails(table_of):
    table = table_of("a", "b", tactic="p2c", breaker={"enabled": False})
    for one in "ab":
        table.see(one)
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    assert set(counts(table)) == {"b"}


def test_headroom_goes_by_what_may_be_spent_a_second(table_of):
    table = table_of("a", "b", tactic="headroom")
    # a: 100 in 10 s; b: 300 in 60 s, half as much a second.
    table.signals["a"] = quota("a", ("requests", 1000.0, 100.0, 10), ("tokens", 1e6, 9e5, 10))
    table.signals["b"] = quota("b", ("requests", 1000.0, 300.0, 60), ("tokens", 1e6, 9e5, 10))
    assert counts(table)["a"] == pytest.approx(240, abs=45), "1/2 of tokens over 1/2 + 1/3 of requests"


def test_headroom_without_a_common_axis_goes_by_the_remaining_share(table_of):
    table = table_of("a", "b", "silent", tactic="headroom")
    table.signals["a"] = quota("a", ("requests", 100.0, 80.0, 10))
    table.signals["b"] = quota("b", ("tokens", 100.0, 20.0, 10))
    seen = counts(table, 600)
    assert seen["a"] == pytest.approx(320, abs=60)
    assert seen["b"] == pytest.approx(80, abs=40)
    assert "remaining share" in next(c for c in table.ask().values() if not c.dropped).notes[-1]


@pytest.mark.parametrize(
    ("weights", "better"),
    [
        ({"first_token": 1}, {"first_ms": 100}),
        ({"speed": 1}, {"ms": 300}),
        ({"latency": 1}, {"first_ms": None, "ms": 300}),
    ],
)
def test_adaptive_follows_its_weights(table_of, weights, better):
    nothing = dict.fromkeys(("first_token", "in_flight", "health", "latency", "speed", "headroom", "cost"), 0)
    table = table_of("good", "bad", tactic={"name": "adaptive", **nothing, **weights})
    usual = {"first_ms": None, "ms": 900} if "latency" in weights else {"first_ms": 200, "ms": 900}
    table.see("bad", **usual)
    table.see("good", **usual | better)
    assert set(counts(table)) == {"good"}
    none = table_of("good", "bad", tactic={"name": "adaptive", **nothing})
    none.see("bad", **usual)
    none.see("good", **usual | better)
    assert set(counts(none)) == {"good", "bad"}, "weights of 0 leave it to chance"


def test_adaptive_minds_quota_and_price(table_of):
    only = dict.fromkeys(("first_token", "in_flight", "health", "speed"), 0)
    table = table_of("a", "b", tactic={"name": "adaptive", **only, "headroom": 1})
    table.signals["a"] = quota("a", ("requests", 100.0, 10.0, 30))
    table.signals["b"] = quota("b", ("requests", 100.0, 60.0, 30))
    assert set(counts(table)) == {"b"}
    assert set(counts(table, now=NOW + 31)) == {"a", "b"}, "both are full again"

    table = table_of("a", "b", tactic={"name": "adaptive", **only, "headroom": 0, "cost": 1})
    table.member("a").price_usd, table.member("b").price_usd = 2e-6, 1e-6
    table.member("a").price_at = table.member("b").price_at = NOW
    assert set(counts(table)) == {"b"}


def test_adaptive_minds_failures_and_what_runs(table_of):
    table = table_of("a", "b", breaker={"enabled": False})
    for one in "ab":
        table.see(one)
    table.begin("a")
    assert set(counts(table)) == {"b"}
    for _ in range(6):
        table.see("b", error=ErrorClass.SERVER)
    assert set(counts(table)) == {"a"}


def test_adaptive_does_not_send_everything_to_one(table_of):
    """Ten requests at once, one deployment twice as quick: it gets more, not all."""
    table = table_of("quick", "b", "c")
    for one, first_ms in {"quick": 100, "b": 200, "c": 200}.items():
        for _ in range(5):
            table.see(one, first_ms=first_ms)
    seen = Counter()
    for _ in range(12):
        one = table.choose()
        table.begin(one)
        seen[one] += 1
    assert seen == {"quick": 6, "b": 3, "c": 3}


def test_p2c_sees_the_requests_in_flight_of_those_unused_for_long(table_of):
    """Their wait is believed to be next to nothing, but not nothing: a product with it still tells one from three."""
    table = table_of("a", "b", tactic="p2c")
    table.see("a", first_ms=150)
    table.see("b", NOW + 20, first_ms=150)
    for number in range(3):
        table.member("a").load.pick(f"r{number}", NOW + 200)
    answer = table.ask(now=NOW + 200)
    assert {id_: one.score for id_, one in answer.items() if not one.dropped} == {"b": -0.01}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_deployment_that_starts_late_is_left_out_until_the_others_wait_as_long(table_of, name):
    """A delay that another plugin names, such as a model's load, counts in seconds, whatever the tactic weighs."""
    table = table_of("warm", "cold", tactic=name)
    for _ in range(6):
        table.see("warm", ms=500.0, first_ms=500.0)
    warm, cold = table.candidates
    assert set(counts(table, 50, candidates=(warm, cold.delayed(3.0)))) == {"warm"}
    dropped = table.ask(candidates=(warm, cold.delayed(3.0)))["cold"]
    assert dropped.dropped
    assert "starts after 3.0 s, 0.5 s elsewhere" in dropped.notes
    assert set(counts(table, 50, candidates=(warm.delayed(4.0), cold.delayed(3.0)))) == {"cold"}
