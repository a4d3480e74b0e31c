"""What the bridge uses and replaces in LiteLLM's proxy: its start and end, requests, and what it lists."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import litellm
import litellm.utils
from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils import litellm_logging, secret_redaction
from litellm.proxy import proxy_server, utils
from litellm.proxy.auth.route_checks import RouteChecks
from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler
from litellm.router import Router

from ..auth import DenialError
from ..batch_results import in_pieces
from ..bounded_patterns import BoundedPattern, with_short_words, without_middle
from ..middleware import MOST_PARTS, PATIENCE_S, RequestMiddleware
from ..request_spans import FrameworkTelemetry
from .patch import (
    Patch,
    a_function,
    a_hook_of,
    a_number,
    a_path,
    a_pattern,
    a_reader,
    an_async_function,
    anything,
    lacking,
)
from .routers import of_cooldowns

if TYPE_CHECKING:
    from starlette.types import Scope

    from ..call import ClientCall
    from ..catalog import RouterCatalog
    from ..request_spans import RequestSpans
    from ..sockets import MeteredSocket

Work = Callable[[], Awaitable[None]]

#: LiteLLM's patterns over texts of errors, and what each is shown of a long one.
_LOOKS_FOR: Final[Mapping[str, Callable[[str], str]]] = {
    "_SECRET_RE": without_middle,
    "_INTERNAL_DETAIL_RE": with_short_words,
}

_HOOKS: Final = "litellm.integrations.custom_logger.CustomLogger"


#: What LiteLLM asks about errors of requests.
_ASKED: Final = frozenset(
    {"is_database_connection_error", "is_database_service_unavailable_error_in_chain", "is_database_transport_error"}
)


def used(callbacks: type[CustomLogger]) -> tuple[Patch, ...]:
    """Return what is used and not replaced.

    Args:
        callbacks: Our class of callbacks.
    """
    config = "the pointsman: section cannot be read"
    hooks = {name: hook for name, hook in vars(callbacks).items() if name.startswith("async_")}
    server = partial(Patch, owner=proxy_server, where="litellm.proxy.proxy_server", required=True)
    top = partial(Patch, owner=litellm, where="litellm")
    router = partial(Patch, owner=Router, where="litellm.Router")
    return (
        Patch(
            owner=proxy_server.proxy_config,
            name="get_config_state",
            where="litellm.proxy.proxy_server.proxy_config",
            expected=a_reader,
            consequence=config,
            required=True,
        ),
        server(name="user_config_file_path", expected=a_path, consequence=config),
        server(name="llm_router", expected=anything, consequence="the deployments are not known"),
        server(
            name="redis_usage_cache",
            expected=anything,
            consequence="background responses that LiteLLM generates after their request cannot be told from others",
        ),
        server(name="master_key", expected=anything, consequence="the administrator's key is not known"),
        server(
            name="general_settings",
            expected=anything,
            consequence="it is not known which headers have keys and which pass-through routes there are",
        ),
        top(name="model_cost", expected=anything, consequence="prices are not known", required=True),
        top(
            name="get_model_info",
            expected=a_function("model", "custom_llm_provider"),
            consequence="prices and abilities of models are not known",
            required=True,
        ),
        top(
            name="token_counter",
            expected=a_function("model", "text"),
            consequence="prompts cannot be counted, and so not be limited by tokens",
            required=True,
        ),
        Patch(
            owner=litellm.utils,
            name="count_characters",
            where="litellm.utils",
            expected=a_function(),
            consequence="speech whose provider reports no usage fails, since its characters cannot be counted",
            required=True,
        ),
        top(
            name="provider_list",
            expected=anything,
            consequence="what a group named like 'openai/gpt-4o' falls back to is not known",
        ),
        top(
            name="should_retry",
            expected=a_function("status_code"),
            consequence="a race calls deployments again whose error LiteLLM does not retry",
        ),
        top(
            name="in_memory_llm_clients_cache",
            expected=anything,
            consequence="callbacks that use the network themselves are stopped as if they were the request",
        ),
        top(
            name="aretrieve_batch",
            expected=an_async_function("batch_id", "custom_llm_provider"),
            consequence="batches are not looked at in the background, and not billed unless a client reads them",
        ),
        top(
            name="afile_content",
            expected=an_async_function("file_id", "custom_llm_provider"),
            consequence="the results of batches cannot be read, and are not billed",
        ),
        Patch(
            owner=RouteChecks,
            name="non_proxy_admin_allowed_routes_check",
            where="litellm.proxy.auth.route_checks.RouteChecks",
            expected=a_function("user_obj", "_user_role", "route", "request", "valid_token", "request_data"),
            consequence="tenants are refused on every route unless custom_auth_run_common_checks is true",
        ),
        router(
            name="get_model_list",
            expected=a_function("model_name"),
            consequence="names that match a wildcard of the model list reach no deployment",
            required=True,
        ),
        *(
            router(
                name=name, expected=a_function(*parameters), consequence="batches are not looked at in the background"
            )
            for name, parameters in (
                ("get_model_ids", ()),
                ("get_deployment_credentials_with_provider", ("model_id", "team_id")),
            )
        ),
        *(_hook(name) for name in hooks),
        *(_hook_parameters(name, hook) for name, hook in hooks.items()),
    )


def _hook(name: str) -> Patch:
    return Patch(
        owner=CustomLogger,
        name=name,
        where=_HOOKS,
        expected=anything,
        consequence="requests and attempts cannot be followed from their start to their end",
        required=True,
    )


def _hook_parameters(name: str, ours: Any) -> Patch:
    # Not required: a new parameter does no harm until LiteLLM passes it.
    return Patch(
        owner=CustomLogger,
        name=name,
        where=_HOOKS,
        expected=a_hook_of(ours),
        consequence="requests fail where LiteLLM passes them",
    )


def _framework(spans: RequestSpans | None) -> tuple[Patch, ...]:
    app, name = proxy_server.app, "_native_telemetry"
    if spans is None or not hasattr(app, name):
        return ()  # FastAPI has its own telemetry from 0.165 on
    return (
        Patch(
            owner=app,
            name=name,
            where="litellm.proxy.proxy_server.app",
            expected=lambda target: lacking(type(target).__call__, ("scope", "legacy_otel")),
            consequence="a span of FastAPI's stands above each request's, with the client's sampling decision",
            replace=lambda original: FrameworkTelemetry(original, spans),
        ),
    )


def of_proxy(
    *,
    start: Work,
    stop: Work,
    finish: Callable[[ClientCall], None],
    catalog: RouterCatalog,
    spans: RequestSpans | None = None,
    patience_s: float = PATIENCE_S,
    meter: Callable[[Scope], MeteredSocket | None] | None = None,
    not_admitted: Callable[[ClientCall], None] | None = None,
    most_parts: Callable[[], int] = lambda: MOST_PARTS,
) -> tuple[Patch, ...]:
    """Return what is replaced in the proxy.

    Args:
        start: Starts the host, or waits until it has started.
        stop: Shuts the host down.
        finish: Closes what is still open of a request when its answer is out.
        catalog: Has the fields that plugins add to the models that they list.
        spans: Makes the requests' spans; None makes none.
        patience_s: How long a plain request is continued whose client has left, in seconds.
        meter: Returns what meters the responses on a websocket; None where its protocol is not known.
        not_admitted: Called with each request that was never admitted.
        most_parts: Returns the most lists, objects and entries that the JSON of a request may have.
    """
    app = proxy_server.app
    server = "litellm.proxy.proxy_server"
    return (
        Patch(
            owner=app,
            name="middleware_stack",
            where=f"{server}.app",
            expected=anything,
            consequence="requests cannot be opened and closed exactly once",
            required=True,
            replace=lambda stack: RequestMiddleware(
                stack or app.build_middleware_stack(),
                start,
                finish,
                spans,
                patience_s=patience_s,
                meter=meter,
                not_admitted=not_admitted,
                most_parts=most_parts,
            ),
        ),
        *_framework(spans),
        Patch(
            # Awaited by LiteLLM's start-up once the router exists.
            owner=proxy_server,
            name="initialize_shared_aiohttp_session",
            where=server,
            expected=an_async_function(),
            consequence="the plugins cannot be started before the first request",
            required=True,
            replace=lambda original: _after(start, original),
        ),
        Patch(
            # Awaited by LiteLLM's shutdown after in-flight requests have drained. Nothing else is reached in every server
            # mode: uvicorn raises SIGTERM again at the end of its own shutdown.
            owner=proxy_server,
            name="proxy_shutdown_event",
            where=server,
            expected=an_async_function(),
            consequence="requests that are not settled yet would be lost when the proxy stops",
            required=True,
            replace=lambda original: _after(stop, original),
        ),
        Patch(
            owner=litellm,
            name="DEFAULT_MAX_RETRIES",
            where="litellm",
            expected=a_number,
            consequence="a provider's SDK may retry within an attempt, unseen by plugins",
            replace=lambda _: 0,
        ),
        Patch(
            owner=utils,
            name="create_model_info_response",
            where="litellm.proxy.utils",
            expected=a_function("model_id"),
            consequence="GET /v1/models does not show what plugins add to the models that they list",
            replace=lambda original: _described(original, catalog),
        ),
        Patch(
            # Called when a client reads a batch that has ended.
            owner=litellm_logging,
            name="handle_completed_batch",
            where="litellm.litellm_core_utils.litellm_logging",
            expected=an_async_function("batch", "custom_llm_provider", "model_name", "litellm_params"),
            consequence="the worker stops, for minutes, while the results of a large batch are added up",
            replace=in_pieces,
        ),
        *(_in_bounded_time(name, shorten) for name, shorten in _LOOKS_FOR.items()),
        *_without_prisma(),
        *of_cooldowns(),
    )


def keep_denials_out_of_the_log() -> None:
    """Keep LiteLLM from logging a traceback for each denial: a refused client is not a fault of the gateway."""
    logging.getLogger("LiteLLM Proxy").addFilter(_is_no_denial)


def _after(work: Work, original: Any) -> Any:
    """Return LiteLLM's function with ``work`` before it. LiteLLM looks it up by name each time."""

    async def replaced(*args: Any, **kwargs: Any) -> Any:
        await work()
        return await original(*args, **kwargs)

    return replaced


def _described(describe: Any, catalog: RouterCatalog) -> Any:
    def described(model_id: str, *args: Any, **kwargs: Any) -> Any:
        return {**describe(model_id, *args, **kwargs), **catalog.listed_info(model_id)}

    return described


def _in_bounded_time(name: str, shorten: Callable[[str], str]) -> Patch:
    return Patch(
        owner=secret_redaction,
        name=name,
        where="litellm.litellm_core_utils.secret_redaction",
        expected=a_pattern,
        consequence="an error that repeats a long text of a client's stops the worker, for half a minute and more",
        replace=lambda pattern: BoundedPattern(pattern, shorten),
    )


def _without_prisma() -> Iterable[Patch]:
    """Let a refused key be a 401 where the prisma package is missing.

    ``litellm[proxy]`` does not install it, and LiteLLM asks it about errors of many routes: its ImportError would turn a 401
    or 429 into a bare 500. Without the package there is no database that could have failed.
    """
    if importlib.util.find_spec("prisma") is not None:
        return
    for name in _ASKED | {name for name in vars(PrismaDBExceptionHandler) if name.startswith("is_")}:
        yield Patch(
            owner=PrismaDBExceptionHandler,
            name=name,
            where="litellm.proxy.db.exception_handler.PrismaDBExceptionHandler",
            expected=a_function(),
            consequence="without the prisma package, a refused request may be answered with 500",
            replace=lambda _: staticmethod(lambda _: False),
        )


def _is_no_denial(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DenialError))
