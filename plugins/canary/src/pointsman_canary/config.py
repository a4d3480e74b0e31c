"""The canary's section of the configuration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from pointsman.plugin import PluginConfig

from .experiment import Experiment, Model, Name


class Webhook(Model):
    """An HTTP gate: ``POST`` of JSON; the answer says ``{"verdict": "go" | "wait" | "rollback", "reason": "..."}``."""

    url: str = Field(max_length=2048, description="http:// or https://.")
    headers: dict[str, SecretStr] = Field(default={}, description="Request headers; values are never shown or stored.")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Longest wait for one answer, in seconds.")
    attempts: int = Field(default=3, ge=1, le=10, description="How often it is tried before the default counts.")
    default: Literal["go", "wait", "rollback"] = Field(
        default="wait", description="The verdict when it cannot be reached, answers an error or something unknown."
    )

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url


class CanaryConfig(PluginConfig):
    """Experiments to begin with, the webhooks they may ask, and how often the workers look."""

    experiments: tuple[Experiment, ...] = Field(
        default=(), description="Begun at the first start; earlier ones win where several match a request."
    )
    webhooks: dict[Name, Webhook] = Field(default={}, description="Gates by name; experiments refer to the names.")
    tick_s: float = Field(
        default=0.2, ge=0.02, le=0.5, description="How often a worker hands in, decides and looks for news, in seconds."
    )
    blind_limit_s: float = Field(
        default=30.0,
        ge=1,
        le=86_400,
        description="Without the store for this long, experiments that would roll back go to stable, in seconds.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for index, experiment in enumerate(self.experiments):
            for other in self.experiments[:index]:
                if other.name == experiment.name:
                    raise ValueError(f"experiments[{index}]: the name {experiment.name!r} is used twice")
                if other.rivals(experiment):
                    raise ValueError(
                        f"experiments[{index}]: {experiment.name!r} and {other.name!r} have the same model and filter"
                    )
            for webhook in experiment.gates.names():
                if webhook not in self.webhooks:
                    raise ValueError(f"experiments[{index}].gates: there is no webhook {webhook!r}; see 'webhooks'")
        return self
