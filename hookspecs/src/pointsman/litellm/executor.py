"""The provider behind routes that a plugin executes itself.

A route that names an executor is sent to a model group of our own whose one deployment uses this provider. LiteLLM
translates messages and responses requests to chat for it and its answers back, so an executor sees chat only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from litellm.llms.custom_llm import CustomLLM, CustomLLMError

from ..errors import UpstreamError
from ..types import AttemptKind, Endpoint, Execution, UpstreamRequest
from .bracket import EXECUTOR_MODEL, Call, current_call
from .catalog import router

if TYPE_CHECKING:
    from ..plugin import UpstreamCall
    from .install import Bridge

PROVIDER: Final = "pointsman"
_NOT_FOR_PROVIDERS: Final = frozenset({"stream", "stream_options", "extra_headers", "max_retries"})


class _RouteUpstream:
    """Starts the attempts of one executed route: the body is the one LiteLLM has translated."""

    def __init__(self, bridge: Bridge, body: Mapping[str, object], *, stream: bool) -> None:
        self._bridge = bridge
        self._body = body
        self._stream = stream

    def start(self, request: UpstreamRequest) -> UpstreamCall:
        """Start an attempt at once; body, endpoint and stream are the route's."""
        return self._bridge.upstream.start(
            replace(request, body=self._body, endpoint=Endpoint.CHAT, stream=self._stream)
        )


class Executor(CustomLLM):  # type: ignore[misc]  # LiteLLM is not typed for us
    """Runs ``execute`` of the plugin that the route names.

    Args:
        bridge: The gateway and the host.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    async def _execute(self, arguments: Mapping[str, Any], *, stream: bool) -> tuple[Call, Execution]:
        call = current_call.get()
        if call is None or call.exchange is None or call.exchange.route.executor is None:
            raise CustomLLMError(status_code=404, message=f"model {EXECUTOR_MODEL!r} is internal and cannot be called")
        exchange = call.exchange
        options = {k: v for k, v in (arguments.get("optional_params") or {}).items() if k not in _NOT_FOR_PROVIDERS}
        body = MappingProxyType({**options, "messages": arguments["messages"]})
        upstream = _RouteUpstream(self._bridge, body, stream=stream)
        plugin = exchange.route.executor
        assert plugin is not None  # noqa: S101  # checked above
        try:
            execution = await self._bridge.host.calls.run_execute(plugin, exchange.ctx, exchange.route, upstream)
            if execution is None:
                plain = upstream.start(
                    UpstreamRequest(target=exchange.route.target, kind=AttemptKind.PRIMARY, body=body)
                )
                execution = Execution(chunks=plain.chunks()) if stream else Execution(response=await plain.response())
        except UpstreamError as err:
            raise _final(err) from err
        finally:
            call.awaited = False
        if execution.headers:
            exchange.route = exchange.route.with_headers(execution.headers)
        return call, execution

    async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a plain request."""
        _, execution = await self._execute(kwargs, stream=False)
        if execution.response is None:
            raise CustomLLMError(status_code=500, message="the executor answered a plain request with a stream")
        return execution.response.raw

    async def astreaming(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Answer a streamed request with the winner's own chunks."""
        _, execution = await self._execute(kwargs, stream=True)
        chunks = execution.chunks
        if chunks is None:
            raise CustomLLMError(
                status_code=500, message="the executor answered a streamed request with a whole answer"
            )
        try:
            async for chunk in chunks:
                yield chunk.raw
        except UpstreamError as err:
            raise _final(err) from err
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()


def _final(err: UpstreamError) -> Exception:
    """Return the provider's own exception where there is one: the client sees what it would have seen without us."""
    cause = err.__cause__
    if isinstance(cause, Exception) and getattr(cause, "status_code", None) is not None:
        return cause
    error: Exception = CustomLLMError(status_code=err.status or 502, message=str(err))
    return error


def ensure_deployment() -> str:
    """Make sure that the router has our model group; return its name."""
    llm_router = router()
    if not llm_router.get_model_list(model_name=EXECUTOR_MODEL):
        from litellm.types.router import Deployment, LiteLLM_Params  # noqa: PLC0415  # seldom needed

        llm_router.add_deployment(
            Deployment(
                model_name=EXECUTOR_MODEL,
                # A failed race says nothing about the next one: no cooldown.
                litellm_params=LiteLLM_Params(model=f"{PROVIDER}/{EXECUTOR_MODEL}", cooldown_time=0),
                model_info={"id": EXECUTOR_MODEL},
            )
        )
    return EXECUTOR_MODEL
