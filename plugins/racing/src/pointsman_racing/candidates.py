"""Which names are raced, the candidates of each, and the order in which a race starts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from pointsman.errors import nearest
from pointsman.plugin import unknown_target
from pointsman.types import Denial, Endpoint, Route

from .budget import Bucket
from .config import CandidateConfig
from .hedging import MAX_ATTEMPTS, Entry
from .statistics import Counts

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import Deployment, RequestContext

    from .config import Delay, RaceSettings, RacingConfig, VirtualModel
    from .statistics import Statistics

LABEL: Final = "race"
_RACED: Final = frozenset({Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.EMBEDDINGS})


def members(candidate: CandidateConfig, catalog: Catalog) -> Sequence[Deployment]:
    """Return the deployments that can serve a candidate; empty when the gateway's configuration has none."""
    deployments = catalog.deployments(candidate.target)
    return deployments if candidate.model is None else [d for d in deployments if d.model == candidate.model]


def dropped_because(candidate: CandidateConfig, catalog: Catalog) -> str | None:
    """Return why a candidate is raced only when no other one can serve, or None."""
    if candidate.weight == 0:
        return "drained: its weight is 0"
    reasons = [d.drained for d in members(candidate, catalog)]
    return reasons[0] if reasons and all(reasons) else None


def all_members(candidates: Sequence[CandidateConfig], catalog: Catalog) -> list[Deployment]:
    """Return the deployments of all candidates, each once."""
    return list({d.id: d for candidate in candidates for d in members(candidate, catalog)}.values())


@dataclass(slots=True, kw_only=True)
class RacedModel:
    """One name under which requests are raced: a virtual model or a model group.

    Attributes:
        name: What clients ask for.
        settings: How it is raced.
        model: The virtual model; None for a model group.
        bucket: Its extra attempts.
        counts: Its counts in this worker.
    """

    name: str
    settings: RaceSettings
    model: VirtualModel | None
    bucket: Bucket
    counts: Counts = field(default_factory=Counts)
    _itself: Sequence[CandidateConfig] = field(init=False)

    def __post_init__(self) -> None:
        """Make the only candidate of a model group."""
        self._itself = (CandidateConfig(target=self.name),)

    def candidates(self, route: Route, catalog: Catalog) -> Sequence[CandidateConfig]:
        """Return the configured candidates, or the route's target if another plugin has changed it."""
        if self.model is None:
            return self._itself if route.target == self.name else (CandidateConfig(target=route.target),)
        return self.model.candidates if route.target == self.group(catalog) else (CandidateConfig(target=route.target),)

    def group(self, catalog: Catalog) -> str | None:
        """Return the model group of the first candidate that can serve; None without one or for a model group."""
        for candidate in self.model.candidates if self.model is not None else ():
            if deployments := members(candidate, catalog):
                return deployments[0].group
        return None


class RacedModels:
    """All raced names.

    Args:
        config: The plugin's section.

    Attributes:
        default: The virtual model for requests that name no model; None without one.
        by_name: All of them.
    """

    def __init__(self, config: RacingConfig) -> None:
        self.default = config.default_model
        settings: list[tuple[str, RaceSettings, VirtualModel | None]] = [
            *((model.name, model, model) for model in config.models),
            *((name, group, None) for name, group in config.groups.items()),
        ]
        self.by_name = {
            name: RacedModel(name=name, settings=s, model=model, bucket=Bucket(s.budget_ratio, s.budget_burst))
            for name, s, model in settings
        }

    def of(self, route: Route) -> RacedModel | None:
        """Return what an executed route races; None for a group to fall back to that is not raced itself.

        Raises:
            KeyError: the route names no race.
        """
        if not route.fallback:
            return self.by_name[route.labels[LABEL]]
        group = self.by_name.get(route.target)
        return group if group is not None and group.model is None else None

    def route(self, ctx: RequestContext, route: Route, executor: str, catalog: Catalog) -> Route | Denial | None:
        """Route a request to its race; None leaves it unchanged.

        Args:
            ctx: The request.
            route: The route so far.
            executor: The plugin's own name.
            catalog: What the gateway can serve.
        """
        name = route.target or self.default
        raced = self.by_name.get(name) if name else None
        if raced is None or route.executor is not None:
            return None
        if raced.model is None:
            if ctx.endpoint not in _RACED or not catalog.deployments(route.target):
                return None
            return _executed(route, raced, executor)
        group = raced.group(catalog)
        if group is None:
            return Denial(
                status=404,
                code="model_not_found",
                param="model",
                message=f"The model {raced.name!r} cannot be served: none of its candidates is in the gateway's "
                "configuration; an operator has to add one.",
            )
        route = route.to(group)
        return _executed(route, raced, executor) if ctx.endpoint in _RACED else route


def _executed(route: Route, raced: RacedModel, executor: str) -> Route:
    return route.executed_by(executor, fallbacks=True, **{LABEL: raced.name})


def line_up(
    candidates: Sequence[CandidateConfig],
    catalog: Catalog,
    statistics: Statistics,
    delay: Delay,
    *,
    stream: bool,
    now: float,
    now_ms: float,
    one_group: bool = False,
) -> tuple[Entry, ...]:
    """Return the entries of a race in the order in which they are started; empty when no deployment can serve.

    What is drained, a candidate or a deployment, is left out while there are others. Candidates whose retry-after has
    not passed come last; otherwise the order is by priority, then by weight times
    score. A model group has as many entries as deployments: first every candidate's first entry, then the second ones.
    The gateway chooses the deployment of a group that an attempt reaches, so that cooldowns, breakers and balancing
    still apply; only with ``model`` the entries are deployments.

    Args:
        candidates: The candidates.
        catalog: What the gateway can serve.
        statistics: What is known about deployments.
        delay: The race's settings, which define how many samples are enough.
        stream: Whether the request is a stream.
        now: Unix seconds.
        now_ms: The same moment on the race's own clock, in milliseconds.
        one_group: The only candidate is a model group whose deployments race one another.
    """
    rows: list[tuple[tuple[bool, int, float], list[Entry]]] = []
    for number, candidate, deployments in _in_race(candidates, catalog):
        scores = [statistics.score(d.id, delay, stream=stream, now=now) for d in deployments]
        waits_ms = [statistics.blocked_s(d.id, now) * 1000 for d in deployments]
        if candidate.model is None:
            mean_score = candidate.weight * sum(scores) / len(scores)
            calls = [(candidate.target, mean_score, min(waits_ms))] * min(len(deployments), MAX_ATTEMPTS)
        else:
            calls = [
                (d.id, candidate.weight * score, wait_ms)
                for d, score, wait_ms in zip(deployments, scores, waits_ms, strict=True)
            ]
            calls.sort(key=lambda call: (call[2], -call[1]))
        entries = [
            Entry(
                candidate=call_number if one_group else number,
                target=target,
                score=score,
                blocked_until_ms=now_ms + wait_ms,
            )
            for call_number, (target, score, wait_ms) in enumerate(calls)
        ]
        _, best_score, first_wait_ms = calls[0]
        rows.append(((first_wait_ms > 0, candidate.priority, -best_score), entries))
    if len(rows) == 1:
        return tuple(rows[0][1])
    rows.sort(key=lambda row: row[0])
    rounds = zip_longest(*(entries for _, entries in rows))
    return tuple(entry for one_round in rounds for entry in one_round if entry is not None)


def _in_race(
    candidates: Sequence[CandidateConfig], catalog: Catalog
) -> list[tuple[int, CandidateConfig, Sequence[Deployment]]]:
    """Return the candidates that are raced, each with its place and its deployments that are not drained.

    When all candidates are drained, all of them are raced, with all of their deployments.
    """
    served: list[tuple[int, CandidateConfig, Sequence[Deployment]]] = []
    raced: list[tuple[int, CandidateConfig, Sequence[Deployment]]] = []
    for number, candidate in enumerate(candidates):
        if deployments := members(candidate, catalog):
            serving = [d for d in deployments if d.drained is None]
            served.append((number, candidate, serving or deployments))
            if serving and candidate.weight != 0:
                raced.append((number, candidate, serving))
    return raced or served


def unknown_names(config: RacingConfig, catalog: Catalog, section: str) -> list[str]:
    """Return the configured names that no deployment can serve, each with its key and the nearest known name.

    Empty while the gateway has no deployment at all: some gateways load theirs after the plugins have started.

    Args:
        config: The plugin's section.
        catalog: What the gateway can serve.
        section: The section's own key.
    """
    if not catalog.deployments():
        return []
    unknown = [
        f"{section}.models[{number}].candidates[{place}].{problem}"
        for number, model in enumerate(config.models)
        for place, candidate in enumerate(model.candidates)
        if (problem := _problem_of(candidate, catalog)) is not None
    ]
    unknown += [
        f"{section}.groups.{name}: {problem}"
        for name in config.groups
        if (problem := unknown_target(name, catalog)) is not None
    ]
    return unknown


def wildcard_names(config: RacingConfig, catalog: Catalog, section: str) -> list[str]:
    """Return the configured names that stand for many models, each with its key: no race can be made of them.

    Args:
        config: The plugin's section.
        catalog: What the gateway can serve.
        section: The section's own key.
    """
    names = {
        f"models[{number}].candidates[{place}].target": candidate.target
        for number, model in enumerate(config.models)
        for place, candidate in enumerate(model.candidates)
    }
    names |= {f"groups.{name}": name for name in config.groups}
    return [
        f"{section}.{key}: {problem}"
        for key, name in names.items()
        if "*" in name and catalog.is_group(name) and (problem := unknown_target(name, catalog)) is not None
    ]


def _problem_of(candidate: CandidateConfig, catalog: Catalog) -> str | None:
    if (problem := unknown_target(candidate.target, catalog)) is not None:
        return f"target: {problem}"
    if members(candidate, catalog):
        return None
    near = nearest(candidate.model or "", {d.model for d in catalog.deployments(candidate.target)})
    return f"model: no deployment of {candidate.target!r} has the model {candidate.model!r}{near}"
