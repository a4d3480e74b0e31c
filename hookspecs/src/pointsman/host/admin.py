"""The admin surface as one Starlette application, to be mounted under ``/pointsman`` by whoever has checked the key.

Every answer is JSON; every error has the shape ``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from ..errors import AdminError, StoreError

if TYPE_CHECKING:
    from .host import Host

log: Final = logging.getLogger("pointsman")


def error_body(
    message: str, *, code: str, type_: str = "invalid_request_error", param: str | None = None
) -> dict[str, object]:
    """Return an error in LiteLLM's and OpenAI's shape."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


async def _admin_error(_: Request, err: Exception) -> Response:
    assert isinstance(err, AdminError)  # noqa: S101  # Starlette dispatches by type
    return JSONResponse(error_body(str(err), code=err.code, param=err.param), status_code=err.status)


async def _store_error(_: Request, err: Exception) -> Response:
    log.error("an admin request failed: %s", err)
    body = error_body(f"the state store failed: {err}", code="store_unavailable", type_="service_unavailable_error")
    return JSONResponse(body, status_code=503)


async def _http_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)  # noqa: S101  # Starlette dispatches by type
    message = err.detail
    if err.status_code == 404:  # noqa: PLR2004  # HTTP
        message = f"there is no {request.method} /pointsman{request.url.path}; is the plugin enabled? See GET /pointsman/status"
    code = {404: "not_found", 405: "method_not_allowed"}.get(err.status_code, "bad_request")
    return JSONResponse(error_body(message, code=code), status_code=err.status_code, headers=err.headers)


async def _fault(request: Request, err: Exception) -> Response:
    log.error("admin request %s %s failed", request.method, request.url.path, exc_info=err)
    body = error_body(
        "the request failed inside the gateway; its log says why", code="internal_error", type_="server_error"
    )
    return JSONResponse(body, status_code=500)


def build(host: Host, plugin_routes: Mapping[str, Sequence[BaseRoute]]) -> Starlette:
    """Build the application: ``/status``, and each plugin's routes under its name; ``console`` also has the root."""

    async def status(_: Request) -> Response:
        return JSONResponse(host.describe())

    routes: list[BaseRoute] = [Route("/status", status, methods=["GET"])]
    for plugin, own in plugin_routes.items():
        # A plugin's "/" is reached as /pointsman/<plugin> too, without a redirect.
        routes.extend(
            Route(f"/{plugin}", route.endpoint, methods=sorted(route.methods or ()))
            for route in own
            if isinstance(route, Route) and route.path == "/"
        )
        routes.append(Mount(f"/{plugin}", routes=list(own)))
    if "console" in plugin_routes:
        routes.append(Mount("/", routes=list(plugin_routes["console"])))
    app = Starlette(
        routes=routes,
        exception_handlers={
            AdminError: _admin_error,
            StoreError: _store_error,
            HTTPException: _http_error,
            Exception: _fault,
        },
    )
    # A redirect would name a path without the prefix that this application is mounted under.
    app.router.redirect_slashes = False
    return app
