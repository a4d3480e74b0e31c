"""What is raced under which name, and whether a request takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from pointsman.types import Denial, Endpoint, Route

from .budget import Bucket
from .config import CandidateConfig
from .field import members
from .tally import Tally

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import RequestContext

    from .config import RaceSettings, RacingConfig, VirtualModel

LABEL: Final = "race"
_RACED: Final = frozenset({Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.EMBEDDINGS})


@dataclass(slots=True, kw_only=True)
class Course:
    """One name under which requests are raced.

    Attributes:
        name: Virtual model or model group.
        settings: How.
        model: The virtual model; None for a model group.
        bucket: Its extra attempts.
        tally: Its counts.
    """

    name: str
    settings: RaceSettings
    model: VirtualModel | None
    bucket: Bucket
    tally: Tally = field(default_factory=Tally)

    def candidates(self, route: Route, catalog: Catalog) -> Sequence[CandidateConfig]:
        """Return who takes part: whom the configuration names, or the route's target if another plugin has changed it."""
        if self.model is not None and route.target == self.group(catalog):
            return self.model.candidates
        return (CandidateConfig(target=route.target),)

    def group(self, catalog: Catalog) -> str | None:
        """Return the model group that stands for a virtual model: of its first candidate that can serve, or None."""
        for candidate in self.model.candidates if self.model is not None else ():
            if found := members(candidate, catalog):
                return found[0].group
        return None


class Courses:
    """All of them, by name.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: RacingConfig) -> None:
        self.default = config.default_model
        found = [(model.name, model, model) for model in config.models]
        made = {name: Course(name=name, settings=s, model=m, bucket=_bucket(s)) for name, s, m in found}
        for name, settings in config.groups.items():
            made[name] = Course(name=name, settings=settings, model=None, bucket=_bucket(settings))
        self.by_name = made

    def route(self, ctx: RequestContext, route: Route, executor: str, catalog: Catalog) -> Route | Denial | None:
        """Send a request into its race; None leaves it alone.

        Args:
            ctx: The request.
            route: The route so far.
            executor: The plugin's own name.
            catalog: What the gateway can serve.
        """
        name = route.target or self.default
        course = self.by_name.get(name) if name else None
        if course is None or route.executor is not None:
            return None
        if course.model is None:
            raced = ctx.endpoint in _RACED and catalog.deployments(route.target)
            return _executed(route, course, executor) if raced else None
        group = course.group(catalog)
        if group is None:
            return Denial(
                status=404,
                code="model_not_found",
                param="model",
                message=f"The model {course.name!r} cannot be served: none of its candidates is in the gateway's "
                "configuration; an operator has to add one.",
            )
        route = route.to(group)
        return _executed(route, course, executor) if ctx.endpoint in _RACED else route


def _executed(route: Route, course: Course, executor: str) -> Route:
    return replace(route, labels={**route.labels, LABEL: course.name}, executor=executor)


def _bucket(settings: RaceSettings) -> Bucket:
    return Bucket(settings.budget_ratio, settings.budget_burst)
