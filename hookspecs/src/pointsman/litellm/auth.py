"""Authentication by plugins, for tenants without a database, and denials in LiteLLM's terms."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from litellm.proxy import proxy_server
from litellm.proxy._types import LiteLLMRoutes, LitellmUserRoles, ProxyException, UserAPIKeyAuth, hash_token
from litellm.proxy.auth.route_checks import RouteChecks

from ..types import Credential, Denial
from . import denials, request_values
from .call import client_call
from .endpoints import route_path
from .guard import configured_pass_throughs

if TYPE_CHECKING:
    from fastapi import Request

    from ..host.host import Host

_BEARER: Final = "bearer "
#: What LiteLLM knows a tenant as that has no user of LiteLLM's: this, and its id.
_TENANT: Final = "tenant:"
#: Routes that LiteLLM's own checks keep from users who are not in a database: this gateway's plugins decide about them.
_OPEN: Final = ("/v1/models", "/models", "/v1/videos/characters", "/videos/characters")
#: Our own routes.
_OURS: Final = "/pointsman"
_ADMINISTRATORS: Final = Denial(
    status=403,
    code="route_not_allowed",
    type="permission_error",
    message="This route is for the gateway's administrator, not for keys of tenants.",
)
#: Routes that tenants may call, by method and path with the names of its parameters. Which ones they may not is asked each
#: time: a pass-through may be added while the gateway runs.
_MAY_CALL: Final[set[tuple[str, str]]] = set()
_MOST_ROUTES: Final = 4_096
#: LiteLLM knows these routes by the names of providers.
_ANY_PROVIDER: Final = ("/{provider}/", "/openai/")


async def authenticate(
    request: Request,
    api_key: str,
    running: Callable[[], Awaitable[Host]],
    allowed: Callable[[tuple[str, ...]], list[str]],
) -> UserAPIKeyAuth:
    """Authenticate a request: the master key is the administrator's, any other key is the plugins' to recognise.

    Args:
        request: The client's request.
        api_key: As LiteLLM has read it from the headers.
        running: Returns the started host.
        allowed: Returns patterns of models in LiteLLM's terms.

    Raises:
        ProxyException: 401 when no plugin knows the key, or the Denial of a plugin.
    """
    key = api_key or ""
    if key.lower().startswith(_BEARER):
        key = key[len(_BEARER) :]
    master = proxy_server.master_key
    if master and key and secrets.compare_digest(key.encode(), master.encode()):
        return UserAPIKeyAuth(
            api_key=hash_token(key), user_id="default_user_id", user_role=LitellmUserRoles.PROXY_ADMIN
        )
    call = client_call()
    host = await running()
    answer = await host.hooks.run_authenticate(
        Credential(
            api_key=key,
            path=request.url.path,
            headers=request_values.client_headers(request.scope["headers"], proxy_server.general_settings),
            client_host=None if call is None else call.peer,
        )
    )
    if isinstance(answer, Denial):
        raise denial_error(answer)
    if answer is None:
        raise denial_error(
            Denial(
                status=401,
                code="invalid_api_key",
                type="authentication_error",
                message="Missing or unknown API key. Send 'Authorization: Bearer <key>' with a key of your tenant.",
            )
        )
    if call is not None:
        call.authenticated(answer)
    found = UserAPIKeyAuth(
        api_key=hash_token(key) if key else None,
        # LiteLLM protects what it stores for a request by its user or team.
        user_id=answer.user_id or (None if answer.tenant is None else f"{_TENANT}{answer.tenant}"),
        team_id=answer.team_id,
        org_id=answer.org_id,
        key_alias=answer.key_alias,
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=[] if answer.models is None else allowed(answer.models),
        metadata={"allowed_passthrough_routes": [*_OPEN, *configured_pass_throughs()]},
        parent_otel_span=getattr(request.state, "parent_otel_span", None),
    )
    if not _may_call(found, request):
        raise denial_error(_ADMINISTRATORS)
    return found


def _may_call(key: UserAPIKeyAuth, request: Request) -> bool:
    """Return whether a tenant may call a route: LiteLLM asks this itself only where its own checks of our keys are on."""
    # Of a path, LiteLLM takes any part for the name of an open route: a client may write one where a parameter stands.
    template = getattr(request.scope.get("route"), "path", None)
    route = template.replace(*_ANY_PROVIDER) if template else route_path(request.scope)
    if route in LiteLLMRoutes.public_routes.value:
        return True
    if (proxy_server.general_settings or {}).get("custom_auth_run_common_checks") or _is_ours(route):
        return True
    known = (str(request.scope.get("method", "")), route)
    if known in _MAY_CALL:
        return True
    try:
        RouteChecks.non_proxy_admin_allowed_routes_check(
            user_obj=None, _user_role=None, route=route, request=request, valid_token=key, request_data={}
        )
    except Exception:  # noqa: BLE001  # LiteLLM raises bare ones, which differ between its versions
        return False
    if len(_MAY_CALL) < _MOST_ROUTES:
        _MAY_CALL.add(known)
    return True


def _is_ours(path: str) -> bool:
    """Return whether a route is a plugin's, or ours: it looks at the key itself."""
    return path == _OURS or path.startswith(f"{_OURS}/")


class DenialError(ProxyException):  # type: ignore[misc]  # LiteLLM is not typed for us
    """A Denial as an exception that LiteLLM answers with."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(
            message=denial.message,
            type=denial.type,
            param=denial.param,
            code=denial.status,
            headers=denials.headers(denial),
            openai_code=denial.code,
        )


def denial_error(denial: Denial) -> DenialError:
    """Return the exception that ends a request in LiteLLM, whose answer the middleware replaces by this denial."""
    if (call := client_call()) is not None:
        call.refuse(denial)
    return DenialError(denial)
