"""One attempt of a request while it runs: opened by the exchange, closed exactly once by ``OpenAttempt.end``.

What the gateway logs about an attempt, before or after its end, is taken up here too (``log_cost``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..frozen import FrozenDict, replace
from ..types import Answer, Attempt, AttemptError, ErrorClass, Outcome, RequestContext, Usage
from .attributes import attempt_attributes, error_text, server, status_of
from .tracing import now_ns

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from ..plugin import Clock
    from .hooks import Hooks
    from .tracing import Tracing

#: The error of an attempt that is still open when the gateway begins the next one.
WENT_ON: Final = AttemptError(kind=ErrorClass.UNKNOWN, message="the gateway went on to another attempt")

_counts_of: Final = attrgetter("characters", *(name for name in Usage.__slots__ if name.endswith("_tokens")))


class Logged(NamedTuple):
    """What the gateway has logged about what a call has used.

    Attributes:
        usage: What was used; it matters where the answer itself has not said it.
        cost_usd_micros: The price of that usage.
        counted: The counts that the gateway's cost is the price of, where they are not those of ``usage``.
        base_usd: The gateway's cost without what it adds or takes off itself; None where that is nothing.
    """

    usage: Usage | None = None
    cost_usd_micros: int | None = None
    counted: Usage | None = None
    base_usd: Decimal | None = None


_NOTHING_LOGGED: Final = Logged()


class Telemetry(Protocol):
    """What an attempt needs of the worker it runs in."""

    @property
    def tracing(self) -> Tracing:
        """Where spans go."""

    @property
    def clock(self) -> Clock:
        """Time."""


class Request(Protocol):
    """What an attempt needs of the request that it is made for."""

    ctx: RequestContext
    detached: bool
    hooks: Hooks
    first_token_at: float | None

    @property
    def host(self) -> Telemetry:
        """The worker."""

    @property
    def closed(self) -> bool:
        """Whether the request has ended."""

    def cost_logged(self) -> None:
        """Take up what the gateway has logged about an attempt that has ended."""


class _Past:
    """A request that has ended, without its attempts."""

    __slots__ = ("ctx", "detached", "first_token_at", "hooks", "host")

    closed: Final = True

    def __init__(self, request: Request) -> None:
        self.host = request.host
        self.ctx = request.ctx
        self.hooks = request.hooks
        self.detached = request.detached
        self.first_token_at = request.first_token_at

    def cost_logged(self) -> None:
        """Do nothing: all has been logged."""


def _no_answer() -> None:
    """Return None: the answer has no text."""


class OpenAttempt:
    """An attempt that is running, until ``end``."""

    __slots__ = (
        "_exchange",
        "_first_token",
        "_is_logged",
        "_logged",
        "_logged_cached",
        "_logged_cost",
        "_logged_failure",
        "_started",
        "_traced_until_ns",
        "abandoned",
        "answered",
        "attempt",
        "awaits_cost",
        "ended_at",
        "given_up",
        "listeners",
        "provider_status",
        "refusals",
        "sent",
        "span",
        "works_later",
    )

    def __init__(self, exchange: Request, attempt: Attempt, span: Span | None, started: float) -> None:
        self._exchange: Request = exchange
        self._started = started
        self._first_token: float | None = None
        self._is_logged = self._logged_failure = self._logged_cached = False
        self._logged_cost: Decimal | None = None
        self._logged: Callable[[], Logged] = Logged
        self.attempt = attempt
        self._traced_until_ns: int | None = None
        #: When it ended, in seconds of the monotonic clock; None while it runs.
        self.ended_at: float | None = None
        #: Whether settlement needs what the gateway logs about it, usually after its end, and has to wait for it.
        self.awaits_cost = False
        self.span = span
        #: Whether its answer comes before any model has worked for it, so that its duration says nothing.
        self.works_later = not exchange.ctx.generates
        #: What the gateway said about the answer before the attempt could be closed.
        self.answered: dict[str, object] = {}
        #: What listens to the provider's answers on their way to the gateway.
        self.listeners: list[object] = []
        #: What listens to its errors: there are several where the provider's SDK tries again by itself.
        self.refusals: list[object] = []
        #: Whether the gateway has asked a provider, or was about to; it does not where its own cache answers.
        self.sent = False
        #: Whether the gateway has stopped waiting for an answer to what it has sent: the provider may charge for it.
        self.given_up = False
        #: How often it did so and asked again, within the attempt.
        self.abandoned = 0
        #: The HTTP status of what the provider answered last; None without an answer.
        self.provider_status: int | None = None

    @property
    def first_token_at(self) -> float | None:
        """When the first piece of content arrived, in seconds of the monotonic clock; None when none did."""
        return self._first_token

    @property
    def ctx(self) -> RequestContext:
        """The request that it is made for."""
        return self._exchange.ctx

    @property
    def closed(self) -> bool:
        """Whether ``end`` has been called."""
        return self.attempt.outcome is not None

    def first_token(self) -> None:
        """Note that the first piece of content has arrived; only the first call counts. Runs ``first_token``."""
        if self._first_token is not None or self.closed:
            return
        host = self._exchange.host
        self._first_token = host.clock.monotonic()
        hooks = self._exchange.hooks
        if hooks.first_token:
            with host.tracing.current(self.span):
                hooks.run_first_token(self._exchange.ctx, self.attempt, (self._first_token - self._started) * 1000)

    def calls(self, origin: str) -> None:
        """Note, for the trace, where a request for this attempt goes, unless the configuration says where.

        Args:
            origin: Scheme, host and port of its URL.
        """
        if self.span is not None and self.attempt.deployment.api_base is None:
            self._exchange.host.tracing.set(self.span, server(origin))

    def log_cost(
        self,
        gateway_cost_usd: Decimal | None,
        logged: Callable[[], Logged] = Logged,
        *,
        failure: bool = False,
        cached: bool = False,
    ) -> None:
        """Note what the gateway has logged about this call, before or after its end.

        Only the first call counts, except that a success may follow a failure: the gateway may have tried again.

        Args:
            gateway_cost_usd: The cost that the gateway has computed; None when it could not.
            logged: Returns what was used according to the gateway; only called where the answer or a plugin needs it.
            failure: The gateway has logged a failure.
            cached: The gateway has logged that its own response cache has answered, so that nothing was used.
        """
        if self._is_logged and (failure or not self._logged_failure):
            return
        self._is_logged = True
        self._logged_cost = gateway_cost_usd
        self._logged_failure = failure
        self._logged_cached = cached
        if not self.closed:
            # Read now: what the gateway has logged contains the prompt, which must not wait here.
            self._logged = partial(Logged, *logged())
        elif self.awaits_cost:
            self.attempt = self._with_logged(self.attempt, logged)
            self._exchange.cost_logged()

    def _with_logged(self, attempt: Attempt, logged: Callable[[], Logged]) -> Attempt:
        if not self.awaits_cost:
            return attempt
        if self._logged_failure and attempt.outcome is Outcome.OK:
            # Of an earlier try: its success is still to be logged.
            return attempt
        self.awaits_cost = False
        cost = self._logged_cost
        if self._logged_cached:
            return replace(attempt, gateway_cost_usd=cost, cost_usd_micros=0, cached=True)
        usage, micros, counted, base = logged() if self._needs_logged(attempt) else _NOTHING_LOGGED
        if cost:
            micros = round(cost * 1_000_000)
        elif cost is not None and not self._logged_failure:
            # Of a failure the gateway logs 0 where it has not looked at what was used.
            micros = 0
        if attempt.usage is not None and attempt.usage.estimated and usage is not None and not self.listeners:
            # The gateway may have counted as well, and does not say so.
            return replace(
                attempt,
                gateway_cost_usd=cost,
                gateway_base_usd=base,
                usage=replace(usage, estimated=True),
                cost_usd_micros=micros,
            )
        return replace(
            attempt,
            gateway_cost_usd=cost if attempt.gateway_cost_usd is None else attempt.gateway_cost_usd,
            gateway_base_usd=base,
            gateway_usage=_counted_otherwise(counted or usage, attempt.usage) if counted or usage else None,
            cost_usd_micros=micros if attempt.cost_usd_micros is None else attempt.cost_usd_micros,
            usage=usage if attempt.usage is None else attempt.usage,
        )

    def _needs_logged(self, attempt: Attempt) -> bool:
        """Return whether the answer has not said all that was used, or a plugin compares it with what the gateway says."""
        known = attempt.usage is not None and not attempt.usage.estimated and attempt.cost_usd_micros is not None
        return not known or bool(self._exchange.hooks.settle) or self._exchange.detached

    def end(
        self,
        outcome: Outcome,
        *,
        usage: Usage | None = None,
        cost_usd_micros: int | None = None,
        gateway_cost_usd: Decimal | None = None,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        model: str | None = None,
        error: AttemptError | None = None,
        cached: bool = False,
        cut: bool = False,
        answer: Callable[[], Answer | None] | None = None,
        response_id: str | None = None,
        finish_reasons: Sequence[str] = (),
    ) -> None:
        """Close the attempt; only the first call counts. Runs ``post_response`` or ``on_error``.

        ``response_id`` and ``finish_reasons`` are for its span alone: what the provider calls its answer, and why each
        choice of it ended.
        """
        if self.attempt.outcome is not None:
            return
        exchange = self._exchange
        self.ended_at = now = exchange.host.clock.monotonic()
        first = self._first_token
        ended = replace(
            self.attempt,
            outcome=outcome,
            duration_ms=None if self.works_later and outcome is Outcome.OK else (now - self._started) * 1000,
            first_token_ms=None if first is None else (first - self._started) * 1000,
            usage=usage,
            cost_usd_micros=cost_usd_micros,
            gateway_cost_usd=gateway_cost_usd,
            status_code=status_code,
            headers=FrozenDict(headers or {}),
            model=model,
            error=error,
            cached=cached,
            cut=cut,
        )
        self.attempt = attempt = self._with_logged(ended, self._logged) if self._is_logged else ended
        if first is not None and exchange.first_token_at is None:
            exchange.first_token_at = first
        host, hooks = exchange.host, exchange.hooks
        if hooks.post_response if outcome is Outcome.OK else hooks.on_error:
            with host.tracing.current(self.span):
                if outcome is Outcome.OK:
                    hooks.run_post_response(exchange.ctx, attempt, answer or _no_answer)
                else:
                    hooks.run_on_error(exchange.ctx, attempt)
        if self.span is not None:
            attributes = attempt_attributes(attempt, stream=exchange.ctx.stream)
            if response_id:
                attributes["gen_ai.response.id"] = response_id
            if finish_reasons:
                attributes["gen_ai.response.finish_reasons"] = list(finish_reasons)
            host.tracing.set(self.span, attributes)
            self._traced_until_ns = now_ns()
            if exchange.closed:
                self.end_span(answered=False)

    def part_from_request(self) -> None:
        """Let go of the request, which has ended and needs nothing more of this attempt.

        Each has the other: as a circle, all of them, with the prompt, would stay in memory until the garbage collector comes.
        """
        self._exchange = _Past(self._exchange)

    def found(self, usage: Usage | None, cost_usd_micros: int | None, gateway_cost_usd: Decimal | None = None) -> None:
        """Note, before the request is closed, what an attempt has used that has ended with unknown usage.

        Args:
            usage: What it has used; None when that will not be known.
            cost_usd_micros: The price of that.
            gateway_cost_usd: What the gateway computes for it; None when it does not.
        """
        self.attempt = replace(
            self.attempt, usage=usage, cost_usd_micros=cost_usd_micros, gateway_cost_usd=gateway_cost_usd
        )
        self.awaits_cost = False

    def end_span(self, *, answered: bool) -> None:
        """End the span of a closed attempt; only the first call counts.

        It waits for the request's end: which of several attempts is the answer, a race may decide after they have ended.

        Args:
            answered: Whether the client's answer is from this attempt.
        """
        if self.span is None or self._traced_until_ns is None:
            return
        span, self.span = self.span, None
        outcome = self.attempt.outcome or Outcome.CANCELLED
        self._exchange.host.tracing.end(
            span,
            {"pointsman.attempt.answered": answered},
            error=error_text(self.attempt),
            status=status_of(outcome, answered=answered),
            at_ns=self._traced_until_ns,
        )


def _counted_otherwise(theirs: Usage | None, ours: Usage | None) -> Usage | None:
    """Return the gateway's counts where they differ from those of the attempt."""
    if theirs is None or ours is None or _counts_of(theirs) == _counts_of(ours):
        return None
    return replace(theirs, raw=None, parts=())
