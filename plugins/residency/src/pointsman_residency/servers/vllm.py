"""vLLM's sleep mode, as documented; it needs ``VLLM_SERVER_DEV_MODE=1`` and ``--enable-sleep-mode``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from .base import Listed, ModelServer, ServerError, Trouble, mapping, rows

#: What its metrics say of how deeply each of its engines sleeps.
_STATE: Final = re.compile(
    r'^vllm:engine_sleep_state\{[^}\n]*sleep_state="(\w+)"[^}\n]*\} ([01])(?:\.0)?$', re.MULTILINE
)


class Vllm(ModelServer):
    """One vLLM server, which has one model: unloading it is sleeping. ``level`` 1 keeps the weights in main memory."""

    summary = "vLLM: /sleep, /wake_up, /is_sleeping; level 1 or 2"
    sleeps: ClassVar[bool] = True
    keys: ClassVar[tuple[str, ...]] = ("level",)

    async def models(self) -> Mapping[str, Listed]:
        """``GET /is_sleeping`` for the models of ``/v1/models``."""
        answer = mapping(await self.call("GET", "/v1/models"), "/v1/models")
        asleep = mapping(await self.call("GET", "/is_sleeping"), "/is_sleeping").get("is_sleeping")
        if not isinstance(asleep, bool):
            raise ServerError("/is_sleeping: the answer does not say whether it sleeps", Trouble.BROKEN)
        return {str(row.get("id")): Listed(sleeping=asleep) for row in rows(answer.get("data"), "/v1/models")}

    async def load(self, model: str) -> None:
        """Wake up; weights that were thrown away are read again between the two halves of it."""
        if mapping(await self.call("GET", "/is_sleeping"), "/is_sleeping").get("is_sleeping") is False:
            return
        if await self._keeps_weights():
            await self.call("POST", "/wake_up")
        else:
            await self.call("POST", "/wake_up", params={"tags": "weights"})
            await self.call("POST", "/collective_rpc", {"method": "reload_weights"})
            await self.call("POST", "/wake_up", params={"tags": "kv_cache"})
        # Its answer may come before it has woken up.
        await self.until_ready(model)

    async def unload(self, model: str) -> None:  # noqa: ARG002  # it has one
        """Sleep. ``mode=wait`` lets running requests end where vLLM knows it (0.17); the pool has none running."""
        await self.call("POST", "/sleep", params={"level": str(self._level), "mode": "wait"})

    async def _keeps_weights(self) -> bool:
        """Return whether the sleeping server has its weights in main memory.

        Its metrics know it also where something else has put it to sleep; those of older versions do not, and then it is the
        configured level. Awake without its weights it would answer nonsense, so that what is in doubt is read again: the
        metrics say "awake" of a server that was only half woken.
        """
        try:
            states = _STATE.findall(str(await self.call("GET", "/metrics")))
        except ServerError:
            states = []
        if not states:
            return self._level == 1
        return {state for state, holds in states if holds == "1"} == {"weights_offloaded"}

    @property
    def _level(self) -> int:
        return 2 if self.settings.get("level") in {2, "2"} else 1
