"""What hooks and the store cost, measured where the host calls them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from ..store.protocol import JSON, AtomicOp, StateStore, Update
from . import span_events
from .counters import Family, Histogram, Point
from .isolation import Timing


def hook_families(timings: Iterable[Timing]) -> list[Family]:
    """Return calls and seconds by plugin and hook."""
    called = [
        ((("pointsman.hook", timing.hook), ("pointsman.plugin", timing.plugin)), timing)
        for timing in timings
        if timing.calls
    ]
    return [
        Family(
            "pointsman.hook.calls",
            "counter",
            "{call}",
            "Calls of plugins' hooks.",
            points=tuple(Point(labels, timing.calls) for labels, timing in called),
        ),
        Family(
            "pointsman.hook.time",
            "counter",
            "s",
            "Time in plugins' hooks, waits included.",
            points=tuple(Point(labels, timing.total_s + timing.waited_s) for labels, timing in called),
        ),
    ]


class MeasuredStore:
    """Measures how long a plugin waits for the store.

    Args:
        store: The store.
        plugin: The plugin.
        durations: Where durations are counted.
    """

    def __init__(self, store: StateStore, plugin: str, durations: Histogram) -> None:
        self._store = store
        self._plugin = plugin
        self._durations = durations

    async def _measured(self, operation: str, work: Any) -> Any:
        started = time.perf_counter()
        error = ""
        try:
            return await work
        except Exception as err:
            error = type(err).__name__
            raise
        finally:
            spent_s = time.perf_counter() - started
            self._durations.record((self._plugin, operation, error), spent_s)
            span_events.stored(self._plugin, spent_s)

    async def get(self, key: str) -> JSON:
        """See ``StateStore.get``."""
        value: JSON = await self._measured("get", self._store.get(key))
        return value

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``."""
        values: list[JSON] = await self._measured("get_many", self._store.get_many(keys))
        return values

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        await self._measured("put", self._store.put(key, value, ttl_s=ttl_s))

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        deleted: bool = await self._measured("delete", self._store.delete(key))
        return deleted

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        work = self._store.compare_and_set(key, expected, value, ttl_s=ttl_s)
        done: bool = await self._measured("compare_and_set", work)
        return done

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        total: int = await self._measured("add", self._store.add(key, amount, ttl_s=ttl_s))
        return total

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``."""
        pairs: list[tuple[str, JSON]] = await self._measured("scan", self._store.scan(prefix))
        return pairs

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        done: bool = await self._measured("update", self._store.update(update))
        return done

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        result: JSON = await self._measured("run", self._store.run(op, keys, args))
        return result

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        await self._measured("ping", self._store.ping())

    async def close(self) -> None:
        """See ``StateStore.close``."""
        await self._store.close()
