"""Routes that a plugin executes itself.

LiteLLM's proxy hands every request to a method of its router. For a route that names an executor, this call is ours, and
the plugin's attempts are calls of the same method: each of them is what a plain request would have been, with the
endpoint's own format, credentials, cooldowns and accounting, and a request with one attempt costs what it costs without
us. The virtual providers that LiteLLM offers instead speak chat only, and run and account for each request twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from litellm.exceptions import APIError

from ..errors import UpstreamError
from ..types import Chunk, Endpoint, Execution
from .bracket import Call, current_call
from .catalog import router

if TYPE_CHECKING:
    from .install import Bridge
    from .upstream import RouteUpstream

#: The router's methods that the proxy calls, by endpoint. Requests to other endpoints cannot be executed by a plugin.
METHODS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "acompletion",
    Endpoint.MESSAGES: "anthropic_messages",
    Endpoint.RESPONSES: "aresponses",
    Endpoint.EMBEDDINGS: "aembedding",
}
_OURS: Final = "_pointsman_executes"


class Executor:
    """Runs ``execute`` of the plugin that a route names.

    Args:
        bridge: The gateway and the host.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def prepare(self, endpoint: Endpoint) -> bool:
        """Make sure that the router's calls pass here; False for an endpoint whose calls do not."""
        llm_router = router()
        if endpoint not in METHODS:
            return False
        # LiteLLM makes a new router when its configuration is changed while it runs.
        if not getattr(llm_router, _OURS, False):
            for each, name in METHODS.items():
                setattr(llm_router, name, self._around(each, getattr(llm_router, name)))
            setattr(llm_router, _OURS, True)
        return True

    def _around(self, endpoint: Endpoint, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def routed(*args: Any, **kwargs: Any) -> Any:
            call = current_call.get()
            # A guardrail may ask a model on behalf of the same request: its call has an id of its own.
            if call is None or not call.awaited or kwargs.get("litellm_call_id") != call.executed_id:
                return await method(*args, **kwargs)
            return await self._execute(call, endpoint, method, kwargs)

        return routed

    async def _execute(
        self, call: Call, endpoint: Endpoint, method: Callable[..., Awaitable[Any]], arguments: dict[str, Any]
    ) -> Any:
        exchange = call.exchange
        assert exchange is not None  # noqa: S101  # an awaited call has one
        plugin = exchange.route.executor
        assert plugin is not None  # noqa: S101  # as above
        upstream = self._bridge.upstream.of_route(call, endpoint, method, arguments)
        try:
            execution = await self._bridge.host.calls.run_execute(plugin, exchange.ctx, exchange.route, upstream)
            if execution is None:
                await upstream.cancel()
                call.awaited = False
                return await method(**arguments)
            call.executed = True
            answer = await _answer(call, execution, upstream)
        except UpstreamError as err:
            call.executed = True
            if endpoint is Endpoint.MESSAGES and err.retry_after_s is not None:
                # LiteLLM answers with an exception's headers, but not to messages requests.
                exchange.route = exchange.route.with_headers({"retry-after": str(math.ceil(err.retry_after_s))})
            raise final_error(err) from err
        finally:
            call.awaited = False
        if execution.headers:
            exchange.route = exchange.route.with_headers(execution.headers)
        return answer


async def _answer(call: Call, execution: Execution, upstream: RouteUpstream) -> Any:
    exchange = call.exchange
    assert exchange is not None  # noqa: S101  # an executed call has one
    if execution.response is not None and not upstream.stream:
        exchange.answered_by = execution.response.attempt.id
        return execution.response.raw
    if execution.chunks is None or not upstream.stream:
        raise UpstreamError(
            "the executor answered a streamed request without chunks"
            if upstream.stream
            else "the executor answered a plain request without a response",
            status=500,
        )
    try:
        # An attempt that fails at once is an answer with the provider's status, not a stream that breaks.
        first = await anext(execution.chunks, None)
    except BaseException:
        await _close(execution.chunks)
        raise
    winner = None if first is None else upstream.whose(first.raw)
    if winner is not None:
        exchange.answered_by = winner.attempt.id
    stream = _Stream(call, execution.chunks, first, None if winner is None else winner.source)
    exchange.on_close(stream.abandon)
    return stream


class _Stream:
    """The stream that LiteLLM passes on to the client: the winner's own pieces.

    Args:
        call: The client's request.
        chunks: From the executor, without the first.
        first: The first one; None when there is none.
        source: LiteLLM's own stream object, which tells the deployment, its headers and the like.
    """

    def __init__(self, call: Call, chunks: AsyncIterator[Chunk], first: Chunk | None, source: Any) -> None:
        self._call = call
        self._chunks = chunks
        self._first = first
        self._source = source
        self._closing: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        first, self._first = self._first, None
        if first is not None:
            return first.raw
        try:
            chunk = await anext(self._chunks)
        except UpstreamError as err:
            raise final_error(err) from err
        except asyncio.CancelledError:
            self._call.gone = True
            raise
        return chunk.raw

    async def aclose(self) -> None:
        await _close(self._chunks)

    def abandon(self) -> None:
        """Close the chunks, also when nobody has begun to read."""
        self._closing = asyncio.create_task(self.aclose(), name="pointsman:close")


async def _close(chunks: AsyncIterator[Chunk]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def final_error(err: UpstreamError) -> Exception:
    """Return the provider's own exception where there is one: the client sees what it would have seen without us."""
    cause = err.__cause__
    error: Exception
    if isinstance(cause, Exception) and getattr(cause, "status_code", None) is not None:
        error = cause
    else:
        error = APIError(status_code=err.status or 502, message=str(err), llm_provider="pointsman", model="")
    if err.retry_after_s is not None and not getattr(error, "headers", None):
        # LiteLLM answers with an exception's headers.
        error.headers = {"retry-after": str(math.ceil(err.retry_after_s))}  # type: ignore[attr-defined]
    return error
