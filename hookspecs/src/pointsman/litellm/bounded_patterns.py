"""LiteLLM's patterns for what must not be shown, in a time that does not grow with the text. Pure.

LiteLLM looks for secrets and for names of internal hosts in its errors, several times for each of them and on the event
loop. Its errors repeat what a client or a provider has sent. The pattern for hosts takes 15 seconds for 16 KB of ``a-a-a-``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

#: Characters that are kept at each end of a long text: the beginning of an error, and the end of a traceback.
END_CHARS: Final = 4_096
#: No part that the pattern for internal names looks for has a space in it, and no name is longer.
WORD_CHARS: Final = 256

_LONG_WORD: Final = re.compile(rf"\S{{{WORD_CHARS + 1},}}")
_PEM_END: Final = re.compile(r"-----END[A-Z -]{0,64}-----")
#: Words at a cut that may belong to a secret whose beginning is not there any more, such as "Authorization: Bearer".
_WORDS_LEFT_OUT: Final = 3


class BoundedPattern:
    """A pattern that sees a shortened text; used like it.

    Args:
        pattern: The pattern.
        shorten: Returns the text that it sees, and that is returned, instead of one of more than ``WORD_CHARS`` characters.
    """

    def __init__(self, pattern: re.Pattern[str], shorten: Callable[[str], str]) -> None:
        self._pattern = pattern
        self._shorten = shorten

    def sub(self, replacement: Any, text: str, count: int = 0) -> str:
        """Return the shortened text with what the pattern finds replaced."""
        if len(text) > WORD_CHARS:  # a shorter one has nothing to shorten
            text = self._shorten(text)
        return self._pattern.sub(replacement, text, count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pattern, name)


def without_middle(text: str) -> str:
    """Return a text, of a long one both ends and how many characters are left out between them.

    A secret that is cut in two would not be recognised: words at the cut and unfinished keys in PEM are left out as well.
    """
    if len(text) <= 2 * END_CHARS:
        return text
    head = _unless_one(text[:END_CHARS].rsplit(None, 1), 0)
    if (begin := head.rfind("-----BEGIN")) >= 0 and not _PEM_END.search(head, begin):
        head = head[:begin]
    tail = _unless_one(text[-END_CHARS:].split(None, _WORDS_LEFT_OUT), -1)
    begin, end = tail.find("-----BEGIN"), tail.find("-----END")
    if end >= 0 and not 0 <= begin < end:
        tail = tail[end:]
    return f"{head} ... ({len(text) - len(head) - len(tail)} characters left out) ... {tail}"


def with_short_words(text: str) -> str:
    """Return a text, of each long word in it the beginning."""
    return _LONG_WORD.sub(lambda word: f"{word[0][:WORD_CHARS]}...", text)


def _unless_one(parts: list[str], which: int) -> str:
    return parts[which] if len(parts) > 1 else ""
