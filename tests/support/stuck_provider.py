"""A provider whose calls go on after they are cancelled, for LiteLLM's ``custom_provider_map``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from litellm import CustomLLM, ModelResponse
from litellm.types.utils import GenericStreamingChunk

#: Longer than a test waits for an answer.
STUCK_S = 30.0


async def _held() -> None:
    """Sleep, whatever is cancelled meanwhile."""
    ends = time.monotonic() + STUCK_S
    while (left_s := ends - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue


class Stuck(CustomLLM):
    """Answers late; of ``stuck/late-close``, a stream begins at once and is late when it is closed."""

    async def acompletion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer a plain request."""
        await _held()
        return ModelResponse()

    async def astreaming(self, model: str, *args: Any, **kwargs: Any) -> AsyncIterator[GenericStreamingChunk]:
        """Answer a streamed request."""
        try:
            if model != "late-close":
                await _held()
            for text in ("", "late"):
                yield {
                    "text": text,
                    "is_finished": False,
                    "finish_reason": "",
                    "usage": None,
                    "index": 0,
                    "tool_use": None,
                }
                await asyncio.sleep(STUCK_S if not text else 0)
        finally:
            await _held()


stuck = Stuck()
