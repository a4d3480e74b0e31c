"""What hooks and the store cost, measured where the host calls them."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

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


def _measured(
    method: Callable[Concatenate[MeasuredStore, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[MeasuredStore, P], Coroutine[Any, Any, T]]:
    """Measure what a method of a ``MeasuredStore`` returns, under its name."""
    operation = method.__name__

    @wraps(method)
    async def measured(store: MeasuredStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # Called here: a coroutine that is made before would be lost, with a warning, where a task is cancelled before it begins.
        started = time.perf_counter()
        error = ""
        try:
            return await method(store, *args, **kwargs)
        except Exception as err:
            error = type(err).__name__
            raise
        finally:
            spent_s = time.perf_counter() - started
            store.durations.record((store.plugin, operation, error), spent_s)
            span_events.stored(store.plugin, spent_s)

    return measured


class MeasuredStore:
    """Measures how long a plugin waits for the store.

    Args:
        store: The store.
        plugin: The plugin.
        durations: Where durations are counted.
    """

    def __init__(self, store: StateStore, plugin: str, durations: Histogram) -> None:
        self._store = store
        self.plugin = plugin
        self.durations = durations

    @_measured
    def get(self, key: str) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.get``."""
        return self._store.get(key)

    @_measured
    def get_many(self, keys: Sequence[str]) -> Coroutine[Any, Any, list[JSON]]:
        """See ``StateStore.get_many``."""
        return self._store.get_many(keys)

    @_measured
    def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> Coroutine[Any, Any, None]:
        """See ``StateStore.put``."""
        return self._store.put(key, value, ttl_s=ttl_s)

    @_measured
    def delete(self, key: str) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.delete``."""
        return self._store.delete(key)

    @_measured
    def compare_and_set(
        self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None
    ) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.compare_and_set``."""
        return self._store.compare_and_set(key, expected, value, ttl_s=ttl_s)

    @_measured
    def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> Coroutine[Any, Any, int]:
        """See ``StateStore.add``."""
        return self._store.add(key, amount, ttl_s=ttl_s)

    @_measured
    def scan(self, prefix: str) -> Coroutine[Any, Any, list[tuple[str, JSON]]]:
        """See ``StateStore.scan``."""
        return self._store.scan(prefix)

    @_measured
    def update(self, update: Update) -> Coroutine[Any, Any, bool]:
        """See ``StateStore.update``."""
        return self._store.update(update)

    @_measured
    def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> Coroutine[Any, Any, JSON]:
        """See ``StateStore.run``."""
        return self._store.run(op, keys, args)

    @_measured
    def ping(self) -> Coroutine[Any, Any, None]:
        """See ``StateStore.ping``."""
        return self._store.ping()

    async def close(self) -> None:
        """See ``StateStore.close``."""
        await self._store.close()
