"""The admin routes, mounted under ``/pointsman/canary``.

Answers are JSON. Who did something is ``who`` in the body, else the user or alias of the admin key: the
bridge says it in the header ``x-pointsman-user``, whatever the client has put there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pointsman.admin import Signed, read_body, read_query
from pointsman.errors import Conflict, InvalidInput, NotFound

from . import codec, lifecycle
from .bodies import (
    AuditQuery,
    Creation,
    DeleteQuery,
    Promotion,
    Restart,
    Scores,
    Weights,
)
from .experiment import CANARY, NAME, STABLE, MetricName
from .metrics import index

if TYPE_CHECKING:
    from starlette.requests import Request

    from .engine import Engine
    from .lifecycle import Cause, Outcome
    from .rollout import Rollout


class Admin:
    """Handlers of the admin routes.

    Args:
        engine: What they change.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
            Route("/{rollout}/restart", self.restart, methods=["POST"]),
            Route("/{rollout}/weight", self.weigh, methods=["POST"]),
            Route("/{rollout}/score", self.score, methods=["POST"]),
        ]

    async def overview(self, _: Request) -> JSONResponse:
        """``GET /``: all experiments, in the order in which they are asked."""
        await self._engine.refresh(force=True)
        shown = [summary(rollout) for rollout in self._engine.rollouts.values()]
        return JSONResponse({"experiments": shown, "problems": self._engine.problems()})

    async def create(self, request: Request) -> JSONResponse:
        """``POST /``: begin an experiment, 201."""
        body = await read_body(Creation, request)
        rollout = await self._engine.add(body.experiment, self._cause(request, body))
        return JSONResponse(detail(rollout), status_code=201)

    async def show(self, request: Request) -> JSONResponse:
        """``GET /{rollout}``: definition, state and analysis."""
        await self._engine.refresh(force=True)
        return JSONResponse(detail(self._rollout(request)))

    async def delete(self, request: Request) -> JSONResponse:
        """``DELETE /{rollout}?force=``: 409 while it is not finished, without ``force=true``."""
        query = read_query(DeleteQuery, request)
        body = await read_body(Signed, request)
        name = _name(request)
        await self._engine.remove(name, self._cause(request, body), force=query.force)
        return JSONResponse({"deleted": name})

    async def audit(self, request: Request) -> JSONResponse:
        """``GET /{rollout}/audit?limit=``: every change with who and why, the newest first, also of a deleted one."""
        query = read_query(AuditQuery, request)
        name = _name(request)
        entries = await self._engine.repository.audit(name, query.limit)
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
        return JSONResponse(detail(await self._engine.restart(name, body.experiment, self._cause(request, body))))

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
            raise Conflict(f"{rollout.name} has no metric 'score'; add it to its metrics")
        arms = [STABLE, *rollout.experiment.targets]
        for number, score in enumerate(body.scores):
            if score.arm not in arms:
                raise InvalidInput(
                    f"scores.{number}.arm: {rollout.name} has {', '.join(arms)}, no {score.arm!r}",
                    param=f"scores.{number}.arm",
                )
        counted = 0
        for score in body.scores:
            if score.request_id is not None and not await self._engine.repository.first_score(
                rollout.name, score.request_id
            ):
                continue
            buckets = {MetricName.SCORE: index(MetricName.SCORE, score.score)}
            self._engine.observer.note(rollout.name, rollout.tag, score.arm, buckets)
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
        rollout = await self._engine.change(_name(request), lambda state: transition(state, cause))
        return JSONResponse(detail(rollout))

    def _cause(self, request: Request, body: Signed) -> Cause:
        return self._engine.cause(body.by(request), body.reason or "asked for")

    def _rollout(self, request: Request) -> Rollout:
        name = _name(request)
        rollout = self._engine.rollouts.get(name)
        if rollout is None:
            known = ", ".join(self._engine.rollouts) or "none"
            raise NotFound(f"there is no experiment {name!r}; known: {known}")
        return rollout


def _name(request: Request) -> str:
    name: str = request.path_params["rollout"]
    if not NAME.fullmatch(name):
        raise NotFound(f"there is no experiment {name[:64]!r}: no name is like that")
    return name


def summary(rollout: Rollout) -> dict[str, object]:
    """Return where an experiment stands, as JSON."""
    plan = rollout.experiment.plan()
    return {
        "name": rollout.name,
        "model": rollout.experiment.model,
        "kind": "ab" if rollout.experiment.arms is not None else "rollout",
        "origin": rollout.origin,
        "phase": rollout.phase,
        "reason": rollout.reason,
        "run": rollout.run,
        "step": rollout.step + 1,
        "steps": len(plan),
        "weights_percent": rollout.weights_percent,
        "elapsed_s": round(rollout.elapsed_s, 3),
        "gate": rollout.gate,
        "changed_at": rollout.changed_at,
        "analysis": codec.encode_findings(rollout.findings()),
    }


def detail(rollout: Rollout) -> Mapping[str, object]:
    """Return everything about an experiment that is of use outside, as JSON."""
    activation = rollout.activation
    return {
        **summary(rollout),
        "stage": rollout.tag,
        "activation": None
        if activation is None
        else {"version_id": activation.version_id, "done": activation.done, "previous_id": activation.previous_id},
        "definition": rollout.experiment.model_dump(mode="json"),
    }
