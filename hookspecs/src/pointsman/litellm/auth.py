"""``custom_auth`` for tenants without a database, and the check of admin requests."""

from __future__ import annotations

import math
import secrets
from typing import Any, Final

from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth, hash_token

from ..host.host import Host
from ..types import Credential, Denial
from . import values
from .bracket import current_call

_BEARER: Final = "bearer "


async def custom_auth(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Authenticate a request: the master key is the administrator, everybody else is asked of the plugins.

    Raises:
        ProxyException: 401 when nobody knows the key, or what a plugin's Denial says.
    """
    key = api_key or ""
    if key.lower().startswith(_BEARER):
        key = key[len(_BEARER) :]
    master = proxy_server.master_key
    if master and key and secrets.compare_digest(key.encode(), master.encode()):
        return UserAPIKeyAuth(
            api_key=hash_token(key), user_id="default_user_id", user_role=LitellmUserRoles.PROXY_ADMIN
        )
    from .install import running_host  # noqa: PLC0415  # it needs this module

    host: Host = await running_host()
    answer = await host.calls.run_authenticate(
        Credential(
            api_key=key,
            path=request.url.path,
            headers=values.request_headers(request.scope["headers"]),
            client_host=request.client.host if request.client else None,
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
    call = current_call.get()
    if call is not None:
        call.identity = answer
    return UserAPIKeyAuth(
        api_key=hash_token(key) if key else None,
        user_id=answer.user_id,
        team_id=answer.team_id,
        org_id=answer.org_id,
        key_alias=answer.key_alias,
        user_role=LitellmUserRoles.INTERNAL_USER,
    )


class DenialError(ProxyException):  # type: ignore[misc]  # LiteLLM is not typed for us
    """A Denial as LiteLLM understands it, with the denial's own code in the body."""

    def __init__(self, denial: Denial) -> None:
        headers = dict(denial.headers)
        if denial.retry_after_s is not None or denial.status == 429:  # noqa: PLR2004  # HTTP
            headers["retry-after"] = str(max(1, math.ceil(denial.retry_after_s or 0.0)))
        super().__init__(
            message=denial.message,
            type=denial.type,
            param=denial.param,
            code=denial.status,
            headers=headers,
            openai_code=denial.code,
        )
        self.denial_code = denial.code

    def to_dict(self) -> dict[str, Any]:
        """Return the error body: OpenAI's shape, with a code that a program can tell apart."""
        return {**super().to_dict(), "code": self.denial_code}


def denial_error(denial: Denial) -> DenialError:
    """Return the exception that makes LiteLLM answer with this denial."""
    return DenialError(denial)
