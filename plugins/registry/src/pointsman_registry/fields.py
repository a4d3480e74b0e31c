"""What the fields of a version and the parameters of a query may hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pointsman.admin import Input, printable

MAX_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 128
MAX_VERSION_CHARS: Final = 64
MAX_PATH_CHARS: Final = 256
MAX_FORMAT_CHARS: Final = 64
MAX_METRICS: Final = 100
MAX_HISTORY: Final = 1000
MAX_SHOWN: Final = 5


def _clean(text: str) -> str:
    if text != text.strip():
        raise ValueError("must not begin or end with white space")
    return printable(text)


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


class NoQuery(Input):
    """A request without parameters."""


class NameQuery(Input):
    """Narrowed to one name, or not."""

    name: str | None = None


class RollbackQuery(Input):
    """One name."""

    name: str


class HistoryQuery(Input):
    """The newest entries, of one name or of all."""

    name: str | None = None
    limit: int = Field(default=100, ge=1, le=MAX_HISTORY)


class DeleteQuery(Input):
    """Whether an active version may be deleted too."""

    force: bool = False


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
