"""Reads status and quotas of a deployment from a JSON document whose form the operator describes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pointsman.types import Limit, SignalStatus

from .dialects import Reading
from .parsing import parse_instant, parse_number, parse_reset

if TYPE_CHECKING:
    from .config import Document, LimitFields


@dataclass(frozen=True, slots=True)
class Stated:
    """What a document contains.

    Attributes:
        status: Its status, or None.
        reading: Its quotas.
        at: Unix seconds of the document.
        problem: What is wrong with it, empty if nothing; with a problem the other fields have no meaning.
    """

    status: SignalStatus | None
    reading: Reading
    at: float
    problem: str = ""


def read_document(form: Document, data: Any, now: float, ttl_s: float) -> Stated:
    """Read a document; never raises, whatever it contains.

    Args:
        form: Where its figures are.
        data: The parsed JSON.
        now: Unix seconds.
        ttl_s: Seconds after which a document is outdated.
    """
    at = now
    if form.written_at is not None:
        written_at = parse_instant(_text(data, form.written_at))
        if written_at is None:
            return _useless(now, f"has no time at {form.written_at}")
        at = min(now, written_at)
        if now - at > ttl_s:
            return _useless(at, f"is {now - at:.0f} s old")
    limits = [limit for fields in form.limits if (limit := _limit(fields, data, at)) is not None]
    status = None
    if form.status is not None:
        word = _text(data, form.status).strip().lower()
        if word in {other.lower() for other in form.exhausted}:
            status = SignalStatus.EXHAUSTED
        elif word in {other.lower() for other in form.degraded}:
            status = SignalStatus.DEGRADED
        elif word:
            status = SignalStatus.AVAILABLE
    if status is None and not limits:
        places = [form.status] if form.status else []
        places += [place for fields in form.limits for place in (fields.remaining, fields.used_percent) if place]
        return _useless(at, f"has nothing at {', '.join(places) or 'the configured places'}")
    return Stated(status, Reading(limits=tuple(limits)), at)


def resolve(data: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901), None when there is none."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(data, dict):
            data = data.get(name)
        elif isinstance(data, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(data):
            data = data[int(name[:9])]
        else:
            return None
    return data


def _useless(at: float, problem: str) -> Stated:
    return Stated(None, Reading(), at, f"the document {problem}")


def _text(data: Any, pointer: str | None) -> str:
    value = resolve(data, pointer) if pointer is not None else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value) if isinstance(value, str) else repr(value)


def _number(data: Any, pointer: str | None) -> float | None:
    return parse_number(_text(data, pointer))


def _limit(fields: LimitFields, data: Any, at: float) -> Limit | None:
    limit, remaining = _number(data, fields.limit), _number(data, fields.remaining)
    used, percent = _number(data, fields.used), _number(data, fields.used_percent)
    ratio = percent / 100 if percent is not None else _number(data, fields.used_ratio)
    if remaining is None and used is not None and limit is not None:
        remaining = max(0.0, limit - used)
    if remaining is None and ratio is not None:
        limit = 1.0 if limit is None else limit
        remaining = max(0.0, limit * (1 - ratio))
    resets_at = parse_reset(_text(data, fields.resets_at), at)
    if resets_at is None:
        resets_at = parse_reset(_text(data, fields.resets_in_s), at)
    if remaining is None and limit is None:
        return None
    return Limit(axis=fields.axis, window_s=fields.window_s, limit=limit, remaining=remaining, resets_at=resets_at)
