"""A reload: the configuration's section is read again, and what has changed in it takes the place of what runs.

What is the same goes on as it is, with all that it has in memory: only plugins whose own section has changed are rebuilt.
They are validated and started beside those that run, and all of them take over at once. Requests in flight end with the
plugins that they began with; those stop when the last of these requests has been settled. Whatever fails before everything
is ready changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, PointsmanError, StoreError
from .discovery import Loaded, Plugins, load_each

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ..plugin import Clock
    from ..store.protocol import JSON, StateStore
    from .discovery import Available
    from .listed_names import InstanceCatalog
    from .runtime import TaskGroup
    from .settings import HostConfig, Settings

log: Final = logging.getLogger("pointsman")

#: Settings of the host that are read when they are needed. All others are built into the worker at its start.
CHANGEABLE: Final = frozenset(
    {"client_retries", "flush_timeout_s", "plugins", "request_parts", "shared_objects", "unmetered", "upstream_headers"}
)
#: Longest wait for requests that began before a reload, in seconds; then they go on with the new plugins.
DRAIN_S: Final = 600.0
#: How often a worker looks whether another one has reloaded, in seconds.
HEAR_S: Final = 2.0
_KEY: Final = "reload"
#: How often it is looked whether they have ended, in seconds.
LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """What became of a reload.

    Attributes:
        at: When it ended, in Unix seconds.
        error: Why nothing has changed; None where it succeeded.
        generation: Which configuration of this worker runs now: 1 is that of its start.
        kept: The plugins whose configuration is the same.
        started: The plugins that are new, or have been rebuilt.
        stopped: The plugins that are gone, or have been rebuilt; they end with their last request.
        warnings: What is probably a mistake, as in ``pointsman check``.
    """

    at: float
    error: str | None = None
    generation: int
    kept: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether another configuration runs than before."""
        return self.error is None and bool(self.started or self.stopped)

    def as_json(self) -> dict[str, object]:
        """Return it for the status and for the answer to the request for it."""
        return {
            "ok": self.error is None,
            "at": self.at,
            "generation": self.generation,
            "kept": list(self.kept),
            "started": list(self.started),
            "stopped": list(self.stopped),
            "warnings": list(self.warnings),
            **({"error": self.error} if self.error is not None else {}),
        }


def check_host(before: HostConfig, after: HostConfig, where: str) -> None:
    """Check that only settings of the host have changed that can change while it runs.

    Raises:
        ConfigError: another one has.
    """
    fixed = [
        name
        for name in type(before).model_fields
        if name not in CHANGEABLE and getattr(before, name) != getattr(after, name)
    ]
    if fixed:
        names = ", ".join(f"pointsman.{name}" for name in fixed)
        raise ConfigError(f"{where}: {names}: cannot change while the proxy runs; restart it, or undo the change")


def plan(settings: Settings, running: Mapping[str, Loaded], available: Mapping[str, Available] | None) -> Plugins:
    """Build what is new in a configuration; what is the same in it is the plugin that runs.

    Raises:
        PluginLoadError, HookSignatureError: a plugin cannot be used. One that is optional and does not run either is left
            out, as at the start.
    """
    plugins = Plugins()
    for entry, outcome in load_each(settings.entries, available, running):
        if isinstance(outcome, Loaded):
            plugins.loaded.append(outcome)
        elif entry.optional and entry.name not in running:
            plugins.broken[entry.name] = str(outcome)
        else:
            raise outcome
    return plugins


def changed(before: Sequence[Loaded], after: Sequence[Loaded]) -> tuple[list[Loaded], list[Loaded]]:
    """Return the plugins that are new, and those that are gone; one that was rebuilt is both."""
    new = [plugin for plugin in after if not any(plugin is other for other in before)]
    gone = [plugin for plugin in before if not any(plugin is other for other in after)]
    return new, gone


def warnings(plugins: Iterable[Loaded]) -> tuple[str, ...]:
    """Return what ``pointsman check`` warns of."""
    return tuple(f"{plugin.name}: {warning}" for plugin in plugins for warning in plugin.warnings)


async def drained(busy: Callable[[], bool], clock: Clock) -> bool:
    """Wait until nothing is busy, for at most ``DRAIN_S``; return whether that was so."""
    until = clock.monotonic() + DRAIN_S
    while busy():
        if clock.monotonic() >= until:
            return False
        await clock.sleep(LOOK_S)
    return True


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a plugin that has been started, with what belongs to it alone.

    Attributes:
        plugin: The plugin.
        tasks: Its background work.
        catalog: What it lists.
        routes: Its admin routes.
        ending: Held while it is shut down.
    """

    plugin: Loaded
    tasks: TaskGroup | None = None
    catalog: InstanceCatalog | None = None
    routes: Sequence[BaseRoute] | None = None
    ending: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)


class Reloading:
    """The reloads of one worker, one after another.

    Args:
        read: Reads the configuration.
        apply: Puts it in place; raises ``PointsmanError`` where it cannot, having changed nothing.
        clock: Time.
        generation: Returns which configuration runs.
    """

    def __init__(
        self,
        read: Callable[[], Settings],
        apply: Callable[[Settings], Awaitable[Reload]],
        clock: Clock,
        generation: Callable[[], int],
    ) -> None:
        self._read = read
        self._apply = apply
        self._clock = clock
        self._generation = generation
        self._lock = asyncio.Lock()
        self.last: Reload | None = None

    async def reload(self) -> Reload:
        """Reload; the result says what became of it, also where it failed."""
        async with self._lock:
            try:
                settings = await asyncio.to_thread(self._read)
                result = await self._apply(settings)
            except PointsmanError as err:
                log.error("the configuration was not reloaded and everything goes on as it was: %s", err)  # noqa: TRY400  # the message says it all
                result = Reload(at=self._clock.now(), error=str(err), generation=self._generation())
            self.last = result
            return result


class Announcement:
    """Tells the workers that share a store to reload as well, each from its own file.

    Args:
        store: The host's part of the store.
        reloading: This worker's reloads.
        new_id: Returns a unique id.
    """

    def __init__(self, store: StateStore, reloading: Reloading, new_id: Callable[[], str]) -> None:
        self._store = store
        self._reloading = reloading
        self._new_id = new_id
        self._known: JSON = None

    async def start(self, tasks: TaskGroup) -> None:
        """Begin to listen; what was announced before this worker's start is in its configuration already."""
        self._known = await self._store.get(_KEY)
        tasks.every(HEAR_S, self._hear, name="reload")

    async def announce(self) -> None:
        """Tell the others, who do it within ``HEAR_S``. A store that is away does not undo this worker's reload."""
        self._known = self._new_id()
        try:
            await self._store.put(_KEY, self._known)
        except StoreError as err:
            log.error("the other workers could not be asked to reload; repeat it when the store is back: %s", err)  # noqa: TRY400  # the message says it all

    async def _hear(self) -> None:
        known = self._known
        announced = await self._store.get(_KEY)
        # While the store was read, this worker may have announced a reload itself: what was read is older than that.
        if self._known == known and announced not in {None, known}:
            self._known = announced
            await self._reloading.reload()
