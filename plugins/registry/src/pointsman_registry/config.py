"""The registry's section of the configuration, and what the fields of a version may hold."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from pointsman.admin import printable
from pointsman.config import Section
from pointsman.plugin import PluginConfig

MAX_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 128
MAX_VERSION_CHARS: Final = 64
MAX_PATH_CHARS: Final = 256
MAX_FORMAT_CHARS: Final = 64
MAX_METRICS: Final = 100


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


class VersionSpec(Section):
    """A version to register, from the configuration or from ``POST /versions``. No value is converted."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    id: Id = Field(description="Unique among all versions of all names.")
    name: Name = Field(description="The model name that clients request.")
    version: VersionText = Field(
        description="Version text, sent to clients in the response header x-pointsman-version."
    )
    path: Path = Field(description="Model group or deployment id of the gateway that serves the version.")
    format: Format = Field(default="", description="Free text, not interpreted.")
    metrics: Metrics = Field(
        default_factory=dict, description="Numbers by name from outside the gateway, for example from an evaluation."
    )
    active: bool = Field(default=False, description="Make it the active version of its name immediately.")


class RegistryConfig(PluginConfig):
    """Initial versions, and how often workers read and write the store."""

    versions: tuple[VersionSpec, ...] = Field(
        default=(),
        description="Versions registered at every start if they are missing; never changed or activated again.",
    )
    poll_interval_s: float = Field(
        default=0.5, ge=0.05, le=1.0, description="Seconds between two checks for changes made by other workers."
    )
    metrics_interval_s: float = Field(
        default=2.0, ge=0.1, le=60.0, description="Seconds between two writes of a worker's live metrics to the store."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[str] = set()
        active: dict[str, str] = {}
        for spec in self.versions:
            if spec.id in seen:
                raise ValueError(f"versions: the id {spec.id!r} is given twice")
            seen.add(spec.id)
            if spec.active and (other := active.setdefault(spec.name, spec.id)) != spec.id:
                raise ValueError(
                    f"versions: {other!r} and {spec.id!r} are both active, but {spec.name!r} can have one active version"
                )
        return self
