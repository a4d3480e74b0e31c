"""The admin routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, SecretStr, ValidationError, field_validator
from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.admin import Input, invalid, read_body, read_query
from pointsman.errors import NotFound

from .config import Key, Limits, Section, Tenant, Text
from .ledger import LEVEL_UNIT, held
from .scopes import all_scopes
from .tenants import checked_key, hash_key

if TYPE_CHECKING:
    from starlette.requests import Request

    from .config import QuotaConfig
    from .gate import Gate
    from .ledger import Caps, ScopeState
    from .roster import Roster


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


class Surface:
    """``/tenants`` and ``/tenants/{id}``.

    Args:
        config: The plugin's section.
        roster: The tenants.
        gate: The ledger.
    """

    def __init__(self, config: QuotaConfig, roster: Roster, gate: Gate) -> None:
        self._config = config
        self._roster = roster
        self._gate = gate

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/tenants", self._list, methods=["GET"]),
            Route("/tenants", self._add, methods=["POST"]),
            Route("/tenants/{id:path}", self._show, methods=["GET"]),
            Route("/tenants/{id:path}", self._remove, methods=["DELETE"]),
        ]

    async def _list(self, _request: Request) -> JSONResponse:
        await self._roster.refresh()
        tenants = [self._as_json(tenant) for tenant in self._roster.directory.all()]
        return JSONResponse({"tenants": tenants, "problems": list(self._roster.problems)})

    async def _add(self, request: Request) -> JSONResponse:
        posted = await read_body(NewTenant, request)
        try:
            tenant = posted.hashed(await self._roster.salt())
        except ValidationError as err:
            raise invalid(NewTenant, err, "body") from None
        await self._roster.add(tenant, replace=read_query(Posting, request).replace)
        return JSONResponse(self._as_json(tenant), status_code=201)

    async def _show(self, request: Request) -> JSONResponse:
        await self._roster.refresh()
        tenant_id = request.path_params["id"]
        tenant = self._roster.directory.get(tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id!r}; see GET /pointsman/quota/tenants", param="id")
        target = all_scopes(tenant, self._config.gateway_limits)
        result = await self._gate.look(target)
        usage = [
            {"scope": scope.kind, "name": scope.name, **_usage(state, scope.caps)}
            for scope, state in zip(target.scopes, result.scopes, strict=True)
        ]
        return JSONResponse({**self._as_json(tenant), "usage": usage})

    async def _remove(self, request: Request) -> JSONResponse:
        tenant_id = request.path_params["id"]
        await self._roster.remove(tenant_id)
        return JSONResponse({"removed": tenant_id})

    def _as_json(self, tenant: Tenant) -> dict[str, object]:
        return {**tenant.model_dump(mode="json", exclude_none=True), "source": self._roster.source(tenant.id)}


def _usage(state: ScopeState, caps: Caps) -> dict[str, object]:
    requests, tokens, usd_micros = held(state)
    usage: dict[str, object] = {
        "requests_in_flight": requests,
        "reserved_tokens": tokens,
        "reserved_usd_micros": usd_micros,
        "day_tokens": state.day_tokens,
        "day_usd_micros": state.day_usd_micros,
        "month_tokens": state.month_tokens,
        "month_usd_micros": state.month_usd_micros,
    }
    if "requests" in caps:
        usage["requests_left"] = max(0, caps["requests_burst"] - -(-state.requests // LEVEL_UNIT))
    if "tokens" in caps:
        usage["tokens_left"] = max(0, caps["tokens_burst"] - -(-state.tokens // LEVEL_UNIT) - tokens)
    return usage
