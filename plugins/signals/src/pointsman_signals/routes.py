"""Admin routes: the state of every deployment, and checks on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.admin import Input, read_query
from pointsman.errors import InvalidInput, NotFound, nearest
from pointsman.types import SignalStatus

from .views import account_json, signal_json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pointsman.plugin import Services
    from pointsman.types import Deployment

    from .refresh import Refresher
    from .repository import Repository
    from .tracker import Tracker

_STATUSES = tuple(map(str, SignalStatus))


class SignalsQuery(Input):
    """Query parameters that filter the deployments."""

    group: str | None = None
    provider: str | None = None
    status: str | None = None


class AdminRoutes:
    """The routes' handlers.

    Args:
        tracker: The states.
        refresher: Runs checks.
        repository: Shares the states.
        services: Clock and catalogue.
    """

    def __init__(self, tracker: Tracker, refresher: Refresher, repository: Repository, services: Services) -> None:
        self._tracker = tracker
        self._repository = repository
        self._refresher = refresher
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted under ``/pointsman/signals``."""
        return [
            Route("/", self.show, methods=["GET"]),
            Route("/{deployment:path}/refresh", self.refresh, methods=["POST"]),
            Route("/{deployment:path}/reset", self.reset, methods=["POST"]),
            Route("/{deployment:path}", self.show_one, methods=["GET"]),
        ]

    async def show(self, request: Request) -> Response:
        """``GET /``: every deployment and provider account; ``group``, ``provider`` and ``status`` filter."""
        wanted = read_query(SignalsQuery, request).model_dump(exclude_none=True)
        status = wanted.get("status")
        if status is not None and status not in _STATUSES:
            raise InvalidInput(
                f"there is no status {status!r}{nearest(status, _STATUSES)}; allowed: {', '.join(_STATUSES)}",
                param="status",
            )
        tracker, now = self._tracker, self._services.clock.now()
        self._adopt(now)
        shown = {}
        for state in tracker.states.values():
            signal = tracker.signal(state, now)
            shown[state.id] = (state, signal, signal_json(signal, state.deployment))
        rows = [row for _, _, row in shown.values() if all(row[name] == value for name, value in wanted.items())]
        accounts = [
            account_json(name, shared, [shown[state.id][:2] for state in states], now)
            for (name, shared), states in tracker.accounts().items()
        ]
        rows.sort(key=lambda row: (row["group"] or "", row["deployment_id"]))
        accounts.sort(key=lambda row: row["account"])
        return JSONResponse({"now": now, "signals": rows, "accounts": accounts, "dialects": tracker.dialects.names()})

    async def show_one(self, request: Request) -> Response:
        """``GET /{deployment}``: one deployment, with current statistics."""
        deployment_id = request.path_params["deployment"]
        tracker, now = self._tracker, self._services.clock.now()
        self._adopt(now)
        state = tracker.states.get(deployment_id)
        if state is None:
            raise NotFound(f"there is no deployment {deployment_id!r}; see GET /pointsman/signals")
        return JSONResponse(signal_json(tracker.fresh_signal(state, now), state.deployment))

    async def refresh(self, request: Request) -> Response:
        """``POST /{deployment}/refresh``: check it now; without a check, read what other workers know."""
        deployment = self._deployment(request.path_params["deployment"])
        signal = await self._refresher.refresh(deployment)
        state = self._tracker.states.get(deployment.id)
        check = state.facts.check if state else None
        return JSONResponse(
            {
                **signal_json(signal, deployment),
                "checked": self._refresher.can(deployment),
                "check": None if check is None else {"at": check.at, "ok": check.ok, "message": check.message},
            }
        )

    async def reset(self, request: Request) -> Response:
        """``POST /{deployment}/reset``: forget its statistics and failures, in all workers; quotas stay."""
        deployment = self._deployment(request.path_params["deployment"])
        now = self._services.clock.now()
        state = self._tracker.state(deployment, now)
        state.reset(now)
        signal = self._tracker.fresh_signal(state, now)
        self._services.signals.put(signal)
        await self._repository.write(state)
        return JSONResponse(signal_json(signal, deployment))

    def _deployment(self, deployment_id: str) -> Deployment:
        deployment = next((d for d in self._services.catalog.deployments(deployment_id) if d.id == deployment_id), None)
        if deployment is None:
            raise NotFound(
                f"the gateway's configuration has no deployment {deployment_id!r}; see GET /pointsman/signals",
                param="deployment",
            )
        return deployment

    def _adopt(self, now: float) -> None:
        self._tracker.adopt(self._services.catalog.deployments(), now)
