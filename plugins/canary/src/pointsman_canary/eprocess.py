"""A test that may be looked at all the time, of whether the canary's mean is higher than stable's.

Observations are numbers from 0 to 1 where more is worse (an error is 1, a success 0). They come in blocks, each with
some of both arms, counted over the same time: only what happened at the same time is compared, so that an incident
which hits both arms says nothing about either.

For two guesses ``a`` and ``b``, made before the block is seen, and a block with ``n`` and ``m`` observations of stable
and canary, let ``t = (n a + m b) / (n + m)``. The block's e-value is the product over its observations y of

    1 + (y - t) (a - t) / (t (1 - t))    for stable,      1 + (y - t) (b - t) / (t (1 - t))    for the canary.

It is the likelihood ratio of [1] (section 2) when y is 0 or 1, written as a linear function of y, so that any y between
counts as the coin that shows 1 with that chance, as in [2]. Let the arms have the means u and v in this block. The
expectation is ``f(u)^n g(v)^m`` with f falling and g rising for a < b, hence largest, for v <= u, at v = u; there its
logarithm is concave in u with its maximum 0 at u = t. So under "the canary is not worse" the expectation is at most 1
whatever a and b are; the product over blocks is a nonnegative supermartingale, and by Ville's inequality [3] it ever
exceeds 1/alpha with a chance of at most alpha, however often one looks. For a > b the same holds under "the canary is
not better", which is how harmlessness is shown. A mean of such products (one per guess for b) has the same property.

The observations of a block must be independent given the past. With an assignment unit coarser than a request those of
one unit are alike, and the chance is then alpha only as far as no unit dominates.

[1] R. J. Turner, A. Ly, P. D. Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for
    optional stopping", Journal of Statistical Planning and Inference 230 (2024), 106116; arXiv:2106.02693.
[2] I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
    Statistical Society B 86 (2024), 1-27; arXiv:2010.09686.
[3] J. Ville, "Étude critique de la notion de collectif", 1939.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, fsum, log, log1p
from typing import Final, TypeAlias

#: Observations of one arm: value from 0 (good) to 1 (bad) to how often it was seen.
Counts: TypeAlias = Mapping[float, float]

#: Guesses for the canary's odds in multiples of stable's. A wide grid costs little: a factor five in evidence at worst.
ODDS_RATIOS: Final = (1.3, 2.0, 3.5, 6.5, 15.0)

#: Evidence with no observation yet: logarithm of the wealth for each odds ratio.
NO_EVIDENCE: Final = (0.0,) * len(ODDS_RATIOS)

# A guess of exactly 0 or 1 would stake everything on one observation.
_LEAST_MEAN: Final = 1e-4


def guess(stable: Counts) -> float:
    """Return a guess for stable's mean from what was seen before, never 0 or 1."""
    number = sum(stable.values())
    bad = fsum(value * count for value, count in stable.items())
    return min(max((bad + 0.5) / (number + 1), _LEAST_MEAN), 1 - _LEAST_MEAN)


def grow(
    logs: tuple[float, ...], stable: Counts, canary: Counts, mean: float, *, worse: bool = True
) -> tuple[float, ...]:
    """Return the evidence after one more block.

    Args:
        logs: The evidence before it: one logarithm for each odds ratio.
        stable: The block's observations of stable.
        canary: The block's observations of the canary.
        mean: The guess for stable's mean, made without the block.
        worse: True collects evidence that the canary's mean is higher, False that it is lower.

    Returns:
        The new logarithms; the old ones when an arm has no observation in the block.
    """
    number, other = sum(stable.values()), sum(canary.values())
    if not number or not other:
        return logs
    odds = mean / (1 - mean)
    grown = []
    for before, ratio in zip(logs, ODDS_RATIOS, strict=True):
        canary_odds = odds * ratio if worse else odds / ratio
        canary_mean = canary_odds / (1 + canary_odds)
        middle = (number * mean + other * canary_mean) / (number + other)
        scale = 1 / (middle * (1 - middle))
        grown.append(
            before
            + _log_product(stable, middle, (mean - middle) * scale)
            + _log_product(canary, middle, (canary_mean - middle) * scale)
        )
    return tuple(grown)


def grow_above(logs: tuple[float, ...], counts: Counts, limit: float) -> tuple[float, ...]:
    """Return the evidence that a mean is above a limit, after more observations of it.

    The e-value of an observation y is ``1 + (y - limit) (b - limit) / (limit (1 - limit))`` for a guess b above the limit:
    the likelihood ratio when y is 0 or 1. Its expectation rises with the mean and is 1 at the limit.

    Args:
        logs: The evidence before: one logarithm for each odds ratio.
        counts: The observations.
        limit: Above 0 and below 1.
    """
    odds = limit / (1 - limit)
    scale = 1 / (limit * (1 - limit))
    guesses = [odds * ratio / (1 + odds * ratio) for ratio in ODDS_RATIOS]
    return tuple(
        before + _log_product(counts, limit, (guess - limit) * scale)
        for before, guess in zip(logs, guesses, strict=True)
    )


def _log_product(counts: Counts, middle: float, slope: float) -> float:
    total = 0.0
    for value, count in counts.items():
        total += count * log1p((value - middle) * slope)
    return total


def log_mean_exp(logs: Iterable[float]) -> float:
    """Return the logarithm of the mean of the exponentials, without overflow; -inf for nothing."""
    values = tuple(logs)
    if not values:
        return float("-inf")
    highest = max(values)
    return highest + log(fsum(exp(value - highest) for value in values) / len(values))


def log_share(number: int) -> float:
    """Return the logarithm of the part of alpha that belongs to the number-th restart, counted from 1.

    The parts 1/2, 1/6, 1/12, ... of 1/(n (n + 1)) add up to 1, so that any number of restarts shares one alpha: their
    weighted sum is again a supermartingale that starts at 1.
    """
    return -log(number * (number + 1))
