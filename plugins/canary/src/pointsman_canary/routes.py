"""The admin routes, mounted under ``/pointsman/canary``.

Answers are JSON. The author of a change is ``who`` in the body, else the user or alias of the admin key: the bridge
sets the header ``x-pointsman-user`` and overwrites the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, StringConstraints
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pointsman.admin import Input, Signed, read_body, read_query
from pointsman.errors import Conflict, InvalidInput, NotFound

from . import lifecycle, views
from .experiment import CANARY, NAME, STABLE, Experiment, MetricName, Name, Percent
from .metrics import index

if TYPE_CHECKING:
    from starlette.requests import Request

    from .coordinator import Coordinator
    from .lifecycle import Cause, Outcome
    from .rollout import Rollout

MAX_AUDIT: Final = 1000
MAX_SCORES: Final = 1000


class Creation(Signed):
    """``POST /``."""

    experiment: Experiment


class Promotion(Signed):
    """``POST /{rollout}/promote``."""

    arm: Name | None = None


class Restart(Signed):
    """``POST /{rollout}/restart``."""

    experiment: Experiment | None = None


class Weights(Signed):
    """``POST /{rollout}/weight``: one percentage for the canary, or one for each of some arms."""

    percent: Percent | None = None
    percents: dict[Name, Percent] | None = None


class Score(Input):
    """A judge's score of one answer."""

    arm: Name
    score: float = Field(ge=0, le=1, description="1 is best.")
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        default=None, description="Makes the score idempotent: it counts once, however often it is sent."
    )


class Scores(Input):
    """``POST /{rollout}/score``."""

    scores: tuple[Score, ...] = Field(min_length=1, max_length=MAX_SCORES)


class AuditQuery(Input):
    """``GET /{rollout}/audit``."""

    limit: int = Field(default=100, ge=1, le=MAX_AUDIT)


class DeleteQuery(Input):
    """``DELETE /{rollout}``."""

    force: bool = False


class Admin:
    """Handlers of the admin routes.

    Args:
        coordinator: What they change.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/", self.overview, methods=["GET"]),
            Route("/", self.create, methods=["POST"]),
            Route("/{rollout}", self.show, methods=["GET"]),
            Route("/{rollout}", self.delete, methods=["DELETE"]),
            Route("/{rollout}/audit", self.audit, methods=["GET"]),
            Route("/{rollout}/promote", self.promote, methods=["POST"]),
            Route("/{rollout}/rollback", self._plain(lifecycle.rollback), methods=["POST"]),
            Route("/{rollout}/pause", self._plain(lifecycle.pause), methods=["POST"]),
            Route("/{rollout}/resume", self._plain(lifecycle.resume), methods=["POST"]),
            Route("/{rollout}/step", self._plain(lifecycle.step), methods=["POST"]),
            Route("/{rollout}/restart", self.restart, methods=["POST"]),
            Route("/{rollout}/weight", self.weigh, methods=["POST"]),
            Route("/{rollout}/score", self.score, methods=["POST"]),
        ]

    async def overview(self, _: Request) -> JSONResponse:
        """``GET /``: all experiments, in the order in which they are asked."""
        await self._coordinator.refresh()
        shown = [views.summary(rollout) for rollout in self._coordinator.rollouts.values()]
        return JSONResponse({"experiments": shown, "problems": self._coordinator.problems()})

    async def create(self, request: Request) -> JSONResponse:
        """``POST /``: begin an experiment, 201."""
        body = await read_body(Creation, request)
        rollout = await self._coordinator.add(body.experiment, self._cause(request, body))
        return JSONResponse(self._detail(rollout), status_code=201)

    async def show(self, request: Request) -> JSONResponse:
        """``GET /{rollout}``: definition, state and analysis."""
        await self._coordinator.refresh()
        return JSONResponse(self._detail(self._rollout(request)))

    async def delete(self, request: Request) -> JSONResponse:
        """``DELETE /{rollout}?force=``: 409 while it is not finished, without ``force=true``."""
        query = read_query(DeleteQuery, request)
        body = await read_body(Signed, request)
        name = _name(request)
        await self._coordinator.remove(name, self._cause(request, body), force=query.force)
        return JSONResponse({"deleted": name})

    async def audit(self, request: Request) -> JSONResponse:
        """``GET /{rollout}/audit?limit=``: every change with who and why, the newest first, also of a deleted one."""
        query = read_query(AuditQuery, request)
        name = _name(request)
        entries = await self._coordinator.repository.audit(name, query.limit)
        if not entries:
            raise NotFound(f"there has never been an experiment {name!r}")
        return JSONResponse({"audit": entries})

    async def promote(self, request: Request) -> JSONResponse:
        """``POST /{rollout}/promote``: everything to one arm."""
        body = await read_body(Promotion, request)
        return await self._change(request, body, lambda state, cause: lifecycle.promote(state, cause, body.arm))

    async def restart(self, request: Request) -> JSONResponse:
        """``POST /{rollout}/restart``: a new run from the first step, with the configuration's or a new definition."""
        body = await read_body(Restart, request)
        name = _name(request)
        rollout = await self._coordinator.restart(name, body.experiment, self._cause(request, body))
        return JSONResponse(self._detail(rollout))

    async def weigh(self, request: Request) -> JSONResponse:
        """``POST /{rollout}/weight``: new weights at once."""
        body = await read_body(Weights, request)
        if (body.percent is None) == (body.percents is None):
            raise InvalidInput("give either 'percent' (of the canary) or 'percents' (by arm)", param="percent")
        percents = body.percents if body.percents is not None else {CANARY: body.percent or 0.0}
        return await self._change(request, body, lambda state, cause: lifecycle.weigh(state, percents, cause))

    async def score(self, request: Request) -> JSONResponse:
        """``POST /{rollout}/score``: scores of answers, 0 to 1; says how many were counted."""
        body = await read_body(Scores, request)
        rollout = self._rollout(request)
        if not any(metric.metric is MetricName.SCORE for metric in rollout.experiment.metrics):
            raise Conflict(f"{rollout.name} has no metric 'score'; add it to the metrics")
        arms = [STABLE, *rollout.experiment.targets]
        for number, score in enumerate(body.scores):
            if score.arm not in arms:
                raise InvalidInput(
                    f"scores.{number}.arm: {rollout.name} has no arm {score.arm!r}; it has {', '.join(arms)}",
                    param=f"scores.{number}.arm",
                )
        counted = 0
        for score in body.scores:
            if score.request_id is not None and not await self._coordinator.repository.first_score(
                rollout.name, score.request_id
            ):
                continue
            buckets = {MetricName.SCORE: index(MetricName.SCORE, score.score)}
            self._coordinator.observer.note(rollout.name, rollout.tag, score.arm, buckets)
            counted += 1
        return JSONResponse({"counted": counted, "repeated": len(body.scores) - counted})

    def _plain(self, transition: Callable[[Rollout, Cause], Outcome]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> JSONResponse:
            body = await read_body(Signed, request)
            return await self._change(request, body, transition)

        return handle

    async def _change(
        self, request: Request, body: Signed, transition: Callable[[Rollout, Cause], Outcome]
    ) -> JSONResponse:
        cause = self._cause(request, body)
        rollout = await self._coordinator.change(_name(request), lambda state: transition(state, cause))
        return JSONResponse(self._detail(rollout))

    def _detail(self, rollout: Rollout) -> Mapping[str, object]:
        return {**views.detail(rollout), "warning": self._coordinator.still_serving(rollout)}

    def _cause(self, request: Request, body: Signed) -> Cause:
        return self._coordinator.cause(body.by(request), body.reason or "requested")

    def _rollout(self, request: Request) -> Rollout:
        name = _name(request)
        rollout = self._coordinator.rollouts.get(name)
        if rollout is None:
            known = ", ".join(self._coordinator.rollouts) or "none"
            raise NotFound(f"there is no experiment {name!r}; known: {known}")
        return rollout


def _name(request: Request) -> str:
    name: str = request.path_params["rollout"]
    if not NAME.fullmatch(name):
        raise NotFound(
            f"there is no experiment {name[:64]!r}: names have lower-case letters, digits, hyphens and underscores"
        )
    return name
