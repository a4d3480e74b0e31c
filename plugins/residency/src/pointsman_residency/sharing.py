"""What the workers of one pool tell each other: the states from the one that decides, reports from the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .slots import ABSENT, Report, State

if TYPE_CHECKING:
    from pointsman.store import JSON

    from .pool import Pool


def report(pool: Pool, now: float) -> Report:
    """Return what the deciding worker has to know of this one's requests."""
    slots = pool.slots.values()
    return Report(
        seen=pool.revision,
        holds={slot.name: len(slot.holds) for slot in slots if slot.holds},
        waiting={slot.name: slot.waiting for slot in slots if slot.waiters},
        rates={slot.name: rate for slot in slots if (rate := round(slot.rate(now), 4))},
        used={slot.name: slot.used_at for slot in slots if slot.used_at},
    )


def hear(pool: Pool, reports: Mapping[str, Report]) -> None:
    """Take the other workers' reports; those of workers that are gone go with them."""
    pool.reports = dict(reports)
    for heard in reports.values():
        for name, used_at in sorted(heard.used.items(), key=lambda item: item[1]):
            slot = pool.slots.get(name)
            if slot is not None and used_at > slot.used_at:
                pool.touch(name, used_at)


def document(pool: Pool) -> dict[str, JSON]:
    """Return the states as JSON, for the workers that follow and the one that takes over."""
    return {
        "revision": pool.revision,
        "foreign": pool.foreign,
        "models": {
            slot.name: {
                "state": str(slot.state),
                "since": slot.since,
                "bytes": dict(slot.bytes),
                "learnt": dict(slot.learnt),
                "pinned": slot.pinned,
                "wanted": slot.wanted,
                "used_at": slot.used_at,
                "loaded_at": slot.loaded_at,
                "load_s": slot.load_s.value if slot.load_s.count else None,
                "wake_s": slot.wake_s.value if slot.wake_s.count else None,
                "loads": slot.loads,
                "evictions": slot.evictions,
                "failures": slot.failures,
                "error": slot.error,
                "retry_at": slot.retry_at,
                "passing": slot.passing,
                "drain_for": slot.drain_for,
                "drain_reason": slot.drain_reason,
                "drain_revision": slot.drain_revision,
                "blocked": slot.blocked,
            }
            for slot in pool.slots.values()
        },
    }


def follow(pool: Pool, states: Mapping[str, JSON], now: float) -> None:
    """Take over the states that the deciding worker has written; what waits for a resident model goes on."""
    models = states["models"]
    assert isinstance(models, Mapping)  # noqa: S101  # written by ``document``
    for name, fields in sorted(models.items(), key=lambda item: _number(item[1], "used_at")):
        slot = pool.slots.get(name)
        if slot is None or not isinstance(fields, Mapping):
            continue
        slot.state = State(str(fields["state"]))
        slot.since = _number(fields, "since")
        slot.bytes, slot.learnt = _sizes(fields, "bytes"), _sizes(fields, "learnt")
        slot.pinned = bool(fields["pinned"])
        slot.wanted = str(fields["wanted"])
        slot.loaded_at = _number(fields, "loaded_at")
        for key, average in (("load_s", slot.load_s), ("wake_s", slot.wake_s)):
            if isinstance(value := fields[key], int | float) and value != average.value:
                average.count = 0
                average.add(float(value), now)
        slot.loads, slot.evictions = int(_number(fields, "loads")), int(_number(fields, "evictions"))
        slot.failures = int(_number(fields, "failures"))
        slot.error = str(fields["error"])
        slot.retry_at, slot.passing = _number(fields, "retry_at"), bool(fields["passing"])
        slot.drain_for, slot.drain_reason = str(fields["drain_for"]), str(fields["drain_reason"])
        slot.drain_revision = int(_number(fields, "drain_revision"))
        slot.blocked = str(fields["blocked"])
        if (used_at := _number(fields, "used_at")) > slot.used_at:
            pool.touch(name, used_at)
        if slot.state is State.RESIDENT:
            pool.admit(slot, now)
        elif slot.state in ABSENT and slot.retry_at > now and not slot.passing:
            pool.refuse(slot, now)
    pool.foreign = _sizes(states, "foreign")
    revision = states["revision"]
    pool.revision = max(pool.revision, revision if isinstance(revision, int) else 0)


def _number(fields: JSON, key: str) -> float:
    value = fields.get(key) if isinstance(fields, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _sizes(fields: Mapping[str, JSON], key: str) -> dict[str, int]:
    sizes = fields.get(key)
    return {name: size for name, size in sizes.items() if isinstance(size, int)} if isinstance(sizes, Mapping) else {}
