"""What status and routes show."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pointsman.types import Status

from .ledger import LEVEL_UNIT, PICOS, held

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman.plugin import OnFailure

    from .admission import Counts
    from .ledger import Caps, ScopeState
    from .ledger_client import LedgerClient
    from .queue import FairQueue
    from .repository import TenantRepository
    from .restoring import Loss
    from .settlement import Accounts
    from .tenants import Tenant

#: A month at most.
_LONGEST_PERIOD_S: Final = 31 * 86_400


def status(
    *,
    admission: Counts,
    loss: Loss | None,
    now: float,
    accounts: Accounts,
    ledger: LedgerClient,
    repository: TenantRepository,
    queue: FairQueue,
    uncountable_prompts: int,
    unpriced: Sequence[str],
    on_failure: OnFailure,
) -> Status:
    """Return the plugin's status.

    Args:
        admission: What admission did.
        loss: When the store lost what budgets had spent, and what has become of it, or None.
        now: Unix seconds.
        accounts: The open reservations and what was spent.
        ledger: The state of the store.
        repository: The tenants.
        queue: The queue.
        uncountable_prompts: Prompts whose tokens the tokenizer could not count.
        unpriced: Problems of models without a price.
        on_failure: The configured policy while the store is down.
    """
    refused = sum(admission.refused.values())
    problems = [*repository.problems, *unpriced]
    if (missing := repository.missing_default) is not None:
        problems.append(missing)
    if loss is not None and not loss.answered and now - loss.at < _LONGEST_PERIOD_S:
        at, since = (datetime.fromtimestamp(one, UTC).isoformat(timespec="seconds") for one in (loss.at, loss.since))
        problems.append(
            (
                f"the store went back at {at} to what it had at {since}: budgets miss what was spent in between"
                if loss.since
                else f"the store was emptied at {at}: budgets of that day and month began again at 0"
            )
            + ", since no plugin knows what had been spent (billing does)"
        )
    if (set_back_at := ledger.set_back_at) is not None and now - set_back_at < _LONGEST_PERIOD_S:
        at = datetime.fromtimestamp(set_back_at, UTC).isoformat(timespec="seconds")
        problems.append(
            f"the clock was set back to an earlier day at {at}: budgets of that day and month may miss what had been spent before "
            "it was wrong"
        )
    if ledger.store_is_down:
        problems.append(
            "the store is down: "
            + ("each worker counts by itself" if on_failure == "allow" else "requests are refused")
        )
    tenants = len(repository.directory)
    return Status(
        ok=not problems,
        summary="; ".join(problems) or f"{tenants} tenants, {admission.admitted} requests admitted, {refused} refused",
        details={
            "tenants": tenants,
            "admitted": admission.admitted,
            "exempt": admission.exempt,
            "refused": dict(admission.refused),
            "would_refuse": dict(admission.would_refuse),
            "in_flight": len(accounts.reservations),
            "waiting": queue.waiting(),
            "queue": {"admitted": queue.admitted, "gave_up": queue.gave_up, "turned_away": queue.turned_away},
            "store_failures": ledger.store_failures,
            "counted_locally": ledger.local_steps,
            "uncountable_prompts": uncountable_prompts,
            "odd_settlements": accounts.implausible,
            "budget_events": accounts.announcements,
            "unannounced": accounts.cost_events.missed,
            "unspent": len(accounts.unspent),
            "restored": None if loss is None else {"lost_at": loss.at, "known": loss.answered, "spendings": loss.rows},
            "problems": problems,
        },
    )


def tenant(shown: Tenant, source: str) -> dict[str, object]:
    """Return a tenant as it is configured, and where it comes from: ``config`` or ``store``."""
    return {**shown.model_dump(mode="json", exclude_none=True), "source": source}


def usd(micros: int, picos: int) -> str:
    """Return an amount in US dollars as a decimal number, exactly."""
    return f"{(Decimal(micros) + Decimal(picos) / PICOS) / 1_000_000:f}"


def usage(state: ScopeState, caps: Caps) -> dict[str, object]:
    """Return what a scope has used and what is left of its rates."""
    requests, tokens, usd_picos = held(state)
    shown: dict[str, object] = {
        "requests_in_flight": requests,
        "reserved_tokens": tokens,
        "reserved_usd_micros": -(-usd_picos // PICOS),
        "reserved_usd": usd(*divmod(usd_picos, PICOS)),
        "day_tokens": state.day_tokens,
        "day_usd_micros": state.day_usd_micros,
        "day_usd": usd(state.day_usd_micros, state.day_usd_picos),
        "month_tokens": state.month_tokens,
        "month_usd_micros": state.month_usd_micros,
        "month_usd": usd(state.month_usd_micros, state.month_usd_picos),
    }
    if "requests" in caps:
        shown["requests_left"] = max(0, caps["requests_burst"] - -(-state.requests // LEVEL_UNIT))
    if "tokens" in caps:
        shown["tokens_left"] = max(0, caps["tokens_burst"] - -(-state.tokens // LEVEL_UNIT) - tokens)
    return shown
