"""The figures of a mirror: means with intervals that stay valid while one looks, and quantiles.

A confidence sequence [1] is a sequence of intervals that covers the mean at all times together: with probability
``confidence`` no look, however many there are and whatever made one look, finds it outside. So one may watch a mirror
every second and stop when the interval says enough; an ordinary 95 % interval that is watched for long is wrong far
more often than 5 times in 100.

This is the predictable plug-in empirical-Bernstein confidence sequence of [2], theorem 2, for observations in [0, 1]
whose mean, given the past, is always the same; nothing else is assumed of their distribution. With
``psi(l) = -log(1 - l) - l`` and for each observation x, before it is seen,

    m = (1/2 + sum x) / (n + 1)        s2 = (1/4 + sum (x - m)^2) / (n + 1)
    l = min(sqrt(2 log(2 / alpha) / (s2 (n + 1) log(n + 2))), 1/2)

the interval after n observations is

    sum l x / sum l  +-  (log(2 / alpha) + sum (x - m)^2 psi(l)) / sum l

It adapts to the variance, needs six numbers whatever n is, and only ever shrinks when intersected over time, which is
not done here: an interval is a function of the present state alone.

Quantiles come from counts in buckets that span a factor of 1.02, so a quantile is within 1 % of an observed number.
1 ms to an hour are 770 buckets.

[1] S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
    Annals of Statistics 49 (2021), 1055-1080; arXiv:1810.08240.
[2] I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
    Statistical Society B 86 (2024), 1-27; arXiv:2010.09686.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, log1p, sqrt
from typing import Final, Self

from pointsman.stats import Buckets

_MOST_LAMBDA: Final = 0.5

#: Buckets of times in milliseconds. Their counts are stored, so the base must not change.
BUCKETS: Final = Buckets(1.02, least=1e-3, most=1e8)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it lies between."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ConfidenceSequence:
    """What is remembered of the observations.

    Attributes:
        count: How many there were.
        total: Their sum.
        squares: Sum of the squared distances from the mean as it was then.
        weight: Sum of the weights (lambda).
        weighted: Sum of weight times observation.
        penalty: Sum of squared distance from the mean before, times psi(weight).
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    weight: float = 0.0
    weighted: float = 0.0
    penalty: float = 0.0

    def add(self, value: float, alpha: float) -> Self:
        """Return the state after one more observation.

        Args:
            value: The observation, 0 to 1.
            alpha: 1 minus the confidence; the same for all observations.

        Raises:
            ValueError: the observation is not in [0, 1].
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"an observation must be 0 to 1, not {value!r}")
        number = self.count + 1
        mean = (0.5 + self.total) / number
        variance = (0.25 + self.squares) / number
        weight = min(sqrt(2 * log(2 / alpha) / (variance * number * log(number + 1))), _MOST_LAMBDA)
        distance = (value - mean) ** 2
        mean_after = (0.5 + self.total + value) / (number + 1)
        return replace(
            self,
            count=number,
            total=self.total + value,
            squares=self.squares + (value - mean_after) ** 2,
            weight=self.weight + weight,
            weighted=self.weighted + weight * value,
            penalty=self.penalty + distance * (-log1p(-weight) - weight),
        )

    def interval(self, alpha: float) -> Interval | None:
        """Return the mean so far and its interval within [0, 1]; None without any observation."""
        if not self.count:
            return None
        mean = self.total / self.count
        centre = self.weighted / self.weight
        radius = (log(2 / alpha) + self.penalty) / self.weight
        # The plain mean is what people expect to see; in rare cases it lies outside and the interval is widened to it.
        return Interval(mean, min(max(centre - radius, 0.0), mean), max(min(centre + radius, 1.0), mean))
