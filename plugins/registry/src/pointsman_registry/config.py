"""The registry's section of the configuration."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pointsman.plugin import PluginConfig

from .fields import VersionSpec


class RegistryConfig(PluginConfig):
    """Versions to begin with, and how often the workers look for news."""

    versions: tuple[VersionSpec, ...] = Field(
        default=(), description="Registered at every start where they are missing; never changed or activated again."
    )
    poll_interval_s: float = Field(
        default=0.5, ge=0.05, le=1.0, description="How often a worker looks for changes made by others, in seconds."
    )
    metrics_interval_s: float = Field(
        default=2.0, ge=0.1, le=60.0, description="How often a worker hands its live metrics to the store, in seconds."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[str] = set()
        active: dict[str, str] = {}
        for spec in self.versions:
            if spec.id in seen:
                raise ValueError(f"versions: the id {spec.id!r} is given twice")
            seen.add(spec.id)
            if spec.active and (other := active.setdefault(spec.name, spec.id)) != spec.id:
                raise ValueError(
                    f"versions: {other!r} and {spec.id!r} are both active, but {spec.name!r} can have one active version"
                )
        return self
