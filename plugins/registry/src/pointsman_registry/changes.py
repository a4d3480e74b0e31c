"""The registry's rules, without I/O or clock: which change an operation makes of a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pointsman.errors import ConfigError, Conflict, InvalidInput, NotFound

from .fields import VersionSpec, nearest
from .versions import Action, Activation, Author, Change, Standing, State, Version

MAX_TRAIL: Final = 100
"""How many earlier active versions a name remembers for rollbacks."""


def register(state: State, version: Version, author: Author, *, active: bool) -> Change:
    """Add a version, and make it the active one if asked to.

    Raises:
        Conflict: the id is taken.
        InvalidInput: its path is a registered name, which is no place to send a request to, or the other way round.
    """
    if version.id in state.versions:
        raise Conflict(f"a version {version.id!r} is registered already; ids are never used twice", param="id")
    _refuse_chain([*state.versions.values(), version], version)
    standing, entry = _activated(state.standing(version.name), version, author, Action.ACTIVATE)
    return Change(
        registered=(version,),
        standings={version.name: standing} if active else {},
        activations=(entry,) if active else (),
    )


def activate(state: State, version_id: str, author: Author) -> Change | None:
    """Make a version the active one of its name; None when it is already.

    Raises:
        NotFound: there is no such version.
    """
    version = state.get(version_id)
    if state.is_active(version):
        return None
    standing, entry = _activated(state.standing(version.name), version, author, Action.ACTIVATE)
    return Change(standings={version.name: standing}, activations=(entry,))


def rollback(state: State, name: str, author: Author) -> Change:
    """Return to the version that was active before the present one.

    The version that is left is not remembered, so that a second rollback goes one step further back instead of
    returning to what the first one got rid of.

    Raises:
        NotFound: the name has no version.
        Conflict: there is no earlier active version.
    """
    if name not in state.active:
        raise NotFound(f"there is no registered name {name!r}{nearest(name, state.active)}", param="name")
    standing = state.standing(name)
    trail = list(standing.trail)
    while trail and trail[-1] == standing.active_id:
        trail.pop()
    if not trail:
        raise Conflict(f"the name {name!r} has no earlier active version to return to", param="name")
    version = state.versions[trail.pop()]
    entry = _entry(standing, name, version.id, Action.ROLLBACK, author)
    after = Standing(active_id=version.id, number=entry.number, trail=tuple(trail))
    return Change(standings={name: after}, activations=(entry,))


def delete(state: State, version_id: str, author: Author, *, force: bool) -> Change:
    """Remove a version, the active one only with ``force``: its name has no active version then.

    Raises:
        NotFound: there is no such version.
        Conflict: it is active and ``force`` was not given.
    """
    version = state.get(version_id)
    standing = state.standing(version.name)
    trail = tuple(earlier for earlier in standing.trail if earlier != version_id)
    if not state.is_active(version):
        after = Standing(active_id=standing.active_id, number=standing.number, trail=trail)
        return Change(deleted_id=version_id, standings={version.name: after} if after != standing else {})
    if not force:
        raise Conflict(
            f"{version_id!r} is the active version of {version.name!r}; activate another one first, "
            "or force the deletion (force=true, --force) and leave the name without an active version"
        )
    entry = _entry(standing, version.name, None, Action.DELETE, author)
    after = Standing(active_id=None, number=entry.number, trail=trail)
    return Change(deleted_id=version_id, standings={version.name: after}, activations=(entry,))


def seed(state: State, specs: Iterable[VersionSpec], author: Author) -> Change | None:
    """Register what the configuration lists and the state lacks; None when it lacks nothing.

    A seed marked active becomes active only where its name has never had an active version: afterwards operators
    decide, and a restart never takes their decision back.

    Raises:
        ConfigError: a version of this id is registered with other contents, or a path is a registered name.
    """
    new: dict[str, Version] = {}
    standings: dict[str, Standing] = {}
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
        if spec.active and state.standing(spec.name).number == 0:
            standings[spec.name], entry = _activated(Standing(), version, author, Action.SEED)
            entries.append(entry)
    everything = [*state.versions.values(), *new.values()]
    for version in new.values():
        try:
            _refuse_chain(everything, version)
        except InvalidInput as err:
            raise ConfigError(f"versions: {version.id!r}: {err}") from err
    if not new and not entries:
        return None
    return Change(registered=tuple(new.values()), standings=standings, activations=tuple(entries))


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


def _activated(standing: Standing, version: Version, author: Author, action: Action) -> tuple[Standing, Activation]:
    entry = _entry(standing, version.name, version.id, action, author)
    trail = standing.trail if standing.active_id is None else (*standing.trail, standing.active_id)
    return Standing(active_id=version.id, number=entry.number, trail=trail[-MAX_TRAIL:]), entry


def _entry(standing: Standing, name: str, version_id: str | None, action: Action, author: Author) -> Activation:
    return Activation(
        number=standing.number + 1,
        name=name,
        version_id=version_id,
        previous_id=standing.active_id,
        action=action,
        who=author.who,
        reason=author.reason,
        at=author.at,
    )
