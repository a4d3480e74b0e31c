"""Any server with one URL that loads and one that unloads; ``{model}`` in them is the model's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .base import Listed, ModelServer, mapping, rows, segment


class Generic(ModelServer):
    """Two URLs, and a third one for the list where there is one.

    ``load`` and ``unload`` are paths that are called with POST and the body ``{"model": name}``. ``list`` is a path that
    answers ``{"models": [{"name": ..., "bytes": ...}]}``; without it, what this plugin has done itself is believed.
    """

    summary = "two URLs: load and unload, and list where there is one"
    keys: ClassVar[tuple[str, ...]] = ("load", "unload", "list")

    @property
    def can_list(self) -> bool:
        """Whether a path for the list is configured."""
        return "list" in self.settings

    async def models(self) -> Mapping[str, Listed]:
        """Read the list."""
        path = str(self.settings["list"])
        found = {}
        for row in rows(mapping(await self.call("GET", path), path).get("models"), path):
            size = row.get("bytes")
            found[str(row.get("name"))] = Listed(bytes=size if isinstance(size, int) and size > 0 else None)
        return found

    async def load(self, model: str) -> None:
        """Call the first URL; its answer means that the model is loaded."""
        await self._do("load", model)

    async def unload(self, model: str) -> None:
        """Call the second URL."""
        await self._do("unload", model)

    async def _do(self, action: str, model: str) -> None:
        path = str(self.settings.get(action, f"/{action}")).replace("{model}", segment(model))
        await self.call("POST", path, {"model": model})
