"""The admin routes, mounted under ``/pointsman/shadow``.

Answers are JSON. The author of a change is ``who`` in the body, else the user or alias of the admin key: the bridge
sets the header ``x-pointsman-user`` and overwrites the client's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pointsman.admin import Input, Signed, read_body, read_query
from pointsman.errors import StoreCorrupt

from . import views
from .budget import day_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from .coordinator import Coordinator
    from .evidence import Evidence

Change: TypeAlias = "Callable[[str, str, str], Awaitable[Evidence]]"


class ResultsQuery(Input):
    """``GET /{mirror}/results`` and ``/{mirror}/export``."""

    limit: int = Field(default=10_000, ge=1, le=10_000)


class Admin:
    """Handlers of the admin routes.

    Args:
        coordinator: What they show and change.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        changes: dict[str, Change] = {
            "pause": self._coordinator.pause,
            "resume": self._coordinator.resume,
            "reset": self._coordinator.reset,
            "graduate": self._coordinator.graduate,
        }
        return [
            Route("/", self.overview, methods=["GET"]),
            Route("/{mirror}", self.show, methods=["GET"]),
            Route("/{mirror}/results", self.results, methods=["GET"]),
            Route("/{mirror}/export", self.export, methods=["GET"]),
            *(
                Route(f"/{{mirror}}/{name}", self._changing(change), methods=["POST"])
                for name, change in changes.items()
            ),
        ]

    async def overview(self, _: Request) -> JSONResponse:
        """``GET /``: all mirrors, in the order of the configuration; one that cannot be read is among the problems."""
        dispatcher = self._coordinator.dispatcher
        shown = []
        for name, mirror in dispatcher.mirrors.items():
            with contextlib.suppress(StoreCorrupt):
                shown.append(views.summary(mirror, await self._coordinator.state(name)))
        return JSONResponse({"mirrors": shown, "problems": dispatcher.problems()})

    async def show(self, request: Request) -> JSONResponse:
        """``GET /{mirror}``: counts, figures with their intervals, quantiles, budget."""
        name = _name(request)
        return JSONResponse(await self._detail(name, await self._coordinator.state(name)))

    async def results(self, request: Request) -> JSONResponse:
        """``GET /{mirror}/results?limit=``: the newest results, the oldest of them first."""
        return JSONResponse({"results": await self._results(request)})

    async def export(self, request: Request) -> Response:
        """``GET /{mirror}/export?limit=``: the same, one JSON object a line."""
        rows = await self._results(request)
        lines = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        return Response(lines.encode("utf-8", "replace"), media_type="application/x-ndjson")

    async def _results(self, request: Request) -> list[object]:
        query = read_query(ResultsQuery, request)
        name = _name(request)
        state = await self._coordinator.state(name)
        room = self._coordinator.mirror(name).config.keep_results
        return list(await self._coordinator.repository.results(name, state, room, query.limit))

    async def _detail(self, name: str, state: Evidence) -> dict[str, object]:
        coordinator = self._coordinator
        spent = await coordinator.repository.spent(name, day_of(coordinator.dispatcher.services.clock.now()))
        return views.detail(coordinator.mirror(name), state, spent)

    def _changing(self, change: Change) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def handler(request: Request) -> JSONResponse:
            name = _name(request)
            signed = await read_body(Signed, request)
            return JSONResponse(await self._detail(name, await change(name, signed.by(request), signed.reason)))

        return handler


def _name(request: Request) -> str:
    return str(request.path_params["mirror"])
