"""What other distributions add to a plugin: its tactics, servers, dialects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, TypeVar

from .errors import ConfigError

log: Final = logging.getLogger("pointsman")
T = TypeVar("T")

#: Top-level packages of the extensions that this process has loaded: a fault is said to be at their lines.
PACKAGES: Final = set[str]()


class Extensions(Mapping[str, T]):
    """What a plugin can be extended with, by name: its own, and what installed distributions add.

    A distribution that cannot be used harms only a configuration that names it: looking up its name raises, everything else
    goes on without it.

    Args:
        usable: What can be used, by name.
        broken: Names of entry points that cannot be used, each with the reason.

    Attributes:
        broken: As above.
    """

    def __init__(self, usable: Mapping[str, T], broken: Mapping[str, str]) -> None:
        self._usable = usable
        self.broken = broken

    def __getitem__(self, name: str) -> T:
        """Return what has the name.

        Raises:
            KeyError: nothing has it.
            ConfigError: what has it cannot be used; the caller adds the key path.
        """
        if name not in self._usable and name in self.broken:
            raise ConfigError(f"{name!r} cannot be used: {self.broken[name]}")
        return self._usable[name]

    def __contains__(self, name: object) -> bool:
        """Return whether it can be used."""
        return name in self._usable

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that can be used."""
        return iter(self._usable)

    def __len__(self) -> int:
        """Return how many can be used."""
        return len(self._usable)


def extensions(
    plugin: str, group: str, base: type[T], built_in: Mapping[str, type[T]], entries: Iterable[EntryPoint] | None = None
) -> Extensions[type[T]]:
    """Return the classes that a plugin can be extended with, by name: its own, and those of installed distributions.

    Args:
        plugin: The plugin.
        group: The group of entry points.
        base: What each of them must be derived from.
        built_in: The plugin's own; no distribution can take one of their names.
        entries: Entry points; by default those of the group.
    """

    def check(found: object) -> type[T]:
        if not (isinstance(found, type) and issubclass(found, base)):
            raise TypeError(f"it must name a class derived from {base.__module__}.{base.__qualname__}")
        return found

    return loaded(plugin, group, check, built_in, entries)


def loaded(
    plugin: str,
    group: str,
    check: Callable[[object], T],
    built_in: Mapping[str, T],
    entries: Iterable[EntryPoint] | None = None,
) -> Extensions[T]:
    """Return what a plugin can be extended with, as ``extensions`` does for classes.

    What cannot be used is left out, and the log says so.

    Args:
        plugin: The plugin.
        group: The group of entry points.
        check: Returns what an entry point names, or raises a ``TypeError`` or ``ValueError`` that says what is wrong with it.
        built_in: The plugin's own, by name.
        entries: Entry points; by default those of the group.
    """
    usable, broken, values = dict(built_in), dict[str, str](), dict[str, str]()
    for entry in sorted(entry_points(group=group) if entries is None else entries, key=lambda e: (e.name, e.value)):
        if entry.name in built_in:
            log.warning(
                "%s: entry point %r of %s (%s) is left out: the name is built in; rename the entry point",
                plugin,
                entry.name,
                group,
                entry.value,
            )
            continue
        problem: str | None
        if values.setdefault(entry.name, entry.value) != entry.value:
            usable.pop(entry.name, None)
            problem = (
                f"two installed packages provide it: {values[entry.name]} and {entry.value}; uninstall one of them"
            )
        else:
            problem = _load(entry, group, check, usable)
        if problem is not None:
            broken[entry.name] = problem
            log.warning("%s: entry point %r of %s is left out: %s", plugin, entry.name, group, problem)
    return Extensions(usable, broken)


def load_extension(entry: EntryPoint) -> object:
    """Import and return what an entry point names; from now on a fault is said to be at the lines of its package."""
    PACKAGES.add(entry.value.partition(":")[0].partition(".")[0])
    found: object = entry.load()
    return found


def _load(entry: EntryPoint, group: str, check: Callable[[object], T], usable: dict[str, T]) -> str | None:
    """Add what an entry point names; return what is wrong with it instead."""
    where = f"entry point {entry.name!r} of {group} ({entry.value})"
    try:
        found = load_extension(entry)
    except KeyboardInterrupt:
        raise
    except BaseException as err:  # noqa: BLE001  # a module may raise anything, such as SystemExit or a panic
        return f"{where} cannot be imported: {type(err).__name__}: {err}"
    try:
        usable[entry.name] = check(found)
    except (TypeError, ValueError) as err:
        return f"{where} is wrong: {err}"
    return None


__all__ = ["PACKAGES", "Extensions", "extensions", "load_extension", "loaded"]
