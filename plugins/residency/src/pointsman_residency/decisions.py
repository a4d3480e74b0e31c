"""What a pool loads and unloads next: room for what waits, by the guards of the policy. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .policy import Claim, fits, guard, in_order, pick
from .pool import NOBODY, PRELOAD, Pool
from .slots import ABSENT, NEVER, NONE_WAITS, Slot, State


@dataclass(frozen=True, slots=True)
class Load:
    """A model to load now."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """A model to unload now: nothing of it is in flight, or it is forced."""

    name: str
    reason: str
    for_model: str = NOBODY


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        loads: Models to load.
        unloads: Models to unload.
        next_at: Unix seconds at which to decide again even if nothing happens.
    """

    loads: tuple[Load, ...] = ()
    unloads: tuple[Unload, ...] = ()
    next_at: float = NEVER


def resume(pool: Pool) -> Decision:
    """Return what another worker was doing when it stopped deciding.

    It is done again, which servers do not mind, rather than decided again: a server may go on with a load whose client has
    left, and what it takes counts all the time.
    """
    slots = pool.slots.values()
    return Decision(
        tuple(Load(slot.name, "its load was interrupted") for slot in slots if slot.state is State.LOADING),
        tuple(Unload(slot.name, slot.drain_reason, slot.drain_for) for slot in slots if slot.state is State.UNLOADING),
    )


def decide(pool: Pool, now: float) -> Decision:
    """Decide what to load and to unload now; the models' states are those afterwards."""
    loads: list[Load] = []
    claims = in_order(_claims(pool, now))
    _cancel_drains(pool, claims, now)
    next_at = _expire(pool, now)
    _shrink(pool, now)
    free = {device: pool.budget[device] - used for device, used in pool.used().items() if device in pool.budget}
    for claim in claims:
        slot = claim.slot
        if slot.retry_at > now:
            next_at = min(next_at, slot.retry_at)
            continue
        sizes, asleep = pool.size(slot), slot.bytes
        if _ready(pool, slot) and fits(sizes, _plus(free, asleep)):
            loads.append(_load(pool, slot, claim, sizes, now))
            reserve = True
        else:
            reserve, at = _make_room(pool, claim, sizes, _plus(free, asleep), now)
            next_at = min(next_at, at)
        if reserve:
            # Also while it waits: a later claim does not take the memory that is being freed for this one.
            for device, size in sizes.items():
                free[device] = free.get(device, 0) - size + asleep.get(device, 0)
    return Decision(tuple(loads), tuple(_unloads(pool, now)), next_at)


def _claims(pool: Pool, now: float) -> list[Claim]:
    claims = []
    for slot in pool.slots.values():
        if slot.state not in ABSENT:
            continue
        count, oldest, arrivals = slot.waiting
        for report in pool.reports.values():
            more, at, total = report.waiting.get(slot.name, NONE_WAITS)
            count, oldest, arrivals = count + more, min(oldest, at), arrivals + total
        wanted = bool(slot.wanted) and slot.wanted != PRELOAD
        if count or slot.wanted:
            claims.append(
                Claim(
                    slot,
                    count=count,
                    oldest_at=oldest if count else now,
                    waited_s=count * now - arrivals,
                    rate=pool.rate(slot, now),
                    overdue=wanted or (count > 0 and now - oldest >= pool.policy.max_wait_s),
                )
            )
    return claims


def _cancel_drains(pool: Pool, claims: Sequence[Claim], now: float) -> None:
    """Keep what was drained for a model that nothing waits for any more."""
    claimed = {claim.slot.name for claim in claims}
    for slot in pool.slots.values():
        if slot.state is State.DRAINING and slot.drain_for and slot.drain_for not in claimed:
            pool.keep(slot.name, now)
    for name in pool.after.keys() - claimed:
        del pool.after[name]


def _expire(pool: Pool, now: float) -> float:
    """Drain what has been idle for its time to live; return when the next one will have been."""
    next_at = NEVER
    for slot in pool.slots.values():
        ttl_s = slot.model.idle_ttl_s
        if ttl_s is None or slot.pinned or slot.state is not State.RESIDENT or pool.in_flight(slot):
            continue
        # From the end of the latest request, not its start.
        ends_at = max(slot.used_at, slot.loaded_at, slot.stuck_until) + ttl_s
        if ends_at <= now:
            pool.drain(slot, NOBODY, f"idle for {ttl_s:g} s", now)
        else:
            next_at = min(next_at, ends_at)
    return next_at


def _shrink(pool: Pool, now: float) -> None:
    """Drain models while those that are resident take more than the budget: an estimate was too low."""
    used = pool.used()
    for slot in pool.slots.values():
        if slot.state in {State.DRAINING, State.UNLOADING}:
            for device, size in slot.bytes.items():
                used[device] -= size
    over = {device: size for device, size in pool.budget.items() if used.get(device, 0) > size}
    if not over:
        return
    free = {device: size - used.get(device, 0) for device, size in pool.budget.items()}
    candidates = [slot for slot in _evictable(pool) if slot.stuck_until <= now]
    zero = dict.fromkeys(over, 0)
    for slot in pick(candidates, zero, free, pool.busy) or candidates:
        pool.drain(slot, NOBODY, "the models take more memory than the budget", now)


def _ready(pool: Pool, slot: Slot) -> bool:
    """Return whether nothing has to go first that a model excludes, or that was evicted for it."""
    first = pool.excludes(slot) | pool.after.get(slot.name, set())
    return not slot.starved and all(pool.slots[name].state in ABSENT for name in first if name in pool.slots)


def _load(pool: Pool, slot: Slot, claim: Claim, sizes: Mapping[str, int], now: float) -> Load:
    reason = f"{claim.count} waiting" if claim.count else slot.wanted
    slot.bytes = dict(sizes)
    slot.wanted, slot.blocked = "", ""
    pool.after.pop(slot.name, None)
    pool.enter(slot, State.LOADING, now)
    return Load(slot.name, reason)


def _make_room(
    pool: Pool, claim: Claim, sizes: Mapping[str, int], free: Mapping[str, int], now: float
) -> tuple[bool, float]:
    """Drain what has to go for a claim; return whether its memory is reserved, and when to look again."""
    slot = claim.slot
    leaving = [s for s in pool.slots.values() if s.state in {State.DRAINING, State.UNLOADING}]
    soon = _freed(free, leaving)
    rivals = [pool.slots[name] for name in pool.excludes(slot) if name in pool.slots]
    rivals = [s for s in rivals if s.state in {State.RESIDENT, State.LOADING}]
    if not rivals and not slot.starved and fits(sizes, soon):
        pool.block(slot, f"waits until {_listed(leaving)} has ended")
        return True, NEVER
    if slot.wanted == PRELOAD and not claim.count:
        slot.wanted = ""
        pool.block(slot, "did not fit next to what was preloaded before it")
        return False, NEVER
    allowed, guarded, next_at = _guarded(pool, claim, now)
    if (chosen := _chosen(pool, claim, sizes, soon, allowed=allowed, rivals=rivals)) is not None:
        for victim in chosen:
            pool.drain(victim, slot.name, f"room for {slot.name}", now)
        if slot.starved:
            slot.starved = False
            pool.after[slot.name] = {victim.name for victim in chosen}
        pool.block(slot, f"waits until {_listed(chosen)} has ended")
        return True, NEVER
    if slot.starved and not rivals and not allowed and not guarded:
        # Nothing is left that could go: the one retry is made with what there is.
        slot.starved = False
        return True, now
    pool.block(slot, _why_blocked(pool, guarded))
    # What an overdue claim waits for is kept free, unless pins keep it out for good.
    return claim.overdue and next_at < NEVER, next_at


def _guarded(pool: Pool, claim: Claim, now: float) -> tuple[list[Slot], list[str], float]:
    """Return the models that may go for a claim, why the others may not, and when that ends at the latest."""
    allowed, guarded, next_at = list[Slot](), list[str](), NEVER
    for victim in _evictable(pool):
        why, at = guard(victim, pool.rate(victim, now), claim, pool.policy, now)
        heard_by = victim.loaded_at + pool.policy.max_wait_s
        if not why and now < heard_by and pool.unheard(victim):
            # It was loaded for them: evicted before they hear of it, it would be loaded again and again and serve none of them.
            why, at = "was loaded for requests of other workers, which have not heard of it yet", heard_by
        if why:
            guarded.append(f"{victim.name} {why}")
            next_at = min(next_at, at)
        else:
            allowed.append(victim)
    return allowed, guarded, next_at


def _chosen(
    pool: Pool,
    claim: Claim,
    sizes: Mapping[str, int],
    soon: Mapping[str, int],
    *,
    allowed: Sequence[Slot],
    rivals: Sequence[Slot],
) -> list[Slot] | None:
    """Return which models go for a claim, those first that it excludes; None when they would not be enough."""
    if any(rival not in allowed for rival in rivals):
        return None
    rest = [victim for victim in allowed if victim not in rivals]
    more = pick(rest, sizes, _freed(soon, rivals), pool.busy, int(claim.slot.starved))
    return None if more is None else [*rivals, *more]


def _why_blocked(pool: Pool, guarded: Sequence[str]) -> str:
    if guarded:
        return "; ".join(guarded)
    pinned = [slot for slot in pool.slots.values() if slot.pinned and slot.state not in ABSENT]
    return f"only pinned or busy models are left: {_listed(pinned)}" if pinned else "others are being loaded first"


def _unloads(pool: Pool, now: float) -> list[Unload]:
    unloads = []
    for slot in pool.slots.values():
        if slot.state is State.DRAINING and not pool.busy(slot):
            pool.enter(slot, State.UNLOADING, now)
            unloads.append(Unload(slot.name, slot.drain_reason, slot.drain_for))
    return unloads


def _evictable(pool: Pool) -> list[Slot]:
    return [slot for slot in pool.slots.values() if slot.state is State.RESIDENT and not slot.pinned]


def _listed(slots: Iterable[Slot]) -> str:
    return ", ".join(slot.name for slot in slots) or "nothing"


def _plus(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {device: size + other.get(device, 0) for device, size in one.items()}


def _freed(free: Mapping[str, int], leaving: Iterable[Slot]) -> dict[str, int]:
    """Return what will be free when these models have gone or sleep."""
    soon = dict(free)
    for slot in leaving:
        for device, size in slot.bytes.items():
            soon[device] = soon.get(device, 0) + size - slot.model.residual.get(device, 0)
    return soon
