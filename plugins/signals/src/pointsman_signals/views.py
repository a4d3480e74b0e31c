"""A deployment's state as the ``Signal`` that other plugins read, as JSON and as span attributes. Pure."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pointsman.events import Notice
from pointsman.types import Signal, SignalStatus

from .health import error_ratio
from .statistics import Slice, quantiles, recent_p50

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman.types import Deployment, Limit, Quantiles

    from .health import DeploymentState

_SEVERITY = {
    SignalStatus.AVAILABLE: 0,
    SignalStatus.UNKNOWN: 1,
    SignalStatus.DEGRADED: 2,
    SignalStatus.EXHAUSTED: 3,
}


def notice(signal: Signal, now: float) -> Notice:
    """Return what to say to operators about a deployment that has become exhausted, or no longer is."""
    exhausted = signal.status is SignalStatus.EXHAUSTED
    until = ""
    if exhausted and signal.until is not None:
        until = f" until {datetime.fromtimestamp(signal.until, UTC):%H:%M:%SZ}"
    why = f": {signal.reason}" if signal.reason else ""
    return Notice(
        kind="exhausted",
        subject=signal.deployment_id,
        text=f"deployment {signal.deployment_id} is {signal.status}{until}{why}",
        level="warning" if exhausted else "info",
        at=now,
    )


class Summary:
    """The computed statistics of a window, which change too slowly to be computed for every attempt.

    ``extra`` has: ``recent_p50_ms`` (the latest 100 answers); over the window ``requests``, ``cancelled``,
    ``input_tokens``, ``output_tokens``, ``cost_tokens``, ``cached_tokens``, ``cache_hits``, ``cache_misses``,
    ``cost_usd_micros``, ``cache_hit_ratio`` (cached over prompt tokens); and ``error_ratio.<class>`` over all attempts.
    """

    __slots__ = ("error_ratio", "extra", "first_token_ms", "latency_ms", "tokens_per_s")

    def __init__(self, totals: Slice, recent: Sequence[float]) -> None:
        self.latency_ms: Quantiles | None = quantiles(totals.latency_ms)
        self.first_token_ms: Quantiles | None = quantiles(totals.first_token_ms)
        self.tokens_per_s: Quantiles | None = quantiles(totals.tokens_per_s)
        self.error_ratio, _ = error_ratio(totals)
        extra: dict[str, float] = {
            "recent_p50_ms": recent_p50(recent),
            "requests": totals.requests,
            "cancelled": totals.cancelled,
            "input_tokens": totals.input_tokens,
            "output_tokens": totals.output_tokens,
            "cost_tokens": totals.cost_tokens,
            "cached_tokens": totals.cached_tokens,
            "cache_hits": totals.cache_hits,
            "cache_misses": totals.cache_misses,
            "cost_usd_micros": totals.cost_usd_micros,
        }
        if totals.input_tokens:
            extra["cache_hit_ratio"] = totals.cached_tokens / totals.input_tokens
        for kind, count in totals.errors.items():
            extra[f"error_ratio.{kind}"] = count / totals.requests
        self.extra = extra


_EMPTY = Summary(Slice(), ())


def make_signal(state: DeploymentState, summary: Summary | None, limits: tuple[Limit, ...], now: float) -> Signal:
    """Return a state as a signal at ``now`` (Unix seconds), with these quota axes."""
    verdict = state.judge(now)
    facts, quota, deployment = state.facts, state.quota, state.deployment
    summary = summary or _EMPTY
    return Signal(
        deployment_id=state.id,
        status=verdict.status,
        recorded_at=state.recorded_at or now,
        until=verdict.until,
        limits=limits,
        latency_ms=summary.latency_ms,
        first_token_ms=summary.first_token_ms,
        tokens_per_s=summary.tokens_per_s,
        error_ratio=summary.error_ratio,
        in_flight=len(state.in_flight),
        reason=verdict.reason,
        extra={**summary.extra, **quota.notes} if quota.notes else summary.extra,
        active=state.active,
        weight=1.0 if deployment is None else deployment.weight,
        capacity=state.capacity,
        account=state.account,
        last_used_at=facts.used_at or None,
        last_success_at=facts.success_at or None,
        last_error_at=facts.error_at or None,
        last_error=facts.error,
        consecutive_errors=facts.consecutive_errors,
        last_check_at=facts.check.at if facts.check else None,
        last_check_success_at=facts.check_success_at or None,
    )


def signal_json(signal: Signal, deployment: Deployment | None) -> dict[str, Any]:
    """Return a signal as JSON, with group, provider and model if known."""
    return {
        "deployment_id": signal.deployment_id,
        "group": deployment.group if deployment else None,
        "provider": deployment.provider if deployment else None,
        "model": deployment.model if deployment else None,
        **{name: value for name, value in asdict(signal).items() if name not in {"deployment_id", "extra"}},
        "status": str(signal.status),
        "extra": dict(signal.extra),
    }


def account_json(
    name: str, shared: bool, members: Sequence[tuple[DeploymentState, Signal]], now: float
) -> dict[str, Any]:
    """Return all deployments of one provider account as one: the best of their verdicts, the sum of their traffic.

    Args:
        name: The account.
        shared: Whether its deployments share quotas.
        members: Its deployments, at least one.
        now: Unix seconds.
    """
    total = Slice()
    for state, _ in members:
        total.merge(state.totals or state.sum_up(now))
    best = min((signal for _, signal in members), key=lambda s: (_SEVERITY[s.status], s.until or 0.0))
    summary = Summary(total, ())
    extra = {key: value for key, value in summary.extra.items() if key != "recent_p50_ms"}
    return {
        "account": name,
        "shared": shared,
        "deployments": sorted(state.id for state, _ in members),
        "status": str(best.status),
        "until": best.until,
        "reason": best.reason,
        "in_flight": sum(signal.in_flight for _, signal in members),
        "error_ratio": summary.error_ratio,
        "latency_ms": _quantiles(summary.latency_ms),
        "first_token_ms": _quantiles(summary.first_token_ms),
        "tokens_per_s": _quantiles(summary.tokens_per_s),
        "extra": extra,
    }


def headroom(signal: Signal, now: float) -> tuple[str, float] | None:
    """Return the axis with the smallest remaining share at ``now`` and that share, 0 to 1; None when unknown."""
    tightest: tuple[str, float] | None = None
    for limit in signal.limits:
        remaining = limit.remaining_at(now)
        if limit.limit and remaining is not None:
            ratio = min(1.0, remaining / limit.limit)
            if tightest is None or ratio < tightest[1]:
                tightest = (limit.axis, ratio)
    return tightest


def span_attributes(signal: Signal, now: float, error_ratio: float | None) -> Mapping[str, str | float | int]:
    """Return the span attributes that describe an attempt's deployment after the attempt.

    Args:
        signal: Its signal; statistics in it are those of the last refresh.
        now: Unix seconds.
        error_ratio: The share of errors at ``now``.
    """
    attributes: dict[str, str | float | int] = {
        "pointsman.signals.status": str(signal.status),
        "pointsman.signals.in_flight": signal.in_flight,
    }
    if signal.reason:
        attributes["pointsman.signals.reason"] = signal.reason
    if signal.until is not None:
        attributes["pointsman.signals.until"] = signal.until
    if error_ratio is not None:
        attributes["pointsman.signals.error_ratio"] = error_ratio
    if (tightest := headroom(signal, now)) is not None:
        attributes["pointsman.signals.headroom_axis"], attributes["pointsman.signals.headroom_ratio"] = tightest
    return attributes


def _quantiles(value: Quantiles | None) -> dict[str, float] | None:
    return asdict(value) if value is not None else None
