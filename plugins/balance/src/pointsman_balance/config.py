"""The plugin's section of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pointsman.config import Section, message_of
from pointsman.errors import ConfigError
from pointsman.plugin import PluginConfig

from .breaker import BreakerConfig, Ratio, Seconds
from .tactics import NamedTactic, TacticChoice, installed, make

GroupName = Annotated[str, Field(min_length=1, max_length=256)]


class GroupPolicy(Section):
    """Settings of one model group; unset ones are those of the plugin."""

    tactic: NamedTactic | None = Field(
        default=None,
        description="Tactic of this model group instead of the plugin's: a name, or a name and its settings.",
    )
    breaker: BreakerConfig | None = Field(
        default=None, description="Breaker settings that override the plugin's, or the name of a preset."
    )

    def breaker_over(self, base: BreakerConfig) -> BreakerConfig:
        """Return the group's breaker settings: its own override the base, a preset replaces the base.

        Raises:
            ConfigError: together they contradict each other.
        """
        if self.breaker is None:
            return base
        if "preset" in self.breaker.model_fields_set:
            return self.breaker
        try:
            return BreakerConfig.model_validate({**base.given, **self.breaker.given})
        except ValidationError as err:
            (wrong,) = err.errors(include_url=False, include_input=False, include_context=False)
            raise ConfigError(message_of(wrong)) from None


class BalanceConfig(PluginConfig):
    """How a deployment is chosen, and when one is avoided."""

    tactic: NamedTactic = Field(
        default=TacticChoice(name="adaptive"),
        description="How a healthy deployment is chosen: a tactic's name, or its name and settings.",
    )
    breaker: BreakerConfig = Field(
        default=BreakerConfig(), description="Circuit breaker settings, or the name of a preset."
    )
    groups: dict[GroupName, GroupPolicy] = Field(
        default_factory=dict, max_length=1000, description="Settings by model group that override those above."
    )
    degraded_share_ratio: Ratio = Field(
        default=0.25,
        description="Share of its usual traffic that a degraded deployment (quota nearly used up, failed check, asked "
        "to wait) keeps while another one is available, 0 to 1.",
    )
    tau_s: Seconds = Field(default=10.0, description="Time constant of the moving averages, in seconds.")
    stale_s: Seconds = Field(
        default=4.0,
        description="Time constant, in seconds, with which measured latency and errors of an unused deployment fade, so "
        "that it is tried again.",
    )
    max_deployments: int = Field(
        default=2_000,
        ge=1,
        le=100_000,
        description="Largest number of deployments kept in memory; the idle ones unused for longest go first.",
    )
    sync_s: float = Field(
        default=0.5,
        ge=0.05,
        le=60,
        description="Seconds between two reads of other workers' breakers and live settings.",
    )

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        """Reject tactics that are not installed or have wrong settings, and groups whose breaker settings contradict."""
        tactics, wrong = installed(), list[InitErrorDetails]()

        def check(use: Callable[[], object], *place: str) -> None:
            try:
                use()
            except ConfigError as err:
                reason = PydanticCustomError("value_error", "{reason}", {"reason": str(err)})
                # The input is not the text that was written, so that the message does not repeat it.
                wrong.append(InitErrorDetails(type=reason, loc=place, input={}))

        check(partial(make, self.tactic, tactics), "tactic")
        for name, policy in self.groups.items():
            if policy.tactic is not None:
                check(partial(make, policy.tactic, tactics), "groups", name, "tactic")
            check(partial(policy.breaker_over, self.breaker), "groups", name, "breaker")
        if wrong:
            raise ValidationError.from_exception_data(type(self).__name__, wrong)
        return self
