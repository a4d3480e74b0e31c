"""Members and settings as JSON, and the attributes of an attempt's span. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .members import Member
    from .policies import Policies


def member_json(member: Member, now: float) -> dict[str, Any]:
    """Return one deployment of a model group as JSON."""
    load, breaker, deployment = member.load, member.breaker, member.deployment
    share, expected_ms = breaker.admits(now), load.wait_ms(now, stream=True)
    return {
        "deployment_id": deployment.id,
        "group": deployment.group,
        "provider": deployment.provider,
        "model": deployment.model,
        "weight": deployment.weight,
        "capacity": member.capacity,
        "breaker": {
            "state": str(breaker.state),
            "says": breaker.describe(now),
            "cause": None if breaker.cause is None else str(breaker.cause),
            "reason": breaker.reason,
            "changed_at": breaker.changed_at or None,
            "until": breaker.open_until,
            "openings": breaker.openings,
            "probing": breaker.probe_at is not None,
            "share_ratio": share if share <= 1.0 else 0.0,
        },
        "in_flight": load.in_flight,
        "attempts": load.tried,
        "failed": load.failed,
        "error_ratio": load.errors,
        # As measured, however long ago; the tactics use the estimate, which fades while the deployment is unused.
        "wait_ms": load.measured_ms(stream=True),
        "believed_wait_ms": None if expected_ms is None else round(expected_ms, 2),
        "first_token_ms": load.first_ms.value if load.first_ms.count else None,
        "latency_ms": load.latency_ms.value if load.latency_ms.count else None,
        "tokens_per_s": load.tokens_per_s.value if load.tokens_per_s.count else None,
        "recent_tokens": load.tokens.value(now),
        "used_at": load.used_at or None,
    }


def group_json(group: str, policies: Policies, members: Sequence[Member], now: float) -> dict[str, Any]:
    """Return one model group with its settings and its deployments as JSON."""
    _, tactic = policies.tactic(group)
    return {
        "group": group,
        "tactic": {"name": policies.choice(group).name, **tactic.settings.model_dump(mode="json")},
        "breaker": policies.breaker(group).model_dump(mode="json"),
        "changed": group in policies.changed,
        "deployments": sorted((member_json(one, now) for one in members), key=lambda row: str(row["deployment_id"])),
    }


def span_attributes(member: Member, *, stream: bool) -> Mapping[str, str | float | int]:
    """Return the span attributes that describe an attempt's deployment after the attempt.

    Args:
        member: The deployment.
        stream: Whether the request is a stream, whose wait is that for the first token.
    """
    load, breaker = member.load, member.breaker
    attributes: dict[str, str | float | int] = {
        "pointsman.balance.breaker": str(breaker.state),
        "pointsman.balance.in_flight": load.in_flight,
        "pointsman.balance.error_ratio": load.errors,
    }
    if breaker.reason:
        attributes["pointsman.balance.breaker_reason"] = breaker.reason
    if (wait_ms := load.measured_ms(stream=stream)) is not None:
        attributes["pointsman.balance.wait_ms"] = wait_ms
    return attributes
