"""The registry in one worker: a copy of the stored versions, and changes to them.

Requests read the copy, which is a dictionary lookup. It is replaced when this worker changes something, and within
``poll_interval_s`` when another one did. Every change is computed from a copy and written in one atomic step that fails
if another worker was faster; then it is computed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from pointsman.errors import ConfigError, Conflict, InvalidInput
from pointsman.events import VersionActivated
from pointsman.plugin import unknown_target
from pointsman.store.protocol import JSON, Update
from pointsman.store.views import Snapshot

from . import versions
from .repository import STATE, decode_history, decode_state, history_prefix, update_of
from .versions import Activation, Author, Change, State, Version, suggestion

if TYPE_CHECKING:
    from pointsman.plugin import Catalog, Services

    from .config import VersionSpec

log: Final = logging.getLogger("pointsman.registry")

MAX_TRIES: Final = 20
FIRST_WAIT_S: Final = 0.002
LONGEST_WAIT_S: Final = 0.1

C = TypeVar("C", Change, Change | None)


class Registry:
    """The versions of all models.

    Args:
        services: What the host offers.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._snapshot = Snapshot(
            services.store,
            STATE,
            on_change=self._adopt,
            clock=services.clock.monotonic,
        )
        self._changing = asyncio.Lock()
        self._listed: set[str] = set()
        self._clashes: dict[str, str] = {}
        self.state = State()
        self.read_at = 0.0

    # -- reading ------------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the store again if it has changed, and update the gateway's list of models.

        Raises:
            StoreError: it cannot be read; the copy stays as it was.
        """
        await self._snapshot.refresh()
        self._list_models()
        self.read_at = self._services.clock.now()

    @property
    def never_written(self) -> bool:
        """Whether the store has never held a version: it is new, or has been emptied from outside."""
        return self._snapshot.revision is None

    async def history(self, name: str | None, limit: int) -> list[Activation]:
        """Return the newest history entries of a name or of all names, newest first."""
        return decode_history(await self._store.scan(history_prefix(name)))[:limit]

    def problems(self) -> list[str]:
        """Return what keeps registered names from being served, one sentence each."""
        problems = [clash for _, clash in sorted(self._clashes.items())]
        for name, version in self.state.active.items():
            if version is not None and not is_target(self._services.catalog, version.path):
                problems.append(
                    f"{name!r}: the gateway has no {version.path!r}, the path of the active version {version.id!r}"
                )
        return problems

    # -- changing -----------------------------------------------------------------------------------------------------

    async def seed(self, specs: Sequence[VersionSpec]) -> None:
        """Register what the configuration lists. Harmless at every start, also of several workers at once.

        Raises:
            ConfigError: a version contradicts the store or the gateway's configuration; of the latter all are named.
        """
        catalog = self._services.catalog
        # Some gateways load their deployments after the plugins have started; requests are checked again anyway.
        if catalog.deployments():
            wrong = []
            for index, spec in enumerate(specs):
                try:
                    check_target(catalog, spec.name, spec.path)
                except (InvalidInput, Conflict) as err:
                    wrong.append(f"{self._services.plugin}.versions[{index}].{err}")
            if wrong:
                raise ConfigError("\n".join(wrong))
        author = Author(who="configuration", at=self._services.clock.now())
        # No event: all workers are starting.
        await self._change(lambda state: versions.seed(state, specs, author))

    async def register(self, spec: VersionSpec, who: str) -> Version:
        """Add a version, active if it says so.

        Raises:
            Conflict: the id is taken, or the name is one of the gateway's own.
            InvalidInput: the gateway has no such path.
        """
        check_target(self._services.catalog, spec.name, spec.path)
        author = self._author(who, "registered as active")
        change = await self._change(
            lambda state: versions.register(state, versions.built(spec, author.at), author, active=spec.active)
        )
        self._announce(change)
        return change.registered[0]

    async def activate(self, version_id: str, who: str, reason: str, *, name: str | None = None) -> Version:
        """Make a version the active one of its name; nothing happens when it is already.

        Args:
            version_id: The version.
            who: Who asks for it.
            reason: For the history.
            name: The name it is expected to have, or None for any.

        Raises:
            NotFound: there is no such version.
            Conflict: it belongs to another name.
        """

        def checked(state: State) -> Change | None:
            if name is not None and (version := state.get(version_id)).name != name:
                raise Conflict(f"version {version_id!r} belongs to {version.name!r}, not to {name!r}", param="name")
            return versions.activate(state, version_id, self._author(who, reason))

        change = await self._change(checked)
        if change is not None:
            self._announce(change)
        return self.state.get(version_id)

    async def rollback(self, name: str, who: str, reason: str) -> Version:
        """Return to the version that was active before.

        Raises:
            NotFound: the name has no version.
            Conflict: there was none before.
        """
        change = await self._change(lambda state: versions.rollback(state, name, self._author(who, reason)))
        self._announce(change)
        return self.state.get(change.names[name].active_id or "")

    async def delete(self, version_id: str, who: str, reason: str, *, force: bool) -> None:
        """Remove a version; the active one only with ``force``.

        Raises:
            NotFound: there is no such version.
            Conflict: it is active and ``force`` was not given.
        """
        change = await self._change(
            lambda state: versions.delete(state, version_id, self._author(who, reason), force=force)
        )
        self._announce(change)

    # -- internals ----------------------------------------------------------------------------------------------------

    async def _change(self, compute: Callable[[State], C]) -> C:
        def attempt(_: Mapping[str, JSON]) -> tuple[Update | None, C]:
            change = compute(self.state)
            return self._update_of(change), change

        async with self._changing:
            change = await self._snapshot.modify(attempt, what="the registry", attempts=MAX_TRIES, pause=self._pause)
            self._list_models()
            return change

    def _update_of(self, change: Change | None) -> Update | None:
        return None if change is None else update_of(change, stamp=self._services.new_id())

    async def _pause(self, tried: int) -> None:
        longest_s = min(FIRST_WAIT_S * 2 ** (tried - 1), LONGEST_WAIT_S)
        await self._services.clock.sleep(self._services.random.uniform(0, longest_s))

    def _adopt(self, rows: Mapping[str, JSON]) -> None:
        self.state = decode_state(rows)

    def _list_models(self) -> None:
        """Update ``GET /v1/models``; at every reading, because the gateway's own configuration changes too."""
        wanted = {name: version.path for name, version in self.state.active.items() if version is not None}
        for name in self._listed - wanted.keys():
            self._services.catalog.list_model(name, None)
        self._listed = set(wanted)
        clashes: dict[str, str] = {}
        for name, path in wanted.items():
            try:
                self._services.catalog.list_model(name, path)
            except Conflict as err:
                clashes[name] = f"{name!r} is not listed: {err}"
                if name not in self._clashes:
                    log.warning("the registered name %s", clashes[name])
        self._clashes = clashes

    def _author(self, who: str, reason: str) -> Author:
        return Author(who=who, at=self._services.clock.now(), reason=reason)

    def _announce(self, change: Change) -> None:
        for entry in change.activations:
            log.info(
                "%s: %r is active now, previously %r (%s)",
                entry.name,
                entry.version_id,
                entry.previous_id,
                entry.action,
            )
            self._services.publish(
                VersionActivated(
                    name=entry.name,
                    version_id=entry.version_id,
                    previous_id=entry.previous_id,
                    who=entry.who,
                    reason=entry.reason or entry.action.value,
                )
            )


def is_target(catalog: Catalog, path: str) -> bool:
    """Return whether the gateway can serve a path."""
    # A wildcard stands for many models; one of these is a target.
    return "*" not in path and bool(catalog.deployments(path))


def check_target(catalog: Catalog, name: str, path: str) -> None:
    """Refuse a path that the gateway cannot serve, and a name that it serves itself.

    Raises:
        InvalidInput: the path is unknown; names the nearest one.
        Conflict: the name is a model group or a deployment of the gateway.
    """
    deployments = catalog.deployments()
    groups = {deployment.group for deployment in deployments}
    ids = {deployment.id for deployment in deployments}
    if name in groups or name in ids:
        raise Conflict(f"name: the gateway's configuration has {name!r} itself; register another name", param="name")
    if "*" in path and (problem := unknown_target(path, catalog)) is not None:
        raise InvalidInput(f"path: {problem}", param="path")
    if not is_target(catalog, path):
        near = suggestion(path, groups | ids, shown=groups)
        raise InvalidInput(f"path: the gateway has no model group or deployment {path!r}{near}", param="path")
