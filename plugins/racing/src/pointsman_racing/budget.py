"""The budget of extra attempts: a token bucket that fills with requests, not with time. Pure.

Every raced request adds ``ratio`` tokens, every extra attempt takes one. So over any number of requests ``n`` there are
at most ``ratio * n + burst`` extra attempts, whatever the providers do: a fleet that has become slow as a whole gets
``1 + ratio`` times as many calls, never twice as many. (The idea of retry budgets in Finagle and of gRFC A6's throttling;
a bucket that filled with time would let a quiet gateway amplify.)

The emptier the bucket, the longer a race waits before it takes a token (``delay_factor``), so that the remaining tokens
go to the requests that have waited longest: if all of them took a token after the same delay, it would often be gone for
a request that needs ten seconds because one that needs a second more came first. A nearly empty bucket means more than
that: the delay is much too short, as after everything has become slower at once. Then the factor grows quickly, until
the few remaining hedges go to the stragglers of the new normal.

A bucket belongs to one worker. The sum over workers keeps the same share of the same traffic, without a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Final

_ROUNDING: Final = 1e-9
#: By how much the factor grows from a full to an empty bucket, without the steep part.
_STRETCH: Final = 0.2
#: Below this level the factor is multiplied by e for each ``1 / _STEEPNESS`` of the bucket.
_NEARLY_EMPTY: Final = 0.25
_STEEPNESS: Final = 8.0


class Bucket:
    """Tokens for extra attempts.

    Args:
        ratio: Tokens that one request adds; 0.05 allows one extra attempt in twenty requests.
        burst: The bucket's capacity and its initial level; a bucket with ratio 0 starts empty.

    Attributes:
        tokens: Its level now.
        refused: How often there was no token.
    """

    __slots__ = ("burst", "ratio", "refused", "tokens")

    def __init__(self, ratio: float, burst: float) -> None:
        self.ratio = ratio
        self.burst = burst
        self.tokens = burst if ratio > 0 else 0.0
        self.refused = 0

    def earn(self, ratio: float | None = None) -> None:
        """Count a request; ``ratio`` replaces the bucket's own."""
        self.tokens = min(self.burst, self.tokens + (self.ratio if ratio is None else ratio))

    def inherit(self, previous: Bucket) -> None:
        """Begin with what is left in another bucket: settings that have changed fill none."""
        self.tokens, self.refused = min(self.tokens, previous.tokens), previous.refused

    @property
    def has_token(self) -> bool:
        """Whether there is a whole token, up to the rounding error of a sum of shares."""
        return self.tokens >= 1.0 - _ROUNDING

    def take(self) -> None:
        """Take a token."""
        self.tokens = max(0.0, self.tokens - 1.0)


def delay_factor(buckets: Iterable[Bucket]) -> float:
    """Return the factor on hedging delays, from the emptiest bucket: 1 when full, 1.15 at a quarter, 9 when empty."""
    level = min(bucket.tokens / bucket.burst for bucket in buckets)
    return (1.0 + _STRETCH * (1.0 - level)) * exp(_STEEPNESS * max(0.0, _NEARLY_EMPTY - level))


def take_from_all(buckets: Iterable[Bucket]) -> bool:
    """Take one token from each bucket, or none at all; return whether it was taken."""
    every = tuple(buckets)
    lacking = [bucket for bucket in every if not bucket.has_token]
    for bucket in lacking:
        bucket.refused += 1
    if lacking:
        return False
    for bucket in every:
        bucket.take()
    return True
