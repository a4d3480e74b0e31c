"""The frozen values that travel between the host and the plugins.

Plugins meet only through these. All of them are immutable, all of them can be written as JSON (``Settlement`` is, into
the journal), and units are in the names: ``_ms``, ``_s``, ``_at`` (Unix seconds), ``_tokens``, ``_usd_micros``
(millionths of a US dollar, an integer), ``_ratio`` (0 to 1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final, Self


class Endpoint(StrEnum):
    """The kind of API the client called."""

    CHAT = "chat"
    MESSAGES = "messages"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    OTHER = "other"


class AttemptKind(StrEnum):
    """Why an attempt was made."""

    PRIMARY = "primary"
    RETRY = "retry"
    FALLBACK = "fallback"
    HEDGE = "hedge"
    MIRROR = "mirror"
    PROBE = "probe"
    JUDGE = "judge"


OWN_CALLS: Final = frozenset({AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE})
"""Kinds of the calls that a plugin makes for itself: no client waits for them, and no request is settled for them."""


class Outcome(StrEnum):
    """How an attempt or a whole request ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    DISCONNECTED = "disconnected"
    DENIED = "denied"


class ErrorClass(StrEnum):
    """What kind of error an attempt ended with; told by type and status, never by text."""

    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    TIMEOUT = "timeout"
    SERVER = "server"
    CLIENT = "client"
    CONTENT_POLICY = "content_policy"
    CONTEXT_WINDOW = "context_window"
    NOT_FOUND = "not_found"
    CONNECTION = "connection"
    REFUSED = "refused"
    UNKNOWN = "unknown"


CALLERS_FAULT: Final = frozenset({ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.CONTEXT_WINDOW})
"""Errors that the request itself brings about: they say nothing about how well the deployment is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who calls, as the gateway authenticated it. Never contains a raw key.

    Attributes:
        tenant: The tenant's id when a plugin resolved one, else None.
        key_hash: LiteLLM's hash of the API key.
        key_alias: The key's alias.
        user_id: LiteLLM's internal user.
        team_id: LiteLLM's team.
        org_id: LiteLLM's organisation.
        end_user: The end user that the caller named (``user`` in the body); chosen by the client, so not to be trusted.
        admin: Whether the key is a proxy administrator's.
        claims: What an ``authenticate`` hook knows beside that, as text.
    """

    tenant: str | None = None
    key_hash: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    end_user: str | None = None
    admin: bool = False
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a caller showed to the gateway, for the ``authenticate`` hook.

    Attributes:
        api_key: The raw key, without ``Bearer``; empty when missing. It is not part of ``repr``.
        path: The request's path.
        headers: Request headers, lower case, without those that carry credentials.
        client_host: The peer's address, or None.
    """

    api_key: str = field(repr=False)
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    client_host: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """One client request, as it arrived.

    Attributes:
        request_id: Ours, unique; also the ``x-pointsman-request-id`` of the answer.
        call_id: LiteLLM's ``litellm_call_id``; may be chosen by the client, so not unique.
        endpoint: The kind of API.
        model: The model name the client asked for.
        stream: Whether the client wants a stream.
        identity: Who calls.
        session_id: The session the client names, or None.
        headers: Request headers, lower case, without credentials and cookies.
        body: The client's request, read-only. Never log it, never put it in a span.
        received_at: Unix seconds.
        client_host: The peer's address as the server sees it, or None; behind a load balancer, the balancer's.
    """

    request_id: str
    endpoint: Endpoint
    model: str
    stream: bool
    identity: Identity
    received_at: float
    call_id: str | None = None
    session_id: str | None = None
    client_host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment of LiteLLM's ``model_list``.

    Attributes:
        id: ``model_info.id``.
        group: The model group (``model_name``) it belongs to.
        provider: LiteLLM's provider name, for example ``openai``.
        model: The provider's model name, without the provider prefix.
        api_base: The configured base URL, or None for the provider's default.
        weight: The configured weight; 1 when none is given.
        rpm: Configured requests per minute, or None.
        tpm: Configured tokens per minute, or None.
        info: ``model_info`` without secrets: text, numbers and booleans only; and ``supports_vision`` and the like where
            the gateway knows the model.
    """

    id: str
    group: str
    provider: str
    model: str
    api_base: str | None = None
    weight: float = 1.0
    rpm: int | None = None
    tpm: int | None = None
    info: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A deployment that may serve the next attempt.

    Attributes:
        deployment: The deployment.
        weight: Relative share for a random choice; starts with the configured weight.
        score: What the last plugin that scored it thinks, higher is better; None when nobody has.
        notes: Why it has this score or was dropped, one short phrase each, for the trace.
        dropped: Set by ``drop``: the candidate is out.
    """

    deployment: Deployment
    weight: float = 1.0
    score: float | None = None
    notes: tuple[str, ...] = ()
    dropped: bool = False

    def scored(self, score: float, note: str | None = None) -> Self:
        """Return the candidate with a score and, when given, one more note."""
        return replace(self, score=score, notes=(*self.notes, note) if note else self.notes)

    def drop(self, reason: str) -> Self:
        """Return the candidate as dropped, with the reason that the trace will show."""
        return replace(self, dropped=True, notes=(*self.notes, reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Something a plugin set aside for one request, to be settled or released in ``settle``.

    Attributes:
        plugin: Who reserved it.
        id: Unique within the plugin.
        expires_at: Unix seconds after which it counts as released whatever happened.
        amounts: What was reserved, for example ``{"tokens": 1200}``.
        data: What the plugin needs to settle it; JSON.
    """

    plugin: str
    id: str
    expires_at: float
    amounts: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request is going. Each ``pre_route`` hook sees the route so far and may return another.

    Attributes:
        target: A model group or a deployment id of the gateway's configuration.
        labels: Facts for others to see on every attempt, settlement and span: experiment, arm, version.
        fallbacks: Model groups to try, in order, when the target cannot answer; empty leaves the gateway's own.
        executor: Name of the plugin whose ``execute`` makes the attempts, or None for the gateway.
        headers: Headers to add to the answer; lower case.
        reservations: What plugins have set aside for this request.
    """

    target: str
    labels: Mapping[str, str] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    executor: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()

    def to(self, target: str) -> Self:
        """Return the route with another target."""
        return replace(self, target=target)

    def with_labels(self, **labels: str) -> Self:
        """Return the route with these labels added."""
        return replace(self, labels={**self.labels, **labels})

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return the route with these answer headers added."""
        return replace(self, headers={**self.headers, **headers})

    def with_reservation(self, reservation: Reservation) -> Self:
        """Return the route with one more reservation."""
        return replace(self, reservations=(*self.reservations, reservation))


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """The request is not admitted.

    Attributes:
        status: HTTP status, 400 to 599.
        message: For the client: what is wrong and what to do. No secrets.
        code: Short, stable, for programs: ``model_not_allowed``.
        type: OpenAI's error type: ``invalid_request_error``, ``rate_limit_error``, ...
        param: The request's field at fault, or None.
        retry_after_s: When to come back, in seconds. Every 429 gets a ``retry-after`` header; without a value it is 1.
        headers: More headers for the answer; lower case.
        plugin: Who denied; filled in by the host.
    """

    status: int
    message: str
    code: str
    type: str = "invalid_request_error"
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    plugin: str = ""

    def __post_init__(self) -> None:
        """Refuse a denial that no HTTP answer can be made of.

        Raises:
            ValueError: the status is no error status, or ``retry_after_s`` is no number of seconds.
        """
        if not 400 <= self.status <= 599:  # noqa: PLR2004  # HTTP's error statuses
            raise ValueError(f"a Denial's status must be 400 to 599, not {self.status!r}")
        if self.retry_after_s is not None and not 0 <= self.retry_after_s < float("inf"):
            raise ValueError(f"a Denial's retry_after_s must be a number of seconds, not {self.retry_after_s!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """This attempt is not made; the gateway retries or falls back.

    Attributes:
        reason: One phrase for the trace and, when nothing else can answer, for the client.
        retry_after_s: When this deployment may be tried again, in seconds, or None.
        plugin: Who refused; filled in by the host.
    """

    reason: str
    retry_after_s: float | None = None
    plugin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt_tokens: Everything that went in, cached tokens included.
        completion_tokens: Everything that came out, reasoning tokens included.
        cached_tokens: The part of ``prompt_tokens`` read from the provider's prompt cache.
        cache_write_tokens: The part of ``prompt_tokens`` written to the provider's prompt cache.
        reasoning_tokens: The part of ``completion_tokens`` spent on reasoning.
        audio_prompt_tokens: The part of ``prompt_tokens`` that is audio.
        audio_completion_tokens: The part of ``completion_tokens`` that is audio.
        estimated: False when the provider reported the numbers, True when they were counted here.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_prompt_tokens: int = 0
    audio_completion_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why an attempt failed.

    Attributes:
        kind: The class of the error.
        status: The provider's HTTP status, or None when there was no answer.
        message: A short text without secrets.
        retry_after_s: What the provider asked for, in seconds, or None.
    """

    kind: ErrorClass
    status: int | None = None
    message: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call of one deployment. Opened and closed exactly once.

    ``before_attempt`` sees it open: everything from ``outcome`` on is still unset. ``post_response`` and ``on_error``
    see it closed.

    Attributes:
        id: Unique.
        request_id: The client request it belongs to.
        number: 1 for the first attempt of a request.
        kind: Why it was made.
        deployment: Who was called.
        labels: The route's labels.
        started_at: Unix seconds.
        outcome: How it ended; None while open.
        duration_ms: From the call to its end.
        first_token_ms: From the call to the first piece of content; None for a plain answer or when none came.
        usage: Tokens, or None when unknown.
        cost_usd_micros: Its price as the gateway computes it, or None when unknown.
        status_code: The provider's HTTP status where known.
        headers: The provider's response headers, raw names, lower case.
        model: The model name in the provider's answer.
        error: Why it failed.
        cached: Whether the gateway's own response cache answered.
    """

    id: str
    request_id: str
    number: int
    kind: AttemptKind
    deployment: Deployment
    started_at: float
    labels: Mapping[str, str] = field(default_factory=dict)
    outcome: Outcome | None = None
    duration_ms: float | None = None
    first_token_ms: float | None = None
    usage: Usage | None = None
    cost_usd_micros: int | None = None
    status_code: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    model: str | None = None
    error: AttemptError | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that an answer asks for.

    Attributes:
        name: The tool's name.
        arguments: Its arguments: the JSON text as the model wrote it.
    """

    name: str
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said: the first choice of an answer, whichever API and whether streamed or not.

    It is what the customer paid for and nobody else's business: never log, trace or store it unless the operator's
    configuration says so.

    Attributes:
        text: The visible text, without reasoning.
        tool_calls: The tools it asks for, in order.
        finish_reason: Why it ended, in the words of OpenAI's chat API whichever the API was: ``stop``, ``length``,
            ``tool_calls``, ``content_filter``; the provider's own word for another reason; None when it said none.
    """

    text: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of one client request. Made exactly once, whatever happened.

    Attributes:
        request_id: The request's id and the key for doing things only once.
        endpoint: The kind of API.
        model: The model the client asked for.
        stream: Whether it was a stream.
        identity: Who called.
        route: Where it went, with labels and reservations.
        outcome: How it ended for the client.
        status_code: The HTTP status the client got (0 when it got none).
        started_at: Unix seconds.
        finished_at: Unix seconds.
        first_token_ms: From the request's arrival to the first piece of content.
        attempts: Every attempt, closed, in the order they were started.
        usage: Tokens of the answer the client got; None when unknown or when there was none.
        cost_usd_micros: Sum over all attempts whose cost is known.
        answered_by: Id of the attempt whose answer the client got, or began to get; None when there was none.
        denial: Set when a plugin denied the request.
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
    first_token_ms: float | None = None
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = None
    cost_usd_micros: int = 0
    answered_by: str | None = None
    denial: Denial | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        """The route's labels."""
        return self.route.labels

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """What plugins had set aside for this request."""
        return self.route.reservations


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
        window_s: Length of the window in seconds, or None when the provider does not say.
        limit: The most the window allows, or None.
        remaining: What was left when the provider last said so, or None.
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
    """A distribution in three numbers, milliseconds or per second as its name says."""

    p50: float
    p95: float
    p99: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """The latest knowledge about one deployment, written by whoever knows, read by whoever chooses.

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
        account: The provider account it belongs to, or None when nobody said.
        last_used_at: Unix seconds of the latest attempt, or None.
        last_success_at: Unix seconds of the latest answer, or None.
        last_error_at: Unix seconds of the latest failure, or None.
        last_error: What it said, without secrets.
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

    def status_at(self, now: float) -> SignalStatus:
        """Return the verdict at ``now`` (Unix seconds): one that has ended by itself no longer holds."""
        if self.until is not None and now >= self.until and self.status is not SignalStatus.UNKNOWN:
            return SignalStatus.AVAILABLE
        return self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a plugin says about itself, for console, CLI and ``GET /pointsman/status``.

    Attributes:
        ok: Whether it does its work.
        summary: One line for people.
        details: JSON.
    """

    ok: bool
    summary: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Unit prices of a deployment from the gateway's cost map, in US dollars a token.

    None means that the map does not know: for the cache, audio and reasoning that they cost what other tokens of the
    prompt or the answer cost.

    Attributes:
        input_usd: A token of the prompt.
        output_usd: A token of the answer.
        cache_read_usd: A token read from the provider's prompt cache.
        cache_write_usd: A token written to it.
        audio_input_usd: An audio token of the prompt.
        audio_output_usd: An audio token of the answer.
        reasoning_usd: A reasoning token.
        above: Other prices for the whole request when its prompt has more than so many tokens, in growing order.
    """

    input_usd: Decimal | None = None
    output_usd: Decimal | None = None
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None
    audio_input_usd: Decimal | None = None
    audio_output_usd: Decimal | None = None
    reasoning_usd: Decimal | None = None
    above: tuple[tuple[int, Price], ...] = ()

    def at(self, prompt_tokens: int) -> Price:
        """Return the prices of a request with a prompt of this size."""
        return next((price for least, price in reversed(self.above) if prompt_tokens > least), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of what plugins announce to one another with ``services.publish``; delivered within one worker.

    Attributes:
        source: The announcing plugin; filled in by the host.
    """

    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRequested(Event):
    """Somebody wants a registered version to become the active one.

    Attributes:
        name: The registered model name.
        version_id: The version.
        who: Person or plugin.
        reason: Why, for the history.
    """

    name: str
    version_id: str
    who: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionActivated(Event):
    """A registered version has become the active one (None: the name has no active version any more)."""

    name: str
    version_id: str | None
    previous_id: str | None
    who: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpent(Event):
    """Money was spent on behalf of a tenant, as a billing plugin prices it: overrides and margins included.

    Announced once for each settled request that made attempts, 0 included, and once for each call of our own that cost
    something. After a crash it can come again: the request id tells.

    Attributes:
        tenant: Who pays.
        cost_usd_micros: How much.
        at: Unix seconds.
        request_id: The client request, or the call of our own; empty when it belongs to none.
        settled: Whether it belongs to a client request, whose settlement every plugin hears of.
    """

    tenant: str
    cost_usd_micros: int
    at: float
    request_id: str = ""
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Event):
    """A circuit breaker of one model group and deployment changed its state."""

    group: str
    deployment_id: str
    state: str
    reason: str
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutChanged(Event):
    """An experiment has changed: a step, a pause, a promotion, a rollback, a weight, ...

    Announced once, in the worker that made the change.

    Attributes:
        experiment: Its name.
        model: The model name that clients ask for.
        what: The kind of change, as in the audit trail.
        who: A person, ``canary`` itself or ``webhook:<name>``.
        reason: Why.
        at: Unix seconds.
        phase: running, paused, promoted or rolled_back, afterwards.
        weights_percent: Arm to its weight afterwards; stable has the rest.
        analysis: The findings that decided it, as JSON: arm to a list with metric, verdict, samples and figures.
    """

    experiment: str
    model: str
    what: str
    who: str
    reason: str
    at: float
    phase: str
    weights_percent: Mapping[str, float]
    analysis: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorGraduated(Event):
    """A mirror has shown enough: somebody ended it and hands its figures over.

    Announced once, in the worker that made the change.

    Attributes:
        mirror: Its name.
        model: The model name that clients ask for, or ``*``.
        challenger: The model group or deployment id that was compared.
        version_id: The registered version it is, or None.
        who: Who ended it.
        reason: Why.
        at: Unix seconds.
        pairs: How many requests were answered by both and compared.
        confidence_ratio: Of each interval, 0 to 1, at all times together.
        figures: Metric to ``mean``, ``low``, ``high`` and ``count``; differences are challenger minus champion.
    """

    mirror: str
    model: str
    challenger: str
    version_id: str | None
    who: str
    reason: str
    at: float
    pairs: int
    confidence_ratio: float
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """A call of our own to a deployment or model group.

    Attributes:
        target: Model group or deployment id.
        kind: ``hedge``, ``mirror``, ``probe`` or ``judge`` (``primary`` for the first leg of a race).
        body: The request as the endpoint defines it, without ``model`` and ``stream``.
        endpoint: Which API to speak.
        stream: Whether to read it as a stream.
        parent: The client request it is made for, or None.
        tenant: Who pays, when it is not the parent's identity.
        labels: Facts for the attempt and its span.
        timeout_s: To the first token of a stream, to the end of a plain call; None leaves the gateway's.
    """

    target: str
    kind: AttemptKind
    body: Mapping[str, object] = field(repr=False)
    endpoint: Endpoint = Endpoint.CHAT
    stream: bool = False
    parent: RequestContext | None = None
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """A whole answer to a call of our own.

    Attributes:
        attempt: The closed attempt.
        body: The answer as JSON, in the endpoint's shape.
        raw: The gateway's own object, to be handed on untouched by an executor.
    """

    attempt: Attempt
    body: Mapping[str, object] = field(repr=False)
    raw: object = field(repr=False, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a stream.

    Attributes:
        has_content: Whether it carries text, a tool call or reasoning: not an empty role or a keep-alive.
        text: The text in it, empty when there is none.
        raw: The gateway's own object, to be handed on untouched by an executor.
    """

    has_content: bool
    text: str = field(default="", repr=False)
    raw: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What an executor answers with: a whole response or a stream of chunks, never both.

    Attributes:
        response: For a plain request.
        chunks: For a streamed one; closed by the host.
        headers: Headers to add to the answer; for a stream they must be known when it is returned.
    """

    response: UpstreamResponse | None = None
    chunks: AsyncIterator[Chunk] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
