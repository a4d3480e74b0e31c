"""Ollama, as recorded from 0.17: ``/api/ps`` lists, ``/api/generate`` without a prompt loads and unloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Listed, ModelServer, ServerError, Trouble, mapping, rows

#: ``keep_alive`` that keeps a model until it is unloaded, and the one that unloads it.
FOR_EVER = -1
NOW = 0


class Ollama(ModelServer):
    """Ollama. Its own limit of loaded models has to be above the pool's, or it evicts by itself."""

    summary = "Ollama: /api/ps, /api/generate with keep_alive"
    tells_bytes: ClassVar[bool] = True
    keys: ClassVar[tuple[str, ...]] = ("options",)

    async def models(self) -> Mapping[str, Listed]:
        """``GET /api/ps``. What is being loaded is not in it."""
        answer = mapping(await self.call("GET", "/api/ps"), "/api/ps")
        return {
            str(row.get("name") or row.get("model")): Listed(bytes=_bytes(row))
            for row in rows(answer.get("models"), "/api/ps")
        }

    async def load(self, model: str) -> None:
        """``POST /api/generate`` without a prompt, which waits until it is loaded."""
        body: dict[str, Any] = {"model": model, "keep_alive": FOR_EVER, "stream": False}
        if "options" in self.settings:
            body["options"] = self.settings["options"]
        answer = mapping(await self.call("POST", "/api/generate", body), "/api/generate")
        if answer.get("done_reason") != "load":
            raise ServerError("/api/generate: the answer does not say that the model was loaded", Trouble.BROKEN)

    async def unload(self, model: str) -> None:
        """``keep_alive: 0``, which Ollama carries out when the model's requests have ended."""
        try:
            await self.call("POST", "/api/generate", {"model": model, "keep_alive": NOW, "stream": False})
        except ServerError as err:
            if err.trouble is not Trouble.MISSING:
                raise

    def canonical(self, model: str) -> str:
        """Return the name with its tag."""
        return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _bytes(row: Mapping[str, Any]) -> int | None:
    # On a CPU size_vram is 0; where a part lies in main memory, it is the part on the device.
    for key in ("size_vram", "size"):
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
