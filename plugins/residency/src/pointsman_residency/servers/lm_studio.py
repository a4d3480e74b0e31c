"""LM Studio's REST API: ``/api/v1/models`` lists, ``/api/v1/models/load`` and ``/api/v1/models/unload``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Listed, ModelServer, ServerError, Trouble, mapping, message_of, rows


class LmStudio(ModelServer):
    """LM Studio from 0.4, whose models have a key and loaded instances."""

    summary = "LM Studio: /api/v1/models, /api/v1/models/load, /api/v1/models/unload"

    async def models(self) -> Mapping[str, Listed]:
        """``GET /api/v1/models``: a model is resident when it has a loaded instance. It tells the bytes of the weights."""
        return {
            key: Listed(weights=weights * len(instances) or None)
            for key, (instances, weights) in (await self._instances()).items()
            if instances
        }

    async def load(self, model: str) -> None:
        """``POST /api/v1/models/load``, which waits; a second instance is not made."""
        instances, _ = (await self._instances()).get(model, ([], 0))
        if not instances:
            await self._do("/api/v1/models/load", {"model": model})

    async def unload(self, model: str) -> None:
        """Unload every instance of the model."""
        instances, _ = (await self._instances()).get(model, ([], 0))
        for instance in instances:
            try:
                await self._do("/api/v1/models/unload", {"instance_id": instance})
            except ServerError as err:
                if err.trouble is not Trouble.MISSING:
                    raise

    async def _do(self, path: str, body: Mapping[str, str]) -> None:
        answer = await self.call("POST", path, body)
        # It answers a path that it does not know with 200 and an error.
        if not isinstance(answer, Mapping) or "error" in answer:
            raise ServerError(message_of(answer) or f"{path}: the answer is not a JSON object", Trouble.BROKEN)

    async def _instances(self) -> dict[str, tuple[list[str], int]]:
        """Return the loaded instances of each model, and the bytes of its weights, 0 where they are not told."""
        answer = mapping(await self.call("GET", "/api/v1/models"), "/api/v1/models")
        found: dict[str, tuple[list[str], int]] = {}
        for row in rows(answer.get("models", answer.get("data")), "/api/v1/models"):
            loaded: Any = row.get("loaded_instances") or []
            size = row.get("size_bytes")
            found[str(row.get("key") or row.get("id"))] = (
                [str(instance.get("id")) for instance in rows(loaded, "/api/v1/models")],
                size if isinstance(size, int) and size > 0 else 0,
            )
        return found
