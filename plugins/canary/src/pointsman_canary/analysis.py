"""Is the canary worse? Evidence of one arm against stable, over windows, steps and metrics.

One ``alpha`` covers the whole rollout. It is divided among the metrics by their shares, among the arms equally, and
within a metric among the restarts of its statistics by ``evidence.log_share``: 1/2 for the first, 1/6 for the second,
and so on. Statistics restart at each step and after each window; a restart counts for its own window and the next, so
that a failure which begins late in a window still has a full window to be seen in, and what is older is forgotten.

"Pass" is decided for each step by itself with ``beta``, divided in the same way among the step's own windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import exp, log
from typing import TYPE_CHECKING, Final

from .evidence import NO_EVIDENCE, grow, log_mean_exp, log_share
from .experiment import RATES
from .metrics import Histogram, Scale, added, figure, halved

if TYPE_CHECKING:
    from .experiment import Experiment, Metric

#: Windows that count: the present one and the one before.
_LIVE_WINDOWS: Final = 2
#: The least number of stable observations from which a first guess is made, rates apart.
_LEAST_REFERENCE: Final = 30
#: Evidence of harm, uncorrected, from which on nothing passes: harm within the margin may still become a fail.
_SUSPICION: Final = log(3)
#: From this number on the reference forgets half.
_MOST_REFERENCE: Final = 4000


class Verdict(StrEnum):
    """What an analysis says."""

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
        window_elapsed_s: Age of the present window, in seconds.
    """

    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    window_elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known about one metric of one arm.

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
    """

    metric: str
    verdict: Verdict
    stable_samples: int
    canary_samples: int
    stable: float | None
    canary: float | None
    p_harm: float
    p_harmless: float


def fresh(experiment: Experiment) -> Analysis:
    """Return the state before the first observation."""
    return Analysis(comparisons={metric.key: Comparison() for metric in experiment.metrics})


def restarted(analysis: Analysis) -> Analysis:
    """Return the state at the beginning of a step: no evidence, no observations, only the reference."""

    def again(comparison: Comparison) -> Comparison:
        number = comparison.windows[-1].restart + 1
        return Comparison(reference=comparison.reference, windows=(Window(restart=number, in_step=1),))

    return Analysis(comparisons={key: again(comparison) for key, comparison in analysis.comparisons.items()})


def elapsed(analysis: Analysis, experiment: Experiment, seconds: float) -> Analysis:
    """Return the state after this time without observations: a window that is full makes room for the next."""
    age = analysis.window_elapsed_s + seconds
    if age < experiment.window_s:
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
    return replace(analysis, comparisons=comparisons)


def _absorbed(comparison: Comparison, metric: Metric, stable: Histogram, canary: Histogram) -> Comparison:
    stable, canary = added(comparison.waiting_stable, stable), added(comparison.waiting_canary, canary)
    # Closing a block by the presence of both arms, never by what they show, keeps the test valid.
    if not stable or not canary:
        return replace(comparison, waiting_stable=stable, waiting_canary=canary)
    windows = comparison.windows
    reference = comparison.reference
    if metric.metric in RATES or sum(reference.values()) >= _LEAST_REFERENCE:
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
    reference = added(reference, stable)
    if sum(reference.values()) > _MOST_REFERENCE:
        reference = halved(reference)
    latest = windows[-1]
    latest = replace(latest, stable=added(latest.stable, stable), canary=added(latest.canary, canary))
    return Comparison(reference=reference, windows=(*windows[:-1], latest))


def findings(analysis: Analysis, experiment: Experiment) -> tuple[Finding, ...]:
    """Return what is known about each metric, in the order of the definition."""
    shares = sum(metric.share for metric in experiment.metrics) * len(experiment.targets)
    return tuple(
        _finding(analysis.comparisons[metric.key], experiment, metric, metric.share / shares)
        for metric in experiment.metrics
    )


def _finding(comparison: Comparison, experiment: Experiment, metric: Metric, share: float) -> Finding:
    windows = comparison.windows
    stable: Histogram = {}
    canary: Histogram = {}
    for window in windows:
        stable, canary = added(stable, window.stable), added(canary, window.canary)
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
        canary=figure(metric, canary),
        p_harm=p_harm,
        p_harmless=p_harmless,
    )


def _p_value(logs: list[float], share: float) -> float:
    """Return 1 over the weighted sum of the windows' evidence, at most 1."""
    total = log_mean_exp(logs) + log(len(logs)) + log(share)
    return exp(-total) if total > 0 else 1.0


def verdict(experiment: Experiment, found: tuple[Finding, ...]) -> Verdict:
    """Return the verdict over all metrics: one fail is a fail, a pass needs every required metric."""
    if any(finding.verdict is Verdict.FAIL for finding in found):
        return Verdict.FAIL
    required = {metric.key for metric in experiment.metrics if metric.required}
    passed = all(finding.verdict is Verdict.PASS for finding in found if finding.metric in required)
    return Verdict.PASS if required and passed else Verdict.INCONCLUSIVE
