"""Excludes or thins out candidates by their signals, for any routing strategy after it. Pure except for chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman.types import SignalStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pointsman.types import Candidate, Signal


def steer(
    candidates: Sequence[Candidate],
    signal_of: Callable[[str], Signal | None],
    now: float,
    degraded_share_ratio: float,
    chance: Callable[[], float],
) -> Sequence[Candidate] | None:
    """Drop exhausted candidates, and degraded ones for a share of the requests, as long as another one remains.

    When all are exhausted, the one whose exhaustion ends first is kept.

    Args:
        candidates: Deployments that may serve, at least one.
        signal_of: Returns the latest signal of a deployment, or None.
        now: Unix seconds.
        degraded_share_ratio: Share of its requests that a degraded candidate keeps, 0 to 1.
        chance: Returns a random number from 0 to 1.

    Returns:
        The candidates, excluded ones marked as dropped; None when nothing changes.
    """
    left = [candidate for candidate in candidates if not candidate.dropped]
    known = [(candidate, signal) for candidate in left if (signal := signal_of(candidate.deployment.id)) is not None]
    exhausted = {
        candidate.deployment.id: signal
        for candidate, signal in known
        if signal.status is SignalStatus.EXHAUSTED and signal.status_at(now) is SignalStatus.EXHAUSTED
    }
    degraded = {
        candidate.deployment.id: signal
        for candidate, signal in known
        if signal.status is SignalStatus.DEGRADED and signal.status_at(now) is SignalStatus.DEGRADED
    }
    if not exhausted and not degraded:
        return None
    if len(exhausted) == len(left):
        best = min(exhausted, key=lambda one: exhausted[one].until or 0.0)
        return [
            candidate if candidate.deployment.id == best else _without(candidate, exhausted) for candidate in candidates
        ]
    spare = len(left) > len(exhausted) + len(degraded)
    shed = {one for one in degraded if spare and chance() >= degraded_share_ratio}
    chosen: list[Candidate] = []
    for candidate in candidates:
        one = candidate.deployment.id
        if one in exhausted:
            chosen.append(_without(candidate, exhausted))
        elif one in shed:
            chosen.append(candidate.drop(f"degraded: {degraded[one].reason}"))
        else:
            chosen.append(candidate)
    return chosen


def _without(candidate: Candidate, exhausted: dict[str, Signal]) -> Candidate:
    signal = exhausted.get(candidate.deployment.id)
    return candidate if signal is None else candidate.drop(f"exhausted: {signal.reason}")
