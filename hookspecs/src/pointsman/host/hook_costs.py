"""What hooks and the store cost, measured where the host calls them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from ..store.protocol import JSON, AtomicOp, StateStore, Update
from . import span_events
from .counters import Family, Histogram, Point
from .isolation import Timing

P = ParamSpec("P")
T = TypeVar("T")


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

    async def _measured(
        self, operation: str, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # Called here: a coroutine that is made before would be lost, with a warning, where a task is cancelled before it begins.
        started = time.perf_counter()
        error = ""
        try:
            return await method(*args, **kwargs)
        except Exception as err:
            error = type(err).__name__
            raise
        finally:
            spent_s = time.perf_counter() - started
            self._durations.record((self._plugin, operation, error), spent_s)
            span_events.stored(self._plugin, spent_s)

    def get(self, key: str) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.get``."""
        return self._measured("get", self._store.get, key)

    def get_many(self, keys: Sequence[str]) -> Coroutine[Any, Any, list[JSON]]:
        """See ``StateStore.get_many``."""
        return self._measured("get_many", self._store.get_many, keys)

    def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> Coroutine[Any, Any, None]:
        """See ``StateStore.put``."""
        return self._measured("put", self._store.put, key, value, ttl_s=ttl_s)

    def delete(self, key: str) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.delete``."""
        return self._measured("delete", self._store.delete, key)

    def compare_and_set(
        self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None
    ) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.compare_and_set``."""
        return self._measured("compare_and_set", self._store.compare_and_set, key, expected, value, ttl_s=ttl_s)

    def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> Coroutine[Any, Any, int]:
        """See ``StateStore.add``."""
        return self._measured("add", self._store.add, key, amount, ttl_s=ttl_s)

    def scan(self, prefix: str) -> Coroutine[Any, Any, list[tuple[str, JSON]]]:
        """See ``StateStore.scan``."""
        return self._measured("scan", self._store.scan, prefix)

    def update(self, update: Update) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.update``."""
        return self._measured("update", self._store.update, update)

    def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.run``."""
        return self._measured("run", self._store.run, op, keys, args)

    def ping(self) -> Coroutine[Any, Any, None]:
        """See ``StateStore.ping``."""
        return self._measured("ping", self._store.ping)

    async def close(self) -> None:
        """See ``StateStore.close``."""
        await self._store.close()
