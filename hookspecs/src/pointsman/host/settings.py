"""The ``pointsman:`` section of a LiteLLM configuration: the file read as LiteLLM reads it, and the section validated.

Every error names the file, the key path, the value, what is allowed and the nearest name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from .. import store
from ..config import Section, resolve, validate
from ..errors import ConfigError, PluginLoadError
from ..plugin import PluginConfig
from ..store import StateStore
from ..text import one_line
from ..types import FRAMING_HEADERS, is_credential_header
from .metrics import MetricsConfig
from .notices import NotifyConfig
from .tracing import TracingConfig

SECTION: Final = "pointsman"
INCLUDE: Final = "include"
_NAME: Final = re.compile(r"^[a-z][a-z0-9-]*$")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


class StoreConfig(Section):
    """Where state is kept.

    ``memory``: lost with the worker. ``disk``: shared by all workers of one machine. ``redis``: shared by many machines.
    """

    backend: Literal["memory", "disk", "redis"] = "disk"
    path: str = Field(
        default=".pointsman", min_length=1, description="For 'disk': the directory, relative to the configuration file."
    )
    url: str | None = Field(
        default=None, description="For 'redis': redis://[user:password@]host:port/db, or rediss:// for TLS."
    )
    prefix: str = Field(
        default="pointsman", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="For 'redis': the first part of every key."
    )
    timeout_ms: int = Field(
        default=1000, ge=10, le=60_000, description="Longest time of one store operation, in milliseconds."
    )

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


async def open_store(
    config: StoreConfig, path: Path, *, start_timeout_s: float | None = None, lists_older: bool = True
) -> StateStore:
    """Open the configured store.

    Args:
        config: The configuration.
        path: The directory of a disk store, absolute.
        start_timeout_s: See ``pointsman.store.open_store``.
        lists_older: See ``pointsman.store.open_store``.

    Raises:
        StoreUnavailable, StoreCorrupt: it cannot be used.
        ValueError: its address is wrong.
    """
    return await store.open_store(
        config.backend,
        path=path,
        url=config.url,
        prefix=f"{config.prefix}:",
        timeout_s=config.timeout_ms / 1000,
        start_timeout_s=start_timeout_s,
        lists_older=lists_older,
    )


Policy = Literal["deny", "allow"]

#: The key of ``unmetered`` for all routes that have none of their own.
EVERY_ROUTE: Final = "*"
_VERSION: Final = "/v1"


def _route_key(key: str) -> str:
    if key != EVERY_ROUTE and not key.startswith("/"):
        raise ValueError(
            f"it must be the beginning of a path, such as /v1/vector_stores, or {EVERY_ROUTE!r} for all others"
        )
    return key


def _of_every_route(value: object) -> object:
    return {EVERY_ROUTE: value} if isinstance(value, str) else value


def _upstream_header(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("it must be the name of a header, such as anthropic-beta")
    if is_credential_header(name.lower()) or name.lower() in FRAMING_HEADERS:
        raise ValueError("it carries credentials or frames the request, and is the gateway's own")
    return name.lower()


class HostConfig(Section):
    """The whole section, before the plugins' own parts are validated by their own models."""

    store: StoreConfig = StoreConfig()
    tracing: TracingConfig = TracingConfig()
    metrics: MetricsConfig = MetricsConfig()
    flush_timeout_s: Annotated[
        float, Field(ge=0, le=300, description="Longest wait for settlements at shutdown, in seconds.")
    ] = 10.0
    journal_window_ms: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Time over which finished settlements are collected for one journal write, in milliseconds.",
        ),
    ] = 50
    background_look_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Seconds after which a worker first looks whether a background response or a batch that no client has read "
        "is complete; each pause is twice as long as the one before, up to five minutes.",
    )
    background_wait_s: float = Field(
        default=86_400.0,
        gt=0,
        le=2_592_000,
        description="Seconds after which a background response whose usage is still unknown is charged what was reserved for it: "
        "a day, since providers end them before; a batch is unpriced a day after that.",
    )
    left_timeout_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long a plain request is continued whose client has left before the answer, in seconds: an answer within "
        "that time is billed exactly; then the request is ended and frees its slots.",
    )
    notify: tuple[NotifyConfig, ...] = Field(
        default=(),
        max_length=20,
        description="Webhooks that get notices about breakers, exhaustion, rollouts, gates, limits and dead letters.",
    )
    recent_requests: int = Field(
        default=500,
        ge=0,
        le=100_000,
        description="Finished requests that each worker remembers for 'pointsman explain', without prompts and answers; each "
        "takes a few kilobytes.",
    )
    client_retries: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Most retries that a request may ask for with num_retries; each is an attempt of its own, and the "
        "default is one more than LiteLLM's own.",
    )
    request_parts: int = Field(
        default=400_000,
        ge=1_000,
        le=100_000_000,
        description="Most lists, objects and entries of them in the JSON of one request, of which each stops the worker for some "
        "microseconds; with the default, for about three seconds at most.",
    )
    unmetered: Annotated[dict[Annotated[str, AfterValidator(_route_key)], Policy], BeforeValidator(_of_every_route)] = (
        Field(
            default_factory=dict,
            description="Policy for requests that reach a provider without being metered: 'deny' or 'allow', or one of them by "
            "the beginning of the path, with '*' for all other paths; by default 'deny' where a plugin limits or bills, or must see what is sent.",
        )
    )
    unpriced: Policy = Field(
        default="deny",
        description="Requests for models whose price is unknown, where a plugin limits money: 'deny' refuses them, since an "
        "unknown price cannot be limited; 'allow' lets them pass uncounted.",
    )
    shared_objects: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        default=(),
        max_length=1_000,
        description="Ids of conversations, containers, items of responses, interactions and cached contents that every tenant may "
        "use although no answer to it has made them, with *, ? and [...]; none by default, since they hold what others have said.",
    )
    upstream_headers: tuple[Annotated[str, AfterValidator(_upstream_header)], ...] = Field(
        default=(),
        max_length=100,
        description="Headers that plugins may add to what is sent to providers; none by default.",
    )
    plugins: list[Any] = Field(
        default_factory=list, description="The plugins to use; every hook runs them in this order."
    )


def unmetered(configured: Mapping[str, Policy], path: str, *, closed: bool) -> Policy:
    """Return the policy for a request that is not metered.

    Args:
        configured: The setting.
        path: The request's path; the part ``/v1`` of it and of the setting's does not matter.
        closed: Whether a loaded plugin limits or bills, or must see what is sent.
    """
    default: Policy = "deny" if closed else "allow"
    parts = _segments(path)
    policies = {_segments(key): policy for key, policy in configured.items() if key != EVERY_ROUTE}
    # A provider may read such a path as another one.
    odd = "%" in path or not {"", ".", ".."}.isdisjoint(parts)
    found = None if odd else max((key for key in policies if parts[: len(key)] == key), key=len, default=None)
    return configured.get(EVERY_ROUTE, default) if found is None else policies[found]


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.removeprefix(_VERSION + "/").strip("/").split("/"))


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
    """The readable parts of a section, and everything that is wrong with it.

    Attributes:
        host: The host's own part, None when it is wrong.
        entries: The plugins that are named correctly, in order; their own parts are not validated yet.
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
    read = survey(section, source)
    if read.host is None or read.problems:
        raise ConfigError("\n".join(read.problems))
    return Settings(read.host, read.entries, source, base)


def survey(section: object, source: str) -> Survey:
    """Read as much of the section as possible, and report everything that is wrong with the host's part.

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
    try:
        written: Mapping[Any, Any] = resolve(section, os.environ, where, problems)
    except RecursionError:
        return Survey(None, (), (f"{where}: contains itself or is nested too deeply",))
    host = None
    try:
        host = validate(HostConfig, written, where)
    except ConfigError as err:
        problems.append(str(err))
    if host is not None and host.store.backend == "redis" and not host.store.url:
        problems.append(f"{where}.store.url: is needed for backend 'redis', for example redis://localhost:6379/0")
    entries: dict[str, PluginEntry] = {}
    plugins = written.get("plugins")
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
            f"{at}: {_short(element)} is not a plugin name; allowed are lower-case letters, digits and hyphens; {how}"
        )
    if raw is not None and not isinstance(raw, Mapping):
        raise ConfigError(f"{at}.{element}: must be a mapping, not {type(raw).__name__}; {how}")
    return PluginEntry(element, raw or {}, at)


def _short(element: object) -> str:
    if isinstance(element, list | dict):
        return f"a {type(element).__name__}"
    return f"{element!r:.80}"


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a configuration file and what it includes.

    As in LiteLLM, lists of an included file are appended and everything else in it replaces what was there, at the top
    level only; an included file is searched next to the file that names it, then next to the first one.

    Raises:
        ConfigError: a file cannot be read, is not YAML, or is not a mapping.
    """
    root = Path(path)
    document = _load(root)
    read = {root.resolve()}
    waiting = [(name, root) for name in _included(document, root)]
    while waiting:
        name, declared_in = waiting.pop(0)
        file = declared_in.parent / name
        if not file.exists() and (next_to_root := root.parent / name).exists():
            file = next_to_root
        if file.resolve() in read:
            continue
        read.add(file.resolve())
        more = _load(file)
        waiting += [(other, file) for other in _included(more, file)]
        for key, value in more.items():
            both_lists = isinstance(value, list) and isinstance(document.get(key), list)
            document[key] = [*document[key], *value] if both_lists else value
    document.pop(INCLUDE, None)
    return document


def _load(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read: {err.strerror or err}") from err
    except yaml.MarkedYAMLError as err:
        # The library's own text quotes the line, which may hold a key.
        mark = err.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}: is not YAML{at}: {err.problem or err.context}") from err
    except RecursionError as err:
        raise ConfigError(f"{file}: is nested too deeply") from err
    except (yaml.YAMLError, ValueError) as err:
        raise ConfigError(f"{file}: is not YAML: {one_line(str(err))}") from err
    if not isinstance(document, Mapping):
        raise ConfigError(f"{file}: is not a LiteLLM configuration: it must be a mapping with keys such as model_list")
    return dict(document)


def _included(document: Mapping[str, Any], file: Path) -> list[str]:
    names = document.get(INCLUDE, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: {INCLUDE}: must be a list of file names")
    return names
