"""Finds personal data in text, and replaces it by placeholders and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

#: Patterns by kind, in the order in which they are looked for. Each is bounded, so that a long text costs linear time.
PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "email": re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"),
    "card": re.compile(r"(?<![\d-])\d{4}(?:[ -]?\d{4}){3}(?![\d-])"),
    "phone": re.compile(r"(?<![\w+])\+\d{1,3}(?:[ ()/.-]{0,2}\d{1,4}){2,6}(?!\d)"),
}
_PLACEHOLDER: Final = re.compile(r"<(?:EMAIL|CARD|PHONE)_\d{1,6}>")
_MOST_PLACEHOLDER_CHARS: Final = len("<EMAIL_999999>")


class Vault:
    """The placeholders of one request: the same value has the same placeholder.

    Args:
        kinds: Which kinds of data are replaced.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._patterns = [(kind.upper(), pattern) for kind, pattern in PATTERNS.items() if kind in set(kinds)]
        self._placeholders: dict[str, str] = {}
        self.values: dict[str, str] = {}

    def redact(self, text: str) -> str:
        """Return the text with placeholders."""
        for kind, pattern in self._patterns:
            text = pattern.sub(lambda found, kind=kind: self._placeholder(kind, found[0]), text)  # type: ignore[misc]  # bound per turn
        return text

    def restore(self, text: str) -> str:
        """Return the text with the values; a placeholder that is not of this request stays."""
        return _PLACEHOLDER.sub(lambda found: self.values.get(found[0], found[0]), text) if self.values else text

    def _placeholder(self, kind: str, value: str) -> str:
        known = self._placeholders.get(value)
        if known is None:
            known = f"<{kind}_{len(self._placeholders) + 1}>"
            self._placeholders[value] = known
            self.values[known] = value
        return known


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return JSON with every text in it changed; names of fields stay."""
    if isinstance(value, Mapping):
        return {name: mapped(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


class Tail:
    """Restores one text that comes in pieces: what may be the beginning of a placeholder is held back."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece; return what can be shown of the text by now."""
        text = self._held + text
        start = text.rfind("<")
        open_ = start >= 0 and ">" not in text[start:] and len(text) - start < _MOST_PLACEHOLDER_CHARS
        self._held = text[start:] if open_ else ""
        return self._vault.restore(text[:start] if open_ else text)

    def end(self) -> str:
        """Return what is still held back."""
        held, self._held = self._held, ""
        return held
