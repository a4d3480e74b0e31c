"""Where a request goes: deployments, candidates and the route; or why it goes nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from ..frozen import FrozenDict, quick, replace
from .usage import Usage


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment of LiteLLM's ``model_list``.

    Attributes:
        id: ``model_info.id``.
        group: The model group (``model_name``) it belongs to.
        provider: LiteLLM's provider name, for example ``openai``.
        model: The provider's model name, without the provider prefix.
        api_base: The configured base URL, or None for the provider's default.
        weight: The configured weight, 0 when it is drained. Where none is given: 0 where another deployment of the group
            has one above 0, as in LiteLLM, else 1.
        rpm: Configured requests per minute, or None.
        tpm: Configured tokens per minute, or None.
        info: ``model_info`` without secrets: text, numbers and booleans only; and ``mode``, ``max_input_tokens``, ``supports_vision`` and
            the like where the gateway knows the model.
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

    @property
    def capacity(self) -> float | None:
        """How much it takes beside others: ``model_info.capacity``, else its requests, else its tokens per minute."""
        value = self.info.get("capacity")
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        return float(self.rpm or self.tpm or 0) or None

    @property
    def drained(self) -> str | None:
        """Why it serves only when nothing else is left (``weight: 0`` or ``model_info.active: false``), or None."""
        if self.info.get("active") is False:
            return "drained: model_info.active is false"
        return None if self.weight > 0.0 else "drained: its weight is 0"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A deployment that may serve the next attempt.

    Attributes:
        deployment: The deployment.
        weight: Relative share for a random choice; starts with the configured weight.
        score: The score of the last plugin that scored it, higher is better; None without one.
        delay_s: Seconds that an attempt has to wait before the deployment begins its work, for example while a model is
            loaded; a plugin that chooses adds it to the wait that it expects.
        notes: Why it has this score or was dropped, one short phrase each, for the trace.
        dropped: Set by ``drop``: the candidate is out.
        has_fallback: Whether the gateway goes on to another model group or another ``order`` of this one if no candidate
            is left.
    """

    deployment: Deployment
    weight: float = 1.0
    score: float | None = None
    delay_s: float = 0.0
    notes: tuple[str, ...] = ()
    dropped: bool = False
    has_fallback: bool = False

    def scored(self, score: float, note: str | None = None) -> Self:
        """Return the candidate with a score and, when given, one more note."""
        return replace(self, score=score, notes=(*self.notes, note) if note else self.notes)

    def delayed(self, delay_s: float, note: str | None = None) -> Self:
        """Return the candidate with this delay added to its own and, when given, one more note."""
        notes = (*self.notes, note) if note else self.notes
        return replace(self, delay_s=self.delay_s + delay_s, notes=notes)

    def drop(self, reason: str) -> Self:
        """Return the candidate as dropped, with the reason that the trace will show."""
        return replace(self, dropped=True, notes=(*self.notes, reason))


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Something a plugin set aside for one request, to be settled or released in ``settle``.

    Attributes:
        plugin: The plugin that reserved it.
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


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request is going. Each ``pre_route`` hook sees the route so far and may return another.

    Attributes:
        target: A model group or a deployment id of the gateway's configuration.
        labels: Facts for others to see on every attempt, settlement and span: experiment, arm, version. A label belongs to
            the plugin that sets it first, or that declares it (``PluginInfo.labels``): another cannot change it.
        fallbacks: Model groups to try, in order, when the target cannot answer, before those of the client or the
            gateway.
        executor: Name of the plugin whose ``execute`` makes the attempts, or None for the gateway.
        executes_fallbacks: Whether the executor also makes the attempts in model groups that the gateway falls back to.
        fallback: Set by the host on the route that an executor sees for such a group: ``target`` is the group.
        headers: Headers to add to the answer, lower case; of all plugins at most 32 with 4 000 characters.
        target_headers: Headers that depend on what answered: model group or deployment id to the headers to add, lower
            case, when an attempt on it answered. They are left out when another target answered or it is not known.
        reservations: What plugins have set aside for this request; a plugin adds its own and cannot remove one.
        timeout_s: Longest time of one attempt, in seconds; None leaves the gateway's.
        retries: How often the gateway repeats a failed attempt in a model group; None leaves the gateway's.
        upstream_headers: Headers for the provider, lower case; the configuration lists those that are possible
            (``pointsman.upstream_headers``).

    The host completes what ``pre_route`` returns: what is empty there keeps its value, so that a ``Route`` that is rebuilt
    loses nothing.
    """

    target: str
    labels: Mapping[str, str] = field(default_factory=FrozenDict)
    fallbacks: tuple[str, ...] = ()
    executor: str | None = None
    executes_fallbacks: bool = False
    fallback: bool = False
    headers: Mapping[str, str] = field(default_factory=FrozenDict)
    target_headers: Mapping[str, Mapping[str, str]] = field(default_factory=FrozenDict)
    reservations: tuple[Reservation, ...] = ()
    timeout_s: float | None = None
    retries: int | None = None
    upstream_headers: Mapping[str, str] = field(default_factory=FrozenDict)

    def to(self, target: str) -> Self:
        """Return the route with another target."""
        return replace(self, target=target)

    def with_labels(self, **labels: str) -> Self:
        """Return the route with these labels added."""
        return replace(self, labels={**self.labels, **labels})

    def executed_by(self, plugin: str, *, fallbacks: bool = False, **labels: str) -> Self:
        """Return the route with its attempts made by a plugin's ``execute``, and with these labels added.

        Args:
            plugin: The plugin's name, ``Services.plugin``.
            fallbacks: Whether it also makes the attempts in model groups that the gateway falls back to.
            labels: The labels.
        """
        return replace(self, executor=plugin, executes_fallbacks=fallbacks, labels={**self.labels, **labels})

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return the route with these answer headers added."""
        return replace(self, headers={**self.headers, **headers})

    def with_target_headers(self, target: str, headers: Mapping[str, str]) -> Self:
        """Return the route with these headers for answers of a model group or a deployment."""
        return replace(
            self,
            target_headers={**self.target_headers, target: {**self.target_headers.get(target, {}), **headers}},
        )

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
        plugin: The plugin that denied; filled in by the host.
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
            ValueError: the status is not an error status, or ``retry_after_s`` is not a number of seconds.
        """
        if not 400 <= self.status <= 599:  # noqa: PLR2004  # HTTP's error statuses
            raise ValueError(f"a Denial's status must be 400 to 599, not {self.status!r}")
        if self.retry_after_s is not None and not 0 <= self.retry_after_s < float("inf"):
            raise ValueError(f"a Denial's retry_after_s must be a number of seconds, not {self.retry_after_s!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A plugin's own answer to a request, from ``pre_route``: no attempt is made.

    Its settlement has no attempt, and this usage and cost; what is charged per attempt (quota, billing) is charged nothing.
    ``transform_response`` does not see it.

    Attributes:
        body: The answer as JSON, in the shape of the request's endpoint; for a plain request.
        pieces: The pieces of the stream as JSON, in order, in the endpoint's shape; for a streamed request.
        usage: What it used; None for nothing.
        cost_usd_micros: What it cost.
        headers: Headers to add to the answer; lower case.
        plugin: The plugin that answered; filled in by the host.
    """

    body: Mapping[str, object] | None = field(default=None, repr=False)
    pieces: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    usage: Usage | None = None
    cost_usd_micros: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    plugin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """This attempt is not made; the gateway retries or falls back.

    Attributes:
        reason: One phrase for the trace and, when nothing else can answer, for the client.
        retry_after_s: When this deployment may be tried again, in seconds, or None.
        status: The HTTP status of the answer when nothing else can answer, 400 to 599; None leaves it to the gateway.
        code: The error code of that answer: short, stable, for programs.
        retryable: Whether another attempt may be made. False ends the request with this refusal.
        plugin: The plugin that refused; filled in by the host.
    """

    reason: str
    retry_after_s: float | None = None
    status: int | None = None
    code: str = "attempt_refused"
    retryable: bool = True
    plugin: str = ""
