"""The ``pointsman:`` section of a LiteLLM configuration, validated.

Every error names the file, the key path, the value, what is allowed and the nearest name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import ConfigError, PluginLoadError
from ..explain import validate
from ..plugin import PluginConfig

SECTION: Final = "pointsman"
_ENV: Final = "os.environ/"
_NAME: Final = re.compile(r"^[a-z][a-z0-9-]*$")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


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

    @field_validator("path")
    @classmethod
    def _home(cls, path: str) -> str:
        return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises where there is no home directory

    @field_validator("url")
    @classmethod
    def _of_redis(cls, url: str | None) -> str | None:
        if url is None:
            return None
        allowed = "redis://[user:password@]host:port/db, rediss:// for TLS or unix://path"
        try:
            parts = urlsplit(url)
            readable = parts.port is None or parts.port > 0
        except ValueError:
            readable = False
        if not readable or parts.scheme not in _REDIS_SCHEMES:
            raise ValueError(f"it must be {allowed}, with special characters of the password percent-encoded")
        return url


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
        list[Any],
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


@dataclass(frozen=True, slots=True)
class Survey:
    """What could be read of a section, and everything that is wrong with it.

    Attributes:
        host: The host's own part, None when it is wrong.
        entries: The plugins that are named properly, in order; their own parts are not validated yet.
        problems: One line per wrong key.
    """

    host: HostConfig | None
    entries: tuple[PluginEntry, ...]
    problems: tuple[str, ...]


def parse(section: object, source: str, base: Path) -> Settings:
    """Validate the section.

    Args:
        section: The value of the top-level key ``pointsman``.
        source: File name for messages.
        base: The directory that relative paths start from.

    Raises:
        ConfigError: naming each wrong key.
    """
    found = survey(section, source)
    if found.host is None or found.problems:
        raise ConfigError("\n".join(found.problems))
    return Settings(found.host, found.entries, source, base)


def survey(section: object, source: str) -> Survey:
    """Read as much of the section as can be read, and say everything that is wrong with the host's part of it.

    Args:
        section: The value of the top-level key ``pointsman``.
        source: File name for messages.
    """
    where = f"{source}: {SECTION}"
    if section is None:
        return Survey(None, (), (f"{source}: has no top-level key '{SECTION}'; add it, with at least 'plugins: []'",))
    if not isinstance(section, Mapping):
        return Survey(None, (), (f"{where}: must be a mapping, not {type(section).__name__}",))
    problems: list[str] = []
    section = {key: _resolve(item, f"{where}.{key}", problems) for key, item in section.items()}
    host = None
    try:
        host = validate(HostConfig, section, where)
    except ConfigError as err:
        problems.append(str(err))
    if host is not None and host.store.backend == "redis" and not host.store.url:
        problems.append(f"{where}.store.url: is needed for backend 'redis', for example redis://localhost:6379/0")
    entries: dict[str, PluginEntry] = {}
    plugins = section.get("plugins")
    for index, element in enumerate(plugins if isinstance(plugins, list) else ()):
        try:
            entry = _entry(element, f"{where}.plugins[{index}]")
        except ConfigError as err:
            problems.append(str(err))
            continue
        if entry.name in entries:
            problems.append(
                f"{entry.where}: plugin {entry.name!r} is listed twice, first at {entries[entry.name].where}; keep one"
            )
        entries.setdefault(entry.name, entry)
    return Survey(host, tuple(entries.values()), tuple(problems))


def _entry(element: object, at: str) -> PluginEntry:
    """Return one element of ``plugins:``.

    Raises:
        ConfigError: it is neither a name nor one name with its section.
    """
    how = "write a name, or 'name: {...}' with its keys indented below the name"
    raw: object = None
    if isinstance(element, Mapping):
        if len(element) != 1:
            keys = ", ".join(str(key) for key in element) or "none"
            raise ConfigError(f"{at}: must be one plugin, but has the keys: {keys}; {how}")
        ((element, raw),) = element.items()
    if not isinstance(element, str) or not _NAME.match(element):
        raise ConfigError(
            f"{at}: {element!r} is no plugin name; allowed are lower-case letters, digits and hyphens; {how}"
        )
    if raw is not None and not isinstance(raw, Mapping):
        raise ConfigError(f"{at}.{element}: must be a mapping, not {type(raw).__name__}; {how}")
    return PluginEntry(element, raw or {}, at)


def _resolve(value: Any, where: str, problems: list[str]) -> Any:
    """Replace ``os.environ/NAME`` by the variable's value, wherever LiteLLM has not done so already."""
    if isinstance(value, str) and value.startswith(_ENV):
        name = value.removeprefix(_ENV)
        if name not in os.environ:
            problems.append(f"{where}: the environment variable {name!r} is not set")
        return os.environ.get(name, value)
    if isinstance(value, Mapping):
        return {key: _resolve(item, f"{where}.{key}", problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{where}[{index}]", problems) for index, item in enumerate(value)]
    return value
