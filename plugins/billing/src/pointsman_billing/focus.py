"""Usage as the columns of FOCUS 1.2, the FinOps Open Cost and Usage Specification that finance tools read. Pure.

A row is what one tenant used of one model in one period. ``BilledCost``, ``EffectiveCost`` and ``ContractedCost`` are what
the tenant pays, ``ListCost`` is what the provider charges. Columns with the prefix ``x_`` are our own, as the
specification provides for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_TAGS: Final = ("key", "model", "version", "experiment", "arm", "kind", "endpoint")
_ACCOUNT: Final = "pointsman"
_QUARTER: Final = timedelta(minutes=15)


def focus(rows: Iterable[Mapping[str, Any]], period: str, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Return the rows of a usage report, grouped by everything, in the columns of FOCUS.

    Args:
        rows: The report's rows.
        period: ``hour``, ``day`` or ``month``.
        zone: The report's time zone.
    """
    return [_row(row, period, zone) for row in rows]


def _row(row: Mapping[str, Any], period: str, zone: ZoneInfo) -> dict[str, Any]:
    start, end = _times(row["period"], period, zone)
    month_start, month_end = _times(f"{start.astimezone(zone):%Y-%m}", "month", zone)
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    # What has no tokens, such as images and speech, is counted in requests to the provider.
    quantity, unit = (tokens, "Tokens") if tokens else (row["attempts"], "Requests")
    model = row["model_served"] or row["model"]
    return {
        "BilledCost": row["amount_usd"],
        "BillingAccountId": _ACCOUNT,
        "BillingAccountName": "Pointsman",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _text(month_end),
        "BillingPeriodStart": _text(month_start),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{model} ({row['endpoint'] or 'model'})",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _text(end),
        "ChargePeriodStart": _text(start),
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "ContractedCost": row["amount_usd"],
        "EffectiveCost": row["amount_usd"],
        "InvoiceIssuerName": "Pointsman",
        "ListCost": row["cost_usd"],
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ProviderName": row["provider"] or None,
        "PublisherName": row["provider"] or None,
        "ResourceId": row["deployment"] or None,
        "ResourceName": row["deployment"] or None,
        "ResourceType": "Model deployment",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": row["provider"] or None,
        "ServiceSubcategory": "Generative AI",
        "SkuId": model,
        "SubAccountId": row["tenant"],
        "SubAccountName": row["tenant"],
        "Tags": json.dumps({name: row[name] for name in _TAGS if row[name]}),
        "x_Attempts": row["attempts"],
        "x_UnpricedAttempts": row["unpriced"],
        "x_EstimatedAttempts": row["estimated"],
        "x_PromptTokens": row["prompt_tokens"],
        "x_CompletionTokens": row["completion_tokens"],
        "x_CachedTokens": row["cached_tokens"],
        "x_CacheWriteTokens": row["cache_write_tokens"],
        "x_GatewayCost": row["gateway_usd"],
    }


def _times(text: str, period: str, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the beginning and the end of a period of a usage report."""
    if period == "hour":
        return _hour(datetime.fromisoformat(text), zone)
    first = date.fromisoformat(f"{text}-01" if period == "month" else text)
    after = (first + timedelta(days=31)).replace(day=1) if period == "month" else first + timedelta(days=1)
    return _midnight(first, zone), _midnight(after, zone)


def _hour(start: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the part of an hour in which the zone has the offset of its name: where clocks change by half an hour, it is half."""
    quarters = [start + number * _QUARTER for number in range(4)]
    inside = [at for at in quarters if at.astimezone(zone).utcoffset() == start.utcoffset()] or quarters
    return inside[0], inside[-1] + _QUARTER


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
