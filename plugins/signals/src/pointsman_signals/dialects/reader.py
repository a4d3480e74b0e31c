"""Reads a deployment's quota from the headers of one answer. Pure.

A ``Dialect`` describes a provider's headers, a ``Reader`` reads them, and a ``Reading`` is the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from pointsman.types import Limit

from ..parsing import MAX_TEXT_CHARS, parse_flag, parse_number, parse_reset, parse_retry_after

PER_S: Final = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0, "month": 30 * 86_400.0}

#: ``(text, now, axis so far) -> Unix seconds or None``; the axis so far has the figures of the other headers.
ResetParser = Callable[[str, float, "Axis"], float | None]
#: Gets the name of a part that has failed, and what it has raised.
Fault = Callable[[str, BaseException], None]


class Axis(NamedTuple):
    """One quota axis while its headers are being read, as a reset parser sees it.

    Attributes:
        axis: Its name.
        window_s: Length of its window in seconds, or None.
        limit: The quota of the window, or None.
        remaining: The remaining quota, or None.
    """

    axis: str
    window_s: float | None
    limit: float | None
    remaining: float | None


class Reading(NamedTuple):
    """The quota figures of one answer.

    Attributes:
        limits: Quota axes with at least one figure.
        retry_after_s: How long to wait, in seconds, or None.
        notes: Other figures, by name: ``query_cost_tokens``, ``over_limit`` (0 or 1), ``abuse_penalty`` (0 or 1).
    """

    limits: tuple[Limit, ...] = ()
    retry_after_s: float | None = None
    notes: Mapping[str, float] = MappingProxyType({})


NOTHING: Final = Reading()


class _Meaning(NamedTuple):
    """The meaning of a header name.

    Attributes:
        part: Which figure of the axis, or ``_NOTE``.
        axis: The axis' name, or the note's.
        window_s: The axis' window.
    """

    part: int
    axis: str
    window_s: float | None


class _Plan(NamedTuple):
    """Which headers to read in answers that have the same header names.

    Attributes:
        axes: Axis, window in seconds, and the names of the headers with its limit, remaining and reset; then those with
            the used ratio and the window, or None where there is neither.
        notes: Header name and the note's name.
        structured: Whether there may be headers that need more than one expression per header.
        retry: Whether there is a retry-after.
    """

    axes: tuple[tuple[str, float | None, str | None, str | None, str | None, tuple[str | None, str | None] | None], ...]
    notes: tuple[tuple[str, str], ...]
    structured: bool
    retry: bool


def clock_reset(text: str, now: float, axis: Axis) -> float | None:
    """Read a reset as a duration from now or, when it can only be that, as an instant."""
    del axis
    return parse_reset(text, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one provider writes its quota into response headers.

    Attributes:
        name: Unique; not that of a built-in one.
        providers: LiteLLM's provider names that use it.
        hosts: Suffixes of host names that use it, whatever provider is configured.
        headers: Regular expressions over the whole lower-case header name. Groups: ``part`` (``limit``, ``remaining``,
            ``reset``, ``used_ratio``, ``window``), ``axis``, and for windows named in the header ``unit`` (second,
            minute, hour, day, month) with an optional ``count`` before it.
        part: ``part`` of headers whose expression has no such group.
        parts: Name of a part by the provider's word for it.
        axes: Name of an axis by the provider's word for it; others keep their word, with underscores. ``""`` names the
            axis of headers without one.
        windows_s: Documented length of the window by axis, in seconds.
        reset: Reads the reset header.
        notes: Name of a figure in ``Reading.notes`` by header name.
        per_account: Whether the limits count for the whole account rather than for one model.
        source: Where it is documented or was observed.
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
#: Prefix of header names that need more than one expression per header.
_STRUCTURED: Final = "ratelimit"
#: Header names come from outside: the number of remembered sets is bounded.
_MAX_PLANS: Final = 256
_MAX_PLAN_NAMES: Final = 128
_SHORT: Final = 15


class Reader:
    """Reads one dialect's headers; remembers the meaning of their names.

    Args:
        dialect: The row to read by.
        structured: Reads the headers that need more than one expression per header, after the row's own.
        fault: Gets what the row's own function has raised; the reset is then unknown. By default it is raised.

    Raises:
        ValueError: an expression of the row is not a regular expression.
    """

    def __init__(
        self,
        dialect: Dialect,
        structured: Callable[[Mapping[str, str], float], Sequence[Limit]] | None = None,
        fault: Fault | None = None,
    ) -> None:
        self._fault = fault
        self.dialect = dialect
        self._structured = structured
        self._plans: dict[tuple[str, ...], _Plan] = {}
        try:
            self._patterns = tuple(re.compile(pattern, re.ASCII) for pattern in dialect.headers)
        except re.error as err:
            raise ValueError(f"dialect {dialect.name!r}: {err.pattern!r} is not a regular expression: {err}") from err

    def read(self, headers: Mapping[str, str], now: float) -> Reading:
        """Read an answer's headers (lower-case names). Never raises, whatever they contain.

        Args:
            headers: Raw response headers.
            now: Unix seconds when they arrived.
        """
        # A provider keeps sending the same names in the same order; which of them matter is computed once.
        names = tuple(headers)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plan(names)
        limits = self._limits(plan, headers, now)
        notes: dict[str, float] = {}
        for name, note in plan.notes:
            _note(notes, note, headers[name])
        if self._structured is not None and plan.structured:
            limits.extend(self._structured(headers, now))
        retry_after_s = None
        if plan.retry:
            retry_after_s = parse_retry_after(headers.get("retry-after"), headers.get("retry-after-ms"), now)
        if not limits and retry_after_s is None and not notes:
            return NOTHING
        return Reading(tuple(limits), retry_after_s, notes)

    def _limits(self, plan: _Plan, headers: Mapping[str, str], now: float) -> list[Limit]:
        parse = self.dialect.reset
        limits = []
        for axis, window_s, size_name, remaining_name, reset_name, rare in plan.axes:
            size = None if size_name is None else _size(headers[size_name])
            remaining = None if remaining_name is None else _figure(headers[remaining_name])
            if rare is not None:
                used_name, window_name = rare
                used = None if used_name is None else parse_number(headers[used_name])
                if used is not None and remaining is None:
                    size, remaining = 1.0, max(0.0, 1.0 - used)
                reported_s = None if window_name is None else parse_number(headers[window_name])
                window_s = reported_s or window_s  # noqa: PLW2901  # the answer overrides the documentation
            resets_at = None
            if reset_name is not None:
                text = headers[reset_name]
                if parse is clock_reset:
                    resets_at = parse_reset(text, now)
                else:
                    resets_at = self._parsed(text, now, Axis(axis, window_s, size, remaining))
            if size is not None or remaining is not None or resets_at is not None:
                limits.append(Limit(axis=axis, window_s=window_s, limit=size, remaining=remaining, resets_at=resets_at))
        return limits

    def _parsed(self, text: str, now: float, axis: Axis) -> float | None:
        """Read a reset by the row's own function, which a third party may have written."""
        try:
            return _time(self.dialect.reset(text, now, axis))
        except KeyboardInterrupt:
            raise
        except BaseException as err:
            if self._fault is None:
                raise
            self._fault(f"dialect {self.dialect.name}", err)
            return None

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        rows: dict[tuple[str, float | None], list[str | None]] = {}
        notes = []
        for name in names:
            meaning = self._find_meaning(name) if len(name) <= MAX_TEXT_CHARS else None
            if meaning is None:
                continue
            part, axis, window_s = meaning
            if part == _NOTE:
                notes.append((name, axis))
            else:
                rows.setdefault((axis, window_s), [None] * _NOTE)[part] = name
        axes = []
        for (axis, window_s), row in rows.items():
            rare = (row[_USED_RATIO], row[_WINDOW])
            axes.append((axis, window_s, row[_LIMIT], row[_REMAINING], row[_RESET], rare if any(rare) else None))
        plan = _Plan(
            tuple(axes),
            tuple(notes),
            structured=any(name.startswith(_STRUCTURED) for name in names),
            retry="retry-after" in names or "retry-after-ms" in names,
        )
        # Header names come from outside; very long lists are not remembered.
        if len(names) <= _MAX_PLAN_NAMES:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[names] = plan
        return plan

    def _find_meaning(self, name: str) -> _Meaning | None:
        dialect = self.dialect
        if name in dialect.notes:
            return _Meaning(_NOTE, dialect.notes[name], None)
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
            return _Meaning(part, axis, window_s)
        return None


def _time(made: object) -> float | None:
    """Return the time that a function of a dialect has returned.

    Raises:
        TypeError: it is none.
    """
    if made is None:
        return None
    if isinstance(made, bool) or not isinstance(made, float | int) or not math.isfinite(made):
        raise TypeError(f"its reset function returned {made!r:.80}, neither Unix seconds nor None")
    return made


def _figure(text: str) -> float | None:
    return float(text) if len(text) <= _SHORT and text.isdecimal() else parse_number(text)


def _size(text: str) -> float | None:
    return _known_size(text) if len(text) <= _SHORT else parse_number(text)


#: Unlike its remaining part, the size of a quota is the same in every answer.
_known_size: Final = lru_cache(maxsize=1024)(_figure)


def _note(notes: dict[str, float], name: str, text: str) -> None:
    value = parse_number(text)
    if value is None:
        value = parse_flag(text)
    if value is not None:
        notes[name] = value
