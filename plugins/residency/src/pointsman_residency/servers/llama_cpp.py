"""llama.cpp's server in router mode, as recorded: ``/models`` lists, ``/models/load`` and ``/models/unload``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Listed, ModelServer, ServerError, Trouble, mapping, pause_s, rows

#: Statuses of a model that is not in memory.
_ABSENT = frozenset({"unloaded", ""})


class LlamaCpp(ModelServer):
    """llama-server as a router. It tells the weights, not the memory, so footprints have to be configured."""

    summary = "llama.cpp's server in router mode: /models, /models/load, /models/unload"

    async def models(self) -> Mapping[str, Listed]:
        """``GET /models``; unlike ``/slots?model=`` it loads nothing."""
        return {
            name: Listed(weights=weights, loading=status == "loading", sleeping=status == "sleeping")
            for name, (status, _, weights) in (await self._statuses()).items()
            if status not in _ABSENT
        }

    async def load(self, model: str) -> None:
        """``POST /models/load`` answers at once; a broken file shows only in the list."""
        try:
            await self.call("POST", "/models/load", {"model": model})
        except ServerError as err:
            if "already" not in str(err):
                raise
        began = self.clock.monotonic()
        while True:
            status, row, _ = (await self._statuses()).get(model, ("", {}, None))
            if status in {"loaded", "sleeping"}:
                # A sleeping model wakes by itself at its next request.
                return
            if status in _ABSENT and not row.get("failed"):
                # Restarted, or told to unload it: the model is not what is wrong.
                raise ServerError(f"llama-server no longer loads {model!r}", Trouble.UNREACHABLE)
            if status in _ABSENT:
                code = row.get("exit_code")
                raise ServerError(
                    f"llama-server failed to load {model!r}" + (f" (exit code {code})" if code is not None else ""),
                    Trouble.BROKEN,
                )
            await self.clock.sleep(pause_s(self.clock.monotonic() - began))

    async def unload(self, model: str) -> None:
        """``POST /models/unload``, which cuts running streams: the pool asks for it when there are none."""
        try:
            await self.call("POST", "/models/unload", {"model": model})
        except ServerError as err:
            # 400 is its answer for a model that it does not know or has not loaded.
            if err.trouble is not Trouble.BROKEN or "not" not in str(err):
                raise

    async def limit(self) -> int | None:
        """``GET /props``: ``--models-max``; 0 is no limit."""
        most = mapping(await self.call("GET", "/props"), "/props").get("max_instances")
        return most if isinstance(most, int) and most > 0 else None

    async def _statuses(self) -> dict[str, tuple[str, Mapping[str, Any], int | None]]:
        answer = mapping(await self.call("GET", "/models"), "/models")
        found: dict[str, tuple[str, Mapping[str, Any], int | None]] = {}
        for row in rows(answer.get("data"), "/models"):
            status = row.get("status")
            status = status if isinstance(status, Mapping) else {"value": status}
            meta = row.get("meta")
            size = meta.get("size") if isinstance(meta, Mapping) else None
            weights = size if isinstance(size, int) and size > 0 else None
            found[str(row.get("id"))] = (str(status.get("value") or ""), status, weights)
        return found
