from __future__ import annotations

import json
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pointsman_canary import lifecycle, repository
from pointsman_canary.experiment import Experiment
from pointsman_canary.lifecycle import GATE_RETRY_S, MAX_TICK_S, Cause, Refused
from pointsman_canary.rollout import Gate, Phase, Total

GOOD = {"stable": {"error_rate": {0: 98, 1000: 2}}, "canary": {"error_rate": {0: 50}}}
BAD = {"stable": {"error_rate": {0: 98, 1000: 2}}, "canary": {"error_rate": {0: 5, 1000: 20}}}
#: Neither good nor bad.
THIN = {"stable": {"error_rate": {0: 98, 1000: 2}}, "canary": {"error_rate": {0: 1}}}


def experiment(**fields) -> Experiment:
    usual = {"name": "x", "model": "m", "canary": "c", "metrics": ["error_rate"], "interval_s": 20, "min_samples": 20}
    if not {"arms", "ramp"} & fields.keys():
        usual["steps"] = [1, 5, 25, 50, 100]
    made = {**usual, **fields}
    return Experiment.model_validate({key: value for key, value in made.items() if value is not None})


class Life:
    """A rollout and everything that has happened to it."""

    def __init__(self, made: Experiment) -> None:
        self.now = 1000.0
        self.changes = []
        self.state = None
        self.do(lambda _, cause: lifecycle.create(made, "config", cause))

    def cause(self, who="anna") -> Cause:
        return Cause(who, "because", self.now)

    def do(self, transition):
        self.state, changes = transition(self.state, self.cause())
        self.changes += changes
        return self

    def tick(self, observed=None, *, seconds=5.0, times=1):
        for _ in range(times):
            self.now += seconds
            self.state, changes = lifecycle.tick(self.state, self.now, observed)
            self.changes += changes
        return self

    @property
    def percent(self) -> float:
        return sum(self.state.weights_bp) / 100

    @property
    def history(self) -> list[tuple[str, float]]:
        return [(change.what, sum(change.weights_bp) / 100) for change in self.changes]


def test_good_canary_climbs_every_step_to_the_promotion():
    life = Life(experiment()).tick(GOOD, times=40)
    assert life.history == [("create", 0), ("step", 1), ("step", 5), ("step", 25), ("step", 50), ("promote", 100)]
    assert life.state.phase is Phase.PROMOTED
    assert all(change.findings["canary"] for change in life.changes[2:])


def test_bad_canary_is_rolled_back_at_once_and_stays_so():
    """Before the interval is over; and good numbers afterwards do not ramp it again."""
    life = Life(experiment(interval_s=86_400)).tick(BAD, seconds=0.1)
    assert life.state.phase is Phase.ROLLED_BACK
    assert life.percent == 0
    assert "error_rate:mean of canary: 0.8 against 0.02" in life.state.reason
    life.tick(GOOD, times=100)
    assert life.percent == 0
    with pytest.raises(Refused, match="rolled back; 'restart'"):
        life.do(lifecycle.resume)
    assert [what for what, _ in life.history] == ["create", "step", "rollback"]


def test_rollback_from_a_later_step_and_from_a_pause():
    climbed = Life(experiment()).tick(GOOD, times=10)
    assert climbed.percent > 1
    assert climbed.tick(BAD, times=3).percent == 0
    paused = Life(experiment()).do(lifecycle.pause).tick(BAD, times=3)
    assert paused.state.phase is Phase.ROLLED_BACK


def test_step_lasts_its_interval_however_good_the_canary_is():
    life = Life(experiment(interval_s=100)).tick(GOOD).tick(GOOD, times=19)
    assert life.percent == 1
    assert life.tick(GOOD).percent == 5


def test_undecided_step_waits_and_then_pauses():
    life = Life(experiment(inconclusive_limit_s=50)).tick(THIN, times=14)
    assert life.state.phase is Phase.RUNNING
    life.tick(THIN)
    assert life.state.phase is Phase.PAUSED
    assert life.percent == 1
    assert "undecided after 70 s (error_rate:mean of canary: " in life.state.reason
    life.do(lifecycle.resume).tick(THIN, times=9)
    assert life.state.phase is Phase.RUNNING


def test_step_is_undecided_after_enough_requests_too():
    seen = {arm: {**metrics, "disconnect_rate": {0: 100}} for arm, metrics in THIN.items()}
    life = Life(experiment(inconclusive_samples=900)).tick(seen, times=8)
    assert life.state.phase is Phase.RUNNING
    life.tick(seen)
    assert life.state.phase is Phase.PAUSED
    assert "undecided after 900 requests" in life.state.reason


def test_totals_outlive_windows_steps_and_the_promotion():
    seen = {
        "stable": {"error_rate": {0: 98, 1000: 2}, "disconnect_rate": {0: 100}},
        "canary": {"error_rate": {0: 48, 1000: 1}, "disconnect_rate": {0: 49, 1000: 1}},
    }
    life = Life(experiment(steps=[10, 50, 100], window_s=20)).tick(seen, times=40)
    assert life.state.phase is Phase.PROMOTED
    assert life.state.totals["canary"] == Total(requests=2000, failed=40, disconnected=40)
    assert life.state.totals["stable"] == Total(requests=4000, failed=80)
    life.state, _ = lifecycle.tick(life.state, life.now + 1, None, {"canary": seen["canary"]})
    assert life.state.totals["canary"].requests == 2050
    assert life.state.totals["canary"].success_ratio == 1 - 41 / 2050
    assert life.do(lambda s, c: lifecycle.create(s.experiment, "config", c, s)).state.totals == {}


def test_person_takes_one_step_and_a_pause_stays_one():
    life = Life(experiment(steps=[1, "pause", 5, 100])).do(lifecycle.step)
    assert (life.state.phase, life.percent) == (Phase.RUNNING, 5)
    life.do(lifecycle.pause).do(lifecycle.step)
    assert (life.state.phase, life.percent) == (Phase.PROMOTED, 100)
    with pytest.raises(Refused, match="'restart'"):
        life.do(lifecycle.step)
    held = Life(experiment(steps=[1, 5, 100])).do(lifecycle.pause).do(lifecycle.step)
    assert (held.state.phase, held.percent) == (Phase.PAUSED, 5)
    ended = Life(experiment(steps=[1]))
    with pytest.raises(Refused, match="no further step"):
        ended.do(lifecycle.step)


def test_rollout_whose_version_becomes_active_ends_and_can_be_taken_back():
    life = Life(experiment(canary={"version": "v2"})).tick(THIN)
    life.do(lambda s, c: lifecycle.superseded(s, "v3", "v1", c))
    assert life.state.phase is Phase.RUNNING
    life.do(lambda s, c: lifecycle.superseded(s, "v2", "v1", c))
    assert (life.state.phase, life.state.activation.done) == (Phase.PROMOTED, True)
    life.do(lifecycle.rollback)
    assert life.state.activation.version_id == "v1"
    pinned = Life(experiment(canary={"version": "v2"}, stable={"version": "v1"}))
    pinned.do(lambda s, c: lifecycle.superseded(s, "v2", "v1", c))
    assert pinned.state.phase is Phase.RUNNING


def test_pause_in_the_steps_waits_for_a_person():
    life = Life(experiment(steps=[1, "pause", 50])).tick(GOOD, times=20)
    assert (life.state.phase, life.percent) == (Phase.PAUSED, 1)
    assert life.do(lifecycle.resume).percent == 50


def test_plan_that_ends_below_100_percent_waits_there():
    life = Life(experiment(steps=None, ramp={"initial_percent": 10, "step_percent": 10, "max_percent": 30}))
    life.tick(GOOD, times=40)
    assert (life.state.phase, life.percent) == (Phase.PAUSED, 30)
    with pytest.raises(Refused, match="no further step"):
        life.do(lifecycle.resume)
    assert life.do(lifecycle.promote).percent == 100


def test_clock_that_goes_backwards_or_jumps_only_makes_a_step_longer():
    life = Life(experiment(interval_s=100)).tick(GOOD)
    life.tick(GOOD, seconds=-86_400.0, times=3)
    assert life.state.elapsed_s == 0
    life.tick(GOOD, seconds=86_400.0, times=3)
    assert life.state.elapsed_s == 3 * MAX_TICK_S
    assert life.percent == 1


def test_first_tick_after_a_night_without_workers_counts_little():
    """No worker ticked in that time, so it does not bring the next step."""
    life = Life(experiment()).tick(GOOD, times=2).tick(GOOD, seconds=30_000)
    assert life.state.elapsed_s <= 2 * MAX_TICK_S


def test_weight_changed_while_running_restarts_statistics_and_goes_on_from_there():
    life = Life(experiment()).tick(GOOD, times=2)
    life.do(lambda state, cause: lifecycle.weigh(state, {"canary": 30}, cause))
    assert life.percent == 30
    assert life.state.findings()["canary"][0].canary_samples == 0
    assert life.tick(GOOD, times=5).percent == 50
    low = Life(experiment()).do(lambda state, cause: lifecycle.weigh(state, {"canary": 0.5}, cause))
    assert low.tick(GOOD, times=5).percent == 1


@pytest.mark.parametrize(
    ("percents", "message"),
    [
        ({"canary": math.nan}, "not allowed"),
        ({"canary": math.inf}, "not allowed"),
        ({"canary": -1.0}, "at least 0 %"),
        ({"canary": 101.0}, "at most 100 %"),
        ({"canary": 0.0}, "use 'rollback'"),
        ({"canary": 100.0}, "'promote'"),
        ({"canary": 1.001}, "finer than 0.01"),
        ({"other": 5.0}, "no arm 'other'"),
    ],
)
def test_bad_weight_is_refused_and_changes_nothing(percents, message):
    life = Life(experiment())
    before = life.state
    with pytest.raises(Refused, match=message):
        life.do(lambda state, cause: lifecycle.weigh(state, percents, cause))
    assert life.state == before


def test_restart_begins_a_new_run_with_an_alpha_of_its_own():
    life = Life(experiment()).tick(BAD, times=3)
    stage = life.state.stage
    life.do(lambda state, cause: lifecycle.create(state.experiment, "config", cause, state))
    assert (life.state.run, life.percent, life.state.phase) == (2, 1, Phase.RUNNING)
    assert life.state.stage > stage
    assert life.state.analyses["canary"].comparisons["error_rate:mean"].windows[0].restart == 1


def test_actions_that_contradict_the_state_are_refused():
    life = Life(experiment())
    with pytest.raises(Refused, match="not paused"):
        life.do(lifecycle.resume)
    life.do(lifecycle.pause)
    with pytest.raises(Refused, match="cannot be paused"):
        life.do(lifecycle.pause)
    life.do(lifecycle.promote)
    with pytest.raises(Refused, match="already promoted"):
        life.do(lifecycle.promote)
    life.do(lifecycle.rollback)
    with pytest.raises(Refused, match="already rolled back"):
        life.do(lifecycle.rollback)
    with pytest.raises(Refused, match="'restart' begins again"):
        life.do(lambda state, cause: lifecycle.weigh(state, {"canary": 5}, cause))
    assert life.do(lifecycle.promote).percent == 100


def test_fail_that_pauses_keeps_the_weight_and_is_reported_once():
    life = Life(experiment(on_fail="pause")).tick(BAD, times=5)
    assert (life.state.phase, life.percent) == (Phase.PAUSED, 1)
    assert [what for what, _ in life.history] == ["create", "step", "pause"]


def test_ab_arms_have_fixed_weights_and_a_worse_one_is_reported_once():
    made = experiment(
        canary=None, arms={"b": {"target": "b", "percent": 20}, "c": {"target": "c", "percent": 30}}, interval_s=1
    )
    life = Life(made)
    assert life.state.weights_bp == (2000, 3000)
    life.tick({"stable": BAD["stable"], "b": BAD["canary"], "c": GOOD["canary"]}, times=10)
    assert life.state.weights_bp == (2000, 3000)
    assert [what for what, _ in life.history] == ["create", "fail"]
    assert life.state.failed == ("b",)
    life.do(lambda state, cause: lifecycle.weigh(state, {"b": 0}, cause))
    assert life.state.weights_bp == (0, 3000)
    with pytest.raises(Refused, match="several arms"):
        life.do(lifecycle.promote)
    life.do(lambda state, cause: lifecycle.promote(state, cause, "c"))
    assert life.state.weights_bp == (0, 10_000)


def gated(**fields) -> Life:
    return Life(
        experiment(gates={"before_step": "ci", "before_promotion": "boss", "after_rollback": "pager"}, **fields)
    )


def answer(life: Life, gate: Gate, verdict: str) -> Life:
    return life.do(lambda state, cause: lifecycle.gate_answered(state, gate, verdict, cause))


def test_gate_is_asked_before_the_first_step_and_holds_it_back():
    life = gated()
    assert (life.state.gate, life.percent) == (Gate.BEFORE_STEP, 0)
    life.tick(times=10)
    assert life.percent == 0
    answer(life, Gate.BEFORE_STEP, "go")
    assert (life.state.gate, life.percent) == (None, 1)
    life.tick(GOOD, times=6)
    assert (life.state.gate, life.percent) == (Gate.BEFORE_STEP, 1)


def test_gate_that_says_wait_is_asked_again_later_and_at_last_pauses():
    life = answer(gated(inconclusive_limit_s=60), Gate.BEFORE_STEP, "wait")
    assert life.state.gate_due_s == life.state.elapsed_s + GATE_RETRY_S
    life.tick(times=13)
    answer(life, Gate.BEFORE_STEP, "wait")
    assert (life.state.phase, life.state.gate) == (Phase.PAUSED, None)
    life.do(lifecycle.resume)
    assert life.state.gate is Gate.BEFORE_STEP


def test_gate_can_roll_back_and_late_answers_change_nothing():
    life = answer(gated(), Gate.BEFORE_STEP, "rollback")
    assert (life.state.phase, life.state.gate) == (Phase.ROLLED_BACK, Gate.AFTER_ROLLBACK)
    before = life.state
    answer(life, Gate.BEFORE_STEP, "go")
    assert life.state == before
    answer(life, Gate.AFTER_ROLLBACK, "go")
    assert (life.state.phase, life.state.gate, life.state.reason) == (Phase.ROLLED_BACK, None, before.reason)


def test_canary_that_fails_while_a_gate_is_asked_is_rolled_back():
    life = answer(gated(), Gate.BEFORE_STEP, "go").tick(GOOD, times=6)
    assert life.state.gate is Gate.BEFORE_STEP
    life.tick(BAD, times=3)
    assert life.state.phase is Phase.ROLLED_BACK


def test_promotion_has_a_gate_of_its_own():
    life = answer(gated(steps=[50, 100]), Gate.BEFORE_STEP, "go").tick(GOOD, times=6)
    assert life.state.gate is Gate.BEFORE_PROMOTION
    assert answer(life, Gate.BEFORE_PROMOTION, "go").percent == 100


def test_promoted_version_is_activated_and_a_later_rollback_takes_it_back():
    life = Life(experiment(canary={"version": "v2"})).do(lifecycle.promote)
    assert (life.state.activation.version_id, life.state.activation.done) == ("v2", False)
    life.do(lambda state, cause: lifecycle.activated(state, "other", None, cause))
    assert not life.state.activation.done
    life.do(lambda state, cause: lifecycle.activated(state, "v2", "v1", cause))
    assert life.state.activation.done
    life.do(lifecycle.rollback)
    assert life.state.activation.version_id == "v1"


class Rollouts(RuleBasedStateMachine):
    """Whatever happens in whatever order: no weight changes without a new stage and an audit entry, and so on."""

    @initialize(
        steps=st.sampled_from([[1, 5, 100], [1, "pause", 50], [10], [100]]),
        on_fail=st.sampled_from(["rollback", "pause", "report"]),
        gates=st.sampled_from([{}, {"before_step": "ci", "before_promotion": "ci", "after_rollback": "ci"}]),
        version=st.booleans(),
    )
    def begin(self, steps, on_fail, gates, version):
        canary = {"version": "v2"} if version else "c"
        made = experiment(steps=steps, on_fail=on_fail, gates=gates, canary=canary, inconclusive_limit_s=60)
        self.life = Life(made)
        self.seen = len(self.life.changes)

    def _do(self, transition):
        before = self.life.state
        written = len(self.life.changes)
        try:
            transition()
        except Refused:
            assert self.life.state == before
        after = self.life.state
        if after.weights_bp != before.weights_bp:
            assert after.stage > before.stage
            assert len(self.life.changes) > written
        assert after.stage >= before.stage
        assert after.run >= before.run
        if before.phase is Phase.ROLLED_BACK and after.phase is not Phase.ROLLED_BACK:
            assert self.life.changes[-1].what in {"restart", "step", "promote"}
            assert self.told

    @rule(seconds=st.floats(-100, 100), observed=st.sampled_from([None, GOOD, BAD, THIN, {}]))
    def tick(self, seconds, observed):
        self.told = False
        self._do(lambda: self.life.tick(observed, seconds=seconds))

    @rule(action=st.sampled_from([lifecycle.promote, lifecycle.rollback, lifecycle.pause, lifecycle.resume]))
    def act(self, action):
        self.told = True
        self._do(lambda: self.life.do(action))

    @rule(percent=st.floats(-10, 110) | st.integers(0, 100).map(float))
    def weigh(self, percent):
        self.told = True
        self._do(lambda: self.life.do(lambda state, cause: lifecycle.weigh(state, {"canary": percent}, cause)))

    @rule()
    def restart(self):
        self.told = True
        self._do(lambda: self.life.do(lambda state, cause: lifecycle.create(state.experiment, "http", cause, state)))

    @precondition(lambda self: self.life.state.gate is not None)
    @rule(verdict=st.sampled_from(["go", "wait", "rollback"]))
    def hear(self, verdict):
        self.told = False
        self._do(lambda: answer(self.life, self.life.state.gate, verdict))

    @rule(version=st.sampled_from(["v1", "v2"]))
    def activate(self, version):
        self.told = False
        self._do(lambda: self.life.do(lambda state, cause: lifecycle.activated(state, version, "v1", cause)))

    @invariant()
    def weights_fit_the_phase(self):
        state = self.life.state
        assert 0 <= sum(state.weights_bp) <= 10_000
        if state.phase is Phase.ROLLED_BACK:
            assert sum(state.weights_bp) == 0
        if state.phase is Phase.PROMOTED:
            assert sum(state.weights_bp) == 10_000
        if state.phase is Phase.RUNNING and state.experiment.arms is None and state.gate is None:
            assert 0 < state.weights_bp[0] < 10_000
        assert -1 <= state.step < len(state.experiment.plan())
        assert state.elapsed_s >= 0

    @invariant()
    def last_entry_tells_the_state(self):
        last = self.life.changes[-1]
        assert (last.phase, last.weights_bp, last.run) == (
            self.life.state.phase,
            self.life.state.weights_bp,
            self.life.state.run,
        )
        assert all(change.who for change in self.life.changes)

    @invariant()
    def state_survives_the_store(self):
        raw = json.loads(json.dumps(repository.encode_rollout(self.life.state), allow_nan=False))
        assert repository.decode_rollout(raw) == self.life.state


Rollouts.TestCase.settings = settings(stateful_step_count=25)
TestRollouts = Rollouts.TestCase
