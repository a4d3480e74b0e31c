"""The plugin's section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from pointsman.plugin import PluginConfig

from .race import MAX_ATTEMPTS, TOGETHER, Strategy

Name = Annotated[str, StringConstraints(pattern=r"^\S(?:.{0,198}\S)?$")]
Text = Annotated[str, StringConstraints(max_length=2000)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Delay(Section):
    """How long a leg is waited for before the next one is started."""

    quantile_ratio: float = Field(
        default=0.95, ge=0.5, le=0.999, description="Quantile of the candidate's own time to first token, 0.5 to 0.999."
    )
    floor_ms: float = Field(default=50.0, ge=0, le=3_600_000, description="Never shorter than this, in milliseconds.")
    fixed_ms: Milliseconds = Field(
        default=1000.0, description="For streams, as long as too little is known about a candidate, in milliseconds."
    )
    fixed_plain_ms: Milliseconds = Field(
        default=10_000.0, description="The same for plain requests, whose whole answer is waited for, in milliseconds."
    )
    min_samples: float = Field(
        default=20, ge=1, le=100_000, description="Samples, decayed, from which a candidate's own quantile is used."
    )


class RaceSettings(Section):
    """How a race is run. Everything here may also stand under ``defaults``."""

    strategy: Strategy = Field(
        default="hedge",
        description="hedge: one after another; first_wins, weighted, quality: all candidates at once.",
    )
    timeout_ms: Milliseconds | None = Field(
        default=5000.0,
        description="Longest time to the first token of a stream, in milliseconds; null: only the gateway's limits.",
    )
    plain_timeout_ms: Milliseconds | None = Field(
        default=None, description="Longest time to a whole plain answer, in milliseconds; null: the gateway's limits."
    )
    grace_ms: float = Field(
        default=1000.0,
        ge=0,
        le=600_000,
        description="weighted and quality: how long answers are collected after the first, in milliseconds.",
    )
    max_attempts: int = Field(
        default=MAX_ATTEMPTS, ge=1, le=MAX_ATTEMPTS, description="Attempts a request at most, the first included."
    )
    delay: Delay = Field(default=Delay(), description="hedge: when the next candidate is started.")
    budget_ratio: float = Field(
        default=0.05,
        ge=0,
        le=MAX_ATTEMPTS - 1,
        description="Extra attempts per request at most, over time: 0.05 is one in twenty requests.",
    )
    budget_burst: float = Field(
        default=20.0, ge=1, le=10_000, description="Extra attempts that may come at once after a quiet time."
    )
    same_candidate: bool = Field(
        default=True,
        description="An extra attempt may go to a candidate (in a group, a deployment) that runs already when there is no "
        "other.",
    )
    allow_non_repeatable: bool = Field(
        default=False, description="Race requests with side effects too; see side_effect_tools."
    )


class CandidateConfig(Section):
    """Who takes part in the races of a virtual model."""

    target: Name = Field(description="A model group or a deployment id of the gateway.")
    model: Name | None = Field(
        default=None, description="Only the deployments of the target with this provider model, without the prefix."
    )
    priority: int = Field(default=0, ge=-1000, le=1000, description="Lower is started first.")
    weight: float = Field(default=1.0, gt=0, le=1000, description="Factor on its score.")


class VirtualModel(RaceSettings):
    """A model name of ours, served by racing candidates."""

    name: Name = Field(description="What clients ask for.")
    display_name: Text = Field(default="", description="For people.")
    description: Text = Field(default="", description="For people.")
    candidates: tuple[CandidateConfig, ...] = Field(
        max_length=20, description="Model groups or deployments, as text or with more settings; at least one."
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_candidates(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("candidates"), list | tuple):
            candidates = [{"target": one} if isinstance(one, str) else one for one in value["candidates"]]
            return {**value, "candidates": candidates}
        return value

    @field_validator("candidates")
    @classmethod
    def _not_empty(cls, candidates: tuple[CandidateConfig, ...]) -> tuple[CandidateConfig, ...]:
        # As min_length it would also be said of a list whose entries are wrong.
        if not candidates:
            raise ValueError("name at least one model group or deployment")
        return candidates

    @model_validator(mode="after")
    def _budget_is_said(self) -> Self:
        _check_budget(self)
        return self

    @property
    def extra_at_once(self) -> int:
        """Extra attempts that a race which starts all candidates at once makes; the only one races its deployments."""
        return min(max(2, len(self.candidates)), self.max_attempts) - 1


class GroupRace(RaceSettings):
    """Racing for a model group of the gateway, whose clients change nothing."""

    timeout_ms: Milliseconds | None = Field(
        default=None,
        description="Longest time to the first token of a stream, in milliseconds; null: only the gateway's limits.",
    )

    @model_validator(mode="after")
    def _budget_is_said(self) -> Self:
        _check_budget(self)
        return self

    @property
    def extra_at_once(self) -> int:
        """Extra attempts that a race which starts all deployments at once makes at least."""
        return min(2, self.max_attempts) - 1


class Budget(Section):
    """The bucket over all races of a worker."""

    ratio: float | None = Field(
        default=None,
        ge=0,
        le=MAX_ATTEMPTS - 1,
        description="Extra attempts per raced request at most; null: what each race may have by itself.",
    )
    burst: float = Field(
        default=20.0, ge=1, le=100_000, description="Extra attempts of all races that may come at once."
    )


class RacingConfig(PluginConfig):
    """Which names are raced, and how."""

    defaults: RaceSettings = Field(
        default=RaceSettings(), description="Settings of all races; a model or group overrides them one by one."
    )
    models: tuple[VirtualModel, ...] = Field(default=(), max_length=1000, description="Virtual models.")
    groups: Mapping[Name, GroupRace] = Field(
        default={}, description="Model groups of the gateway to race, with settings."
    )
    default_model: Name | None = Field(
        default=None,
        description="Virtual model for requests that name no model at all, whatever models their key is restricted to; "
        "null refuses them as before.",
    )
    budget: Budget = Field(default=Budget(), description="The bucket over all races of a worker.")
    side_effect_tools: tuple[Pattern, ...] = Field(
        default=("mcp", "code_interpreter"),
        description="Names of functions, or types of hosted tools, that must not run twice; with * ? and [...].",
    )
    half_life_s: float = Field(
        default=600.0, ge=10, le=30 * 86_400, description="After so many seconds an observation counts half."
    )
    share_interval_s: float = Field(
        default=5.0, ge=0.1, le=300, description="Seconds between two exchanges of observations with the store."
    )
    performance_file: Path | None = Field(
        default=None,
        description="JSON file: read at the start when the store knows nothing yet, written while running.",
    )
    export_interval_s: float = Field(
        default=60.0, ge=1, le=86_400, description="Seconds between two writings of performance_file."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        defaults = value.get("defaults") or {}
        if isinstance(defaults, BaseModel):
            defaults = defaults.model_dump(exclude_unset=True)
        if not isinstance(defaults, Mapping):
            return value
        defaults = _sound(defaults)
        made = dict(value)
        models, groups = value.get("models"), value.get("groups")
        if isinstance(models, list | tuple):
            made["models"] = [_over(defaults, one) for one in models]
        if isinstance(groups, list | tuple):
            if odd := [one for one in groups if not isinstance(one, str)]:
                raise ValueError(f"groups: as a list it has names only, not {odd[0]!r}; with settings it is a mapping")
            groups = dict.fromkeys(groups)
        if isinstance(groups, Mapping):
            for name, one in groups.items():
                if not isinstance(one, Mapping | BaseModel | None):
                    raise ValueError(  # noqa: TRY004  # pydantic reports this one
                        f"groups: {name!r} needs settings, {{}} for the defaults, not {one!r}; a group that is not to be "
                        "raced is left out"
                    )
            made["groups"] = {name: _over(defaults, {} if one is None else one) for name, one in groups.items()}
        return made

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1} | (set(names) & set(self.groups)))
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice among models and groups")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(f"default_model: {self.default_model!r} is none of the virtual models: {sorted(names)}")
        for model in self.models:
            if clash := next((c.target for c in model.candidates if c.target in names), None):
                raise ValueError(f"models: a candidate of {model.name!r} is the virtual model {clash!r} itself")
        return self

    @model_validator(mode="after")
    def _budget_is_enough(self) -> Self:
        races: dict[str, VirtualModel | GroupRace] = {**self.groups, **{model.name: model for model in self.models}}
        for name, race in races.items():
            extra = race.extra_at_once
            if race.strategy not in TOGETHER or extra <= 0:
                continue
            if self.budget.ratio is not None and self.budget.ratio < race.budget_ratio:
                raise ValueError(
                    f"budget: {name!r} may make {race.budget_ratio:g} extra attempts per request (budget_ratio), all "
                    f"races together {self.budget.ratio:g} (budget.ratio): raise it, or leave it out"
                )
            if self.budget.burst < extra:
                raise ValueError(
                    f"budget: {name!r} starts {extra} extra attempts at once, all races together may start "
                    f"{self.budget.burst:g} (budget.burst)"
                )
        return self


def _sound(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that are right; a wrong one is an error under ``defaults`` alone, where it was written."""
    try:
        RaceSettings.model_validate(dict(defaults))
    except ValidationError as err:
        wrong = {detail["loc"][0] for detail in err.errors(include_url=False)}
        return {key: value for key, value in defaults.items() if key not in wrong}
    return dict(defaults)


def _over(defaults: Mapping[str, Any], own: Any) -> Any:
    """Return settings over the defaults, one by one; what is no mapping is left for the schema to refuse."""
    if isinstance(own, BaseModel):
        own = own.model_dump(exclude_unset=True)
    if not isinstance(own, Mapping):
        return own
    made = {**defaults, **own}
    if isinstance(defaults.get("delay"), Mapping) and isinstance(own.get("delay"), Mapping):
        made["delay"] = {**defaults["delay"], **own["delay"]}
    return made


def _check_budget(race: VirtualModel | GroupRace) -> None:
    """Refuse a strategy whose extra attempts nobody has allowed."""
    extra = race.extra_at_once
    if race.strategy not in TOGETHER or extra <= 0:
        return
    if "budget_ratio" not in race.model_fields_set or race.budget_ratio == 0:
        raise ValueError(
            f"the strategy {race.strategy!r} starts all candidates at once: say with budget_ratio how many extra "
            f"attempts a request may make on average (here up to {extra}; less races only some of the requests, "
            "0 none of them)"
        )
    if race.budget_burst < extra:
        raise ValueError(
            f"the strategy {race.strategy!r} starts {extra} extra attempts at once, budget_burst allows "
            f"{race.budget_burst:g}"
        )
