"""The plugin ``curfew``."""

from __future__ import annotations

from datetime import time
from typing import Final, Self

from pydantic import Field, model_validator

from pointsman import PluginConfig, PluginInfo, Services, hookimpl
from pointsman.config import Section
from pointsman.plugin import unknown_target
from pointsman.types import Denial, RequestContext, Route, Status

from .hours import Curfew


class CurfewConfig(Section):
    """When a model rests."""

    start: time = Field(alias="from", description="When it begins to rest, as a time of the day in UTC: '22:00'.")
    end: time = Field(alias="to", description="When it works again, as a time of the day in UTC.")
    instead: str | None = Field(
        default=None, min_length=1, description="Model group that answers meanwhile; null denies with 503."
    )

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if self.start == self.end:
            raise ValueError("from and to are the same: leave the model out, or name another time")
        return self


class Config(PluginConfig):
    """Which models rest, and when."""

    models: dict[str, CurfewConfig] = Field(min_length=1, description="Curfew by model group.")


class Plugin:
    """Lets models rest.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: Config) -> None:
        self._models = {
            name: (Curfew.between(model.start, model.end), model.instead) for name, model in config.models.items()
        }

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Keep the services."""
        self._services = services

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Let another model answer, or say when this one does."""
        if route.target not in self._models or not ctx.generates:
            return None
        curfew, instead = self._models[route.target]
        left_s = curfew.left_s(self._services.clock.now())
        if left_s is None:
            return None
        if instead is not None:
            return route.to(instead).with_labels(curfew=route.target)
        return Denial(
            status=503,
            code="model_rests",
            type="service_unavailable_error",
            message=f"The model {route.target!r} rests at this hour. Try again later.",
            retry_after_s=max(1.0, left_s),
        )

    @hookimpl
    def status(self) -> Status:
        """Say who rests now, and which models the gateway does not have."""
        now, catalog = self._services.clock.now(), self._services.catalog
        resting = sorted(name for name, (curfew, _) in self._models.items() if curfew.left_s(now) is not None)
        targets = [instead for _, instead in self._models.values() if instead is not None]
        problems = [problem for target in targets if (problem := unknown_target(target, catalog))]
        summary = f"{len(resting)} of {len(self._models)} models rest"
        return Status(ok=not problems, summary="; ".join([summary, *problems[:1]]), details={"resting": resting})


plugin: Final = PluginInfo(
    name="curfew",
    config=Config,
    factory=Plugin,
    summary="Models rest at certain hours, and another one answers for them.",
    requires=">=0.1,<0.2",
)
