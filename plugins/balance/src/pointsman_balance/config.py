"""The plugin's section of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from pointsman.errors import ConfigError
from pointsman.plugin import PluginConfig

from .registry import installed, make

#: Named sets of breaker settings; a set is the base that other keys beside ``preset`` change.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "swift": {},
    "classic": {
        "consecutive_errors": 3,
        "error_ratio": None,
        "open_s": 300.0,
        "auth_s": 300.0,
        "backoff_factor": 1.0,
        "successes": 1,
        "probe": "call",
        "ramp_s": 0.0,
    },
}

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Field(ge=0, le=1)]
GroupName = Annotated[str, Field(min_length=1, max_length=256)]


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BreakerConfig(_Section):
    """When a circuit breaker opens, how it tries again, and how traffic comes back."""

    preset: Literal["swift", "classic"] = Field(
        default="swift", description="Base of the other settings: 'classic' is 3 errors, 300 s, probed by a call."
    )
    enabled: bool = Field(default=True, description="Whether breakers open at all.")
    consecutive_errors: int | None = Field(
        default=3, ge=1, le=1000, description="So many retryable errors in a row open it; null: never for this reason."
    )
    error_ratio: float | None = Field(
        default=0.3, gt=0, le=1, description="This part of the attempts in window_s failing opens it; null: never."
    )
    min_attempts: int = Field(
        default=8, ge=2, le=64, description="Fewer attempts in window_s say nothing about a ratio."
    )
    window_s: Seconds = Field(default=10.0, description="Window of error_ratio in seconds; at most 64 attempts of it.")
    open_s: Seconds = Field(default=2.0, description="First opening after errors, in seconds.")
    backoff_factor: float = Field(
        default=2.0, ge=1, le=10, description="Each further opening is longer by this factor."
    )
    max_open_s: Seconds = Field(
        default=60.0, description="Longest opening after errors, in seconds; not set, it is never less than open_s."
    )
    rate_limit_s: Seconds = Field(
        default=30.0, description="Opening after a 429 that names no end and of which no signal knows one, in seconds."
    )
    max_rate_limit_s: Seconds = Field(
        default=3_600.0,
        description="Longest opening after a 429, in seconds; not set, it is never less than rate_limit_s.",
    )
    auth_s: Seconds = Field(
        default=60.0,
        description="Until the first probe after refused credentials, or a model that is not found, in seconds; grows "
        "like open_s.",
    )
    probe: Literal["request", "call", "off"] = Field(
        default="request",
        description="How a half-open breaker is tried: with a client's request, with a call of our own of one token, "
        "or not at all (it closes when its time is over).",
    )
    successes: int = Field(default=1, ge=1, le=100, description="So many successful probes close it.")
    probe_timeout_s: Seconds = Field(default=30.0, description="A probe that is not back by then is given up.")
    ramp_s: float = Field(
        default=5.0,
        ge=0,
        le=86_400,
        description="Time in which a closed breaker's share grows to the whole, in seconds.",
    )
    ramp_start_ratio: Ratio = Field(default=0.1, description="Share at the start of the ramp, 0 to 1.")
    calm_s: Seconds = Field(default=60.0, description="Closed for so long, earlier openings are forgotten, in seconds.")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        """Read ``breaker: classic`` and put the preset under the settings that are given."""
        if isinstance(value, str):
            if value not in PRESETS:
                # Here, so that it is not reported under the key 'preset', which nobody has written.
                raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, PRESETS))})
            value = {"preset": value}
        if isinstance(value, dict) and isinstance(preset := value.get("preset"), str) and preset in PRESETS:
            return {**PRESETS[preset], **value}
        return value

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        """Of a time and its bound, the one that is not set follows the other; two that contradict are refused."""
        for name, bound in (("open_s", "max_open_s"), ("rate_limit_s", "max_rate_limit_s")):
            length_s, most_s = getattr(self, name), getattr(self, bound)
            if length_s <= most_s:
                continue
            if bound not in self.model_fields_set:
                self.__dict__[bound] = length_s
            elif name not in self.model_fields_set:
                self.__dict__[name] = most_s
            else:
                raise ValueError(f"{name} ({length_s:g}) is above {bound} ({most_s:g})")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What is set, by hand or by a preset."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TacticChoice(BaseModel):
    """A tactic's name, and beside it the tactic's own settings; they are checked by the tactic."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=64, description="A built-in tactic or one of an installed distribution.")

    @property
    def settings(self) -> dict[str, Any]:
        """What stands beside the name."""
        return dict(self.model_extra or {})


Tactic = Annotated[TacticChoice, BeforeValidator(_named)]


class GroupPolicy(_Section):
    """What is different for one model group; what is not set is as for all."""

    tactic: Tactic | None = Field(default=None, description="As the plugin's tactic, for this model group.")
    breaker: BreakerConfig | None = Field(
        default=None, description="Breaker settings that differ from the plugin's, or a preset's name."
    )

    def breaker_over(self, base: BreakerConfig) -> BreakerConfig:
        """Return the group's breaker settings: those that are set over those for all; a preset replaces those for all.

        Raises:
            ConfigError: together they contradict.
        """
        if self.breaker is None:
            return base
        if "preset" in self.breaker.model_fields_set:
            return self.breaker
        try:
            return BreakerConfig.model_validate({**base.given, **self.breaker.given})
        except ValidationError as err:
            (wrong,) = err.errors(include_url=False, include_input=False, include_context=False)
            raise ConfigError(wrong["msg"].removeprefix("Value error, ")) from None


class BalanceConfig(PluginConfig):
    """How a deployment is chosen, and when one is left alone."""

    tactic: Tactic = Field(default=TacticChoice(name="adaptive"), description="A tactic's name, or name and settings.")
    breaker: BreakerConfig = Field(default=BreakerConfig(), description="Circuit breakers; or a preset's name.")
    groups: dict[GroupName, GroupPolicy] = Field(
        default_factory=dict, max_length=1000, description="Model group to what is different for it."
    )
    degraded_share_ratio: Ratio = Field(
        default=0.25,
        description="Part of its usual traffic that a deployment keeps whose signal says degraded (quota nearly used "
        "up, failed check, asked to wait) while another one is available.",
    )
    tau_s: Seconds = Field(default=10.0, description="Time constant of the moving averages, in seconds.")
    stale_s: Seconds = Field(
        default=4.0,
        description="Time in which the belief that an unused deployment is slow or failing fades, so that it is tried "
        "again, in seconds.",
    )
    max_deployments: int = Field(default=2_000, ge=1, le=100_000, description="Deployments remembered at most.")
    sync_s: float = Field(
        default=0.5, ge=0.05, le=60, description="Between two readings of what other workers' breakers say, in seconds."
    )

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        """Refuse tactics that are not installed or set wrongly, and breakers of a group that contradict those for all.

        Raises:
            PluginLoadError: an installed tactic cannot be used.
        """
        tactics, wrong = installed(), list[InitErrorDetails]()

        def check(use: Callable[[], object], *place: str) -> None:
            try:
                use()
            except ConfigError as err:
                told = PydanticCustomError("value_error", "{told}", {"told": str(err)})
                # The input is no text, or it would be repeated before what is told of it.
                wrong.append(InitErrorDetails(type=told, loc=place, input={}))

        check(partial(make, self.tactic, tactics), "tactic")
        for name, policy in self.groups.items():
            if policy.tactic is not None:
                check(partial(make, policy.tactic, tactics), "groups", name, "tactic")
            check(partial(policy.breaker_over, self.breaker), "groups", name, "breaker")
        if wrong:
            raise ValidationError.from_exception_data(type(self).__name__, wrong)
        return self
