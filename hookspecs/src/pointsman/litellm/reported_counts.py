"""Counts, amounts and names in what providers say, whatever they have put there. Pure and total."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeGuard

#: A provider that reports more is mistaken: how much it was is then not known.
MOST_TOKENS: Final = 10**10
_MOST_USD: Final = Decimal(10**12)
_MOST_NAME_CHARS: Final = 200
_MOST_DIGITS: Final = 40
_DIGITS: Final = frozenset("0123456789.-+")
MOST_PARTS: Final = 100
_PLAIN: Final = frozenset({type(None), bool, int, float, str, list})


def number(value: Any) -> int | None:
    """Return a count; None for what is none."""
    if value is None:
        return None
    if type(value) is int:  # as nearly all are
        return value if 0 <= value <= MOST_TOKENS else None
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if 0 <= value <= MOST_TOKENS else None


def _parsed(text: str) -> int | None:
    """Return the whole number that a text is, however it is written; None for any other text."""
    text = text.strip()
    if not text or len(text) > _MOST_DIGITS or not set(text) <= _DIGITS:
        return None
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return int(found) if found.is_finite() and found == found.to_integral_value() else None


def decimal(value: float) -> Decimal:
    """Return a number of dollars without the digits that only its binary form has: 0.30000000000000004 is 0.3."""
    return Decimal(f"{value:.{sys.float_info.dig}g}")


def money(value: Any) -> Decimal | None:
    """Return an amount of dollars; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        usd = decimal(value) if isinstance(value, float) else Decimal(str(value))
    except (InvalidOperation, ValueError):
        return None
    return usd if usd.is_finite() and 0 <= usd < _MOST_USD else None


def is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value is a JSON object."""
    kind = type(value)
    # To ask whether it is a mapping takes ten times as long, and no answer is made of other types.
    return kind is dict or (kind not in _PLAIN and isinstance(value, Mapping))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the fields of a JSON object or of one of LiteLLM's; empty for anything else."""
    kind = type(value)
    if kind is dict:
        return value  # type: ignore[no-any-return]  # as seen
    if kind in _PLAIN:
        return {}
    if isinstance(value, Mapping):
        return value
    found = getattr(value, "__dict__", None)
    if type(found) is not dict:
        return {}
    extra = getattr(value, "__pydantic_extra__", None)
    return {**found, **extra} if isinstance(extra, dict) else found


def object_of(value: Any) -> Mapping[str, Any]:
    """Return a JSON object; empty for anything else."""
    return value if type(value) is dict or is_object(value) else {}


def kind_of(item: Any) -> Any:
    """Return the type that an item of an answer names; None when it names none."""
    return object_of(item).get("type")


def name_of(value: Any) -> str | None:
    """Return a name, of bounded length; None for what is none."""
    return value[:_MOST_NAME_CHARS] if isinstance(value, str) and value else None


def milliseconds(seconds: Any) -> int | None:
    """Return seconds as milliseconds; None for what is none."""
    found = money(seconds)
    return None if found is None else int(found * 1000)


def first_count(*values: Any) -> int:
    """Return the first count that is not zero."""
    for value in values:
        if count := number(value):
            return count
    return 0


def malformed_in(get: Mapping[str, Any], *keys: str) -> bool:
    """Return whether a value that has to be a count is none."""
    return any(key in get and number(get[key]) is None for key in keys)


def modalities(*lists: Any) -> dict[str, int]:
    """Return the tokens of each modality; one may be named several times."""
    found: dict[str, int] = {}
    for details in lists:
        for item in details[:MOST_PARTS] if isinstance(details, list) else ():
            kind, count = object_of(item).get("modality"), number(object_of(item).get("tokenCount"))
            if isinstance(kind, str) and count is not None:
                found[kind] = found.get(kind, 0) + count
    return found
