"""How an experiment changes: by itself (``create``, ``tick``, ``gate_answered``) and by a person (the rest).

Every function takes a state and returns the next one with the changes for the audit trail; none has I/O or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from . import analysis
from .analysis import Verdict
from .assignment import FULL_BP
from .experiment import STABLE, Experiment, Version, basis_points
from .rollout import ITSELF, Activation, Change, Gate, Phase, Rollout

if TYPE_CHECKING:
    from .metrics import Histogram

#: The most that one tick counts, in seconds, whatever the clock says.
MAX_TICK_S: Final = 5.0
#: How long a gate that said "wait" is left alone, in seconds.
GATE_RETRY_S: Final = 30.0

Outcome: TypeAlias = tuple[Rollout, tuple[Change, ...]]


class Refused(ValueError):
    """What was asked for contradicts the state; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Who changes something, for what reason, and when (Unix seconds)."""

    who: str
    reason: str
    at: float


def _changed(before: Rollout, after: Rollout, what: str, cause: Cause) -> Outcome:
    after = replace(after, changed_at=cause.at, reason=cause.reason)
    change = Change(
        what=what,
        who=cause.who,
        reason=cause.reason,
        at=cause.at,
        run=after.run,
        step=after.step,
        phase=after.phase,
        weights_bp=after.weights_bp,
        findings=before.findings(),
    )
    return after, (change,)


def _weighted(rollout: Rollout, weights_bp: tuple[int, ...]) -> Rollout:
    """Return a new stage with these weights."""
    return replace(
        rollout,
        stage=rollout.stage + 1,
        weights_bp=weights_bp,
        elapsed_s=0.0,
        passed=False,
        gate=None,
        failed=(),
        analyses={arm: analysis.restarted(state) for arm, state in rollout.analyses.items()},
    )


def create(
    experiment: Experiment, origin: Literal["config", "http"], cause: Cause, after: Rollout | None = None
) -> Outcome:
    """Begin: an A/B experiment with its weights, a rollout with its first step (or with the gate before it).

    Args:
        experiment: The definition.
        origin: Where it comes from.
        cause: Who and why.
        after: The state of an earlier run, which this one follows with an alpha of its own.
    """
    rollout = Rollout(
        experiment=experiment,
        origin=origin,
        run=after.run + 1 if after else 1,
        stage=after.stage + 1 if after else 1,
        weights_bp=(0,) * len(experiment.targets),
        analyses={arm: analysis.fresh(experiment) for arm in experiment.targets},
        changed_at=cause.at,
    )
    what = "restart" if after else "create"
    if experiment.arms is not None:
        weights = tuple(basis_points(arm.percent) for arm in experiment.arms.values())
        return _changed(rollout, replace(rollout, weights_bp=weights), what, cause)
    rollout, first = _changed(rollout, rollout, what, cause)
    rollout, second = _next(rollout, cause.at)
    return rollout, first + second


def _next(rollout: Rollout, now: float, *, resumed: bool = False) -> Outcome:
    """Go on after a step that has passed: to the next one, to a gate, to the promotion, or wait for a person."""
    plan = rollout.experiment.plan()
    rollout = replace(rollout, passed=True)
    waits = rollout.step >= 0 and plan[rollout.step].waits and not resumed
    if waits or rollout.step + 1 == len(plan):
        why = "the step has passed; a person decides" if waits else "the last step has passed; promote or roll back"
        return _changed(rollout, replace(rollout, phase=Phase.PAUSED), "pause", Cause(ITSELF, why, now))
    last = plan[rollout.step + 1].weight_bp == FULL_BP
    gate = Gate.BEFORE_PROMOTION if last else Gate.BEFORE_STEP
    if rollout.experiment.gates.at(gate) is not None:
        return replace(rollout, gate=gate, gate_since_s=rollout.elapsed_s, gate_due_s=rollout.elapsed_s), ()
    return _enter(rollout, Cause(ITSELF, "the step before has passed" if rollout.step >= 0 else "begin", now))


def _enter(rollout: Rollout, cause: Cause) -> Outcome:
    """Enter the next step; one of 100 % is the promotion."""
    number = rollout.step + 1
    weight = rollout.experiment.plan()[number].weight_bp
    if weight == FULL_BP:
        return promote(replace(rollout, step=number), cause)
    after = replace(_weighted(rollout, (weight,)), step=number)
    if not any(rollout.weights_bp):
        # Nothing has been looked at yet, so the first part of alpha is still whole.
        after = replace(after, analyses=rollout.analyses)
    return _changed(rollout, after, "step", cause)


def tick(rollout: Rollout, now: float, observed: Mapping[str, Mapping[str, Histogram]] | None = None) -> Outcome:
    """Let time pass, take in what was observed, and decide.

    Args:
        rollout: The state.
        now: Unix seconds.
        observed: New observations of this stage: arm (stable included) to metric to histogram.
    """
    passed_s = 0.0 if rollout.ticked_at is None else min(max(now - rollout.ticked_at, 0.0), MAX_TICK_S)
    rollout = replace(rollout, ticked_at=now, elapsed_s=rollout.elapsed_s + passed_s)
    if rollout.finished:
        return rollout, ()
    experiment = rollout.experiment
    rollout = _looked(rollout, observed or {}, passed_s)
    verdicts = {arm: analysis.verdict(experiment, found) for arm, found in rollout.findings().items()}
    failed = tuple(arm for arm, said in verdicts.items() if said is Verdict.FAIL)
    if not set(failed) <= set(rollout.failed):
        return _fail(rollout, failed, now)
    # Without a weight the first step has not been entered: a gate is asked.
    ramping = experiment.arms is None and rollout.phase is Phase.RUNNING and rollout.gate is None
    if not ramping or rollout.elapsed_s < experiment.interval_s:
        return rollout, ()
    if verdicts and all(said is Verdict.PASS for said in verdicts.values()):
        return _next(rollout, now)
    if rollout.elapsed_s >= experiment.interval_s + experiment.inconclusive_limit_s:
        cause = Cause(ITSELF, f"undecided after {rollout.elapsed_s:.0f} s; resume, promote or roll back", now)
        return _changed(rollout, replace(rollout, phase=Phase.PAUSED), "pause", cause)
    return rollout, ()


def _looked(rollout: Rollout, observed: Mapping[str, Mapping[str, Histogram]], passed_s: float) -> Rollout:
    experiment = rollout.experiment
    stable = observed.get(STABLE, {})
    analyses = {
        arm: analysis.elapsed(analysis.absorbed(state, experiment, stable, observed.get(arm, {})), experiment, passed_s)
        for arm, state in rollout.analyses.items()
    }
    return replace(rollout, analyses=analyses)


def _fail(rollout: Rollout, failed: tuple[str, ...], now: float) -> Outcome:
    worse = [
        f"{found.metric} of {arm}: {_shown(found.canary)} against {_shown(found.stable)} (p {found.p_harm:.2g})"
        for arm, findings in rollout.findings().items()
        for found in findings
        if found.verdict is Verdict.FAIL
    ]
    cause = Cause(ITSELF, "worse than stable: " + "; ".join(worse), now)
    if rollout.experiment.failing == "rollback":
        return rollback(rollout, cause)
    after = replace(rollout, failed=tuple(sorted({*rollout.failed, *failed})))
    if rollout.experiment.failing == "pause" and rollout.phase is Phase.RUNNING:
        return _changed(rollout, replace(after, phase=Phase.PAUSED, gate=None), "pause", cause)
    return _changed(rollout, after, "fail", cause)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def gate_answered(rollout: Rollout, gate: Gate, answer: Literal["go", "wait", "rollback"], cause: Cause) -> Outcome:
    """Take the verdict of a webhook; one that is no longer asked for changes nothing."""
    if rollout.gate is not gate:
        return rollout, ()
    if gate is Gate.AFTER_ROLLBACK:
        return _noted(rollout, replace(rollout, gate=None), "gate", cause)
    if answer == "rollback":
        return rollback(rollout, cause)
    if answer == "go":
        return _enter(replace(rollout, gate=None), cause)
    if rollout.elapsed_s >= rollout.gate_since_s + rollout.experiment.inconclusive_limit_s:
        return _changed(rollout, replace(rollout, phase=Phase.PAUSED, gate=None), "pause", cause)
    return replace(rollout, gate_due_s=rollout.elapsed_s + GATE_RETRY_S), ()


def _noted(before: Rollout, after: Rollout, what: str, cause: Cause) -> Outcome:
    """Write an entry that leaves the reason of the present phase as it is."""
    after, changes = _changed(before, after, what, cause)
    return replace(after, reason=before.reason), changes


def promote(rollout: Rollout, cause: Cause, arm: str | None = None) -> Outcome:
    """Send everything to one arm, and have the registry activate its version when the target is one.

    Args:
        rollout: The state.
        cause: Who and why.
        arm: Which arm; may be left out when there is only one.

    Raises:
        Refused: it is promoted already, or the arm is missing or unknown.
    """
    arms = list(rollout.experiment.targets)
    if arm is None and len(arms) > 1:
        raise Refused(f"{rollout.name} has several arms; say which one to promote: {', '.join(arms)}")
    arm = arm or arms[0]
    if arm not in arms:
        raise Refused(f"{rollout.name} has no arm {arm!r}; it has {', '.join(arms)}")
    weights = tuple(FULL_BP if name == arm else 0 for name in arms)
    if rollout.phase is Phase.PROMOTED and rollout.weights_bp == weights:
        raise Refused(f"{rollout.name} is promoted already")
    target = rollout.experiment.targets[arm]
    activation = Activation(version_id=target.version) if isinstance(target, Version) else None
    after = replace(_weighted(rollout, weights), phase=Phase.PROMOTED, activation=activation)
    return _changed(rollout, after, "promote", cause)


def rollback(rollout: Rollout, cause: Cause) -> Outcome:
    """Send everything to stable; it stays so until ``create`` begins another run or a person promotes.

    Raises:
        Refused: it is rolled back already.
    """
    if rollout.phase is Phase.ROLLED_BACK:
        raise Refused(f"{rollout.name} is rolled back already")
    nothing = (0,) * len(rollout.weights_bp)
    after = replace(_weighted(rollout, nothing), phase=Phase.ROLLED_BACK, activation=_undone(rollout))
    if rollout.experiment.gates.after_rollback is not None:
        after = replace(after, gate=Gate.AFTER_ROLLBACK, gate_since_s=0.0, gate_due_s=0.0)
    return _changed(rollout, after, "rollback", cause)


def _undone(rollout: Rollout) -> Activation | None:
    """Return what the registry has to do to take a promotion back."""
    if rollout.activation is None:
        return None
    stable = rollout.experiment.stable
    before = stable.version if isinstance(stable, Version) else rollout.activation.previous_id
    return Activation(version_id=before) if before is not None else None


def pause(rollout: Rollout, cause: Cause) -> Outcome:
    """Keep the present weights until ``resume``. A fail still rolls back.

    Raises:
        Refused: it is not running.
    """
    if rollout.phase is not Phase.RUNNING:
        raise Refused(f"{rollout.name} is {rollout.phase}, so it cannot be paused")
    return _changed(rollout, replace(rollout, phase=Phase.PAUSED, gate=None), "pause", cause)


def resume(rollout: Rollout, cause: Cause) -> Outcome:
    """Go on after a pause: with the next step when the present one has passed, else with the present one.

    Raises:
        Refused: it is not paused, or no step is left.
    """
    if rollout.phase is Phase.ROLLED_BACK:
        raise Refused(f"{rollout.name} is rolled back and stays so; 'restart' begins again with the first step")
    if rollout.phase is not Phase.PAUSED:
        raise Refused(f"{rollout.name} is {rollout.phase}, not paused")
    if rollout.passed and rollout.step + 1 == len(rollout.experiment.plan()):
        raise Refused(f"{rollout.name} has no step left; promote it or roll it back")
    # The time for a decision begins anew; the time that the step has lasted does not.
    lasted_s = min(rollout.elapsed_s, rollout.experiment.interval_s)
    running = replace(rollout, phase=Phase.RUNNING, elapsed_s=lasted_s, failed=())
    running, first = _changed(rollout, running, "resume", cause)
    if not running.passed:
        return running, first
    running, second = _next(running, cause.at, resumed=True)
    return running, first + second


def weigh(rollout: Rollout, percents: Mapping[str, float], cause: Cause) -> Outcome:
    """Set weights while it runs. A rollout goes on from there with the first step that is higher.

    Args:
        rollout: The state.
        percents: Arm to its weight in percent; arms that are not named keep theirs.
        cause: Who and why.

    Raises:
        Refused: it is finished, an arm is unknown, or a weight is out of range.
    """
    experiment = rollout.experiment
    arms = list(experiment.targets)
    if rollout.finished:
        raise Refused(f"{rollout.name} is {rollout.phase}; 'restart' begins again")
    if unknown := sorted(set(percents) - set(arms)):
        raise Refused(f"{rollout.name} has no arm {unknown[0]!r}; it has {', '.join(arms)}")
    try:
        wanted = {arm: basis_points(percent) for arm, percent in percents.items()}
    except (ValueError, OverflowError) as err:
        raise Refused(f"a weight is not allowed: {err}") from err
    weights = tuple(wanted.get(arm, weight) for arm, weight in zip(arms, rollout.weights_bp, strict=True))
    if any(weight < 0 for weight in weights) or sum(weights) > FULL_BP:
        raise Refused("weights must be at least 0 % and at most 100 % together")
    after = _weighted(rollout, weights)
    if experiment.arms is None:
        if not 0 < weights[0] < FULL_BP:
            raise Refused("the weight must be above 0 % and below 100 %; use 'rollback' or 'promote' for these")
        reached = [number for number, step in enumerate(experiment.plan()) if step.weight_bp <= weights[0]]
        after = replace(after, step=reached[-1] if reached else -1)
    return _changed(rollout, after, "weight", cause)


def activated(rollout: Rollout, version_id: str, previous_id: str | None, cause: Cause) -> Outcome:
    """Note that the registry has made a version the active one; others than the wanted one change nothing."""
    wanted = rollout.activation
    if wanted is None or wanted.done or wanted.version_id != version_id:
        return rollout, ()
    done = replace(wanted, done=True, previous_id=previous_id if previous_id != version_id else None)
    return _noted(rollout, replace(rollout, activation=done), "activated", cause)


def shadowed(rollout: Rollout, cause: Cause) -> Outcome:
    """Note what a mirror has shown of a target; it changes nothing else."""
    return _noted(rollout, rollout, "shadow", cause)


def deleted(rollout: Rollout, cause: Cause) -> Outcome:
    """Note that the experiment is removed."""
    return _changed(rollout, rollout, "delete", cause)
