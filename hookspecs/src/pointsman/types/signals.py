"""What is known about deployments, and what a plugin says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..frozen import quick


class SignalStatus(StrEnum):
    """What is known about a deployment's ability to serve."""

    AVAILABLE = "available"
    DEGRADED = "degraded"
    EXHAUSTED = "exhausted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One quota axis of a deployment.

    Attributes:
        axis: ``requests``, ``tokens``, ``input_tokens``, ``output_tokens`` or another unit the provider counts.
        window_s: Length of the window in seconds, or None when the provider does not give it.
        limit: The most the window allows, or None.
        remaining: What was left according to the provider's latest answer, or None.
        resets_at: Unix seconds when the window is full again, or None.
    """

    axis: str
    window_s: float | None = None
    limit: float | None = None
    remaining: float | None = None
    resets_at: float | None = None

    def remaining_at(self, now: float) -> float | None:
        """Return what is left at ``now`` (Unix seconds), as far as is known: everything once the reset has come."""
        return self.limit if self.resets_at is not None and now >= self.resets_at else self.remaining


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """A distribution in a few numbers, milliseconds or per second as its name says.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        p99: 99th percentile.
        count: Values.
        mean: Arithmetic mean, or None when unknown.
    """

    p50: float
    p95: float
    p99: float
    count: int
    mean: float | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """The latest knowledge about one deployment: plugins that observe write it, plugins that choose read it.

    Attributes:
        deployment_id: Which deployment.
        status: The verdict.
        recorded_at: Unix seconds.
        until: Unix seconds when the verdict ends by itself, or None.
        limits: Quota axes.
        latency_ms: Whole calls.
        first_token_ms: First piece of content.
        tokens_per_s: Speed of the answers.
        error_ratio: Attempts in the window that failed by the deployment's own fault over all attempts, 0 to 1.
        in_flight: Attempts running now in this worker.
        reason: One phrase for people.
        extra: More numbers, by name.
        active: Whether the gateway's configuration still has the deployment.
        weight: The configured weight.
        capacity: What the deployment can take, in whatever unit the configuration uses for its group, or None.
        account: The provider account it belongs to, or None when it is not configured.
        last_used_at: Unix seconds of the latest attempt, or None.
        last_success_at: Unix seconds of the latest answer, or None.
        last_error_at: Unix seconds of the latest failure, or None.
        last_error: Its message, without secrets.
        consecutive_errors: Failures since the latest answer, without those that the caller caused.
        last_check_at: Unix seconds of the latest active check, or None.
        last_check_success_at: Unix seconds of the latest check that succeeded, or None.
    """

    deployment_id: str
    status: SignalStatus
    recorded_at: float
    until: float | None = None
    limits: tuple[Limit, ...] = ()
    latency_ms: Quantiles | None = None
    first_token_ms: Quantiles | None = None
    tokens_per_s: Quantiles | None = None
    error_ratio: float | None = None
    in_flight: int = 0
    reason: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)
    active: bool = True
    weight: float = 1.0
    capacity: float | None = None
    account: str | None = None
    last_used_at: float | None = None
    last_success_at: float | None = None
    last_error_at: float | None = None
    last_error: str = ""
    consecutive_errors: int = 0
    last_check_at: float | None = None
    last_check_success_at: float | None = None

    def status_at(self, now: float) -> SignalStatus:
        """Return the verdict at ``now`` (Unix seconds): one that has ended by itself no longer holds."""
        if self.until is not None and now >= self.until and self.status is not SignalStatus.UNKNOWN:
            return SignalStatus.AVAILABLE
        return self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A plugin's report about itself, for console, CLI and ``GET /pointsman/status``.

    Attributes:
        ok: Whether it does its work.
        summary: One line for people.
        details: JSON.
    """

    ok: bool
    summary: str
    details: Mapping[str, object] = field(default_factory=dict)
