"""llama-swap, as recorded: ``/running`` lists, ``/upstream/<model>/health`` loads, ``/api/models/unload`` unloads."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Listed, ModelServer, mapping, rows, segment

_ABSENT = frozenset({"stopped", "shutdown"})


class LlamaSwap(ModelServer):
    """llama-swap. Its groups must allow as many models at once as the pool does."""

    summary = "llama-swap: /running, /upstream/<model>/health, /api/models/unload/<model>"

    async def models(self) -> Mapping[str, Listed]:
        """``GET /running``."""
        answer = mapping(await self.call("GET", "/running"), "/running")
        return {
            str(row.get("model")): Listed(loading=row.get("state") == "starting")
            for row in rows(answer.get("running"), "/running")
            if row.get("state") not in _ABSENT
        }

    async def load(self, model: str) -> None:
        """Ask the model's own health: llama-swap starts it and answers when it is ready."""
        await self.call("GET", f"/upstream/{segment(model)}/health")

    async def unload(self, model: str) -> None:
        """Unload; it blocks while requests run, up to 10 s."""
        await self.call("POST", f"/api/models/unload/{segment(model)}")
