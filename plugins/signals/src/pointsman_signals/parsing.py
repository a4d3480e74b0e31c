"""Numbers, durations and instants as providers write them in headers and quota files.

Every function takes any text and returns a finite, non-negative number, or None when the text is not understood. Nothing
here raises. Pure: the present time is an argument.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import isfinite
from typing import Final

MAX_TEXT_CHARS: Final = 128
MAX_NUMBER: Final = 1e15
MAX_DURATION_S: Final = 400 * 86_400.0
MAX_INSTANT_S: Final = 253_402_300_800.0  # the year 10000

_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}
_NUMBER: Final = re.compile(r"[+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|µs|ms|s|m|h|d|w)", re.ASCII)
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern}\s*)+", re.ASCII)
_SHORT: Final = 15
_TRUE: Final = frozenset({"true", "yes", "1", "on"})
_FALSE: Final = frozenset({"false", "no", "0", "off"})

# A bare number this large is an instant, from September 2001 on; in seconds, the second one lies after the year 5138.
_UNIX_S_FROM: Final = 1e9
_UNIX_MS_FROM: Final = 1e11


def parse_number(text: str) -> float | None:
    """Return a plain decimal number; None for anything else, a negative one (providers write -1 for "unknown") included."""
    if len(text) <= _SHORT and text.isdecimal() and text.isascii():
        return float(text)
    text = text.strip()
    if len(text) > MAX_TEXT_CHARS or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if isfinite(value) and value <= MAX_NUMBER else None


def parse_flag(text: str) -> float | None:
    """Return 1.0 or 0.0 for yes or no in the usual spellings, else None."""
    text = text.strip().lower()
    if text in _TRUE:
        return 1.0
    return 0.0 if text in _FALSE else None


def parse_duration(text: str) -> float | None:
    """Return seconds: ``6m0s``, ``12ms``, ``1.5s``, ``1h2m3s``, ``2d``, or a bare number of seconds."""
    text = text.strip()
    bare = parse_number(text)
    if bare is not None:
        return bare if bare <= MAX_DURATION_S else None
    if len(text) > MAX_TEXT_CHARS or not _DURATION.fullmatch(text):
        return None
    total = sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION_PART.findall(text))
    return total if total <= MAX_DURATION_S else None


def parse_instant(text: str) -> float | None:
    """Return Unix seconds: RFC 3339, an HTTP date, or Unix seconds or milliseconds from the year 2002 on."""
    text = text.strip()
    if len(text) > MAX_TEXT_CHARS:
        return None
    bare = parse_number(text)
    if bare is not None:
        value = bare / 1e3 if bare >= _UNIX_MS_FROM else bare
        return value if _UNIX_S_FROM <= value <= MAX_INSTANT_S else None
    moment = _rfc3339(text) or _http_date(text)
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        value = moment.timestamp()
    except (ValueError, OverflowError):
        return None
    return value if 0.0 <= value <= MAX_INSTANT_S else None


def parse_reset(text: str, now: float) -> float | None:
    """Return the Unix seconds at which something resets, in any notation.

    A duration counts from ``now``; a bare number is a duration in seconds, unless it is so large that it can only be a
    date in Unix seconds or milliseconds. A date more than 400 days ahead is not a reset.
    """
    if len(text) > MAX_TEXT_CHARS:
        return None
    after_s, at = _reset(text)
    if after_s is not None:
        return now + after_s
    return at if at is not None and at - now <= MAX_DURATION_S else None


# The same texts recur: resets in whole seconds, the same instant for every axis.
@lru_cache(maxsize=4096)
def _reset(text: str) -> tuple[float | None, float | None]:
    after_s = parse_duration(text)
    return after_s, None if after_s is not None else parse_instant(text)


def parse_retry_after(seconds: str | None, milliseconds: str | None, now: float) -> float | None:
    """Return how long to wait, in seconds.

    Args:
        seconds: ``retry-after``: seconds or an HTTP date.
        milliseconds: ``retry-after-ms``, the more precise one if both are sent and it is not 0.
        now: Unix seconds.
    """
    exact = parse_number(milliseconds) if milliseconds is not None else None
    if exact and exact / 1e3 <= MAX_DURATION_S:
        return exact / 1e3
    if seconds is None:
        return None if exact is None or exact else 0.0
    at = parse_reset(seconds, now)
    return max(0.0, min(at - now, MAX_DURATION_S)) if at is not None else None


def _rfc3339(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
