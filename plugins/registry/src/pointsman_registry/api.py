"""The registry's admin routes, mounted under ``/pointsman/registry``.

Answers are JSON. What goes wrong is an ``AdminError``, which the host turns into its status and body. Who did something
is ``who`` in the body, else the user or alias of the admin key: the bridge says it in the header ``x-pointsman-user``,
whatever the client has put there.
"""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pointsman.admin import Signed, read_body, read_query, user
from pointsman.errors import NotFound
from pointsman.plugin import Clock

from .fields import (
    DeleteQuery,
    HistoryQuery,
    NameQuery,
    NoQuery,
    RollbackQuery,
    VersionSpec,
)
from .meter import Meter
from .registry import Registry
from .tally import Tally
from .versions import Version


class Api:
    """Handlers of the admin routes.

    Args:
        registry: What they change.
        meter: The live metrics.
        clock: For the time of a reset.
    """

    def __init__(self, registry: Registry, meter: Meter, clock: Clock) -> None:
        self._registry = registry
        self._meter = meter
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
        return JSONResponse({"versions": [self._shown(version) for version in self._registry.state.of(query.name)]})

    async def register(self, request: Request) -> JSONResponse:
        """``POST /versions``: the version, 201."""
        read_query(NoQuery, request)
        spec = await read_body(VersionSpec, request)
        version = await self._registry.register(spec, user(request))
        return JSONResponse(self._shown(version), status_code=201)

    async def get(self, request: Request) -> JSONResponse:
        """``GET /versions/{id}``: the version."""
        read_query(NoQuery, request)
        await self._registry.refresh()
        return JSONResponse(self._shown(self._registry.state.get(request.path_params["id"])))

    async def activate(self, request: Request) -> JSONResponse:
        """``POST /versions/{id}/activate``: the version; the same answer when it was active already."""
        read_query(NoQuery, request)
        signature = await read_body(Signed, request)
        who = signature.by(request)
        return JSONResponse(
            self._shown(await self._registry.activate(request.path_params["id"], who, signature.reason))
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
        return JSONResponse(self._shown(await self._registry.rollback(query.name, who, signature.reason)))

    async def all_metrics(self, request: Request) -> JSONResponse:
        """``GET /metrics?name=``: the live metrics of all versions, or of one name's, in the order of the ids."""
        query = read_query(NameQuery, request)
        await self._registry.refresh()
        return JSONResponse({"metrics": await self._measured(self._registry.state.of(query.name))})

    async def metrics(self, request: Request) -> JSONResponse:
        """``GET /metrics/{id}``: the live metrics of one version."""
        read_query(NoQuery, request)
        await self._registry.refresh()
        version = self._registry.state.get(request.path_params["id"])
        if not (found := await self._measured([version])):
            raise NotFound(f"there is no version {version.id!r} any more")
        return JSONResponse(found[0])

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
            await self._meter.reset(version.id, at)
        return JSONResponse({"reset": [version.id for version in versions]})

    async def _measured(self, versions: list[Version]) -> list[dict[str, object]]:
        tallies = await self._meter.read([version.id for version in versions])
        return [
            {"id": version.id, "name": version.name, "version": version.version, **_measures(tallies[version.id])}
            for version in versions
            if version.id in tallies
        ]

    def _shown(self, version: Version) -> dict[str, object]:
        return {**asdict(version), "active": self._registry.state.is_active(version)}


def _measures(tally: Tally) -> dict[str, object]:
    latency, first_token = tally.latency_ms(), tally.first_token_ms()
    return {
        "since": tally.since,
        "updated_at": tally.updated_at,
        "requests": tally.requests,
        "errors": tally.errors,
        "cancelled": tally.cancelled,
        "error_ratio": tally.error_ratio,
        "latency_ms": asdict(latency) if latency else None,
        "first_token_ms": asdict(first_token) if first_token else None,
    }
