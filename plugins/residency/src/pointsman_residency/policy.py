"""Which model is loaded next, and which ones go for it. Pure: no I/O, no clock.

A swap costs waiting: while one model is loaded and the other one later comes back, requests for the one that went wait. At
``r`` requests a second and ``t`` seconds for the two loads that is about ``r t^2 / 2`` request-seconds. It saves waiting too:
that of the requests for the model that comes. So a model is *guarded* against another one

- until the requests for the other one have together waited ``swap_ratio`` times what the swap would cost. At 1 that is
  the rule of the ski-rental problem: rent for as long as buying would have cost. More makes loads rarer and waits longer;
- for ``min_residence_s`` after it became resident, and when it has the higher priority;
- until the requests that wait for it in other workers have heard that it is resident, ``max_wait_s`` at the most.

A model whose oldest request has waited ``max_wait_s`` is *overdue*. Cost and priority guard nothing against it, and the
overdue are loaded in the order of their oldest request. So a rarely used model cannot push out a busy one with each
request, and still waits a bounded time: its requests collect, and one load serves them all.

Among the models that may go, those of the lowest priority go first, then those without requests in flight, then the least
recently used. Where nothing is guarded that is plain LRU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .slots import Slot

#: With so many times more requests, a model is busy in comparison with another one.
BUSY_RATIO: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of the choice.

    Attributes:
        max_wait_s: Seconds after which a waiting request takes precedence over demand.
        min_residence_s: Seconds that a model stays at least.
        swap_ratio: How many times the waiting that a swap causes has to have been waited before it; 0: never wait.
        demand_half_life_s: Seconds after which a request counts half in the rate of requests.
        assumed_load_s: Seconds that a load counts with as long as none was seen of either model.
        stuck_s: Seconds before an eviction that the server did not confirm is tried again.
        backoff_s: Seconds before a failed load is tried again; doubles with each failure.
        max_backoff_s: The longest such time.
        passing_s: The same for a server that is busy or out of reach.
        passing_failures: So many such failures in a row count as any other.
    """

    max_wait_s: float = 10.0
    min_residence_s: float = 0.2
    swap_ratio: float = 2.0
    demand_half_life_s: float = 30.0
    assumed_load_s: float = 5.0
    stuck_s: float = 10.0
    backoff_s: float = 20.0
    max_backoff_s: float = 300.0
    passing_s: float = 1.0
    passing_failures: int = 6


@dataclass(frozen=True, slots=True)
class Claim:
    """A model that is to be loaded.

    Attributes:
        slot: The model.
        count: Requests that wait for it, in all workers; 0 when only an operator or the start wants it.
        oldest_at: Arrival of the oldest, Unix seconds.
        waited_s: What all of them have waited, in sum.
        rate: Its requests a second.
        overdue: Whether the oldest has waited ``max_wait_s``, or an operator wants it.
    """

    slot: Slot
    count: int
    oldest_at: float
    waited_s: float
    rate: float
    overdue: bool


def in_order(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims in the order in which they are met.

    The overdue ones first, by their oldest request; then by priority, then those whose requests have waited longest in
    sum, so that one load serves many.
    """

    def key(claim: Claim) -> tuple[float, ...]:
        if claim.overdue:
            return (0.0, claim.oldest_at)
        slot = claim.slot
        return (1.0, -slot.pinned, -slot.model.priority, -claim.waited_s, -claim.count, claim.oldest_at)

    return sorted(claims, key=key)


def swap_cost_s(victim: Slot, rate: float, claim: Claim, policy: Policy) -> float:
    """Return the request-seconds that requests for a model wait in sum because it goes and comes back.

    Args:
        victim: The model that goes.
        rate: Its requests a second.
        claim: The model that comes.
        policy: The settings.
    """
    # Of a load that was never seen, the other one is the best guess.
    out, back = claim.slot.ready_s, victim.ready_s
    known = [seconds for seconds in (out, back) if seconds is not None] or [policy.assumed_load_s]
    loads_s = 2 * sum(known) / len(known)
    return rate * loads_s * loads_s / 2


def guard(victim: Slot, rate: float, claim: Claim, policy: Policy, now: float) -> tuple[str, float]:
    """Return why a model may not be evicted for a claim now, and until when; an empty reason when it may.

    Args:
        victim: A model without a pin.
        rate: Its requests a second.
        claim: The model that needs the memory.
        policy: The settings.
        now: Unix seconds.

    Returns:
        The reason, and Unix seconds at which it ends by itself at the latest.
    """
    overdue_at = claim.oldest_at + policy.max_wait_s
    if victim.stuck_until > now:
        return f"did not free its memory ({victim.error})", victim.stuck_until
    cost_s = policy.swap_ratio * swap_cost_s(victim, rate, claim, policy)
    # A model that was loaded for a few requests need not keep a busy one out once it has served them.
    leaves_early = not victim.holds and claim.rate > BUSY_RATIO * rate
    if now < victim.loaded_at + policy.min_residence_s and not leaves_early:
        return "was just loaded", victim.loaded_at + policy.min_residence_s
    if claim.overdue:
        return "", now
    if victim.model.priority > claim.slot.model.priority:
        return "has a higher priority", overdue_at
    if claim.waited_s < cost_s:
        # Waiting grows by a second each second for every request, and may do so faster.
        at = min(overdue_at, now + (cost_s - claim.waited_s) / max(1, claim.count))
        return f"is asked for {rate:.2g} times a second", at
    return "", now


def fits(sizes: Mapping[str, int], free: Mapping[str, int]) -> bool:
    """Return whether sizes fit into what is free, on every device."""
    return all(free.get(device, 0) >= size for device, size in sizes.items())


def pick(
    slots: Sequence[Slot],
    sizes: Mapping[str, int],
    free: Mapping[str, int],
    busy: Callable[[Slot], bool],
    at_least: int = 0,
) -> list[Slot] | None:
    """Return the models to evict, first first, so that sizes fit; None when all of them together are not enough.

    Args:
        slots: Those that may go.
        sizes: Device to the bytes that are needed.
        free: Device to the bytes that are free; may be negative.
        busy: Returns whether a model has requests in flight.
        at_least: How many have to go although it would fit.
    """
    left = dict(free)
    chosen: list[Slot] = []
    for slot in sorted(slots, key=lambda one: (one.model.priority, busy(one), one.order)):
        if len(chosen) >= at_least and fits(sizes, left):
            break
        short = [device for device, size in sizes.items() if left.get(device, 0) < size]
        if short and not any(slot.bytes.get(device) for device in short):
            continue  # It lies elsewhere.
        chosen.append(slot)
        for device, size in slot.bytes.items():
            left[device] = left.get(device, 0) + size - slot.model.residual.get(device, 0)
    return chosen if fits(sizes, left) and len(chosen) >= at_least else None
