"""Is the canary worse? Evidence of one arm against stable, over windows, steps and metrics.

One ``alpha`` covers the whole rollout. It is divided among the metrics by their shares, among the arms equally, and
within a metric among the restarts of its statistics by ``eprocess.log_share``: 1/2 for the first, 1/6 for the second,
and so on. Statistics restart at each step and after each window; a restart counts for its own window and the next, so
that a failure which begins late in a window still has a full window to be seen in, and what is older is forgotten.

"Pass" is decided for each step by itself with ``beta``, divided in the same way among the step's own windows.

An absolute threshold (``min_success_ratio``) is one more comparison with a share of alpha, of the arm's error rate with a
fixed number instead of stable's.

A stable that fails most of its requests gives a latency nothing to be compared with. When the error rate has passed
and the canary has answers, such a metric is not needed for a pass, and its finding says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import exp, log
from typing import TYPE_CHECKING, Final

from pointsman.stats import merged

from .eprocess import NO_EVIDENCE, grow, grow_above, log_mean_exp, log_share
from .experiment import BOUNDED, RATES, Metric, MetricName
from .metrics import Histogram, Scale, figure, halved

if TYPE_CHECKING:
    from .experiment import Experiment

#: Windows that count: the current one and the previous one.
_LIVE_WINDOWS: Final = 2
#: Stable observations that a first guess needs, except for rates.
LEAST_REFERENCE: Final = 30
#: Uncorrected evidence of harm above which nothing passes: harm within the margin may still become a fail.
_SUSPICION: Final = log(3)
#: The reference is halved above this number of observations.
_MOST_REFERENCE: Final = 4000
#: Key of the comparison with ``min_success_ratio``.
MIN_SUCCESS: Final = "success_ratio:min"
_ERRORS: Final = Metric(metric=MetricName.ERROR_RATE)
#: Error rate above which stable is too broken to be a reference for the speed of answers.
_BROKEN: Final = 0.5


class Verdict(StrEnum):
    """The verdict of an analysis."""

    PASS = "pass"  # noqa: S105  # not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Evidence since one restart.

    Attributes:
        restart: Its number within the run, from 1.
        in_step: Its number within the step, from 1.
        harm: Evidence that the canary is worse by more than the tolerance.
        harmless: Evidence that it is not worse by the margin.
        stable: Stable's observations in the window.
        canary: The canary's.
    """

    restart: int
    in_step: int
    harm: tuple[float, ...] = NO_EVIDENCE
    harmless: tuple[float, ...] = NO_EVIDENCE
    stable: Histogram = field(default_factory=dict)
    canary: Histogram = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The state of one metric of one arm.

    Attributes:
        reference: Earlier observations of stable, from which guesses, caps and quantiles are made.
        waiting_stable: Observations of a block that is not complete because an arm is still missing in it.
        waiting_canary: The canary's part of it.
        windows: The live windows, the older first.
    """

    reference: Histogram = field(default_factory=dict)
    waiting_stable: Histogram = field(default_factory=dict)
    waiting_canary: Histogram = field(default_factory=dict)
    windows: tuple[Window, ...] = (Window(restart=1, in_step=1),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The state of one arm.

    Attributes:
        comparisons: By ``Metric.key``.
        window_elapsed_s: Age of the current window, in seconds.
    """

    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    window_elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one metric of one arm.

    Attributes:
        metric: The metric and its statistic, for example ``latency_ms:p90``.
        verdict: Pass, fail or inconclusive.
        stable_samples: Observations of stable in the live windows.
        canary_samples: Observations of the canary in them.
        stable: Stable's figure in the metric's unit, or None.
        canary: The canary's.
        p_harm: Always-valid p-value of "not worse than the tolerance", already corrected for metrics, arms and
            restarts; a fail when at most ``alpha``.
        p_harmless: Always-valid p-value of "worse by the margin or more", corrected for the step's windows; a pass
            needs at most ``beta``.
        stable_waiting: Observations of stable that are not compared yet, because the canary has none of the same time.
        canary_waiting: The canary's that wait for stable's.
        needed: Whether a pass needs this metric to pass.
        note: Why it is not needed, or what it is compared with instead of stable, in words.
    """

    metric: str
    verdict: Verdict
    stable_samples: int
    canary_samples: int
    stable: float | None
    canary: float | None
    p_harm: float
    p_harmless: float
    stable_waiting: int = 0
    canary_waiting: int = 0
    needed: bool = True
    note: str = ""


def fresh(experiment: Experiment) -> Analysis:
    """Return the state before the first observation."""
    keys = [metric.key for metric in experiment.metrics]
    if experiment.min_success_ratio is not None:
        keys.append(MIN_SUCCESS)
    return Analysis(comparisons={key: Comparison() for key in keys})


def restarted(analysis: Analysis) -> Analysis:
    """Return the state at the beginning of a step: no evidence, no observations, only the reference."""

    def again(comparison: Comparison) -> Comparison:
        number = comparison.windows[-1].restart + 1
        return Comparison(reference=comparison.reference, windows=(Window(restart=number, in_step=1),))

    return Analysis(comparisons={key: again(comparison) for key, comparison in analysis.comparisons.items()})


def elapsed(analysis: Analysis, experiment: Experiment, seconds: float) -> Analysis:
    """Return the state after this time: a window that is full, by time or by observations, is followed by the next."""
    age = analysis.window_elapsed_s + seconds
    samples = max(sum(comparison.windows[-1].canary.values()) for comparison in analysis.comparisons.values())
    if age < experiment.window_s and samples < experiment.window_samples:
        return replace(analysis, window_elapsed_s=age)

    def rolled(comparison: Comparison) -> Comparison:
        last = comparison.windows[-1]
        window = Window(restart=last.restart + 1, in_step=last.in_step + 1)
        return replace(comparison, windows=(*comparison.windows, window)[-_LIVE_WINDOWS:])

    return Analysis(comparisons={key: rolled(comparison) for key, comparison in analysis.comparisons.items()})


def absorbed(
    analysis: Analysis, experiment: Experiment, stable: Mapping[str, Histogram], canary: Mapping[str, Histogram]
) -> Analysis:
    """Return the state after a block of observations.

    Args:
        analysis: The state before.
        experiment: Whose metrics.
        stable: Metric name to stable's new observations.
        canary: Metric name to those of the arm.
    """
    comparisons = dict(analysis.comparisons)
    for metric in experiment.metrics:
        ours, theirs = canary.get(metric.metric, {}), stable.get(metric.metric, {})
        if ours or theirs:
            comparisons[metric.key] = _absorbed(comparisons[metric.key], metric, theirs, ours)
    errors = canary.get(MetricName.ERROR_RATE)
    if experiment.min_success_ratio is not None and errors:
        comparisons[MIN_SUCCESS] = _absorbed_alone(comparisons[MIN_SUCCESS], errors, experiment.min_success_ratio)
    return replace(analysis, comparisons=comparisons)


def _absorbed(comparison: Comparison, metric: Metric, stable: Histogram, canary: Histogram) -> Comparison:
    stable, canary = merged(comparison.waiting_stable, stable), merged(comparison.waiting_canary, canary)
    # Closing a block by the presence of both arms, never by what they show, keeps the test valid.
    if not stable or not canary:
        return replace(comparison, waiting_stable=stable, waiting_canary=canary)
    windows = comparison.windows
    reference = comparison.reference
    if metric.metric in RATES or sum(reference.values()) >= LEAST_REFERENCE:
        harm = Scale(metric, reference, metric.tolerance, lenient=True)
        harmless = Scale(metric, reference, metric.margin, lenient=False)
        for_harm = (harm.stable(stable), harm.canary(canary), harm.guess())
        for_harmless = (harmless.stable(stable), harmless.canary(canary), harmless.guess())
        windows = tuple(
            replace(
                window, harm=grow(window.harm, *for_harm), harmless=grow(window.harmless, *for_harmless, worse=False)
            )
            for window in windows
        )
    reference = merged(reference, stable)
    if sum(reference.values()) > _MOST_REFERENCE:
        reference = halved(reference)
    latest = windows[-1]
    latest = replace(latest, stable=merged(latest.stable, stable), canary=merged(latest.canary, canary))
    return Comparison(reference=reference, windows=(*windows[:-1], latest))


def _absorbed_alone(comparison: Comparison, errors: Histogram, min_success_ratio: float) -> Comparison:
    scale = Scale(_ERRORS, {}, 0.0, lenient=True)
    windows = tuple(
        replace(window, harm=grow_above(window.harm, scale.canary(errors), 1 - min_success_ratio))
        for window in comparison.windows
    )
    latest = replace(windows[-1], canary=merged(windows[-1].canary, errors))
    return Comparison(windows=(*windows[:-1], latest))


def findings(analysis: Analysis, experiment: Experiment) -> tuple[Finding, ...]:
    """Return the result of each metric, in the order of the definition, and last that of the absolute threshold."""
    threshold = experiment.min_success_ratio
    shares = sum(metric.share for metric in experiment.metrics) + (threshold is not None)
    shares *= len(experiment.targets)
    results = [
        _finding(analysis.comparisons[metric.key], experiment, metric, metric.share / shares)
        for metric in experiment.metrics
    ]
    if threshold is not None:
        results.append(_alone(analysis.comparisons[MIN_SUCCESS], experiment, threshold, 1 / shares))
    errors = next((finding for finding in results if finding.metric == _ERRORS.key), None)
    if errors is None or errors.verdict is not Verdict.PASS or (errors.stable or 0.0) <= _BROKEN:
        return tuple(results)
    if errors.canary_samples * (1 - (errors.canary or 0.0)) < experiment.min_samples:
        return tuple(results)  # it is as broken
    unbounded = {metric.key for metric in experiment.metrics if metric.metric not in BOUNDED}
    return tuple(
        _without_reference(finding, experiment) if finding.metric in unbounded else finding for finding in results
    )


def _without_reference(finding: Finding, experiment: Experiment) -> Finding:
    """Return the finding as not needed when stable has answered too rarely to be compared with."""
    stable = finding.stable_samples + finding.stable_waiting
    if finding.verdict is not Verdict.INCONCLUSIVE or stable >= max(experiment.min_samples, LEAST_REFERENCE):
        return finding
    note = f"not needed: stable has only {stable} observations to compare with, and the error rate has passed"
    return replace(finding, needed=False, note=note)


def _seen(comparison: Comparison) -> tuple[Histogram, Histogram]:
    """Return what stable and the canary have shown in the live windows."""
    stable: Histogram = {}
    canary: Histogram = {}
    for window in comparison.windows:
        stable, canary = merged(stable, window.stable), merged(canary, window.canary)
    return stable, canary


def _finding(comparison: Comparison, experiment: Experiment, metric: Metric, share: float) -> Finding:
    windows = comparison.windows
    stable, canary = _seen(comparison)
    p_harm = _p_value([log_share(w.restart) + log_mean_exp(w.harm) for w in windows], share)
    p_harmless = _p_value([log_share(w.in_step) + log_mean_exp(w.harmless) for w in windows], 1.0)
    suspected = max(log_mean_exp(w.harm) for w in windows) > _SUSPICION
    enough = min(sum(stable.values()), sum(canary.values())) >= experiment.min_samples and not suspected
    verdict = Verdict.INCONCLUSIVE
    if p_harm <= experiment.alpha:
        verdict = Verdict.FAIL
    elif enough and (p_harmless <= experiment.beta or experiment.pass_on == "samples"):  # noqa: S105  # not a password
        verdict = Verdict.PASS
    return Finding(
        metric=metric.key,
        verdict=verdict,
        stable_samples=sum(stable.values()),
        canary_samples=sum(canary.values()),
        stable=figure(metric, stable),
        canary=figure(metric, merged(canary, comparison.waiting_canary)),
        p_harm=p_harm,
        p_harmless=p_harmless,
        stable_waiting=sum(comparison.waiting_stable.values()),
        canary_waiting=sum(comparison.waiting_canary.values()),
        needed=metric.required,
    )


def _alone(comparison: Comparison, experiment: Experiment, threshold: float, share: float) -> Finding:
    """Return the result of the comparison with the absolute threshold."""
    _, canary = _seen(comparison)
    p_harm = _p_value([log_share(w.restart) + log_mean_exp(w.harm) for w in comparison.windows], share)
    errors = figure(_ERRORS, canary)
    verdict = Verdict.INCONCLUSIVE
    if p_harm <= experiment.alpha:
        verdict = Verdict.FAIL
    elif errors is not None and sum(canary.values()) >= experiment.min_samples and 1 - errors >= threshold:
        verdict = Verdict.PASS
    return Finding(
        metric=MIN_SUCCESS,
        verdict=verdict,
        stable_samples=0,
        canary_samples=sum(canary.values()),
        stable=None,
        canary=None if errors is None else 1 - errors,
        p_harm=p_harm,
        p_harmless=1.0,
        note=f"compared with the threshold {threshold:g}, not with stable",
    )


def _p_value(logs: list[float], share: float) -> float:
    """Return 1 over the weighted sum of the windows' evidence, at most 1."""
    total = log_mean_exp(logs) + log(len(logs)) + log(share)
    return exp(-total) if total > 0 else 1.0


def verdict(results: tuple[Finding, ...]) -> Verdict:
    """Return the verdict over all metrics: one fail is a fail, a pass needs every needed metric and at least one."""
    if any(finding.verdict is Verdict.FAIL for finding in results):
        return Verdict.FAIL
    needed = any(finding.needed for finding in results)
    return Verdict.PASS if needed and not undecided(results) else Verdict.INCONCLUSIVE


def undecided(results: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return what a pass still needs."""
    return tuple(finding for finding in results if finding.needed and finding.verdict is not Verdict.PASS)
