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
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pluggy

from .. import specs
from ..errors import HookSignatureError, PluginError, PluginLoadError, PointsmanError, nearest
from ..plugin import PluginConfig, PluginInfo
from .calls import Calls, Faults, Impl

if TYPE_CHECKING:
    from .config import PluginEntry

#: What is known of an installed plugin: where it is, what it is, or why it cannot be used.
Available: TypeAlias = EntryPoint | PluginInfo | PluginLoadError

GROUP: Final = "pointsman"
HOOK_NAMES: Final = tuple(hook.__name__ for hook in specs.HOOKS)
_METHODS: Final = (FunctionType, MethodType, staticmethod, classmethod)
_ASYNC: Final = {hook.__name__: inspect.iscoroutinefunction(hook) for hook in specs.HOOKS}
_ARGS: Final = {hook.__name__: tuple(inspect.signature(hook).parameters) for hook in specs.HOOKS}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that is in use.

    Attributes:
        name: Its name.
        info: What its entry point names.
        config: Its validated configuration.
        instance: The plugin object.
        distribution: Name and version of the package it comes from.
    """

    name: str
    info: PluginInfo
    config: PluginConfig
    instance: object
    distribution: str = ""


@dataclass(slots=True)
class Plugins:
    """The plugins of one host: those in use, in order, and those left out with the reason."""

    loaded: list[Loaded] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names in use, in order."""
        return [plugin.name for plugin in self.loaded]


def discover() -> dict[str, Available]:
    """Return the installed plugins by name, without importing them; an error for a name that two of them claim."""
    found: dict[str, Available] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        other = found.setdefault(point.name, point)
        if isinstance(other, EntryPoint) and other.value != point.value:
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
    return available if isinstance(available, PluginInfo) else import_plugin(available)


def import_plugin(point: EntryPoint) -> PluginInfo:
    """Import what an entry point names.

    Raises:
        PluginLoadError: it cannot be imported, or is not a ``PluginInfo``.
    """
    try:
        info = point.load()
    except (Exception, SystemExit) as err:
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
    entries: Sequence[PluginEntry], available: Mapping[str, Available] | None = None
) -> Iterator[tuple[PluginEntry, Loaded | PointsmanError]]:
    """Build the plugins one by one; yield each with its entry, or with the reason why it cannot be used."""
    available = discover() if available is None else available
    for entry in entries:
        outcome: Loaded | PointsmanError
        try:
            outcome = _load_one(entry, available)
        except PointsmanError as err:
            outcome = err
        yield entry, outcome


def _load_one(entry: PluginEntry, available: Mapping[str, Available]) -> Loaded:
    point = available.get(entry.name)
    if point is None:
        installed = ", ".join(sorted(available)) or "none"
        # No command to copy: who has misspelt a name would install whatever somebody has put under that name.
        raise PluginLoadError(
            entry.name,
            f"{entry.where}: no such plugin is installed{nearest(entry.name, available)}; installed: {installed}. "
            "Correct the name, or install the package that has the plugin.",
        )
    info = plugin_info(point)
    config = entry.validate(info.config)
    try:
        loaded = Loaded(
            name=entry.name,
            info=info,
            config=config,
            instance=info.factory(config),
            distribution=origin(point) if isinstance(point, EntryPoint) else "",
        )
        implementations(loaded)
    except PluginError:
        raise
    except (Exception, SystemExit) as err:
        raise PluginLoadError(entry.name, f"it cannot be built: {type(err).__name__}: {err}") from err
    return loaded


def implementations(plugin: Loaded) -> dict[str, Impl]:
    """Return a plugin's hook implementations, checked against the specifications.

    Raises:
        HookSignatureError: a hook is misspelt, has the wrong colour, unknown arguments or pluggy ordering options.
    """
    _check_methods(plugin.name, plugin.instance)
    manager = pluggy.PluginManager(specs.PROJECT)
    manager.add_hookspecs(specs)
    name = plugin.name
    try:
        manager.register(plugin.instance, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as err:
        hook = next((h for h in HOOK_NAMES if f"'{h}'" in str(err) or f"{h}(" in str(err)), "unknown")
        allowed = ", ".join(_ARGS.get(hook, ())) or "no arguments"
        raise HookSignatureError(
            name, f"hook {hook!r} does not fit its specification (allowed: {allowed}): {str(err).splitlines()[-1]}"
        ) from err
    found: dict[str, Impl] = {}
    for hook in HOOK_NAMES:
        for impl in getattr(manager.hook, hook).get_hookimpls():
            found[hook] = Impl(
                plugin=name,
                call=_adapt(impl.function, impl.argnames, _ARGS[hook]),
                on_failure=plugin.config.on_failure,
                deadline_s=plugin.config.deadline_ms / 1000 if plugin.config.deadline_ms else None,
            )
    return found


def _check_methods(name: str, instance: object) -> None:
    """Check what pluggy does not: colour, spelling, a forgotten marker, ordering options."""
    for attribute, method in _methods(instance):
        if not hasattr(method, f"{specs.PROJECT}_impl"):
            if attribute in HOOK_NAMES:
                raise HookSignatureError(
                    name, f"its method {attribute!r} has a hook's name but is not marked @hookimpl"
                )
            continue
        if attribute not in HOOK_NAMES:
            raise HookSignatureError(
                name,
                f"there is no hook {attribute!r}{nearest(attribute, HOOK_NAMES)}. Hooks: {', '.join(HOOK_NAMES)}.",
            )
        if inspect.iscoroutinefunction(method) != _ASYNC[attribute]:
            want, have = ("async", "a plain function") if _ASYNC[attribute] else ("a plain function", "async")
            raise HookSignatureError(name, f"hook {attribute!r} must be {want}; the implementation is {have}")
        options = getattr(method, f"{specs.PROJECT}_impl")
        if forbidden := [key for key in ("tryfirst", "trylast", "wrapper", "hookwrapper") if options.get(key)]:
            raise HookSignatureError(
                name,
                f"hook {attribute!r} sets {', '.join(forbidden)}; the order is that of the configuration's plugin list",
            )


def _methods(instance: object) -> Iterator[tuple[str, Any]]:
    """Yield the methods by name, without running a property: those may need a plugin that has been started."""
    for attribute in dir(instance):
        if isinstance(inspect.getattr_static(instance, attribute, None), _METHODS):
            yield attribute, getattr(instance, attribute)


def _adapt(function: Any, wanted: Sequence[str], given: Sequence[str]) -> Any:
    if tuple(wanted) == tuple(given):
        return function
    indices = tuple(given.index(argument) for argument in wanted)

    def call(*args: object) -> object:
        return function(*(args[i] for i in indices))

    return call


def compile_calls(plugins: Sequence[Loaded], faults: Faults) -> Calls:
    """Compile all hooks of all plugins, in order."""
    table: dict[str, list[Impl]] = {hook: [] for hook in HOOK_NAMES}
    for plugin in plugins:
        for hook, impl in implementations(plugin).items():
            table[hook].append(impl)
    by_name = {hook: {impl.plugin: impl for impl in table[hook]} for hook in ("execute", "settle", "status")}
    return Calls(
        faults=faults,
        startup=tuple(table["startup"]),
        shutdown=tuple(table["shutdown"]),
        authenticate=tuple(table["authenticate"]),
        pre_route=tuple(table["pre_route"]),
        select=tuple(table["select"]),
        before_attempt=tuple(table["before_attempt"]),
        execute=by_name["execute"],
        first_token=tuple(table["first_token"]),
        post_response=tuple(table["post_response"]),
        on_error=tuple(table["on_error"]),
        settle=by_name["settle"],
        on_event=tuple(table["on_event"]),
        status=by_name["status"],
        routes=tuple(table["routes"]),
    )
