"""The definition of an experiment, as it is written in the configuration or sent over HTTP.

Two kinds. A rollout has one ``canary`` and a plan of ``steps`` (or a ``ramp``); a plain A/B experiment has ``arms`` with
fixed weights. Everything else is the same for both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from pointsman.config import Section

from .assignment import FULL_BP, Hasher

STABLE: Final = "stable"
CANARY: Final = "canary"
MAX_STEPS: Final = 200
#: With these a canary like stable is usually promoted within a day at one request per second.
DEFAULT_STEPS: Final = (5.0, 25.0, 50.0, 100.0)

NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")

Name: TypeAlias = Annotated[str, StringConstraints(pattern=NAME)]
Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Percent: TypeAlias = Annotated[float, Field(ge=0, le=100)]

_HEADER: Final = re.compile(r"^header:[a-z0-9-]{1,100}$")
_UNITS: Final = ("request", "key", "end_user", "session")
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "x-api-key", "api-key", "x-litellm-api-key"})


def basis_points(percent: float) -> int:
    """Return a percentage in 1/10 000.

    Raises:
        ValueError: it has more than two decimals.
    """
    points = round(percent * FULL_BP / 100)
    if abs(points - percent * FULL_BP / 100) > 1e-6:  # noqa: PLR2004  # rounding of a decimal fraction
        raise ValueError(
            f"{percent} % is finer than 0.01 %, the resolution of the assignment; use at most two decimals"
        )
    return points


class Version(Section):
    """A version of the model in the registry plugin."""

    version: Text = Field(description="The version's id.")


#: A model group, a deployment id, or a registered version.
Target: TypeAlias = Text | Version


class Arm(Section):
    """One arm of a plain A/B experiment."""

    target: Target = Field(description="A model group, a deployment id, or {version: id}.")
    percent: Percent = Field(description="Share of the units, in percent, at most two decimals.")


class Ramp(Section):
    """Steps of equal size."""

    initial_percent: float = Field(gt=0, le=100, description="Weight of the first step, in percent.")
    step_percent: float = Field(gt=0, le=100, description="Increase of the weight per step, in percent.")
    max_percent: float = Field(default=100, gt=0, le=100, description="Weight of the last step, in percent.")

    def percents(self) -> list[float]:
        """Return the weights of the steps in percent.

        Raises:
            ValueError: the first is above the maximum, there are more than 200, or one is too fine.
        """
        first, size, last = (basis_points(p) for p in (self.initial_percent, self.step_percent, self.max_percent))
        if first > last:
            raise ValueError(f"initial_percent {self.initial_percent} is above max_percent {self.max_percent}")
        points = [*range(first, last, size), last]
        if len(points) > MAX_STEPS:
            raise ValueError(
                f"a ramp of {len(points)} steps is too long; at most {MAX_STEPS} are allowed, so raise step_percent"
            )
        return [point * 100 / FULL_BP for point in points]


class MetricName(StrEnum):
    """The metrics of a comparison."""

    ERROR_RATE = "error_rate"
    DISCONNECT_RATE = "disconnect_rate"
    SCORE = "score"
    LATENCY_MS = "latency_ms"
    FIRST_TOKEN_MS = "first_token_ms"  # noqa: S105  # a duration
    TOKENS_PER_S = "tokens_per_s"
    COST_USD_MICROS = "cost_usd_micros"


#: Shares of the requests.
RATES: Final = frozenset({MetricName.ERROR_RATE, MetricName.DISCONNECT_RATE})
#: These lie between 0 and 1; ``tolerance`` and ``margin`` are absolute. For the others they are relative.
BOUNDED: Final = RATES | {MetricName.SCORE}

_DEFAULTS: Final[dict[MetricName, dict[str, Any]]] = {
    MetricName.ERROR_RATE: {"statistic": "mean", "tolerance": 0.0, "margin": 0.05},
    MetricName.DISCONNECT_RATE: {"statistic": "mean", "tolerance": 0.0, "margin": 0.05},
    MetricName.SCORE: {"statistic": "mean", "tolerance": 0.0, "margin": 0.05},
    MetricName.LATENCY_MS: {"statistic": "p90", "tolerance": 0.10, "margin": 0.25},
    MetricName.FIRST_TOKEN_MS: {"statistic": "p90", "tolerance": 0.10, "margin": 0.25},
    MetricName.TOKENS_PER_S: {"statistic": "p50", "tolerance": 0.10, "margin": 0.25},
    MetricName.COST_USD_MICROS: {"statistic": "mean", "tolerance": 0.10, "margin": 0.25},
}


class Metric(Section):
    """One comparison of the canary with stable.

    It fails when the canary is shown to be worse by more than ``tolerance``. It passes when the canary is shown to be
    worse by less than ``margin``, or not worse, and there is no evidence for a fail.
    """

    metric: MetricName = Field(description="The metric.")
    statistic: str = Field(
        default="mean",
        pattern=r"^(mean|p[1-9][0-9]?)$",
        description="'mean', or a quantile such as 'p90' (of latency, first token, speed or cost).",
    )
    tolerance: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Deterioration that is not harm yet. Rates and score: absolute (0.01 is one point); else relative.",
    )
    margin: float = Field(
        default=0.05,
        gt=0,
        le=10,
        description="Deterioration that must be ruled out before a pass; at least the tolerance, in the same unit.",
    )
    required: bool = Field(
        default=True, description="false: the metric can fail the canary but is not needed for a pass."
    )
    share: float = Field(default=1.0, gt=0, le=1000, description="Share of alpha, relative to the other metrics.")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            raw = {"metric": raw}
        if isinstance(raw, dict) and raw.get("metric") in _DEFAULTS:
            usual = _DEFAULTS[raw["metric"]]
            tolerance = raw.get("tolerance")
            if isinstance(tolerance, int | float):
                usual = {**usual, "margin": max(usual["margin"], tolerance)}
            raw = {**usual, **raw}
        return raw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.margin < self.tolerance:
            raise ValueError(
                f"margin {self.margin} is below tolerance {self.tolerance}; it must be at least the tolerance"
            )
        if self.metric in BOUNDED and self.statistic != "mean":
            raise ValueError(
                f"statistic {self.statistic!r} does not apply to {self.metric}, which is compared by its mean; remove it"
            )
        return self

    @property
    def quantile(self) -> float | None:
        """The quantile, 0 to 1, or None for the mean."""
        return None if self.statistic == "mean" else int(self.statistic[1:]) / 100

    @property
    def key(self) -> str:
        """Names the comparison within its experiment."""
        return f"{self.metric}:{self.statistic}"


class Filter(Section):
    """Which requests take part: those that match every field that is set."""

    tenant: Text | None = Field(default=None, description="The caller's tenant.")
    key: Text | None = Field(default=None, description="The caller's key: its alias or LiteLLM's hash.")
    headers: dict[Annotated[str, StringConstraints(to_lower=True, min_length=1)], str] = Field(
        default={}, description="Request headers and their exact values."
    )


class Gates(Section):
    """Webhooks of an experiment, by their names in the plugin's ``webhooks``."""

    before_step: Name | None = Field(default=None, description="Asked before each step.")
    before_promotion: Name | None = Field(default=None, description="Asked before the promotion.")
    after_rollback: Name | None = Field(default=None, description="Notified after a rollback; its verdict is ignored.")

    def names(self) -> list[str]:
        """Return the names of the webhooks that are set."""
        return [name for name in (self.before_step, self.before_promotion, self.after_rollback) if name is not None]

    def at(self, gate: str) -> str | None:
        """Return the webhook to ask at one of the fields' names, or None."""
        webhook: str | None = getattr(self, gate)
        return webhook


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a rollout.

    Attributes:
        weight_bp: The canary's weight, in 1/10 000.
        waits: Whether the rollout pauses after it until ``resume``.
    """

    weight_bp: int
    waits: bool = False


Step: TypeAlias = Annotated[float, Field(gt=0, le=100)] | Literal["pause"]


class Experiment(Section):
    """One experiment."""

    name: Name = Field(description="Lower-case letters, digits, hyphens and underscores.")
    model: Text = Field(description="The model name that clients request.")
    stable: Target | None = Field(
        default=None, description="Target of the stable arm; null: where the request would go without the experiment."
    )
    canary: Target | None = Field(default=None, description="Rollout: target of the canary arm.")
    arms: dict[Name, Arm] | None = Field(
        default=None, description="A/B: the arms other than stable, with fixed weights."
    )
    unit: str = Field(
        default="request",
        description="Unit of the assignment, which stays on one arm: request, key, end_user, session or header:<name>.",
    )
    salt: Text | None = Field(default=None, description="Changes which units are assigned first; null: the name.")
    salted: bool = Field(
        default=True,
        description="false: plain FNV-1a-64 of the unit in 1000 buckets, the same units in every experiment.",
    )
    filter: Filter = Field(default=Filter(), description="Which requests of the model take part; empty: all.")
    steps: tuple[Step, ...] | None = Field(
        default=None,
        max_length=MAX_STEPS,
        description="Rollout: increasing weights in percent; 'pause' waits for 'resume'. null: [5, 25, 50, 100], with "
        "which a canary like stable is usually promoted within a day at one request per second.",
    )
    ramp: Ramp | None = Field(default=None, description="Rollout: steps of equal size, instead of steps.")
    interval_s: float = Field(
        default=600,
        gt=0,
        le=30 * 86_400,
        description="Shortest duration of a step, in seconds; longer than the longest request.",
    )
    min_samples: int = Field(
        default=50, ge=1, le=10_000_000, description="Observations of each arm that a pass needs, per step."
    )
    inconclusive_limit_s: float = Field(
        default=7 * 86_400,
        gt=0,
        le=90 * 86_400,
        description="Time after the interval until an undecided step pauses, in seconds; a week, since evidence needs requests and these may be rare.",
    )
    inconclusive_samples: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000_000,
        description="Observations of an arm after which an undecided step pauses before that time: ten times what a healthy one needs.",
    )
    window_s: float = Field(
        default=86_400,
        gt=0,
        le=90 * 86_400,
        description="Statistics restart after this time within a step and count for two windows, in seconds; a day, so that rare requests add up.",
    )
    window_samples: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000_000,
        description="Statistics restart before that time after this many observations of an arm, so that a new failure is not hidden by a long good record.",
    )
    metrics: tuple[Metric, ...] = Field(
        default=(Metric(metric=MetricName.ERROR_RATE), Metric(metric=MetricName.LATENCY_MS)),
        min_length=1,
        max_length=16,
        description="Metrics of the comparison.",
    )
    alpha: float = Field(
        default=0.01, gt=0, lt=1, description="Probability that a harmless canary ever fails, for the whole rollout."
    )
    beta: float = Field(
        default=0.05, gt=0, lt=1, description="Probability that a canary at the margin passes a metric of a step."
    )
    min_success_ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Success rate, 0 to 1, that an arm must have whatever stable does: below it no step passes, and an arm shown to be below it fails; null: only the comparison.",
    )
    pass_on: Literal["evidence", "samples"] = Field(
        default="evidence",
        description="A pass needs 'evidence' (harm beyond the margin is ruled out) or 'samples' (min_samples without a fail).",
    )
    on_fail: Literal["rollback", "pause", "report"] | None = Field(
        default=None, description="Reaction to a fail; null: rollback for a rollout, report for A/B."
    )
    fallback_to_stable: bool = Field(
        default=False,
        description="Let stable answer when the assigned arm fails; it still counts as the arm's failure.",
    )
    gates: Gates = Field(
        default=Gates(), description="Webhooks that are asked before steps and promotion, or notified of a rollback."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_arms()
        self._check_unit()
        self._check_plan()
        keys = [metric.key for metric in self.metrics]
        if len(set(keys)) < len(keys):
            raise ValueError("metrics: the same statistic of the same metric is listed twice")
        if not any(metric.required for metric in self.metrics):
            raise ValueError("metrics: at least one must be required, else no step can pass")
        if any(name in _CREDENTIALS for name in self.filter.headers):
            raise ValueError("filter.headers: credentials cannot be matched; use filter.key instead")
        return self

    def _check_arms(self) -> None:
        if (self.canary is None) == (self.arms is None):
            raise ValueError("give either 'canary' (a rollout) or 'arms' (plain A/B)")
        if self.arms is not None:
            if not self.arms:
                raise ValueError("arms: name at least one arm other than stable")
            if STABLE in self.arms:
                raise ValueError(
                    "arms: 'stable' is not an arm here; set its target with the key 'stable', it gets the remaining weight"
                )
            if sum(basis_points(arm.percent) for arm in self.arms.values()) > FULL_BP:
                raise ValueError("arms: the percentages add up to more than 100")
        targets = list(self.targets.values())
        if self.stable is not None:
            targets.append(self.stable)
        for index, target in enumerate(targets):
            if target in targets[:index]:
                raise ValueError("stable and every other arm need different targets")
        if self.stable is None and self.model in targets:
            raise ValueError(f"an arm's target is {self.model!r} itself, which is where stable goes")

    def _check_unit(self) -> None:
        if self.unit not in _UNITS and not _HEADER.match(self.unit):
            raise ValueError(f"unit: {self.unit!r} is not allowed; use {', '.join(_UNITS)} or header:<name>")
        if self.unit.removeprefix("header:") in _CREDENTIALS:
            raise ValueError("unit: credentials cannot be a unit; use 'key' instead")

    def _check_plan(self) -> None:
        if self.arms is not None:
            if self.steps is not None or self.ramp is not None:
                raise ValueError("'steps' and 'ramp' belong to a rollout; an A/B experiment has fixed weights")
            return
        if self.steps is not None and self.ramp is not None:
            raise ValueError("give either 'steps' or 'ramp'")
        if self.ramp is not None:
            self.ramp.percents()
        if self.steps is not None:
            weights = [basis_points(step) for step in self.steps if step != "pause"]
            if not weights or self.steps[0] == "pause":
                raise ValueError("steps: must begin with a weight")
            if any(after <= before for before, after in pairwise(weights)):
                raise ValueError("steps: the weights must increase")
            if self.steps[-1] == "pause" and weights[-1] == FULL_BP:
                raise ValueError("steps: 'pause' after 100 % has no effect; put it before 100")
            if any(a == b == "pause" for a, b in pairwise(self.steps)):
                raise ValueError("steps: two pauses follow each other")

    @property
    def targets(self) -> dict[str, Target]:
        """The arms other than stable and their targets, in the order of their buckets."""
        if self.arms is not None:
            return {name: arm.target for name, arm in self.arms.items()}
        assert self.canary is not None  # noqa: S101  # checked at construction
        return {CANARY: self.canary}

    @property
    def written(self) -> dict[str, Target]:
        """All targets that are set, by their keys in the definition."""
        targets: dict[str, Target | None] = {"stable": self.stable, "canary": self.canary}
        targets |= {f"arms.{name}.target": arm.target for name, arm in (self.arms or {}).items()}
        return {key: target for key, target in targets.items() if target is not None}

    @property
    def failing(self) -> Literal["rollback", "pause", "report"]:
        """The reaction to a fail."""
        return self.on_fail or ("report" if self.arms is not None else "rollback")

    @property
    def hasher(self) -> Hasher:
        """Puts units into buckets."""
        return Hasher.salted(self.salt or self.name) if self.salted else Hasher.unsalted()

    def plan(self) -> tuple[PlannedStep, ...]:
        """Return the steps of a rollout, in order; none for A/B."""
        if self.arms is not None:
            return ()
        steps: tuple[Step, ...] = self.steps or DEFAULT_STEPS
        if self.ramp is not None:
            steps = tuple(self.ramp.percents())
        planned: list[PlannedStep] = []
        for step in steps:
            if isinstance(step, str):
                planned[-1] = PlannedStep(planned[-1].weight_bp, waits=True)
            else:
                planned.append(PlannedStep(basis_points(step)))
        return tuple(planned)

    def rivals(self, other: Experiment) -> bool:
        """Say whether the other experiment matches the same requests."""
        return self.model == other.model and self.filter == other.filter
