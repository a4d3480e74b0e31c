"""The registry's admin routes, mounted under ``/pointsman/registry``.

Answers are JSON. Errors are ``AdminError``s, which the host turns into status and body. The author of a change is ``who``
in the body, else the user or alias of the admin key: the bridge sets it as the header ``x-pointsman-user``, whatever the
client sent there.
"""

from __future__ import annotations

from dataclasses import asdict

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pointsman.admin import Input, Signed, read_body, read_query, user
from pointsman.errors import NotFound
from pointsman.plugin import Clock
from pointsman.types import Quantiles

from .config import VersionSpec
from .metrics import LiveMetrics
from .registry import Registry
from .repository import MAX_HISTORY, MetricsRepository
from .versions import Version


class NoQuery(Input):
    """A request without parameters."""


class NameQuery(Input):
    """Restricted to one name, or not."""

    name: str | None = None


class RollbackQuery(Input):
    """One name."""

    name: str


class HistoryQuery(Input):
    """The newest entries, of one name or of all."""

    name: str | None = None
    limit: int = Field(default=100, ge=1, le=MAX_HISTORY)


class DeleteQuery(Input):
    """Whether an active version may be deleted too."""

    force: bool = False


class Routes:
    """Handlers of the admin routes.

    Args:
        registry: What they change.
        metrics: The live metrics.
        clock: For the time of a reset.
    """

    def __init__(self, registry: Registry, metrics: MetricsRepository, clock: Clock) -> None:
        self._registry = registry
        self._metrics = metrics
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        """Return the routes. An id may contain slashes, so the longer patterns come first."""
        return [
            Route("/versions", self.list_versions, methods=["GET"]),
            Route("/versions", self.register, methods=["POST"]),
            Route("/versions/{id:path}/activate", self.activate, methods=["POST"]),
            Route("/versions/{id:path}", self.get, methods=["GET"]),
            Route("/versions/{id:path}", self.delete, methods=["DELETE"]),
            Route("/history", self.history, methods=["GET"]),
            Route("/rollback", self.rollback, methods=["POST"]),
            Route("/metrics", self.all_metrics, methods=["GET"]),
            Route("/metrics", self.reset_all_metrics, methods=["DELETE"]),
            Route("/metrics/{id:path}", self.metrics, methods=["GET"]),
            Route("/metrics/{id:path}", self.reset_metrics, methods=["DELETE"]),
        ]

    async def list_versions(self, request: Request) -> JSONResponse:
        """``GET /versions?name=``: in the order of the ids; an unknown name has none."""
        query = read_query(NameQuery, request)
        await self._registry.refresh()
        return JSONResponse(
            {"versions": [self._version_json(version) for version in self._registry.state.of(query.name)]}
        )

    async def register(self, request: Request) -> JSONResponse:
        """``POST /versions``: the version, 201."""
        read_query(NoQuery, request)
        spec = await read_body(VersionSpec, request)
        version = await self._registry.register(spec, user(request))
        return JSONResponse(self._version_json(version), status_code=201)

    async def get(self, request: Request) -> JSONResponse:
        """``GET /versions/{id}``: the version."""
        read_query(NoQuery, request)
        await self._registry.refresh()
        return JSONResponse(self._version_json(self._registry.state.get(request.path_params["id"])))

    async def activate(self, request: Request) -> JSONResponse:
        """``POST /versions/{id}/activate``: the version; the same answer when it was active already."""
        read_query(NoQuery, request)
        signature = await read_body(Signed, request)
        who = signature.by(request)
        return JSONResponse(
            self._version_json(await self._registry.activate(request.path_params["id"], who, signature.reason))
        )

    async def delete(self, request: Request) -> JSONResponse:
        """``DELETE /versions/{id}?force=``: 409 for an active version without ``force=true``."""
        query = read_query(DeleteQuery, request)
        signature = await read_body(Signed, request)
        version_id = request.path_params["id"]
        await self._registry.delete(version_id, signature.by(request), signature.reason, force=query.force)
        return JSONResponse({"deleted": version_id})

    async def history(self, request: Request) -> JSONResponse:
        """``GET /history?name=&limit=``: the newest activations first; an unknown name has none."""
        query = read_query(HistoryQuery, request)
        entries = await self._registry.history(query.name, query.limit)
        return JSONResponse({"history": [asdict(entry) for entry in entries]})

    async def rollback(self, request: Request) -> JSONResponse:
        """``POST /rollback?name=``: the version that is active now; 409 when there was none before."""
        query = read_query(RollbackQuery, request)
        signature = await read_body(Signed, request)
        who = signature.by(request)
        return JSONResponse(self._version_json(await self._registry.rollback(query.name, who, signature.reason)))

    async def all_metrics(self, request: Request) -> JSONResponse:
        """``GET /metrics?name=``: the live metrics of all versions, or of one name's, in the order of the ids."""
        query = read_query(NameQuery, request)
        await self._registry.refresh()
        return JSONResponse({"metrics": await self._metrics_of(self._registry.state.of(query.name))})

    async def metrics(self, request: Request) -> JSONResponse:
        """``GET /metrics/{id}``: the live metrics of one version."""
        read_query(NoQuery, request)
        await self._registry.refresh()
        version = self._registry.state.get(request.path_params["id"])
        if not (rows := await self._metrics_of([version])):
            raise NotFound(f"the version {version.id!r} has been deleted")
        return JSONResponse(rows[0])

    async def reset_all_metrics(self, request: Request) -> JSONResponse:
        """``DELETE /metrics?name=``: every version, or every version of a name, is counted from now on."""
        query = read_query(NameQuery, request)
        await self._registry.refresh()
        return await self._reset(self._registry.state.of(query.name))

    async def reset_metrics(self, request: Request) -> JSONResponse:
        """``DELETE /metrics/{id}``: the version is counted from now on."""
        read_query(NoQuery, request)
        await self._registry.refresh()
        return await self._reset([self._registry.state.get(request.path_params["id"])])

    async def _reset(self, versions: list[Version]) -> JSONResponse:
        at = self._clock.now()
        for version in versions:
            await self._metrics.reset(version.id, at)
        return JSONResponse({"reset": [version.id for version in versions]})

    async def _metrics_of(self, versions: list[Version]) -> list[dict[str, object]]:
        live = await self._metrics.read([version.id for version in versions])
        return [
            {"id": version.id, "name": version.name, "version": version.version, **_metrics_json(live[version.id])}
            for version in versions
            if version.id in live
        ]

    def _version_json(self, version: Version) -> dict[str, object]:
        return {**asdict(version), "active": self._registry.state.is_active(version)}


def _metrics_json(live: LiveMetrics) -> dict[str, object]:
    return {
        "since": live.since,
        "updated_at": live.updated_at,
        "requests": live.requests,
        "errors": live.errors,
        "cancelled": live.cancelled,
        "error_ratio": live.error_ratio,
        "latency_ms": _quantiles_json(live.latency_ms()),
        "first_token_ms": _quantiles_json(live.first_token_ms()),
    }


def _quantiles_json(found: Quantiles | None) -> dict[str, float] | None:
    # The registry keeps no mean, so its answers have none.
    return None if found is None else {"p50": found.p50, "p95": found.p95, "p99": found.p99, "count": found.count}
