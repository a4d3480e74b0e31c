"""The plugin: hooks, wired to the budget."""

from __future__ import annotations

import hashlib
import math
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from pointsman import PluginConfig, PluginInfo, Services, hookimpl
from pointsman.plugin import OnFailure, unknown_target
from pointsman.store import MAX_COUNTER, Put, Update
from pointsman.types import Denial, RequestContext, Route, Settlement, Status

from .budget import Level, Period, Window, charge, cheaper, level, window

HEADER: Final = "x-cost-guard"
_MICROS: Final = 1_000_000
#: How long a settlement can come again, and how long a past window is kept, in seconds.
_KEPT_S: Final = 7 * 86_400.0


class CostGuardConfig(PluginConfig):
    """What callers may spend, and what answers when it runs out."""

    on_failure: OnFailure = Field(default="deny", description="By default nothing is spent that cannot be counted.")
    budget_usd: float = Field(gt=0, le=1e9, description="What each caller may spend in a period, in US dollars.")
    period: Period = Field(default="day", description="Length of a period: a day or a month, in UTC.")
    cheaper: dict[str, str] = Field(min_length=1, description="Model group to the one that answers in its place.")
    low_ratio: float = Field(
        default=0.2, ge=0, lt=1, description="Part of the budget from which on cheaper models answer, 0 to 1."
    )
    when_spent: Literal["deny", "cheapest"] = Field(
        default="deny", description="What follows when nothing is left: a denial, or the cheapest model."
    )
    unknown_cost_usd: float = Field(
        default=0.01,
        ge=0,
        le=1000,
        description="What an attempt counts whose cost is not known, in US dollars: unknown is not free.",
    )

    @model_validator(mode="after")
    def _leads_down(self) -> Self:
        """Refuse a ladder that leads back."""
        for model in self.cheaper:
            last = cheaper(model, self.cheaper, len(self.cheaper))
            if last in self.cheaper:
                raise ValueError(f"cheaper: {model!r} leads back to {self.cheaper[last]!r}; a ladder has to end")
        return self


class CostGuard:
    """Counts what callers spend, and answers with cheaper models when little is left.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: CostGuardConfig) -> None:
        self._config = config
        self._budget = round(config.budget_usd * _MICROS)
        self._unknown = math.ceil(config.unknown_cost_usd * _MICROS)
        self._counts = dict.fromkeys(("downgraded", "denied"), 0)

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Keep the services."""
        self._services = services

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Let it pass, take a cheaper model, or deny."""
        owner = self._owner(ctx)
        if owner is None or not ctx.generates:
            return None
        now = self._services.clock.now()
        period = window(self._config.period, now)
        spent = await self._services.store.get(f"spent/{period.name}/{owner}")
        found = level(spent if isinstance(spent, int) else 0, self._budget, self._config.low_ratio)
        if found is Level.PLENTY:
            return None
        if found is Level.SPENT and self._config.when_spent == "deny":
            self._counts["denied"] += 1
            return self._denial(period, now)
        steps = 1 if found is Level.LOW else len(self._config.cheaper)
        target = cheaper(route.target, self._config.cheaper, steps)
        if target == route.target:
            return None
        self._counts["downgraded"] += 1
        return route.to(target).with_labels(cost_guard=str(found)).with_headers({HEADER: f"{found}; model={target}"})

    def _denial(self, period: Window, now: float) -> Denial:
        return Denial(
            status=429,
            code="budget_spent",
            type="rate_limit_error",
            message=f"The budget of {self._config.budget_usd:g} US dollars for {period.name} is spent. It starts again with the "
            f"next {self._config.period} (UTC).",
            retry_after_s=max(1.0, period.ends_at - now),
        )

    @hookimpl
    async def settle(self, ctx: RequestContext, settlement: Settlement) -> None:
        """Count what the request has cost, once, in the period in which it began."""
        owner = self._owner(ctx)
        cost = charge(settlement.attempts, self._unknown)
        if owner is None or not cost:
            return
        period, done = window(self._config.period, settlement.started_at), f"done/{settlement.request_id}"
        key = f"spent/{period.name}/{owner}"
        # The counter is made first, so that it has a time to live.
        await self._services.store.add(key, 0, ttl_s=max(1.0, period.ends_at - settlement.started_at) + _KEPT_S)
        await self._services.store.update(
            Update(checks={done: None}, puts={done: Put(1, ttl_s=_KEPT_S)}, adds={key: min(cost, MAX_COUNTER >> 20)})
        )

    def _owner(self, ctx: RequestContext) -> str | None:
        """Return whose budget it is, as a digest: the tenant's, else the key's; None for the gateway's own admin key."""
        if (caller := ctx.identity.tenant or ctx.identity.key_hash) is None:
            return None if ctx.identity.admin else "unknown"
        return hashlib.sha256(caller.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @hookimpl
    def status(self) -> Status:
        """Say what it did, and which models the gateway does not have."""
        missing = [unknown_target(target, self._services.catalog) for target in self._config.cheaper.values()]
        problems = [problem for problem in missing if problem]
        summary = f"{self._counts['downgraded']} downgraded, {self._counts['denied']} denied"
        return Status(
            ok=not problems,
            summary="; ".join([summary, *problems[:1]]),
            details={**self._counts, "budget_usd": self._config.budget_usd, "problems": problems},
        )


plugin: Final = PluginInfo(
    name="cost-guard",
    config=CostGuardConfig,
    factory=CostGuard,
    summary="Answers with a cheaper model when a caller's money is nearly spent.",
    meters=True,
    requires=">=0.1,<0.2",
    after=("quota", "registry"),
)
