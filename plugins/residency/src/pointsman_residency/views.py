"""What status, routes and commands show of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .slots import ABSENT

if TYPE_CHECKING:
    from .scheduler import Scheduler
    from .slots import Slot


def pool_json(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """Return a pool: budget, figures, and its models, those in memory first, the most recently used first."""
    pool = scheduler.pool
    resident = pool.resident()
    cold = [slot for slot in pool.slots.values() if slot.state in ABSENT and slot.name not in pool.aliases]
    return {
        "pool": scheduler.name,
        "budget": dict(pool.budget),
        "stats": {
            "used": pool.used(),
            "foreign": dict(pool.foreign),
            "count": len(resident),
            "loads": sum(slot.loads for slot in pool.slots.values()),
            "evictions": sum(slot.evictions for slot in pool.slots.values()),
            "waits": scheduler.waits,
            "waited_s": round(scheduler.waited_s, 3),
            "expired": scheduler.expired,
            "drifts": pool.drifts,
        },
        "decides": scheduler.leading,
        "workers": len(pool.reports) + 1 if scheduler.leading else None,
        "models": [model_json(scheduler, slot, now) for slot in [*resident, *cold]],
        "repaired": list(scheduler.drifts),
        "problems": problems(scheduler, now),
    }


def model_json(scheduler: Scheduler, slot: Slot, now: float) -> dict[str, Any]:
    """Return one model."""
    pool = scheduler.pool
    return {
        "model": slot.name,
        "pool": scheduler.name,
        "aliases": [name for name, first in pool.aliases.items() if first == slot.name],
        "state": str(slot.state),
        "since": slot.since or None,
        "bytes": dict(slot.bytes),
        "expected_bytes": dict(slot.learnt or slot.model.footprint) or None,
        "measured": bool(slot.learnt),
        "pinned": slot.pinned,
        "priority": slot.model.priority,
        "in_flight": pool.in_flight(slot),
        "waiting": pool.waiting(slot),
        "requests_per_s": round(pool.rate(slot, now), 3),
        "used_at": slot.used_at or None,
        "load_s": round(slot.load_s.value, 3) if slot.load_s.count else None,
        "wake_s": round(slot.wake_s.value, 3) if slot.wake_s.count else None,
        "loads": slot.loads,
        "evictions": slot.evictions,
        "failures": slot.failures,
        "error": slot.error or None,
        "retry_at": slot.retry_at if slot.retry_at > now else None,
        "blocked": slot.blocked or None,
    }


def problems(scheduler: Scheduler, now: float) -> list[str]:
    """Return what an operator should know of a pool."""
    found = []
    if scheduler.store_failures:
        found.append(f"pool {scheduler.name!r}: nothing is loaded or evicted while the store fails")
    if scheduler.server_error:
        found.append(f"pool {scheduler.name!r}: what is resident is not known: {scheduler.server_error}")
    for slot in scheduler.pool.slots.values():
        if slot.retry_at > now:
            found.append(f"the model {slot.name!r} could not be loaded: {slot.error}")
        elif slot.stuck_until > now:
            found.append(f"the model {slot.name!r} still takes memory: {slot.error}")
    used, budget = scheduler.pool.used(), scheduler.pool.budget
    found += [
        f"pool {scheduler.name!r}: {used[device]} bytes of {device!r} are used, more than the {size} of the budget"
        for device, size in budget.items()
        if used.get(device, 0) > size
    ]
    return found
