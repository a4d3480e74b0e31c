"""The plugin's configuration: tenants, their limits, and how they are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from pointsman.plugin import OnFailure, PluginConfig

if TYPE_CHECKING:
    from .ledger import Caps
from .tenants import Directory, made_by_us

PRE_ROUTE_DEADLINE_MS: Final = 5000
#: What a queued request needs beside waiting, before the host's deadline ends the call.
QUEUE_MARGIN_MS: Final = 100

#: Headers in which clients send keys. The gateway takes them off before any plugin sees a request's headers.
CREDENTIAL_HEADERS: Final = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "ocp-apim-subscription-key",
        "proxy-authorization",
        "set-cookie",
        "x-api-key",
        "x-goog-api-key",
        "x-litellm-api-key",
    }
)

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
KeyHash = Annotated[str, AfterValidator(made_by_us)]
Tokens = Annotated[int, Field(ge=1, le=10**14, strict=True)]
Usd = Annotated[Decimal, Field(gt=0, le=10**9, decimal_places=6)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Section):
    """What a tenant, a key or a model pattern may use. A limit that is left out does not exist."""

    max_concurrent_requests: int | None = Field(
        default=None, ge=1, le=1_000_000, strict=True, description="Requests in flight at the same time."
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10_000_000, strict=True, description="Requests admitted a minute."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, strict=True, description="Tokens a minute, prompt and output together."
    )
    burst_s: float = Field(
        default=60.0,
        ge=0.1,
        le=3600.0,
        description="How many seconds' worth of the two rates may be used at once after a pause.",
    )
    tokens_per_day: Tokens | None = Field(default=None, description="Tokens a calendar day.")
    tokens_per_month: Tokens | None = Field(default=None, description="Tokens a calendar month.")
    usd_per_day: Usd | None = Field(default=None, description="US dollars a calendar day.")
    usd_per_month: Usd | None = Field(default=None, description="US dollars a calendar month.")

    @cached_property
    def caps(self) -> Caps:
        """The limits as the ledger wants them."""
        caps: Caps = {}
        if self.max_concurrent_requests is not None:
            caps["concurrent"] = self.max_concurrent_requests
        if self.requests_per_minute is not None:
            caps["requests"] = self.requests_per_minute
            caps["requests_burst"] = max(1, int(self.requests_per_minute * self.burst_s / 60))
        if self.tokens_per_minute is not None:
            caps["tokens"] = self.tokens_per_minute
            caps["tokens_burst"] = max(1, int(self.tokens_per_minute * self.burst_s / 60))
        if self.tokens_per_day is not None:
            caps["day_tokens"] = self.tokens_per_day
        if self.tokens_per_month is not None:
            caps["month_tokens"] = self.tokens_per_month
        if self.usd_per_day is not None:
            caps["day_usd_micros"] = int(self.usd_per_day * 1_000_000)
        if self.usd_per_month is not None:
            caps["month_usd_micros"] = int(self.usd_per_month * 1_000_000)
        return caps


class Key(Section):
    """An API key of a tenant. Only its salted hash is kept; ``pointsman quota hash-key`` makes one."""

    name: Text = Field(description="For people, and for the key's own limits.")
    hash: KeyHash = Field(description="hmac-sha256$SALT$DIGEST, both hexadecimal.")
    limits: Limits | None = Field(default=None, description="Limits of this key beside the tenant's.")
    priority: int | None = Field(default=None, ge=-1000, le=1000, description="Overrides the tenant's priority.")


class Match(Section):
    """How a tenant is recognised, beside its own keys. The order of the fields is the order of precedence."""

    litellm_keys: tuple[Text, ...] = Field(default=(), description="LiteLLM's hashes of virtual keys.")
    claims: Mapping[Text, tuple[Text, ...]] = Field(
        default={}, description="Claims that authentication established (of a JWT, for example), and their values."
    )
    users: tuple[Text, ...] = Field(default=(), description="LiteLLM users.")
    teams: tuple[Text, ...] = Field(default=(), description="LiteLLM teams.")
    orgs: tuple[Text, ...] = Field(default=(), description="LiteLLM organisations.")
    header_values: tuple[Text, ...] = Field(default=(), description="Values of the trusted front's header.")


class Tenant(Section):
    """Who may call, what, and how much."""

    id: TenantId = Field(description="Letters, digits, '.', '_' and '-'.")
    name: str = Field(default="", max_length=200, description="For people.")
    keys: tuple[Key, ...] = Field(default=(), max_length=1000, description="API keys of its own.")
    match: Match = Match()
    limits: Limits = Limits()
    models: tuple[Pattern, ...] = Field(
        default=(), description="Models it may ask for, with * ? and [...]; empty allows all."
    )
    model_limits: Mapping[Pattern, Limits] = Field(
        default={}, description="Further limits for all models that fit a pattern, together."
    )
    priority: int = Field(default=0, ge=-1000, le=1000, description="In a queue, higher goes first.")
    dry_run: bool = Field(default=False, description="Count and mark, but never refuse.")

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name; name each one differently")
        return keys


class TrustedHeader(Section):
    """A header that a trusted front sets to the tenant's name."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,64}$", description="Lower case, for example x-tenant.")
    networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Peers that may set it, which needs custom_auth; empty trusts whoever can reach the gateway.",
    )

    @field_validator("name")
    @classmethod
    def _visible(cls, name: str) -> str:
        if name in CREDENTIAL_HEADERS:
            raise ValueError(
                f"{name!r} carries credentials, which plugins never see; let the front set a header of its own, "
                "for example x-tenant"
            )
        return name


class Queue(Section):
    """Wait a moment for a free slot instead of refusing."""

    max_wait_ms: int = Field(default=500, ge=1, le=59_000, description="Longest wait of one request, in milliseconds.")
    max_waiting: int = Field(default=100, ge=1, le=10_000, description="Most requests waiting at one limit.")
    poll_ms: int = Field(
        default=25, ge=1, le=1000, description="How often to look for slots that other workers freed, in milliseconds."
    )


class OutputEstimate(Section):
    """How many output tokens to reserve for a request."""

    by: Literal["max_tokens", "learnt"] = Field(
        default="max_tokens",
        description="'max_tokens': what the request allows, the learnt quantile only where it sets no maximum. "
        "'learnt': the learnt quantile, at most what the request allows: admits more, may be too low.",
    )
    quantile_ratio: float = Field(default=0.95, gt=0, lt=1, description="Which quantile of past outputs to reserve.")
    default_tokens: int = Field(
        default=1024, ge=1, le=1_000_000, description="Used until 20 outputs of the model were seen."
    )


class QuotaConfig(PluginConfig):
    """The section of plugin ``quota``."""

    on_failure: OnFailure = Field(
        default="deny",
        description="When the store is down: 'deny' answers 503, 'allow' goes on with each worker's own count.",
    )
    deadline_ms: int | None = Field(
        default=5000,
        ge=1,
        le=60_000,
        description="Longest time of an admission, queueing included, in milliseconds. Longer than the store's own "
        "timeout, so that a busy moment of the worker does not turn into a refusal.",
    )
    tenants: tuple[Tenant, ...] = Field(default=(), description="More can be added over HTTP.")
    default_tenant: TenantId | None = Field(
        default=None,
        description="Tenant of callers whom the gateway lets in and no tenant matches, its admin key included; without "
        "one they are refused with 401.",
    )
    exempt_admin: bool = Field(
        default=True, description="The gateway's own admin key is no tenant's and without a default is not limited."
    )
    gateway_limits: Limits = Field(default=Limits(), description="Limits of all tenants together.")
    trusted_header: TrustedHeader | None = None
    queue: Queue | None = Field(default=None, description="Without it, no request ever waits.")
    output: OutputEstimate = OutputEstimate()
    dry_run: bool = Field(default=False, description="Count and mark, but never refuse, for all tenants.")
    money_from: Literal["gateway", "events"] = Field(
        default="gateway",
        description="'gateway': cost as the gateway computes it. 'events': what a billing plugin announces.",
    )
    money_wait_ms: int = Field(
        default=2000,
        ge=1,
        le=8000,
        description="With money_from 'events', how long a settlement waits for the announcement before it takes the "
        "gateway's cost, in milliseconds.",
    )
    timezone: str = Field(default="UTC", description="IANA time zone of days and months.")
    lease_s: int = Field(
        default=60, ge=5, le=3600, description="After this long a killed worker's reservations are free."
    )
    max_request_s: int = Field(
        default=3600, ge=60, le=86_400, description="A running request's lease is renewed for at most this long."
    )
    late_settle_s: int = Field(
        default=86_400, ge=3600, le=2_592_000, description="A settlement that comes later than this is ignored."
    )
    refresh_s: float = Field(
        default=1.0, ge=0.1, le=60, description="How soon a worker sees tenants added through another."
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (LookupError, ValueError, OSError) as err:
            raise ValueError("not an IANA time zone, or the system has no zone data (install tzdata)") from err
        return name

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
