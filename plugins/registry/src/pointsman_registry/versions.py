"""What the registry knows: versions, which of them are active, and how that came about. Pure values.

A version never changes once it is registered. Which one is active is kept with the name, never with the version, so
two versions of a name cannot both be active.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from pointsman.errors import NotFound

from .fields import nearest


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
        who: On whose behalf.
        reason: In their words.
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
class Standing:
    """How a name stands.

    Attributes:
        active_id: The active version.
        number: Number of the newest history entry; 0 when there was none.
        trail: Earlier active versions that a rollback may return to, oldest first; may repeat, never deleted ones.
    """

    active_id: str | None = None
    number: int = 0
    trail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who asks for a change, when, and why.

    Attributes:
        who: Person or plugin.
        at: Unix seconds.
        reason: In their words.
    """

    who: str
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an operation makes of a state; all of it or nothing.

    Attributes:
        registered: New versions.
        deleted_id: A version that goes.
        standings: Names that stand differently from now on.
        activations: New history entries.
    """

    registered: tuple[Version, ...] = ()
    deleted_id: str | None = None
    standings: Mapping[str, Standing] = field(default_factory=dict)
    activations: tuple[Activation, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is registered.

    Attributes:
        versions: By id, in the order of the ids.
        standings: By name; a name without versions keeps its standing, so that its history goes on.
        active: Registered name to its active version or None.
    """

    versions: Mapping[str, Version] = field(default_factory=dict)
    standings: Mapping[str, Standing] = field(default_factory=dict)
    active: Mapping[str, Version | None] = field(init=False)

    def __post_init__(self) -> None:
        names = {version.name for version in self.versions.values()}
        active = {
            name: self.versions[standing.active_id] if standing.active_id is not None else None
            for name, standing in ((name, self.standing(name)) for name in sorted(names))
        }
        object.__setattr__(self, "versions", MappingProxyType(dict(sorted(self.versions.items()))))
        object.__setattr__(self, "active", MappingProxyType(active))

    def standing(self, name: str) -> Standing:
        """Return how a name stands."""
        return self.standings.get(name, Standing())

    def of(self, name: str | None) -> list[Version]:
        """Return the versions of a name, or all of them, in the order of their ids."""
        return [version for version in self.versions.values() if name is None or version.name == name]

    def get(self, version_id: str) -> Version:
        """Return a version.

        Raises:
            NotFound: there is none with this id.
        """
        if (version := self.versions.get(version_id)) is None:
            raise NotFound(f"there is no version {version_id!r}{nearest(version_id, self.versions)}")
        return version

    def is_active(self, version: Version) -> bool:
        """Say whether this is the active version of its name."""
        return self.standing(version.name).active_id == version.id
