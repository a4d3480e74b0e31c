"""Installs the host into the running LiteLLM proxy: start-up, shutdown, the ASGI bracket, the admin routes.

Everything here that is not a documented callback, so that a change in LiteLLM has one place to be met:

* ``proxy_config.get_config_state`` and ``user_config_file_path``: the configuration.
* ``app.middleware_stack``: the bracket becomes the outermost layer.
* ``initialize_shared_aiohttp_session``: awaited by LiteLLM's start-up once the router exists; ours goes before it.
* ``proxy_shutdown_event``: awaited by LiteLLM's shutdown after in-flight requests have drained; ours goes before it.
* ``PrismaDBExceptionHandler``: without the prisma package a refused key must still be a 401.
* ``litellm.DEFAULT_MAX_RETRIES``: no retries inside an attempt.
* ``httpx.AsyncClient.send``: the provider's response headers, for the providers whose LiteLLM callbacks have none.
* ``create_model_info_response``: what plugins say of the models that they list.
* The garbage collector: what start-up has made is taken out of its sight.
* The router's ``acompletion``, ``anthropic_messages``, ``aresponses`` and ``aembedding``: a plugin may execute a route.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import httpx
import litellm
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from litellm.constants import LITELLM_PROXY_ADMIN_NAME
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server, utils
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler
from starlette.responses import Response

from ..errors import ConfigError, PointsmanError
from ..host import config
from ..host.admin import error_body
from ..host.host import Host
from ..host.tracing import configure
from .auth import DenialError
from .bracket import Bracket, Scope, current_call
from .callbacks import Callbacks
from .catalog import CostMap, PromptTokenizer, RouterCatalog
from .executor import Executor
from .upstream import RouterUpstream

log: Final = logging.getLogger("pointsman")

#: The exit code of a failed start: uvicorn's own, and the one that makes gunicorn stop instead of starting again.
EXIT_START_FAILED: Final = 3
_USER_CHARS: Final = 128
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class Bridge:
    """The gateway as the host sees it, and the host as the callbacks see it."""

    def __init__(self) -> None:
        self.catalog = RouterCatalog()
        self.prices = CostMap()
        self.tokenizer = PromptTokenizer()
        self.upstream: RouterUpstream = RouterUpstream(self)
        self.host: Host = Host(_settings(), self)
        self.callbacks = Callbacks(self)
        self.executor = Executor(self)
        self._starting: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Wait until the host has started, starting it if nobody has yet."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="pointsman:start")
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        try:
            self.host.tracing = configure(enabled=self.host.settings.host.tracing.enabled)
            await self.host.start()
        except PointsmanError as err:
            stop_the_start(err)
        _freeze_the_heap()

    async def stop(self) -> None:
        """Shut the host down."""
        if self._starting is not None:
            await self.host.stop()


_bridge: Bridge | None = None


def stop_the_start(err: PointsmanError) -> NoReturn:
    """Say what is wrong, once, and end the process: an exception here would drown in tracebacks of the servers."""
    sys.stdout.flush()
    sys.stderr.write(f"\npointsman: cannot start: {err}\n\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(EXIT_START_FAILED)


async def running_host() -> Host:
    """Return the host of this worker, started."""
    if _bridge is None:
        raise ConfigError('litellm_settings.callbacks does not mention "pointsman.litellm.handler"; add it')
    await _bridge.ready()
    return _bridge.host


def install() -> CustomLogger:
    """Build the host and install it; a second call returns callbacks that do nothing. Called by LiteLLM's start-up."""
    global _bridge  # noqa: PLW0603  # LiteLLM imports an instance: there is one per worker
    if _bridge is not None:
        # LiteLLM calls every mention of a callback: a second one must not run each hook twice.
        log.warning("litellm_settings.callbacks mentions pointsman.litellm.handler more than once; once is enough")
        return CustomLogger()
    try:
        bridge = Bridge()
    except PointsmanError as err:
        stop_the_start(err)
    _setup_logging(bridge.host)
    logging.getLogger("LiteLLM Proxy").addFilter(_is_no_denial)
    app = proxy_server.app
    app.include_router(_admin_router(bridge))
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    app.middleware_stack = Bracket(app.middleware_stack, bridge.ready)
    # An attempt is one call: the provider SDK's own silent retries (LiteLLM's default for embeddings) would hide in it.
    litellm.DEFAULT_MAX_RETRIES = 0
    _without_prisma()
    _watch_responses()
    _describe_models(bridge)
    _go_before("initialize_shared_aiohttp_session", bridge.ready)
    _go_before("proxy_shutdown_event", bridge.stop)
    _bridge = bridge
    return bridge.callbacks


def _freeze_the_heap() -> None:
    """Take what start-up has made out of the garbage collector's sight.

    LiteLLM's modules and its cost map are objects by the hundred thousand that live as long as the process. A full
    collection walks through all of them while every request waits: half a second, once in some hundred requests. The
    second collection tells the collector how little is left to walk through.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def _settings() -> config.Settings:
    section = proxy_server.proxy_config.get_config_state().get(config.SECTION)
    file = proxy_server.user_config_file_path
    base = Path(file).resolve().parent if file else Path.cwd()
    return config.parse(section, str(file or "LiteLLM configuration"), base)


def _without_prisma() -> None:
    """Let a refused key be a 401 where the prisma package is missing.

    ``litellm[proxy]`` does not install it, and LiteLLM asks it about every authentication error: its ImportError would
    turn the 401 into a bare 500. Without the package there is no database that could have failed.
    """
    if importlib.util.find_spec("prisma") is None:
        PrismaDBExceptionHandler.is_database_service_unavailable_error = staticmethod(lambda _: False)
        PrismaDBExceptionHandler.is_database_infrastructure_error = staticmethod(lambda _: False)


def _watch_responses() -> None:
    """Note the headers of each provider response on the call it belongs to. LiteLLM keeps some providers' to itself."""
    send = httpx.AsyncClient.send

    async def noting(self: httpx.AsyncClient, *args: Any, **kwargs: Any) -> httpx.Response:
        response = await send(self, *args, **kwargs)
        call = current_call.get()
        if call is not None:
            call.provider_headers = response.headers
        return response

    httpx.AsyncClient.send = noting  # type: ignore[method-assign]  # see the module's docstring


def _describe_models(bridge: Bridge) -> None:
    """Add what plugins say of the models that they list to their entries of ``GET /v1/models``."""
    describe = utils.create_model_info_response

    def described(model_id: str, *args: Any, **kwargs: Any) -> Any:
        return {**describe(model_id, *args, **kwargs), **bridge.catalog.listed_info(model_id)}

    utils.create_model_info_response = described


def _go_before(name: str, work: Any) -> None:
    """Await ``work`` before LiteLLM's function of this name, which its lifespan looks up when it needs it."""
    original = getattr(proxy_server, name, None)
    if original is None:
        raise ConfigError(
            f"this version of LiteLLM ({litellm.__version__ if hasattr(litellm, '__version__') else 'unknown'}) has no "
            f"{name}; install a version that Pointsman supports: litellm[proxy]>=1.106,!=1.107.*"
        )

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        await work()
        return await original(*args, **kwargs)

    setattr(proxy_server, name, wrapped)


def _setup_logging(host: Host) -> None:
    """Let our messages and the plugins' be seen where LiteLLM's are, unless the operator has set up logging."""
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s:%(levelname)s: %(message)s"))
    packages = {type(plugin.instance).__module__.partition(".")[0] for plugin in host.plugins.loaded}
    for logger in (log, *map(logging.getLogger, sorted(packages))):
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


def _is_no_denial(record: logging.LogRecord) -> bool:
    """Keep LiteLLM from logging a traceback for each denial: a client that is refused is no fault of the gateway."""
    return not (record.exc_info and isinstance(record.exc_info[1], DenialError))


def _admin_router(bridge: Bridge) -> APIRouter:
    routes = APIRouter(route_class=_AdminRoute)

    async def admin(request: Request, key: UserAPIKeyAuth = Depends(user_api_key_auth)) -> Response:  # noqa: B008  # FastAPI's way
        if key.user_role != LitellmUserRoles.PROXY_ADMIN:
            body = error_body(
                "this route needs LiteLLM's admin key (general_settings.master_key or a proxy_admin's key)",
                code="admin_key_needed",
                type_="permission_error",
            )
            return JSONResponse(body, status_code=403)
        await bridge.ready()
        user = key.user_id if key.user_id != LITELLM_PROXY_ADMIN_NAME else None
        return await _forward(bridge.host, request, user or key.key_alias or "admin")

    routes.add_api_route("/pointsman", admin, methods=_METHODS, include_in_schema=False)
    routes.add_api_route("/pointsman/{path:path}", admin, methods=_METHODS, include_in_schema=False)
    return routes


class _AdminRoute(APIRoute):
    """A route whose body may be anything: LiteLLM's key check fails on JSON that is no object."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, key check included."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            # Read here it is kept; the key check would use it up, as a form, when the content type does not say JSON.
            await request.body()
            try:
                return await handle(request)
            except (AttributeError, TypeError, ValueError):
                if _is_object(await request.body()):
                    raise
                body = error_body("the body must be a JSON object", code="invalid_input", param="body")
                return JSONResponse(body, status_code=422)

        return guarded


def _is_object(body: bytes) -> bool:
    try:
        return not body or isinstance(json.loads(body), dict)
    except ValueError:
        return False


async def _forward(host: Host, request: Request, who: str) -> Response:
    """Run a request through the host's admin application and return its answer."""
    body = await request.body()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    original = request.scope
    path = "/" + request.path_params.get("path", "")
    headers = [(name, value) for name, value in original["headers"] if name.lower() != b"x-pointsman-user"]
    # Percent-encoded where it is not plain ASCII: header values have no other text.
    headers.append((b"x-pointsman-user", quote(who, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")[:_USER_CHARS].encode()))
    scope: Scope = {
        "type": "http",
        "asgi": original.get("asgi", {"version": "3.0"}),
        "http_version": original.get("http_version", "1.1"),
        "method": original["method"],
        "scheme": original.get("scheme", "http"),
        "path": path,
        "raw_path": path.encode(),
        "query_string": original.get("query_string", b""),
        "root_path": "",
        "headers": headers,
        "client": original.get("client"),
        "server": original.get("server"),
    }
    return _Forwarded(host, scope, receive)


class _Forwarded(Response):
    """The admin application's answer, passed on as it comes, so that a live page can stream."""

    def __init__(self, host: Host, scope: Scope, receive: Any) -> None:
        super().__init__()
        self._host = host
        self._scope = scope
        self._receive = receive

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002  # ours replace FastAPI's
        assert self._host.admin is not None  # noqa: S101  # a started host has one
        await self._host.admin(self._scope, self._receive, send)
