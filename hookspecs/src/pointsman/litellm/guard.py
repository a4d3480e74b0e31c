"""Default deny: a request that is not metered does not reach a provider.

LiteLLM has more routes than its callbacks follow, and gains new ones with each version. So the guard does not know routes.
It stands where a provider is called, at each attempt and in the HTTP and websocket clients underneath, and asks what is
known of the request that the call is made for: a request that LiteLLM has authenticated must have been admitted there.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles
from litellm.proxy.response_polling.polling_handler import should_use_polling_for_request
from litellm.types.llms.custom_http import httpxSpecialProvider

from ..text import printable
from ..types import Denial, Endpoint
from .call import Call, ClientCall, UnmeteredError, current_call
from .endpoints import answers_with_usage, endpoint

if TYPE_CHECKING:
    from ..host.exchange import Exchange
    from ..host.settings import Policy
    from ..types import Deployment

#: What LiteLLM itself needs the network for. Its clients for everything else may reach a model.
_INTERNAL: Final = (
    httpxSpecialProvider.Caching,
    httpxSpecialProvider.GuardrailCallback,
    httpxSpecialProvider.LoggingCallback,
    httpxSpecialProvider.Oauth2Check,
    httpxSpecialProvider.Oauth2Register,
    httpxSpecialProvider.SecretManager,
    httpxSpecialProvider.SSO_HANDLER,
)
#: LiteLLM's names of cached clients: this, their parameters, and whom they are for.
_CACHED_CLIENT: Final = "async_httpx_client"
#: LiteLLM serves these through its router alone, whose calls are attempts. What it does before an attempt is its own business:
#: a cache that embeds the prompt, an image of which it needs the size.
_ROUTED: Final = frozenset(
    {
        Endpoint.CHAT,
        Endpoint.COMPLETIONS,
        Endpoint.EMBEDDINGS,
        Endpoint.GENERATE_CONTENT,
        Endpoint.IMAGES,
        Endpoint.INTERACTIONS,
        Endpoint.MESSAGES,
        Endpoint.MODERATIONS,
        Endpoint.OCR,
        Endpoint.RERANK,
        Endpoint.RESPONSES,
        Endpoint.SPEECH,
        Endpoint.TRANSCRIPTIONS,
        Endpoint.VIDEOS,
    }
)
_MOST_PATH_CHARS: Final = 200

#: Whether the running code is a callback of the operator's, which LiteLLM awaits before the provider is called.
_in_callback: Final[ContextVar[bool]] = ContextVar("pointsman_in_callback", default=False)


class Guard:
    """Decides whether a call of a provider may be made.

    Args:
        policy: Returns the policy for a route's path.
    """

    def __init__(self, policy: Callable[[str], Policy]) -> None:
        self._policy = policy
        self._internal: weakref.WeakSet[Any] = weakref.WeakSet()

    # -- what is known ------------------------------------------------------------------------------------------------

    def authenticated(self, key: Any) -> None:
        """Note that LiteLLM has authenticated the running request.

        Args:
            key: LiteLLM's ``UserAPIKeyAuth``.

        Raises:
            UnmeteredError: the request is a websocket that is not metered.
        """
        if not isinstance(call := current_call.get(), ClientCall):
            return
        role = getattr(key, "user_role", None)
        hashed = getattr(key, "api_key", None) or getattr(key, "token", None)
        call.let_in(admin=role == LitellmUserRoles.PROXY_ADMIN, key=str(hashed or ""))
        if call.scope["type"] == "websocket" and call.socket is None:
            # Some are translated to protocols that no client of the table speaks, so nothing underneath would be asked.
            self._check(call)

    @staticmethod
    def around_callbacks(hook: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return what awaits LiteLLM's callbacks: before the request is admitted they may use the network, as the operator's."""

        async def in_callbacks(*args: Any, **kwargs: Any) -> Any:
            token = _in_callback.set(True)
            try:
                return await hook(*args, **kwargs)
            finally:
                _in_callback.reset(token)

        return in_callbacks

    def cached(self, key: object, handler: Any) -> None:
        """Note what LiteLLM has made an HTTP client for.

        Args:
            key: The name under which LiteLLM keeps it.
            handler: LiteLLM's ``AsyncHTTPHandler``; others are ignored.
        """
        if not isinstance(key, str) or not key.startswith(_CACHED_CLIENT):
            return
        if key.endswith(tuple(provider.value for provider in _INTERNAL)):
            self._internal.add(handler)
            self._internal.add(handler.client)

    def already_cached(self, entries: Mapping[str, Any]) -> None:
        """Note the clients that LiteLLM has made before it loaded us.

        Args:
            entries: By the names under which LiteLLM keeps them, which end with the event loop's.
        """
        for key, handler in entries.items():
            self.cached(key, handler)
            self.cached(key.rpartition("-")[0], handler)

    def replaced(self, handler: Any, client: Any) -> None:
        """Note that one of LiteLLM's handlers has made itself another client."""
        if handler in self._internal:
            self._internal.add(client)

    def trust(self, client: Any) -> None:
        """Note that a client never reaches a provider."""
        self._internal.add(client)

    def is_internal(self, client: Any) -> bool:
        """Return whether a client never reaches a provider."""
        return client in self._internal

    # -- the decision -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the running request may reach a provider now.

        Raises:
            UnmeteredError: it must not.
        """
        if isinstance(call := current_call.get(), ClientCall):
            self._check(call)

    def beginning(self, call: ClientCall, exchange: Exchange, deployment: Deployment) -> None:
        """Check an attempt of a request that was admitted, before it is opened.

        LiteLLM also makes attempts where it can say neither what is used nor at what price: searches of vector stores,
        containers, fine-tuning. And where it names no model, nothing can be limited by it.

        Args:
            call: The request.
            exchange: Its exchange.
            deployment: Where the attempt goes.

        Raises:
            UnmeteredError: it is not metered.
        """
        if exchange.ctx.generates and not _is_metered(call, exchange.ctx.endpoint, deployment):
            self._deny(call)

    def polled(self, call: ClientCall, data: Mapping[str, Any], call_type: str) -> Denial | None:
        """Return why a background response is denied that LiteLLM generates after its request is settled; None for other requests.

        Args:
            call: The request.
            data: LiteLLM's request.
            call_type: LiteLLM's name of the operation. Images have a field of the same name.
        """
        is_response = endpoint(call_type, call.path) is Endpoint.RESPONSES
        polls = (
            is_response
            and data.get("background")
            and should_use_polling_for_request(
                background_mode=True,
                polling_via_cache_enabled=getattr(proxy_server, "polling_via_cache_enabled", False),
                redis_cache=proxy_server.redis_usage_cache,
                model=str(data.get("model") or ""),
                llm_router=proxy_server.llm_router,
                native_background_mode=getattr(proxy_server, "native_background_mode", None),
            )
        )
        if not polls or call.admin is not False or self._policy(call.path) != "deny":
            return None
        return _POLLED

    def sending(self, client: Any) -> Call | None:
        """Check an HTTP request; return the call for which it asks a provider, or None.

        Args:
            client: The client that sends it.

        Raises:
            UnmeteredError: it must not be sent.
        """
        call = current_call.get()
        if call is None or client in self._internal:
            return None
        if isinstance(call, ClientCall):
            self._check(call)
        return call

    def _check(self, call: ClientCall) -> None:
        if call.admin is not False or call.over or _in_callback.get():
            return
        exchange = call.exchange
        if exchange is not None and exchange.denial is not None:
            raise UnmeteredError  # LiteLLM goes on although the request is denied
        if exchange is not None and (
            exchange.attempts or exchange.ctx.endpoint in _ROUTED or not exchange.ctx.generates
        ):
            return
        self._deny(call)

    def _deny(self, call: ClientCall) -> None:
        path = call.path
        if call.admin is False and self._policy(path) == "deny":
            call.refuse(_denial(path))
            raise UnmeteredError


def _is_metered(call: ClientCall, endpoint: Endpoint, deployment: Deployment) -> bool:
    if endpoint is Endpoint.BATCHES:
        return True  # its models stand in a file
    if not deployment.model:
        return False
    if endpoint is Endpoint.PASS_THROUGH:
        return answers_with_usage(str(call.scope.get("method", "")), call.path, configured_pass_throughs())
    return endpoint in _ROUTED


def configured_pass_throughs() -> Iterator[str]:
    """Return the paths of the pass-throughs in LiteLLM's configuration."""
    for entry in (proxy_server.general_settings or {}).get("pass_through_endpoints") or ():
        if isinstance(entry, Mapping) and isinstance(path := entry.get("path"), str):
            yield path


_POLLED: Final = Denial(
    status=403,
    code="unmetered_route",
    message="This gateway answers background responses from its own cache (`polling_via_cache`), and cannot meter them for keys that are "
    "limited or billed. Send the request without `background`, or ask the operator to leave the model to its provider "
    "(`native_background_mode`).",
    param="background",
)


def _denial(path: str) -> Denial:
    return Denial(
        status=403,
        code="unmetered_route",
        message=f"This gateway cannot meter {printable(path, _MOST_PATH_CHARS)!r}, so the route is closed to keys that are "
        "limited or billed. Use another route, or ask the operator to allow this one (`unmetered` in the `pointsman:` section).",
    )
