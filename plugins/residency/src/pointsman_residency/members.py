"""Which deployments of the gateway are which models of the pools. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pointsman.errors import nearest

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import Deployment

    from .config import ResidencyConfig


class Member(NamedTuple):
    """A model of a pool."""

    pool: str
    model: str


class Target(NamedTuple):
    """What a model group or deployment id stands for.

    Attributes:
        members: Its models, each once.
        only: Whether all its deployments are models of pools, so that nothing else can answer.
    """

    members: tuple[Member, ...]
    only: bool


class Members:
    """Finds the model of a deployment, and the models of a target.

    Args:
        config: The plugin's section.

    Attributes:
        targets: Model groups and deployment ids of the gateway that have at least one model.
        deployments: Model to its deployments' ids and their names at the provider.
        aliases: Models for which another one stands.
    """

    def __init__(self, config: ResidencyConfig) -> None:
        self._configured: dict[str, Member] = {
            target: Member(pool, name)
            for pool, each in config.pools.items()
            for name, model in each.models.items()
            for target in model.deployments or (name,)
        }
        self.targets: Mapping[str, Target] = {}
        self.deployments: Mapping[Member, Mapping[str, str]] = {}
        self.aliases: Mapping[Member, Member] = {}

    def of(self, deployment: Deployment) -> Member | None:
        """Return the model of a deployment; its id says more than its group."""
        found = self._named(deployment)
        return found if found is None else self.aliases.get(found, found)

    def _named(self, deployment: Deployment) -> Member | None:
        found = self._configured.get(deployment.id)
        return found if found is not None else self._configured.get(deployment.group)

    def refresh(self, catalog: Catalog) -> None:
        """Read the gateway's configuration, which may have changed."""
        groups: dict[str, list[Member | None]] = {}
        names: dict[Member, dict[str, str]] = {}
        for deployment in catalog.deployments():
            member = self.of(deployment)
            groups.setdefault(deployment.group, []).append(member)
            groups.setdefault(deployment.id, []).append(member)
            if (named := self._named(deployment)) is not None:
                names.setdefault(named, {})[deployment.id] = deployment.model
        self.targets = {
            name: Target(tuple(dict.fromkeys(m for m in members if m is not None)), None not in members)
            for name, members in groups.items()
            if any(members)
        }
        self.deployments = names

    def problems(self, catalog: Catalog) -> list[str]:
        """Return the configured deployments that the gateway does not have."""
        known = {name for deployment in catalog.deployments() for name in (deployment.id, deployment.group)}
        # A gateway may learn its deployments only after the plugins have started.
        return [
            f"residency.pools.{member.pool}.models.{member.model}: the gateway has no deployment or model group "
            f"{target!r}{nearest(target, known)}"
            for target, member in self._configured.items()
            if known and target not in known
        ]
