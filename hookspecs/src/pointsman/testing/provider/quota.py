"""Rate limits that are really counted, and the headers in which the providers report them.

Each limit is a bucket that is filled evenly over the window, which is how OpenAI, Anthropic and Azure do it; "reset" is
therefore the time until the bucket is full again. All functions take the time from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ...text import duration

if TYPE_CHECKING:
    from .behaviour import Limits
    from .wire import Dialect, Header


class Bucket:
    """One limit.

    Args:
        limit: What is there when it is full.
        window_s: How long an empty one takes to fill, in seconds.
        now: The time in Unix seconds.
    """

    __slots__ = ("_at", "_level", "limit", "window_s")

    def __init__(self, limit: int, window_s: float, now: float) -> None:
        self.limit = limit
        self.window_s = window_s
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        """Return what is there; a clock that went back adds nothing."""
        gained = max(0.0, now - self._at) * self.limit / self.window_s
        return min(float(self.limit), self._level + gained)

    def take(self, amount: float, now: float) -> None:
        """Take out; below zero when more is taken than there is."""
        self._level = self.level(now) - amount
        self._at = now

    def reset_s(self, now: float) -> float:
        """Return the seconds until it is full."""
        return (self.limit - self.level(now)) * self.window_s / self.limit

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until so much can be taken, or until it is full when it never holds so much."""
        return max(0.0, min(amount, self.limit) - self.level(now)) * self.window_s / self.limit


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A request that is over a limit.

    Attributes:
        limit: ``requests`` or ``tokens``.
        wait_s: When to try again, in seconds.
    """

    limit: str
    wait_s: float


class Quota:
    """The four limits of a model: requests, and tokens in all, of prompts and of outputs."""

    __slots__ = ("requests", "tokens", "input_tokens", "output_tokens")  # noqa: RUF023 - as the class is told

    def __init__(self, limits: Limits, now: float) -> None:
        self.requests = Bucket(limits.requests, limits.window_s, now)
        self.tokens = Bucket(limits.tokens, limits.window_s, now)
        self.input_tokens = Bucket(limits.input_tokens or limits.tokens, limits.window_s, now)
        self.output_tokens = Bucket(limits.output_tokens or limits.tokens, limits.window_s, now)

    def charge(self, prompt: int, output: int, now: float) -> Exceeded | None:
        """Charge one request, or refuse it and charge nothing."""
        charges = (
            ("requests", self.requests, 1),
            ("tokens", self.tokens, prompt + output),
            ("tokens", self.input_tokens, prompt),
            ("tokens", self.output_tokens, output),
        )
        waits = [Exceeded(name, wait) for name, bucket, amount in charges if (wait := bucket.wait_s(amount, now)) > 0]
        if waits:
            return max(waits, key=lambda exceeded: exceeded.wait_s)
        for _, bucket, amount in charges:
            bucket.take(amount, now)
        return None

    def headers(self, dialect: Dialect, now: float) -> list[Header]:
        """Return the rate-limit headers in the provider's words."""
        if dialect == "anthropic":
            parts = (
                ("requests", self.requests),
                ("tokens", self.tokens),
                ("input-tokens", self.input_tokens),
                ("output-tokens", self.output_tokens),
            )
            return [header for name, bucket in parts for header in _anthropic(name, bucket, now)]
        found = [
            header for name in ("requests", "tokens") for header in _openai(name, getattr(self, name), dialect, now)
        ]
        if dialect == "azure":
            period = b"%d" % math.ceil(self.requests.window_s)
            found += [(b"x-ratelimit-renewalperiod-" + name, period) for name in (b"requests", b"tokens")]
        return found


def format_time(at: float) -> str:
    """Write a time as Anthropic does, RFC 3339 in whole seconds, rounded up."""
    return datetime.fromtimestamp(math.ceil(round(at, 3)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _left(bucket: Bucket, now: float) -> int:
    return max(0, math.floor(bucket.level(now)))


def _openai(name: str, bucket: Bucket, dialect: Dialect, now: float) -> list[Header]:
    reset_s = bucket.reset_s(now)
    # Azure writes plain milliseconds where OpenAI writes a duration.
    reset = str(math.ceil(round(reset_s * 1000, 6))) if dialect == "azure" else duration(reset_s)
    return [
        (f"x-ratelimit-limit-{name}".encode(), b"%d" % bucket.limit),
        (f"x-ratelimit-remaining-{name}".encode(), b"%d" % _left(bucket, now)),
        (f"x-ratelimit-reset-{name}".encode(), reset.encode()),
    ]


def _anthropic(name: str, bucket: Bucket, now: float) -> list[Header]:
    prefix = f"anthropic-ratelimit-{name}-"
    return [
        (f"{prefix}limit".encode(), b"%d" % bucket.limit),
        (f"{prefix}remaining".encode(), b"%d" % _left(bucket, now)),
        (f"{prefix}reset".encode(), format_time(now + bucket.reset_s(now)).encode()),
    ]
