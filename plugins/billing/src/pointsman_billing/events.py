"""The billing event: its fields, its identity, and its one form as JSON text. Pure functions.

An event is a JSON object whose fields always stand in the same order, without spaces, ASCII only: the same attempt gives
the same bytes. ``FIELDS`` lists them; the README explains them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from json.encoder import encode_basestring_ascii as quoted
from operator import attrgetter
from typing import Any, Final

import orjson

from pointsman.text import printable
from pointsman.types import Price, Usage

from . import pricing

SCHEMA: Final = 2
_FIRST_SCHEMA: Final = 1
ATTEMPT: Final = "attempt"
REQUEST: Final = "request"

#: The source of the token counts. An explicit zero is exact.
EXACT: Final = "exact"
ESTIMATED: Final = "estimated"
CONTRADICTORY: Final = "contradictory"
MISSING: Final = "missing"

#: What the cost was computed from: unit prices, the provider's or the gateway's own figure, or (a request's) the sum of
#: its attempts.
BY_PRICES: Final = "prices"
BY_PROVIDER: Final = "provider"
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
#: What a usage consists of in addition; an event names what is known and is not zero.
_DETAILS: Final = tuple(
    field.name for field in fields(Usage) if field.name not in {*USAGE_FIELDS, "parts", "estimated", "contradictory"}
)
#: Unit prices that every event names, known or not.
_MAIN_PRICES: Final = (
    "input_usd",
    "output_usd",
    "cache_read_usd",
    "cache_write_usd",
    "audio_input_usd",
    "audio_output_usd",
    "reasoning_usd",
)
_PRICES: Final = (*_MAIN_PRICES, *(name for name in pricing.PRICE_FIELDS if name not in _MAIN_PRICES))
#: Many values at once: every event reads them all.
_counts_of, _details_of, _prices_of = attrgetter(*USAGE_FIELDS), attrgetter(*_DETAILS), attrgetter(*_PRICES)
FIELDS: Final = (
    "id",
    "schema",
    "type",
    "tenant_id",
    "key",
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
    "usage",
    "metering",
    "started_at_ms",
    "finished_at_ms",
    "timestamp",
    "price_source",
    "prices",
    "cost_basis",
    "gateway_cost_usd",
    "gateway_cost_usd_micros",
    "cost_usd",
    "cost_usd_micros",
    "margin_ratio",
    "amount_usd",
    "amount_usd_micros",
)

#: Fields that the first schema did not have.
_SECOND: Final = frozenset({"key", "usage", "gateway_cost_usd"})

_ID_BYTES: Final = 16
_MOST_CHARS: Final = 200
#: Of the provider's own account of a usage.
MOST_RAW_CHARS: Final = 4000
_DIGEST_CHARS: Final = 16
_DEL: Final = b"\x7f"
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class BillEvent:
    """One event, ready to be written down and delivered.

    Attributes:
        id: The same for the same tenant, request, attempt and kind, always.
        type: ``attempt`` or ``request``.
        tenant: The paying tenant.
        at_ms: Unix milliseconds: when it ended.
        body: The JSON text.
    """

    id: str
    type: str
    tenant: str
    at_ms: int
    body: str


def storable(text: str, most_chars: int = _MOST_CHARS) -> str:
    """Return text that every database and JSON reader accepts: no NUL, no lone surrogates, of bounded length.

    A text that is too long ends with a hash of the whole, so that different texts stay different.
    """
    if len(text) <= most_chars and text.isascii() and text.isprintable():
        return text
    whole = text.encode("utf-8", "replace")
    kept = printable(whole.decode("utf-8"))
    if len(kept) <= most_chars:
        return kept
    return f"{kept[: most_chars - _DIGEST_CHARS - 1]}~{hashlib.sha256(whole).hexdigest()[:_DIGEST_CHARS]}"


def event_id(tenant: str, request_id: str, attempt: int, kind: str) -> str:
    """Return the event's identity: 32 hexadecimal digits of a hash over what it is about."""
    key = f"[{quoted(tenant)},{quoted(request_id)},{attempt},{quoted(kind)}]"
    return hashlib.sha256(key.encode("ascii")).hexdigest()[: 2 * _ID_BYTES]


def encode(fields: Mapping[str, object]) -> str:
    """Return the event's JSON text.

    Args:
        fields: Exactly the names of ``FIELDS``, in that order.
    """
    try:
        text = orjson.dumps(fields)
    except TypeError:
        # Lone surrogates, and integers of more than 64 bits.
        return _ENCODE(fields)
    # It escapes as we do, apart from what is not ASCII and from DEL.
    return text.decode("ascii") if text.isascii() and _DEL not in text else _ENCODE(fields)


def metering_of(usage: Usage | None) -> str:
    """Return the source of the counts."""
    if usage is None:
        return MISSING
    if usage.estimated:
        return ESTIMATED
    return CONTRADICTORY if usage.contradictory else EXACT


def usage_fields(usage: Usage | None) -> dict[str, object]:
    """Return the token counts, None where they are unknown, and ``usage``: everything else that is known."""
    if usage is None:
        return {**dict.fromkeys(USAGE_FIELDS), "usage": None}
    return {**dict(zip(USAGE_FIELDS, _counts_of(usage), strict=True)), "usage": _details(usage)}


def _details(usage: Usage) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in zip(_DETAILS, _details_of(usage), strict=True):
        if name == "provider_cost_usd":
            if value is not None:
                found[name] = pricing.decimal_text(value)
        elif value:
            found[name] = storable(value, MOST_RAW_CHARS) if isinstance(value, str) else value
    if usage.parts:
        found["parts"] = [
            {name: value for name in USAGE_FIELDS if (value := getattr(part, name))} | _details(part)
            for part in usage.parts
        ]
    return found


def _usage_of(counts: Mapping[str, Any], details: Mapping[str, Any], metering: str = EXACT) -> Usage:
    given: dict[str, Any] = {**counts, **details}
    if "provider_cost_usd" in given:
        given["provider_cost_usd"] = Decimal(given["provider_cost_usd"])
    given["parts"] = tuple(_usage_of(part, {}) for part in given.get("parts", ()))
    return Usage(**given, estimated=metering == ESTIMATED, contradictory=metering == CONTRADICTORY)


def price_fields(price: Price, parts: Sequence[Price] = ()) -> dict[str, object]:
    """Return unit prices in US dollars, as text; None where a main one is unknown. ``parts`` has those of each part."""
    found: dict[str, object] = {
        name: None if value is None else pricing.decimal_text(value)
        for name, value in zip(_PRICES, _prices_of(price), strict=True)
        if value is not None or name in _MAIN_PRICES
    }
    return {**found, "parts": [price_fields(part) for part in parts]} if parts else found


def _price_of(written: Mapping[str, Any]) -> Price:
    units: dict[str, Any] = {
        name: Decimal(value) for name, value in written.items() if name != "parts" and value is not None
    }
    return Price(**units)


def cost_fields(
    *,
    usage: Usage | None,
    by_prices: Decimal | None,
    basis: str,
    gateway_cost_usd: Decimal | None,
    margin_ratio: Decimal,
) -> tuple[Decimal | None, Decimal | None, dict[str, object]]:
    """Compute what an attempt costs and what its tenant pays; return both with the last fields of its event.

    A cost or an amount that cannot be true is None.

    Args:
        usage: What was used, or None.
        by_prices: What it costs at the unit prices, see ``pricing.cost_usd``.
        basis: ``prices``, ``provider`` or ``gateway``.
        gateway_cost_usd: The gateway's own figure, or None.
        margin_ratio: What the tenant pays in addition.
    """
    cost: Decimal | None
    if basis == BY_GATEWAY:
        cost = gateway_cost_usd
    elif basis == BY_PROVIDER:
        cost = None if usage is None else usage.provider_cost_usd
    else:
        cost = by_prices
    cost = pricing.plausible_usd(cost)
    amount = None if cost is None else pricing.plausible_usd(pricing.with_margin(cost, margin_ratio))
    basis_of_cost = None if cost is None else basis
    return cost, amount, money_fields(basis_of_cost, gateway_cost_usd, cost, margin_ratio, amount)


def money_fields(
    basis: str | None,
    gateway_cost: Decimal | None,
    cost: Decimal | None,
    margin_ratio: Decimal | None,
    amount: Decimal | None,
) -> dict[str, object]:
    """Return the last fields of an event.

    An amount is two of them: exactly, as text, and rounded to micro-dollars; None when it is unknown.
    """
    gateway_usd, gateway_usd_micros = _written(gateway_cost)
    cost_usd, cost_usd_micros = _written(cost)
    # Without a margin, it is the cost.
    amount_usd, amount_usd_micros = (cost_usd, cost_usd_micros) if amount is cost else _written(amount)
    return {
        "cost_basis": basis,
        "gateway_cost_usd": gateway_usd,
        "gateway_cost_usd_micros": gateway_usd_micros,
        "cost_usd": cost_usd,
        "cost_usd_micros": cost_usd_micros,
        "margin_ratio": None if margin_ratio is None else pricing.decimal_text(margin_ratio),
        "amount_usd": amount_usd,
        "amount_usd_micros": amount_usd_micros,
    }


def _written(usd: Decimal | None) -> tuple[str | None, int | None]:
    return (None, None) if usd is None else (pricing.decimal_text(usd), pricing.micros(usd))


def replayed(event: Mapping[str, Any]) -> str:
    """Recompute an attempt's event from the facts and the price snapshot in it; return its JSON text.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: it is not the event of an attempt.
    """
    first = event["schema"] == _FIRST_SCHEMA
    usage = None
    if event["metering"] != MISSING:
        counts = {name: event[name] for name in USAGE_FIELDS}
        usage = _usage_of(counts, {} if first else event["usage"], event["metering"])
    if first:
        micros = event["gateway_cost_usd_micros"]
        gateway_cost = None if micros is None else pricing.from_micros(micros)
    else:
        gateway_cost = None if event["gateway_cost_usd"] is None else Decimal(event["gateway_cost_usd"])
    prices = event["prices"]
    _, _, costs = cost_fields(
        usage=usage,
        by_prices=pricing.cost_usd(usage, _price_of(prices), [_price_of(part) for part in prices.get("parts", ())]),
        basis=event["cost_basis"] or BY_PRICES,
        gateway_cost_usd=gateway_cost,
        margin_ratio=Decimal(event["margin_ratio"]),
    )
    names = [name for name in FIELDS if not (first and name in _SECOND)]
    written = {name: event[name] if name not in costs else costs[name] for name in names}
    written["id"] = event_id(event["tenant_id"], event["request_id"], event["attempt"], event["kind"])
    return encode(written)
