"""Wires the plugin: routes in, races out."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from pointsman import PluginInfo, hookimpl
from pointsman.errors import ConfigError, Conflict
from pointsman.types import Status

from . import document, listing, names
from .book import Book
from .config import RacingConfig
from .racer import Racer
from .sharing import Sharing
from .surface import Surface

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
        self._book = Book(config.half_life_s)
        self._clashes: list[str] = []
        self._told: set[str] = set()
        self._writing = threading.Lock()
        self._exports = self._newest = 0

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Show the virtual models, take in what is known, begin to share."""
        config = self._config
        self._services = services
        self._racer = Racer(config, self._book, services)
        tallies = {name: course.tally for name, course in self._racer.courses.by_name.items()}
        self._sharing = Sharing(self._book, tallies, services)
        self._surface = Surface(self._racer, self._book, self._sharing, services)
        self._path = None if config.performance_file is None else services.base / config.performance_file
        self._list()
        if self._clashes:
            raise ConfigError("\n".join(self._clashes))
        self._warn()
        await self._import()
        await self._sharing.exchange()
        services.tasks.every(LIST_EVERY_S, self._keep_listed, name="list models")
        services.tasks.every(config.share_interval_s, self._sharing.exchange, name="share")
        if self._path is not None:
            services.tasks.every(config.export_interval_s, self._export, name="write the performance file")

    @hookimpl
    async def shutdown(self) -> None:
        """Hand in what is not written yet."""
        await self._sharing.exchange()
        await self._export()

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Send a request for a raced name into its race."""
        return self._racer.route(ctx, route)

    @hookimpl
    async def execute(self, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution:
        """Race a request."""
        return await self._racer.execute(ctx, route, upstream)

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Keep the legs of one race apart."""
        return self._racer.select(ctx, candidates)

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from an answer."""
        self._racer.observe(ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from a failure, or from a loser."""
        self._racer.observe(ctx, attempt)

    @hookimpl
    def status(self) -> Status:
        """Say how races go."""
        rows = [self._surface.course_json(course) for course in self._racer.courses.by_name.values()]
        problems = [f"{row['name']!r} has no healthy candidate" for row in rows if not row["healthy"]]
        problems += [*self._clashes, *self._unknown()]
        if self._sharing.failures:
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
                "running": self._racer.running,
                "cancelling_ms": self._surface.cancelling_json(),
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return self._surface.routes()

    # -- the list of models -------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Show the virtual models, again each time: the gateway may have been configured anew.

        One without any candidate is not shown; whether its name is free is asked all the same.
        """
        catalog = self._services.catalog
        clashes = []
        for number, model in enumerate(self._config.models):
            group = self._racer.courses.by_name[model.name].group(catalog)
            try:
                catalog.list_model(model.name, group or model.candidates[0].target, info=listing.entry(model, catalog))
            except Conflict as err:
                clashes.append(f"{self._services.plugin}.models[{number}].name: {err}")
                continue
            if group is None:
                catalog.list_model(model.name, None)
        self._clashes = clashes

    def _unknown(self) -> list[str]:
        return names.unknown(self._config, self._services.catalog, self._services.plugin)

    def _warn(self) -> None:
        """Say once of each name that the gateway does not have it; operators look at the log of a start first."""
        for why in self._unknown():
            if why not in self._told:
                self._told.add(why)
                log.warning("%s", why)

    async def _keep_listed(self) -> None:
        self._list()
        self._warn()

    # -- the performance file -----------------------------------------------------------------------------------------

    async def _import(self) -> None:
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise ConfigError(f"performance_file: {self._path.parent} is no directory")
        if not await self._sharing.knows_nothing():
            return
        try:
            standings = await asyncio.to_thread(document.load, self._path, self._config.half_life_s)
        except (document.NotOurs, OSError) as err:
            raise ConfigError(f"performance_file: cannot use {self._path}: {err}") from err
        if standings:
            await self._sharing.put_first(standings)

    async def _export(self) -> None:
        # A worker that knows nothing has nothing to put in the place of what is there.
        if self._path is not None and self._book.known():
            self._exports += 1
            known = document.export(self._book, self._services.clock.now())
            await asyncio.to_thread(self._write, self._path, self._exports, known)

    def _write(self, path: Path, number: int, known: Mapping[str, object]) -> None:
        # A thread cannot be cancelled: one that was late would undo what was written when the worker ended.
        with self._writing:
            if number > self._newest:
                document.write(path, known)
                self._newest = number


plugin: Final = PluginInfo(
    name="racing",
    config=RacingConfig,
    factory=RacingPlugin,
    summary="Virtual models and hedged requests: the first good answer wins, within a budget.",
    commands="pointsman_racing.commands:racing",
)
