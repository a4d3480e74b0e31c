"""Versions, which of them are active, how that came about, and which change an operation makes of that. Pure.

A version never changes once it is registered. Which one is active is kept with the name, never with the version, so
two versions of a name cannot both be active. An operation computes a ``Change`` from a ``State``: all of it is stored,
or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pointsman.errors import ConfigError, Conflict, InvalidInput, NotFound, nearest

if TYPE_CHECKING:
    from .config import VersionSpec

#: How many earlier active versions a name remembers for rollbacks.
MAX_TRAIL: Final = 100
#: How many known texts an error message lists at most.
MAX_SHOWN: Final = 5


class Action(StrEnum):
    """Why the active version of a name changed."""

    SEED = "seed"
    ACTIVATE = "activate"
    ROLLBACK = "rollback"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a model.

    Attributes:
        id: Unique among all versions.
        name: What clients ask for.
        version: Shown to clients.
        path: The model group or deployment id that serves it.
        format: Free text.
        created_at: Unix seconds of its registration.
        metrics: Numbers measured elsewhere.
    """

    id: str
    name: str
    version: str
    path: str
    format: str
    created_at: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One entry of the history.

    Attributes:
        number: 1 for the first of a name, then one more each.
        name: The model name.
        version_id: Active from now on; None when the active version was deleted.
        previous_id: Active until now.
        action: Why.
        who: Person or plugin that asked for it.
        reason: In the author's words.
        at: Unix seconds.
    """

    number: int
    name: str
    version_id: str | None
    previous_id: str | None
    action: Action
    who: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NameState:
    """Which version of a name is active, and which were before.

    Attributes:
        active_id: The active version.
        number: Number of the newest history entry; 0 when there was none.
        trail: Earlier active versions that a rollback may return to, oldest first; may repeat, never deleted ones.
    """

    active_id: str | None = None
    number: int = 0
    trail: tuple[str, ...] = ()

    @property
    def earlier(self) -> tuple[str, ...]:
        """The trail up to the version that a rollback returns to, which is its last one."""
        trail = list(self.trail)
        while trail and trail[-1] == self.active_id:
            trail.pop()
        return tuple(trail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The author of a change, its time and its reason.

    Attributes:
        who: Person or plugin.
        at: Unix seconds.
        reason: In the author's words.
    """

    who: str
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an operation makes of a state; all of it or nothing.

    Attributes:
        registered: New versions.
        deleted_id: The version to delete.
        names: New states of names.
        activations: New history entries.
    """

    registered: tuple[Version, ...] = ()
    deleted_id: str | None = None
    names: Mapping[str, NameState] = field(default_factory=dict)
    activations: tuple[Activation, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is registered.

    Attributes:
        versions: By id, in the order of the ids.
        names: By name; a name without versions keeps its state, so that its history continues.
        active: Registered name to its active version or None.
    """

    versions: Mapping[str, Version] = field(default_factory=dict)
    names: Mapping[str, NameState] = field(default_factory=dict)
    active: Mapping[str, Version | None] = field(init=False)

    def __post_init__(self) -> None:
        names = {version.name for version in self.versions.values()}
        active = {
            name: self.versions[name_state.active_id] if name_state.active_id is not None else None
            for name, name_state in ((name, self.name_state(name)) for name in sorted(names))
        }
        object.__setattr__(self, "versions", MappingProxyType(dict(sorted(self.versions.items()))))
        object.__setattr__(self, "active", MappingProxyType(active))

    def name_state(self, name: str) -> NameState:
        """Return the state of a name."""
        return self.names.get(name, NameState())

    def of(self, name: str | None) -> list[Version]:
        """Return the versions of a name, or all of them, in the order of their ids."""
        return [version for version in self.versions.values() if name is None or version.name == name]

    def get(self, version_id: str) -> Version:
        """Return a version.

        Raises:
            NotFound: there is none with this id.
        """
        if (version := self.versions.get(version_id)) is None:
            raise NotFound(f"there is no version {version_id!r}{suggestion(version_id, self.versions)}")
        return version

    def is_active(self, version: Version) -> bool:
        """Return whether this is the active version of its name."""
        return self.name_state(version.name).active_id == version.id


# -- operations -------------------------------------------------------------------------------------------------------


def register(state: State, version: Version, author: Author, *, active: bool) -> Change:
    """Add a version, and make it the active one if asked to.

    Raises:
        Conflict: the id is taken.
        InvalidInput: its path is a registered name, which cannot serve a request, or its name is a path.
    """
    if version.id in state.versions:
        raise Conflict(f"a version {version.id!r} is registered already; ids are never reused", param="id")
    _refuse_chain([*state.versions.values(), version], version)
    name_state, entry = _activated(state.name_state(version.name), version, author, Action.ACTIVATE)
    return Change(
        registered=(version,),
        names={version.name: name_state} if active else {},
        activations=(entry,) if active else (),
    )


def activate(state: State, version_id: str, author: Author) -> Change | None:
    """Make a version the active one of its name; None when it is active already.

    Raises:
        NotFound: there is no such version.
    """
    version = state.get(version_id)
    if state.is_active(version):
        return None
    name_state, entry = _activated(state.name_state(version.name), version, author, Action.ACTIVATE)
    return Change(names={version.name: name_state}, activations=(entry,))


def rollback(state: State, name: str, author: Author) -> Change:
    """Return to the version that was active before the present one.

    The version that is left is not remembered, so that a second rollback goes one step further back instead of
    returning to the version that the first one replaced.

    Raises:
        NotFound: the name has no version.
        Conflict: there is no earlier active version.
    """
    if name not in state.active:
        raise NotFound(f"there is no registered name {name!r}{suggestion(name, state.active)}", param="name")
    name_state = state.name_state(name)
    trail = name_state.earlier
    if not trail:
        raise Conflict(f"the name {name!r} has no earlier active version to return to", param="name")
    version = state.versions[trail[-1]]
    entry = _entry(name_state, name, version.id, Action.ROLLBACK, author)
    after = NameState(active_id=version.id, number=entry.number, trail=trail[:-1])
    return Change(names={name: after}, activations=(entry,))


def delete(state: State, version_id: str, author: Author, *, force: bool) -> Change:
    """Remove a version, the active one only with ``force``: its name has no active version then.

    Raises:
        NotFound: there is no such version.
        Conflict: it is active and ``force`` was not given.
    """
    version = state.get(version_id)
    name_state = state.name_state(version.name)
    trail = tuple(earlier for earlier in name_state.trail if earlier != version_id)
    if not state.is_active(version):
        after = NameState(active_id=name_state.active_id, number=name_state.number, trail=trail)
        return Change(deleted_id=version_id, names={version.name: after} if after != name_state else {})
    if not force:
        raise Conflict(
            f"{version_id!r} is the active version of {version.name!r}; activate another one first, "
            "or force the deletion (force=true, --force) and leave the name without an active version"
        )
    entry = _entry(name_state, version.name, None, Action.DELETE, author)
    after = NameState(active_id=None, number=entry.number, trail=trail)
    return Change(deleted_id=version_id, names={version.name: after}, activations=(entry,))


def seed(state: State, specs: Iterable[VersionSpec], author: Author) -> Change | None:
    """Register what the configuration lists and the state lacks; None when it lacks nothing.

    A seed marked active becomes active only where its name has never had an active version: afterwards operators
    decide, and a restart never takes their decision back.

    Raises:
        ConfigError: a version of this id is registered with other contents, or a path is a registered name.
    """
    new: dict[str, Version] = {}
    names: dict[str, NameState] = {}
    entries: list[Activation] = []
    for spec in specs:
        version = built(spec, author.at)
        known = state.versions.get(spec.id)
        if known is None:
            new[spec.id] = version
        elif differing := [
            part for part in ("name", "version", "path", "format", "metrics") if _differs(known, version, part)
        ]:
            part = differing[0]
            raise ConfigError(
                f"versions: {spec.id!r} is registered with {part} {getattr(known, part)!r}, but the configuration says "
                f"{getattr(version, part)!r}; a version never changes: list it under a new id, or delete the registered one"
            )
        if spec.active and state.name_state(spec.name).number == 0:
            names[spec.name], entry = _activated(NameState(), version, author, Action.SEED)
            entries.append(entry)
    everything = [*state.versions.values(), *new.values()]
    for version in new.values():
        try:
            _refuse_chain(everything, version)
        except InvalidInput as err:
            raise ConfigError(f"versions: {version.id!r}: {err}") from err
    if not new and not entries:
        return None
    return Change(registered=tuple(new.values()), names=names, activations=tuple(entries))


def built(spec: VersionSpec, at: float) -> Version:
    """Return the version that a specification describes, created at this time (Unix seconds)."""
    return Version(
        id=spec.id,
        name=spec.name,
        version=spec.version,
        path=spec.path,
        format=spec.format,
        created_at=at,
        metrics=dict(spec.metrics),
    )


def _differs(known: Version, wanted: Version, part: str) -> bool:
    return bool(getattr(known, part) != getattr(wanted, part))


def _refuse_chain(everything: Iterable[Version], new: Version) -> None:
    for other in everything:
        if new.path == other.name:
            raise InvalidInput(
                f"path: {new.path!r} is a registered name; name a model group or a deployment", param="path"
            )
        if other.path == new.name:
            raise InvalidInput(
                f"name: {new.name!r} is the path of version {other.id!r}; use another name", param="name"
            )


def _activated(name_state: NameState, version: Version, author: Author, action: Action) -> tuple[NameState, Activation]:
    entry = _entry(name_state, version.name, version.id, action, author)
    trail = name_state.trail if name_state.active_id is None else (*name_state.trail, name_state.active_id)
    return NameState(active_id=version.id, number=entry.number, trail=trail[-MAX_TRAIL:]), entry


def _entry(name_state: NameState, name: str, version_id: str | None, action: Action, author: Author) -> Activation:
    return Activation(
        number=name_state.number + 1,
        name=name,
        version_id=version_id,
        previous_id=name_state.active_id,
        action=action,
        who=author.who,
        reason=author.reason,
        at=author.at,
    )


def suggestion(text: str, known: Iterable[str], *, shown: Iterable[str] | None = None) -> str:
    """Return the end of an error message: the nearest known text, else some known ones, else nothing.

    Args:
        text: The unknown text.
        known: What would have been right.
        shown: Those of them that mean something to people (generated ids do not); None for all.
    """
    names = sorted(set(known))
    if near := nearest(text, names):
        return near
    listed = names if shown is None else sorted(set(shown))
    some = ", ".join(repr(name) for name in listed[:MAX_SHOWN])
    return f"; known: {some}{', ...' if len(listed) > MAX_SHOWN else ''}" if listed else ""
