"""The experiments as this worker knows them, and the way every change of one takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pointsman.errors import ConfigError, Conflict, InvalidInput, NotFound, StoreUnavailable
from pointsman.plugin import unknown_target

from . import lifecycle, table
from .events import announce
from .experiment import Version
from .lifecycle import Cause, Outcome, Refused
from .observations import Observer
from .repository import Repository

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.store.base import JSON

    from .config import CanaryConfig
    from .experiment import Experiment
    from .rollout import Change, Rollout

log: Final = logging.getLogger("pointsman.canary")

_TRIES: Final = 20
#: Figures of an analysis that another worker has made are at most this old in ``status``.
_FIGURES_S: Final = 5.0


class Engine:
    """Keeps the routing table up to date, hands in observations, changes experiments.

    Args:
        config: The plugin's configuration.
        services: The host's services.
    """

    def __init__(self, config: CanaryConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.repository = Repository(services.store, services.new_id)
        self.observer = Observer()
        self.table: table.Table = {}
        self.rollouts: dict[str, Rollout] = {}
        self.entries: dict[str, table.Entry] = {}
        self.blind = False
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
        """Begin the configuration's experiments that have never been begun, and read all.

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
                    announce(self.services, begun, changes)
        await self.refresh(force=True)

    def unknown_targets(self, experiment: Experiment) -> dict[str, str]:
        """Return what is wrong with the targets that the gateway would have to know, by their keys."""
        found = {
            key: unknown_target(target, self.services.catalog)
            for key, target in experiment.written.items()
            if isinstance(target, str)
        }
        return {key: why for key, why in found.items() if why is not None}

    def warn_of_order(self) -> None:
        """Say in the log when the registry chooses a version before an experiment can. All plugins have started."""
        order = list(self.services.statuses())
        if "registry" not in order or order.index(self.services.plugin) < order.index("registry"):
            return
        for index, experiment in enumerate(self.config.experiments):
            if any(isinstance(target, Version) for target in experiment.written.values()):
                log.warning(
                    "%s.experiments[%d]: an arm of %r is a version in the registry, but 'registry' comes first in the list "
                    "of plugins and chooses a version itself: list %r before 'registry'",
                    self.services.plugin,
                    index,
                    experiment.name,
                    self.services.plugin,
                )

    # -- keeping up ---------------------------------------------------------------------------------------------------

    async def refresh(self, *, force: bool = False) -> None:
        """Read what has changed; the store answered, so the worker is not blind."""
        # An older reading must not replace a newer one.
        async with self._refreshing:
            now = self.services.clock.monotonic()
            revision = await self.repository.revision()
            if force or self.blind or revision != self._revision or now - self._read_at >= _FIGURES_S:
                stored = await self.repository.load_all()
                self._take({each.name: each.rollout for each in stored if each.rollout is not None})
                self._revision, self._read_at = revision, now
            self._seen_at = now

    def _take(self, rollouts: Mapping[str, Rollout], *, blind: bool = False) -> None:
        # The configuration's order comes first; an experiment that has left the configuration is over.
        order = [*self._defined, *(name for name, rollout in rollouts.items() if name not in self._defined)]
        self.rollouts = {
            name: rollouts[name]
            for name in order
            if name in rollouts and (name in self._defined or rollouts[name].origin == "http")
        }
        self.blind = blind
        self.table = table.build(self.rollouts.values(), blind=blind)
        self.entries = {entry.experiment.name: entry for entries in self.table.values() for entry in entries}
        self._list_models()

    def _list_models(self) -> None:
        """Show the names that the gateway has only from us; again at every reading, since its configuration changes too.

        The gateway also treats a name that it knows better: it asks the providers of streams for the usage.
        """
        catalog = self.services.catalog
        wanted: dict[str, str] = {}
        for name, entries in self.table.items():
            # Without a stable target of its own, or with a version, the gateway or another plugin has the name.
            stables = (entry.experiment.stable for entry in entries)
            target = next((one for one in stables if isinstance(one, str) and catalog.deployments(one)), None)
            if target is not None and not catalog.deployments(name):
                wanted[name] = target
        for name in self._listed - wanted.keys():
            catalog.list_model(name, None)
        self._listed = set()
        for name, target in wanted.items():
            # A conflict: the gateway has an alias of this name, which is as good.
            with contextlib.suppress(Conflict):
                catalog.list_model(name, target)
                self._listed.add(name)

    def lost(self) -> None:
        """Note that the store did not answer; after the limit nothing that cannot be watched gets traffic."""
        if not self.blind and self.services.clock.monotonic() - self._seen_at >= self.config.blind_limit_s:
            log.error("the store is lost for %.0f s: running rollouts go to stable", self.config.blind_limit_s)
            self._take(self.rollouts, blind=True)

    async def hand_in(self) -> None:
        """Give what was observed to the store; what it cannot take now is kept."""
        waiting = self.observer.take()
        try:
            for name in list(waiting):
                mail = waiting.pop(name)
                if not await self.repository.post(name, mail):
                    self.observer.give_back(name, mail)
        finally:
            for name, mail in waiting.items():
                self.observer.give_back(name, mail)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def change(self, name: str, transition: Callable[[Rollout], Outcome]) -> Rollout:
        """Change one experiment; repeated when somebody else was faster.

        Args:
            name: The experiment.
            transition: Returns the next state and its audit entries.

        Raises:
            NotFound: there is none of this name.
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
        raise Conflict(f"{name} is being changed by somebody else all the time; try again")

    async def add(self, experiment: Experiment, cause: Cause) -> Rollout:
        """Begin an experiment that was sent over HTTP.

        Raises:
            InvalidInput: a target or a webhook is unknown.
            Conflict: the name is taken, or another experiment has the same model and filter.
        """
        self.check(experiment)
        for _ in range(_TRIES):
            stored = await self.repository.load(experiment.name)
            if stored.rollout is not None:
                raise Conflict(
                    f"there is an experiment {experiment.name!r} already; 'restart' it or choose another name"
                )
            await self.refresh(force=True)
            self._check_rivals(experiment)
            begun, changes = lifecycle.create(experiment, "http", cause)
            if await self.repository.save(stored, begun, changes):
                await self.changed(begun, changes)
                return begun
        raise Conflict(f"{experiment.name} is being changed by somebody else all the time; try again")

    async def restart(self, name: str, experiment: Experiment | None, cause: Cause) -> Rollout:
        """Begin a new run with an alpha of its own, from the first step.

        Args:
            name: The experiment.
            experiment: A new definition; None takes the configuration's, or the present one.
            cause: Who and why.

        Raises:
            NotFound, InvalidInput, Conflict: as for ``change`` and ``add``.
        """
        defined = self._defined.get(name)
        if experiment is not None:
            if defined is not None:
                raise Conflict(f"{name} is defined in the configuration; change it there, then restart it")
            if experiment.name != name:
                raise InvalidInput(f"experiment.name: must stay {name!r}", param="experiment.name")
            self.check(experiment)
            self._check_rivals(experiment)
        wanted = experiment or defined

        def again(rollout: Rollout) -> Outcome:
            origin = rollout.origin if defined is None else "config"
            return lifecycle.create(wanted or rollout.experiment, origin, cause, rollout)

        return await self.change(name, again)

    async def remove(self, name: str, cause: Cause, *, force: bool) -> None:
        """Remove an experiment; its audit trail stays.

        Raises:
            NotFound: there is none of this name.
            Conflict: it is in the configuration, or runs and ``force`` is not set.
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
        raise Conflict(f"{name} is being changed by somebody else all the time; try again")

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
                raise Conflict(f"{other.name!r} has the same model and filter; remove it or narrow one of them")

    async def changed(self, rollout: Rollout, changes: tuple[Change, ...]) -> None:
        """Tell what has been changed in the store, and route by it at once."""
        announce(self.services, rollout, changes)
        if changes:
            try:
                await self.refresh(force=True)
            except StoreUnavailable:
                # The change is written; the next tick reads it.
                log.warning("%s was changed, but cannot be read again yet", rollout.name)

    def problems(self) -> list[str]:
        """Return what an operator should look at."""
        found = ["the store is lost: running rollouts are held at stable"] if self.blind else []
        for name, rollout in self.rollouts.items():
            defined = self._defined.get(name)
            if defined is not None and defined != rollout.experiment:
                found.append(f"{name}: the configuration differs from what is running; 'restart' takes it over")
            if not rollout.finished:
                found += [f"{name}: {key}: {why}" for key, why in self.unknown_targets(rollout.experiment).items()]
            if rollout.activation is not None and not rollout.activation.done:
                found.append(f"{name}: the registry has not activated version {rollout.activation.version_id!r} yet")
        names = list(self.rollouts.values())
        for index, rollout in enumerate(names):
            found += [
                f"{other.name} never gets a request: {rollout.name} has the same model and filter"
                for other in names[index + 1 :]
                if rollout.experiment.rivals(other.experiment)
            ]
        return found
