"""Routes: the control surface, the lists of models, and the upstream itself for everything else.

Control surface, for when the upstream runs in a process of its own:

- ``POST /_control/behaviour`` with ``{"model": name, "behaviour": {...}}`` sets a model's behaviour.
- ``GET /_control/behaviour`` returns the behaviours by model.
- ``GET /_control/requests`` returns the requests received.
- ``POST /_control/reset`` forgets requests, counts and limits, and the behaviours set since the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from .behaviour import ANY_MODEL, BEHAVIOUR, Behaviour
from .embeddings import anthropic_models, openai_models
from .journal import REQUESTS

if TYPE_CHECKING:
    from starlette.requests import Request

    from .app import Upstream


@dataclass(frozen=True, slots=True, config={"extra": "forbid"})
class SetBehaviour:
    """Body of ``POST /_control/behaviour``.

    Attributes:
        model: The upstream model's name, or ``*``.
        behaviour: Its behaviour from now on.
    """

    model: str
    behaviour: Behaviour


_SET_BEHAVIOUR: TypeAdapter[SetBehaviour] = TypeAdapter(SetBehaviour)


def build_app(upstream: Upstream) -> Starlette:
    """Return the whole application."""

    async def set_behaviour(request: Request) -> Response:
        try:
            wanted = _SET_BEHAVIOUR.validate_json(await request.body())
        except ValidationError as err:
            return JSONResponse({"error": str(err)}, status_code=422)
        upstream.behave(wanted.model, wanted.behaviour)
        return Response(status_code=204)

    async def behaviours(_request: Request) -> Response:
        found = upstream.behaviours
        return JSONResponse({name: BEHAVIOUR.dump_python(found[name], mode="json") for name in found})

    async def requests(_request: Request) -> Response:
        return Response(REQUESTS.dump_json(upstream.journal.all()), media_type="application/json")

    async def reset(_request: Request) -> Response:
        upstream.reset()
        return Response(status_code=204)

    async def models(request: Request) -> Response:
        names = sorted(set(upstream.behaviours) - {ANY_MODEL})
        listed = anthropic_models(names) if "anthropic-version" in request.headers else openai_models(names)
        return JSONResponse(listed)

    control = [
        Route("/behaviour", behaviours, methods=["GET"]),
        Route("/behaviour", set_behaviour, methods=["POST"]),
        Route("/requests", requests, methods=["GET"]),
        Route("/reset", reset, methods=["POST"]),
    ]
    return Starlette(
        routes=[
            Mount("/_control", routes=control),
            Route("/{path:path}", upstream, methods=["POST"]),
            *(Route(f"{prefix}/models", models) for prefix in ("", "/v1", "/openai", "/openai/v1")),
        ]
    )
