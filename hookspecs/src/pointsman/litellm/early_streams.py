"""Streams that LiteLLM opens before it has an answer, and keeps alive with comments: ``sse_keepalive_ping_interval_seconds``.

Their status is 200 whatever comes, so an error is an event; LiteLLM writes it in one form for all APIs, without the reason
that a plugin gave. Pure.
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
_PREFIX: Final = b'data: {"error":'
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
    if not body.startswith(_PREFIX):
        return None
    try:
        document = json.loads(body.partition(b"\n")[0].removeprefix(b"data: "))
    except (ValueError, RecursionError):
        return None
    error = document.get("error")
    return error if isinstance(error, dict) else None


def status_of(error: Mapping[str, Any]) -> int:
    """Return the status that an error would have had as an answer."""
    code = str(error.get("code"))
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
