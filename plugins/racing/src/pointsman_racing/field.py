"""Who takes part in a race, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from .race import MAX_ATTEMPTS, Entry

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import Deployment

    from .book import Book
    from .config import CandidateConfig, Delay


def members(candidate: CandidateConfig, catalog: Catalog) -> Sequence[Deployment]:
    """Return the deployments that can serve a candidate; empty when the gateway's configuration has none."""
    found = catalog.deployments(candidate.target)
    return found if candidate.model is None else [d for d in found if d.model == candidate.model]


def line_up(
    candidates: Sequence[CandidateConfig],
    catalog: Catalog,
    book: Book,
    delay: Delay,
    *,
    stream: bool,
    now: float,
    now_ms: float,
    one_group: bool = False,
) -> tuple[Entry, ...]:
    """Return the places of a race in the order in which they are started; empty when nobody can serve.

    Candidates that push back come last; otherwise by priority, then by weight times score. A model group has as many
    places as deployments: first every candidate's first place, then the second ones. Which of its deployments a leg
    reaches is up to the gateway, so that cooldowns, breakers and balancing still apply; only with ``model`` the places
    are deployments.

    Args:
        candidates: Who may take part.
        catalog: What the gateway can serve.
        book: What is known about deployments.
        delay: The race's settings, which say from how many samples on something is known.
        stream: Whether the request is a stream.
        now: Unix seconds.
        now_ms: The same moment on the race's own clock, in milliseconds.
        one_group: The only candidate is a model group whose deployments race one another.
    """
    rows: list[tuple[tuple[bool, int, float], list[Entry]]] = []
    for number, candidate in enumerate(candidates):
        found = members(candidate, catalog)
        if not found:
            continue
        scores = {d.id: book.score(d.id, delay, stream=stream, now=now) for d in found}
        blocked = {d.id: max(0.0, book.blocked_until(d.id) - now) * 1000 for d in found}
        if candidate.model is None:
            standing = candidate.weight * sum(scores.values()) / len(scores)
            wait_ms = min(blocked.values())
            places = [(candidate.target, standing, wait_ms)] * min(len(found), MAX_ATTEMPTS)
        else:
            places = [(d.id, candidate.weight * scores[d.id], blocked[d.id]) for d in found]
            places.sort(key=lambda place: (place[2], -place[1]))
        entries = [
            Entry(
                candidate=place_number if one_group else number,
                target=target,
                standing=standing,
                blocked_until_ms=now_ms + wait_ms,
            )
            for place_number, (target, standing, wait_ms) in enumerate(places)
        ]
        rows.append(((places[0][2] > 0, candidate.priority, -places[0][1]), entries))
    rows.sort(key=lambda row: row[0])
    rounds = zip_longest(*(entries for _, entries in rows))
    return tuple(entry for one_round in rounds for entry in one_round if entry is not None)
