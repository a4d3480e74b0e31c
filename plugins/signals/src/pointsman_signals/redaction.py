"""Error messages without secrets. Pure."""

from __future__ import annotations

import re
from typing import Final

from pointsman.text import printable

MAX_MESSAGE_CHARS: Final = 200
#: The rest of a longer text is ignored.
MAX_RAW_CHARS: Final = 8 * MAX_MESSAGE_CHARS

_SECRETS: Final = (
    # credentials in a URL
    re.compile(r"(?<=://)[^/\s:@]{1,200}:[^/\s@]{1,200}(?=@)"),
    # a header or a parameter whose name says that it is a secret
    re.compile(
        r"(?i)(?<=[\"'?&\s,{(])(?:[\w-]{0,30}(?:api[_-]?key|token|secret|password|credential|authorization|signature)s?)"
        r"[\"']?\s{0,3}[:=]\s{0,3}(?!\d{1,9}\b)(?:bearer\s{1,3})?[\"']?[^\s\"',;&)}]{3,}"
    ),
    re.compile(r"(?i)\bbearer\s{1,3}[\w.~+/=-]{4,}"),
    # the keys of well-known providers
    re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|pplx|csk|fw|AKIA|AIza|ya29)[-_.]?[A-Za-z0-9*][\w*.-]{10,}"),
    # a long word with both letters and digits: a token, a hash, base64
    re.compile(r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+/=-]{32,}"),
)


def scrub(text: str) -> str:
    """Return an error message on one line, shortened, with everything that looks like a secret as ``***``."""
    line = " " + " ".join(text[:MAX_RAW_CHARS].split())
    for pattern in _SECRETS:
        line = pattern.sub("***", line)
    line = printable(line.strip(), instead="?")
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."
