"""Usage by any dimension, in periods of any time zone, as JSON, CSV and FOCUS."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pointsman_billing.aggregates import COUNTS, DIMENSIONS, MONEY
from pointsman_billing.focus import focus
from pointsman_billing.reports import compare
from pointsman_billing.views import GROUPS, Question, as_csv, report

KOLKATA = ZoneInfo("Asia/Kolkata")


def row(at: str, **given: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {"kind": "primary", "attempts": 1, **given}
    start = int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
    texts = (values.get(name, "") for name in DIMENSIONS)
    return (start, *texts, *(values.get(name, 0) for name in COUNTS), *(values.get(name, "0") for name in MONEY))


@pytest.mark.parametrize(
    ("zone", "days"),
    [
        ("UTC", {"2025-06-30": 2, "2025-07-01": 1}),
        ("Asia/Kolkata", {"2025-06-30": 1, "2025-07-01": 2}),
        ("Asia/Kathmandu", {"2025-07-01": 3}),
    ],
)
def test_days_are_those_of_the_time_zone(zone: str, days: dict[str, int]) -> None:
    rows = [row("2025-06-30T18:15"), row("2025-06-30T18:30"), row("2025-07-01T00:00")]
    found = report(rows, Question(group_by=(), period="day"), ZoneInfo(zone))
    assert {found_row["period"]: found_row["attempts"] for found_row in found} == days


def test_an_hour_begins_where_it_does_in_the_time_zone() -> None:
    rows = [row("2025-06-30T18:15"), row("2025-06-30T18:30"), row("2025-06-30T19:15")]
    found = report(rows, Question(group_by=(), period="hour"), KOLKATA)
    assert {found_row["period"]: found_row["attempts"] for found_row in found} == {
        "2025-06-30T23:00+05:30": 1,
        "2025-07-01T00:00+05:30": 2,
    }


@pytest.mark.parametrize("name", GROUPS)
def test_usage_is_grouped_by_each_dimension(name: str) -> None:
    rows = [row("2025-06-30", **{name: "a"}), row("2025-06-30", **{name: "b"}), row("2025-06-30", **{name: "b"})]
    found = report(rows, Question(group_by=(name,), period="total"), KOLKATA)
    assert [(found_row[name], found_row["attempts"]) for found_row in found] == [("a", 1), ("b", 2)]


def test_requests_are_counted_by_what_they_have() -> None:
    """A request has no deployment: grouped by deployment, there are attempts only."""
    rows = [row("2025-06-30", kind="request", attempts=0, requests=1, tenant="t"), row("2025-06-30", deployment="d")]
    (whole,) = report(rows, Question(group_by=(), period="total"), KOLKATA)
    assert (whole["requests"], whole["attempts"]) == (1, 1)
    (by_deployment,) = report(rows, Question(group_by=("deployment",), period="total"), KOLKATA)
    assert ("requests" in by_deployment, by_deployment["attempts"]) == (False, 1)


def test_amounts_are_rounded_once_for_people() -> None:
    rows = [row("2025-06-30", amount_usd="0.0000004")] * 100
    (found,) = report(rows, Question(group_by=(), period="total"), KOLKATA)
    assert (found["amount_usd"], found["amount_usd_micros"]) == ("0.00004", 40)


def test_focus_has_its_columns() -> None:
    rows = [
        row(
            "2025-06-30T18:30",
            tenant="acme",
            key="ci",
            provider="openai",
            model="chat",
            model_served="gpt-4o",
            prompt_tokens=3,
            completion_tokens=4,
            cost_usd="1",
            amount_usd="1.1",
            endpoint="chat",
        )
    ]
    usage = report(rows, Question(group_by=GROUPS, period="day"), KOLKATA)
    (found,) = csv.DictReader(io.StringIO(as_csv(focus(usage, "day", KOLKATA))))
    expected = {
        "BilledCost": "1.1",
        "ListCost": "1",
        "BillingCurrency": "USD",
        "BillingPeriodStart": "2025-06-30T18:30:00Z",
        "BillingPeriodEnd": "2025-07-31T18:30:00Z",
        "ChargePeriodStart": "2025-06-30T18:30:00Z",
        "ChargePeriodEnd": "2025-07-01T18:30:00Z",
        "ChargeCategory": "Usage",
        "ConsumedQuantity": "7",
        "ProviderName": "openai",
        "SkuId": "gpt-4o",
        "SubAccountId": "acme",
        "Tags": '{"key": "ci", "model": "chat", "kind": "primary", "endpoint": "chat"}',
    }
    assert found | expected == found
    assert Decimal(found["EffectiveCost"]) == Decimal(found["BilledCost"])


@pytest.mark.parametrize(("period", "end"), [("hour", "2025-06-30T19:30:00Z"), ("month", "2025-07-31T18:30:00Z")])
def test_a_charge_period_ends_where_the_next_begins(period: str, end: str) -> None:
    usage = report([row("2025-06-30T18:45")], Question(group_by=GROUPS, period=period), KOLKATA)
    (found,) = focus(usage, period, KOLKATA)
    assert (found["ChargePeriodStart"], found["ChargePeriodEnd"]) == ("2025-06-30T18:30:00Z", end)


@pytest.mark.parametrize("period", ["hour", "day", "month"])
@pytest.mark.parametrize(
    ("zone", "at"),
    [
        ("UTC", "2025-03-30T00:00"),
        ("Asia/Kathmandu", "2025-06-29T00:00"),
        ("Europe/Berlin", "2025-03-29T22:00"),
        ("Europe/Berlin", "2025-10-25T22:00"),
        ("Australia/Lord_Howe", "2025-04-05T12:00"),
        ("Australia/Lord_Howe", "2025-10-04T12:00"),
        ("Africa/Cairo", "2025-04-24T20:00"),
        ("America/Havana", "2025-11-02T03:00"),
    ],
)
def test_charge_periods_meet_without_overlap_or_gap(zone: str, at: str, period: str) -> None:
    """Also where clocks change: by an hour, by half of one, and at midnight."""
    first = int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
    starts = [first + 900 * number for number in range(4 * 24 * 3)]
    times = {}
    for start in starts:
        usage = report([(start, *row(at)[1:])], Question(group_by=GROUPS, period=period), ZoneInfo(zone))
        (found,) = focus(usage, period, ZoneInfo(zone))
        begin, end = (datetime.fromisoformat(found[f"ChargePeriod{edge}"]).timestamp() for edge in ("Start", "End"))
        assert begin <= start < end
        times[usage[0]["period"]] = (begin, end)
    assert all(one[1] == other[0] for one, other in pairwise(times.values()))
    together = report([(start, *row(at)[1:]) for start in starts], Question(group_by=(), period=period), ZoneInfo(zone))
    assert [found["period"] for found in together] == list(times)


def test_what_has_no_tokens_is_counted_in_requests() -> None:
    usage = report([row("2025-06-30", attempts=3, amount_usd="0.12")], Question(group_by=GROUPS), KOLKATA)
    (found,) = focus(usage, "day", KOLKATA)
    assert (found["ConsumedQuantity"], found["ConsumedUnit"], found["PricingUnit"]) == (3, "Requests", "Requests")


@pytest.mark.parametrize(
    ("gateway", "priced", "difference"),
    [("0", "5", "5"), ("3", "0", "-3"), ("5", "5", "0"), ("0.1", "0.0000004", "-0.0999996")],
)
def test_a_difference_is_that_of_the_two_sums_beside_it(gateway: str, priced: str, difference: str) -> None:
    """Also where one figure of an attempt is not known, whatever was noted when it was written down."""
    money = {"gateway_usd": gateway, "priced_usd": priced, "cost_usd": "0", "amount_usd": "0", "difference_usd": "0"}
    row = (0, *("x" for _ in DIMENSIONS), *(0 for _ in COUNTS), *(money[name] for name in MONEY))
    (found,) = compare([row])
    assert (found["gateway_usd"], found["priced_usd"], found["difference_usd"]) == (gateway, priced, difference)
    assert found["difference_usd_micros"] == round(Decimal(difference) * 10**6)


@pytest.mark.parametrize(
    ("value", "cell"),
    [("-0.015", "-0.015"), ("-15000", "-15000"), ("-1+cmd", "'-1+cmd"), ("-", "'-"), ("=1", "'=1")],
)
def test_a_negative_amount_is_a_number_in_csv_and_a_formula_is_none(value: str, cell: str) -> None:
    assert as_csv([{"difference_usd": value}]) == f"difference_usd\r\n{cell}\r\n"
