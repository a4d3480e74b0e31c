"""Discovery, order and validation of plugins.

Plugins are entry points of the group ``pointsman``; the configuration's list says which are used and in which order.
Everything that can be wrong with one is found here, before the first request, and named: the plugin, the hook, what is
allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from .. import __version__
from ..errors import PluginError, PluginLoadError, PointsmanError, nearest
from ..plugin import PluginConfig, PluginInfo
from .implementations import Impl, implementations

if TYPE_CHECKING:
    from .settings import PluginEntry

#: An installed plugin: its entry point, its PluginInfo, or why it cannot be used.
Available: TypeAlias = EntryPoint | PluginInfo | PluginLoadError

GROUP: Final = "pointsman"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that is in use.

    Attributes:
        name: Its name.
        info: What its entry point names.
        config: Its validated configuration.
        instance: The plugin object.
        hooks: Its hook implementations by hook, checked.
        distribution: Name and version of the package it comes from.
        warnings: What in its configuration is probably a mistake.
        notes: What its configuration comes to.
    """

    name: str
    info: PluginInfo
    config: PluginConfig
    instance: object
    hooks: Mapping[str, Impl]
    distribution: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Plugins:
    """The plugins of one host: those in use, in order, and those left out with the reason."""

    loaded: list[Loaded] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names in use, in order."""
        return [plugin.name for plugin in self.loaded]


def discover() -> dict[str, EntryPoint | PluginLoadError]:
    """Return the installed plugins by name, without importing them; an error for a name that two of them claim."""
    # Entry points have another class once something, such as LiteLLM, has imported the backport importlib_metadata.
    found: dict[str, EntryPoint | PluginLoadError] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        other = found.setdefault(point.name, point)
        if not isinstance(other, PluginLoadError) and other.value != point.value:
            found[point.name] = PluginLoadError(
                point.name,
                f"two installed packages provide it: {origin(other)} ({other.value}) and {origin(point)} "
                f"({point.value}); uninstall one of them",
            )
    return found


def origin(point: EntryPoint) -> str:
    """Return name and version of the distribution that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"


def plugin_info(available: Available) -> PluginInfo:
    """Return what an installed plugin is, importing it if need be.

    Raises:
        PluginLoadError: it cannot be used.
    """
    if isinstance(available, PluginLoadError):
        raise available
    info = available if isinstance(available, PluginInfo) else import_plugin(available)
    _check_version(info)
    return info


def import_plugin(point: EntryPoint) -> PluginInfo:
    """Import what an entry point names.

    Raises:
        PluginLoadError: it cannot be imported, or is not a ``PluginInfo``.
    """
    try:
        info = point.load()
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt):
            raise
        raise PluginLoadError(
            point.name,
            f"its entry point {point.value!r} ({origin(point)}) cannot be imported: {type(err).__name__}: {err}",
        ) from err
    if not isinstance(info, PluginInfo):
        raise PluginLoadError(
            point.name, f"its entry point {point.value!r} is a {type(info).__name__}, not a pointsman.PluginInfo"
        )
    if info.name != point.name:
        raise PluginLoadError(point.name, f"its PluginInfo calls itself {info.name!r}; both names must be the same")
    config: object = info.config
    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        raise PluginLoadError(
            point.name, "the config of its PluginInfo is not a class made from pointsman.PluginConfig"
        )
    return info


def _check_version(info: PluginInfo) -> None:
    """Check that a plugin is made for this version.

    Raises:
        PluginLoadError: it is not, or what it requires cannot be read.
    """
    try:
        wanted = SpecifierSet(info.requires)
    except InvalidSpecifier as err:
        raise PluginLoadError(
            info.name,
            f"its PluginInfo requires {info.requires!r}, which is not a version specifier such as '>=0.1,<0.2'",
        ) from err
    if not wanted.contains(__version__, prereleases=True):
        raise PluginLoadError(
            info.name,
            f"it is made for pointsman {info.requires}, and {__version__} is installed; install a version of it that is made for this one",
        )


def load(entries: Sequence[PluginEntry], available: Mapping[str, Available] | None = None) -> Plugins:
    """Build the plugins of the configuration, in its order.

    Args:
        entries: The configuration's list.
        available: What is installed; by default what ``discover`` finds.

    Raises:
        PluginLoadError, HookSignatureError: for the first plugin that cannot be used and is not optional.
    """
    plugins = Plugins()
    for entry, outcome in load_each(entries, available):
        if isinstance(outcome, Loaded):
            plugins.loaded.append(outcome)
        elif entry.optional:
            plugins.broken[entry.name] = str(outcome)
        else:
            raise outcome
    return plugins


def load_each(
    entries: Sequence[PluginEntry],
    available: Mapping[str, Available] | None = None,
    former: Mapping[str, Loaded] = MappingProxyType({}),
) -> Iterator[tuple[PluginEntry, Loaded | PointsmanError]]:
    """Build the plugins; yield each with its entry, in order, or with the reason why it cannot be used.

    Args:
        entries: The configuration's list.
        available: What is installed; by default what ``discover`` finds.
        former: Plugins that run; one whose configuration is the same is kept as it is.
    """
    available = discover() if available is None else available
    owners: dict[str, str] = {}
    names = [entry.name for entry in entries]
    outcomes: list[Loaded | PointsmanError] = []
    for entry in entries:
        outcome: Loaded | PointsmanError
        try:
            outcome = _load_one(entry, available, former.get(entry.name))
        except PointsmanError as err:
            outcome = err
        if isinstance(outcome, Loaded):
            outcome = _with_labels(outcome, owners)
        if isinstance(outcome, Loaded):
            outcome = _with_neighbours(outcome, names)
        outcomes.append(outcome)
    _refuse_unmet(names, outcomes)
    yield from zip(entries, outcomes, strict=True)


def _refuse_unmet(names: Sequence[str], outcomes: list[Loaded | PointsmanError]) -> None:
    """Replace each plugin that needs one that cannot be used by an error that says so."""
    broken: dict[str, str] = {}
    before = -1
    while before != len(broken):
        before = len(broken)
        for place, plugin in enumerate(outcomes):
            outcome = (unmet(plugin, broken) or plugin) if isinstance(plugin, Loaded) else plugin
            outcomes[place] = outcome
            if not isinstance(outcome, Loaded):
                broken[names[place]] = str(outcome)


def unmet(plugin: Loaded, broken: Mapping[str, str]) -> PluginLoadError | None:
    """Return why a plugin cannot be used, with the mend, where one that it needs cannot.

    Args:
        plugin: The plugin.
        broken: The plugins of the list that cannot be used, each with the reason.
    """
    for other in plugin.info.needs:
        if other in broken:
            return PluginLoadError(
                plugin.name,
                f"it needs the plugin {other!r}, which cannot be used ({broken[other]}); correct that, or leave this one out as well",
            )
    return None


def _with_labels(plugin: Loaded, owners: dict[str, str]) -> Loaded | PluginLoadError:
    """Note the labels that a plugin declares; an error where another one has declared the same."""
    for label in plugin.info.labels:
        if (owner := owners.setdefault(label, plugin.name)) != plugin.name:
            return PluginLoadError(
                plugin.name, f"it declares the label {label!r}, which belongs to the plugin {owner!r}; use one of them"
            )
    return plugin


def _with_neighbours(plugin: Loaded, names: Sequence[str]) -> Loaded | PluginLoadError:
    """Compare what a plugin says of others with the list; an error, with the mend, where the list does not fit."""
    info, place = plugin.info, names.index(plugin.name)
    for other in info.needs:
        if other not in names:
            return PluginLoadError(plugin.name, f"it needs the plugin {other!r}; add it to plugins:")
    for other in info.conflicts:
        if other in names:
            return PluginLoadError(
                plugin.name, f"it cannot be used together with {other!r}; remove one of them from plugins:"
            )
    for others, early in ((info.before, True), (info.after, False)):
        for other in others:
            if other in names and (place < names.index(other)) is not early:
                where = "before" if early else "after"
                return PluginLoadError(plugin.name, f"it must come {where} {other!r}; change their order in plugins:")
    return plugin


def _load_one(entry: PluginEntry, available: Mapping[str, Available], former: Loaded | None) -> Loaded:
    point = available.get(entry.name)
    if point is None:
        installed = ", ".join(sorted(available)) or "none"
        # No command to copy: for a misspelt name it would install any package that has that name.
        raise PluginLoadError(
            entry.name,
            f"{entry.where}: no such plugin is installed{nearest(entry.name, available)}; installed: {installed}. "
            "Correct the name, or install the package that has the plugin.",
        )
    info = plugin_info(point)
    try:
        config = entry.validate(info.config)
        if former is not None and former.info is info and former.config == config:
            return former
        instance = info.factory(config)
        if instance is None or inspect.iscoroutine(instance):
            raise TypeError(f"its factory returned {type(instance).__name__}, not the plugin")  # noqa: TRY301  # as what it raises
        loaded = Loaded(
            name=entry.name,
            info=info,
            config=config,
            instance=instance,
            hooks=implementations(entry.name, instance, config),
            distribution="" if isinstance(point, PluginInfo | PluginLoadError) else origin(point),
            warnings=tuple(map(str, config.warnings())),
            notes=tuple(map(str, config.notes())),
        )
    except PluginError:
        raise
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt):
            raise
        raise PluginLoadError(entry.name, f"it cannot be built: {type(err).__name__}: {err}") from err
    return loaded
