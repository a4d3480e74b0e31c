"""Forwards requests under ``/pointsman`` to the host's admin application, once LiteLLM has checked the admin key."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from litellm.constants import LITELLM_PROXY_ADMIN_NAME
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from starlette.responses import Response

from ..host.admin import error_body

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from ..host.host import Host

_USER_CHARS: Final = 128
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def admin_router(running: Callable[[], Awaitable[Host]]) -> APIRouter:
    """Return the routes.

    Args:
        running: Returns the started host.
    """
    routes = APIRouter(route_class=_AdminRoute)

    async def admin(request: Request, key: UserAPIKeyAuth = Depends(user_api_key_auth)) -> Response:  # noqa: B008  # FastAPI's way
        if key.user_role != LitellmUserRoles.PROXY_ADMIN:
            body = error_body(
                "this route needs LiteLLM's admin key (general_settings.master_key or a proxy_admin's key)",
                code="admin_key_needed",
                type_="permission_error",
            )
            return JSONResponse(body, status_code=403)
        user = key.user_id if key.user_id != LITELLM_PROXY_ADMIN_NAME else None
        return await _forward(await running(), request, user or key.key_alias or "admin")

    routes.add_api_route("/pointsman", admin, methods=_METHODS, include_in_schema=False)
    routes.add_api_route("/pointsman/{path:path}", admin, methods=_METHODS, include_in_schema=False)
    return routes


class _AdminRoute(APIRoute):
    """A route whose body may be anything: LiteLLM's key check fails on JSON that is not an object."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, key check included."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            # Starlette keeps a body that is read here; the key check would consume it as a form unless it is declared JSON.
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


async def _forward(host: Host, request: Request, user: str) -> Response:
    """Run a request through the host's admin application and return its answer."""
    body = await request.body()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    original = request.scope
    path = "/" + request.path_params.get("path", "")
    headers = [(name, value) for name, value in original["headers"] if name.lower() != b"x-pointsman-user"]
    # Percent-encoded where it is not plain ASCII: header values have no other text.
    headers.append((b"x-pointsman-user", quote(user, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")[:_USER_CHARS].encode()))
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

    def __init__(self, host: Host, scope: Scope, receive: Receive) -> None:
        super().__init__()
        self._host = host
        self._scope = scope
        self._receive = receive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ours replace FastAPI's
        assert self._host.admin is not None  # noqa: S101  # a started host has one
        await self._host.admin(self._scope, self._receive, send)
