"""What all tries of one attempt have used together: the SDK of a provider can try again by itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any, Final

from ..pricing import CONTEXT
from ..types import Usage

_COUNTS: Final = tuple(field.name for field in fields(Usage) if field.type in {"int", "int | None"})


def together(earlier: Sequence[Usage], last: Usage | None) -> Usage | None:
    """Return what the tries used; all that is not a quantity is that of the last.

    Args:
        earlier: What the tries before the last used.
        last: What the last used; None when that is not known or nothing.
    """
    if not earlier:
        return last
    tries = (*earlier, *([last] if last is not None else []))
    if len(tries) == 1:
        return tries[0]
    changes: dict[str, Any] = {name: _sum([getattr(one, name) for one in tries]) for name in _COUNTS}
    return replace(
        tries[-1],
        **changes,
        provider_cost_usd=_cost(tries),
        # Each is charged by the size of its own prompt.
        parts=tuple(part for one in tries for part in one.parts or (one,)),
        estimated=any(one.estimated for one in tries),
        contradictory=any(one.contradictory for one in tries),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cost(tries: Sequence[Usage]) -> Decimal | None:
    """Return what the provider charges for all tries; None where it does not say it of each."""
    total = Decimal(0)
    for one in tries:
        if one.provider_cost_usd is None:
            return None
        total = CONTEXT.add(total, one.provider_cost_usd)
    return total
