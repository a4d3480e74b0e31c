"""How many extra attempts there may be: a token bucket that fills with requests, not with time.

Every raced request pays ``ratio`` tokens in, every extra attempt takes one out. So over any number of requests ``n``
there are at most ``ratio * n + burst`` extra attempts, whatever the providers do: a fleet that has become slow as a
whole is asked ``1 + ratio`` times as often, never twice. (The idea of retry budgets in Finagle and of gRFC A6's
throttling; a bucket that filled with time would let a quiet gateway amplify.)

The emptier the bucket, the longer a race waits before it asks (``patience``), so that the tokens that are left go to the
requests that have waited longest: were every one of them to ask at the same delay, a token would often be gone for a
request that needs one second more when the one that needs ten asks. A bucket that is nearly empty says more than that:
the delay is much too short, as after everything has become slower at once. Then the waiting grows quickly, until the
few that are still asked about are the stragglers of the new normal.

A bucket belongs to one worker. The sum over workers keeps the same share of the same traffic, and costs no round trip.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Final

_DUST: Final = 1e-9
#: How much longer than with a full bucket a race would wait when there is nothing left.
_PATIENCE: Final = 0.2
#: Below this level patience is multiplied by e for each ``1 / _STEEPNESS`` of the bucket.
_NEARLY_EMPTY: Final = 0.25
_STEEPNESS: Final = 8.0


class Bucket:
    """Tokens for extra attempts.

    Args:
        ratio: Tokens that one request pays in; 0.05 allows one extra attempt in twenty requests.
        burst: Most tokens it holds, and what it starts with.

    Attributes:
        tokens: What it holds now.
        refused: How often there was no token.
    """

    __slots__ = ("burst", "ratio", "refused", "tokens")

    def __init__(self, ratio: float, burst: float) -> None:
        self.ratio = ratio
        self.burst = burst
        self.tokens = burst if ratio > 0 else 0.0
        self.refused = 0

    def earn(self, ratio: float | None = None) -> None:
        """Count a request; ``ratio`` instead of the bucket's own share."""
        self.tokens = min(self.burst, self.tokens + (self.ratio if ratio is None else ratio))

    @property
    def has_token(self) -> bool:
        """Whether there is a whole token. A sum of shares may lack a rounding error."""
        return self.tokens >= 1.0 - _DUST

    def take(self) -> None:
        """Take a token."""
        self.tokens = max(0.0, self.tokens - 1.0)


def patience(buckets: Iterable[Bucket]) -> float:
    """Return by how much hedging delays are stretched, by the emptiest bucket: 1 when full, 1.15 at 0.25, 9 at 0."""
    level = min(bucket.tokens / bucket.burst for bucket in buckets)
    return (1.0 + _PATIENCE * (1.0 - level)) * exp(_STEEPNESS * max(0.0, _NEARLY_EMPTY - level))


def take_from_all(buckets: Iterable[Bucket]) -> bool:
    """Take one token from each bucket, or from none of them; say which."""
    found = tuple(buckets)
    lacking = [bucket for bucket in found if not bucket.has_token]
    for bucket in lacking:
        bucket.refused += 1
    if lacking:
        return False
    for bucket in found:
        bucket.take()
    return True
