"""Streams that LiteLLM opens before it has an answer, and keeps alive with comments: ``sse_keepalive_ping_interval_seconds``.

Their status is 200 whatever comes, so an error is an event; LiteLLM writes it without the reason that a plugin gave, and up
to 1.109 in one form for all APIs. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..types import Endpoint

if TYPE_CHECKING:
    from starlette.types import Message

_FIRST_ERROR: Final = 400
_SERVER_ERROR: Final = 500
#: How an error begins in the form for all APIs, and where events have names.
_UNNAMED: Final = b'data: {"error":'
_NAMED: Final = b"event: error\n"
#: The status of an error by its type, where Anthropic's form has no code.
_STATUS: Final[Mapping[object, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
#: APIs whose events have names.
NAMED: Final = frozenset({Endpoint.MESSAGES, Endpoint.RESPONSES})


def is_stream(start: Message) -> bool:
    """Return whether an answer is a stream of server-sent events."""
    kinds = (value for name, value in start.get("headers", ()) if name.lower() == b"content-type")
    return bool(next(kinds, b"").startswith(b"text/event-stream"))


def is_comment(message: Message) -> bool:
    """Return whether a part of a stream is nothing but whole comments, which only keep the connection alive."""
    body = message.get("body", b"")
    if not body.startswith(b":") or not body.endswith(b"\n\n"):
        return False
    return all(line.startswith(b":") for line in body.split(b"\n") if line)


def error_of(message: Message) -> Mapping[str, Any] | None:
    """Return the error that a stream begins with; None when it begins with something else."""
    body = message.get("body", b"")
    if not body.startswith((_UNNAMED, _NAMED)):
        return None
    try:
        document = json.loads(body.removeprefix(_NAMED).partition(b"\n")[0].removeprefix(b"data: "))
    except (ValueError, RecursionError):
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else None


def is_named(message: Message) -> bool:
    """Return whether an error is in the form of an API whose events have names."""
    body: bytes = message.get("body", b"")
    return body.startswith(_NAMED)


def status_of(error: Mapping[str, Any]) -> int:
    """Return the status that an error would have had as an answer."""
    code = str(error.get("code") or _STATUS.get(error.get("type"), _SERVER_ERROR))
    status = int(code) if code.isascii() and code.isdigit() and len(code) == len(str(_FIRST_ERROR)) else _SERVER_ERROR
    return status if status >= _FIRST_ERROR else _SERVER_ERROR


def error_event(body: Mapping[str, Any], endpoint: Endpoint) -> bytes:
    """Return an error as an event of an API's streams.

    Args:
        body: The error as the answer of a plain request.
        endpoint: The API.
    """
    if endpoint in NAMED:
        return f"event: error\ndata: {_compact({'type': 'error', **body})}\n\n".encode()
    return f"data: {_compact(body)}\n\n".encode()


def _compact(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
