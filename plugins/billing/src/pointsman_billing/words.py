"""Text from outside made fit to be stored, delivered and shown."""

from __future__ import annotations

import hashlib
from typing import Final

MOST_CHARS: Final = 200
_DIGEST_CHARS: Final = 16


def clean(text: str) -> str:
    """Return text that every database and every JSON reader takes: no NUL, no half characters, of bounded length.

    A text that is too long ends with a hash of the whole, so that two of them stay two.
    """
    if len(text) <= MOST_CHARS and text.isascii() and text.isprintable():
        return text
    whole = text.encode("utf-8", "replace")
    kept = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in whole.decode("utf-8"))
    if len(kept) <= MOST_CHARS:
        return kept
    return f"{kept[: MOST_CHARS - _DIGEST_CHARS - 1]}~{hashlib.sha256(whole).hexdigest()[:_DIGEST_CHARS]}"
