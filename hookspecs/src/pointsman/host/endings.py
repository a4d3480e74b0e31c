"""How a request ends: its outcome and its figures, and the denial where no attempt may or can answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypedDict

from ..types import Attempt, Denial, Outcome, Refusal, Reply, Usage

if TYPE_CHECKING:
    from .attempt import OpenAttempt
    from .hooks import Dropped

_TOO_MANY: Final = 429
_UNAVAILABLE: Final = 503
_ERROR_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
#: Reasons of an empty selection that the client is told.
_MOST_REASONS: Final = 5


class Figures(TypedDict):
    """What a settlement says of the answer, and of all attempts together."""

    usage: Usage | None
    cost_usd_micros: int
    answered_by: str | None


def answering_of(attempts: Sequence[OpenAttempt], answered_by: str | None) -> OpenAttempt | None:
    """Return the attempt that the client's answer is from.

    Args:
        attempts: All of the request, in order.
        answered_by: The id of the attempt, where an executor has several that succeeded.
    """
    succeeded = None
    for opened in attempts:
        if opened.attempt.id == answered_by:
            return opened
        if opened.attempt.outcome is Outcome.OK:
            succeeded = opened
    return succeeded


def figures(attempts: Sequence[Attempt], answer: Attempt | None, reply: Reply | None) -> Figures:
    """Return what a settlement says of the answer, and of all attempts together.

    Args:
        attempts: All of the request.
        answer: The one that the client's answer is from.
        reply: A plugin's own answer, in place of any attempt.
    """
    cost = 0
    for attempt in attempts:
        cost += attempt.cost_usd_micros or 0
    if reply is not None:
        return {"usage": reply.usage, "cost_usd_micros": cost + reply.cost_usd_micros, "answered_by": None}
    if answer is not None:
        return {"usage": answer.usage, "cost_usd_micros": cost, "answered_by": answer.id}
    usage = next((a.usage for a in reversed(attempts) if a.usage), None)
    return {"usage": usage, "cost_usd_micros": cost, "answered_by": None}


def outcome_of(
    status_code: int,
    attempts: Sequence[OpenAttempt],
    answering: OpenAttempt | None,
    *,
    denied: bool,
    disconnected: bool,
) -> Outcome:
    """Return how a request has ended for its client.

    Args:
        status_code: The client's HTTP status; 0 when it got no answer.
        attempts: All of the request.
        answering: The one that the client's answer is from.
        denied: Whether a plugin has denied it.
        disconnected: Whether the client has left.
    """
    if denied:
        return Outcome.DENIED
    if disconnected:
        return Outcome.DISCONNECTED
    if status_code == 0:
        return Outcome.CANCELLED
    # The client has one answer only: another attempt's success does not help when this one broke.
    answered = not attempts or (answering is not None and answering.attempt.outcome is Outcome.OK)
    return Outcome.OK if answered and status_code < 400 else Outcome.ERROR  # noqa: PLR2004  # HTTP's own limit


def refusal_denial(refusal: Refusal) -> Denial:
    """Return the answer to a request that a plugin's refusal ends."""
    status = refusal.status or _UNAVAILABLE
    other = "invalid_request_error" if status < _UNAVAILABLE else "service_unavailable_error"
    return Denial(
        status=status,
        code=refusal.code,
        type=_ERROR_TYPES.get(status, other),
        message=refusal.reason,
        retry_after_s=refusal.retry_after_s,
        plugin=refusal.plugin,
    )


def none_left(model: str, dropped: Sequence[Dropped]) -> Denial:
    """Return the answer to a request for which ``select`` left no candidate.

    Args:
        model: What the client asked for.
        dropped: The deployments that were left out, and why.
    """
    reasons = list(dict.fromkeys(f"{one.reason} ({one.plugin})" for one in dropped))
    return Denial(
        status=_TOO_MANY,
        code="no_deployment",
        type="rate_limit_error",
        message=f"No deployment of {model!r} can serve this request now: {'; '.join(reasons[:_MOST_REASONS])}.",
        plugin=dropped[-1].plugin,
    )
