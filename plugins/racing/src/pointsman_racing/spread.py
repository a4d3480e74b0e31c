"""How long a high quantile is believed to be while samples are few. Pure.

A high quantile is known late: of 40 samples, two lie beyond the 95th percentile, and whether three of them were
stragglers decides whether it says two seconds or six. Their median is known soon. So as long as a deployment's own
samples are few, its quantile is its own median times a factor that leans on the other candidates of the race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log
from statistics import median_low
from typing import Final

#: The others' factor counts as much as so many own samples that lie beyond the quantile.
BORROWED_BEYOND: Final = 20.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How a deployment's times are spread.

    Attributes:
        samples: How many were seen, decayed.
        median_ms: Their median.
        log_factor: The logarithm of quantile to median.
    """

    samples: float
    median_ms: float
    log_factor: float

    @classmethod
    def of(cls, samples: float, median_ms: float, quantile_ms: float) -> Spread:
        """Return the spread of times with this median and this quantile, both more than 0."""
        return cls(samples, median_ms, log(quantile_ms / median_ms))

    def quantile_ms(self, usual: float, ratio: float) -> float:
        """Return the quantile, in milliseconds, as far as own samples bear it out.

        Args:
            usual: The logarithm of the factor that is usual among the candidates.
            ratio: Which quantile, below 1.
        """
        borrowed = BORROWED_BEYOND / (1.0 - ratio)
        return self.median_ms * exp((self.samples * self.log_factor + borrowed * usual) / (self.samples + borrowed))


def usual(own: Spread, rivals: Iterable[Spread]) -> float:
    """Return the logarithm of the factor that is usual among candidates.

    The lower middle: as long as no more than half of the candidates are sick, they do not change the others' delays.

    Args:
        own: The candidate that leans.
        rivals: All candidates. One of which less than half as much is known as of ``own`` has no say: a newcomer's
            quantile is the guess that this is meant to mend.
    """
    heard = [spread.log_factor for spread in rivals if 2 * spread.samples >= own.samples]
    return median_low(heard or [own.log_factor])
