from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman.errors import ConfigError
from pointsman.testing.provider import Behaviour, BrownOut, Delay, load_script
from pointsman.testing.provider.behaviour import BEHAVIOUR
from pointsman.testing.provider.plan import make_plan

NUMBERS = st.integers(0, 10**6)


@given(number=NUMBERS, seed=st.integers(), model=st.text(max_size=8))
def test_same_seed_model_and_number_give_the_same_plan(number, seed, model):
    behaviour = Behaviour(
        seed=seed,
        latency=Delay(50, 1.0),
        first_token=Delay(10, 0.5),
        error_ratios={500: 0.3, 429: 0.3},
        fault="drop",
        fault_ratio=0.5,
        straggler_ratio=0.5,
    )
    assert make_plan(behaviour, model, number, 0) == make_plan(behaviour, model, number, 0)


def test_another_seed_gives_other_draws():
    plans = [
        [make_plan(Behaviour(seed=seed, latency=Delay(50, 1.0)), "m", n, 0) for n in range(20)] for seed in range(5)
    ]
    assert all(one != other for one, other in pairwise(plans))


def test_ratios_come_out():
    behaviour = Behaviour(error_ratios={500: 0.2, 429: 0.1}, fault="hang", fault_ratio=0.3, straggler_ratio=0.05)
    plans = [make_plan(behaviour, "m", n, 0) for n in range(4000)]
    share = {status: sum(plan.status == status for plan in plans) / 4000 for status in (200, 429, 500)}
    assert share[500] == pytest.approx(0.2, abs=0.03)
    assert share[429] == pytest.approx(0.1, abs=0.03)
    faults = [plan.fault == "hang" for plan in plans if plan.status == 200]
    assert sum(faults) / len(faults) == pytest.approx(0.3, abs=0.03)
    assert not any(plan.fault for plan in plans if plan.status != 200)


def test_lognormal_has_its_median_and_spread():
    waits = [make_plan(Behaviour(first_token=Delay(200, 0.5)), "m", n, 0).first_token_s for n in range(4000)]
    assert statistics.median(waits) == pytest.approx(0.2, rel=0.06)
    assert statistics.quantiles(waits, n=100)[83] == pytest.approx(0.2 * 2.718281828**0.5, rel=0.1)


def test_listed_delays_come_in_turn():
    behaviour = Behaviour(latency=Delay(values_ms=(10, 20, 30)))
    assert [make_plan(behaviour, "m", n, 0).latency_s for n in range(4)] == [0.01, 0.02, 0.03, 0.01]


@given(number=NUMBERS)
def test_stragglers_are_slower_by_the_factor_in_everything(number):
    delays = {"latency": Delay(10), "first_token": Delay(20, 0.4), "per_token": Delay(3)}
    normal = make_plan(Behaviour(**delays), "m", number, 0)
    slow = make_plan(Behaviour(**delays, straggler_ratio=1, straggler_factor=8), "m", number, 0)
    assert slow.latency_s == pytest.approx(8 * normal.latency_s)
    assert slow.first_token_s == pytest.approx(8 * normal.first_token_s)
    assert slow.per_token_s == pytest.approx(8 * normal.per_token_s)


def test_straggler_share_comes_out():
    behaviour = Behaviour(latency=Delay(1), straggler_ratio=0.03, straggler_factor=8)
    slow = [make_plan(behaviour, "m", n, 0).latency_s > 0.005 for n in range(4000)]
    assert sum(slow) / 4000 == pytest.approx(0.03, abs=0.01)


def test_brown_out_is_between_its_times_only():
    trouble = BrownOut(start_s=10, end_s=20, error_ratio=1, status=503, delay_factor=5)
    behaviour = Behaviour(latency=Delay(10), brown_outs=(trouble,))
    found = [(plan.status, plan.latency_s) for at in (9.9, 10, 19.9, 20) if (plan := make_plan(behaviour, "m", 0, at))]
    assert found == [(200, 0.01), (503, 0.05), (503, 0.05), (200, 0.01)]


def test_first_failures_then_none():
    plans = [make_plan(Behaviour(fail_first=2, fail_with=429), "m", n, 0) for n in range(4)]
    assert [plan.status for plan in plans] == [429, 429, 200, 200]
    dropped = Behaviour(fail_first=2, fail_with="drop", error_ratios={500: 1})
    plans = [make_plan(dropped, "m", n, 0) for n in range(3)]
    assert [(plan.status, plan.fault) for plan in plans] == [(200, "drop"), (200, "drop"), (500, None)]


@given(tokens=st.integers(0, 100))
def test_plain_answer_waits_as_long_as_its_stream_would(tokens):
    plan = make_plan(Behaviour(latency=Delay(10), first_token=Delay(20), per_token=Delay(5)), "m", 0, 0)
    assert plan.plain_s(tokens) == pytest.approx(0.03 + 0.005 * max(0, tokens - 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_ratios": {500: 0.7, 429: 0.7}},
        {"error_ratios": {200: 0.5}},
        {"fault": "explode"},
        {"tokens": 0},
        {"latency": {"median_ms": -1}},
        {"latency": float("inf")},
        {"unknown": 1},
    ],
)
def test_wrong_behaviours_are_refused(wrong):
    with pytest.raises(ValidationError):
        BEHAVIOUR.validate_python(wrong)


def test_behaviour_survives_json():
    behaviour = Behaviour(
        latency=Delay(5),
        error_ratios={429: 0.5},
        fail_with="drop",
        brown_outs=(BrownOut(start_s=1, end_s=2),),
        text="hi",
    )
    assert BEHAVIOUR.validate_json(BEHAVIOUR.dump_json(behaviour)) == behaviour


def test_script_is_yaml_or_json(tmp_path):
    path = tmp_path / "script.yaml"
    path.write_text("gpt-a: {latency: 20, error_ratios: {429: 0.1}}\n'*': {tokens: 3}\n")
    expected = {"gpt-a": Behaviour(latency=Delay(20), error_ratios={429: 0.1}), "*": Behaviour(tokens=3)}
    assert load_script(path) == expected
    path.write_text('{"gpt-a": {"latency": 20, "error_ratios": {"429": 0.1}}, "*": {"tokens": 3}}')
    assert load_script(path) == expected
    path.write_text("")
    assert load_script(path) == {}


@pytest.mark.parametrize("text", ["gpt-a: {latncy: 20}", "[1]", "a: {", "gpt-a: {fault: explode}"])
def test_wrong_script_names_the_file(tmp_path, text):
    path = tmp_path / "script.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"script\.yaml"):
        load_script(path)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_script(tmp_path / "missing.yaml")
