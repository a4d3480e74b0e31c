"""The scopes of a request: which limits it takes from, and the keys their states are stored under. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from .tenants import allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pointsman.plugin import UnpricedModel

    from .ledger import Caps
    from .limits import Limits
    from .tenants import Caller, Tenant

#: Where a reservation carries its exact amount of money, in picodollars.
USD_PICOS: Final = "usd_picos"
GATEWAY: Final = "gateway"
TENANT: Final = "tenant"
KEY: Final = "key"
MODEL: Final = "model"

#: The hash tag of all scopes when there are limits over all tenants: one atomic step then spans tenants.
_SHARED_TAG: Final = "all"
#: How many models without a price a message names.
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Scope:
    """Something with limits of its own.

    Attributes:
        kind: ``gateway``, ``tenant``, ``key`` or ``model``.
        name: The tenant's id, the key's name or the model pattern.
        caps: Its limits.
    """

    kind: str
    name: str
    caps: Caps

    def __str__(self) -> str:
        return self.kind if self.kind == GATEWAY else f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Target:
    """The scopes of a request, and where they are stored. What follows from them is worked out once.

    Attributes:
        tag: The hash tag that keeps all keys of the step on one node of a redis cluster.
        tenant: The tenant's id.
        scopes: The scopes, the widest first.
    """

    tag: str
    tenant: str
    scopes: tuple[Scope, ...]

    @cached_property
    def caps(self) -> list[Caps]:
        """The limits, in the order of the scopes."""
        return [scope.caps for scope in self.scopes]

    def keys(self, hold: str) -> list[str]:
        """Return the keys of the atomic step: the hold's, then one for each scope."""
        return [f"{{{self.tag}}}h/{self.tenant}/{hold}", *self.scope_keys]

    @cached_property
    def scope_keys(self) -> list[str]:
        """The key of each scope's state."""
        return [f"{{{self.tag}}}s/{self._path(scope)}" for scope in self.scopes]

    def _path(self, scope: Scope) -> str:
        match scope.kind:
            case "gateway":
                return GATEWAY
            case "tenant":
                return f"{TENANT}/{self.tenant}"
        # Names are free text and patterns have braces and slashes: only a digest is sure to be harmless in a key.
        return f"{scope.kind}/{self.tenant}/{hashlib.sha256(scope.name.encode()).hexdigest()[:32]}"

    @cached_property
    def limits_money(self) -> bool:
        """Whether any of the limits is one of money."""
        return any("day_usd_micros" in caps or "month_usd_micros" in caps for caps in self.caps)

    @cached_property
    def limits_concurrency(self) -> bool:
        """Whether any of the limits is one of concurrent requests."""
        return any("concurrent" in caps for caps in self.caps)

    @cached_property
    def data(self) -> Mapping[str, str | int | float | bool | None]:
        """What a reservation must carry to be settled by any worker, after any change of the configuration."""
        return {
            "tag": self.tag,
            "tenant": self.tenant,
            "scopes": json.dumps([[scope.kind, scope.name] for scope in self.scopes]),
        }


def target_of(caller: Caller, patterns: Sequence[str], gateway: Limits) -> Target:
    """Return the scopes of a request: gateway and keys only where they have limits, the tenant always.

    Args:
        caller: Who calls.
        patterns: The model patterns with limits that the request falls under.
        gateway: The limits of all tenants together.
    """
    tenant, key = caller.tenant, caller.key
    scopes = [Scope(TENANT, tenant.id, tenant.limits.caps)]
    if gateway.caps:
        scopes.insert(0, Scope(GATEWAY, "", gateway.caps))
    if key is not None and key.limits is not None and key.limits.caps:
        scopes.append(Scope(KEY, key.name, key.limits.caps))
    scopes += [Scope(MODEL, pattern, tenant.model_limits[pattern].caps) for pattern in patterns]
    return Target(_SHARED_TAG if gateway.caps else tenant.id, tenant.id, tuple(scopes))


def target_from(data: Mapping[str, object], tenant: Tenant | None, gateway: Limits) -> Target:
    """Return the scopes that a reservation took from, with their present limits.

    Args:
        data: ``Target.data`` of that time.
        tenant: The tenant as it is now, or None if it has been removed.
        gateway: The limits of all tenants together.
    """
    keys = {key.name: key for key in tenant.keys} if tenant else {}
    scopes = []
    for kind, name in json.loads(str(data["scopes"])):
        limits: Limits | None = None
        if kind == GATEWAY:
            limits = gateway
        elif kind == KEY:
            limits = keys[name].limits if name in keys else None
        elif tenant is not None:
            limits = tenant.limits if kind == TENANT else tenant.model_limits.get(name)
        scopes.append(Scope(kind, name, limits.caps if limits else {}))
    return Target(str(data["tag"]), str(data["tenant"]), tuple(scopes))


def all_scopes(tenant: Tenant, gateway: Limits) -> Target:
    """Return every scope of a tenant, to look at; what the gateway has as a whole comes first."""
    scopes = [Scope(GATEWAY, "", gateway.caps)] if gateway.caps else []
    scopes.append(Scope(TENANT, tenant.id, tenant.limits.caps))
    scopes += [Scope(KEY, key.name, key.limits.caps) for key in tenant.keys if key.limits and key.limits.caps]
    scopes += [Scope(MODEL, pattern, limits.caps) for pattern, limits in tenant.model_limits.items()]
    return Target(_SHARED_TAG if gateway.caps else tenant.id, tenant.id, tuple(scopes))


def unpriced_limits(
    tenants: Iterable[Tenant], gateway: Limits, models: Sequence[UnpricedModel], policy: str
) -> list[str]:
    """Return the problems of models whose price is unknown: the limits in money that cannot work.

    Args:
        tenants: All tenants.
        gateway: The limits of all tenants together.
        models: What may be answered by a model without a price.
        policy: What happens to these requests, ``deny`` or ``allow``.
    """
    becomes = "are refused" if policy == "deny" else "are not counted"
    problems = []
    for shown in tenants:
        if models and all_scopes(shown, gateway).limits_money:
            reached = [one for one in models if allowed(shown, (one.name,)) and not one.priced_for(shown.id)]
            names = _named(reached)
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                problems.append(
                    f"tenant {shown.id!r} has a limit in money, but the price of {', '.join(names[:_SHOWN])}{more} is "
                    f"unknown, so these requests {becomes}; set the prices of these models"
                )
    return problems


def _named(models: Sequence[UnpricedModel]) -> list[str]:
    """Return the models as a message names them, each once: directly, where that is possible."""
    first: dict[str, UnpricedModel] = {}
    for model in models:
        if model.group not in first or model.name == model.group:
            first[model.group] = model
    return [str(first[group]) for group in sorted(first)]
