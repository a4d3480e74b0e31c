"""The admin routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, SecretStr, ValidationError, field_validator
from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.admin import Input, invalid, read_body, read_query
from pointsman.config import Section
from pointsman.errors import NotFound

from . import views
from .limits import Limits
from .scopes import all_scopes
from .tenants import Key, Tenant, Text, checked_key, hash_key

if TYPE_CHECKING:
    from starlette.requests import Request

    from .config import QuotaConfig
    from .ledger_client import LedgerClient
    from .repository import TenantRepository


class NewKey(Section):
    """A raw API key to be hashed and forgotten."""

    name: Text
    key: SecretStr
    limits: Limits | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)

    @field_validator("key")
    @classmethod
    def _long_enough(cls, key: SecretStr) -> SecretStr:
        return SecretStr(checked_key(key.get_secret_value()))


class NewTenant(Tenant):
    """A tenant as it is posted: also with raw keys, of which only the hashes are kept."""

    api_keys: tuple[NewKey, ...] = Field(default=(), max_length=1000)

    def hashed(self, salt: str) -> Tenant:
        """Return the tenant with the raw keys as salted hashes."""
        keys = (
            Key(
                name=new.name, hash=hash_key(new.key.get_secret_value(), salt), limits=new.limits, priority=new.priority
            )
            for new in self.api_keys
        )
        fields = {name: getattr(self, name) for name in Tenant.model_fields}
        return Tenant(**{**fields, "keys": (*self.keys, *keys)})


class Posting(Input):
    """The query of ``POST /tenants``: whether a tenant of that id may be replaced."""

    replace: bool = False


class AdminRoutes:
    """``/tenants`` and ``/tenants/{id}``.

    Args:
        config: The plugin's section.
        repository: The tenants.
        ledger: The ledger.
    """

    def __init__(self, config: QuotaConfig, repository: TenantRepository, ledger: LedgerClient) -> None:
        self._config = config
        self._repository = repository
        self._ledger = ledger

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/tenants", self._list, methods=["GET"]),
            Route("/tenants", self._add, methods=["POST"]),
            Route("/tenants/{id:path}", self._show, methods=["GET"]),
            Route("/tenants/{id:path}", self._remove, methods=["DELETE"]),
        ]

    async def _list(self, _request: Request) -> JSONResponse:
        await self._repository.refresh()
        tenants = [
            views.tenant(tenant, self._repository.source(tenant.id)) for tenant in self._repository.directory.all()
        ]
        return JSONResponse({"tenants": tenants, "problems": list(self._repository.problems)})

    async def _add(self, request: Request) -> JSONResponse:
        posted = await read_body(NewTenant, request)
        try:
            tenant = posted.hashed(await self._repository.salt())
        except ValidationError as err:
            raise invalid(NewTenant, err, "body") from None
        await self._repository.add(tenant, replace=read_query(Posting, request).replace)
        return JSONResponse(views.tenant(tenant, self._repository.source(tenant.id)), status_code=201)

    async def _show(self, request: Request) -> JSONResponse:
        await self._repository.refresh()
        tenant_id = request.path_params["id"]
        tenant = self._repository.directory.get(tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id!r}; see GET /pointsman/quota/tenants", param="id")
        target = all_scopes(tenant, self._config.gateway_limits)
        result = await self._ledger.look(target)
        usage = [
            {"scope": scope.kind, "name": scope.name, **views.usage(state, scope.caps)}
            for scope, state in zip(target.scopes, result.scopes, strict=True)
        ]
        return JSONResponse({**views.tenant(tenant, self._repository.source(tenant.id)), "usage": usage})

    async def _remove(self, request: Request) -> JSONResponse:
        tenant_id = request.path_params["id"]
        await self._repository.remove(tenant_id)
        return JSONResponse({"removed": tenant_id})
