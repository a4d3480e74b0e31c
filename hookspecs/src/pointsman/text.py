"""Text from outside made fit for a terminal, a header or a log line, and durations as providers write them. Pure."""

from __future__ import annotations

import math
from typing import Final

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

_SECOND_MS: Final = 1_000
_MINUTE_MS: Final = 60_000


def printable(text: str, chars: int | None = None, *, keep: str = "", instead: str = REPLACEMENT) -> str:
    """Return a text without control sequences, unpaired surrogates and unusual white space.

    Args:
        text: Any text.
        chars: Its greatest length; the rest is cut off. None: any length.
        keep: Characters that stay although they are not printable, for example a line break.
        instead: What each of the other unprintable characters becomes.
    """
    text = text[:chars]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else instead for char in text)


def one_line(text: str, chars: int | None = None) -> str:
    """Return a text on one line: every run of white space is one space, and everything is printable.

    Args:
        text: Any text.
        chars: Its greatest length; the rest is cut off. None: any length.
    """
    return printable(" ".join(text.split()), chars)


def duration(seconds: float) -> str:
    """Return a duration as OpenAI's rate-limit headers write it, to the millisecond and rounded up.

    ``0s``, ``6ms``, ``1.5s``, ``6m0s``, ``1h0m0s``.

    Args:
        seconds: The duration, at least 0.
    """
    # Rounding first: 0.006 s is 6 ms, although 0.006 * 1000 is a little more than 6.
    ms = math.ceil(round(seconds * 1000, 6))
    if 0 < ms < _SECOND_MS:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, _MINUTE_MS)
    hours, minutes = divmod(minutes, 60)
    rest = f"{rest_ms / 1000:g}s"
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}" if minutes else rest
