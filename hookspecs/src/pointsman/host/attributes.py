"""What spans say about requests, routes, selections, attempts and settlements.

Attribute names follow OpenTelemetry's GenAI semantic conventions, and ``pointsman.*`` for decisions. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..types import Attempt, Candidate, Denial, RequestContext, Route, Settlement

if TYPE_CHECKING:
    from .calls import Dropped
    from .tracing import Value

_OPERATION: Final = {"embeddings": "embeddings"}


def of_request(ctx: RequestContext) -> dict[str, Value]:
    """Return what the request span starts with."""
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": _OPERATION.get(ctx.endpoint, "chat"),
        "gen_ai.request.model": ctx.model,
        "pointsman.request_id": ctx.request_id,
        "pointsman.endpoint": str(ctx.endpoint),
        "pointsman.stream": ctx.stream,
    }
    if ctx.identity.tenant:
        attributes["pointsman.tenant"] = ctx.identity.tenant
    return attributes


def of_route(route: Route) -> dict[str, Value]:
    """Return where a route goes."""
    attributes: dict[str, Value] = {"pointsman.target": route.target}
    attributes.update((f"pointsman.label.{name}", value) for name, value in route.labels.items())
    if route.fallbacks:
        attributes["pointsman.fallbacks"] = route.fallbacks
    if route.executor:
        attributes["pointsman.executor"] = route.executor
    if route.reservations:
        attributes["pointsman.reserved_by"] = sorted({r.plugin for r in route.reservations})
    return attributes


def of_denial(denial: Denial) -> dict[str, Value]:
    """Return who denied a request, and why."""
    return {
        "pointsman.denied_by": denial.plugin,
        "pointsman.denial.code": denial.code,
        "pointsman.denial.reason": denial.message,
    }


def of_selection(left: Sequence[Candidate], dropped: Sequence[Dropped]) -> dict[str, Value]:
    """Return who was left, with scores and notes, and who was dropped by whom."""
    attributes: dict[str, Value] = {"pointsman.candidates": [c.deployment.id for c in left]}
    if any(c.score is not None for c in left):
        attributes["pointsman.scores"] = [float("-inf") if c.score is None else c.score for c in left]
    if notes := [f"{c.deployment.id}: {'; '.join(c.notes)}" for c in left if c.notes]:
        attributes["pointsman.notes"] = notes
    if dropped:
        attributes["pointsman.dropped"] = [f"{d.deployment_id}: {d.reason} ({d.plugin})" for d in dropped]
    return attributes


def of_attempt_start(ctx: RequestContext, attempt: Attempt) -> dict[str, Value]:
    """Return what an attempt's span starts with."""
    deployment = attempt.deployment
    return {
        "gen_ai.operation.name": _OPERATION.get(ctx.endpoint, "chat"),
        "gen_ai.provider.name": deployment.provider,
        "gen_ai.request.model": deployment.model,
        "pointsman.attempt": attempt.number,
        "pointsman.attempt.kind": str(attempt.kind),
        "pointsman.deployment": deployment.id,
        "pointsman.group": deployment.group,
    }


def of_attempt(attempt: Attempt) -> dict[str, Value]:
    """Return how an attempt ended."""
    attributes: dict[str, Value] = {"pointsman.outcome": str(attempt.outcome)}
    if attempt.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = attempt.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = attempt.usage.completion_tokens
        if attempt.usage.estimated:
            attributes["pointsman.usage.estimated"] = True
    if attempt.model:
        attributes["gen_ai.response.model"] = attempt.model
    if attempt.status_code is not None:
        attributes["http.response.status_code"] = attempt.status_code
    if attempt.first_token_ms is not None:
        attributes["pointsman.first_token_ms"] = attempt.first_token_ms
    if attempt.cost_usd_micros is not None:
        attributes["pointsman.cost_usd_micros"] = attempt.cost_usd_micros
    if attempt.error is not None:
        attributes["error.type"] = str(attempt.error.kind)
        if attempt.error.retry_after_s is not None:
            attributes["pointsman.retry_after_s"] = attempt.error.retry_after_s
    return attributes


def of_settlement(settlement: Settlement) -> dict[str, Value]:
    """Return how a request ended."""
    attributes: dict[str, Value] = {
        "pointsman.outcome": str(settlement.outcome),
        "pointsman.attempts": len(settlement.attempts),
        "http.response.status_code": settlement.status_code,
        "pointsman.cost_usd_micros": settlement.cost_usd_micros,
    }
    if settlement.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = settlement.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = settlement.usage.completion_tokens
    return attributes
