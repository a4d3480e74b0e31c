"""The plugin's configuration."""

from __future__ import annotations

from decimal import Decimal
from os.path import normpath
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from pointsman.plugin import PluginConfig
from pointsman.types import AttemptKind

from .section import Section
from .sinks import Chosen, choose
from .sinks.ndjson import NdjsonConfig

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
UsdPerMillion = Annotated[Decimal, Field(ge=0, le=10**6)]


class Scope(Section):
    """What a rule applies to. What is left out applies to all."""

    tenants: tuple[Pattern, ...] = Field(default=(), description="Tenants, with * ? and [...]; empty: all.")
    models: tuple[Pattern, ...] = Field(
        default=(),
        description="Models, with * ? and [...]: the one asked for, the model group or the provider's; empty: all.",
    )
    kinds: tuple[AttemptKind, ...] = Field(
        default=(), description="Kinds of attempts, for example hedge or mirror; empty: all."
    )


class PriceRule(Scope):
    """Prices of our own, in US dollars a million tokens. The first rule that applies replaces the gateway's prices."""

    input_usd_per_million: UsdPerMillion = Field(description="Tokens of the prompt.")
    output_usd_per_million: UsdPerMillion = Field(description="Tokens of the answer.")
    cache_read_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Tokens read from the provider's prompt cache; left out: as other prompt tokens."
    )
    cache_write_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Tokens written to it; left out: as other prompt tokens."
    )
    audio_input_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Audio tokens of the prompt; left out: as other prompt tokens."
    )
    audio_output_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Audio tokens of the answer; left out: as other tokens of it."
    )
    reasoning_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Reasoning tokens; left out: as other tokens of the answer."
    )


class MarginRule(Scope):
    """What a tenant pays beyond the cost. The first rule that applies counts."""

    margin_ratio: Decimal = Field(
        ge=-1, le=1000, decimal_places=6, description="0.2 is a fifth more, 0 is the cost, -1 is for nothing."
    )


class OutboxConfig(Section):
    """Where events wait until every sink has confirmed them."""

    path: str = Field(
        default=".pointsman-billing",
        min_length=1,
        max_length=4000,
        description="Directory, on a local disk, shared by all workers of the machine; relative to the config file.",
    )
    fsync: bool = Field(
        default=True, description="true survives a power failure, false only the end of the process, kill -9 included."
    )
    retention_days: int = Field(
        default=35, ge=1, le=3660, description="How long delivered events and the record of each request are kept."
    )
    usage_retention_days: int = Field(
        default=800, ge=1, le=3660, description="How long the hourly sums behind the usage report are kept, in days."
    )
    max_size_mb: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="When it is full, delivered events go before their time; when only undelivered ones are left, "
        "settlements wait in the host's journal.",
    )
    timeout_s: float = Field(default=5.0, ge=0.1, le=9.0, description="Longest wait for one write, in seconds.")


class BillingConfig(PluginConfig):
    """The section of plugin ``billing``."""

    outbox: OutboxConfig = OutboxConfig()
    sinks: tuple[Annotated[Chosen, BeforeValidator(choose)], ...] = Field(
        default=(), max_length=20, description="Where events go; without any they stay in the outbox."
    )
    prices: tuple[PriceRule, ...] = Field(default=(), max_length=10_000, description="Prices instead of the gateway's.")
    margins: tuple[MarginRule, ...] = Field(default=(), max_length=10_000, description="What tenants pay on top.")
    cost_from: Literal["prices", "gateway"] = Field(
        default="prices",
        description="'prices': tokens times unit prices. 'gateway': the gateway's own figure for each attempt where no "
        "price rule applies, which also knows service tiers and tools.",
    )
    default_tenant: Pattern = Field(default="default", description="Who pays when nobody knows the caller.")
    own_tenant: Pattern = Field(
        default="pointsman", description="Who pays for mirrors, probes and judges that name no tenant."
    )
    announce: bool = Field(default=True, description="Announce what was spent, for plugins that keep budgets.")
    timezone: str = Field(default="UTC", description="IANA time zone of the days and months in reports.")
    share_s: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        description="How often this machine's sums are written to the state store, for the reports of the others.",
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
    def _consistent(self) -> BillingConfig:
        names: set[str] = set()
        files: set[str] = set()
        for sink in self.sinks:
            if isinstance(sink.config, NdjsonConfig):
                if (file := normpath(sink.config.path)) in files:
                    raise ValueError(f"two sinks write to {sink.config.path!r}; each needs a file of its own")
                files.add(file)
            if sink.name in names:
                raise ValueError(
                    f"two sinks are called {sink.name!r}; give one of them a 'name' of its own: each keeps its place "
                    "in the outbox under its name"
                )
            names.add(sink.name)
        return self
