"""The billing event: its fields, its identity, and its one form as JSON text. Pure functions.

An event is a JSON object whose fields always stand in the same order, without spaces, ASCII only: the same attempt gives
the same bytes. ``FIELDS`` lists them; the README explains them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from pointsman.types import Price, Usage

from . import money

SCHEMA: Final = 1
ATTEMPT: Final = "attempt"
REQUEST: Final = "request"

#: How the tokens are known. An explicit zero is exact.
EXACT: Final = "exact"
ESTIMATED: Final = "estimated"
MISSING: Final = "missing"

#: What the cost was computed from: unit prices, the gateway's own figure, or (a request's) the sum of its attempts.
BY_PRICES: Final = "prices"
BY_GATEWAY: Final = "gateway"
BY_SUM: Final = "sum"

USAGE_FIELDS: Final = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_prompt_tokens",
    "audio_completion_tokens",
)
PRICE_FIELDS: Final = (
    "input_usd",
    "output_usd",
    "cache_read_usd",
    "cache_write_usd",
    "audio_input_usd",
    "audio_output_usd",
    "reasoning_usd",
)
FIELDS: Final = (
    "id",
    "schema",
    "type",
    "tenant_id",
    "request_id",
    "attempt",
    "kind",
    "attempts",
    "endpoint",
    "stream",
    "model",
    "model_served",
    "group",
    "deployment",
    "provider",
    "version",
    "version_id",
    "experiment",
    "arm",
    "status",
    "status_code",
    *USAGE_FIELDS,
    "metering",
    "started_at_ms",
    "finished_at_ms",
    "timestamp",
    "price_source",
    "prices",
    "cost_basis",
    "gateway_cost_usd_micros",
    "cost_usd",
    "cost_usd_micros",
    "margin_ratio",
    "amount_usd",
    "amount_usd_micros",
)

_ID_BYTES: Final = 16
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class BillEvent:
    """One event, ready to be written down and delivered.

    Attributes:
        id: The same for the same tenant, request, attempt and kind, always.
        type: ``attempt`` or ``request``.
        tenant: Who pays.
        at_ms: Unix milliseconds: when it ended.
        body: The JSON text.
    """

    id: str
    type: str
    tenant: str
    at_ms: int
    body: str


def event_id(tenant: str, request_id: str, attempt: int, kind: str) -> str:
    """Return the event's identity: 32 hexadecimal digits of a hash over what it is about."""
    said = _ENCODE([tenant, request_id, attempt, kind])
    return hashlib.sha256(said.encode("ascii")).hexdigest()[: 2 * _ID_BYTES]


def encode(fields: Mapping[str, object]) -> str:
    """Return the event's JSON text.

    Args:
        fields: Exactly the names of ``FIELDS``, in that order.
    """
    return _ENCODE(fields)


def usage_fields(usage: Usage | None) -> dict[str, int | None]:
    """Return the tokens; each is None when nobody knows."""
    return {name: None if usage is None else getattr(usage, name) for name in USAGE_FIELDS}


def price_fields(price: Price) -> dict[str, str | None]:
    """Return unit prices in US dollars a token, as text."""
    return {name: None if (value := getattr(price, name)) is None else money.text(value) for name in PRICE_FIELDS}


def cost_fields(
    *,
    usage: Usage | None,
    price: Price,
    basis: str,
    gateway_cost_usd_micros: int | None,
    margin_ratio: Decimal,
) -> tuple[Decimal | None, dict[str, object]]:
    """Compute what the tenant pays for an attempt; return it with the last fields of its event.

    A cost or an amount that cannot be true is none.

    Args:
        usage: The tokens, or None.
        price: Unit prices for a prompt of this size.
        basis: ``prices`` or ``gateway``.
        gateway_cost_usd_micros: The gateway's own figure, or None.
        margin_ratio: What is added for the tenant.
    """
    cost: Decimal | None = None
    if basis == BY_GATEWAY:
        cost = None if gateway_cost_usd_micros is None else money.from_micros(gateway_cost_usd_micros)
    elif usage is not None:
        cost = money.cost_usd(usage, price)
    cost = money.believable(cost)
    amount = None if cost is None else money.believable(money.with_margin(cost, margin_ratio))
    return amount, {
        "cost_basis": None if cost is None else basis,
        "gateway_cost_usd_micros": gateway_cost_usd_micros,
        "cost_usd": None if cost is None else money.text(cost),
        "cost_usd_micros": None if cost is None else money.micros(cost),
        "margin_ratio": money.text(margin_ratio),
        "amount_usd": None if amount is None else money.text(amount),
        "amount_usd_micros": None if amount is None else money.micros(amount),
    }


def replayed(event: Mapping[str, Any]) -> str:
    """Compute an attempt's event anew from the facts and the price snapshot in it; return its JSON text.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: it is no event of an attempt.
    """
    usage = None
    if event["metering"] != MISSING:
        usage = Usage(**{name: event[name] for name in USAGE_FIELDS}, estimated=event["metering"] == ESTIMATED)
    prices = event["prices"]
    units: dict[str, Any] = {name: None if prices[name] is None else Decimal(prices[name]) for name in PRICE_FIELDS}
    price = Price(**units)
    _, costs = cost_fields(
        usage=usage,
        price=price,
        basis=event["cost_basis"] or BY_PRICES,
        gateway_cost_usd_micros=event["gateway_cost_usd_micros"],
        margin_ratio=Decimal(event["margin_ratio"]),
    )
    fields = {name: event[name] for name in FIELDS} | costs
    fields["id"] = event_id(event["tenant_id"], event["request_id"], event["attempt"], event["kind"])
    return encode(fields)
