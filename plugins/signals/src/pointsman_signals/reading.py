"""What one answer's headers say about a deployment's quota.

A ``Reading`` is what a dialect makes of the headers; ``Dialect`` is one row of the table in ``dialects``. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from pointsman.types import Limit

from .values import MAX_TEXT_CHARS, parse_flag, parse_number, parse_reset, parse_retry_after

PER_S: Final = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0, "month": 30 * 86_400.0}

#: ``(text, now, axis so far) -> Unix seconds or None``; the axis so far has what the other headers said.
ResetParser = Callable[[str, float, "Axis"], float | None]


@dataclass(slots=True)
class Axis:
    """One quota axis while its headers are being read."""

    axis: str
    window_s: float | None
    limit: float | None = None
    remaining: float | None = None
    resets_at: float | None = None
    reset_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one answer said.

    Attributes:
        limits: Quota axes, those with any figure.
        retry_after_s: How long to wait, in seconds, or None.
        notes: Other figures, by name: ``query_cost_tokens``, ``over_limit`` (0 or 1), ``abuse_penalty`` (0 or 1).
    """

    limits: tuple[Limit, ...] = ()
    retry_after_s: float | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


NOTHING: Final = Reading()


@dataclass(frozen=True, slots=True)
class _Meaning:
    part: str
    axis: str
    window_s: float | None


def clock_reset(text: str, now: float, axis: Axis) -> float | None:
    """Read a reset as a duration from now or, when it can only be that, as an instant."""
    del axis
    return parse_reset(text, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one provider writes its quota into response headers.

    Attributes:
        name: Unique; the later one of the same name replaces the earlier.
        providers: LiteLLM's provider names that speak it.
        hosts: Ends of host names that speak it, whatever provider the configuration says.
        headers: Regular expressions over the whole lower-case header name. Groups: ``part`` (``limit``, ``remaining``,
            ``reset``, ``used_ratio``, ``window``), ``axis``, and for windows named in the header ``unit`` (second,
            minute, hour, day, month) with an optional ``count`` before it.
        part: ``part`` of headers whose expression has no such group.
        parts: The provider's word for a part to ours.
        axes: The provider's word for an axis to ours; others keep theirs with underscores. ``""`` names the axis of
            headers without one.
        windows_s: Our axis to the length of its window where the documentation says it, in seconds.
        reset: Reads the reset header.
        notes: Whole header name to the name of a figure in ``Reading.notes``.
        per_account: Whether the limits count for the whole account rather than for one model.
        source: Where it is documented or was seen.
    """

    name: str
    providers: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    part: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)
    windows_s: Mapping[str, float] = field(default_factory=dict)
    reset: ResetParser = clock_reset
    notes: Mapping[str, str] = field(default_factory=dict)
    per_account: bool = False
    source: str = ""


_PARTS: Final = frozenset({"limit", "remaining", "reset", "used_ratio", "window"})


class Reader:
    """Reads one dialect's headers; remembers what each header name means.

    Args:
        dialect: The row to read by.
        structured: Reads headers that one expression a header cannot describe, tried after the row's own.

    Raises:
        ValueError: an expression of the row is not one.
    """

    def __init__(
        self,
        dialect: Dialect,
        structured: Callable[[Mapping[str, str], float], Sequence[Limit]] | None = None,
    ) -> None:
        self.dialect = dialect
        self._structured = structured
        try:
            self._patterns = tuple(re.compile(pattern, re.ASCII) for pattern in dialect.headers)
        except re.error as err:
            raise ValueError(f"dialect {dialect.name!r}: {err.pattern!r} is no regular expression: {err}") from err
        self._meaning = lru_cache(maxsize=512)(self._find_meaning)

    def read(self, headers: Mapping[str, str], now: float) -> Reading:
        """Read an answer's headers (lower-case names). Never raises, whatever they hold.

        Args:
            headers: Raw response headers.
            now: Unix seconds when they arrived.
        """
        axes: dict[tuple[str, float | None], Axis] = {}
        notes: dict[str, float] = {}
        for name, text in headers.items():
            meaning = self._meaning(name)
            if meaning is None or len(text) > MAX_TEXT_CHARS:
                continue
            if meaning.part == "note":
                value = parse_number(text)
                value = parse_flag(text) if value is None else value
                if value is not None:
                    notes[meaning.axis] = value
                continue
            key = (meaning.axis, meaning.window_s)
            axis = axes.get(key)
            if axis is None:
                axis = axes[key] = Axis(meaning.axis, meaning.window_s)
            _fill(axis, meaning.part, text)
        limits = [limit for axis in axes.values() if (limit := self._limit(axis, now))] if axes else []
        if self._structured is not None:
            limits.extend(self._structured(headers, now))
        retry_after_s = parse_retry_after(headers.get("retry-after"), headers.get("retry-after-ms"), now)
        if not limits and retry_after_s is None and not notes:
            return NOTHING
        return Reading(limits=tuple(limits), retry_after_s=retry_after_s, notes=notes)

    def _limit(self, axis: Axis, now: float) -> Limit | None:
        if axis.reset_text is not None:
            axis.resets_at = self.dialect.reset(axis.reset_text, now, axis)
        if axis.limit is None and axis.remaining is None and axis.resets_at is None:
            return None
        return Limit(
            axis=axis.axis,
            window_s=axis.window_s,
            limit=axis.limit,
            remaining=axis.remaining,
            resets_at=axis.resets_at,
        )

    def _find_meaning(self, name: str) -> _Meaning | None:
        dialect = self.dialect
        if name in dialect.notes:
            return _Meaning("note", dialect.notes[name], None)
        for pattern in self._patterns:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            groups = match.groupdict()
            word = groups.get("part") or dialect.part
            part = dialect.parts.get(word, word)
            if part not in _PARTS:
                continue
            word = groups.get("axis") or ""
            axis = dialect.axes.get(word, word.replace("-", "_"))
            window_s = dialect.windows_s.get(axis)
            unit = groups.get("unit")
            if unit in PER_S:
                window_s = PER_S[unit] * int(groups.get("count") or 1)
            return _Meaning(part, axis, window_s)
        return None


def _fill(axis: Axis, part: str, text: str) -> None:
    if part == "reset":
        axis.reset_text = text
        return
    value = parse_number(text)
    if value is None:
        return
    if part == "limit":
        axis.limit = value
    elif part == "remaining":
        axis.remaining = value
    elif part == "used_ratio":
        axis.limit = 1.0
        axis.remaining = max(0.0, 1.0 - value)
    elif value > 0:
        axis.window_s = value
