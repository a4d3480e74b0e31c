"""The admin routes, mounted under ``/pointsman/racing``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.errors import InvalidInput, NotFound

from . import views
from .repository import InvalidDocument, export_document, read_document

if TYPE_CHECKING:
    from starlette.requests import Request

    from pointsman.plugin import Services

    from .coordinator import Coordinator
    from .repository import Repository
    from .statistics import Statistics


class Routes:
    """The routes' handlers.

    Args:
        coordinator: The races.
        statistics: What is known about deployments.
        repository: What the other workers know.
        services: The host's.
    """

    def __init__(
        self, coordinator: Coordinator, statistics: Statistics, repository: Repository, services: Services
    ) -> None:
        self._coordinator = coordinator
        self._statistics = statistics
        self._repository = repository
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.list_races, methods=["GET"]),
            Route("/performance", self.export_performance, methods=["GET"]),
            Route("/performance", self.import_performance, methods=["POST"]),
            Route("/{name:path}", self.get_race, methods=["GET"]),
        ]

    async def list_races(self, _: Request) -> JSONResponse:
        """``GET /``: every race, every deployment that was observed, and the budget."""
        now, coordinator, statistics = self._services.clock.now(), self._coordinator, self._statistics
        return JSONResponse(
            {
                "now": now,
                "races": self.races_json(),
                "default_model": coordinator.models.default,
                "deployments": [views.deployment_json(id_, statistics, now) for id_ in statistics.known()],
                "budget": {
                    **views.bucket_json(coordinator.total),
                    "ratio": coordinator.ratio,
                    "worker": self._services.worker,
                },
                "running": coordinator.running,
                "cancelling_ms": views.cancelling_json(coordinator.cancelling_ms),
            }
        )

    async def get_race(self, request: Request) -> JSONResponse:
        """``GET /{name}``: one race."""
        name = request.path_params["name"]
        if name not in self._coordinator.models.by_name:
            raise NotFound(f"nothing is raced under the name {name!r}; see GET /pointsman/racing", param="name")
        return JSONResponse(self._race_json(name))

    async def export_performance(self, _: Request) -> JSONResponse:
        """``GET /performance``: what is known about all deployments, to keep or to move."""
        return JSONResponse(export_document(self._statistics, self._services.clock.now()))

    async def import_performance(self, request: Request) -> JSONResponse:
        """``POST /performance``: import what was exported; replaces the previous import."""
        try:
            stats = read_document(json.loads(await request.body()), self._statistics.half_life_s)
        except (InvalidDocument, ValueError, RecursionError) as err:
            raise InvalidInput(f"the body is not a performance file: {err}") from err
        await self._repository.put_imported(stats)
        return JSONResponse({"imported": sorted(stats)})

    def races_json(self) -> list[dict[str, Any]]:
        """Return every race with its candidates and counts, those of the other workers included."""
        return [self._race_json(name) for name in self._coordinator.models.by_name]

    def _race_json(self, name: str) -> dict[str, Any]:
        services = self._services
        return views.race_json(
            self._coordinator.models.by_name[name],
            self._repository.others.get(name),
            self._statistics,
            catalog=services.catalog,
            signals=services.signals,
            now=services.clock.now(),
        )
