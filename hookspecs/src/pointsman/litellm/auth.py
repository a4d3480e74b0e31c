"""Authentication by plugins, for tenants without a database, and denials in LiteLLM's terms."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth, hash_token

from ..types import Credential, Denial
from . import denials, request_values
from .call import client_call
from .guard import configured_pass_throughs

if TYPE_CHECKING:
    from fastapi import Request

    from ..host.host import Host

_BEARER: Final = "bearer "
#: What LiteLLM knows a tenant as that has no user of LiteLLM's: this, and its id.
_TENANT: Final = "tenant:"
#: Routes that LiteLLM's own checks keep from users who are not in a database: this gateway's plugins decide about them.
_OPEN: Final = ("/v1/models", "/models", "/v1/videos/characters", "/videos/characters")


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
            headers=request_values.request_headers(
                request.scope["headers"], request_values.key_headers(proxy_server.general_settings)
            ),
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
    return UserAPIKeyAuth(
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
