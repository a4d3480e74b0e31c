"""The experiments as this worker knows them: kept up to date from the store, changed and announced through it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pointsman.errors import ConfigError, Conflict, InvalidInput, NotFound, StoreUnavailable
from pointsman.events import RolloutChanged
from pointsman.plugin import unknown_target

from . import lifecycle, routing, views
from .assignment import FULL_BP
from .experiment import Target, Version
from .lifecycle import Cause, Outcome, Refused
from .observations import Observer
from .repository import Repository, Stored
from .rollout import Phase

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from pointsman.plugin import Services
    from pointsman.store import JSON

    from .config import CanaryConfig
    from .experiment import Experiment
    from .rollout import Change, Rollout

log: Final = logging.getLogger("pointsman.canary")

_TRIES: Final = 20
#: Greatest age of another worker's figures in ``status``, in seconds.
_FIGURES_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Served:
    """What the registry of this worker serves, all empty without one.

    Attributes:
        active: Registered name to the id of its active version, or None.
        previous: Registered name to the id of the version that a rollback returns to, or None.
        paths: Version id to its path.
        names: Version id to the registered name that it is a version of.
    """

    active: Mapping[str, str | None]
    previous: Mapping[str, str | None]
    paths: Mapping[str, str]
    names: Mapping[str, str]

    def resolve(self, target: Target | None, model: str) -> tuple[str | None, str]:
        """Return the version id, if there is one, and the path of a target; None is where the model goes anyway."""
        if isinstance(target, Version):
            return target.version, self.paths.get(target.version, "")
        name = model if target is None else target
        version_id = self.active.get(name)
        return (None, name) if version_id is None else (version_id, self.paths.get(version_id, name))


class Coordinator:
    """Keeps the routing table up to date, flushes observations, changes experiments.

    Args:
        config: The plugin's configuration.
        services: The host's services.
    """

    def __init__(self, config: CanaryConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.repository = Repository(services.store, services.new_id)
        self.observer = Observer()
        self.table: routing.Table = {}
        self.rollouts: dict[str, Rollout] = {}
        self.entries: dict[str, routing.Entry] = {}
        self.served = Served({}, {}, {}, {})
        #: Whether all plugins have started, so that they can be asked for their statuses.
        self.all_started = False
        self.blind = False
        #: Whether there may be something to do soon: a request that takes part, an observation, a change.
        self.stirred = False
        self._defined = {experiment.name: experiment for experiment in config.experiments}
        self._revision: JSON = None
        self._read_at = services.clock.monotonic()
        self._seen_at = services.clock.monotonic()
        self._refreshing = asyncio.Lock()
        self._listed: set[str] = set()

    def cause(self, who: str, reason: str) -> Cause:
        """Return a cause that happens now."""
        return Cause(who, reason, self.services.clock.now())

    # -- start --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the experiments of the configuration that are new, and read all.

        Raises:
            ConfigError: naming all targets that are unknown to the gateway.
        """
        # Some gateways know their deployments only after the plugins have started; ``problems`` looks again.
        if self.services.catalog.deployments():
            wrong = [
                f"{self.services.plugin}.experiments[{index}].{key}: {why}"
                for index, experiment in enumerate(self.config.experiments)
                for key, why in self.unknown_targets(experiment).items()
            ]
            if wrong:
                raise ConfigError("\n".join(wrong))
        for experiment in self.config.experiments:
            stored = await self.repository.load(experiment.name)
            if stored.rollout is None:
                begun, changes = lifecycle.create(experiment, "config", self.cause("config", "in the configuration"))
                if await self.repository.save(stored, begun, changes):
                    _announce(self.services, begun, changes)
        await self.refresh()

    def unknown_targets(self, experiment: Experiment) -> dict[str, str]:
        """Return the targets that are unknown to the gateway: key to the reason."""
        reasons = {
            key: unknown_target(target, self.services.catalog)
            for key, target in experiment.written.items()
            if isinstance(target, str)
        }
        return {key: why for key, why in reasons.items() if why is not None}

    def warn(self) -> None:
        """Log what keeps an experiment from serving: other plugins, of which all have started by now."""
        self.look_at_registry()
        for rollout in self.rollouts.values():
            for why in () if rollout.finished else self.unserved(rollout.experiment):
                log.warning("%s.experiments: %s: %s", self.services.plugin, rollout.name, why)
        self._warn_of_order()

    def _warn_of_order(self) -> None:
        """Log a warning when the registry chooses a version before an experiment can."""
        order = list(self.services.statuses())
        if "registry" not in order or order.index(self.services.plugin) < order.index("registry"):
            return
        for index, experiment in enumerate(self.config.experiments):
            if any(isinstance(target, Version) for target in experiment.written.values()):
                log.warning(
                    "%s.experiments[%d]: an arm of %r is a version in the registry, but 'registry' comes first in the list "
                    "of plugins and chooses the version itself; list %r before 'registry'",
                    self.services.plugin,
                    index,
                    experiment.name,
                    self.services.plugin,
                )

    def look_at_registry(self) -> Served:
        """Read what the registry plugin reports to serve, into ``served``.

        Never from ``status``: the report is one of all plugins, this one included.
        """
        if not self.all_started:
            return self.served
        registry = self.services.statuses().get("registry")
        details: Mapping[str, Any] = registry.details if registry is not None else {}
        self.served = Served(*(details.get(key) or {} for key in ("active", "previous", "paths", "names")))
        return self.served

    def unserved(self, experiment: Experiment) -> list[str]:
        """Return why requests of the experiment, or those of some of its arms, get no answer or another one's."""
        if not self.all_started:
            return []
        served, model, catalog = self.served, experiment.model, self.services.catalog
        wanted = {key: target.version for key, target in experiment.written.items() if isinstance(target, Version)}
        if wanted and model not in served.active:
            known = ", ".join(map(repr, served.active)) or "none"
            why = (
                f"{next(iter(wanted))} is a version, but the registry has no model {model!r} (it has: {known}), so that no "
                f"version is served for it; set 'model' to the name that {next(iter(wanted.values()))!r} is registered under"
            )
            return [why]
        wrong = [
            f"{key}: the registry has no version {version!r} of the model {model!r}; register it"
            for key, version in wanted.items()
            if served.names.get(version) != model
        ]
        # What other plugins serve is listed, and so can be reached.
        known_here = experiment.stable is not None or model in served.active or catalog.reachable(model)
        if not known_here and catalog.deployments():
            wrong.append(f"nothing serves the model {model!r}, so that stable cannot answer; set 'stable'")
        return wrong

    def same_as_stable(self, experiment: Experiment) -> str | None:
        """Return why an arm would be compared with itself, or None."""
        served = self.served
        stable_id, stable_path = served.resolve(experiment.stable, experiment.model)
        for arm, target in experiment.targets.items():
            version_id, path = served.resolve(target, experiment.model)
            if version_id is not None and stable_id is not None:
                if version_id == stable_id:
                    return (
                        f"version {version_id!r}, the target of the arm {arm!r}, is what stable serves, since it is active in "
                        f"the registry; activate another version of {experiment.model!r} first, or give another definition"
                    )
            elif path and path == stable_path:
                return f"{path!r} serves stable as well as the arm {arm!r}; give another definition"
        return None

    def still_serving(self, rollout: Rollout) -> str | None:
        """Return a warning when an experiment is rolled back and its version answers all the same, or None."""
        if rollout.phase is not Phase.ROLLED_BACK or rollout.experiment.stable is not None:
            return None
        if rollout.activation is not None and not rollout.activation.done:
            return None
        served, model = self.served, rollout.experiment.model
        version_id = served.active.get(model)
        if version_id is None or rollout.arm_of(version_id) is None:
            return None
        before = served.previous.get(model)
        offer = (
            f"the version before was {before!r}: pointsman registry activate {before}"
            if before is not None
            else "the registry knows no version before; activate another one"
        )
        return (
            f"{rollout.name} is rolled back, but version {version_id!r} is active in the registry and answers every request of "
            f"{model!r}; {offer}"
        )

    # -- keeping up ---------------------------------------------------------------------------------------------------

    async def look(self, names: Sequence[str]) -> list[Stored]:
        """Return these experiments as they are stored, and read all if something has changed: one read where nothing has."""
        now = self.services.clock.monotonic()
        revision, stored = await self.repository.look(names)
        changed = self.blind or revision != self._revision
        self.stirred |= changed
        if changed or now - self._read_at >= _FIGURES_S:
            await self.refresh()
        self._seen_at = now
        return stored

    async def refresh(self) -> None:
        """Read all experiments; when the store answers, the worker is not blind."""
        # An older reading must not replace a newer one.
        async with self._refreshing:
            now = self.services.clock.monotonic()
            revision, _ = await self.repository.look(())
            stored = await self.repository.load_all()
            self._take({each.name: each.rollout for each in stored if each.rollout is not None})
            self._revision, self._read_at, self._seen_at = revision, now, now

    def _take(self, rollouts: Mapping[str, Rollout], *, blind: bool = False) -> None:
        # The configuration's order comes first; an experiment that has left the configuration is over.
        order = [*self._defined, *(name for name, rollout in rollouts.items() if name not in self._defined)]
        self.rollouts = {
            name: rollouts[name]
            for name in order
            if name in rollouts and (name in self._defined or rollouts[name].origin == "http")
        }
        self.blind = blind
        # Requests that began before a promotion end after it.
        self.entries = {name: routing.compiled(rollout, blind=blind) for name, rollout in self.rollouts.items()}
        self.table = routing.build(self.rollouts.values(), self.entries)
        self._list_models()

    def _list_models(self) -> None:
        """List the model names that only experiments define; at every reading, since the gateway's configuration changes too.

        For a listed name the gateway also asks the providers of streams for the usage.
        """
        catalog = self.services.catalog
        wanted: dict[str, str] = {}
        for name, entries in self.table.items():
            # Without a stable target, or with a version, the gateway or another plugin serves the name.
            stables = (entry.experiment.stable for entry in entries)
            target = next(
                (stable for stable in stables if isinstance(stable, str) and catalog.deployments(stable)), None
            )
            if target is not None and not catalog.deployments(name):
                wanted[name] = target
        for name in self._listed - wanted.keys():
            catalog.list_model(name, None)
        self._listed = set()
        for name, target in wanted.items():
            # A conflict: the gateway has an alias of this name, which serves as well.
            with contextlib.suppress(Conflict):
                catalog.list_model(name, target)
                self._listed.add(name)

    def lost(self) -> None:
        """Note that the store did not answer; after ``blind_limit_s`` running rollouts go to stable."""
        if not self.blind and self.services.clock.monotonic() - self._seen_at >= self.config.blind_limit_s:
            log.error("no answer of the store for %.0f s: running rollouts go to stable", self.config.blind_limit_s)
            self._take(self.rollouts, blind=True)

    async def flush(self) -> None:
        """Add the observations to the store; those that it cannot take are kept."""
        await self._flush_requests()
        waiting = self.observer.take()
        self.stirred |= bool(waiting)
        try:
            for name in list(waiting):
                mail = waiting.pop(name)
                if not await self.repository.post(name, mail):
                    self.observer.give_back(name, mail)
        finally:
            for name, mail in waiting.items():
                self.observer.give_back(name, mail)

    async def _flush_requests(self) -> None:
        waiting = self.observer.take_requests()
        self.stirred |= bool(waiting)
        try:
            for name in list(waiting):
                requests = waiting.pop(name)
                if not await self.repository.count(name, requests):
                    self.observer.give_back_requests(name, requests)
        finally:
            for name, requests in waiting.items():
                self.observer.give_back_requests(name, requests)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def change(self, name: str, transition: Callable[[Rollout], Outcome]) -> Rollout:
        """Change one experiment; repeated when another worker has changed it in between.

        Args:
            name: The experiment.
            transition: Returns the next state and its audit entries.

        Raises:
            NotFound: there is no experiment of this name.
            Conflict: the transition contradicts the state.
        """
        for _ in range(_TRIES):
            stored = await self.repository.load(name)
            if stored.rollout is None or name not in self.rollouts:
                raise NotFound(f"there is no experiment {name!r}; known: {', '.join(self.rollouts) or 'none'}")
            try:
                after, changes = transition(stored.rollout)
            except Refused as err:
                raise Conflict(str(err)) from err
            if (after == stored.rollout and not changes) or await self.repository.save(stored, after, changes):
                await self.changed(after, changes)
                return after
        raise Conflict(f"{name} was modified concurrently; retry")

    async def add(self, experiment: Experiment, cause: Cause) -> Rollout:
        """Begin an experiment that was sent over HTTP.

        Raises:
            InvalidInput: a target or a webhook is unknown.
            Conflict: the name is taken, or another experiment has the same model and filter.
        """
        self.check(experiment)
        self.look_at_registry()
        if (why := self.same_as_stable(experiment)) is not None:
            raise Conflict(f"{experiment.name}: {why}")
        for _ in range(_TRIES):
            stored = await self.repository.load(experiment.name)
            if stored.rollout is not None:
                raise Conflict(f"there is an experiment {experiment.name!r} already; restart it or choose another name")
            await self.refresh()
            self._check_rivals(experiment)
            begun, changes = lifecycle.create(experiment, "http", cause)
            if await self.repository.save(stored, begun, changes):
                await self.changed(begun, changes)
                return begun
        raise Conflict(f"{experiment.name} was modified concurrently; retry")

    async def restart(self, name: str, experiment: Experiment | None, cause: Cause) -> Rollout:
        """Begin a new run with an alpha of its own, from the first step.

        Args:
            name: The experiment.
            experiment: A new definition; None takes the configuration's, or the current one.
            cause: Who and why.

        Raises:
            NotFound, InvalidInput, Conflict: as for ``change`` and ``add``.
        """
        defined = self._defined.get(name)
        if experiment is not None:
            if defined is not None:
                raise Conflict(
                    f"{name} is defined in the configuration; change it there, then restart the experiment without a definition"
                )
            if experiment.name != name:
                raise InvalidInput(f"experiment.name: must stay {name!r}", param="experiment.name")
            self.check(experiment)
            self._check_rivals(experiment)
        wanted = experiment or defined
        self.look_at_registry()
        known = wanted or (self.rollouts[name].experiment if name in self.rollouts else None)
        if known is not None and (why := self.same_as_stable(known)) is not None:
            raise Conflict(f"{name}: {why}")

        def again(rollout: Rollout) -> Outcome:
            origin = rollout.origin if defined is None else "config"
            return lifecycle.create(wanted or rollout.experiment, origin, cause, rollout)

        return await self.change(name, again)

    async def remove(self, name: str, cause: Cause, *, force: bool) -> None:
        """Remove an experiment; its audit trail stays.

        Raises:
            NotFound: there is no experiment of this name.
            Conflict: it is in the configuration, or it is not finished and ``force`` is not set.
        """
        if name in self._defined:
            raise Conflict(f"{name} is defined in the configuration; remove it there")
        for _ in range(_TRIES):
            stored = await self.repository.load(name)
            if stored.rollout is None:
                raise NotFound(f"there is no experiment {name!r}; known: {', '.join(self.rollouts) or 'none'}")
            if not stored.rollout.finished and not force:
                raise Conflict(
                    f"{name} is {stored.rollout.phase}; promote it, roll it back, or force the deletion (force=true, --force)"
                )
            _, changes = lifecycle.deleted(stored.rollout, cause)
            if await self.repository.save(stored, None, changes):
                await self.changed(stored.rollout, changes)
                return
        raise Conflict(f"{name} was modified concurrently; retry")

    def check(self, experiment: Experiment) -> None:
        """Refuse targets and webhooks that do not exist.

        Raises:
            InvalidInput: naming all such targets, or the first such webhook.
        """
        if wrong := self.unknown_targets(experiment):
            message = ", and ".join(f"experiment.{key}: {why}" for key, why in wrong.items())
            raise InvalidInput(message, param=f"experiment.{next(iter(wrong))}")
        for webhook in experiment.gates.names():
            if webhook not in self.config.webhooks:
                known = ", ".join(self.config.webhooks) or "none"
                raise InvalidInput(
                    f"experiment.gates: there is no webhook {webhook!r}; known: {known}", param="experiment.gates"
                )

    def _check_rivals(self, experiment: Experiment) -> None:
        for other in self.rollouts.values():
            if other.name != experiment.name and other.experiment.rivals(experiment):
                raise Conflict(f"{other.name!r} has the same model and filter; remove it or narrow one of the filters")

    async def changed(self, rollout: Rollout, changes: tuple[Change, ...]) -> None:
        """Announce a change that is in the store, and route by it at once."""
        self.stirred |= bool(changes)
        _announce(self.services, rollout, changes)
        if changes:
            self.look_at_registry()
            if (warning := self.still_serving(rollout)) is not None:
                log.error("%s", warning)
            try:
                await self.refresh()
            except StoreUnavailable:
                # The change is stored; the next tick reads it.
                log.warning("%s was changed, but the store does not answer; the next tick reads it", rollout.name)

    def problems(self) -> list[str]:
        """Return what an operator should look at."""
        problems = ["the store does not answer: running rollouts are held at stable"] if self.blind else []
        for name, rollout in self.rollouts.items():
            defined = self._defined.get(name)
            if defined is not None and defined != rollout.experiment:
                problems.append(f"{name}: the configuration differs from the running definition; 'restart' applies it")
            if not rollout.finished:
                problems += [f"{name}: {key}: {why}" for key, why in self.unknown_targets(rollout.experiment).items()]
                problems += [f"{name}: {why}" for why in self.unserved(rollout.experiment)]
            if rollout.activation is not None and not rollout.activation.done:
                problems.append(f"{name}: the registry has not activated version {rollout.activation.version_id!r} yet")
            if (warning := self.still_serving(rollout)) is not None:
                problems.append(warning)
            if not rollout.finished and (why := self.same_as_stable(rollout.experiment)) is not None:
                problems.append(f"{name}: {why}")
        names = list(self.rollouts.values())
        for index, rollout in enumerate(names):
            problems += [
                f"{other.name} receives no requests: {rollout.name} has the same model and filter and comes first"
                for other in names[index + 1 :]
                if rollout.experiment.rivals(other.experiment)
            ]
        return problems


def _announce(services: Services, rollout: Rollout, changes: Sequence[Change]) -> None:
    """Announce stored changes: a line in the log, a span and an event for the other plugins."""
    for change in changes:
        weights = zip(rollout.experiment.targets, change.weights_bp, strict=True)
        percents = {arm: weight * 100 / FULL_BP for arm, weight in weights}
        log.info("%s: %s by %s: %s; %s", rollout.name, change.what, change.who, change.reason, percents)
        services.tracer.start_span(f"canary {change.what}", attributes=_attributes(rollout, change, percents)).end()
        services.publish(
            RolloutChanged(
                experiment=rollout.name,
                model=rollout.experiment.model,
                what=change.what,
                who=change.who,
                reason=change.reason,
                at=change.at,
                phase=str(change.phase),
                weights_percent=percents,
                analysis=views.findings(change.findings),
            )
        )


def _attributes(rollout: Rollout, change: Change, percents: Mapping[str, float]) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "pointsman.canary.experiment": rollout.name,
        "pointsman.canary.change": change.what,
        "pointsman.canary.who": change.who,
        "pointsman.canary.reason": change.reason,
        "pointsman.canary.phase": str(change.phase),
        "pointsman.canary.run": change.run,
        "pointsman.canary.step": change.step,
    }
    for arm, percent in percents.items():
        attributes[f"pointsman.canary.{arm}.weight_percent"] = percent
    for arm, findings in change.findings.items():
        for finding in findings:
            key = f"pointsman.canary.{arm}.{finding.metric}"
            attributes[f"{key}.verdict"] = str(finding.verdict)
            attributes[f"{key}.p_harm"] = finding.p_harm
            attributes[f"{key}.samples"] = finding.canary_samples
    return attributes
