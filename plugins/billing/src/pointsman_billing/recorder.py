"""Writes bills to the outbox, and announces what was spent once they are committed."""

from __future__ import annotations

import asyncio
import logging
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from cachetools import FIFOCache

from pointsman.events import BudgetSpent
from pointsman.store.sqlite import unhurried

from .errors import OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .bill import Bill
    from .outbox import Outbox

log: Final = logging.getLogger("pointsman.billing")

#: Request ids whose announcement this worker remembers until the outbox has noted it.
_MOST_REMEMBERED: Final = 2_000
#: How long announcements are collected before they are noted, and then wait for other work, in seconds: it costs a commit.
_NOTE_S: Final = 0.25


class Recorder:
    """Records bills, each once.

    Args:
        outbox: Where they are written.
        publish: Announces an event to the other plugins; None: nothing is announced.
        on_events: Called when there are new events to deliver.
        holder: This worker, if bills of settlements are held until they are final; None: they count at once.

    Attributes:
        recorded: Bills written by this worker.
        refused: Writes that the outbox did not take.
        implausible_amounts: Attempts whose price or margin results in an impossible amount.
        trouble: Why the last write failed; empty when it succeeded.
    """

    def __init__(
        self,
        outbox: Outbox,
        publish: Callable[[BudgetSpent], None] | None,
        on_events: Callable[[], None],
        holder: str | None = None,
    ) -> None:
        self._outbox = outbox
        self._publish = publish
        self._on_events = on_events
        self._holder = holder
        self._announced: FIFOCache[str, None] = FIFOCache(_MOST_REMEMBERED)
        self._unnoted: list[str] = []
        self._noting: asyncio.TimerHandle | None = None
        self.recorded = self.refused = self.implausible_amounts = 0
        self.trouble = ""

    async def record(self, bills: Sequence[Bill], *, settled: bool, own: bool = False) -> None:
        """Write bills down and announce what was spent.

        Args:
            bills: The bills.
            settled: Whether they are the settlement of a request that was attempted: it is announced even when nothing
                is owed for it.
            own: Whether they are own calls, which no other worker takes over.

        Raises:
            OutboxUnavailable: they were not written.
        """
        try:
            unannounced = await self._outbox.append(bills, holder=None if own else self._holder)
        except OutboxUnavailable as err:
            self.refused += 1
            self.trouble = str(err)
            raise
        self.trouble = ""
        if any(bill.events for bill in bills):
            self._on_events()
        new = [bill for bill, first in zip(bills, unannounced, strict=True) if first]
        self.recorded += len(new)
        for bill in new:
            if bill.refused:
                self.implausible_amounts += bill.refused
                for line in filter(attrgetter("refused"), bill.lines):
                    log.error(
                        "request %s: model %r at deployment %r (%s) would cost %s US dollars, which cannot be, so it is "
                        "unpriced; correct the price of the model, or `prices` and `margins` of billing",
                        bill.request_id,
                        line.model_served,
                        line.deployment,
                        line.provider,
                        line.impossible,
                    )
        if self._publish is not None:
            self._announce(new, self._publish, settled=settled)

    def _announce(self, bills: Sequence[Bill], publish: Callable[[BudgetSpent], None], *, settled: bool) -> None:
        # The outbox knows what was announced before, except for announcements that it has not noted yet.
        fresh = [bill for bill in bills if bill.request_id not in self._announced]
        for bill in fresh:
            self._announced[bill.request_id] = None
            if bill.lines or (settled and not bill.own):
                publish(
                    BudgetSpent(
                        tenant=bill.tenant,
                        cost_usd_micros=bill.amount_usd_micros,
                        amount_usd=bill.amount_usd,
                        at=bill.at_ms / 1000,
                        request_id=bill.request_id,
                        settled=not bill.own,
                    )
                )
        if fresh and self._noting is None:
            self._noting = asyncio.get_running_loop().call_later(_NOTE_S, self.note_announced)
        self._unnoted += (bill.request_id for bill in fresh)

    def note_announced(self) -> None:
        """Let the outbox note everything announced lately, in its next transaction.

        What a crash leaves without this note is announced again when its settlement comes again; a shutdown leaves nothing.
        """
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        noted, self._unnoted = self._unnoted, []
        if noted:
            with unhurried(_NOTE_S):
                self._outbox.write_soon(lambda db: db.announced(noted))
