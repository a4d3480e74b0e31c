"""What the fields of a version and of an activation may hold, and how a request that breaks the rules is refused."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pointsman.errors import InvalidInput

MAX_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 128
MAX_VERSION_CHARS: Final = 64
MAX_PATH_CHARS: Final = 256
MAX_FORMAT_CHARS: Final = 64
MAX_WHO_CHARS: Final = 128
MAX_REASON_CHARS: Final = 500
MAX_METRICS: Final = 100
MAX_HISTORY: Final = 1000
MAX_SHOWN: Final = 5

# Control characters, surrogates, and line and paragraph separators: none of them can be shown or sent reliably.
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})

M = TypeVar("M", bound=BaseModel)


def _clean(text: str) -> str:
    if any(unicodedata.category(char) in _UNPRINTABLE for char in text):
        raise ValueError("must not contain control characters")
    if text != text.strip():
        raise ValueError("must not begin or end with white space")
    return text


def _addressable(text: str) -> str:
    if any(part in {"", ".", ".."} for part in text.split("/")):
        raise ValueError("must not contain '//', '.' or '..' between slashes, nor begin or end with a slash")
    return text


def _header_safe(text: str) -> str:
    if not all("!" <= char <= "~" for char in text):
        raise ValueError("must be visible ASCII characters without spaces: it is sent as a response header")
    return text


Id = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_clean), AfterValidator(_addressable)
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_clean)]
VersionText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_VERSION_CHARS), AfterValidator(_header_safe)
]
Path = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATH_CHARS), AfterValidator(_clean)]
Format = Annotated[str, StringConstraints(max_length=MAX_FORMAT_CHARS), AfterValidator(_clean)]
Who = Annotated[str, StringConstraints(min_length=1, max_length=MAX_WHO_CHARS), AfterValidator(_clean)]
Reason = Annotated[str, StringConstraints(max_length=MAX_REASON_CHARS), AfterValidator(_clean)]
Metrics = Annotated[dict[Name, float], Field(max_length=MAX_METRICS)]


class Strict(BaseModel):
    """Base of what comes in as JSON or YAML: unknown fields are errors, and nothing is converted silently."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class VersionSpec(Strict):
    """A version to register, from the configuration or from ``POST /versions``."""

    id: Id = Field(description="Unique among all versions of all names.")
    name: Name = Field(description="What clients ask for as their model.")
    version: VersionText = Field(description="Shown to clients in the response header x-pointsman-version.")
    path: Path = Field(description="A model group or a deployment id of the gateway's configuration.")
    format: Format = Field(default="", description="Free text for people.")
    metrics: Metrics = Field(default_factory=dict, description="Numbers measured elsewhere, for example an evaluation.")
    active: bool = Field(default=False, description="Make it the active version of its name at once.")


class Signature(Strict):
    """The optional body of what goes into the history."""

    who: Who | None = None
    reason: Reason = ""


class _Query(BaseModel):
    # A query is text, so numbers and booleans have to be read from it.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class NoQuery(_Query):
    """A request without parameters."""


class NameQuery(_Query):
    """Narrowed to one name, or not."""

    name: str | None = None


class RollbackQuery(_Query):
    """One name."""

    name: str


class HistoryQuery(_Query):
    """The newest entries, of one name or of all."""

    name: str | None = None
    limit: int = Field(default=100, ge=1, le=MAX_HISTORY)


class DeleteQuery(_Query):
    """Whether an active version may be deleted too."""

    force: bool = False


class UserHeader(_Query):
    """Who is behind a request: the admin key's user or alias, as the gateway's bridge says."""

    who: Who


def parse_json(model: type[M], raw: bytes) -> M:
    """Read a request's body; an empty one counts as ``{}``.

    Raises:
        InvalidInput: naming the field, or ``body`` when it is no JSON object at all.
    """
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as err:
        raise _refusal(model, err, whole="body") from err


def parse_query(model: type[M], query: Mapping[str, str]) -> M:
    """Read a request's query parameters.

    Raises:
        InvalidInput: naming the parameter.
    """
    try:
        return model.model_validate(dict(query))
    except ValidationError as err:
        raise _refusal(model, err, whole="query") from err


def nearest(text: str, known: Iterable[str], *, shown: Iterable[str] | None = None) -> str:
    """Return the end of an error message: the nearest known text, else some known ones, else nothing.

    Args:
        text: What was given.
        known: What would have been right.
        shown: Those of them that mean something to people (generated ids do not); None for all.
    """
    names = sorted(set(known))
    if close := difflib.get_close_matches(text, names, n=1):
        return f"; did you mean {close[0]!r}?"
    listed = names if shown is None else sorted(set(shown))
    some = ", ".join(repr(name) for name in listed[:MAX_SHOWN])
    return f"; known: {some}{', ...' if len(listed) > MAX_SHOWN else ''}" if listed else ""


def _refusal(model: type[BaseModel], err: ValidationError, *, whole: str) -> InvalidInput:
    first = err.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]") or whole
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field" + nearest(field, model.model_fields)
    return InvalidInput(f"{field}: {message}", param=field)
