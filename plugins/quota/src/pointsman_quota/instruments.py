"""What quota adds to the metrics: how much of each limit is used, and what was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.plugin import observe

from .ledger import LEVEL_UNIT
from .scopes import all_scopes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .admission import Counts
    from .ledger import Caps, ScopeState
    from .ledger_client import LedgerClient
    from .limits import Limits
    from .repository import TenantRepository

#: Tenants whose use is read: each is one read of the store.
MOST_TENANTS: Final = 100
#: How often it is read, in seconds.
READ_EVERY_S: Final = 15.0


def used(state: ScopeState, caps: Caps) -> dict[str, float]:
    """Return how much of each limit is used, 0 to 1 and more when it is exceeded."""
    levels: dict[str, tuple[float, float]] = {}
    if "requests_burst" in caps:
        levels["requests_per_minute"] = (state.requests / LEVEL_UNIT, caps["requests_burst"])
    if "tokens_burst" in caps:
        levels["tokens_per_minute"] = (state.tokens / LEVEL_UNIT, caps["tokens_burst"])
    if "day_tokens" in caps:
        levels["tokens_per_day"] = (state.day_tokens, caps["day_tokens"])
    if "month_tokens" in caps:
        levels["tokens_per_month"] = (state.month_tokens, caps["month_tokens"])
    if "day_usd_micros" in caps:
        levels["usd_per_day"] = (state.day_usd_micros, caps["day_usd_micros"])
    if "month_usd_micros" in caps:
        levels["usd_per_month"] = (state.month_usd_micros, caps["month_usd_micros"])
    return {name: (value / most if most else float(value > 0)) for name, (value, most) in levels.items()}


class Levels:
    """How much of their limits the tenants use, read from the store now and then.

    Args:
        repository: The tenants.
        ledger: The ledger.
        gateway: The limits of the gateway as a whole.
    """

    def __init__(self, repository: TenantRepository, ledger: LedgerClient, gateway: Limits) -> None:
        self._repository = repository
        self._ledger = ledger
        self._gateway = gateway
        self.rows: list[tuple[Mapping[str, str], float]] = []

    async def refresh(self) -> None:
        """Read the use of the first hundred tenants with limits.

        Raises:
            StoreError: the store failed; the rows are as they were.
        """
        rows: dict[tuple[str, str, str, str], float] = {}
        limited = [
            t for t in self._repository.directory.all() if any(s.caps for s in all_scopes(t, self._gateway).scopes)
        ]
        for tenant in limited[:MOST_TENANTS]:
            target = all_scopes(tenant, self._gateway)
            result = await self._ledger.look(target)
            for scope, state in zip(target.scopes, result.scopes, strict=True):
                owner = "" if scope.kind == "gateway" else tenant.id
                for limit, ratio in used(state, scope.caps).items():
                    rows[owner, str(scope.kind), scope.name if scope.kind != "tenant" else "", limit] = ratio
        self.rows = [
            (
                {
                    name: value
                    for name, value in zip(
                        ("pointsman.tenant", "pointsman.scope", "pointsman.scope.name", "pointsman.limit"),
                        key,
                        strict=True,
                    )
                    if value
                },
                ratio,
            )
            for key, ratio in rows.items()
        ]


def instrument(meter: Meter, levels: Levels, counts: Counts, waiting: Callable[[], int]) -> None:
    """Let the meter read the levels and counts."""

    def refused() -> Iterator[tuple[Mapping[str, str], float]]:
        for why, count in counts.refused.items():
            yield {"pointsman.reason": str(why)}, count

    observe(meter, "pointsman.quota.used", lambda: levels.rows, "How much of a limit is used, 0 to 1.")
    observe(meter, "pointsman.quota.refused", refused, "Requests refused, by limit.", unit="{request}", kind="counter")
    observe(
        meter,
        "pointsman.quota.admitted",
        lambda: [({}, counts.admitted)],
        "Requests admitted.",
        unit="{request}",
        kind="counter",
    )
    observe(
        meter, "pointsman.quota.waiting", lambda: [({}, waiting())], "Requests queued.", unit="{request}", kind="updown"
    )
