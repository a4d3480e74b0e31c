"""A provider's invoice or usage export, read by day and model, and compared with what is on record here. Pure.

CSV with a line of headings (separated by commas, semicolons or tabs), and JSON: a list of objects, or the pages of OpenAI's and Anthropic's usage and cost APIs.
Columns are found by the names that providers, routers and FOCUS give them; see ``_COLUMNS``.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from . import pricing

#: Column names, in lower case and without anything but letters and digits, by what they mean.
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "day": (
        "date",
        "day",
        "dateutc",
        "utcdate",
        "dayutc",
        "utcday",
        "usagedate",
        "usagedateutc",
        "chargeperiodstart",
        "starttime",
        "starttimeiso",
        "startingat",
        "bucketstarttime",
        "createdat",
        "timestamp",
        "time",
    ),
    "model": ("modelversion", "model", "modelname", "snapshotid", "modelid", "skuid", "lineitem", "modelpermaslug"),
    "cost": (
        "costusd",
        "cost",
        "amountvalue",
        "billedcost",
        "totalcost",
        "costtotal",
        "costinusd",
        "usd",
        "spend",
        "amount",
    ),
    "currency": ("currency", "billingcurrency", "amountcurrency"),
    "prompt": ("inputtokens", "prompttokens", "ncontexttokenstotal", "contexttokens", "tokensprompt", "xprompttokens"),
    "completion": (
        "outputtokens",
        "completiontokens",
        "ngeneratedtokenstotal",
        "generatedtokens",
        "tokenscompletion",
        "usageoutputtokens",
        "xcompletiontokens",
    ),
}
#: Columns that are parts of a prompt, where there is none for the whole.
_PROMPT_PARTS: Final = (
    "uncachedinputtokens",
    "cachereadinputtokens",
    "cachecreationinputtokens",
    "cachecreationephemeral1hinputtokens",
    "cachecreationephemeral5minputtokens",
    "usageinputtokensnocache",
    "usageinputtokenscachewrite5m",
    "usageinputtokenscachewrite1h",
    "usageinputtokenscacheread",
)
#: Parts that come in addition to a column for the whole: Anthropic counts neither in ``input_tokens``.
_BESIDE_THE_PROMPT: Final = ("cachereadinputtokens", "cachecreationinputtokens")
#: OpenRouter's activity: what it charges, and what the provider behind it charges for a key of one's own.
_OPENROUTER_COSTS: Final = ("usage", "byokusageinference")
_AMOUNT: Final = re.compile(r"([-+]?)\s*\$?\s*((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?)", re.ASCII)
_MOST_AMOUNT_CHARS: Final = 64
#: Digits of a date without separators, and of Unix milliseconds.
_DATE_DIGITS: Final = 8
_MS_DIGITS: Final = 13
#: The columns that have amounts.
_AMOUNTS: Final = (
    *(name for meaning in ("cost", "prompt", "completion") for name in _COLUMNS[meaning]),
    *_PROMPT_PARTS,
    *_OPENROUTER_COSTS,
)
#: What a row without a model is of: it is part of what the provider charges, and agrees with nothing here.
NO_MODEL: Final = "(no model)"
_LISTS: Final = ("data", "results", "rows", "usage", "costs")
_CENTS: Final = Decimal(100)
#: All names of columns that matter.
_MEANINGS: Final = frozenset({*_AMOUNTS, *(name for names in _COLUMNS.values() for name in names)})
#: A first line that says what separates the fields.
_SEPARATOR: Final = re.compile(r"sep=([,;\t|])")
#: What separates the fields of a CSV file; a spreadsheet of a country with decimal commas writes semicolons.
_SEPARATORS: Final = ",;\t"
#: An amount in which the comma can only be the decimal mark: "0,45", "1.234,5", "12,3456", "1.234.567".
_DECIMAL_COMMA: Final = re.compile(
    r"\(?[-+]?\s*\$?\s*(?:\d*,(?:\d{1,2}|\d{4,})|0,\d+|\d{4,},\d+|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})\)?",
    re.ASCII,
)
#: An amount that is a thousand times as much if its mark separates thousands.
_AMBIGUOUS: Final = re.compile(r"\(?[-+]?\s*\$?\s*[1-9]\d{0,2}([.,])\d{3}\)?", re.ASCII)
#: Swaps both marks, and removes the spaces between thousands.
_POINTS: Final = str.maketrans({",": ".", ".": ",", "\N{NO-BREAK SPACE}": None, "\N{NARROW NO-BREAK SPACE}": None})
#: What the last row of an export is called that adds up the others.
_TOTALS: Final = frozenset({"total", "totals", "subtotal", "sub-total", "grand total", "sum"})
#: Where a row of CSV has its decimal mark, empty where nothing in the file shows which it is. No column is called so: names have letters and digits only.
_CSV: Final = "(csv)"
#: Where a row of CSV says that it has more or fewer fields than there are headings; empty where it has as many.
_FIELDS: Final = "(fields)"
_MORE: Final = "(more)"


class UnreadableInvoice(ValueError):
    """The file is not an export that can be compared; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a provider says about one day and model; None where it says nothing.

    Attributes:
        day: The day.
        model: The model.
        cost_usd: What it charges, in US dollars.
        prompt_tokens: Everything that went in.
        completion_tokens: Everything that came out.
    """

    day: date
    model: str
    cost_usd: Decimal | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def decoded(data: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 where it begins so, as what spreadsheets call Unicode text.

    Raises:
        UnreadableInvoice: it is neither.
    """
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableInvoice("it is not UTF-8 text; save it as CSV in UTF-8") from None


def read(text: str, zone: tzinfo) -> list[Charge]:
    """Return the charges of an export, one for each day and model, in order.

    Args:
        text: The file.
        zone: The time zone of its days.

    Raises:
        UnreadableInvoice: it is not an export.
    """
    sums: dict[tuple[date, str], Charge] = {}
    named = False
    for number, row in enumerate(_rows(text), start=1):
        try:
            charge = _charge(row, zone)
        except (ValueError, OverflowError, OSError) as err:
            raise UnreadableInvoice(f"row {number}: {err}") from err
        if charge is not None:
            key = (charge.day, charge.model.lower())
            sums[key] = _together(sums[key], charge) if key in sums else charge
        named = named or (charge is not None and charge.model != NO_MODEL)
    if not named:
        raise UnreadableInvoice(
            "no row has a day, a model, and a cost or tokens; expected columns such as date, model, cost, input_tokens, "
            "output_tokens"
        )
    return [sums[key] for key in sorted(sums)]


def compare(charges: Iterable[Charge], usage: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each day and model what both sides say; a missing side is None.

    Args:
        charges: The provider's.
        usage: Rows of the usage report by day, ``model_served`` and ``model``; the latter counts where it is not known
            what answered.
    """
    theirs = {(charge.day.isoformat(), charge.model.lower()): charge for charge in charges}
    ours: dict[tuple[str, str], dict[str, Any]] = {}
    for row in usage:
        model = row["model_served"] or row["model"] or NO_MODEL
        known = ours.setdefault(
            (row["period"], model.lower()),
            {"model": model, "cost": Decimal(0), "prompt": 0, "completion": 0, "unpriced": 0},
        )
        known["cost"] = pricing.total((known["cost"], Decimal(row["cost_usd"])))
        known["prompt"] += row["prompt_tokens"]
        known["completion"] += row["completion_tokens"]
        known["unpriced"] += row["unpriced"]
    return [_compared(place, theirs.get(place), ours.get(place)) for place in sorted({*theirs, *ours})]


def _compared(place: tuple[str, str], theirs: Charge | None, ours: Mapping[str, Any] | None) -> dict[str, Any]:
    their_cost = None if theirs is None else theirs.cost_usd
    difference = None if their_cost is None or ours is None else ours["cost"] - their_cost
    return {
        "day": place[0],
        "model": theirs.model if theirs is not None else ours["model"] if ours is not None else place[1],
        "provider_usd": None if their_cost is None else pricing.decimal_text(their_cost),
        "cost_usd": None if ours is None else pricing.decimal_text(ours["cost"]),
        "difference_usd": None if difference is None else pricing.decimal_text(difference),
        "provider_prompt_tokens": None if theirs is None else theirs.prompt_tokens,
        "prompt_tokens": None if ours is None else ours["prompt"],
        "provider_completion_tokens": None if theirs is None else theirs.completion_tokens,
        "completion_tokens": None if ours is None else ours["completion"],
        "unpriced": None if ours is None else ours["unpriced"],
        "agrees": theirs is not None and ours is not None and _agrees(theirs, ours),
    }


def _agrees(theirs: Charge, ours: Mapping[str, Any]) -> bool:
    """Return whether nothing that both sides say differs. An invoice is rounded to cents."""
    half_a_cent = Decimal("0.005")
    return (
        not ours["unpriced"]
        and (theirs.cost_usd is None or abs(ours["cost"] - theirs.cost_usd) <= half_a_cent)
        and theirs.prompt_tokens in {None, ours["prompt"]}
        and theirs.completion_tokens in {None, ours["completion"]}
    )


def _rows(text: str) -> Iterator[dict[str, Any]]:
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").strip()
    if text[:1] not in {"{", "["}:
        yield from _of_csv(text)
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as err:
            raise UnreadableInvoice("the file is neither CSV, JSON nor JSON lines") from err
    yield from _objects(found, {})


def _of_csv(text: str) -> Iterator[dict[str, Any]]:
    heads, _, rest = text.partition("\n")
    if named := _SEPARATOR.fullmatch(heads.strip()):
        # As spreadsheets write it.
        text, heads = rest, rest.partition("\n")[0]
    separator = named[1] if named else max(_SEPARATORS, key=heads.count)
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=separator, restkey=_MORE)
        found = list(reader)
    except csv.Error as err:
        raise UnreadableInvoice(f"the file is not CSV: {err}") from err
    names = Counter("".join(char for char in str(name).lower() if char.isalnum()) for name in reader.fieldnames or ())
    if twice := next((name for name, count in names.items() if count > 1 and name in _MEANINGS), None):
        raise UnreadableInvoice(f"several columns are called {twice!r}; rename or remove those that do not count")
    rows = [_named(row) for row in found]
    mark = "." if separator == "," else _decimal_mark(rows)
    for row, fields in zip(rows, found, strict=True):
        more, fewer = any(fields.get(_MORE) or ()), None in fields.values()
        yield {**row, _CSV: mark, _FIELDS: "more" if more else "fewer" if fewer else ""}


def _decimal_mark(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what stands before the fraction of the amounts of a file; empty where none of them shows it."""
    amounts = [str(row[name]).strip() for row in rows for name in _AMOUNTS if name in row]
    if any(_DECIMAL_COMMA.fullmatch(amount) for amount in amounts):
        return ","
    # With both marks swapped, what shows one shows the other.
    return "." if any(_DECIMAL_COMMA.fullmatch(amount.translate(_POINTS)) for amount in amounts) else ""


def _objects(value: Any, around: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the innermost objects, each with the fields of those around it."""
    if isinstance(value, list):
        for item in value:
            yield from _objects(item, around)
    elif isinstance(value, Mapping):
        row = {**around, **_named(value)}
        lists = [value[name] for name in _LISTS if isinstance(value.get(name), list)]
        for items in lists:
            yield from _objects(items, row)
        if not lists:
            yield row


def _named(row: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return an object's plain values under the names of ``_COLUMNS``; those of objects within it under both names."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        plain = prefix + "".join(char for char in str(name).lower() if char.isalnum())
        if isinstance(value, Mapping):
            found |= _named(value, plain)
        elif not isinstance(value, list) and value not in {None, ""}:
            found[plain] = value
    return found


def _charge(row: Mapping[str, Any], zone: tzinfo) -> Charge | None:
    named = {meaning: next((row[name] for name in names if name in row), None) for meaning, names in _COLUMNS.items()}
    if _adds_up_others(row, named):
        return None
    mark, fields = row.get(_CSV, "."), row.get(_FIELDS)
    if fields == "more":
        raise ValueError("it has more fields than there are headings; put those that contain the separator in quotes")
    if fields == "fewer" and named["day"] is not None and named["model"] is not None:
        raise ValueError("it has fewer fields than there are headings; the file may have been cut off")
    parts = [_count(row[name], mark) for name in _PROMPT_PARTS if name in row]
    prompt = sum(parts) if parts else None
    if named["prompt"] is not None:
        prompt = _count(named["prompt"], mark) + sum(
            _count(row[name], mark) for name in _BESIDE_THE_PROMPT if name in row
        )
    completion = None if named["completion"] is None else _count(named["completion"], mark)
    cost = None if named["cost"] is None else _amount(named["cost"], mark)
    if cost is None and "byokusageinference" in row:
        cost = sum((_amount(row[name], mark) for name in _OPENROUTER_COSTS if name in row), Decimal(0))
    told = (cost, prompt, completion)
    if named["day"] is None or told == (None, None, None) or not any((named["model"], *told)):
        return None
    if cost is not None:
        if str(named["currency"] or "usd").lower() != "usd":
            raise ValueError(f"the currency is {named['currency']!r}; only US dollars can be compared")
        if "startingat" in row and isinstance(named["cost"], str) and _CSV not in row:
            # Anthropic's cost API has amounts in cents, as text.
            cost /= _CENTS
    return Charge(
        day=_day(named["day"], zone),
        # OpenAI's cost API: "gpt-4o-2024-08-06, input".
        model=str(named["model"] or NO_MODEL).split(",")[0].strip(),
        cost_usd=cost,
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


def _adds_up_others(row: Mapping[str, Any], named: Mapping[str, Any]) -> bool:
    """Return whether a row is the sum of others: its day or its model says so, or, where it has no model, any column."""
    labels = [named["day"], named["model"]] if named["model"] is not None else row.values()
    return any(str(label).strip().rstrip(":").casefold() in _TOTALS for label in labels)


def _amount(value: Any, mark: str = ".") -> Decimal:
    """Return an amount; a refund is negative, as ``-5`` or ``(5)``.

    Args:
        value: As it is written.
        mark: What stands before the fraction; empty: that is not known.

    Raises:
        ValueError: it is not one, or it is not clear which.
    """
    text = str(value).strip()
    if len(text) > _MOST_AMOUNT_CHARS:
        raise ValueError(f"{text[:_MOST_AMOUNT_CHARS]!r}... is too long for a number")
    if not mark and (ambiguous := _AMBIGUOUS.fullmatch(text)) is not None:
        raise ValueError(
            f"nothing in the file shows whether {ambiguous[1]!r} in {text!r} separates thousands or the fraction; write "
            "the amounts without separators of thousands and with a point before the fraction, and the fields with commas "
            "between them"
        )
    refund = text.startswith("(") and text.endswith(")")
    plain = text[1:-1].strip() if refund else text
    match = _AMOUNT.fullmatch(plain.translate(_POINTS) if mark == "," else plain)
    digits = "" if match is None else match[2].replace(",", "")
    try:
        amount = Decimal(digits)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number such as 1234.56, with a point before the fraction") from None
    return -amount if refund or (match is not None and match[1] == "-") else amount


def _count(value: Any, mark: str) -> int:
    text = str(value).strip()
    if isinstance(value, str) and (thousands := _AMBIGUOUS.fullmatch(text)) is not None:
        # There are no fractions of a token.
        return int(text.replace(thousands[1], ""))
    amount = _amount(value, mark)
    if amount != amount.to_integral_value():
        raise ValueError(f"{str(value)[:_MOST_AMOUNT_CHARS]!r} is not a number of tokens")
    return int(amount)


def _day(value: Any, zone: tzinfo) -> date:
    text = str(value).strip()
    whole = text.partition(".")[0]
    if text.replace(".", "", 1).isdigit() and text.isascii() and len(text) != _DATE_DIGITS:
        return datetime.fromtimestamp(float(text) / (1000 if len(whole) >= _MS_DIGITS else 1), zone).date()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:_MOST_AMOUNT_CHARS]!r} is not a date such as 2025-06-30; write the year first, then month and day"
        ) from None
    return (at.astimezone(zone) if at.tzinfo is not None else at).date()


def _together(one: Charge, other: Charge) -> Charge:
    return Charge(
        day=one.day,
        model=one.model,
        cost_usd=_added(one.cost_usd, other.cost_usd),
        prompt_tokens=_added(one.prompt_tokens, other.prompt_tokens),
        completion_tokens=_added(one.completion_tokens, other.completion_tokens),
    )


def _added(one: Any, other: Any) -> Any:
    return one if other is None else other if one is None else one + other
