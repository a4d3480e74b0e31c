"""What was spent by whom, from the outbox's sums: for budgets that have lost it. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from pointsman.events import Spender, Spending
from pointsman.pricing import CONTEXT
from pointsman.types import OWN_CALLS

from .aggregates import DIMENSIONS, SUMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLUMNS: Final = {name: index for index, name in enumerate(("start", *DIMENSIONS, *SUMS))}


def by_spender(rows: Iterable[Sequence[Any]]) -> dict[Spender, Spending]:
    """Return the sums of rows: Unix seconds, ``DIMENSIONS`` and ``SUMS``. Tokens of own calls belong to no tenant."""
    found: dict[Spender, Spending] = {}
    for row in rows:
        tenant, key, model, kind = (row[_COLUMNS[name]] for name in ("tenant", "key", "model", "kind"))
        own = kind in OWN_CALLS
        spender = Spender(tenant=tenant, key=key, model=model, own=own)
        before = found.get(spender, Spending())
        tokens = 0 if own else row[_COLUMNS["prompt_tokens"]] + row[_COLUMNS["completion_tokens"]]
        found[spender] = Spending(
            tokens=before.tokens + tokens,
            cost_usd=CONTEXT.add(before.cost_usd, Decimal(row[_COLUMNS["cost_usd"]])),
            amount_usd=CONTEXT.add(before.amount_usd, Decimal(row[_COLUMNS["amount_usd"]])),
        )
    return found
