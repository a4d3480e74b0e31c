"""What is learnt from attempts: in flight, times, failures, and what they mean for the breaker. Sync and without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.types import CALLERS_FAULT, AttemptKind, Endpoint, ErrorClass, Outcome, SignalStatus

from .breaker import RETRYABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.types import Attempt, RequestContext, Signal

    from .members import Member, Members
    from .tries import Tries

#: Errors that are the deployment's own; a rate limit and refused credentials are no illness.
_OWN: Final = RETRYABLE
#: Keys of a responses request that name what a provider keeps for one account: elsewhere, it is not found.
_KEPT: Final = ("previous_response_id", "conversation", "prompt")


class Observer:
    """Follows attempts.

    Args:
        members: What is known of the deployments.
        tries: Which deployments a request has tried.
        signal_of: Returns the latest signal of a deployment, or None: it may know when a limit is reset.
        changed: Called with a member whose breaker has changed.
    """

    def __init__(
        self,
        members: Members,
        tries: Tries,
        *,
        signal_of: Callable[[str], Signal | None],
        changed: Callable[[Member], None],
    ) -> None:
        self._members = members
        self._tries = tries
        self._signal_of = signal_of
        self._changed = changed

    def begin(self, ctx: RequestContext, attempt: Attempt, now: float) -> None:
        """Note an attempt that is about to be made."""
        member = self._members.of(attempt.deployment, now)
        self._tries.add(attempt.request_id, attempt.deployment.id, now)
        member.load.begin(attempt.id, attempt.request_id, attempt.started_at, stream=ctx.stream)

    def first_token(self, attempt: Attempt, first_token_ms: float, now: float) -> None:
        """Learn how long a stream waited for its first token, without waiting for its end."""
        self._members.of(attempt.deployment, now).load.first_token(attempt.id, first_token_ms, now)

    def end(self, ctx: RequestContext, attempt: Attempt, now: float) -> Member:
        """Learn from an attempt that has ended; return its deployment's member."""
        member = self._members.of(attempt.deployment, now)
        load = member.load
        if attempt.first_token_ms is not None:
            load.first_token(attempt.id, attempt.first_token_ms, now)
        load.end(attempt.id, attempt.request_id, cached=attempt.cached)
        usage = attempt.usage
        if usage is not None and not attempt.cached:
            load.spend(usage.total_tokens, now)
        if attempt.outcome is Outcome.OK:
            self._tries.forget(attempt.request_id)
            if attempt.cached:
                # The gateway's own cache answered: the deployment was not asked.
                member.breaker.give_back(attempt.started_at)
            else:
                self._answered(member, attempt, now)
        elif attempt.outcome is Outcome.ERROR:
            self._failed(ctx, member, attempt, now)
        else:
            # Cancelled, or the client went away: no verdict.
            member.breaker.give_back(attempt.started_at)
        return member

    def _answered(self, member: Member, attempt: Attempt, now: float) -> None:
        duration_ms, first_ms = attempt.duration_ms, attempt.first_token_ms
        tokens = attempt.usage.completion_tokens if attempt.usage is not None else 0
        if first_ms is None:
            plain_ms, speed_ms = duration_ms, duration_ms
        else:
            # The first token's wait is no part of the speed of the others.
            plain_ms, speed_ms, tokens = None, (duration_ms or first_ms) - first_ms, tokens - 1
        if attempt.kind is AttemptKind.PROBE:
            # One token says whether it answers, and nothing about how long others wait.
            self._alive(member, attempt, now)
            return
        closing = not member.breaker.healthy
        if closing and attempt.started_at >= member.breaker.changed_at:
            member.load.recover()
            if first_ms is not None:
                member.load.first_ms.add(first_ms, now, member.load.tau_s)
        member.load.answered(plain_ms, tokens, speed_ms, now)
        if member.breaker.succeeded_at(attempt.started_at, now):
            self._changed(member)

    def _alive(self, member: Member, attempt: Attempt, now: float) -> None:
        if not member.breaker.healthy:
            member.load.recover()
        if member.breaker.succeeded_at(attempt.started_at, now):
            self._changed(member)

    def _failed(self, ctx: RequestContext, member: Member, attempt: Attempt, now: float) -> None:
        error = attempt.error
        kind = error.kind if error is not None else ErrorClass.UNKNOWN
        if attempt.kind is AttemptKind.PROBE and kind in CALLERS_FAULT:
            # Some models refuse a call of one token; whoever refuses it is there.
            self._alive(member, attempt, now)
            return
        if kind is ErrorClass.NOT_FOUND and _may_name_what_is_kept(ctx):
            kind = ErrorClass.CLIENT
        if kind is not ErrorClass.REFUSED:
            member.load.unanswered += 1
        if kind in _OWN:
            member.load.failed_after(attempt.duration_ms, now, timed_out=kind is ErrorClass.TIMEOUT, stream=ctx.stream)
        comes_back_at = None
        if kind is ErrorClass.RATE_LIMIT:
            comes_back_at = self._comes_back_at(attempt, now)
        if member.breaker.failed_at(kind, attempt.started_at, now, comes_back_at):
            self._changed(member)

    def _comes_back_at(self, attempt: Attempt, now: float) -> float | None:
        """Return when the provider answers again: as it says itself, else as the signal knows from its headers."""
        if attempt.error is not None and attempt.error.retry_after_s is not None:
            return now + attempt.error.retry_after_s
        signal = self._signal_of(attempt.deployment.id)
        if signal is not None and signal.status is SignalStatus.EXHAUSTED and (signal.until or 0.0) > now:
            return signal.until
        return None


def _may_name_what_is_kept(ctx: RequestContext) -> bool:
    """Return whether something else than the model may not have been found: what the client named itself."""
    return ctx.endpoint is Endpoint.OTHER or (
        ctx.endpoint is Endpoint.RESPONSES and any(ctx.body.get(name) is not None for name in _KEPT)
    )
