"""The results of batches, read from a provider's file as it comes."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import litellm
import pytest
from litellm.batches.batch_utils import calculate_batch_cost_and_usage, handle_completed_batch
from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients
from litellm.types.utils import LiteLLMBatch

from pointsman.litellm import batch_results

# LiteLLM imports some of its modules at their first use; a type in one of them warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")

MEGABYTE = 1 << 20


def line(number: int, *, status: int = 200, text: str = "hi") -> bytes:
    usage = {
        "prompt_tokens": 100 + number,
        "completion_tokens": 20,
        "total_tokens": 120 + number,
        "prompt_tokens_details": {"cached_tokens": 40, "cache_creation_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    body = {"id": f"c{number}", "model": "gpt-4o-mini", "choices": choices, "usage": usage}
    answer = {"status_code": status, "request_id": f"r{number}", "body": body}
    return json.dumps({"id": str(number), "custom_id": str(number), "response": answer}).encode()


FILES: dict[str, Callable[[], Iterator[bytes]]] = {
    "small": lambda: (line(n, status=500 if n % 7 == 0 else 200) + b"\n" for n in range(1200)),
    "odd": lambda: iter([line(1), b"\n\n  \nnot JSON\n[1]\n", line(2)[:50], line(2)[50:] + b"\n", line(3)]),
    "errors": lambda: (line(n, status=400) + b"\n" for n in range(5)),
    "large": lambda: (line(n, text="x" * 200_000) + b"\n" for n in range(320)),
    "endless": lambda: (b"x" * MEGABYTE for _ in range(40)),
    "none": lambda: iter([]),
}


class Provider(BaseHTTPRequestHandler):
    """A provider that sends files as they are made."""

    def do_GET(self) -> None:  # the library's name
        self.send_response(200)
        self.send_header("content-type", "application/octet-stream")
        self.end_headers()
        try:
            for part in FILES[self.path.split("/")[-2]]():
                self.wfile.write(part)
        except ConnectionError:
            return

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def batch(output: str | None, errors: str | None = None) -> LiteLLMBatch:
    return LiteLLMBatch(
        id="batch_1",
        object="batch",
        created_at=1,
        status="completed",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        completion_window="24h",
        output_file_id=output,
        error_file_id=errors,
    )


async def read(handle: Any, url: str, *files: str | None) -> Any:
    try:
        return await handle(batch(*files), "openai", None, {"api_key": "sk-provider", "api_base": url})
    finally:
        # LiteLLM keeps its clients; those of another event loop close nothing any more.
        await close_litellm_async_clients()
        litellm.in_memory_llm_clients_cache.flush_cache()


def essence(result: Any) -> dict[str, Any]:
    """Return what is used of a result."""
    usage = result.usage
    return {
        # LiteLLM adds them up in another order.
        "costs": tuple(round(usd, 12) for usd in (result.cost, result.prompt_cost, result.completion_cost)),
        "requests": (result.successful_requests, result.failed_requests),
        "models": set(result.models),
        "tokens": (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        "cached": getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0,
        "written": getattr(usage.prompt_tokens_details, "cache_creation_tokens", None) or 0,
        "reasoning": getattr(usage.completion_tokens_details, "reasoning_tokens", None) or 0,
    }


@pytest.mark.parametrize(
    "files", [("small", None), ("small", "errors"), ("odd", None), (None, "errors"), ("none", None)]
)
async def test_the_sum_is_that_of_litellm(url: str, files: tuple[str | None, str | None]) -> None:
    mine = await read(batch_results.in_pieces(handle_completed_batch), url, *files)
    assert essence(mine) == essence(await read(handle_completed_batch, url, *files))


async def test_a_large_file_is_never_held_as_a_whole(url: str) -> None:
    handle = batch_results.in_pieces(handle_completed_batch)
    await read(handle, url, "odd", None)
    tracemalloc.start()
    try:
        result = await read(handle, url, "large", None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.successful_requests == 320
    assert peak < 16 * MEGABYTE


async def test_the_event_loop_runs_while_results_are_added_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, count, turns = asyncio.get_running_loop(), calculate_batch_cost_and_usage, []

    async def counting(*args: Any, **kwargs: Any) -> Any:
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        turns.append(turned.wait(30))
        return await count(*args, **kwargs)

    monkeypatch.setattr(batch_results, "calculate_batch_cost_and_usage", counting)
    await read(batch_results.in_pieces(handle_completed_batch), url, "small", None)
    assert len(turns) > 1
    assert all(turns)


async def test_a_line_without_an_end_is_given_up(url: str) -> None:
    with pytest.raises(ValueError, match="longer than any answer"):
        await read(batch_results.in_pieces(handle_completed_batch), url, "endless", None)


async def test_errors_that_cannot_be_read_cost_nothing(url: str) -> None:
    handle = batch_results.in_pieces(handle_completed_batch)
    whole = await read(handle, url, "small", None)
    assert essence(await read(handle, url, "small", "endless")) == essence(whole)
