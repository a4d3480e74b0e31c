"""The canary's section of the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from pointsman.config import Section
from pointsman.plugin import PluginConfig
from pointsman.text import duration

from . import planning
from .assignment import FULL_BP
from .experiment import Experiment, Name

_ONE_A_SECOND: Final = 1.0


class Webhook(Section):
    """An HTTP gate: ``POST`` of JSON; the answer is ``{"verdict": "go" | "wait" | "rollback", "reason": "..."}``."""

    url: str = Field(max_length=2048, description="URL, http:// or https://.")
    headers: dict[str, SecretStr] = Field(
        default={}, description="Request headers; their values are never shown or stored."
    )
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Timeout of one attempt, in seconds.")
    attempts: int = Field(default=3, ge=1, le=10, description="Attempts before the default counts.")
    default: Literal["go", "wait", "rollback"] = Field(
        default="wait",
        description="Verdict when the webhook cannot be reached, or answers an error or an unknown verdict.",
    )

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url


class CanaryConfig(PluginConfig):
    """Experiments, the webhooks they may ask, and the intervals of the workers."""

    experiments: tuple[Experiment, ...] = Field(
        default=(),
        description="Experiments; the first that matches a request takes it. Each begins at the first start with it.",
    )
    webhooks: dict[Name, Webhook] = Field(
        default={}, description="Webhooks by the names that the gates of experiments refer to."
    )
    tick_s: float = Field(
        default=0.2,
        ge=0.02,
        le=0.5,
        description="Interval at which a worker flushes, decides and reads changes, in seconds; one without anything to do for "
        "5 s reads changes once a second.",
    )
    blind_limit_s: float = Field(
        default=30.0,
        ge=1,
        le=86_400,
        description="Time without the store after which experiments with on_fail: rollback go to stable, in seconds.",
    )

    def notes(self) -> Iterable[str]:
        """Return how many requests each rollout takes."""
        for experiment in self.experiments:
            if (note := _note(experiment)) is not None:
                yield f"experiment {experiment.name!r}: {note}"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for index, experiment in enumerate(self.experiments):
            for other in self.experiments[:index]:
                if other.name == experiment.name:
                    raise ValueError(
                        f"experiments[{index}]: the name {experiment.name!r} is used twice; names must be unique"
                    )
                if other.rivals(experiment):
                    raise ValueError(
                        f"experiments[{index}]: {experiment.name!r} and {other.name!r} have the same model and filter; narrow one of the filters"
                    )
            for webhook in experiment.gates.names():
                if webhook not in self.webhooks:
                    raise ValueError(
                        f"experiments[{index}].gates: there is no webhook {webhook!r}; define it in 'webhooks'"
                    )
        return self


def _note(experiment: Experiment) -> str | None:
    """Return how many requests a rollout takes and what comes then; None for A/B."""
    plan = experiment.plan()
    estimate = planning.planned(experiment, _ONE_A_SECOND)
    if estimate is None:
        return None
    if plan[0].weight_bp == FULL_BP:
        gated = experiment.gates.before_promotion is not None
        when = "as soon as its gate before_promotion allows it" if gated else "at once"
        return f"its first step is 100 %, so the canary is promoted {when}, without a comparison; add smaller steps before it"
    if estimate.requests is None or estimate.seconds is None:
        return "a canary that is like stable is never promoted by its comparisons alone"
    end = "is promoted" if plan[-1].weight_bp == FULL_BP else "has passed its last step and waits for 'promote'"
    return (
        f"about {estimate.requests} requests until a canary that is like stable {end}; "
        f"at one a second {duration(round(estimate.seconds))}"
    )
