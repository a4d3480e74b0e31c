"""What the bridge replaces where LiteLLM authenticates requests and reaches providers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx
from litellm.caching.llm_caching_handler import LLMClientCache
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
from litellm.proxy import utils
from litellm.proxy.auth import user_api_key_auth
from websockets.asyncio import client as websocket_client

from ...types import Denial
from .. import bodies
from ..auth import denial_error
from ..call import client_call, current_call
from ..raw_answers import listen
from .patch import Patch, a_function, an_async_function, lacking

if TYPE_CHECKING:
    from ..guard import Guard

Authenticated = Callable[[Any, Mapping[str, Any]], Awaitable[None]]


def of_providers(guard: Guard, authenticated: Authenticated) -> tuple[Patch, ...]:
    """Return what is replaced where LiteLLM authenticates requests and reaches providers.

    Args:
        guard: Is asked before each call of a provider.
        authenticated: Awaited with the key and the body of each request that LiteLLM has authenticated.
    """
    unguarded = "requests that are not metered could reach providers"
    broken = "callbacks that use the network themselves are stopped as if they were the request"
    auth, handlers = "litellm.proxy.auth.user_api_key_auth", "litellm.llms.custom_httpx.http_handler"
    return (
        Patch(
            # Looked up at each request by what FastAPI holds; both for HTTP and for websockets.
            owner=user_api_key_auth,
            name="user_api_key_auth_builder",
            where=auth,
            expected=an_async_function("request", "api_key"),
            consequence=unguarded,
            required=True,
            replace=lambda original: _noting_authentication(original, guard, authenticated),
        ),
        Patch(
            owner=httpx.AsyncClient,
            name="send",
            where="httpx.AsyncClient",
            expected=an_async_function("request"),
            consequence=f"{unguarded}, and plugins do not see the response headers of some of them, such as rate limits",
            required=True,
            replace=lambda original: _guarded_send(original, guard),
        ),
        Patch(
            owner=httpx.Client,
            name="send",
            where="httpx.Client",
            expected=a_function("request"),
            consequence=unguarded,
            required=True,
            replace=lambda original: _guarded_blocking_send(original, guard),
        ),
        Patch(
            owner=websocket_client.connect,
            name="create_connection",
            where="websockets.asyncio.client.connect",
            expected=lambda target: an_async_function()(target) or lacking(websocket_client.connect.__init__, ("uri",)),
            consequence=unguarded,
            required=True,
            replace=lambda original: _guarded_connection(original, guard),
        ),
        *(
            Patch(
                owner=utils.ProxyLogging,
                name=name,
                where="litellm.proxy.utils.ProxyLogging",
                expected=an_async_function(),
                consequence=broken,
                replace=guard.around_callbacks,
            )
            for name in ("pre_call_hook", "during_call_hook")
        ),
        Patch(
            owner=LLMClientCache,
            name="set_cache",
            where="litellm.caching.llm_caching_handler.LLMClientCache",
            expected=a_function("key", "value"),
            consequence=broken,
            replace=lambda original: _noting_cached(original, guard),
        ),
        Patch(
            owner=AsyncHTTPHandler,
            name="create_client",
            where=f"{handlers}.AsyncHTTPHandler",
            expected=a_function(),
            consequence=broken,
            replace=lambda original: _noting_created(original, guard),
        ),
        *_database(guard),
    )


def _database(guard: Guard) -> Iterable[Patch]:
    """Tell the guard the HTTP clients that the prisma package uses to talk to its own engine."""
    if importlib.util.find_spec("prisma") is None:
        return
    module = importlib.import_module("prisma._async_http")
    yield Patch(
        owner=module.AsyncHTTP,
        name="open",
        where="prisma._async_http.AsyncHTTP",
        expected=a_function(),
        consequence="routes that only use LiteLLM's database are closed to keys that are limited or billed",
        replace=lambda original: _noting_session(original, guard),
    )


def _noting_authentication(build: Any, guard: Guard, authenticated: Authenticated) -> Any:
    async def noting(*args: Any, **kwargs: Any) -> Any:
        body = kwargs.get("request_data", {})
        is_object = type(body) is dict or isinstance(body, Mapping)
        if (call := client_call()) is not None:
            if not is_object:
                # LiteLLM looks for fields in it, and fails.
                message = "The body must be a JSON object."
                raise denial_error(Denial(status=400, code="invalid_body", message=message))
            call.arrive(bodies.noted(body))
        key = await build(*args, **kwargs)
        guard.authenticated(key)
        await authenticated(key, body if is_object else {})
        return key

    return noting


#: What runs out of time before a provider has the request.
_NOT_SENT: Final = (httpx.ConnectTimeout, httpx.PoolTimeout, httpx.WriteTimeout)


def _guarded_send(send: Any, guard: Guard) -> Any:
    """Ask the guard, and note each provider response: LiteLLM hides headers and usage of some from callbacks."""

    async def guarded(
        self: httpx.AsyncClient, request: httpx.Request, *, stream: bool = False, **kwargs: Any
    ) -> httpx.Response:
        call = guard.sending(self)
        response: httpx.Response
        if call is None:
            response = await send(self, request, stream=stream, **kwargs)
            return response
        url = request.url
        call.asks(f"{url.scheme}://{url.netloc.decode()}")
        if request.method == "POST":
            for name, value in call.unsent_headers.items():
                request.headers.setdefault(name, value)
        # Its beginning is noted before its body is read, which may break off.
        try:
            response = await send(self, request, stream=True, **kwargs)
        except httpx.TimeoutException as err:
            if not isinstance(err, _NOT_SENT):
                call.gave_up()
            raise
        listener = listen(response, keeps_text=call.passes_through)
        call.responded(response.status_code, response.headers, listener)
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response

    return guarded


def _guarded_blocking_send(send: Any, guard: Guard) -> Any:
    def guarded(self: httpx.Client, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        guard.sending(self)
        response: httpx.Response = send(self, request, **kwargs)
        return response

    return guarded


def _guarded_connection(connect: Any, guard: Guard) -> Any:
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard.check()
        if (call := current_call.get()) is not None and (running := call.running) is not None:
            running.calls(str(self.uri).partition("?")[0])
        return await connect(self, *args, **kwargs)

    return guarded


def _noting_cached(keep: Any, guard: Guard) -> Any:
    def noting(self: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        guard.cached(key, value)
        return keep(self, key, value, *args, **kwargs)

    return noting


def _noting_created(create: Any, guard: Guard) -> Any:
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = create(self, *args, **kwargs)
        guard.replaced(self, client)
        return client

    return noting


def _noting_session(open_session: Any, guard: Guard) -> Any:
    def noting(self: Any) -> None:
        open_session(self)
        guard.trust(self.session)

    return noting
