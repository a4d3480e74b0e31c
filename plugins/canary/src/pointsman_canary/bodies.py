"""What admin requests may contain."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from pointsman.admin import Input, Signed

from .experiment import Experiment, Name, Percent

MAX_AUDIT: Final = 1000
MAX_SCORES: Final = 1000


class Creation(Signed):
    """``POST /``."""

    experiment: Experiment


class Promotion(Signed):
    """``POST /{rollout}/promote``."""

    arm: Name | None = None


class Restart(Signed):
    """``POST /{rollout}/restart``."""

    experiment: Experiment | None = None


class Weights(Signed):
    """``POST /{rollout}/weight``: one percentage for the canary, or one for each of some arms."""

    percent: Percent | None = None
    percents: dict[Name, Percent] | None = None


class Score(Input):
    """What a judge thinks of one answer."""

    arm: Name
    score: float = Field(ge=0, le=1, description="1 is best.")
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        default=None, description="With it a score counts once, however often it is sent."
    )


class Scores(Input):
    """``POST /{rollout}/score``."""

    scores: tuple[Score, ...] = Field(min_length=1, max_length=MAX_SCORES)


class AuditQuery(Input):
    """``GET /{rollout}/audit``."""

    limit: int = Field(default=100, ge=1, le=MAX_AUDIT)


class DeleteQuery(Input):
    """``DELETE /{rollout}``."""

    force: bool = False
