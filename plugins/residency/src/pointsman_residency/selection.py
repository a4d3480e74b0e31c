"""Prefers resident deployments over cold ones, as seconds of waiting. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .slots import State

if TYPE_CHECKING:
    from pointsman.types import Candidate

    from .slots import Slot


def prefer(
    candidates: Sequence[Candidate],
    slots: Sequence[Slot | None],
    expected_s: Callable[[Slot], float],
    now: float,
    *,
    held: Slot | None,
    steer: bool,
) -> Sequence[Candidate] | None:
    """Return the candidates with the seconds that each has to be waited for; None when nothing changes.

    Args:
        candidates: At least one.
        slots: The candidates' models; None for one that belongs to no pool.
        expected_s: Returns the seconds before a new request's work begins on a model.
        now: Unix seconds.
        held: The model that was made ready for this request, or None.
        steer: Whether to drop those that take longer than the quickest; otherwise a later plugin weighs them.
    """
    if steer and held is not None and held in slots:
        return [
            candidate if slot is held else candidate.drop(f"{held.name} is ready for this request")
            for candidate, slot in zip(candidates, slots, strict=True)
        ]
    if all(slot is None or (slot.state is State.RESIDENT and not slot.holds) for slot in slots):
        return None
    waits = [0.0 if slot is None else expected_s(slot) for slot in slots]
    quickest = min(waits)
    left: list[Candidate] = []
    for candidate, slot, wait_s in zip(candidates, slots, waits, strict=True):
        if slot is None or not wait_s:
            left.append(candidate)
        elif wait_s > quickest and slot.retry_at > now and not slot.passing:
            left.append(candidate.drop(f"could not be loaded: {slot.error}"))
        elif steer and wait_s > quickest:
            left.append(candidate.drop(f"{slot.state}: waits {wait_s:.1f} s, {quickest:.1f} s elsewhere"))
        else:
            left.append(candidate.delayed(wait_s, f"{slot.state}: waits {wait_s:.1f} s"))
    return left
