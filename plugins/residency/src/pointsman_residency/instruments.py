"""The metrics of the pools. What all workers know alike is a gauge; what each of them counts for itself is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pointsman.plugin import observe

from .pool import Pool
from .slots import ABSENT

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

    from .scheduler import Scheduler
    from .slots import Slot

Rows = Iterable[tuple[Mapping[str, str], float]]
Schedulers = Mapping[str, "Scheduler"]


def instrument(meter: Meter, schedulers: Schedulers) -> None:
    """Give the meter what the pools know.

    Args:
        meter: The plugin's.
        schedulers: Pool to its scheduler.
    """
    name = "pointsman.residency"
    by_device: dict[str, tuple[Callable[[Pool], Mapping[str, int]], str]] = {
        "used": (Pool.used, "Memory that counts as used."),
        "budget": (lambda pool: pool.budget, "Memory that models may take."),
    }
    for metric, (sizes, description) in by_device.items():
        observe(meter, f"{name}.{metric}", partial(_devices, schedulers, sizes), description, unit="By")
    by_model: dict[str, tuple[Callable[[Slot], float], str, str]] = {
        "resident": (lambda slot: float(slot.state not in ABSENT), "Whether a model is in memory, 0 or 1.", "1"),
        "loads": (lambda slot: slot.loads, "Loads since the store was empty.", "{load}"),
        "evictions": (lambda slot: slot.evictions, "Evictions since the store was empty.", "{eviction}"),
    }
    for metric, (figure, description, unit) in by_model.items():
        observe(meter, f"{name}.{metric}", partial(_models, schedulers, figure), description, unit=unit)
    waiting = partial(_models, schedulers, lambda slot: len(slot.waiters))
    observe(meter, f"{name}.waiting", waiting, "Requests that wait for a model.", unit="{request}", kind="updown")
    by_pool: dict[str, tuple[Callable[[Scheduler], float], str, str]] = {
        "waits": (lambda scheduler: scheduler.waits, "Requests that had to wait.", "{request}"),
        "waited": (lambda scheduler: scheduler.waited_s, "Time that requests have waited.", "s"),
        "expired": (lambda scheduler: scheduler.expired, "Requests whose wait was too long.", "{request}"),
    }
    for metric, (count, description, unit) in by_pool.items():
        rows = partial(_pools, schedulers, count)
        observe(meter, f"{name}.{metric}", rows, description, unit=unit, kind="counter")


def _devices(schedulers: Schedulers, sizes: Callable[[Pool], Mapping[str, int]]) -> Rows:
    return [
        ({"pool": pool, "device": device}, size)
        for pool, scheduler in schedulers.items()
        for device, size in sizes(scheduler.pool).items()
    ]


def _models(schedulers: Schedulers, figure: Callable[[Slot], float]) -> Rows:
    return [
        ({"pool": pool, "model": slot.name}, figure(slot))
        for pool, scheduler in schedulers.items()
        for slot in scheduler.pool.slots.values()
    ]


def _pools(schedulers: Schedulers, count: Callable[[Scheduler], float]) -> Rows:
    return [({"pool": pool}, count(scheduler)) for pool, scheduler in schedulers.items()]
