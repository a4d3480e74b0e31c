"""What the headers and the spans say about a decision. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman.types import Outcome

from .race import COLLECTING, Won

if TYPE_CHECKING:
    from pointsman.types import Attempt

    from .contest import Contest, Leg

HEADER = "x-pointsman-raced"


def header(winner: Leg, strategy: str) -> str:
    """Return the value of ``x-pointsman-raced``: who won, against how many, when, and by which score.

    ``first_content_ms`` counts from the start of the race, for a plain request to the whole answer.
    """
    contest = winner.contest
    parts = [
        _token(winner.entry.target),
        f"attempt={winner.number + 1}/{len(contest.legs)}",
        f"strategy={strategy}",
        f"first_content_ms={winner.decided_ms or 0.0:.0f}",
    ]
    if (deployment := winner.deployment) is not None and deployment.id != winner.entry.target:
        parts.insert(1, f"deployment={_token(deployment.id)}")
    return "; ".join(parts)


def attributes(contest: Contest, attempt: Attempt, strategy: str) -> dict[str, str | int | float | bool]:
    """Return what the span of a leg says about the race."""
    leg = next((leg for leg in contest.legs if (a := leg.attempt) is not None and a.id == attempt.id), None)
    if leg is None:
        return {}
    said: dict[str, str | int | float | bool] = {
        "pointsman.racing.strategy": strategy,
        "pointsman.racing.leg": leg.number + 1,
        "pointsman.racing.legs": len(contest.legs),
        "pointsman.racing.reason": str(leg.reason),
        "pointsman.racing.target": leg.entry.target,
        "pointsman.racing.started_ms": round(leg.started_ms, 3),
        "pointsman.racing.standing": round(leg.entry.standing, 4),
    }
    earlier = (other.deployment for other in contest.legs[: leg.number])
    if any(other is not None and other.id == attempt.deployment.id for other in earlier):
        # Everybody was asked already.
        said["pointsman.racing.same_deployment"] = True
    answers_now = attempt.outcome is Outcome.OK and leg.decided_ms is None
    decided_ms = contest.now_ms if answers_now else leg.decided_ms
    if decided_ms is not None:
        said["pointsman.racing.first_content_ms"] = round(decided_ms, 3)
    if isinstance(contest.race.result, Won):
        said["pointsman.racing.won"] = contest.race.result.leg == leg.number
    elif answers_now and contest.race.result is None and strategy not in COLLECTING:
        # The attempt of a plain request is closed a moment before its race hears of the answer; the first one wins.
        said["pointsman.racing.won"] = all(other.decided_ms is None for other in contest.legs)
    if contest.race.denied:
        said["pointsman.racing.denied_by_budget"] = contest.race.denied
    return said


def _token(text: str) -> str:
    """Return a name as a header value can carry it."""
    return "".join(char if char.isascii() and char.isprintable() and char not in ";," else "_" for char in text)
