"""Where requests go: the experiments compiled for the request path, a dictionary lookup and a hash per request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from pointsman.types import OWN_CALLS

from .assignment import FULL_BP, Hasher, Split
from .experiment import STABLE, Experiment, Filter, Target, Version
from .rollout import Phase, Rollout

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import Attempt, RequestContext, Route, Settlement

ARM_HEADER: Final = "x-pointsman-arm"
LABEL_EXPERIMENT: Final = "experiment"
LABEL_ARM: Final = "arm"
LABEL_STAGE: Final = "stage"
LABEL_BUCKET: Final = "bucket"
LABEL_WEIGHT: Final = "weight"
#: Requests a version of the registry plugin other than the active one; the registry replaces it by the served one.
LABEL_VERSION_ID: Final = "version_id"
#: Set by the registry plugin when it has served a version.
LABEL_VERSION: Final = "version"

UnitOf: TypeAlias = "Callable[[RequestContext], str | None]"


class Misplaced(Exception):
    """The registry comes before this plugin and has chosen a version already."""


@dataclass(frozen=True, slots=True)
class ArmRoute:
    """What one arm does to a request.

    Attributes:
        arm: Its name.
        target: Model group or deployment id; None leaves the route's.
        labels: Labels without the bucket.
        headers: Headers for the answer.
        fallback: Target that answers when the arm fails; None leaves the route's fallbacks.
    """

    arm: str
    target: str | None
    labels: Mapping[str, str]
    headers: Mapping[str, str]
    fallback: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One experiment, compiled.

    Attributes:
        experiment: Its definition.
        tag: The stage whose requests count.
        hasher: Puts units into buckets.
        matches: Says whether a request takes part; None when all do.
        unit_of: Returns the request's unit, or None when it has none.
        split: The shares of the arms beside stable.
        routes: What the arms do, in the order of the shares; the last one is stable.
    """

    experiment: Experiment
    tag: str
    hasher: Hasher
    matches: Callable[[RequestContext], bool] | None
    unit_of: UnitOf
    split: Split
    routes: tuple[ArmRoute, ...]

    def route(self, ctx: RequestContext, route: Route) -> Route | None:
        """Return where the request goes, or None when it does not take part or has no unit.

        Raises:
            Misplaced: an arm is a registered version, and the registry comes before this plugin.
        """
        if self.matches is not None and not self.matches(ctx):
            return None
        if (unit := self.unit_of(ctx)) is None:
            return None
        bucket = self.hasher.bucket(unit)
        arm = self.routes[self.split.arm(bucket, self.hasher.buckets)]
        if LABEL_VERSION_ID in arm.labels and LABEL_VERSION in route.labels:
            raise Misplaced(
                f"{self.experiment.name}: the registry has chosen a version already; list 'canary' before 'registry' in the plugins"
            )
        return replace(
            route,
            target=route.target if arm.target is None else arm.target,
            labels={**route.labels, **arm.labels, LABEL_BUCKET: str(bucket)},
            headers={**route.headers, **arm.headers},
            fallbacks=route.fallbacks if arm.fallback is None else (arm.fallback, *route.fallbacks),
        )

    def honoured(self, arm: str, labels: Mapping[str, str]) -> bool:
        """Say whether the request went where the arm wanted it: the registry may not know its version."""
        target = self._target(arm)
        if isinstance(target, Version):
            return labels.get(LABEL_VERSION_ID) == target.version and LABEL_VERSION in labels
        return True

    def own_attempts(self, arm: str, settlement: Settlement, catalog: Catalog) -> list[Attempt]:
        """Return the attempts that were the arm's own: not a plugin's calls for itself, and not those of a fallback."""
        attempts = [one for one in settlement.attempts if one.kind not in OWN_CALLS and not one.fallback]
        route = settlement.route
        if route.executor is not None or self._target(arm) is None:
            return attempts
        # Without a deployment of its own the arm's request begins with the fallback.
        served = {deployment.id for deployment in catalog.deployments(route.target)}
        return [
            attempt
            for attempt in attempts
            if attempt.deployment.id in served or route.target in {attempt.deployment.id, attempt.deployment.group}
        ]

    def _target(self, arm: str) -> Target | None:
        return self.experiment.stable if arm == STABLE else self.experiment.targets.get(arm)


Table: TypeAlias = Mapping[str, Sequence[Entry]]


def compiled(rollout: Rollout, *, blind: bool = False) -> Entry:
    """Compile an experiment.

    Args:
        rollout: The experiment.
        blind: Whether the store is lost, so that an experiment that would roll back goes to stable.
    """
    lost = blind and not rollout.finished and rollout.experiment.failing == "rollback"
    return _compiled(rollout, (0,) * len(rollout.weights_bp) if lost else rollout.weights_bp)


def build(rollouts: Iterable[Rollout], entries: Mapping[str, Entry]) -> dict[str, tuple[Entry, ...]]:
    """Return the experiments of each model name, in the order in which they are asked.

    One whose version has been promoted and activated is left out: the registry serves it now.

    Args:
        rollouts: The experiments.
        entries: Each of them compiled, by its name.
    """
    table: dict[str, list[Entry]] = {}
    for rollout in rollouts:
        if rollout.phase is Phase.PROMOTED and rollout.activation is not None and rollout.activation.done:
            continue
        table.setdefault(rollout.experiment.model, []).append(entries[rollout.name])
    return {model: tuple(found) for model, found in table.items()}


def _compiled(rollout: Rollout, weights: tuple[int, ...]) -> Entry:
    experiment = rollout.experiment
    targets = [*experiment.targets.items(), (STABLE, experiment.stable)]
    shares = [*weights, FULL_BP - sum(weights)]
    # Without a stable target of its own, or with a version, it is what the gateway or the registry knows by the name.
    fallback = experiment.stable if isinstance(experiment.stable, str) else experiment.model
    routes = []
    for (arm, target), share in zip(targets, shares, strict=True):
        labels = {
            LABEL_EXPERIMENT: experiment.name,
            LABEL_ARM: arm,
            LABEL_STAGE: rollout.tag,
            LABEL_WEIGHT: f"{share * 100 / FULL_BP:g}",
        }
        if isinstance(target, Version):
            labels[LABEL_VERSION_ID] = target.version
        routes.append(
            ArmRoute(
                arm=arm,
                target=target if isinstance(target, str) else None,
                labels=labels,
                headers={ARM_HEADER: arm},
                fallback=fallback if experiment.fallback_to_stable and arm != STABLE else None,
            )
        )
    return Entry(
        experiment=experiment,
        tag=rollout.tag,
        hasher=experiment.hasher,
        matches=_matcher(experiment.filter),
        unit_of=_unit_of(experiment.unit),
        split=Split.of(weights),
        routes=tuple(routes),
    )


def _matcher(wanted: Filter) -> Callable[[RequestContext], bool] | None:
    if wanted == Filter():
        return None

    def matches(ctx: RequestContext) -> bool:
        identity = ctx.identity
        if wanted.tenant is not None and identity.tenant != wanted.tenant:
            return False
        if wanted.key is not None and wanted.key not in {identity.key_alias, identity.key_hash}:
            return False
        return all(ctx.headers.get(name) == value for name, value in wanted.headers.items())

    return matches


def _unit_of(unit: str) -> UnitOf:
    if unit.startswith("header:"):
        name = unit.removeprefix("header:")
        return lambda ctx: ctx.headers.get(name) or None
    return _UNITS[unit]


_UNITS: Final[Mapping[str, UnitOf]] = {
    "request": lambda ctx: ctx.request_id,
    "key": lambda ctx: ctx.identity.key_hash,
    "end_user": lambda ctx: ctx.identity.end_user,
    "session": lambda ctx: ctx.session_id,
}
