"""The parts of a worker in a test: a host that remembers, and its connection to a store."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..host.host import Environment, Host
from ..plugin import Services
from ..store import open_store
from ..store.protocol import StateStore
from ..types import Event, Settlement
from .store import FragileStore

if TYPE_CHECKING:
    from ..host.exchange import Exchange
    from .clock import FakeClock


class RecordingHost(Host):
    """A host that remembers what passes through it.

    Args:
        events: Where announced events go.
        settlements: Where settlements go.
        arguments: The host's own.
    """

    def __init__(self, events: list[Event], settlements: list[Settlement], **arguments: Any) -> None:
        self._seen_events = events
        self._seen_settlements = settlements
        super().__init__(**arguments)

    def services(self, plugin: str) -> Services:
        """Return what one plugin is offered; what it announces is remembered."""
        services = super().services(plugin)

        def publish(event: Event) -> None:
            self._seen_events.append(replace(event, source=plugin))
            services.publish(event)

        return replace(services, publish=publish)

    def closed(self, exchange: Exchange) -> None:
        """Take a closed exchange over into the journal; its settlement is remembered."""
        if exchange.settlement is not None:
            self._seen_settlements.append(exchange.settlement)
        super().closed(exchange)


class Connector:
    """Connects one worker after another to the same store.

    Args:
        store: ``memory``, ``disk``, or a store that another owns.
        path: Directory for the disk store.
        clock: Time.
    """

    def __init__(self, store: str | StateStore, path: Path | None, clock: FakeClock) -> None:
        if isinstance(store, str) and store not in {"memory", "disk"}:
            raise ValueError(f"there is no store {store!r} for tests; choose memory or disk, or give a store")
        if store == "disk" and path is None:
            raise ValueError("the disk store needs a path: the directory to keep its file in")
        self._store = store
        self._path = path
        self._clock = clock
        self._memory: StateStore | None = None

    async def connect(self) -> FragileStore:
        """Return a connection of its own for the next worker."""
        if not isinstance(self._store, str):
            return FragileStore(self._store)
        if self._store == "disk" and self._path is not None:
            store = await open_store("disk", path=self._path / "store", clock=self._clock.now)
            return FragileStore(store, closes=True)
        if self._memory is None:
            self._memory = await open_store("memory", clock=self._clock.now)
        return FragileStore(self._memory)

    async def close(self) -> None:
        """Close the store when it belongs to this worker alone."""
        if self._memory is not None:
            await self._memory.close()


class Ids:
    """Ids that are unique, in order of time, and the same in every run.

    Args:
        name: What tells the ids of two workers apart.
        clock: Time.
    """

    def __init__(self, name: str, clock: FakeClock) -> None:
        self._tag = zlib.crc32(name.encode())
        self._clock = clock
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        """Return the next id, 32 hexadecimal digits."""
        return f"{int(self._clock.now() * 1000):012x}{self._tag:08x}{next(self._numbers):012x}"


def environment(clock: FakeClock, new_id: Callable[[], str], worker: str) -> Environment:
    """Return a host's environment in which nothing is left to chance."""
    return Environment(clock=clock, random=random.Random(worker), new_id=new_id, worker=worker)  # noqa: S311  # repeatable
