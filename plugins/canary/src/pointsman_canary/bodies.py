"""What admin requests may contain."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pointsman.errors import InvalidInput, nearest
from pointsman.explain import fields_at

from .experiment import Experiment, Name, Percent

MAX_AUDIT: Final = 1000
MAX_SCORES: Final = 1000

M = TypeVar("M", bound=BaseModel)

Who = Annotated[str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True, pattern=r"^[^\x00-\x1f]+$")]
Reason = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True)]


class _Body(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Signed(_Body):
    """The optional body of everything that goes into the audit trail."""

    who: Who | None = None
    reason: Reason = ""


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


class Score(_Body):
    """What a judge thinks of one answer."""

    arm: Name
    score: float = Field(ge=0, le=1, description="1 is best.")
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        default=None, description="With it a score counts once, however often it is sent."
    )


class Scores(_Body):
    """``POST /{rollout}/score``."""

    scores: tuple[Score, ...] = Field(min_length=1, max_length=MAX_SCORES)


class AuditQuery(_Body):
    """``GET /{rollout}/audit``."""

    limit: int = Field(default=100, ge=1, le=MAX_AUDIT)


class DeleteQuery(_Body):
    """``DELETE /{rollout}``."""

    force: bool = False


class UserHeader(_Body):
    """Who is behind a request: the admin key's user or alias, as the gateway's bridge says."""

    who: Who


def parse(model: type[M], raw: bytes) -> M:
    """Read a request's body; an empty one counts as ``{}``.

    Raises:
        InvalidInput: naming the field, or ``body`` when it is no JSON object at all.
    """
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as err:
        raise refusal(model, err, "body") from err


def refusal(model: type[BaseModel], err: ValidationError, whole: str) -> InvalidInput:
    """Return one complaint as an error for the client.

    Args:
        model: What was wanted.
        err: What pydantic found.
        whole: What to name when no field is at fault.
    """
    found = err.errors(include_url=False, include_context=False, include_input=False)
    # A field that is misspelt is missing as well; the misspelling says more.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    field = ".".join(str(part) for part in first["loc"] if part != "[key]") or whole
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        *path, key = first["loc"]
        message = f"is not a known field{nearest(str(key), fields_at(model, path))}"
    return InvalidInput(f"{field}: {message.removeprefix('Value error, ')}", param=field)
