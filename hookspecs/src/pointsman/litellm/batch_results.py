"""Adds up what the results of a batch say, piece by piece and outside of the event loop, however large their file is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import litellm
from litellm.batches.batch_utils import calculate_batch_cost_and_usage, extract_file_access_credentials
from litellm.proxy.openai_files_endpoints.common_utils import get_original_file_id, is_base64_encoded_unified_file_id

HandleCompleted = Callable[..., Awaitable[Any]]

#: How much is read before it is added up, in bytes.
_PIECE: Final = 1 << 18
#: The longest line, in bytes: while one is parsed, nothing else runs.
_LONGEST_LINE: Final = 16 << 20
_OUTPUT_FILE: Final = "llm_output_file_id,"


def in_pieces(handle: HandleCompleted) -> HandleCompleted:
    """Return what takes the place of LiteLLM's function, which holds the whole file and parses it on the event loop.

    Args:
        handle: LiteLLM's ``handle_completed_batch``. The new function raises a ValueError where a line is too long.
    """

    async def handle_in_pieces(
        batch: Any,
        custom_llm_provider: str,
        model_name: str | None = None,
        litellm_params: Mapping[str, object] | None = None,
        **prices: Any,
    ) -> Any:
        credentials = extract_file_access_credentials(litellm_params)
        nothing = batch.model_copy(update={"output_file_id": None, "error_file_id": None})
        total = await handle(nothing, custom_llm_provider, model_name, litellm_params, **prices)

        if batch.output_file_id is not None:
            async for piece in _pieces(batch.output_file_id, custom_llm_provider, credentials):
                counted = await asyncio.to_thread(_count, piece, custom_llm_provider, model_name, prices)
                total = _sum(total, counted)
        if batch.error_file_id is None:
            return total
        failed = 0
        try:
            async for piece in _pieces(batch.error_file_id, custom_llm_provider, credentials):
                failed += len(piece)
        except Exception:  # noqa: BLE001  # as in LiteLLM: what has failed costs nothing, whether it can be read or not
            failed = 0
        return replace(total, failed_requests=total.failed_requests + failed)

    return handle_in_pieces


async def _pieces(file: str, provider: str, credentials: Mapping[str, Any]) -> AsyncIterator[list[bytes]]:
    """Read a provider's file; yield some of its lines at a time, without the empty ones.

    Raises:
        ValueError: a line is too long.
    """
    answer: Any = await litellm.afile_content(
        file_id=_provider_file(file), custom_llm_provider=provider, chunk_size=_PIECE, stream=True, **credentials
    )
    # From some providers, LiteLLM cannot stream it.
    stream: Any = getattr(answer, "stream_iterator", None) or _slices(answer.content)
    rest = b""
    try:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise ValueError("A line of a batch's results is longer than any answer, so its cost is not known.")
            if whole := [line for line in lines if line.strip()]:
                yield whole
        if rest.strip():
            yield [rest]
    finally:
        await stream.aclose()


async def _slices(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def _provider_file(file: str) -> str:
    """Return the provider's id of a file by the gateway's."""
    unified = is_base64_encoded_unified_file_id(file)
    if not isinstance(unified, str):
        return str(get_original_file_id(file))
    return unified.partition(_OUTPUT_FILE)[2].partition(";")[0] or file


def _count(lines: list[bytes], provider: str, model: str | None, prices: Mapping[str, Any]) -> Any:
    """Return what LiteLLM computes from some results; it takes a fraction of a millisecond for each, in a thread."""
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    return asyncio.run(calculate_batch_cost_and_usage(entries, provider, model, **prices))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _sum(total: Any, counted: Any) -> Any:
    """Return the sum of two results of LiteLLM's."""
    figures = ("cost", "prompt_cost", "completion_cost", "successful_requests", "failed_requests")
    return replace(
        total,
        usage=litellm.Usage(**_tokens(total.usage, counted.usage)),
        models=list(dict.fromkeys([*total.models, *counted.models])),
        **{name: getattr(total, name) + getattr(counted, name) for name in figures},
    )


def _tokens(*usages: Any) -> dict[str, int]:
    """Return the sums of the counts that LiteLLM adds up, by their names in its usage."""
    prompts = [one.prompt_tokens_details for one in usages if one.prompt_tokens_details is not None]
    answers = [one.completion_tokens_details for one in usages if one.completion_tokens_details is not None]
    special = {
        "cache_read_input_tokens": sum(one.cached_tokens or 0 for one in prompts),
        "cache_creation_input_tokens": sum(getattr(one, "cache_creation_tokens", None) or 0 for one in prompts),
        "reasoning_tokens": sum(one.reasoning_tokens or 0 for one in answers),
    }
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: sum(getattr(one, name) for one in usages) for name in counts} | {
        name: count for name, count in special.items() if count
    }
