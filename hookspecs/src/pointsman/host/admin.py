"""The admin surface as one Starlette application, mounted under ``/pointsman`` by the bridge, which checks the admin key first.

Every answer is JSON; every error has the shape ``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..admin import Input, read_query
from ..errors import AdminError, InvalidInput, NotFound, StoreError
from ..text import one_line
from .counters import as_json
from .exposition import render
from .isolation import let_through
from .observability import Observed
from .recent import summary
from .reloading import Reload

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


class _Isolated:
    """Makes an ``Exception`` of whatever else a route raises: a ``SystemExit`` in a task ends the worker."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            raise
        except BaseException as err:
            let_through(err)
            raise RuntimeError(f"a route raised {type(err).__name__}") from err


class MetricsQuery(Input):
    """The query of ``GET /metrics``."""

    format: Literal["prometheus", "json"] = "prometheus"


class RecentQuery(Input):
    """The query of ``GET /requests``."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20


def observed_routes(observed: Observed) -> list[BaseRoute]:
    """Return the routes that show metrics and recent requests."""

    async def metrics(request: Request) -> Response:
        families = await observed.read_metrics()
        if read_query(MetricsQuery, request).format == "json":
            return JSONResponse({"metrics": as_json(families)})
        content, kind = render(families, request.headers.get("accept", ""))
        return Response(content, media_type=None, headers={"content-type": kind})

    async def requests(request: Request) -> Response:
        limit = read_query(RecentQuery, request).limit
        rows = [summary(record) for record in observed.recent.latest(limit)]
        return JSONResponse({"worker": observed.worker, "requests": rows})

    async def explain(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        found = await observed.explain_anywhere(request_id)
        if found is None:
            raise NotFound(
                f"no worker remembers the request {one_line(request_id, 80)!r}; each keeps the last {observed.recent.capacity} "
                "finished ones ('recent_requests' in the pointsman section), and none of before its start",
                param="request_id",
            )
        return JSONResponse(found)

    return [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/requests", requests, methods=["GET"]),
        Route("/requests/{request_id}", explain, methods=["GET"]),
    ]


def build(
    describe: Callable[[], Mapping[str, object]],
    plugin_routes: Mapping[str, Sequence[BaseRoute]],
    observed: Observed | None = None,
    reload: Callable[[], Awaitable[Reload]] | None = None,
) -> Starlette:
    """Build the application: ``/status``, metrics, recent requests, and each plugin's routes under its name.

    ``console`` also has the root.

    Args:
        describe: Returns the worker's status as JSON.
        plugin_routes: Routes by plugin.
        observed: What has metrics and recent requests.
        reload: Reads the configuration again.
    """

    async def status(_: Request) -> Response:
        return JSONResponse(describe())

    async def reloaded(_: Request) -> Response:
        assert reload is not None  # noqa: S101  # there is no such route without it
        result = await reload()
        if result.error is not None:
            raise InvalidInput(f"nothing has changed: {result.error}", param="config")
        return JSONResponse(result.as_json())

    routes: list[BaseRoute] = [Route("/status", status, methods=["GET"])]
    if reload is not None:
        routes.append(Route("/reload", reloaded, methods=["POST"]))
    if observed is not None:
        routes += observed_routes(observed)
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
        middleware=[Middleware(_Isolated)],
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
