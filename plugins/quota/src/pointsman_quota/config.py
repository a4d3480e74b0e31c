"""The plugin's section. Tenants and limits are described in the modules that use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from pydantic import Field, model_validator

from pointsman.config import Section, Zone
from pointsman.counting import UNSEEN_PAGES
from pointsman.plugin import OnFailure, PluginConfig, UnpricedModel

from .limits import Limits
from .scopes import unpriced_limits
from .tenants import Directory, Tenant, TenantId, TrustedHeader

PRE_ROUTE_DEADLINE_MS: Final = 5000
#: What a queued request needs in addition to waiting, before the host's deadline ends the call.
QUEUE_MARGIN_MS: Final = 100


class Queue(Section):
    """Wait for a free slot instead of refusing at once."""

    max_wait_ms: int = Field(default=500, ge=1, le=59_000, description="Longest wait of one request, in milliseconds.")
    max_waiting: int = Field(
        default=100, ge=1, le=10_000, description="Most requests that may wait at one limit; further ones are refused."
    )
    poll_ms: int = Field(
        default=25,
        ge=1,
        le=1000,
        description="Interval at which slots freed by other workers are looked for, in milliseconds.",
    )


#: Without ``queue``, a request waits this long for a slot: longer than the settlement of one that has ended takes.
_SETTLING_MS: Final = 300


class OutputEstimate(Section):
    """How many output tokens to reserve for a request."""

    by: Literal["max_tokens", "learnt"] = Field(
        default="max_tokens",
        description="'max_tokens': what the request allows, or the learnt quantile where it sets no maximum. 'learnt': the "
        "learnt quantile, at most what the request allows; admits more requests, but the reservation may be too low.",
    )
    quantile_ratio: float = Field(
        default=0.95, gt=0, lt=1, description="Quantile of past outputs to reserve, between 0 and 1."
    )
    default_tokens: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Output tokens to reserve until 20 outputs of the model have been seen.",
    )


class QuotaConfig(PluginConfig):
    """The section of plugin ``quota``."""

    on_failure: OnFailure = Field(
        default="deny",
        description="When the store is down: 'deny' answers 503, 'allow' continues with each worker's own count.",
    )
    deadline_ms: int | None = Field(
        default=5000,
        ge=1,
        le=60_000,
        description="Longest time of an admission, queueing included, in milliseconds. The default exceeds the store's own "
        "timeout, so that a busy moment of the worker does not become a refusal.",
    )
    tenants: tuple[Tenant, ...] = Field(default=(), description="Tenants; more can be added over HTTP.")
    default_tenant: TenantId | None = Field(
        default=None,
        description="Tenant of authenticated callers that no tenant matches, the admin key included; null refuses them "
        "with 401.",
    )
    exempt_admin: bool = Field(
        default=True, description="The admin key is exempt from limits unless a default tenant is set."
    )
    gateway_limits: Limits = Field(default=Limits(), description="Limits of all tenants together.")
    trusted_header: TrustedHeader | None = None
    queue: Queue | None = Field(
        default=None,
        description="Queue for free slots. null: a request waits 0.3 s at most, in which the slots of requests that have "
        "ended in other workers become free.",
    )
    output: OutputEstimate = OutputEstimate()
    tool_uses: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Uses of one of the provider's own tools, such as searches of the web, to reserve where a request does not "
        "limit them (`max_uses`, `max_tool_calls`); most answers take fewer.",
    )
    unknown_history_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Tokens of a conversation that the provider keeps, to reserve where a request goes on from it and its length is "
        "not known; null: the model's context window, since it cannot read more.",
    )
    unseen_document_pages: int = Field(
        default=UNSEEN_PAGES,
        ge=1,
        le=10_000,
        description="Pages to reserve for a document of which only the address or the file's id is known; a page is 3000 tokens.",
    )
    dry_run: bool = Field(default=False, description="Count and mark, but never refuse, for all tenants.")
    money_from: Literal["gateway", "events"] = Field(
        default="gateway",
        description="'gateway': the gateway's own cost. 'events': the cost that a billing plugin announces.",
    )
    money_wait_ms: int = Field(
        default=2000,
        ge=1,
        le=8000,
        description="With money_from 'events', longest wait of a settlement for the announcement, in milliseconds; then "
        "it takes the gateway's cost.",
    )
    timezone: Zone = Field(default="UTC", description="IANA time zone whose days and months budgets follow.")
    lease_s: int = Field(
        default=60, ge=5, le=3600, description="Seconds after which the reservations of a killed worker are free."
    )
    max_request_s: int = Field(
        default=3600,
        ge=60,
        le=86_400,
        description="Longest time for which the lease of a running request is renewed, in seconds.",
    )
    late_settle_s: int = Field(
        default=86_400,
        ge=3600,
        le=2_592_000,
        description="Settlements that arrive later than this, in seconds, are ignored.",
    )
    refresh_s: float = Field(
        default=1.0,
        ge=0.1,
        le=60,
        description="Interval at which a worker reads tenants added through another one, in seconds.",
    )

    def warnings(self) -> Iterator[str]:
        """Say where clients could choose their tenant themselves, unless a front that is trusted replaces the header."""
        header = self.trusted_header
        if header is None:
            return
        front = "list the addresses of the front that replaces it in every request in `trusted_header.networks`"
        if not header.networks:
            yield f"trusted_header: every client can set {header.name!r} and so choose its tenant; {front}"
        for network in header.networks:
            if network.prefixlen == 0:
                yield f"trusted_header.networks: {network} contains every client, each of which is any tenant that it names; {front}"

    def unpriced(self, models: Sequence[UnpricedModel], policy: OnFailure) -> list[str]:
        """Return the tenants of the configuration whose limits in money cannot work; see the base class."""
        # Budgets that follow a billing plugin's events follow its prices, too.
        by_rules = self.money_from == "events"
        unknown = [
            model if by_rules else UnpricedModel(model.name, model.group) for model in models if not model.is_deployment
        ]
        return unpriced_limits(self.tenants, self.gateway_limits, unknown, policy)

    @property
    def waiting(self) -> Queue:
        """How long requests wait for a free slot, also where no queue is configured."""
        deadline_ms = self.deadline_ms or PRE_ROUTE_DEADLINE_MS
        return self.queue or Queue(max_wait_ms=max(1, min(_SETTLING_MS, deadline_ms - QUEUE_MARGIN_MS)))

    @model_validator(mode="after")
    def _consistent(self) -> QuotaConfig:
        Directory(self.tenants, default=None, header=None)
        deadline_ms = self.deadline_ms or PRE_ROUTE_DEADLINE_MS
        if self.queue and self.queue.max_wait_ms + QUEUE_MARGIN_MS > deadline_ms:
            raise ValueError(
                f"queue.max_wait_ms ({self.queue.max_wait_ms}) must be at least {QUEUE_MARGIN_MS} less than deadline_ms "
                f"({deadline_ms}); raise deadline_ms"
            )
        return self
