"""The plugin's section of the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from pointsman.config import Section
from pointsman.plugin import PluginConfig

from .hedging import MAX_ATTEMPTS, TOGETHER, Strategy

Name = Annotated[str, StringConstraints(pattern=r"^\S(?:.{0,198}\S)?$")]
Text = Annotated[str, StringConstraints(max_length=2000)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


class Delay(Section):
    """Hedging delay: time to wait before starting the next attempt."""

    quantile_ratio: float = Field(
        default=0.95,
        ge=0.5,
        le=0.999,
        description="Quantile of the candidate's own time to the first token that is the delay, 0.5 to 0.999.",
    )
    floor_ms: float = Field(default=50.0, ge=0, le=3_600_000, description="Minimum delay, in milliseconds.")
    fixed_ms: Milliseconds = Field(
        default=1000.0, description="Delay of streams until min_samples are known, in milliseconds."
    )
    fixed_plain_ms: Milliseconds = Field(
        default=10_000.0,
        description="Delay of plain requests, which wait for the whole answer, until min_samples are known, in milliseconds.",
    )
    min_samples: float = Field(
        default=20, ge=1, le=100_000, description="Decayed samples from which a candidate's own quantile is used."
    )


class RaceSettings(Section):
    """How a race is run. Every key may also be set under ``defaults``."""

    strategy: Strategy = Field(
        default="hedge",
        description="hedge starts candidates one after another; first_wins, weighted and quality start all at once.",
    )
    timeout_ms: Milliseconds | None = Field(
        default=5000.0,
        description="Maximum time to the first token of a stream, in milliseconds; null: only the gateway's limits.",
    )
    plain_timeout_ms: Milliseconds | None = Field(
        default=None,
        description="Maximum time to a whole plain answer, in milliseconds; null: only the gateway's limits.",
    )
    grace_ms: float = Field(
        default=1000.0,
        ge=0,
        le=600_000,
        description="Time for which weighted and quality collect answers after the first, in milliseconds.",
    )
    max_attempts: int = Field(
        default=MAX_ATTEMPTS,
        ge=1,
        le=MAX_ATTEMPTS,
        description="Maximum number of attempts per request, the first included.",
    )
    delay: Delay = Field(default=Delay(), description="Hedging delay: when hedge starts the next candidate.")
    budget_ratio: float = Field(
        default=0.05,
        ge=0,
        le=MAX_ATTEMPTS - 1,
        description="Maximum extra attempts per request, over time: 0.05 allows one in twenty requests.",
    )
    budget_burst: float = Field(
        default=20.0, ge=1, le=10_000, description="Maximum number of extra attempts at once, after a quiet time."
    )
    same_candidate: bool = Field(
        default=True,
        description="Whether an extra attempt may go to a candidate (in a group, a deployment) that is already running when "
        "there is no other.",
    )
    allow_non_repeatable: bool = Field(
        default=False, description="Whether requests with side effects are raced too; see side_effect_tools."
    )


class CandidateConfig(Section):
    """A candidate of a virtual model's races."""

    target: Name = Field(description="Model group or deployment id of the gateway.")
    model: Name | None = Field(
        default=None,
        description="Provider model, without its prefix, that restricts the target to its deployments of this model.",
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Candidates of a lower value are started first, as with LiteLLM's `order`; where a larger number "
        "meant a higher priority before, turn the numbers around.",
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Factor on the candidate's score; 0 drains it: it is started only when no other candidate can serve.",
    )


class VirtualModel(RaceSettings):
    """A virtual model: a name that is served by racing candidates."""

    name: Name = Field(description="The model name that clients request.")
    display_name: Text = Field(default="", description="Display name, shown in GET /v1/models.")
    description: Text = Field(default="", description="Description, shown in GET /v1/models.")
    candidates: tuple[CandidateConfig, ...] = Field(
        max_length=20, description="Model groups or deployments, at least one, as names or with settings."
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
        # With min_length, pydantic would also report a list whose entries are wrong as empty.
        if not candidates:
            raise ValueError("name at least one model group or deployment")
        return candidates

    @model_validator(mode="after")
    def _budget_is_set(self) -> Self:
        _check_budget(self)
        return self

    @property
    def extra_at_once(self) -> int:
        """Extra attempts of a race that starts all candidates at once; a single candidate races its deployments."""
        return min(max(2, len(self.candidates)), self.max_attempts) - 1


class GroupRace(RaceSettings):
    """A raced model group of the gateway; its clients change nothing."""

    timeout_ms: Milliseconds | None = Field(
        default=None,
        description="Maximum time to the first token of a stream, in milliseconds; null: only the gateway's limits.",
    )

    @model_validator(mode="after")
    def _budget_is_set(self) -> Self:
        _check_budget(self)
        return self

    @property
    def extra_at_once(self) -> int:
        """Minimum number of extra attempts of a race that starts all deployments at once."""
        return min(2, self.max_attempts) - 1


class Budget(Section):
    """The bucket over all races of a worker."""

    ratio: float | None = Field(
        default=None,
        ge=0,
        le=MAX_ATTEMPTS - 1,
        description="Maximum extra attempts per raced request; null: as much as each race may make by itself.",
    )
    burst: float = Field(
        default=20.0, ge=1, le=100_000, description="Maximum number of extra attempts of all races at once."
    )


class RacingConfig(PluginConfig):
    """Which names are raced, and how."""

    defaults: RaceSettings = Field(
        default=RaceSettings(), description="Settings of all races; a model or group overrides them one by one."
    )
    models: tuple[VirtualModel, ...] = Field(default=(), max_length=1000, description="Virtual models.")
    groups: Mapping[Name, GroupRace] = Field(
        default={}, description="Model groups of the gateway that are raced, with their settings."
    )
    default_model: Name | None = Field(
        default=None,
        description="Virtual model for requests without a model name, whatever models their key is restricted to; null "
        "rejects them.",
    )
    budget: Budget = Field(default=Budget(), description="The bucket over all races of a worker.")
    side_effect_tools: tuple[Pattern, ...] = Field(
        default=("mcp", "code_interpreter"),
        description="Patterns (* ? [...]) of function names and hosted tool types that must not run twice.",
    )
    half_life_s: float = Field(
        default=600.0, ge=10, le=30 * 86_400, description="Half-life of observations, in seconds."
    )
    share_interval_s: float = Field(
        default=5.0, ge=0.1, le=300, description="Seconds between two exchanges of observations with the store."
    )
    performance_file: Path | None = Field(
        default=None,
        description="JSON file of observations, read at the start if the store has none, and written regularly.",
    )
    export_interval_s: float = Field(
        default=60.0, ge=1, le=86_400, description="Seconds between two writes of performance_file."
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
        defaults = _valid(defaults)
        merged = dict(value)
        models, groups = value.get("models"), value.get("groups")
        if isinstance(models, list | tuple):
            merged["models"] = [_over(defaults, one) for one in models]
        if isinstance(groups, list | tuple):
            if odd := [one for one in groups if not isinstance(one, str)]:
                raise ValueError(f"groups: a list has names only, not {odd[0]!r}; write a mapping to give settings")
            groups = dict.fromkeys(groups)
        if isinstance(groups, Mapping):
            for name, one in groups.items():
                if not isinstance(one, Mapping | BaseModel | None):
                    raise ValueError(  # noqa: TRY004  # pydantic reports this one
                        f"groups: {name!r} needs settings ({{}} for the defaults), not {one!r}; remove the group if it is "
                        "not to be raced"
                    )
            merged["groups"] = {name: _over(defaults, {} if one is None else one) for name, one in groups.items()}
        return merged

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1} | (set(names) & set(self.groups)))
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice among models and groups; a name is raced in one way only")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(
                f"default_model: {self.default_model!r} is not a virtual model; those are: {', '.join(sorted(names)) or 'none'}"
            )
        for model in self.models:
            if clash := next((c.target for c in model.candidates if c.target in names), None):
                raise ValueError(f"models: a candidate of {model.name!r} is the virtual model {clash!r} itself")
        return self

    def warnings(self) -> Iterable[str]:
        """Name the virtual models whose priorities may have been meant the other way round."""
        for number, model in enumerate(self.models):
            written = [candidate.priority for candidate in model.candidates]
            if written != sorted(written) and written == sorted(written, reverse=True):
                first = min(model.candidates, key=lambda candidate: candidate.priority)
                yield (
                    f"models[{number}].candidates: {first.target!r}, the last one, is started first, since lower values of "
                    "priority come first, as with LiteLLM's `order`; if larger numbers were meant to be preferred, turn "
                    "them around"
                )

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
                    f"{self.budget.burst:g}: raise budget.burst"
                )
        return self


def _valid(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid defaults; an invalid one is an error under ``defaults`` alone, where it was written."""
    try:
        RaceSettings.model_validate(dict(defaults))
    except ValidationError as err:
        invalid = {detail["loc"][0] for detail in err.errors(include_url=False)}
        return {key: value for key, value in defaults.items() if key not in invalid}
    return dict(defaults)


def _over(defaults: Mapping[str, Any], own: Any) -> Any:
    """Return settings merged over the defaults, one by one; a value that is not a mapping is left for the schema."""
    if isinstance(own, BaseModel):
        own = own.model_dump(exclude_unset=True)
    if not isinstance(own, Mapping):
        return own
    merged = {**defaults, **own}
    if isinstance(defaults.get("delay"), Mapping) and isinstance(own.get("delay"), Mapping):
        merged["delay"] = {**defaults["delay"], **own["delay"]}
    return merged


def _check_budget(race: VirtualModel | GroupRace) -> None:
    """Refuse a strategy that starts all candidates at once without a budget for it."""
    extra = race.extra_at_once
    if race.strategy not in TOGETHER or extra <= 0:
        return
    if "budget_ratio" not in race.model_fields_set or race.budget_ratio == 0:
        raise ValueError(
            f"the strategy {race.strategy!r} starts all candidates at once: set budget_ratio to the extra attempts that "
            f"a request may make on average (here up to {extra}; a lower value races only some of the requests)"
        )
    if race.budget_burst < extra:
        raise ValueError(
            f"the strategy {race.strategy!r} starts {extra} extra attempts at once, budget_burst allows "
            f"{race.budget_burst:g}: raise it"
        )
