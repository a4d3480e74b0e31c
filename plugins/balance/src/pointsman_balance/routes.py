"""Admin routes: health of the deployments, live settings, resets and probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.admin import Input, read_body, read_query
from pointsman.errors import ConfigError, InvalidInput, NotFound

from .config import GroupPolicy
from .views import group_json, member_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from pointsman.plugin import Services

    from .members import Member, Members
    from .policies import Policies
    from .probe import Prober
    from .repository import Repository

_MAX_NAME_CHARS: Final = 256


class GroupQuery(Input):
    """Query parameters of routes that can be limited to one model group."""

    group: str | None = None


class AdminRoutes:
    """The routes' handlers.

    Args:
        members: The known deployments.
        policies: Settings by model group.
        repository: Breakers and settings in the store.
        prober: Sends probes.
        services: Clock and catalogue.
        problems: Returns the problems for an operator.
        reset: Closes a member's breaker in all workers.
    """

    def __init__(
        self,
        members: Members,
        policies: Policies,
        repository: Repository,
        prober: Prober,
        services: Services,
        *,
        problems: Callable[[], list[str]],
        reset: Callable[[Member], Awaitable[None]],
    ) -> None:
        self._members = members
        self._policies = policies
        self._repository = repository
        self._prober = prober
        self._services = services
        self._problems = problems
        self._reset = reset

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted under ``/pointsman/balance``."""
        return [
            Route("/", self.show, methods=["GET"]),
            Route("/groups/{group:path}", self.show_group, methods=["GET"]),
            Route("/groups/{group:path}", self.set_group, methods=["PUT"]),
            Route("/groups/{group:path}", self.unset_group, methods=["DELETE"]),
            Route("/{deployment:path}/reset", self.reset, methods=["POST"]),
            Route("/{deployment:path}/probe", self.probe, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """``GET /``: every model group with its settings, deployments and breakers; ``group`` selects one."""
        wanted = read_query(GroupQuery, request).group
        now = self._adopt()
        groups: dict[str, list[Member]] = {}
        for member in self._members:
            groups.setdefault(member.key[0], []).append(member)
        rows = [
            group_json(group, self._policies, members, now)
            for group, members in sorted(groups.items())
            if wanted in {None, group}
        ]
        tactics = {name: kind.summary for name, kind in sorted(self._policies.kinds.items())}
        return JSONResponse({"now": now, "groups": rows, "tactics": tactics, "problems": self._problems()})

    async def show_group(self, request: Request) -> Response:
        """``GET /groups/{group}``: one model group."""
        return JSONResponse(self._group(request.path_params["group"]))

    async def set_group(self, request: Request) -> Response:
        """``PUT /groups/{group}``: override the configured settings in every worker until they are removed."""
        group = request.path_params["group"]
        self._group(group)
        policy = await read_body(GroupPolicy, request)
        if not policy.model_fields_set:
            raise InvalidInput("send an object with 'tactic' or 'breaker'", param="body")
        try:
            self._policies.check(group, policy)
        except ConfigError as err:
            raise InvalidInput(str(err), param=str(err).partition(":")[0]) from None
        await self._repository.set_group(group, policy)
        return JSONResponse(self._group(group))

    async def unset_group(self, request: Request) -> Response:
        """``DELETE /groups/{group}``: restore the configured settings."""
        group = request.path_params["group"]
        if group not in self._policies.changed:
            raise NotFound(f"model group {group!r} has no live settings; the configured ones apply", param="group")
        await self._repository.set_group(group, None)
        return JSONResponse({"group": group, "changed": False})

    async def reset(self, request: Request) -> Response:
        """``POST /{deployment}/reset``: close its breakers in every worker; ``group`` selects one model group."""
        members = self._deployment(request)
        for member in members:
            await self._reset(member)
        now = self._services.clock.now()
        return JSONResponse({"reset": [member_json(member, now) for member in members]})

    async def probe(self, request: Request) -> Response:
        """``POST /{deployment}/probe``: call it now with one token, regardless of its breaker."""
        member = self._deployment(request)[0]
        failed = await self._prober.probe(member)
        return JSONResponse(
            {"ok": failed is None, "message": failed or "", **member_json(member, self._services.clock.now())}
        )

    def _adopt(self) -> float:
        """Add the configured deployments; return the time."""
        now = self._services.clock.now()
        for deployment in self._services.catalog.deployments():
            if len(self._members) < self._members.max_deployments:
                self._members.of(deployment, now)
        return now

    def _group(self, group: str) -> dict[str, object]:
        now = self._adopt()
        members = [member for member in self._members if member.key[0] == group]
        if not members:
            raise NotFound(
                f"the gateway's configuration has no model group {group[:_MAX_NAME_CHARS]!r}; see GET /pointsman/balance",
                param="group",
            )
        return group_json(group, self._policies, members, now)

    def _deployment(self, request: Request) -> list[Member]:
        deployment_id, group = request.path_params["deployment"], read_query(GroupQuery, request).group
        self._adopt()
        members = [
            member for member in self._members if member.key[1] == deployment_id and group in {None, member.key[0]}
        ]
        if not members:
            where = f" in the model group {group[:_MAX_NAME_CHARS]!r}" if group else ""
            raise NotFound(
                f"there is no deployment {deployment_id[:_MAX_NAME_CHARS]!r}{where}; see GET /pointsman/balance",
                param="deployment",
            )
        return members
