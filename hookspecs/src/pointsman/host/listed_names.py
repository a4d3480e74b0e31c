"""Names that plugins list in ``GET /v1/models``, by the instance that lists them: a reload has two of a plugin for a while."""

from __future__ import annotations

from collections.abc import Mapping

from ..plugin import Catalog


class InstanceCatalog:
    """The gateway's catalog, as one instance of a plugin sees it.

    An instance that is on its way out no longer takes away a name that its successor lists.

    Args:
        catalog: The gateway's.
        owners: The instance that lists each name, of all instances.
    """

    def __init__(self, catalog: Catalog, owners: dict[str, InstanceCatalog]) -> None:
        self._catalog = catalog
        #: What is only read is the gateway's own: plugins ask several times a request.
        self.deployments = catalog.deployments
        self.is_group = catalog.is_group
        self.reachable = catalog.reachable
        self.resolved = catalog.resolved
        self._owners = owners
        self._listed: dict[str, tuple[str, Mapping[str, object] | None]] = {}

    def list_model(self, name: str, target: str | None, *, info: Mapping[str, object] | None = None) -> None:
        """See ``Catalog``."""
        if target is None and self._owners.get(name, self) is not self:
            return
        self._catalog.list_model(name, target, info=info)
        if target is None:
            self._owners.pop(name, None)
            self._listed.pop(name, None)
        else:
            self._owners[name] = self
            self._listed[name] = (target, info)

    def withdraw(self) -> None:
        """List none of this instance's names any more."""
        for name in [name for name, owner in self._owners.items() if owner is self]:
            self.list_model(name, None)

    def restore(self) -> None:
        """List again what a successor has listed that is not to be."""
        for name, (target, info) in tuple(self._listed.items()):
            self.list_model(name, target, info=info)
