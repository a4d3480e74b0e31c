"""Settlements that another machine has taken over, for plugins that keep what they have settled in a place of their own.

A plugin that remembers request ids in the store settles each request once, whichever worker does it. One that remembers
them in a file of its machine, as an outbox, does not know what a worker of another machine has settled. So, where
machines share the store, the journal decides which of them counts:

- When a row of the journal is removed by the worker that owns it, what its plugins have settled is *final*.
- When a row is moved to a worker of another place, the same atomic step adds its request ids to the log of the place
  that it came from. What that place may have settled is *taken*: it must not count there, unless the row comes back.

Every removal checks that the log of its own place is as known, in the same atomic step; so a request is either final or
taken, and never both. Keys: ``{journal}taken/<plugin>/<place>`` counts the entries of the log,
``{journal}taken/<plugin>/<place>/<n>`` is one: lists of request ids, ``taken`` and ``back``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from ..store.protocol import JSON, Put, StateStore, Update
from .isolation import Faults, let_through

#: One hash tag with the rows of the journal: one step moves a row and writes the log.
_LOG: Final = "{journal}taken/"
#: How long an entry of the log is kept, in seconds: a machine that was away for longer counts what it has.
_KEPT_S: Final = 90 * 86_400.0
#: Entries read in one go.
_READ: Final = 500
#: Parts a worker's name from the number of a plugin that a reload has rebuilt in it.
REBUILT: Final = "~"


@dataclass(slots=True)
class _Place:
    """Where one plugin of this worker keeps what it has settled."""

    name: str
    final: Callable[[Sequence[str]], None]
    taken: Callable[[Sequence[str]], None]
    revision: int = 0
    ids: set[str] = field(default_factory=set)


class Takeovers:
    """The logs of one worker's places.

    Args:
        store: The host's part of the store.
        shared: Whether machines share the store. Where they do not, all workers share every place and nothing is logged.
        owner_keys: Returns the keys that exist as long as anything of a worker is left to be settled.
        faults: Where what plugins do wrong is counted.
    """

    def __init__(
        self, store: StateStore, *, shared: bool, owner_keys: Callable[[str], Sequence[str]], faults: Faults
    ) -> None:
        self._store = store
        self._faults = faults
        self._shared = shared
        self._owner_keys = owner_keys
        self._places: dict[str, _Place] = {}

    def __bool__(self) -> bool:
        """Whether there is a place to keep a log of."""
        return bool(self._places)

    def of(self, plugin: str) -> PluginTakeovers:
        """Return what one plugin sees."""
        return PluginTakeovers(self, plugin)

    def names(self) -> dict[str, str]:
        """Return the place of each plugin that has one."""
        return {plugin: place.name for plugin, place in self._places.items()}

    def has_place(self, plugin: str) -> bool:
        """Whether a plugin keeps what it has settled in a place of its own."""
        return plugin in self._places

    def is_taken(self, plugin: str, request_id: str) -> bool:
        """Whether another machine is known to have taken a request over."""
        place = self._places.get(plugin)
        return place is not None and request_id in place.ids

    def checks(self) -> dict[str, JSON]:
        """Return what the store holds as long as nothing more has been taken over."""
        return {_log_key(plugin, place.name): place.revision or None for plugin, place in self._places.items()}

    async def refresh(self) -> None:
        """Read what has been added to the logs.

        Raises:
            StoreError: the store failed.
        """
        for plugin, place in self._places.items():
            key = _log_key(plugin, place.name)
            revision = cast("int", await self._store.get(key) or 0)
            for start in range(place.revision + 1, revision + 1, _READ):
                numbers = range(start, min(start + _READ, revision + 1))
                for entry in await self._store.get_many([f"{key}/{number}" for number in numbers]):
                    if entry is not None:
                        lists = cast("Mapping[str, Sequence[str]]", entry)
                        place.ids.update(lists.get("taken", ()))
                        place.ids.difference_update(lists.get("back", ()))
            place.revision = revision

    def decide(self, settled: Mapping[str, Sequence[str]]) -> None:
        """Tell each plugin which of the requests that it has settled are final, once their rows are gone."""
        for plugin, ids in settled.items():
            place = self._places[plugin]
            taken = [id_ for id_ in ids if id_ in place.ids]
            final = [id_ for id_ in ids if id_ not in place.ids]
            for tell, told in ((place.final, final), (place.taken, taken)):
                try:
                    if told:
                        tell(told)
                except BaseException as err:  # noqa: BLE001  # the journal has decided, whatever the plugin makes of it
                    let_through(err)
                    self._faults.record(plugin, "takeovers", None, err)

    async def logged(self, update: Update, pending: Mapping[str, Sequence[str]], places: Mapping[str, str]) -> Update:
        """Return the step that moves a row, with the logs of the places that it leaves.

        Args:
            update: The step.
            pending: The request ids in the row, by the plugin of this worker that has to settle them.
            places: The places of the worker that the row belonged to.

        Raises:
            StoreError: the store failed.
        """
        lists: dict[str, Mapping[str, JSON]] = {}
        for plugin, ids in pending.items():
            left, here = places.get(plugin), self._places.get(plugin)
            if here is not None and here.name == left:
                continue
            if left is not None:
                lists[_log_key(plugin, left)] = {"taken": list(ids)}
            if here is not None and not here.ids.isdisjoint(ids):
                lists[_log_key(plugin, here.name)] = {"back": [id_ for id_ in ids if id_ in here.ids]}
        checks, puts = dict(update.checks), dict(update.puts)
        for key, entry in lists.items():
            revision = cast("int | None", await self._store.get(key))
            checks[key] = revision
            puts[f"{key}/{(revision or 0) + 1}"] = Put(entry, ttl_s=_KEPT_S)
        return Update(checks=checks, puts=puts, deletes=update.deletes, adds=dict.fromkeys(lists, 1))

    # -- for the plugin -----------------------------------------------------------------------------------------------

    def register(
        self,
        plugin: str,
        place: str,
        final: Callable[[Sequence[str]], None],
        taken: Callable[[Sequence[str]], None],
    ) -> bool:
        """See ``pointsman.plugin.Takeovers.keep_at``."""
        if self._shared:
            former = self._places.get(plugin)
            self._places[plugin] = here = _Place(place, final, taken)
            if former is not None and former.name == place:
                # A reload has rebuilt the plugin: its place is the same, and so is its log.
                here.revision, here.ids = former.revision, former.ids
        return self._shared

    async def taken(self, plugin: str) -> Collection[str]:
        """See ``pointsman.plugin.Takeovers.taken``."""
        await self.refresh()
        place = self._places.get(plugin)
        return frozenset() if place is None else frozenset(place.ids)

    async def has_left(self, worker: str) -> bool:
        """See ``pointsman.plugin.Takeovers.has_left``."""
        return not any(
            value is not None for value in await self._store.get_many(self._owner_keys(worker.partition(REBUILT)[0]))
        )


@dataclass(frozen=True, slots=True)
class PluginTakeovers:
    """What one plugin sees; see ``pointsman.plugin.Takeovers``."""

    takeovers: Takeovers
    plugin: str

    def keep_at(
        self, place: str, *, final: Callable[[Sequence[str]], None], taken: Callable[[Sequence[str]], None]
    ) -> bool:
        """See ``pointsman.plugin.Takeovers.keep_at``."""
        return self.takeovers.register(self.plugin, place, final, taken)

    async def taken(self) -> Collection[str]:
        """See ``pointsman.plugin.Takeovers.taken``."""
        return await self.takeovers.taken(self.plugin)

    async def has_left(self, worker: str) -> bool:
        """See ``pointsman.plugin.Takeovers.has_left``."""
        return await self.takeovers.has_left(worker)


def _log_key(plugin: str, place: str) -> str:
    return f"{_LOG}{plugin}/{place}"
