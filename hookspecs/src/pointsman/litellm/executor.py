"""Routes that a plugin executes.

LiteLLM's router makes each attempt of a request, also a retry and one in a fallback group, through one method. For a route
that names an executor, this attempt is ours: the plugin's attempts are calls of the router, one each, with the endpoint's
own format, credentials, cooldowns and accounting, and when they fail, LiteLLM goes on as after a failed attempt of its own.
The virtual providers that LiteLLM offers instead speak chat only, and run and account for each request twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self
from weakref import WeakKeyDictionary

import litellm
from litellm.exceptions import APIError

from ..errors import HookError, UpstreamError
from ..host.exchange import Turn
from ..types import AttemptKind, Chunk, Endpoint, ErrorClass, Execution, Route
from . import native_router, patches
from .call import ClientCall, client_call
from .catalog import router
from .fallbacks import goes_on
from .upstream import GatewayError

if TYPE_CHECKING:
    from ..host.host import Host
    from .closing import Closer
    from .upstream import RouterUpstream, RouteUpstream

_BAD_GATEWAY: Final = 502
_TIMEOUT: Final = 408
#: Instead of an answer: LiteLLM makes the attempt itself.
_NOT_EXECUTED: Final = object()
#: LiteLLM's exceptions by class of error: its retries and fallbacks depend on them.
_EXCEPTIONS: Final = {
    ErrorClass.RATE_LIMIT: (litellm.RateLimitError, 429),
    ErrorClass.AUTH: (litellm.AuthenticationError, 401),
    ErrorClass.CLIENT: (litellm.BadRequestError, 400),
    ErrorClass.CONTENT_POLICY: (litellm.ContentPolicyViolationError, 400),
    ErrorClass.CONTEXT_WINDOW: (litellm.ContextWindowExceededError, 400),
    ErrorClass.NOT_FOUND: (litellm.NotFoundError, 404),
}


class Executor:
    """Runs ``execute`` of the plugin that a route names, and closes the gateway's attempts that fail unreported.

    Args:
        host: The started host, once requests come.
        upstream: Makes the plugin's calls.
        closer: Closes the gateway's attempts.
    """

    def __init__(self, host: Host, upstream: RouterUpstream, closer: Closer) -> None:
        self._host = host
        self._upstream = upstream
        self._closer = closer
        self._parts = patches.RouterParts(
            attempt=self._around_attempt,
            fallbacks=self._before_fallbacks,
            native_pick=self._around_native_pick,
            native_attempt=self._around_native_attempt,
        )
        #: What became of the attempts that plugins have made for the native router, until it asks for them.
        self._executed: WeakKeyDictionary[Any, Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]] = (
            WeakKeyDictionary()
        )
        #: Where the fallbacks of a call have led the native router.
        self._hops: WeakKeyDictionary[Any, native_router.Hop] = WeakKeyDictionary()

    def check(self) -> None:
        """Report at start what of the router cannot be replaced. Without a router there is nothing to check yet."""
        if (llm_router := router()) is not None:
            patches.report(patches.faults(patches.of_router(llm_router, self._parts)))

    def prepare(self, endpoint: Endpoint) -> bool:
        """Make sure that the router's attempts pass here; False for an endpoint whose requests cannot be executed."""
        # LiteLLM makes a new router when its configuration is changed while it runs.
        return patches.apply_to_router(router(), self._parts, endpoint)

    def _around_attempt(self, method: patches.Method) -> patches.Method:
        async def routed(*args: Any, **kwargs: Any) -> Any:
            call = client_call()
            if call is None:
                return await method(*args, **kwargs)
            try:
                answer = await self._execute(call, kwargs, kwargs.get("fallback_depth"))
                return await method(*args, **kwargs) if answer is _NOT_EXECUTED else answer
            except Exception as err:
                self._fail(call, err)
                raise

        return routed

    def _around_native_pick(self, method: patches.Method) -> patches.Method:
        async def picking(driver: Any, step: Mapping[str, Any]) -> Any:
            call = client_call()
            if call is None:
                return await method(driver, step)
            hop = self._hops[driver] = self._hops.get(driver, native_router.Hop()).after(driver, step)
            arguments = native_router.arguments_of(driver, step, hop, _skipped(call, every=hop.elsewhere))
            try:
                answer = await self._execute(call, arguments, step.get("fallback_depth"))
            except Exception as err:  # noqa: BLE001  # the router gets it as the failure of its attempt
                self._fail(call, err)
                self._executed[driver] = partial(_ended, native_router.failed, err)
            else:
                if answer is _NOT_EXECUTED:
                    return await method(driver, step)
                self._executed[driver] = partial(_ended, native_router.answered, answer)
            return native_router.executed_pick(step)

        return picking

    def _around_native_attempt(self, method: patches.Method) -> patches.Method:
        async def attempting(driver: Any, step: Mapping[str, Any]) -> Any:
            if (executed := self._executed.pop(driver, None)) is not None:
                return executed(driver, step)
            outcome = await method(driver, step)
            error, call = driver.last_error, client_call()
            if call is not None and isinstance(error, Exception) and not outcome.get("ok"):
                self._fail(call, error)
            return outcome

        return attempting

    def _before_fallbacks(self, method: patches.Method) -> patches.Method:
        async def failing(*args: Any, **kwargs: Any) -> Any:
            # A stream that fails before its first content is read outside of the attempt.
            error = next((value for value in (*args, *kwargs.values()) if isinstance(value, Exception)), None)
            if (call := client_call()) is not None and error is not None:
                self._fail(call, error)
            return await method(*args, **kwargs)

        return failing

    def _fail(self, call: ClientCall, err: Exception) -> None:
        """Close the attempt that the gateway goes on from, unless a callback has closed it."""
        if (running := call.running) is not None and call.exchange is not None:
            self._closer.fail_unreported(running, err, call.exchange.ctx, call.provider_headers, call.reader)

    async def _execute(self, call: ClientCall, arguments: Mapping[str, Any], depth: object) -> Any:
        """Return the plugin's answer to the attempt that LiteLLM is about to make, or ``_NOT_EXECUTED``.

        Args:
            call: The client's request.
            arguments: Those of LiteLLM's method for the endpoint.
            depth: How many fallbacks LiteLLM has gone on to before; None or 0 for the route itself.
        """
        if not call.is_for_executor(arguments.get("litellm_call_id")):
            return _NOT_EXECUTED
        route = _route(call, arguments.get("model"), depth)
        if route is None or route.executor is None:
            call.gateway_attempts()
            return _NOT_EXECUTED
        exchange = call.exchange
        assert exchange is not None  # noqa: S101  # a call that awaits an executor has one
        call.executor_starts()
        elsewhere, by_order = goes_on(call, str(arguments.get("model")), depth, self._upstream.catalog)
        exchange.turn = Turn(len(exchange.attempts), fallback=route.fallback, elsewhere=elsewhere, by_order=by_order)
        again = (AttemptKind.FALLBACK if route.fallback else AttemptKind.RETRY) if exchange.attempts else None
        upstream = self._upstream.of_route(call, exchange.ctx.endpoint, arguments, again)
        try:
            execution, answer = await self._within_time(call, route, upstream)
        except UpstreamError as err:
            exchange.turn_failed()
            if exchange.ctx.endpoint is Endpoint.MESSAGES and err.retry_after_s is not None:
                # LiteLLM answers with an exception's headers, but not to messages requests.
                call.error_headers = {"retry-after": str(math.ceil(err.retry_after_s))}
            raise_final(err)
        if execution is None:
            await upstream.cancel()
            call.gateway_attempts()
            return _NOT_EXECUTED
        call.executor_answered()
        if execution.headers:
            exchange.route = exchange.route.with_headers(execution.headers)
        return answer

    async def _within_time(
        self, call: ClientCall, route: Route, upstream: RouteUpstream
    ) -> tuple[Execution | None, Any]:
        """Return the plugin's execution and its answer or stream that has begun; None where the attempt is left to LiteLLM.

        Raises:
            UpstreamError: the attempts failed, or the plugin waited for none of them for as long as one may take.
        """
        exchange, plugin = call.exchange, route.executor
        assert exchange is not None  # noqa: S101  # an executed call has one
        assert plugin is not None  # noqa: S101  # the caller has looked
        try:
            with upstream.idle:
                with self._host.tracing.current(exchange.span):
                    execution = await exchange.hooks.run_execute(
                        plugin, exchange.ctx, route, upstream, exchange.has_attempted
                    )
                try:
                    return execution, None if execution is None else await _answer(call, execution, upstream)
                except HookError:
                    # Nothing was sent yet.
                    return None, None
        except TimeoutError as err:
            await upstream.cancel()
            text = f"waited {upstream.idle.seconds:g} s, the request's timeout, without a running attempt"
            exchange.hooks.faults.record(plugin, "execute", exchange.ctx.request_id, TimeoutError(text))
            text = f"the gateway's plugin {plugin!r} {text}"
            raise UpstreamError(text, status=_TIMEOUT, error_class=str(ErrorClass.TIMEOUT)) from err


def _skipped(call: ClientCall, *, every: bool) -> tuple[str, ...]:
    """Return the deployments that LiteLLM does not try again for a request while there are others.

    Args:
        call: The client's request.
        every: Whether all that have failed, or only those whose error says that a retry would not help.
    """
    attempts = () if call.exchange is None else call.exchange.attempts
    failed = {o.attempt.deployment.id: o.attempt.error.status for o in attempts if o.closed and o.attempt.error}
    return tuple(
        id_ for id_, status in failed.items() if every or (status is not None and not litellm.should_retry(status))
    )


def _ended(
    report: Callable[[Any, Mapping[str, Any], Any], Mapping[str, Any]],
    result: Any,
    driver: Any,
    step: Mapping[str, Any],
) -> Mapping[str, Any]:
    return report(driver, step, result)


def _route(call: ClientCall, group: object, depth: object) -> Route | None:
    """Return the route of the attempt that LiteLLM is about to make; None when it makes the attempt itself."""
    assert call.exchange is not None  # noqa: S101  # a call that awaits an executor has one
    route = call.exchange.route
    if not depth or call.is_route(group):
        return route
    if not route.executes_fallbacks or not isinstance(group, str):
        return None
    return replace(route, target=group, fallback=True)


async def _answer(call: ClientCall, execution: Execution, upstream: RouteUpstream) -> Any:
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
        if winner.source is winner.first:
            # LiteLLM has answered the stream as a whole.
            await _close(execution.chunks)
            return winner.source
    stream = _Stream(call, execution.chunks, first, None if winner is None else winner.source)
    exchange.on_close(stream.abandon)
    return stream


class _Stream:
    """The stream that LiteLLM passes on to the client: the winner's own pieces.

    Args:
        call: The client's request.
        chunks: From the executor, without the first.
        first: The first one; None when there is none.
        source: LiteLLM's own stream object, which has the attributes that LiteLLM reads: hidden parameters, headers.
    """

    def __init__(self, call: ClientCall, chunks: AsyncIterator[Chunk], first: Chunk | None, source: Any) -> None:
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
            raise_final(err)
        except asyncio.CancelledError:
            self._call.leave()
            raise
        return chunk.raw

    async def aclose(self) -> None:
        await _close(self._chunks)

    def abandon(self) -> None:
        """Close the chunks, also when reading has not begun."""
        self._closing = asyncio.create_task(self.aclose(), name="pointsman:close")


async def _close(chunks: AsyncIterator[Chunk]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def raise_final(err: UpstreamError) -> NoReturn:
    """Raise what a failed execution is for LiteLLM, see ``final_error``."""
    error = final_error(err)
    raise error from (error.__cause__ if isinstance(err, GatewayError) else err)


def final_error(err: UpstreamError) -> Exception:
    """Return the exception that a failed plain attempt would have raised; for an error of the plugin's own, a similar one."""
    error: Exception = err.original if isinstance(err, GatewayError) else _exception(err)
    if err.retry_after_s is not None and not getattr(error, "headers", None):
        # LiteLLM answers with an exception's headers.
        error.headers = {"retry-after": str(math.ceil(err.retry_after_s))}  # type: ignore[attr-defined]
    return error


def _exception(err: UpstreamError) -> Exception:
    facts = {"message": str(err), "llm_provider": "pointsman", "model": ""}
    error: Exception
    if err.error_class == ErrorClass.TIMEOUT:
        error = litellm.Timeout(**facts, exception_status_code=err.status)
        return error
    for kind, (exception, status) in _EXCEPTIONS.items():
        if err.error_class == kind and err.status in {None, status}:
            error = exception(**facts)
            return error
    is_error = err.status is not None and 400 <= err.status <= 599  # noqa: PLR2004  # HTTP's error statuses
    error = APIError(status_code=err.status if is_error else _BAD_GATEWAY, **facts)
    return error
