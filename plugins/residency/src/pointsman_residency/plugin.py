"""Wires the plugin to the hooks."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from pointsman import PluginInfo, hookimpl
from pointsman.events import ResidencyChanged
from pointsman.types import Status

from .admission import Admission
from .config import ResidencyConfig, ServerConfig, same_model
from .instruments import instrument
from .members import Member, Members
from .pool import Pool
from .repository import Repository
from .routes import AdminRoutes
from .scheduler import Place, Scheduler
from .selection import prefer
from .servers import ModelServer, installed
from .servers.connect import certificates
from .views import pool_json, problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Candidate, Denial, Refusal, RequestContext, Route

    from .scheduler import Change
    from .slots import Slot

log: Final = logging.getLogger("pointsman.residency")

#: Interval at which the gateway's configuration is read again, in seconds.
CATALOG_S: Final = 2.0


class ResidencyPlugin:
    """Keeps the models in memory that are asked for.

    Args:
        config: The plugin's section of the configuration.

    Raises:
        PluginLoadError: an installed server cannot be used.
    """

    def __init__(self, config: ResidencyConfig) -> None:
        self._config = config
        self._kinds = installed()
        self._members = Members(config)
        self._schedulers: dict[str, Scheduler] = {}
        self._servers: list[tuple[ServerConfig, ModelServer]] = []
        self._admission = Admission(
            self._schedulers, self._members, lambda: self._services.catalog, hedges_load=config.hedges_load
        )
        #: Whether to drop cold candidates; None until the first request, when all plugins are running.
        self._steers: bool | None = None if config.steer == "auto" else config.steer

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Read what the servers have and what the other workers do; begin to keep up."""
        self._services = services
        if any(server.url.startswith("https:") for pool in self._config.pools.values() for server in pool.servers()):
            await asyncio.to_thread(certificates)
        for name, config in self._config.pools.items():
            scheduler = self._schedulers[name] = Scheduler(
                name,
                config,
                Pool(config.sizes(), config.members(name), config.policy()),
                places=partial(self._place, name),
                known=self._places,
                repository=Repository(name, services),
                services=services,
                changed=partial(self._announce, name),
                deployments=partial(self._deployments, name),
            )
        await self._read_catalog()
        for problem in self._members.problems(services.catalog):
            log.warning(problem)
        tick_s = self._config.tick_ms / 1000
        for name, scheduler in self._schedulers.items():
            await scheduler.start()
            services.tasks.every(tick_s, partial(scheduler.keep_up, tick_s), name=f"keep up with {name}")
        instrument(services.meter, self._schedulers)
        services.tasks.every(CATALOG_S, self._read_catalog, name="read the model list")

    @hookimpl
    async def shutdown(self) -> None:
        """Let another worker decide. The models stay where they are."""
        for scheduler in self._schedulers.values():
            await scheduler.stop()
        for _, server in self._servers:
            await server.client.aclose()

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Denial | None:
        """Wait until a model of the target is resident, where nothing else can answer."""
        return await self._admission.request(ctx, route)

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Prefer what is resident."""
        if not candidates[1:]:
            return None
        slots = [self._slot_of(candidate) for candidate in candidates]
        if not any(slots):
            return None
        if self._steers is None:
            statuses = self._services.statuses().values()
            self._steers = not any(status.details.get("chooses") is True for status in statuses)
        return prefer(
            candidates,
            slots,
            self._expected_s,
            self._services.clock.now(),
            held=self._admission.held_by(ctx.request_id),
            steer=self._steers,
        )

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        """Hold the attempt's model, after waiting for it where the request has not."""
        return await self._admission.attempt(ctx, attempt)

    @hookimpl
    def post_response(self, attempt: Attempt) -> None:
        """Give the attempt's model back."""
        self._admission.ended(attempt)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Give the attempt's model back."""
        self._admission.ended(attempt)

    @hookimpl
    def answered(self, ctx: RequestContext) -> None:
        """Give back what never came to an attempt."""
        self._admission.answered(ctx)

    @hookimpl
    def status(self) -> Status:
        """Report what is resident, and what is in the way."""
        found = self._problems()
        pools = {name: pool_json(scheduler, self._services.clock.now()) for name, scheduler in self._schedulers.items()}
        resident = sum(pool["stats"]["count"] for pool in pools.values())
        total = sum(len(scheduler.pool.slots) for scheduler in self._schedulers.values())
        summary = f"{resident} of {total} models resident"
        return Status(
            ok=not found,
            summary=f"{summary}; {found[0]}" if found else summary,
            details={"pools": pools, "held": self._admission.held, "problems": found},
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return AdminRoutes(self._schedulers, self._services.clock, self._problems).routes()

    def _problems(self) -> list[str]:
        found = self._members.problems(self._services.catalog)
        for scheduler in self._schedulers.values():
            found += problems(scheduler, self._services.clock.now())
        return found

    def _slot_of(self, candidate: Candidate) -> Slot | None:
        member = self._members.of(candidate.deployment)
        return None if member is None else self._admission.slot(member)

    def _expected_s(self, slot: Slot) -> float:
        return self._schedulers[slot.pool].pool.expected_s(slot)

    def _announce(self, pool: str, change: Change) -> None:
        event = ResidencyChanged(
            pool=pool, model=change.model, what=change.what, reason=change.reason, at=self._services.clock.now()
        )
        self._services.publish(event)

    async def _read_catalog(self) -> None:
        self._members.refresh(self._services.catalog)
        aliases = dict[Member, Member]()
        for pool, scheduler in self._schedulers.items():
            places = {name: self._place(pool, name) for name in scheduler.pool.slots}
            scheduler.pool.share({name: (place.key, place.server) for name, place in places.items()})
            aliases |= {Member(pool, name): Member(pool, first) for name, first in scheduler.pool.aliases.items()}
        if aliases != self._members.aliases:
            for (_, name), (pool, first) in aliases.items():
                log.warning("pool %r: %s", pool, same_model(name, first))
            self._members.aliases = aliases
            self._members.refresh(self._services.catalog)

    def _deployments(self, pool: str, model: str) -> Iterable[str]:
        """Return the ids of a model's deployments, also of those for which it stands."""
        names = [model, *(name for name, first in self._schedulers[pool].pool.aliases.items() if first == model)]
        return [each for name in names for each in self._members.deployments.get(Member(pool, name), {})]

    def _place(self, pool: str, model: str) -> Place:
        member = Member(pool, model)
        config = self._config.pools[member.pool].models[member.model]
        server = self._server(member)
        # The deployment's own name at its provider, unless the configuration has another.
        name = config.server_model or next(iter(self._members.deployments.get(member, {}).values()), model)
        return Place(server, server.canonical(name))

    def _places(self) -> set[tuple[str, str]]:
        """Return where the models of all pools are."""
        return {self._place(pool, model).key for pool, config in self._config.pools.items() for model in config.models}

    def _server(self, member: Member) -> ModelServer:
        pool = self._config.pools[member.pool]
        config = pool.models[member.model].server or pool.server
        assert config is not None  # noqa: S101  # the configuration was checked
        for known, server in self._servers:
            if known == config:
                return server
        # The scheduler sets the deadline of each call; the client's ends a load that was given up.
        made = config.connect(self._kinds, self._services.clock, pool.load_timeout_s)
        self._servers.append((config, made))
        return made


plugin: Final = PluginInfo(
    name="residency",
    config=ResidencyConfig,
    factory=ResidencyPlugin,
    summary="The right local models in memory: loaded, evicted and kept by demand, within a budget of bytes.",
    commands="pointsman_residency.commands:residency",
    requires=">=0.1,<0.2",
)
