"""What became of an attempt, of its answer, and of the whole request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from ..frozen import FrozenDict, quick
from .kinds import AttemptKind, Endpoint, ErrorClass, Outcome
from .requests import Identity
from .routing import Denial, Deployment, Reservation, Route
from .usage import Usage

#: HTTP's first error status.
_FIRST_ERROR: Final = 400


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why an attempt failed.

    Attributes:
        kind: The class of the error.
        status: The provider's HTTP status, or None when there was no answer.
        message: A short text without secrets.
        retry_after_s: What the provider asked for, in seconds, or None.
        client_caused: The client's own settings caused it (its timeout, credentials or headers), so it says nothing about
            the deployment.
    """

    kind: ErrorClass
    status: int | None = None
    message: str = ""
    retry_after_s: float | None = None
    client_caused: bool = False


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call of one deployment. Opened and closed exactly once.

    ``before_attempt`` sees it open: everything from ``outcome`` on is still unset. ``post_response`` and ``on_error``
    see it closed.

    An answer without content (``empty``) has the outcome ``ok``, since the provider answers and bills it, and an error
    of the kind ``EMPTY``: it shows neither that the deployment works nor how fast it is.

    Attributes:
        id: Unique.
        request_id: The client request it belongs to.
        number: 1 for the first attempt of a request.
        kind: Why it was made.
        fallback: Whether it belongs to a model group, or another ``order`` of one, that the gateway has fallen back to. An
            attempt of the kind ``fallback`` that an executor makes in place of another of its own does not.
        deployment: The deployment that was called.
        labels: The route's labels.
        started_at: Unix seconds.
        outcome: How it ended; None while open.
        duration_ms: From the call to its end. None where an answer came and no model's work was waited for: to a request that
            only reads, to the opening of a websocket, or to a background response or a batch that was accepted.
        first_token_ms: From the call to the first piece of content; None for a plain answer or when none came.
        usage: What it used, or None when unknown.
        cost_usd_micros: What it cost by the gateway's prices, for a quick look; None when unknown. Bills are computed
            from ``usage`` and exact prices.
        gateway_cost_usd: The cost that the gateway itself has computed and logged for this call, without the digits that
            only its binary form has; None unless it has. It may be known only after the attempt has ended: ``settle`` sees it then.
        gateway_base_usd: The same without what the gateway adds or takes off itself, such as its own margins and discounts;
            None where that is nothing.
        gateway_usage: What the gateway has logged as used by this call, where its counts are not those of ``usage``.
        status_code: The provider's HTTP status where known, else that of the gateway's error.
        headers: The provider's response headers, raw names, lower case.
        model: The model name in the provider's answer.
        error: Why it failed; for the outcome ``ok``, that the answer is empty.
        cut: Whether the gateway's call was ended here before its answer was whole, as one that loses a race is, or one that
            was waited for too long: the gateway may log nothing about it.
        cached: Whether the gateway's own response cache answered.
    """

    id: str
    request_id: str
    number: int
    kind: AttemptKind
    deployment: Deployment
    started_at: float
    fallback: bool = False
    labels: Mapping[str, str] = field(default_factory=FrozenDict)
    outcome: Outcome | None = None
    duration_ms: float | None = None
    first_token_ms: float | None = None
    usage: Usage | None = None
    cost_usd_micros: int | None = None
    gateway_cost_usd: Decimal | None = None
    gateway_base_usd: Decimal | None = None
    gateway_usage: Usage | None = None
    cut: bool = False
    status_code: int | None = None
    headers: Mapping[str, str] = field(default_factory=FrozenDict, repr=False)
    model: str | None = None
    error: AttemptError | None = None
    cached: bool = False

    @property
    def unread(self) -> bool:
        """Whether the provider answered with success and the attempt failed all the same: the provider charges it."""
        return self.outcome is Outcome.ERROR and self.status_code is not None and self.status_code < _FIRST_ERROR

    @property
    def empty(self) -> bool:
        """Whether the provider answered with success and without content."""
        return self.error is not None and self.error.kind is ErrorClass.EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that an answer asks for.

    Attributes:
        name: The tool's name.
        arguments: Its arguments: the JSON text as the model wrote it.
    """

    name: str
    arguments: str = field(default="", repr=False)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said: the first choice of an answer, whichever API and whether streamed or not.

    It is private to the customer: never log, trace or store it unless the operator's configuration says so.

    Attributes:
        text: The visible text, without reasoning.
        tool_calls: The tools it asks for, in order.
        finish_reason: Why it ended, in the words of OpenAI's chat API whichever the API was: ``stop``, ``length``,
            ``tool_calls``, ``content_filter``; the provider's own word for another reason; None when it gave none.
    """

    text: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of one client request. Made exactly once, whatever happened.

    Attributes:
        request_id: The request's id and the key for doing things only once.
        endpoint: The kind of API.
        model: The model the client asked for.
        stream: Whether it was a stream.
        identity: The caller.
        route: Where it went, with labels and reservations.
        outcome: How it ended for the client.
        status_code: The HTTP status the client got (0 when it got none).
        started_at: Unix seconds.
        finished_at: Unix seconds.
        duration_ms: From the request's arrival to the end of its answer, by a clock that is never set; None in
            settlements written by a version that did not measure it.
        first_token_ms: From the request's arrival to the first piece of content.
        attempts: Every attempt, closed, in the order they were started.
        usage: Tokens of the answer the client got; None when unknown or when there was none.
        cost_usd_micros: Sum over all attempts whose cost is known.
        answered_by: Id of the attempt whose answer the client got, or began to get; None when there was none.
        denial: Set when a plugin denied the request.
        replied_by: The plugin that answered by itself (``Reply``), or None.
        generates: As in ``RequestContext``: nothing is charged for a request that does not generate.
        within: As in ``RequestContext``: the request that opened the websocket of a response.
    """

    request_id: str
    endpoint: Endpoint
    model: str
    stream: bool
    identity: Identity
    route: Route
    outcome: Outcome
    status_code: int
    started_at: float
    finished_at: float
    call_id: str | None = None
    duration_ms: float | None = None
    first_token_ms: float | None = None
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = None
    cost_usd_micros: int = 0
    answered_by: str | None = None
    denial: Denial | None = None
    generates: bool = True
    replied_by: str | None = None
    within: str | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        """The route's labels."""
        return self.route.labels

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """What plugins had set aside for this request."""
        return self.route.reservations
