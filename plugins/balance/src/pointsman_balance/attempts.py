"""Follows attempts: what each request has tried, and what load and breaker learn from it. Sync and without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.types import CALLERS_FAULT, AttemptKind, Endpoint, ErrorClass, Outcome, SignalStatus

from .breaker import RETRYABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.types import Attempt, RequestContext, Signal

    from .members import Member, Members

#: Keys of a responses request that name objects stored for one account, which other accounts do not find.
_STORED_OBJECTS: Final = ("previous_response_id", "conversation", "prompt")

MAX_REQUESTS: Final = 20_000
#: A request is not retried later than this, in seconds.
KEPT_S: Final = 900.0
_NONE: Final = frozenset[str]()


class TriedDeployments:
    """The deployments that each unanswered request has tried; bounded, the oldest requests are forgotten first."""

    # Read for every choice: the lookup in cachetools' TTLCache takes a hundred times as long as in a dictionary.
    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: dict[str, tuple[float, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def of(self, request_id: str) -> set[str] | frozenset[str]:
        """Return the ids of the deployments that were tried, including running attempts."""
        known = self._requests.get(request_id)
        return _NONE if known is None else known[1]

    def add(self, request_id: str, deployment_id: str, now: float) -> None:
        """Record an attempt at ``now`` (Unix seconds)."""
        known = self._requests.get(request_id)
        if known is None:
            self._requests[request_id] = (now, {deployment_id})
            if len(self._requests) > MAX_REQUESTS:
                del self._requests[next(iter(self._requests))]
        else:
            known[1].add(deployment_id)

    def forget(self, request_id: str) -> None:
        """Forget a request that has been answered."""
        self._requests.pop(request_id, None)

    def sweep(self, now: float) -> None:
        """Forget requests that were never answered and are too old to be retried."""
        for request_id, (at, _) in list(self._requests.items()):
            if at > now - KEPT_S:
                break
            del self._requests[request_id]


class Observer:
    """Follows attempts.

    Args:
        members: The known deployments.
        tried: Which deployments each request has tried.
        signal_of: Returns the latest signal of a deployment, or None; it may know when a limit is reset.
        changed: Called with a member whose breaker changed.
    """

    def __init__(
        self,
        members: Members,
        tried: TriedDeployments,
        *,
        signal_of: Callable[[str], Signal | None],
        changed: Callable[[Member], None],
    ) -> None:
        self._members = members
        self._tried = tried
        self._signal_of = signal_of
        self._changed = changed

    def begin(self, ctx: RequestContext, attempt: Attempt, now: float) -> None:
        """Record an attempt that is about to start."""
        member = self._members.of(attempt.deployment, now)
        self._tried.add(attempt.request_id, attempt.deployment.id, now)
        member.load.begin(attempt.id, attempt.request_id, attempt.started_at, stream=ctx.stream)

    def first_token(self, attempt: Attempt, first_token_ms: float, now: float) -> None:
        """Learn a stream's wait for its first token, before the stream ends."""
        self._members.of(attempt.deployment, now).load.first_token(attempt.id, first_token_ms, now)

    def end(self, ctx: RequestContext, attempt: Attempt, now: float) -> Member:
        """Learn from an attempt that ended; return its deployment's member."""
        member = self._members.of(attempt.deployment, now)
        load = member.load
        if attempt.first_token_ms is not None:
            load.first_token(attempt.id, attempt.first_token_ms, now)
        let_through = attempt.request_id in load.let_through
        error = attempt.error
        clients = error is not None and error.client_caused
        load.end(attempt.id, attempt.request_id, silent=attempt.cached or clients)
        usage = attempt.usage
        if usage is not None and not attempt.cached:
            load.spend(usage.total_tokens, now)
        if attempt.outcome is Outcome.OK:
            self._tried.forget(attempt.request_id)
            if attempt.empty:
                self._failed(ctx, member, attempt, now, let_through=let_through)
            elif attempt.cached:
                # The gateway's own cache answered: the deployment was not used.
                member.breaker.release_probe(attempt.started_at)
            elif not ctx.generates:
                # A read, or a websocket that was opened, does not show that the model answers.
                member.breaker.release_probe(attempt.started_at)
            else:
                self._answered(member, attempt, now)
        elif attempt.outcome is Outcome.ERROR and not clients:
            self._failed(ctx, member, attempt, now, let_through=let_through)
        elif not let_through:
            # Cancelled, the client disconnected, or its own timeout, credentials or headers failed: inconclusive.
            member.breaker.release_probe(attempt.started_at)
        return member

    def _answered(self, member: Member, attempt: Attempt, now: float) -> None:
        duration_ms, first_ms = attempt.duration_ms, attempt.first_token_ms
        tokens = attempt.usage.completion_tokens if attempt.usage is not None else 0
        if first_ms is None:
            plain_ms, speed_ms = duration_ms, duration_ms
        else:
            # The wait for the first token does not count towards the speed of the others.
            plain_ms, speed_ms, tokens = None, (duration_ms or first_ms) - first_ms, tokens - 1
        if attempt.kind is AttemptKind.PROBE or duration_ms is None:
            # One token, or what is answered later, shows that it works, and nothing about how long other requests wait.
            self._alive(member, attempt, now)
            return
        closing = not member.breaker.healthy
        if closing and attempt.started_at >= member.breaker.changed_at:
            member.load.recover()
            if first_ms is not None:
                member.load.first_ms.add(first_ms, now)
        member.load.answered(plain_ms, tokens, speed_ms, now)
        if member.breaker.record_success(attempt.started_at, now):
            self._changed(member)

    def _alive(self, member: Member, attempt: Attempt, now: float) -> None:
        if not member.breaker.healthy:
            member.load.recover()
        if member.breaker.record_success(attempt.started_at, now):
            self._changed(member)

    def _failed(self, ctx: RequestContext, member: Member, attempt: Attempt, now: float, *, let_through: bool) -> None:
        error = attempt.error
        kind = error.kind if error is not None else ErrorClass.UNKNOWN
        if attempt.kind is AttemptKind.PROBE and kind in CALLERS_FAULT:
            # Some models reject a call of one token; a deployment that rejects it is reachable.
            self._alive(member, attempt, now)
            return
        if kind is ErrorClass.NOT_FOUND and _may_name_stored_object(ctx):
            kind = ErrorClass.CLIENT
        if kind is not ErrorClass.REFUSED:
            member.load.unanswered += 1
        if kind in RETRYABLE:  # a rate limit and rejected credentials are not failures of the deployment
            member.load.failed_after(attempt.duration_ms, now, timed_out=kind is ErrorClass.TIMEOUT, stream=ctx.stream)
        comes_back_at = None
        if kind is ErrorClass.RATE_LIMIT:
            comes_back_at = self._comes_back_at(attempt, now)
        if member.breaker.record_failure(kind, attempt.started_at, now, comes_back_at, let_through=let_through):
            self._changed(member)

    def _comes_back_at(self, attempt: Attempt, now: float) -> float | None:
        """Return when the provider accepts requests again: by its retry-after, else by the signal, else None."""
        if attempt.error is not None and attempt.error.retry_after_s is not None:
            return now + attempt.error.retry_after_s
        signal = self._signal_of(attempt.deployment.id)
        if signal is not None and signal.status is SignalStatus.EXHAUSTED and (signal.until or 0.0) > now:
            return signal.until
        return None


def _may_name_stored_object(ctx: RequestContext) -> bool:
    """Return whether the 404 may concern an object that the client named instead of the model."""
    return ctx.endpoint is Endpoint.OTHER or (
        ctx.endpoint is Endpoint.RESPONSES and any(ctx.body.get(name) is not None for name in _STORED_OBJECTS)
    )
