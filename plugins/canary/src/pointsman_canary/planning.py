"""How many requests a canary that is like stable needs until its promotion, and how long that takes.

The evidence of a block grows on average by a fixed amount. From the distribution of what stable shows (or a usual one, as
long as stable has shown little) follows the average growth per request, and from it when a step passes. Chance makes one
rollout faster and another slower; half of them are done within about the estimate, nearly all within three times of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import exp, inf, log
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

from .analysis import LEAST_REFERENCE, Comparison
from .assignment import FULL_BP
from .eprocess import NO_EVIDENCE, grow, log_mean_exp, log_share
from .experiment import RATES, Experiment, Metric, MetricName
from .metrics import LOG_STEP, Histogram, Scale, index
from .rollout import Phase

if TYPE_CHECKING:
    from .rollout import Rollout

#: Per thousand: 2 % of the requests fail.
_USUAL_RATE: Final[Histogram] = {0: 980, 1000: 20}
#: Standard deviation of the logarithm of a usual latency.
_USUAL_SIGMA: Final = 0.6
_USUAL_QUANTILES: Final = 1000
#: More requests of the canary than this in one step are "never".
_NEVER: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is left until the promotion of a canary that is like stable.

    Attributes:
        requests: Requests of all arms; None when the metrics never pass.
        seconds: The time that they take, None when their rate is not known; at least the intervals of the steps.
    """

    requests: int | None
    seconds: float | None


def as_json(estimate: Estimate | None) -> dict[str, object] | None:
    """Return the estimate for people and programs."""
    return None if estimate is None else {"requests": estimate.requests, "seconds": estimate.seconds}


def planned(experiment: Experiment, requests_per_s: float | None) -> Estimate | None:
    """Return the estimate for a whole rollout with usual figures; None for A/B.

    Args:
        experiment: The definition.
        requests_per_s: Requests of the model per second, or None.
    """
    plan = experiment.plan()
    return _summed(experiment, [step.weight_bp for step in plan], {}, requests_per_s) if plan else None


def remaining(rollout: Rollout) -> Estimate | None:
    """Return the estimate for a rollout at the traffic seen in its present step; None unless it is running."""
    experiment = rollout.experiment
    if experiment.arms is not None or rollout.phase is not Phase.RUNNING:
        return None
    weights = [step.weight_bp for step in experiment.plan()[max(rollout.step, 0) :]]
    if rollout.step >= 0:
        # A person may have set another weight.
        weights[0] = rollout.weights_bp[0]
    (analysis,) = rollout.analyses.values()
    rate = rollout.requests_per_s
    whole = _summed(experiment, weights, analysis.comparisons, rate)
    if whole.requests is None:
        return whole
    first = _summed(experiment, weights[:1], analysis.comparisons, rate)
    done = min(rollout.stage_requests, first.requests or 0)
    done_s = min(rollout.elapsed_s, first.seconds or 0.0)
    seconds = None if whole.seconds is None else max(whole.seconds - done_s, 0.0)
    return Estimate(requests=whole.requests - done, seconds=seconds)


def _summed(
    experiment: Experiment, weights_bp: list[int], comparisons: Mapping[str, Comparison], rate: float | None
) -> Estimate:
    total, seconds = 0.0, 0.0
    for weight_bp in weights_bp:
        if weight_bp >= FULL_BP:
            break
        requests = _requests(experiment, weight_bp / FULL_BP, comparisons)
        total += requests
        seconds += max(experiment.interval_s, requests / rate if rate else inf)
    if total == inf:
        return Estimate(requests=None, seconds=None)
    return Estimate(requests=round(total), seconds=seconds if seconds < inf else None)


def _requests(experiment: Experiment, weight: float, comparisons: Mapping[str, Comparison]) -> float:
    """Return how many requests of both arms a step of this weight needs."""
    least = experiment.min_samples / min(weight, 1 - weight)
    if experiment.pass_on == "samples":  # noqa: S105  # not a password
        return least
    needed = [
        _canary_requests(metric, experiment.beta, weight, _reference(metric, comparisons)) / weight
        for metric in experiment.metrics
        if metric.required
    ]
    return max(least, *needed)


def _reference(metric: Metric, comparisons: Mapping[str, Comparison]) -> Histogram:
    comparison = comparisons.get(metric.key)
    if comparison is not None and sum(comparison.reference.values()) >= LEAST_REFERENCE:
        return comparison.reference
    return _usual(metric.metric)


@cache
def _usual(metric: MetricName) -> Histogram:
    if metric in RATES:
        return _USUAL_RATE
    if metric is MetricName.SCORE:
        return {index(metric, 0.8): 1}
    middle = index(metric, 100.0)
    usual: dict[int, int] = {}
    for part in range(_USUAL_QUANTILES):
        deviation = NormalDist(0, _USUAL_SIGMA).inv_cdf((part + 0.5) / _USUAL_QUANTILES)
        bucket = middle + round(deviation / LOG_STEP)
        usual[bucket] = usual.get(bucket, 0) + 1
    return usual


def _canary_requests(metric: Metric, beta: float, weight: float, reference: Histogram) -> float:
    """Return how many requests of the canary show that it is not worse by the margin, when both arms are alike."""
    scale = Scale(metric, reference, metric.margin, lenient=False)
    stable, canary = scale.stable(reference), scale.canary(reference)
    # One observation of the canary, and what stable has at the same time, in the reference's proportions.
    number = sum(reference.values())
    odds = (1 - weight) / weight
    grown = grow(
        NO_EVIDENCE,
        {value: count / number * odds for value, count in stable.items()},
        {value: count / number for value, count in canary.items()},
        scale.guess(),
        worse=False,
    )
    wanted = log(1 / beta) - log_share(1)
    if log_mean_exp(growth * _NEVER for growth in grown) < wanted:
        return inf
    low, high = 0.0, log(_NEVER)
    for _ in range(40):
        middle = (low + high) / 2
        enough = log_mean_exp(growth * exp(middle) for growth in grown) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return exp(high)
