"""The admin routes, mounted under ``/pointsman/racing``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman.errors import InvalidInput, NotFound

from . import document, listing
from .config import CandidateConfig
from .tally import Tally

if TYPE_CHECKING:
    from starlette.requests import Request

    from pointsman.plugin import Services

    from .book import Book
    from .budget import Bucket
    from .courses import Course
    from .racer import Racer
    from .sharing import Sharing


class Surface:
    """The routes' handlers.

    Args:
        racer: The races.
        book: What is known about deployments.
        sharing: What the other workers know.
        services: The host's.
    """

    def __init__(self, racer: Racer, book: Book, sharing: Sharing, services: Services) -> None:
        self._racer = racer
        self._book = book
        self._sharing = sharing
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.show, methods=["GET"]),
            Route("/performance", self.export, methods=["GET"]),
            Route("/performance", self.take_in, methods=["POST"]),
            Route("/{name:path}", self.show_one, methods=["GET"]),
        ]

    async def show(self, _: Request) -> JSONResponse:
        """``GET /``: every race, every deployment that has been seen, and the budget."""
        now = self._services.clock.now()
        return JSONResponse(
            {
                "now": now,
                "races": [self.course_json(course) for course in self._racer.courses.by_name.values()],
                "default_model": self._racer.courses.default,
                "deployments": [self._book.show(deployment_id, now) for deployment_id in self._book.known()],
                "budget": {
                    **_bucket_json(self._racer.total),
                    "ratio": self._racer.ratio,
                    "worker": self._services.worker,
                },
                "running": self._racer.running,
                "cancelling_ms": self.cancelling_json(),
            }
        )

    async def show_one(self, request: Request) -> JSONResponse:
        """``GET /{name}``: one race."""
        name = request.path_params["name"]
        course = self._racer.courses.by_name.get(name)
        if course is None:
            raise NotFound(f"nothing is raced under the name {name!r}; see GET /pointsman/racing", param="name")
        return JSONResponse(self.course_json(course))

    async def export(self, _: Request) -> JSONResponse:
        """``GET /performance``: what is known about all deployments, to be kept or moved."""
        return JSONResponse(document.export(self._book, self._services.clock.now()))

    async def take_in(self, request: Request) -> JSONResponse:
        """``POST /performance``: take in what was exported; replaces what was taken in before."""
        try:
            standings = document.read(json.loads(await request.body()), self._book.half_life_s)
        except (document.NotOurs, ValueError, RecursionError) as err:
            raise InvalidInput(f"the body is not a performance file: {err}") from err
        await self._sharing.put_imported(standings)
        return JSONResponse({"imported": sorted(standings)})

    def course_json(self, course: Course) -> dict[str, Any]:
        """Return a race with its candidates and counts, those of the other workers included."""
        services, book, now = self._services, self._book, self._services.clock.now()
        model = course.model
        chosen = model.candidates if model is not None else (CandidateConfig(target=course.name),)

        def healthy(deployment_id: str) -> bool:
            return listing.healthy(deployment_id, book, services.signals, now)

        candidates = [listing.candidate_json(one, services.catalog, book, healthy, now) for one in chosen]
        total = Tally()
        for part in (course.tally, self._sharing.others.get(course.name)):
            if part is not None:
                total.merge(part)
        shown: dict[str, Any] = {
            "name": course.name,
            "kind": "group" if model is None else "model",
            "strategy": course.settings.strategy,
            "healthy": any(one["healthy"] for one in candidates),
            "candidates": candidates,
            "counts": total.to_json(),
            "extra_ratio": None if total.extra_ratio is None else round(total.extra_ratio, 4),
            "budget": _bucket_json(course.bucket),
        }
        if model is not None:
            deployments = listing.all_members(model.candidates, services.catalog)
            shown["display_name"], shown["description"] = model.display_name, model.description
            shown["capabilities"] = listing.capabilities(deployments)
        return shown

    def cancelling_json(self) -> dict[str, float] | None:
        """Return how long the latest cancelled losers of this worker took to be closed."""
        taken = sorted(self._racer.cancelling_ms)
        if not taken:
            return None
        p50, p99 = (taken[(len(taken) * percent + 99) // 100 - 1] for percent in (50, 99))
        return {"count": len(taken), "p50": round(p50, 3), "p99": round(p99, 3), "max": round(taken[-1], 3)}


def _bucket_json(bucket: Bucket) -> dict[str, float]:
    return {
        "ratio": bucket.ratio,
        "burst": bucket.burst,
        "tokens": round(bucket.tokens, 3),
        "refused": bucket.refused,
    }
