"""The ``pointsman:`` section of a LiteLLM configuration, validated.

Every error names the file, the key path, the value, what is allowed and the nearest name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigError, PluginLoadError
from ..plugin import PluginConfig

SECTION: Final = "pointsman"
_ENV: Final = "os.environ/"
_NAME: Final = re.compile(r"^[a-z][a-z0-9-]*$")
_SECRET: Final = re.compile(r"key|token|secret|password|credential|url|dsn", re.IGNORECASE)
_SHOWN_CHARS: Final = 60

M = TypeVar("M", bound=BaseModel)


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoreConfig(_Section):
    """Where state is kept.

    ``memory``: lost with the worker. ``disk``: shared by all workers of one machine. ``redis``: shared by many machines.
    """

    backend: Literal["memory", "disk", "redis"] = "disk"
    path: str = Field(default=".pointsman", min_length=1, description="disk: directory, relative to the config file.")
    url: str | None = Field(default=None, description="redis: redis://[user:password@]host:port/db, or rediss://.")
    prefix: str = Field(
        default="pointsman", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="redis: first part of keys."
    )
    timeout_ms: int = Field(default=1000, ge=10, le=60_000, description="Longest wait for one operation.")


class TracingConfig(_Section):
    """Spans. Where they go is said by the standard ``OTEL_*`` variables; here only whether they are made at all."""

    enabled: bool = Field(default=True, description="False makes no spans even if OTEL_* variables are set.")


class HostConfig(_Section):
    """The whole section, before the plugins' own parts are validated by their own models."""

    store: StoreConfig = StoreConfig()
    tracing: TracingConfig = TracingConfig()
    flush_timeout_s: Annotated[
        float, Field(ge=0, le=300, description="Longest wait for settlements at shutdown, in seconds.")
    ] = 10.0
    journal_window_ms: Annotated[
        int,
        Field(ge=0, le=1000, description="Settlements that finish within this time share one write to the journal."),
    ] = 50
    plugins: Annotated[
        list[str | dict[str, dict[str, Any] | None]],
        Field(description="Plugins to use; the order is the order of every hook."),
    ] = []


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """One element of ``plugins:``.

    Attributes:
        name: The plugin.
        raw: Its section as written, environment references resolved.
        where: File and key path, for messages.
    """

    name: str
    raw: Mapping[str, Any]
    where: str

    @property
    def optional(self) -> bool:
        """Whether a failure to load leaves the plugin out instead of stopping the start."""
        return self.raw.get("optional") is True

    def validate(self, model: type[PluginConfig]) -> PluginConfig:
        """Validate the section with the plugin's own model.

        Raises:
            PluginLoadError: naming each wrong key.
        """
        try:
            return validate(model, self.raw, f"{self.where}.{self.name}")
        except ConfigError as err:
            raise PluginLoadError(self.name, str(err)) from err


@dataclass(frozen=True, slots=True)
class Settings:
    """A validated section.

    Attributes:
        host: The host's own part.
        entries: The plugins, in order.
        source: The file it comes from, for messages.
        base: The directory that relative paths start from.
    """

    host: HostConfig
    entries: tuple[PluginEntry, ...]
    source: str
    base: Path


def read(path: str | Path) -> Settings:
    """Read the section from a LiteLLM configuration file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or the section is missing or wrong.
    """
    file = Path(path)
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read: {err.strerror or err}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file}: is not YAML: {err}") from err
    section = document.get(SECTION) if isinstance(document, dict) else None
    return parse(section, str(file), file.resolve().parent)


def parse(section: object, source: str, base: Path) -> Settings:
    """Validate the section.

    Args:
        section: The value of the top-level key ``pointsman``.
        source: File name for messages.
        base: The directory that relative paths start from.

    Raises:
        ConfigError: naming each wrong key.
    """
    if section is None:
        raise ConfigError(f"{source}: has no top-level key '{SECTION}'; add it, with at least 'plugins: []'")
    where = f"{source}: {SECTION}"
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: must be a mapping, not {type(section).__name__}")
    section = dict(_resolve(section, where))
    host = validate(HostConfig, section, where)
    entries: list[PluginEntry] = []
    for index, element in enumerate(host.plugins):
        at = f"{where}.plugins[{index}]"
        if isinstance(element, str):
            name, raw = element, None
        elif len(element) == 1:
            ((name, raw),) = element.items()
        else:
            raise ConfigError(f"{at}: must be a name or one 'name: {{...}}', but has the keys {sorted(element)}")
        if not _NAME.match(name):
            raise ConfigError(f"{at}: {name!r} is no plugin name; allowed are lower-case letters, digits and hyphens")
        if name in {entry.name for entry in entries}:
            raise ConfigError(f"{at}: plugin {name!r} is listed twice; keep one entry")
        entries.append(PluginEntry(name, raw or {}, at))
    if host.store.backend == "redis" and not host.store.url:
        raise ConfigError(f"{where}.store.url: is needed for backend 'redis', for example redis://localhost:6379/0")
    return Settings(host, tuple(entries), source, base)


def _resolve(value: Any, where: str) -> Any:
    """Replace ``os.environ/NAME`` by the variable's value, wherever LiteLLM has not done so already."""
    if isinstance(value, str) and value.startswith(_ENV):
        name = value.removeprefix(_ENV)
        if name not in os.environ:
            raise ConfigError(f"{where}: the environment variable {name!r} is not set")
        return os.environ[name]
    if isinstance(value, Mapping):
        return {key: _resolve(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value


def validate(model: type[M], raw: Mapping[str, Any], where: str) -> M:
    """Validate a mapping with a model.

    Raises:
        ConfigError: one line per wrong key: key path, value, what is allowed, nearest name.
    """
    try:
        return model.model_validate(dict(raw))
    except ValidationError as err:
        raise ConfigError(
            "\n".join(_explain(model, detail, where) for detail in err.errors(include_url=False))
        ) from err


def _explain(model: type[BaseModel], detail: ErrorDetails, where: str) -> str:
    path = [
        part
        for part in detail["loc"]
        if not (isinstance(part, str) and part.startswith(("function-", "dict[", "list[")))
    ]
    location = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    if detail["type"] == "extra_forbidden":
        allowed = _fields(model, path[:-1])
        return (
            f"{location}: unknown key{_near(str(path[-1]), allowed)}; allowed: {', '.join(sorted(allowed)) or 'none'}"
        )
    if detail["type"] == "missing":
        return f"{location}: is missing"
    secret = any(_SECRET.search(str(part)) for part in path)
    shown = "***" if secret else repr(detail["input"])
    if len(shown) > _SHOWN_CHARS:
        shown = shown[:_SHOWN_CHARS] + "..."
    near = ""
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        near = _near(detail["input"], re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", ""))))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{location}: {shown} is not allowed{near}: {message[0].lower()}{message[1:]}"


def _near(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the field names of the (sub)model at a path, as far as it can be followed."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # A discriminator of a union: pydantic puts the branch's class name or tag into the path.
            continue
        current = _model_in(fields[part].annotation) or current
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _model_in(argument)) is not None:
            return found
    return None
