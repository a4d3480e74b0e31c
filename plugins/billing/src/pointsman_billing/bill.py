"""From what became of a request to what is owed for it. Pure functions.

An attempt is billed when tokens are known for it, or when it succeeded without a word about them: then nobody can say
what it cost, and that is on record too. What failed without using anything, and what the gateway's own cache answered,
is not billed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from pointsman.types import Attempt, Outcome, Price, RequestContext, Settlement, Usage

from . import events, money
from .events import BillEvent
from .words import clean

BILLED: Final = "billed"
UNPRICED: Final = "unpriced"
FREE: Final = "free"

#: A provider that reports more is mistaken; the tokens then count as unknown.
MOST_TOKENS: Final = 10**10

_FAILED: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What an attempt is charged by.

    Attributes:
        price: Unit prices; the one for the size of its prompt is taken.
        source: Where they are from: ``gateway`` or ``config``.
        margin_ratio: What is added for the tenant: 0.2 is a fifth more, -1 is for nothing.
        trust_gateway: Take the gateway's own figure for the cost, where there is one.
    """

    price: Price
    source: str = "gateway"
    margin_ratio: Decimal = Decimal(0)
    trust_gateway: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The figures of one billed attempt.

    Attributes:
        at_ms: Unix milliseconds: when it ended.
        kind: Why it was made.
        usage: Its tokens, None when unknown.
        gateway_usd_micros: The gateway's own figure for its cost, or None.
        cost_usd_micros: What it cost, None when no price is known or what it gives cannot be true.
        amount_usd_micros: What the tenant pays, None as above.
        refused: Whether it has a price, which gives something that cannot be true.
        difference_usd_micros: By how much the cost at the gateway's prices exceeds the gateway's own figure; 0 where the
            two cannot be compared.
    """

    at_ms: int
    kind: str
    usage: Usage | None
    gateway_usd_micros: int | None
    cost_usd_micros: int | None
    amount_usd_micros: int | None
    refused: bool = False
    difference_usd_micros: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What is owed for one client request, or for one call of our own.

    Attributes:
        request_id: Which.
        own: Whether it is a call of our own.
        tenant: Who pays.
        model: The model asked for.
        at_ms: Unix milliseconds: when it ended.
        state: ``billed``, ``unpriced`` (nobody can say what something in it costs) or ``free`` (nothing is owed).
        lines: The attempts in it.
        events: What is delivered.
    """

    request_id: str
    own: bool
    tenant: str
    model: str
    at_ms: int
    state: str
    lines: tuple[Line, ...] = ()
    events: tuple[BillEvent, ...] = ()

    @property
    def cost_usd_micros(self) -> int:
        """The sum of what is known."""
        return sum(line.cost_usd_micros or 0 for line in self.lines)

    @property
    def amount_usd_micros(self) -> int:
        """The sum of what is known."""
        return sum(line.amount_usd_micros or 0 for line in self.lines)

    @property
    def gateway_usd_micros(self) -> int:
        """The sum of what is known."""
        return sum(line.gateway_usd_micros or 0 for line in self.lines)

    @property
    def refused(self) -> int:
        """How many of its attempts have a price that gives something that cannot be true."""
        return sum(line.refused for line in self.lines)

    @property
    def difference_usd_micros(self) -> int:
        """The sum over all that can be compared."""
        return sum(line.difference_usd_micros for line in self.lines)


QuoteOf = Callable[[Attempt], Quote]


def of_settlement(settlement: Settlement, tenant: str, quote_of: QuoteOf) -> Bill:
    """Return the bill of a client request.

    Args:
        settlement: What became of it.
        tenant: Who pays.
        quote_of: What each attempt is charged by.
    """
    about = _About(
        request_id=settlement.request_id,
        tenant=tenant,
        model=clean(settlement.model),
        endpoint=str(settlement.endpoint),
        stream=settlement.stream,
    )
    billed = [_attempt(about, attempt, quote_of(attempt)) for attempt in settlement.attempts if is_billable(attempt)]
    at_ms = _ms(settlement.finished_at)
    return Bill(
        request_id=settlement.request_id,
        own=False,
        tenant=tenant,
        model=about.model,
        at_ms=at_ms,
        state=_state(billed),
        lines=tuple(made.line for made in billed),
        events=(*(made.event for made in billed), *([_request(about, settlement, billed, at_ms)] if billed else [])),
    )


def of_own_call(ctx: RequestContext, attempt: Attempt, tenant: str, quote: Quote) -> Bill | None:
    """Return the bill of a call of our own, or None when there is nothing to bill."""
    if not is_billable(attempt):
        return None
    about = _About(
        request_id=ctx.request_id,
        tenant=tenant,
        model=clean(ctx.model),
        endpoint=str(ctx.endpoint),
        stream=ctx.stream,
    )
    made = _attempt(about, attempt, quote)
    return Bill(
        request_id=ctx.request_id,
        own=True,
        tenant=tenant,
        model=about.model,
        at_ms=made.line.at_ms,
        state=_state([made]),
        lines=(made.line,),
        events=(made.event,),
    )


def is_billable(attempt: Attempt) -> bool:
    """Say whether an attempt is written down."""
    if attempt.cached:
        return False
    cost, usage = attempt.cost_usd_micros, attempt.usage
    if attempt.outcome is Outcome.OK:
        return usage is None or usage.total_tokens > 0 or bool(cost)
    if attempt.first_token_ms is None and (attempt.status_code or 0) >= _FAILED:
        # The provider answered with an error instead of an answer: whatever it counted is not charged.
        return False
    return usage is not None and usage.total_tokens > 0


def believable(usage: Usage | None) -> Usage | None:
    """Return the usage, or None for one that cannot be true."""
    if usage is None or any(not 0 <= getattr(usage, name) <= MOST_TOKENS for name in events.USAGE_FIELDS):
        return None
    return usage


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What all events of a request say."""

    request_id: str
    tenant: str
    model: str
    endpoint: str
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A billed attempt: its figures, its exact amount, its event."""

    line: Line
    cost_usd: Decimal | None
    amount_usd: Decimal | None
    event: BillEvent


def _attempt(about: _About, attempt: Attempt, quote: Quote) -> _Made:
    usage = believable(attempt.usage)
    gateway_cost = attempt.cost_usd_micros
    if gateway_cost is not None and not 0 <= gateway_cost <= money.MOST_USD_MICROS:
        gateway_cost = None
    price = quote.price.at(usage.prompt_tokens if usage is not None else 0)
    by_prices = usage is not None and usage.total_tokens > 0 and money.cost_usd(usage, price) is not None
    from_gateway = gateway_cost is not None and (quote.trust_gateway or not by_prices)
    amount, costs = events.cost_fields(
        usage=usage,
        price=price,
        basis=events.BY_GATEWAY if from_gateway else events.BY_PRICES,
        gateway_cost_usd_micros=gateway_cost,
        margin_ratio=quote.margin_ratio,
    )
    kind, at_ms = str(attempt.kind), _ms(attempt.started_at + (attempt.duration_ms or 0.0) / 1000)
    made_id = events.event_id(about.tenant, about.request_id, attempt.number, kind)
    deployment, labels = attempt.deployment, attempt.labels
    fields: dict[str, object] = {
        "id": made_id,
        "schema": events.SCHEMA,
        "type": events.ATTEMPT,
        "tenant_id": about.tenant,
        "request_id": about.request_id,
        "attempt": attempt.number,
        "kind": kind,
        "attempts": 1,
        "endpoint": about.endpoint,
        "stream": about.stream,
        "model": about.model,
        "model_served": clean(attempt.model or deployment.model),
        "group": clean(deployment.group),
        "deployment": clean(deployment.id),
        "provider": clean(deployment.provider),
        "version": _label(labels.get("version")),
        "version_id": _label(labels.get("version_id")),
        "experiment": _label(labels.get("experiment")),
        "arm": _label(labels.get("arm")),
        "status": str(attempt.outcome),
        "status_code": attempt.status_code,
        **events.usage_fields(usage),
        "metering": _metering(usage),
        "started_at_ms": _ms(attempt.started_at),
        "finished_at_ms": at_ms,
        "timestamp": at_ms // 1000,
        "price_source": quote.source,
        "prices": events.price_fields(price),
        **costs,
    }
    cost, cost_micros = costs["cost_usd"], _int(costs["cost_usd_micros"])
    comparable = quote.source == "gateway" and gateway_cost is not None and cost_micros is not None
    line = Line(
        at_ms=at_ms,
        kind=kind,
        usage=usage,
        gateway_usd_micros=gateway_cost,
        cost_usd_micros=cost_micros,
        amount_usd_micros=_int(costs["amount_usd_micros"]),
        refused=amount is None and (from_gateway or by_prices),
        difference_usd_micros=(cost_micros or 0) - (gateway_cost or 0) if comparable else 0,
    )
    event = BillEvent(id=made_id, type=events.ATTEMPT, tenant=about.tenant, at_ms=at_ms, body=events.encode(fields))
    return _Made(line=line, cost_usd=None if cost is None else Decimal(str(cost)), amount_usd=amount, event=event)


def _request(about: _About, settlement: Settlement, billed: Sequence[_Made], at_ms: int) -> BillEvent:
    """Return the event of the request as a whole: the tokens of the answer that the client got, and all that it cost."""
    answer = next((a for a in reversed(settlement.attempts) if a.outcome is Outcome.OK), None)
    usage = believable(settlement.usage)
    labels = settlement.labels
    costs, amounts = _sum([m.cost_usd for m in billed]), _sum([m.amount_usd for m in billed])
    kind = events.REQUEST
    made_id = events.event_id(about.tenant, about.request_id, 0, kind)
    gateway = [m.line.gateway_usd_micros for m in billed]
    fields: dict[str, object] = {
        "id": made_id,
        "schema": events.SCHEMA,
        "type": events.REQUEST,
        "tenant_id": about.tenant,
        "request_id": about.request_id,
        "attempt": 0,
        "kind": kind,
        "attempts": len(settlement.attempts),
        "endpoint": about.endpoint,
        "stream": about.stream,
        "model": about.model,
        "model_served": None if answer is None else clean(answer.model or answer.deployment.model),
        "group": None if answer is None else clean(answer.deployment.group),
        "deployment": None if answer is None else clean(answer.deployment.id),
        "provider": None if answer is None else clean(answer.deployment.provider),
        "version": _label(labels.get("version")),
        "version_id": _label(labels.get("version_id")),
        "experiment": _label(labels.get("experiment")),
        "arm": _label(labels.get("arm")),
        "status": str(settlement.outcome),
        "status_code": settlement.status_code,
        **events.usage_fields(usage),
        "metering": _metering(usage),
        "started_at_ms": _ms(settlement.started_at),
        "finished_at_ms": at_ms,
        "timestamp": at_ms // 1000,
        "price_source": None,
        "prices": None,
        "cost_basis": None if costs is None else events.BY_SUM,
        "gateway_cost_usd_micros": None if None in gateway else sum(cost or 0 for cost in gateway),
        "cost_usd": None if costs is None else money.text(costs),
        # Sums of the attempts' own integers, so that the parts add up to the whole.
        "cost_usd_micros": None if costs is None else sum(m.line.cost_usd_micros or 0 for m in billed),
        "margin_ratio": None,
        "amount_usd": None if amounts is None else money.text(amounts),
        "amount_usd_micros": None if amounts is None else sum(m.line.amount_usd_micros or 0 for m in billed),
    }
    return BillEvent(id=made_id, type=kind, tenant=about.tenant, at_ms=at_ms, body=events.encode(fields))


def _sum(parts: Sequence[Decimal | None]) -> Decimal | None:
    total = Decimal(0)
    for part in parts:
        if part is None:
            return None
        total = money.CONTEXT.add(total, part)
    return total


def _state(billed: Sequence[_Made]) -> str:
    if any(made.amount_usd is None for made in billed):
        return UNPRICED
    return BILLED if any(made.amount_usd for made in billed) else FREE


def _metering(usage: Usage | None) -> str:
    if usage is None:
        return events.MISSING
    return events.ESTIMATED if usage.estimated else events.EXACT


def _label(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
