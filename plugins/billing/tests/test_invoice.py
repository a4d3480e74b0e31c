"""A provider's exports are read, and compared with what is on record, by day and model."""

from __future__ import annotations

import json
from datetime import UTC, date
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pointsman_billing.invoice import Charge, UnreadableInvoice, compare, decoded, read

DAY = date(2025, 6, 15)
AT = 1_749_945_600  # its first second, UTC
OPENAI_COSTS = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": AT,
            "end_time": AT + 86_400,
            "results": [
                {"amount": {"value": 0.25, "currency": "usd"}, "line_item": "gpt-4o-2024-08-06, input"},
                {"amount": {"value": 0.5, "currency": "usd"}, "line_item": "gpt-4o-2024-08-06, output"},
            ],
        }
    ],
}
OPENAI_USAGE = {
    "data": [
        {
            "start_time": AT,
            "results": [
                {"model": "gpt-4o", "input_tokens": 1000, "input_cached_tokens": 800, "output_tokens": 500},
                {"model": "gpt-4o", "input_tokens": 1, "output_tokens": 2},
            ],
        }
    ]
}
ANTHROPIC_USAGE = {
    "data": [
        {
            "starting_at": "2025-06-15T00:00:00Z",
            "ending_at": "2025-06-16T00:00:00Z",
            "results": [
                {
                    "model": "claude-sonnet-4-5",
                    "uncached_input_tokens": 100,
                    "cache_creation": {"ephemeral_1h_input_tokens": 10, "ephemeral_5m_input_tokens": 5},
                    "cache_read_input_tokens": 1000,
                    "output_tokens": 7,
                }
            ],
        }
    ]
}
ANTHROPIC_COSTS = {
    "data": [
        {
            "starting_at": "2025-06-15T00:00:00Z",
            "results": [{"amount": "123.45", "currency": "USD", "model": "claude-sonnet-4-5"}],
        }
    ]
}

OPENROUTER_ACTIVITY = {
    "data": [
        {
            "date": "2025-06-15",
            "model": "openai/gpt-4o",
            "model_permaslug": "openai/gpt-4o-2024-08-06",
            "usage": 1.5,
            "byok_usage_inference": 0.25,
            "requests": 2,
            "prompt_tokens": 4000,
            "completion_tokens": 400,
            "reasoning_tokens": 0,
        }
    ]
}
OPENROUTER_CSV = """\
generation_id,created_at,cost_total,tokens_prompt,tokens_completion,model_permaslug
gen-1,2025-06-15 10:00:00,0.5,40,4,openai/gpt-4o-2024-08-06
"""

ANTHROPIC_CSV = """\
usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_read,usage_output_tokens
2025-06-15,m,5,6,7
"""


@pytest.mark.parametrize(
    ("text", "model", "cost", "prompt", "completion"),
    [
        (json.dumps(OPENAI_COSTS), "gpt-4o-2024-08-06", "0.75", None, None),
        (json.dumps(OPENAI_USAGE), "gpt-4o", None, 1001, 502),
        (json.dumps(ANTHROPIC_USAGE), "claude-sonnet-4-5", None, 1115, 7),
        (json.dumps(ANTHROPIC_COSTS), "claude-sonnet-4-5", "1.2345", None, None),
        ("date;model;cost_usd\n2025-06-15;m;1.10\n2025-06-15;m;0.4\n", "m", "1.5", None, None),
        ("date\tmodel\tinput_tokens\n2025-06-15\tm, large\t1,000\n", "m", None, 1000, None),
        # A spreadsheet with decimal commas: what one amount shows holds for all of them.
        (
            "date;model;cost;input tokens\n2025-06-15;m;0,45;1.000\n2025-06-15;m;1.234,5;2\n2025-06-15;m;1,234;3\n",
            "m",
            "1236.184",
            1005,
            None,
        ),
        # Rows that add up others.
        ("date,model,cost\n2025-06-15,m,1\nTotal,,1\n", "m", "1", None, None),
        ("date,model,cost\n2025-06-15,m,1\n2025-06-15,Total:,1\n", "m", "1", None, None),
        ("project,date,model,cost\np,2025-06-15,m,1\nGrand total,2025-06-15,,1\n", "m", "1", None, None),
        ("date,model,cost_usd\n2025-06-15,m,$1.10\n2025-06-15,m,0.4\n", "m", "1.5", None, None),
        ('\ufeffUsage Date,Model,Input Tokens,Output Tokens\n2025-06-15,m,"1,000",5\n', "m", None, 1000, 5),
        (
            ANTHROPIC_CSV,
            "m",
            None,
            11,
            7,
        ),
        # OpenRouter's activity, as its API and as its page have it.
        (json.dumps(OPENROUTER_ACTIVITY), "openai/gpt-4o", "1.75", 4000, 400),
        (OPENROUTER_CSV, "openai/gpt-4o-2024-08-06", "0.5", 40, 4),
        ("ChargePeriodStart,SkuId,BilledCost,BillingCurrency\n2025-06-15T00:00:00Z,m,2,USD\n", "m", "2", None, None),
        (
            '{"date": "2025-06-15", "model": "m", "cost": 1e-7}\n{"date": "2025-06-15", "model": "m", "cost": 2e-7}\n',
            "m",
            "0.0000003",
            None,
            None,
        ),
    ],
)
def test_exports_are_read(text: str, model: str, cost: str | None, prompt: int | None, completion: int | None) -> None:
    usd = None if cost is None else Decimal(cost)
    assert read(text, UTC) == [
        Charge(day=DAY, model=model, cost_usd=usd, prompt_tokens=prompt, completion_tokens=completion)
    ]


@pytest.mark.parametrize(
    ("text", "charge"),
    [
        ("starting_at,model,cost_usd\n2025-06-15,m,0.25\n", {"cost_usd": Decimal("0.25")}),
        ("date,model,cost\n20250615,m,1\n", {"cost_usd": Decimal(1)}),
        *(
            (f"{heading},model,cost\n2025-06-15,m,1\n", {"cost_usd": Decimal(1)})
            for heading in ("Date (UTC)", "utc_date", "date_utc", "UTC Day")
        ),
        # One amount shows which mark separates thousands in all of them.
        ("date;model;cost\n2025-06-15;m;1,234\n2025-06-15;m;0,5\n", {"cost_usd": Decimal("1.734")}),
        ("date;model;cost\n2025-06-15;m;1,234\n2025-06-15;m;0.5\n", {"cost_usd": Decimal("1234.5")}),
        ("date;model;cost\n2025-06-15;m;1.234\n2025-06-15;m;1,234.5\n", {"cost_usd": Decimal("1235.734")}),
        ("date;model;cost\n2025-06-15;m;1.234\n2025-06-15;m;1.234.567\n", {"cost_usd": Decimal(1_235_801)}),
        ('date,model,cost\n2025-06-15,m,"1,234"\n', {"cost_usd": Decimal(1234)}),
        ("date;model;input tokens\n2025-06-15;m;1.234\n", {"prompt_tokens": 1234}),
        (f"time,model,cost\n{AT},m,1\n", {"cost_usd": Decimal(1)}),
        (f"time,model,cost\n{AT}000,m,1\n", {"cost_usd": Decimal(1)}),
        ('date,model,cost\n2025-06-15,m,"$1,234.50"\n', {"cost_usd": Decimal("1234.50")}),
        ("date,model,cost\n2025-06-15,m,-$5\n", {"cost_usd": Decimal(-5)}),
        ("date,model,cost\n2025-06-15,m,(5)\n", {"cost_usd": Decimal(-5)}),
        ("date,model,cost\n2025-06-15,m,1e-3\n", {"cost_usd": Decimal("0.001")}),
        ("date,model,cost\n2025-06-15,m,5\n2025-06-15,M,7\n", {"cost_usd": Decimal(12)}),
        ("date,model,output_tokens\n2025-06-15,m,7\n", {"completion_tokens": 7}),
        ("sep=;\r\ndate;model;cost\r\n2025-06-15;m;0,5\r\n", {"cost_usd": Decimal("0.5")}),
        ("sep=|\ndate|model|cost\n2025-06-15|m|0.5\n", {"cost_usd": Decimal("0.5")}),
        ("date,model,cost,note,note\n2025-06-15,m,0.5,a,b\n", {"cost_usd": Decimal("0.5")}),
        (
            "date,model,input_tokens,output_tokens\n2025-06-15,m,10,\n2025-06-15,m,,7\n",
            {"prompt_tokens": 10, "completion_tokens": 7},
        ),
        (
            "date,model,input_tokens,cache_read_input_tokens,cache_creation_input_tokens\n2025-06-15,m,10,1000,500\n",
            {"prompt_tokens": 1510},
        ),
    ],
)
def test_files_of_many_hands_are_read(text: str, charge: dict[str, Any]) -> None:
    assert read(text, UTC) == [Charge(day=DAY, model="m", **charge)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark", "utf-16-be with a mark"])
def test_what_spreadsheets_call_unicode_is_read(encoding: str) -> None:
    name, _, mark = encoding.partition(" ")
    text = ("\ufeff" if mark else "") + "date\tmodel\tcost\n2025-06-15\tcafé\t0,5\n"
    (charge,) = read(decoded(text.encode(name)), UTC)
    assert (charge.model, charge.cost_usd) == ("café", Decimal("0.5"))


def test_other_encodings_are_refused() -> None:
    with pytest.raises(UnreadableInvoice, match="save it as CSV in UTF-8"):
        decoded("café".encode("latin-1"))


def test_a_moment_belongs_to_the_day_of_the_time_zone() -> None:
    text = "created_at,model,cost\n2025-06-14T20:00:00+00:00,m,1\n"
    assert [charge.day for charge in read(text, ZoneInfo("Asia/Kolkata"))] == [DAY]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no row has a day"),
        ("a,b\n1,2\n", "no row has a day"),
        ("[1", "neither CSV, JSON"),
        ("date,model,cost\n2025-06-15,m,x\n", "row 1"),
        ("date,model,cost\n2025-06-15,m,nan\n", "not a number"),
        ("date,model,cost\nyesterday,m,1\n", "row 1"),
        ("date,model,cost\n2025-06-15,m,1\n11/30/2026,m,1\n", "row 2: '11/30/2026' is not a date such as 2025-06-30"),
        ("date;model;cost\n30.11.2026;m;1\n", r"row 1: '30\.11\.2026' is not a date .*; write the year first"),
        ("date;model;cost\n2025-06-15;m;1,234\n", "row 1: nothing in the file shows whether ',' in '1,234' separates"),
        ("date;model;cost\n2025-06-15;m;5\n2025-06-15;m;1.234\n", r"row 2: .* '\.' in '1\.234'"),
        ("date\tmodel\tcost\n2025-06-15\t4.12\t$1,234\n", "row 1: .* without separators of thousands"),
        ('date,model,cost\n2025-06-15,m,"0,42"\n', "with a point before the fraction"),
        ("date,model,cost,currency\n2025-06-15,m,1,EUR\n", "only US dollars"),
        # An amount of a thousand dollars without quotes would be one dollar.
        ("date,model,cost\n2025-06-15,m,1\n2025-06-15,m,1,234.50\n", "row 2: it has more fields"),
        ("date,model,cost\n2025-06-15,m,1\n2025-06-15,m\n", "row 2: it has fewer fields"),
        (f"date,model,cost\n2025-06-15,m,{'9' * 70}\n", "row 1: .* too long"),
        (f"date,model,cost\n2025-06-15,{'m' * 200_000},1\n", "not CSV"),
        ("date,model,cost,Cost\n2025-06-15,m,1,9\n", "several columns are called 'cost'"),
    ],
)
def test_what_cannot_be_compared_is_an_error(text: str, word: str) -> None:
    with pytest.raises(UnreadableInvoice, match=word):
        read(text, UTC)


@pytest.mark.parametrize("end", ["2025-06-15,m,2,,\n", "Total,3\n", "made on Monday\n", "2025-06-15,m,2\n\n\n"])
def test_rows_that_end_otherwise_are_read_where_nothing_is_lost(end: str) -> None:
    (charge,) = read(f"date,model,cost\n2025-06-15,m,1\n{end}", UTC)
    assert charge.cost_usd == (3 if "m,2" in end else 1)


def ours(**given: Any) -> dict[str, Any]:
    row = {"period": "2025-06-15", "model_served": "M", "cost_usd": "1", "unpriced": 0}
    return {**row, "prompt_tokens": 10, "completion_tokens": 5, **given}


@pytest.mark.parametrize(
    ("charge", "row", "agrees"),
    [
        ({"cost_usd": Decimal("1.004")}, {}, True),
        ({"cost_usd": Decimal("1.006")}, {}, False),
        ({"cost_usd": Decimal(1)}, {"unpriced": 1}, False),
        ({"prompt_tokens": 10, "completion_tokens": 5}, {"cost_usd": "77"}, True),
        ({"prompt_tokens": 11}, {}, False),
        ({"completion_tokens": 4}, {}, False),
        ({"cost_usd": Decimal(1), "model": "other"}, {}, False),
    ],
)
def test_both_sides_agree_or_not(charge: dict[str, Any], row: dict[str, Any], agrees: bool) -> None:
    rows = compare([Charge(**{"day": DAY, "model": "m", **charge})], [ours(**row)])
    assert all(found["agrees"] for found in rows) is agrees


def test_a_charge_without_a_model_is_not_left_out() -> None:
    """Of an export that names models; one that names none cannot be compared."""
    text = "date,model,cost\n2025-06-15,m,1\n2025-06-15,,2\n2025-06-15,,0\n,,3\n"
    charges = read(text, UTC)
    assert [(charge.model, charge.cost_usd) for charge in charges] == [("(no model)", Decimal(2)), ("m", Decimal(1))]
    assert [row["agrees"] for row in compare(charges, [ours()])] == [False, True]
    with pytest.raises(UnreadableInvoice, match="no row has a day"):
        read("date,model,cost\n2025-06-15,,2\n", UTC)


def test_what_only_one_side_has_is_shown() -> None:
    rows = compare([Charge(day=DAY, model="theirs", cost_usd=Decimal(2))], [ours(), ours(cost_usd="0.5")])
    assert [(row["model"], row["provider_usd"], row["cost_usd"]) for row in rows] == [
        ("M", None, "1.5"),
        ("theirs", "2", None),
    ]


def test_what_has_no_known_model_is_shown_under_the_one_that_was_asked_for() -> None:
    rows = compare([], [ours(model_served="", model="asked"), ours(model_served="", model="")])
    assert [(row["model"], row["cost_usd"], row["agrees"]) for row in rows] == [
        ("(no model)", "1", False),
        ("asked", "1", False),
    ]


def test_a_part_of_a_token_is_no_token() -> None:
    with pytest.raises(UnreadableInvoice, match=r"row 1: '1\.5' is not a number of tokens"):
        read("date,model,input_tokens\n2025-06-15,m,1.5\n", UTC)
