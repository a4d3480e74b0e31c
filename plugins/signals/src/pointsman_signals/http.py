"""Admin routes: what is known of every deployment, and asking anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.errors import InvalidInput, NotFound, nearest
from pointsman.types import SignalStatus

from .view import account_json, signal_json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pointsman.plugin import Services
    from pointsman.types import Deployment

    from .book import Book
    from .refresh import Refresher

_FILTERS = frozenset({"group", "provider", "status"})
_STATUSES = tuple(map(str, SignalStatus))


class Surface:
    """The routes' handlers.

    Args:
        book: The states.
        refresher: Makes checks.
        services: For the clock, the catalogue and the published signals.
    """

    def __init__(self, book: Book, refresher: Refresher, services: Services) -> None:
        self._book = book
        self._refresher = refresher
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted under ``/pointsman/signals``."""
        return [
            Route("/", self.show, methods=["GET"]),
            Route("/{deployment:path}/refresh", self.refresh, methods=["POST"]),
            Route("/{deployment:path}", self.show_one, methods=["GET"]),
        ]

    async def show(self, request: Request) -> Response:
        """``GET /``: every deployment and every provider account; ``group``, ``provider``, ``status`` narrow it."""
        wanted = dict(request.query_params)
        if unknown := wanted.keys() - _FILTERS:
            name = min(unknown)
            allowed = ", ".join(sorted(_FILTERS))
            raise InvalidInput(f"unknown parameter {name!r}{nearest(name, _FILTERS)}; allowed: {allowed}", param=name)
        status = wanted.get("status")
        if status is not None and status not in _STATUSES:
            raise InvalidInput(
                f"there is no status {status!r}{nearest(status, _STATUSES)}; allowed: {', '.join(_STATUSES)}",
                param="status",
            )
        book, now = self._book, self._services.clock.now()
        self._adopt(now)
        shown = {}
        for state in book.states.values():
            signal = book.signal(state, now)
            shown[state.id] = (state, signal, signal_json(signal, state.deployment))
        rows = [row for _, _, row in shown.values() if all(row[name] == value for name, value in wanted.items())]
        accounts = [
            account_json(name, shared, [shown[state.id][:2] for state in states], now)
            for (name, shared), states in book.accounts().items()
        ]
        rows.sort(key=lambda row: (row["group"] or "", row["deployment_id"]))
        accounts.sort(key=lambda row: row["account"])
        return JSONResponse({"now": now, "signals": rows, "accounts": accounts, "dialects": book.dialects.names()})

    async def show_one(self, request: Request) -> Response:
        """``GET /{deployment}``: one deployment, with statistics of this moment."""
        deployment_id = request.path_params["deployment"]
        book, now = self._book, self._services.clock.now()
        self._adopt(now)
        state = book.states.get(deployment_id)
        if state is None:
            raise NotFound(f"there is no deployment {deployment_id!r}; see GET /pointsman/signals")
        return JSONResponse(signal_json(book.fresh_signal(state, now), state.deployment))

    async def refresh(self, request: Request) -> Response:
        """``POST /{deployment}/refresh``: check it now, or read what the other workers know when it has no check."""
        deployment = self._deployment(request.path_params["deployment"])
        signal = await self._refresher.refresh(deployment)
        state = self._book.states.get(deployment.id)
        check = state.facts.check if state else None
        return JSONResponse(
            {
                **signal_json(signal, deployment),
                "checked": self._refresher.can(deployment),
                "check": None if check is None else {"at": check.at, "ok": check.ok, "message": check.message},
            }
        )

    def _deployment(self, deployment_id: str) -> Deployment:
        found = next((d for d in self._services.catalog.deployments(deployment_id) if d.id == deployment_id), None)
        if found is None:
            raise NotFound(
                f"the gateway's configuration has no deployment {deployment_id!r}; see GET /pointsman/signals",
                param="deployment",
            )
        return found

    def _adopt(self, now: float) -> None:
        self._book.adopt(self._services.catalog.deployments(), now)
