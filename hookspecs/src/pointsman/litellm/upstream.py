"""Calls of our own through LiteLLM's router: with its credentials and cooldowns, one attempt each, never retried there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UpstreamError
from ..host.runtime import new_id
from ..types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Chunk,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    RequestContext,
    UpstreamRequest,
    UpstreamResponse,
)
from . import values
from .bracket import Call, current_call
from .catalog import router

if TYPE_CHECKING:
    from ..host.exchange import Exchange, OpenAttempt
    from .install import Bridge

_METHODS = {
    Endpoint.CHAT: "acompletion",
    Endpoint.MESSAGES: "aanthropic_messages",
    Endpoint.RESPONSES: "aresponses",
    Endpoint.EMBEDDINGS: "aembedding",
}
_METADATA = {
    Endpoint.CHAT: "metadata",
    Endpoint.MESSAGES: "litellm_metadata",
    Endpoint.RESPONSES: "litellm_metadata",
    Endpoint.EMBEDDINGS: "metadata",
}
#: Attempts that are part of the client's request: they end with it and belong to its settlement.
_PART_OF_REQUEST = frozenset({AttemptKind.PRIMARY, AttemptKind.HEDGE, AttemptKind.FALLBACK, AttemptKind.RETRY})


class RouterUpstream:
    """Starts calls of our own.

    Args:
        bridge: The gateway and the host.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def start(self, request: UpstreamRequest) -> RouterCall:
        """Start an attempt at once.

        Raises:
            UpstreamError: the target is unknown, or the endpoint cannot be called.
        """
        if request.endpoint not in _METHODS:
            raise UpstreamError(f"calls of our own cannot use the endpoint {request.endpoint!s}")
        if not self._bridge.catalog.deployments(request.target):
            raise UpstreamError(f"the target {request.target!r} is neither a model group nor a deployment id")
        parent = current_call.get()
        exchange = None if parent is None else parent.exchange
        mine = exchange if exchange is not None and request.kind in _PART_OF_REQUEST else None
        if mine is not None and request.parent is not None and mine.ctx.request_id != request.parent.request_id:
            mine = None
        return RouterCall(self._bridge, request, mine or self._detached(request, exchange), parent)

    def _detached(self, request: UpstreamRequest, primary: Exchange | None) -> Exchange:
        host = self._bridge.host
        parent = request.parent
        identity = parent.identity if parent is not None else Identity()
        if request.tenant is not None:
            identity = replace(identity, tenant=request.tenant)
        ctx = RequestContext(
            request_id=new_id(),
            endpoint=request.endpoint,
            model=request.target,
            stream=request.stream,
            identity=identity,
            session_id=parent.session_id if parent is not None else None,
            body=request.body,
            received_at=host.clock.now(),
        )
        link = primary.span if primary is not None else None
        exchange = host.detached(ctx, link=link)
        exchange.route = replace(exchange.route, labels=dict(request.labels))
        return exchange


class RouterCall:
    """One running attempt; see ``pointsman.plugin.UpstreamCall``."""

    def __init__(self, bridge: Bridge, request: UpstreamRequest, exchange: Exchange, parent: Call | None) -> None:
        self._bridge = bridge
        self._request = request
        self._exchange = exchange
        self._call = Call(exchange.ctx.request_id, kind=request.kind)
        self._call.exchange = exchange
        self._call.metadata = dict(parent.metadata) if parent is not None else {}
        self._pieces: Any = None
        self._task: asyncio.Task[Any] = asyncio.create_task(self._open(), name=f"pointsman:{request.kind}")

    @property
    def attempt(self) -> Attempt:
        """The attempt: open while it runs, closed afterwards.

        Raises:
            UpstreamError: it has not reached a deployment yet.
        """
        if self._call.opened is None:
            raise UpstreamError("the attempt has not reached a deployment yet")
        return self._call.opened.attempt

    async def _open(self) -> Any:
        current_call.set(self._call)
        request = self._request
        arguments: dict[str, Any] = {
            **request.body,
            "model": request.target,
            "stream": request.stream,
            "num_retries": 0,
            "disable_fallbacks": True,
            _METADATA[request.endpoint]: dict(self._call.metadata),
        }
        if request.stream and request.endpoint is Endpoint.CHAT:
            arguments["stream_options"] = {"include_usage": True}
        if request.timeout_s is not None:
            arguments["timeout"] = request.timeout_s
        return await getattr(router(), _METHODS[request.endpoint])(**arguments)

    async def response(self) -> UpstreamResponse:
        """Wait for the whole answer.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time.
        """
        try:
            answer = await self._wait()
            opened = self._opened()
            self._bridge.callbacks.succeed(opened, answer)
        finally:
            self._close()
        body = answer if isinstance(answer, dict) else answer.model_dump() if hasattr(answer, "model_dump") else {}
        return UpstreamResponse(attempt=opened.attempt, body=body, raw=answer)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Read the answer of a streamed call.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time.
        """
        reader = values.StreamReader()
        error: BaseException | None = None
        try:
            self._pieces = pieces = await self._wait()
            opened = self._opened()
            async for piece in pieces:
                before = len(reader.text)
                content = reader.read(piece)
                if content:
                    opened.first_token()
                yield Chunk(has_content=content, text="".join(reader.text[before:]), raw=piece)
        except UpstreamError:
            raise
        except BaseException as err:
            error = err
            if isinstance(err, Exception):
                raise _upstream_error(err, self._bridge) from err
            raise
        finally:
            await self._end_stream(reader, error)

    async def _end_stream(self, reader: values.StreamReader, error: BaseException | None) -> None:
        opened = self._call.opened
        if opened is not None and not opened.closed and self._pieces is not None:
            headers = values.provider_headers(
                values.hidden_params(self._pieces).get("additional_headers"), self._call.provider_headers
            )
            self._bridge.callbacks.end_stream(opened, reader, headers, error, self._exchange.ctx)
        if self._pieces is not None:
            await _close_stream(self._pieces)
        self._close()

    async def _wait(self) -> Any:
        try:
            return await self._task
        except asyncio.CancelledError:
            # Either we are being cancelled, or the call was: its task ends in both cases.
            self._task.cancel()
            raise
        except UpstreamError:
            raise
        except Exception as err:
            opened = self._call.opened
            if opened is not None:
                self._bridge.callbacks.fail(opened, err)
            raise _upstream_error(err, self._bridge) from err

    def _opened(self) -> OpenAttempt:
        if self._call.opened is None:
            raise UpstreamError("LiteLLM answered without calling a deployment")
        return self._call.opened

    def _close(self) -> None:
        opened = self._call.opened
        if opened is not None:
            opened.end(Outcome.CANCELLED)
        if self._exchange.detached:
            self._exchange.close(200 if opened is not None and opened.attempt.outcome is Outcome.OK else 0)

    async def cancel(self) -> None:
        """End the attempt as cancelled and close its connection."""
        opened = self._call.opened
        if opened is not None:
            opened.end(
                Outcome.CANCELLED, error=AttemptError(kind=ErrorClass.UNKNOWN, message="cancelled by the plugin")
            )
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            pieces = await self._task
            await _close_stream(pieces)
        self._close()


async def _close_stream(pieces: Any) -> None:
    close = getattr(pieces, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _upstream_error(err: Exception, bridge: Bridge) -> UpstreamError:
    headers = values.provider_headers(getattr(err, "litellm_response_headers", None))
    why = values.attempt_error(err, headers, bridge.host.clock.now())
    error = UpstreamError(why.message, status=why.status, error_class=str(why.kind), retry_after_s=why.retry_after_s)
    error.__cause__ = err
    return error
