"""What was decided about a request before its attempts: the changes of its route, and the candidates of each attempt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..frozen import quick
from ..types import Candidate, Deployment, Route
from .hooks import Dropped

if TYPE_CHECKING:
    from .attempt import OpenAttempt

#: Decisions of one request that are kept.
MOST_DECISIONS: Final = 64


@quick
@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was decided about a request.

    Attributes:
        by: The plugin that changed the route, or ``select``.
        at_ms: Since the request's arrival.
        route: The route afterwards, for a change of it.
        attempt: The number of the attempt that candidates were chosen for; 0: none was left.
        left: The candidates, best first where they have scores.
        dropped: The deployments that were left out, and why.
    """

    by: str
    at_ms: float
    route: Route | None = None
    attempt: int = 0
    left: Sequence[Candidate] = ()
    dropped: Sequence[Dropped] = ()


def offered(
    deployments: Sequence[Deployment],
    target: str,
    attempts: Sequence[OpenAttempt],
    refused: Collection[str],
    *,
    has_fallback: bool,
) -> tuple[list[Candidate], Sequence[Dropped]]:
    """Return the candidates among the gateway's deployments, and those that are left out before a plugin is asked.

    Args:
        deployments: The deployments that the gateway offers.
        target: The route's.
        attempts: Those of the request so far.
        refused: Deployments that have refused an attempt of the request.
        has_fallback: Whether the gateway goes on elsewhere if no candidate is left.
    """
    candidates: list[Candidate] = []
    drained: dict[str, str] = {}
    for d in deployments:
        candidate = Candidate(deployment=d, weight=d.weight, has_fallback=has_fallback)
        if d.id == target:
            candidates, drained = [candidate], {}
            break
        candidates.append(candidate)
        if (why := d.drained) is not None:
            drained[d.id] = why
    candidates, left_out = _without(candidates, drained) if drained else (candidates, ())
    if not attempts:
        return candidates, left_out
    # A refusal causes no cooldown, so the gateway would offer the same deployment again while others are free.
    # And a hedge against a slow deployment must not go to the same one; nor to a drained one instead.
    out = dict.fromkeys(refused, "refused an attempt of this request")
    out |= {
        o.attempt.deployment.id: f"busy with attempt {o.attempt.number} of this request"
        for o in attempts
        if not o.closed
    }
    candidates, taken = _without(candidates, out)
    return candidates, [*left_out, *taken]


def _without(candidates: list[Candidate], out: Mapping[str, str]) -> tuple[list[Candidate], Sequence[Dropped]]:
    """Return the candidates that are not left out, if there are such, and those that are.

    Args:
        candidates: All.
        out: Deployments to leave out, and why.
    """
    if not out:
        return candidates, ()
    free = [c for c in candidates if c.deployment.id not in out]
    if not free or len(free) == len(candidates):
        return candidates, ()
    gone = (c.deployment.id for c in candidates if c.deployment.id in out)
    return free, [Dropped(name, "pointsman", out[name]) for name in gone]
