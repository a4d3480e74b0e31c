"""What one answer's headers say about a deployment's quota.

A ``Reading`` is what a dialect makes of the headers; ``Dialect`` is one row of the table in ``dialects``. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pointsman.types import Limit

from .values import MAX_TEXT_CHARS, parse_flag, parse_number, parse_reset, parse_retry_after

PER_S: Final = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0, "month": 30 * 86_400.0}

#: ``(text, now, axis so far) -> Unix seconds or None``; the axis so far has what the other headers said.
ResetParser = Callable[[str, float, "Axis"], float | None]


class Axis(NamedTuple):
    """One quota axis while its headers are being read: what a reset parser gets to see.

    Attributes:
        axis: Its name.
        window_s: Length of its window in seconds, or None.
        limit: The most the window allows, or None.
        remaining: What is left, or None.
    """

    axis: str
    window_s: float | None
    limit: float | None
    remaining: float | None


class Reading(NamedTuple):
    """What one answer said.

    Attributes:
        limits: Quota axes, those with any figure.
        retry_after_s: How long to wait, in seconds, or None.
        notes: Other figures, by name: ``query_cost_tokens``, ``over_limit`` (0 or 1), ``abuse_penalty`` (0 or 1).
    """

    limits: tuple[Limit, ...] = ()
    retry_after_s: float | None = None
    notes: Mapping[str, float] = MappingProxyType({})


NOTHING: Final = Reading()


class _Meaning(NamedTuple):
    """What a header name stands for.

    Attributes:
        part: Index into a row of figures, or ``_NOTE``.
        axis: The axis' name, or the note's.
        window_s: The axis' window.
        row: Number of the axis among all that this reader has met.
    """

    part: int
    axis: str
    window_s: float | None
    row: int


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


_LIMIT, _REMAINING, _RESET, _WINDOW, _USED_RATIO, _NOTE = range(6)
_PARTS: Final = {
    "limit": _LIMIT,
    "remaining": _REMAINING,
    "reset": _RESET,
    "window": _WINDOW,
    "used_ratio": _USED_RATIO,
}
_UNMET: Final = _Meaning(_NOTE, "", None, -1)
#: Header names come from outside: no more of them are remembered.
_MAX_NAMES: Final = 1024
_SHORT: Final = 15


class Reader:
    """Reads one dialect's headers; remembers what each header name means.

    Args:
        dialect: The row to read by.
        structured: Reads headers that one expression a header cannot describe, after the row's own.

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
        self._meanings: dict[str, _Meaning | None] = {}
        self._rows: dict[tuple[str, float | None], int] = {}
        try:
            self._patterns = tuple(re.compile(pattern, re.ASCII) for pattern in dialect.headers)
        except re.error as err:
            raise ValueError(f"dialect {dialect.name!r}: {err.pattern!r} is no regular expression: {err}") from err

    def read(self, headers: Mapping[str, str], now: float) -> Reading:
        """Read an answer's headers (lower-case names). Never raises, whatever they hold.

        Args:
            headers: Raw response headers.
            now: Unix seconds when they arrived.
        """
        meanings, note, reset, short = self._meanings, _NOTE, _RESET, _SHORT
        if len(meanings) > _MAX_NAMES:
            meanings.clear()
            self._rows.clear()
        rows: dict[int, list[Any]] = {}
        notes: dict[str, float] = {}
        for name, text in headers.items():
            meaning = meanings.get(name, _UNMET)
            if meaning is _UNMET:
                meaning = self._meet(name)
            if meaning is None:
                continue
            part, axis, _, number = meaning
            if part == note:
                _note(notes, axis, text)
                continue
            row = rows.get(number)
            if row is None:
                row = rows[number] = [None, None, None, None, None, meaning]
            if part == reset:
                row[reset] = text
            else:
                row[part] = float(text) if len(text) <= short and text.isdecimal() else parse_number(text)
        limits = [limit for row in rows.values() if (limit := self._limit(row, now)) is not None]
        if self._structured is not None:
            limits.extend(self._structured(headers, now))
        retry_after_s = parse_retry_after(headers.get("retry-after"), headers.get("retry-after-ms"), now)
        if not limits and retry_after_s is None and not notes:
            return NOTHING
        return Reading(tuple(limits), retry_after_s, notes)

    def _limit(self, row: list[Any], now: float) -> Limit | None:
        size, remaining, reset, window_s, used, meaning = row
        if used is not None and remaining is None:
            size, remaining = 1.0, max(0.0, 1.0 - used)
        if not window_s:
            window_s = meaning.window_s
        resets_at = None
        if reset is not None:
            parse = self.dialect.reset
            if parse is clock_reset:
                resets_at = parse_reset(reset, now)
            else:
                resets_at = parse(reset, now, Axis(meaning.axis, window_s, size, remaining))
        if size is None and remaining is None and resets_at is None:
            return None
        return Limit(axis=meaning.axis, window_s=window_s, limit=size, remaining=remaining, resets_at=resets_at)

    def _meet(self, name: str) -> _Meaning | None:
        meaning = self._meanings[name] = self._find_meaning(name) if len(name) <= MAX_TEXT_CHARS else None
        return meaning

    def _find_meaning(self, name: str) -> _Meaning | None:
        dialect = self.dialect
        if name in dialect.notes:
            return _Meaning(_NOTE, dialect.notes[name], None, -1)
        for pattern in self._patterns:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            groups = match.groupdict()
            word = groups.get("part") or dialect.part
            part = _PARTS.get(dialect.parts.get(word, word))
            if part is None:
                continue
            word = groups.get("axis") or ""
            axis = dialect.axes.get(word, word.replace("-", "_"))
            window_s = dialect.windows_s.get(axis)
            unit = groups.get("unit")
            if unit in PER_S:
                window_s = PER_S[unit] * int(groups.get("count") or 1)
            row = self._rows.setdefault((axis, window_s), len(self._rows))
            return _Meaning(part, axis, window_s, row)
        return None


def _note(notes: dict[str, float], name: str, text: str) -> None:
    value = parse_number(text)
    if value is None:
        value = parse_flag(text)
    if value is not None:
        notes[name] = value
