"""The plugin's configuration."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import normpath
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from pointsman.config import Section, Zone
from pointsman.plugin import PluginConfig

from .pricing import MarginRule, Pattern, PriceRule, prices_for
from .schema import problem_of
from .sinks import Chosen, choose
from .sinks.ndjson import NdjsonConfig


class OutboxConfig(Section):
    """Where events wait until every sink has confirmed them."""

    path: str = Field(
        default=".pointsman-billing",
        min_length=1,
        max_length=4000,
        description="Directory, on a local disk that outlives the process, shared by all workers of the machine; relative to the "
        "config file.",
    )
    fsync: bool = Field(
        default=True,
        description="true: commits survive a power failure; false: only the end of the process, kill -9 included.",
    )
    retention_days: int = Field(
        default=35,
        ge=1,
        le=3660,
        description="Days for which delivered events and the record of each request are kept.",
    )
    usage_retention_days: int = Field(
        default=800,
        ge=1,
        le=3660,
        description="Days for which the sums of the usage report are kept; two years and a bit, to compare years.",
    )
    max_size_mb: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Size limit in megabytes. When it is reached, delivered events are removed early; when only undelivered "
        "ones are left, settlements wait in the host's journal.",
    )
    timeout_s: float = Field(default=5.0, ge=0.1, le=9.0, description="Longest wait for one write, in seconds.")


#: For editors: the name of a sink, or its name with its settings.
SINK_SCHEMA: Final = {
    "anyOf": [{"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}],
    "examples": ["stdout", {"ndjson": {"path": "bills.ndjson"}}],
}


class BillingConfig(PluginConfig):
    """The section of plugin ``billing``."""

    outbox: OutboxConfig = OutboxConfig()
    sinks: tuple[Annotated[Chosen, BeforeValidator(choose), WithJsonSchema(SINK_SCHEMA)], ...] = Field(
        default=(), max_length=20, description="Where events are delivered; without sinks they stay in the outbox."
    )
    prices: tuple[PriceRule, ...] = Field(
        default=(), max_length=10_000, description="Price rules that replace the gateway's prices."
    )
    margins: tuple[MarginRule, ...] = Field(
        default=(), max_length=10_000, description="Margin rules: what tenants pay in addition to the cost."
    )
    cost_from: Literal["prices", "gateway"] = Field(
        default="prices",
        description="'prices': what was used times unit prices, or what the provider itself says that it charges; the "
        "gateway's own figure only where these are unknown. 'gateway': the gateway's own logged figure for each attempt to which "
        "no price rule applies; where it has none, leaves out what the provider has said or is not explained, as 'prices'.",
    )
    default_tenant: Pattern = Field(default="default", description="Tenant that pays for requests of unknown callers.")
    own_tenant: Pattern = Field(
        default="pointsman",
        description="Tenant that pays for mirrors, probes and judges without a tenant of their own.",
    )
    announce: bool = Field(default=True, description="Announce what was spent to plugins that keep budgets.")
    timezone: Zone = Field(
        default="UTC", description="IANA time zone of the hours, days and months in reports, and of dates in queries."
    )
    share_s: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        description="Interval at which this machine's sums are written to the state store for the reports of other machines, in "
        "seconds.",
    )

    def check_files(self, base: Path) -> Iterable[str]:
        """See ``PluginConfig.check_files``."""
        problem = problem_of(base / self.outbox.path)
        return () if problem is None else (problem,)

    def has_price(self, models: tuple[str, ...], tenant: str) -> bool:
        """See ``PluginConfig.has_price``."""
        return prices_for(self.prices, models, tenant)

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
