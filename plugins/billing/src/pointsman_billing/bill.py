"""From a settlement to a bill: what is owed for a request. Pure functions.

An attempt is billed when its tokens are known, or when its provider answered without reporting them: then its cost is
unknown, which is recorded too, also where the gateway could not read the answer. Attempts that the provider refused, and
answers from the gateway's own cache, are not billed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from pointsman.pricing import uses_tools
from pointsman.types import Attempt, Endpoint, Outcome, RequestContext, Settlement, Usage

from . import events, pricing, reconciliation
from .events import BillEvent, storable
from .pricing import Quote

if TYPE_CHECKING:
    from pointsman.types import Price

BILLED: Final = "billed"
UNPRICED: Final = "unpriced"
FREE: Final = "free"

#: A provider that reports more is mistaken; the tokens then count as unknown.
MOST_TOKENS: Final = 10**10

_FAILED: Final = 400
#: LiteLLM logs no cost of these streams when their clients leave, also where content has come.
_UNLOGGED_WHEN_LEFT: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.GENERATE_CONTENT})
_COUNTS: Final = tuple(field.name for field in fields(Usage) if field.type in {"int", "int | None"})
_counts = attrgetter(*_COUNTS)
_MOST_NAMED: Final = 4
_VERSIONS: Final = ("version", "version_id", "experiment", "arm")
_UNSERVED: Final[Mapping[str, None]] = dict.fromkeys(("model_served", "group", "deployment", "provider"))
_MOST_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The figures of one billed attempt.

    Attributes:
        at_ms: Unix milliseconds: when it ended.
        kind: The kind of attempt.
        usage: What it used, None when unknown.
        model_served: The model that answered.
        deployment: The deployment's id.
        provider: The provider.
        version: The registry's version, empty without one.
        experiment: The experiment, empty without one.
        arm: Its arm, empty without one.
        priced_usd: Our own figure, by prices or by the provider's own, None when unknown.
        gateway_usd: What the gateway has computed and logged itself, or None.
        cost_usd: What it cost, exactly; None when no figure is known or the result cannot be true.
        amount_usd: What the tenant pays, exactly; None as above.
        refused: Whether it has a price that results in an impossible amount.
        impossible: That amount, in US dollars, as text; empty where there is none.
        finding: What comparing our figure with the gateway's shows, see ``reconciliation``.
    """

    at_ms: int
    kind: str
    usage: Usage | None
    model_served: str
    deployment: str
    provider: str
    version: str
    experiment: str
    arm: str
    priced_usd: Decimal | None
    gateway_usd: Decimal | None
    cost_usd: Decimal | None
    amount_usd: Decimal | None
    refused: bool = False
    impossible: str = ""
    finding: str = reconciliation.AGREES


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What is owed for one client request, or for one own call.

    Attributes:
        request_id: The request.
        own: Whether it is an own call of the gateway.
        tenant: The paying tenant.
        key: A name of the caller's API key, empty when it is unknown.
        model: The requested model.
        endpoint: The kind of API.
        at_ms: Unix milliseconds: when it ended.
        state: ``billed``, ``unpriced`` (the cost of an attempt in it is unknown) or ``free`` (nothing is owed).
        lines: The attempts in it.
        events: The events to deliver.
    """

    request_id: str
    own: bool
    tenant: str
    key: str
    model: str
    endpoint: str
    at_ms: int
    state: str
    lines: tuple[Line, ...] = ()
    events: tuple[BillEvent, ...] = ()

    @property
    def cost_usd(self) -> Decimal:
        """The sum of the known amounts."""
        return pricing.total(line.cost_usd for line in self.lines)

    @property
    def amount_usd(self) -> Decimal:
        """The sum of the known amounts."""
        return pricing.total(line.amount_usd for line in self.lines)

    @property
    def cost_usd_micros(self) -> int:
        """The sum, rounded once."""
        return pricing.micros(self.cost_usd)

    @property
    def amount_usd_micros(self) -> int:
        """The sum, rounded once."""
        return pricing.micros(self.amount_usd)

    @property
    def gateway_usd(self) -> Decimal:
        """The sum of the known amounts."""
        return pricing.total(line.gateway_usd for line in self.lines)

    @property
    def difference_usd(self) -> Decimal:
        """By how much our own figures exceed the gateway's, over the attempts where both are known."""
        return pricing.total(
            line.priced_usd - line.gateway_usd
            for line in self.lines
            if line.priced_usd is not None and line.gateway_usd is not None
        )

    @property
    def refused(self) -> int:
        """How many of its attempts have a price that results in an impossible amount."""
        return sum(line.refused for line in self.lines)


QuoteOf = Callable[[Attempt], Quote]


def of_settlement(settlement: Settlement, tenant: str, quote_of: QuoteOf, key: str = "") -> Bill:
    """Return the bill of a client request.

    Args:
        settlement: The settlement of the request.
        tenant: The paying tenant.
        quote_of: Returns the prices and the margin of an attempt.
        key: A name of the caller's API key.
    """
    about = _About(
        request_id=settlement.request_id,
        tenant=tenant,
        key=key,
        model=storable(settlement.model),
        endpoint=str(settlement.endpoint),
        stream=settlement.stream,
        on_connection=settlement.within is not None,
    )
    billed = [
        _attempt(about, attempt, quote_of(attempt))
        for attempt in settlement.attempts
        # What only reads, cancels or counts is not charged, unless a provider says that it used something.
        if is_billable(attempt) and (settlement.generates or attempt.usage is not None)
    ]
    at_ms = _ms(settlement.finished_at)
    return Bill(
        request_id=settlement.request_id,
        own=False,
        tenant=tenant,
        key=key,
        model=about.model,
        endpoint=about.endpoint,
        at_ms=at_ms,
        state=_state(billed),
        lines=tuple(entry.line for entry in billed),
        events=(*(entry.event for entry in billed), *([_request(about, settlement, billed, at_ms)] if billed else [])),
    )


def of_own_call(ctx: RequestContext, attempt: Attempt, tenant: str, quote: Quote, key: str = "") -> Bill | None:
    """Return the bill of an own call, or None when there is nothing to bill."""
    if not is_billable(attempt):
        return None
    about = _About(
        request_id=ctx.request_id,
        tenant=tenant,
        key=key,
        model=storable(ctx.model),
        endpoint=str(ctx.endpoint),
        stream=ctx.stream,
    )
    entry = _attempt(about, attempt, quote)
    return Bill(
        request_id=ctx.request_id,
        own=True,
        tenant=tenant,
        key=key,
        model=about.model,
        endpoint=about.endpoint,
        at_ms=entry.line.at_ms,
        state=_state([entry]),
        lines=(entry.line,),
        events=(entry.event,),
    )


def is_billable(attempt: Attempt) -> bool:
    """Return whether an attempt is recorded."""
    if attempt.cached:
        return False
    used = attempt.usage is not None and not attempt.usage.is_empty
    if attempt.outcome is Outcome.OK or attempt.unread:
        return attempt.usage is None or used or bool(attempt.gateway_cost_usd)
    if attempt.first_token_ms is None and (attempt.status_code or 0) >= _FAILED and not attempt.cut:
        # An error instead of an answer, of which an estimate is not charged. What the provider has counted itself is.
        return used and attempt.usage is not None and attempt.usage.raw is not None
    return used


def plausible_usage(usage: Usage | None) -> Usage | None:
    """Return the usage, or None if it cannot be true."""
    if usage is None:
        return None
    for count in _counts(usage):
        if count and not 0 <= count <= MOST_TOKENS:
            return None
    for part in usage.parts:
        if plausible_usage(part) is None:
            return None
    return usage


def implausible_counts(usage: Usage) -> str:
    """Return the counts that cannot be true, with their names."""
    wrong = [
        f"{name} {count:,}"
        for one in (usage, *usage.parts)
        for name in _COUNTS
        if (count := getattr(one, name)) and not 0 < count <= MOST_TOKENS
    ]
    return ", ".join(wrong[:_MOST_NAMED])


class _About(NamedTuple):
    """The fields that all events of a request share."""

    request_id: str
    tenant: str
    key: str
    model: str
    endpoint: str
    stream: bool
    on_connection: bool = False


class _Billed(NamedTuple):
    """A billed attempt: its figures and its event, and the parts of it that the event of its request may have too.

    Attributes:
        attempt: The attempt.
        line: Its figures.
        event: Its event.
        served: The event's fields about what has served it.
        counts: The event's fields about its usage.
        money: The event's last fields.
    """

    attempt: Attempt
    line: Line
    event: BillEvent
    served: Mapping[str, str]
    counts: Mapping[str, object]
    money: Mapping[str, object]


def _attempt(about: _About, attempt: Attempt, quote: Quote) -> _Billed:
    usage = plausible_usage(attempt.usage)
    gateway_cost = pricing.plausible_usd(attempt.gateway_cost_usd)
    price = pricing.in_force(quote.price, usage)
    parts: tuple[Price, ...] = ()
    if usage is not None and quote.parts:
        parts = tuple(map(pricing.in_force, quote.parts, usage.parts))
    by_prices = pricing.cost_usd(usage, price, parts)
    # No usage and a cost: the provider has not said what it charged for.
    priced = None if usage is not None and usage.is_empty else by_prices
    by_provider = _by_provider(usage, quote)
    ours = pricing.plausible_usd(usage.provider_cost_usd if by_provider and usage is not None else priced)
    finding = reconciliation.finding(
        usage,
        quote,
        ours,
        gateway_cost,
        plausible_usage(attempt.gateway_usage),
        gateway_base_usd=pricing.plausible_usd(attempt.gateway_base_usd),
        finished=attempt.outcome is Outcome.OK,
        cut=attempt.cut,
        on_connection=about.on_connection,
        left=attempt.outcome is Outcome.DISCONNECTED
        and (attempt.first_token_ms is None or about.endpoint in _UNLOGGED_WHEN_LEFT),
    )
    trusted = quote.trust_gateway and finding not in reconciliation.IGNORANT
    # The gateway has charged for counts that cannot be.
    incredible = usage is None and attempt.usage is not None
    partly = incredible or (priced is None and usage is not None and not usage.is_empty and _leaves_out(usage, quote))
    basis = _basis(priced, None if partly else gateway_cost, trusted=trusted, by_provider=by_provider)
    cost, amount, costs = events.cost_fields(
        usage=usage,
        by_prices=by_prices,
        basis=basis,
        gateway_cost_usd=gateway_cost,
        margin_ratio=quote.margin_ratio,
    )
    refused = amount is None and (basis != events.BY_PRICES or priced is not None)
    figures = {
        events.BY_PRICES: by_prices,
        events.BY_GATEWAY: attempt.gateway_cost_usd,
        events.BY_PROVIDER: None if usage is None else usage.provider_cost_usd,
    }
    kind, at_ms = str(attempt.kind), _ms(attempt.started_at + (attempt.duration_ms or 0.0) / 1000)
    id_ = events.event_id(about.tenant, about.request_id, attempt.number, kind)
    served, versions, counts = _served(attempt), _versions(attempt.labels), _counts_fields(usage)
    fields: dict[str, object] = {
        "id": id_,
        "schema": events.SCHEMA,
        "type": events.ATTEMPT,
        "tenant_id": about.tenant,
        "key": about.key or None,
        "request_id": about.request_id,
        "attempt": attempt.number,
        "kind": kind,
        "attempts": 1,
        "endpoint": about.endpoint,
        "stream": about.stream,
        "model": about.model,
        **served,
        **versions,
        "status": str(attempt.outcome),
        "status_code": attempt.status_code,
        **counts,
        "started_at_ms": _ms(attempt.started_at),
        "finished_at_ms": at_ms,
        "timestamp": at_ms // 1000,
        "price_source": quote.source,
        "prices": events.price_fields(price, parts),
        **costs,
    }
    line = Line(
        at_ms=at_ms,
        kind=kind,
        usage=usage,
        model_served=served["model_served"],
        deployment=served["deployment"],
        provider=served["provider"],
        version=versions["version"] or "",
        experiment=versions["experiment"] or "",
        arm=versions["arm"] or "",
        priced_usd=ours,
        gateway_usd=gateway_cost,
        cost_usd=cost,
        amount_usd=amount,
        refused=refused,
        impossible=_digits(figures[basis], quote.margin_ratio) if refused else "",
        finding=finding,
    )
    event = BillEvent(id=id_, type=events.ATTEMPT, tenant=about.tenant, at_ms=at_ms, body=events.encode(fields))
    return _Billed(attempt=attempt, line=line, event=event, served=served, counts=counts, money=costs)


def _served(attempt: Attempt) -> dict[str, str]:
    """Return an event's fields about what has served an attempt."""
    deployment = attempt.deployment
    return {
        "model_served": storable(attempt.model or deployment.model),
        "group": storable(deployment.group),
        "deployment": storable(deployment.id),
        "provider": storable(deployment.provider),
    }


def _versions(labels: Mapping[str, str]) -> dict[str, str | None]:
    """Return an event's fields about versions and experiments."""
    return {name: storable(labels[name]) if name in labels else None for name in _VERSIONS}


def _counts_fields(usage: Usage | None) -> dict[str, object]:
    """Return an event's fields about a usage."""
    return {**events.usage_fields(usage), "metering": events.metering_of(usage)}


def _digits(cost: Decimal | None, margin_ratio: Decimal) -> str:
    """Return what a tenant would pay for a cost, however large."""
    if cost is None:
        return ""
    amount = pricing.with_margin(cost, margin_ratio)
    return f"{amount:,.0f}" if amount.adjusted() < _MOST_DIGITS else f"{amount:.3g}"


def _leaves_out(usage: Usage, quote: Quote) -> bool:
    """Return whether the gateway's figure is without something that has no price: it adds up what it has prices for."""
    if usage.parts and not any(part.is_part for part in usage.parts):
        # The tries of a provider's SDK, of which the gateway has seen the last.
        return True
    beside_tools = usage.total_tokens > 0 and uses_tools(usage)
    # Where the model answered, tokens may have no price though they have one elsewhere.
    usual = quote.price if quote.configured is None else quote.configured
    priced = pricing.has_token_price(quote.price) or pricing.has_token_price(usual)
    return priced or beside_tools or reconciliation.by_own_key(usage)


def _by_provider(usage: Usage | None, quote: Quote) -> bool:
    """Return whether what the provider itself says that it charges is our figure."""
    may_replace = quote.source == "gateway" and not quote.price.configured
    return may_replace and usage is not None and usage.provider_cost_usd is not None


def _basis(priced: Decimal | None, gateway_cost: Decimal | None, *, trusted: bool, by_provider: bool) -> str:
    """Return which figure is the cost of an attempt.

    The gateway's zero counts only where our own prices result in zero, too: it logs zero for a model that it does not
    know.
    """
    by_gateway = gateway_cost is not None and (gateway_cost > 0 or priced == 0)
    if trusted and by_gateway:
        return events.BY_GATEWAY
    if by_provider:
        return events.BY_PROVIDER
    return events.BY_GATEWAY if priced is None and by_gateway else events.BY_PRICES


def _request(about: _About, settlement: Settlement, billed: Sequence[_Billed], at_ms: int) -> BillEvent:
    """Return the event of the request as a whole: the tokens of the answer that the client got, and all that it cost."""
    answer = next((a for a in reversed(settlement.attempts) if a.outcome is Outcome.OK), None)
    same = next((entry for entry in billed if entry.attempt is answer), None)
    served = _UNSERVED if answer is None else _served(answer) if same is None else same.served
    if same is not None and settlement.usage is same.attempt.usage:
        counts = same.counts
    else:
        counts = _counts_fields(plausible_usage(settlement.usage))
    kind = events.REQUEST
    id_ = events.event_id(about.tenant, about.request_id, 0, kind)
    fields: dict[str, object] = {
        "id": id_,
        "schema": events.SCHEMA,
        "type": events.REQUEST,
        "tenant_id": about.tenant,
        "key": about.key or None,
        "request_id": about.request_id,
        "attempt": 0,
        "kind": kind,
        "attempts": len(settlement.attempts),
        "endpoint": about.endpoint,
        "stream": about.stream,
        "model": about.model,
        **served,
        **_versions(settlement.labels),
        "status": str(settlement.outcome),
        "status_code": settlement.status_code,
        **counts,
        "started_at_ms": _ms(settlement.started_at),
        "finished_at_ms": at_ms,
        "timestamp": at_ms // 1000,
        "price_source": None,
        "prices": None,
        **_money(billed),
    }
    return BillEvent(id=id_, type=kind, tenant=about.tenant, at_ms=at_ms, body=events.encode(fields))


def _money(billed: Sequence[_Billed]) -> Mapping[str, object]:
    """Return the last fields of a request's event: the sums over its attempts."""
    if len(billed) == 1:
        basis = None if billed[0].line.cost_usd is None else events.BY_SUM
        return {**billed[0].money, "cost_basis": basis, "margin_ratio": None}
    lines = [entry.line for entry in billed]
    cost, amount = _sum([line.cost_usd for line in lines]), _sum([line.amount_usd for line in lines])
    gateway = _sum([line.gateway_usd for line in lines])
    return events.money_fields(None if cost is None else events.BY_SUM, gateway, cost, None, amount)


def _sum(parts: Sequence[Decimal | None]) -> Decimal | None:
    return None if None in parts else pricing.total(parts)


def _state(billed: Sequence[_Billed]) -> str:
    amounts = [entry.line.amount_usd for entry in billed]
    if None in amounts:
        return UNPRICED
    return BILLED if any(amounts) else FREE


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
