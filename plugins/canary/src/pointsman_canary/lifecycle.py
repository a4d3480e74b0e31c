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
from .rollout import ITSELF, Activation, Change, Gate, Phase, Rollout, Total

if TYPE_CHECKING:
    from .metrics import Histogram

#: The most time that one tick counts, in seconds, whatever the clock shows.
MAX_TICK_S: Final = 5.0
#: Time until a gate that answered "wait" is asked again, in seconds.
GATE_RETRY_S: Final = 30.0

Outcome: TypeAlias = tuple[Rollout, tuple[Change, ...]]


class Refused(ValueError):
    """The request contradicts the state; the message says what to do instead."""


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
        stage_requests=0,
        stage_samples=0,
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
    """Continue after a step that has passed: with the next one, a gate, the promotion, or a pause."""
    plan = rollout.experiment.plan()
    rollout = replace(rollout, passed=True)
    waits = rollout.step >= 0 and plan[rollout.step].waits and not resumed
    if waits or rollout.step + 1 == len(plan):
        why = (
            "the step has passed; resume, promote or roll back"
            if waits
            else "the last step has passed; promote or roll back"
        )
        return _changed(rollout, replace(rollout, phase=Phase.PAUSED), "pause", Cause(ITSELF, why, now))
    last = plan[rollout.step + 1].weight_bp == FULL_BP
    gate = Gate.BEFORE_PROMOTION if last else Gate.BEFORE_STEP
    if rollout.experiment.gates.at(gate) is not None:
        return replace(rollout, gate=gate, gate_since_s=rollout.elapsed_s, gate_due_s=rollout.elapsed_s), ()
    notes = [
        f"{finding.metric} {finding.note}"
        for findings in rollout.findings().values()
        for finding in findings
        if finding.note and not finding.needed
    ]
    why = "; ".join(("the previous step has passed", *notes)) if rollout.step >= 0 else "begin"
    return _enter(rollout, Cause(ITSELF, why, now))


def _enter(rollout: Rollout, cause: Cause) -> Outcome:
    """Enter the next step; one of 100 % is the promotion."""
    number = rollout.step + 1
    weight = rollout.experiment.plan()[number].weight_bp
    if weight == FULL_BP:
        return promote(replace(rollout, step=number), cause)
    after = replace(_weighted(rollout, (weight,)), step=number)
    if not any(rollout.weights_bp):
        # Nothing has been tested yet, so the first part of alpha is unspent.
        after = replace(after, analyses=rollout.analyses)
    return _changed(rollout, after, "step", cause)


def tick(
    rollout: Rollout,
    now: float,
    observed: Mapping[str, Mapping[str, Histogram]] | None = None,
    late: Mapping[str, Mapping[str, Histogram]] | None = None,
) -> Outcome:
    """Let time pass, take in what was observed, and decide.

    Args:
        rollout: The state.
        now: Unix seconds.
        observed: New observations of this stage: arm (stable included) to metric to histogram.
        late: Those of requests that were routed in an earlier stage of this run: they are only added to the totals.
    """
    passed_s = 0.0 if rollout.ticked_at is None else min(max(now - rollout.ticked_at, 0.0), MAX_TICK_S)
    rollout = replace(rollout, ticked_at=now, elapsed_s=rollout.elapsed_s + passed_s)
    rollout = _counted(_counted(rollout, late or {}), observed or {}, of_stage=True)
    if rollout.finished:
        return rollout, ()
    experiment = rollout.experiment
    rollout = _observed(rollout, observed or {}, passed_s)
    verdicts = {arm: analysis.verdict(results) for arm, results in rollout.findings().items()}
    failed = tuple(arm for arm, verdict in verdicts.items() if verdict is Verdict.FAIL)
    if not set(failed) <= set(rollout.failed):
        return _fail(rollout, failed, now)
    # Without a weight the first step has not been entered: a gate is asked.
    ramping = experiment.arms is None and rollout.phase is Phase.RUNNING and rollout.gate is None
    if not ramping or rollout.elapsed_s < experiment.interval_s:
        return rollout, ()
    if verdicts and all(verdict is Verdict.PASS for verdict in verdicts.values()):
        return _next(rollout, now)
    enough = rollout.stage_samples >= experiment.inconclusive_samples
    if enough or rollout.elapsed_s >= experiment.interval_s + experiment.inconclusive_limit_s:
        after = f"{rollout.stage_samples} requests" if enough else f"{rollout.elapsed_s:.0f} s"
        why = ", ".join(
            f"{finding.metric} of {arm}: {finding.canary_samples} observations, {finding.stable_samples} of stable"
            for arm, results in rollout.findings().items()
            for finding in analysis.undecided(results)
        )
        cause = Cause(ITSELF, f"undecided after {after} ({why}); resume, promote or roll back", now)
        return _changed(rollout, replace(rollout, phase=Phase.PAUSED), "pause", cause)
    return rollout, ()


def _counted(rollout: Rollout, observed: Mapping[str, Mapping[str, Histogram]], *, of_stage: bool = False) -> Rollout:
    if not observed:
        return rollout
    totals = dict(rollout.totals)
    for arm, metrics in observed.items():
        totals[arm] = totals.get(arm, Total()).plus(metrics)
    if not of_stage:
        return replace(rollout, totals=totals)
    new = {arm: total.requests - rollout.totals.get(arm, Total()).requests for arm, total in totals.items()}
    arms = [count for arm, count in new.items() if arm != STABLE]
    return replace(
        rollout,
        totals=totals,
        stage_requests=rollout.stage_requests + sum(new.values()),
        stage_samples=rollout.stage_samples + max(arms, default=0),
    )


def _observed(rollout: Rollout, observed: Mapping[str, Mapping[str, Histogram]], passed_s: float) -> Rollout:
    experiment = rollout.experiment
    stable = observed.get(STABLE, {})
    analyses = {
        arm: analysis.elapsed(analysis.absorbed(state, experiment, stable, observed.get(arm, {})), experiment, passed_s)
        for arm, state in rollout.analyses.items()
    }
    return replace(rollout, analyses=analyses)


def _fail(rollout: Rollout, failed: tuple[str, ...], now: float) -> Outcome:
    worse = [
        f"{finding.metric} of {arm}: {_shown(finding.canary)} "
        + (f"({finding.note})" if finding.note else f"against {_shown(finding.stable)}")
        + f" (p {finding.p_harm:.2g})"
        for arm, findings in rollout.findings().items()
        for finding in findings
        if finding.verdict is Verdict.FAIL
    ]
    compared = any(
        finding.verdict is Verdict.FAIL and finding.metric != analysis.MIN_SUCCESS
        for findings in rollout.findings().values()
        for finding in findings
    )
    cause = Cause(ITSELF, ("worse than stable: " if compared else "below the threshold: ") + "; ".join(worse), now)
    if rollout.experiment.failing == "rollback":
        return rollback(rollout, cause)
    after = replace(rollout, failed=tuple(sorted({*rollout.failed, *failed})))
    if rollout.experiment.failing == "pause" and rollout.phase is Phase.RUNNING:
        return _changed(rollout, replace(after, phase=Phase.PAUSED, gate=None), "pause", cause)
    return _changed(rollout, after, "fail", cause)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def gate_answered(rollout: Rollout, gate: Gate, answer: Literal["go", "wait", "rollback"], cause: Cause) -> Outcome:
    """Apply the verdict of a webhook; an outdated one changes nothing."""
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
        Refused: it is already promoted, or the arm is missing or unknown.
    """
    arms = list(rollout.experiment.targets)
    if arm is None and len(arms) > 1:
        raise Refused(f"{rollout.name} has several arms; name the one to promote: {', '.join(arms)}")
    arm = arm or arms[0]
    if arm not in arms:
        raise Refused(f"{rollout.name} has no arm {arm!r}; it has {', '.join(arms)}")
    weights = tuple(FULL_BP if name == arm else 0 for name in arms)
    if rollout.phase is Phase.PROMOTED and rollout.weights_bp == weights:
        raise Refused(f"{rollout.name} is already promoted")
    target = rollout.experiment.targets[arm]
    activation = Activation(version_id=target.version) if isinstance(target, Version) else None
    after = replace(_weighted(rollout, weights), phase=Phase.PROMOTED, activation=activation)
    return _changed(rollout, after, "promote", cause)


def rollback(rollout: Rollout, cause: Cause) -> Outcome:
    """Send everything to stable; it stays so until ``create`` begins another run or a person promotes.

    Raises:
        Refused: it is already rolled back.
    """
    if rollout.phase is Phase.ROLLED_BACK:
        raise Refused(f"{rollout.name} is already rolled back")
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


def step(rollout: Rollout, cause: Cause) -> Outcome:
    """Enter the next step at once, without waiting for a pass or a gate; one of 100 % is the promotion.

    A paused rollout stays paused, so that a person can take one step after the other.

    Raises:
        Refused: it is an A/B experiment, finished, or no step is left.
    """
    if rollout.experiment.arms is not None:
        raise Refused(f"{rollout.name} is an A/B experiment without steps; set weights or promote an arm")
    if rollout.finished:
        raise Refused(f"{rollout.name} is {rollout.phase}; 'restart' begins again with the first step")
    if rollout.step + 1 == len(rollout.experiment.plan()):
        raise Refused(f"{rollout.name} has no further step; promote it or roll it back")
    return _enter(replace(rollout, gate=None), cause)


def superseded(rollout: Rollout, version_id: str, previous_id: str | None, cause: Cause) -> Outcome:
    """End a rollout whose arm's version has become the active one, which is what stable serves from then on.

    A version is not compared with itself. The version serves everything, so the rollout counts as promoted, and a rollback
    returns to the version before. Others than unfinished rollouts without a stable target of their own change nothing.

    Args:
        rollout: The state.
        version_id: The version that is active.
        previous_id: The version that was active before, or None when that is not known.
        cause: Who activated it.
    """
    arm = rollout.arm_of(version_id)
    if arm is None or rollout.finished or rollout.experiment.stable is not None:
        return rollout, ()
    after, changes = promote(rollout, cause, arm)
    done = Activation(version_id=version_id, done=True, previous_id=previous_id)
    return replace(after, activation=done), changes


def pause(rollout: Rollout, cause: Cause) -> Outcome:
    """Keep the current weights until ``resume``. A fail still rolls back.

    Raises:
        Refused: it is not running.
    """
    if rollout.phase is not Phase.RUNNING:
        raise Refused(f"{rollout.name} is {rollout.phase}, so it cannot be paused; only a running experiment can")
    return _changed(rollout, replace(rollout, phase=Phase.PAUSED, gate=None), "pause", cause)


def resume(rollout: Rollout, cause: Cause) -> Outcome:
    """Continue after a pause: with the next step when the current one has passed, else with the current one.

    Raises:
        Refused: it is not paused, or no step is left.
    """
    if rollout.phase is Phase.ROLLED_BACK:
        raise Refused(f"{rollout.name} is rolled back; 'restart' begins again with the first step")
    if rollout.phase is not Phase.PAUSED:
        raise Refused(f"{rollout.name} is {rollout.phase}, not paused")
    if rollout.passed and rollout.step + 1 == len(rollout.experiment.plan()):
        raise Refused(f"{rollout.name} has no further step; promote it or roll it back")
    # The time for a decision restarts; the time that the step has lasted counts on.
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
        raise Refused(f"{rollout.name} is {rollout.phase}, so its weights are fixed; 'restart' begins again")
    if unknown := sorted(set(percents) - set(arms)):
        raise Refused(f"{rollout.name} has no arm {unknown[0]!r}; it has {', '.join(arms)}")
    try:
        wanted = {arm: basis_points(percent) for arm, percent in percents.items()}
    except (ValueError, OverflowError) as err:
        raise Refused(f"a weight is not allowed: {err}") from err
    weights = tuple(wanted.get(arm, weight) for arm, weight in zip(arms, rollout.weights_bp, strict=True))
    if any(weight < 0 for weight in weights) or sum(weights) > FULL_BP:
        raise Refused("weights must be at least 0 % and add up to at most 100 %")
    after = _weighted(rollout, weights)
    if experiment.arms is None:
        if not 0 < weights[0] < FULL_BP:
            raise Refused("the weight must be above 0 % and below 100 %; use 'rollback' or 'promote' for these")
        reached = [number for number, step in enumerate(experiment.plan()) if step.weight_bp <= weights[0]]
        after = replace(after, step=reached[-1] if reached else -1)
    return _changed(rollout, after, "weight", cause)


def activated(rollout: Rollout, version_id: str, previous_id: str | None, cause: Cause) -> Outcome:
    """Note that the registry has activated a version; others than the requested one change nothing."""
    wanted = rollout.activation
    if wanted is None or wanted.done or wanted.version_id != version_id:
        return rollout, ()
    done = replace(wanted, done=True, previous_id=previous_id if previous_id != version_id else None)
    return _noted(rollout, replace(rollout, activation=done), "activated", cause)


def shadowed(rollout: Rollout, cause: Cause) -> Outcome:
    """Note the figures of a mirror with the same challenger; nothing else changes."""
    return _noted(rollout, rollout, "shadow", cause)


def deleted(rollout: Rollout, cause: Cause) -> Outcome:
    """Note that the experiment is removed."""
    return _changed(rollout, rollout, "delete", cause)
