"""Why a provider's call failed: the error's class, what of its text may be kept, and how long it asks to wait.

Total: malformed input gives an unknown class or None, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from ..types import AttemptError, ErrorClass

_MESSAGE_CHARS: Final = 300
#: Errors about traffic rather than about the request or its key: their text may be kept.
_TEXT_KEPT: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.TIMEOUT, ErrorClass.CONNECTION})
#: A provider's code for an error, such as ``insufficient_quota``: neither a sentence nor a key.
_CODE: Final = re.compile(r"[a-z]+(?:_[a-z]+)*", re.ASCII)
_MOST_CODE_CHARS: Final = 64
#: The length at which an error's text is cut before patterns are applied to it.
_READ_CHARS: Final = 2_000
#: What may be a key or an id within a text, if it has digits.
_LONG_WORD: Final = re.compile(r"[^\s'\"]{16,}")
_DIGIT: Final = re.compile(r"\d")
#: The beginning of a quotation; an apostrophe within a word is none.
_QUOTATION: Final = re.compile(r"(?<!\w)'|[\"`“„‘«‹]")  # noqa: RUF001  # they are meant
#: The longest ``retry-after``: an HTTP date has 29 characters.
_MOST_RETRY_AFTER_CHARS: Final = 64
#: The longest quota window is a month: no provider asks to wait longer.
_MOST_RETRY_AFTER_S: Final = 31 * 86_400.0

#: LiteLLM's exception classes whose status alone would mislead.
_BY_NAME: Final[Mapping[str, ErrorClass]] = {
    "Timeout": ErrorClass.TIMEOUT,
    "APIConnectionError": ErrorClass.CONNECTION,
    "ContentPolicyViolationError": ErrorClass.CONTENT_POLICY,
    "ContextWindowExceededError": ErrorClass.CONTEXT_WINDOW,
    "RateLimitError": ErrorClass.RATE_LIMIT,
    "AuthenticationError": ErrorClass.AUTH,
    "PermissionDeniedError": ErrorClass.AUTH,
    "MidStreamFallbackError": ErrorClass.SERVER,
    # What breaks while an answer is read arrives as the HTTP client's own exception: httpx's, aiohttp's, Python's.
    "TimeoutException": ErrorClass.TIMEOUT,
    "TimeoutError": ErrorClass.TIMEOUT,
    "TransportError": ErrorClass.CONNECTION,
    "ClientError": ErrorClass.CONNECTION,
    "ConnectionError": ErrorClass.CONNECTION,
}


def attempt_error(err: BaseException, headers: Mapping[str, str], now: float) -> AttemptError:
    """Return why an attempt failed, derived from the exception's type and status, never from its message."""
    # LiteLLM wraps what ends a stream before its first content.
    inner = getattr(err, "original_exception", None)
    if type(err).__name__ == "MidStreamFallbackError" and isinstance(inner, Exception):
        err = inner
    raw = getattr(err, "status_code", None)
    status = raw if isinstance(raw, int) else None
    kind = next((_BY_NAME[c.__name__] for c in type(err).__mro__ if c.__name__ in _BY_NAME), None)
    if kind is None and status is not None:
        kind = ErrorClass.of_status(status)
    return AttemptError(
        kind=kind or ErrorClass.UNKNOWN,
        status=status,
        message=_error_message(err, kind),
        retry_after_s=retry_after_s(headers, now),
    )


def _error_message(err: BaseException, kind: ErrorClass | None) -> str:
    """Return the error's type and the part of its text that may be kept: it may quote the prompt or a key."""
    name, code = type(err).__name__, getattr(err, "code", None)
    if isinstance(code, str) and len(code) <= _MOST_CODE_CHARS and _CODE.fullmatch(code):
        name = f"{name} ({code})"
    if kind not in _TEXT_KEPT:
        return name
    text = _first_line(str(err))[:_MESSAGE_CHARS]
    return f"{name}: {text}" if text else name


def _first_line(text: str) -> str:
    """Return the beginning of a text from outside: its first line up to a quotation, without what may be a key or an id.

    Where a quotation ends is not certain, because of apostrophes, so nothing is kept after its beginning.
    """
    line, end, _ = text[:_READ_CHARS].partition("\n")
    if not end and len(text) > _READ_CHARS:
        line = line.rpartition(" ")[0]  # its last word is not whole
    if (quotation := _QUOTATION.search(line)) is not None:
        line = f"{line[: quotation.start()]}***"
    return _LONG_WORD.sub(lambda word: "***" if _DIGIT.search(word[0]) else word[0], line)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return ``retry-after-ms`` or ``retry-after`` (seconds or HTTP date) in seconds from now, or None."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text or len(text) > _MOST_RETRY_AFTER_CHARS:
            continue
        try:
            seconds = float(text) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - now
            except (TypeError, ValueError):
                continue
        if seconds <= _MOST_RETRY_AFTER_S:
            return max(0.0, seconds)
    return None
