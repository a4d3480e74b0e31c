"""Wires the plugin: routes in, races out."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from pointsman import PluginInfo, hookimpl
from pointsman.errors import ConfigError, Conflict
from pointsman.types import Status

from . import views
from .candidates import unknown_names, wildcard_names
from .config import RacingConfig
from .coordinator import Coordinator
from .instruments import instrument
from .repository import InvalidDocument, Repository, export_document, load_document, write_document
from .routes import Routes
from .statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services, Upstream
    from pointsman.types import Attempt, Candidate, Denial, Execution, RequestContext, Route

log: Final = logging.getLogger("pointsman.racing")

LIST_EVERY_S: Final = 5.0


class RacingPlugin:
    """Races requests against slow answers.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: RacingConfig) -> None:
        self._config = config
        self._statistics = Statistics(config.half_life_s)
        self._clashes: list[str] = []
        self._warned: set[str] = set()
        self._writing = threading.Lock()
        self._exports = self._newest = 0

    @hookimpl
    async def startup(self, services: Services) -> None:
        """List the virtual models, read what is known, begin to exchange observations."""
        config = self._config
        self._services = services
        self._coordinator = Coordinator(config, self._statistics, services)
        counts = {name: raced.counts for name, raced in self._coordinator.models.by_name.items()}
        self._repository = Repository(self._statistics, counts, services)
        self._routes = Routes(self._coordinator, self._statistics, self._repository, services)
        self._path = None if config.performance_file is None else services.base / config.performance_file
        self._list()
        if wrong := [*self._clashes, *wildcard_names(config, services.catalog, services.plugin)]:
            raise ConfigError("\n".join(wrong))
        self._warn()
        await self._import()
        await self._repository.exchange()
        instrument(services.meter, counts, lambda: self._coordinator.running)
        services.tasks.every(LIST_EVERY_S, self._keep_listed, name="list models")
        services.tasks.every(config.share_interval_s, self._repository.exchange, name="share")
        if self._path is not None:
            services.tasks.every(config.export_interval_s, self._export, name="write the performance file")

    @hookimpl
    async def inherit(self, previous: RacingPlugin) -> None:
        """Learn what has not been written yet, and go on with what is left of the budgets."""
        self._coordinator.inherit(previous._coordinator)
        await previous._repository.exchange()
        await self._repository.exchange()

    @hookimpl
    async def shutdown(self) -> None:
        """Write what has not been written yet."""
        await self._repository.exchange()
        await self._export()

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Route a request for a raced name to its race."""
        return self._coordinator.route(ctx, route)

    @hookimpl
    async def execute(self, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution | None:
        """Race a request."""
        return await self._coordinator.execute(ctx, route, upstream)

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Keep the attempts of one race on different deployments."""
        return self._coordinator.select(ctx, candidates)

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from an answer."""
        self._coordinator.observe(ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from a failure, or from a loser."""
        self._coordinator.observe(ctx, attempt)

    @hookimpl
    def status(self) -> Status:
        """Report the races and what prevents them."""
        rows = self._routes.races_json()
        problems = [f"{row['name']!r} has no healthy candidate" for row in rows if not row["healthy"]]
        problems += [*self._clashes, *self._unknown()]
        if self._repository.failures:
            problems.append("observations are not shared: the store fails")
        requests = sum(row["counts"]["requests"] for row in rows)
        extra = sum(row["counts"]["extra"] for row in rows)
        share = f", {extra / requests:.1%} extra attempts" if requests else ""
        return Status(
            ok=not problems,
            summary="; ".join(problems) or f"{len(rows)} races, {requests} requests{share}",
            details={
                "races": {
                    row["name"]: {
                        "kind": row["kind"],
                        "healthy": row["healthy"],
                        "extra_ratio": row["extra_ratio"],
                        **row["counts"],
                    }
                    for row in rows
                },
                "running": self._coordinator.running,
                "cancelling_ms": views.cancelling_json(self._coordinator.cancelling_ms),
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Return the admin routes."""
        return self._routes.routes()

    # -- the list of models -------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """List the virtual models, repeatedly because the gateway's configuration may change.

        A model without any candidate is not listed, but its name is checked all the same.
        """
        catalog = self._services.catalog
        clashes = []
        for number, model in enumerate(self._config.models):
            group = self._coordinator.models.by_name[model.name].group(catalog)
            info = views.listed_model(model, catalog)
            try:
                catalog.list_model(model.name, group or model.candidates[0].target, info=info)
            except Conflict as err:
                clashes.append(f"{self._services.plugin}.models[{number}].name: {err}")
                continue
            if group is None:
                catalog.list_model(model.name, None)
        self._clashes = clashes

    def _unknown(self) -> list[str]:
        return unknown_names(self._config, self._services.catalog, self._services.plugin)

    def _warn(self) -> None:
        """Log each unknown name once; operators read the log of a start first."""
        for problem in self._unknown():
            if problem not in self._warned:
                self._warned.add(problem)
                log.warning("%s", problem)

    async def _keep_listed(self) -> None:
        self._list()
        self._warn()

    # -- the performance file -----------------------------------------------------------------------------------------

    async def _import(self) -> None:
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise ConfigError(f"performance_file: {self._path.parent} is not a directory; create it or change the path")
        if not await self._repository.is_empty():
            return
        try:
            stats = await asyncio.to_thread(load_document, self._path, self._config.half_life_s)
        except (InvalidDocument, OSError) as err:
            raise ConfigError(f"performance_file: cannot use {self._path}: {err}") from err
        if stats:
            await self._repository.put_first(stats)

    async def _export(self) -> None:
        # A worker without observations must not replace the existing file.
        if self._path is not None and self._statistics.known():
            self._exports += 1
            document = export_document(self._statistics, self._services.clock.now())
            await asyncio.to_thread(self._write, self._path, self._exports, document)

    def _write(self, path: Path, number: int, document: Mapping[str, object]) -> None:
        # A thread cannot be cancelled: a late one would overwrite what was written at the worker's end.
        with self._writing:
            if number > self._newest:
                write_document(path, document)
                self._newest = number


plugin: Final = PluginInfo(
    name="racing",
    config=RacingConfig,
    factory=RacingPlugin,
    summary="Virtual models and hedged requests: the first good answer wins, within a budget.",
    commands="pointsman_racing.commands:racing",
    requires=">=0.1,<0.2",
)
