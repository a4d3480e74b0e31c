"""Budgets after the store has lost what they had spent: rebuilt from what another plugin knows of it, such as billing.

What ended before the loss was noticed is in that plugin's sums, what ends later is settled as ever, with or without its
hold. What ended in between and was settled already counts twice: at most the traffic of a few seconds, and never less than
was spent.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from pointsman.events import BudgetsLost, PastSpending, Spender, Spending

from .ledger import MAX_AMOUNT
from .ledger_client import Spent
from .scopes import target_of
from .tenants import Caller, limited_patterns

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.types import Settlement, StoreEmptied

    from .config import QuotaConfig
    from .ledger_client import LedgerClient
    from .repository import TenantRepository
    from .tenants import Tenant

log: Final = logging.getLogger("pointsman.quota")

_NOTHING: Final = Spending()


class _Row(NamedTuple):
    """The spending of one spender that is to be restored."""

    asked: BudgetsLost
    place: str
    spender: Spender
    month: Spending
    day: Spending


@dataclass(slots=True)
class Loss:
    """What became of the latest loss.

    Attributes:
        at: Unix seconds at which it was noticed.
        since: Unix seconds since which what was spent is lost; 0: all of it is.
        answered: Whether another plugin knows what had been spent.
        rows: Spendings that this worker has restored; other workers restore the others.
    """

    at: float
    since: float = 0.0
    answered: bool = False
    rows: int = 0


class Restoration:
    """Asks for what had been spent, and adds it to the budgets once, whichever workers hear of it.

    Args:
        config: The plugin's section.
        ledger: The ledger.
        repository: The tenants.
        publish: Announces an event.

    Attributes:
        loss: The latest loss, or None.
    """

    def __init__(
        self,
        config: QuotaConfig,
        ledger: LedgerClient,
        repository: TenantRepository,
        publish: Callable[[BudgetsLost], None],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._repository = repository
        self._publish = publish
        self._left: deque[_Row] = deque()
        self.loss: Loss | None = None

    def lost(self, event: StoreEmptied) -> None:
        """Ask for what had been spent."""
        self.loss = Loss(event.at, event.since)
        period = self._ledger.period_at(int(event.at * 1000))
        self._publish(
            BudgetsLost(
                life=event.life,
                at=event.at,
                day_began=period.begins_ms / 1000,
                month_began=period.month_begins_ms / 1000,
                since=event.since,
            )
        )

    def lost_hold_of(self, settlement: Settlement) -> bool:
        """Return whether the store may have lost the hold of a request that ended afterwards: it is spent all the same."""
        return self.loss is not None and settlement.started_at <= self.loss.at < settlement.finished_at

    async def heard(self, event: PastSpending) -> None:
        """Restore what is announced.

        Raises:
            StoreError: the store failed; call ``proceed`` later.
        """
        if self.loss is not None:
            self.loss.answered = True
        self._left.extend(
            _Row(event.asked, event.place, spender, month, event.days.get(spender, _NOTHING))
            for spender, month in event.months.items()
        )
        await self.proceed()

    async def proceed(self) -> None:
        """Restore what is left of what was announced.

        Raises:
            StoreError: the store failed; call it again.
        """
        while self._left:
            row = self._left[0]
            tenant = self._repository.directory.get(row.spender.tenant)
            if tenant is not None and (not row.spender.own or self._by_events):
                restored = await self._restore(row, tenant)
                if restored and self.loss is not None:
                    self.loss.rows += 1
            if self._left and self._left[0] is row:
                self._left.popleft()

    @property
    def _by_events(self) -> bool:
        return self._config.money_from == "events"

    async def _restore(self, row: _Row, tenant: Tenant) -> bool:
        spender = row.spender
        key = next((key for key in tenant.keys if f"{tenant.id}/{key.name}" == spender.key), None)
        patterns = () if spender.own else limited_patterns(tenant, (spender.model,))
        target = target_of(Caller(tenant, key), patterns, self._config.gateway_limits)
        whose = "\0".join((row.asked.life, row.place, spender.tenant, spender.key, spender.model, str(spender.own)))
        return await self._ledger.restore(
            target,
            # Names are free text: only a digest is sure to be harmless in a key.
            hashlib.sha256(whose.encode("utf-8", "replace")).hexdigest()[:32],
            int(row.asked.at * 1000),
            self._spent(row.month),
            self._spent(row.day),
        )

    def _spent(self, spending: Spending) -> Spent:
        usd = spending.amount_usd if self._by_events else spending.cost_usd
        return Spent(min(MAX_AMOUNT, spending.tokens), usd)
