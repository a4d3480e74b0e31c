"""Denials as HTTP answers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..types import Denial

#: Anthropic's error types by status, as its API documents them.
_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SERVER_ERROR: Final = 500


def headers(denial: Denial) -> dict[str, str]:
    """Return the headers of the answer; every 429 has ``retry-after``."""
    found = dict(denial.headers)
    if denial.retry_after_s is not None or denial.status == 429:  # noqa: PLR2004  # HTTP
        found["retry-after"] = str(max(1, math.ceil(denial.retry_after_s or 0.0)))
    return found


def body(denial: Denial, *, anthropic: bool = False) -> dict[str, object]:
    """Return the answer in OpenAI's shape, or in Anthropic's with the code in addition."""
    if anthropic:
        kind = "api_error" if denial.status >= _SERVER_ERROR else "invalid_request_error"
        kind = _ANTHROPIC_TYPES.get(denial.status, kind)
        return {"type": "error", "error": {"type": kind, "message": denial.message, "code": denial.code}}
    error = {"message": denial.message, "type": denial.type, "param": denial.param, "code": denial.code}
    return {"error": error}


def event(denial: Denial, event_id: str) -> dict[str, object]:
    """Return the denial as an event of OpenAI's websocket protocols.

    Args:
        denial: The denial.
        event_id: An id for the event.
    """
    error: dict[str, object] = {
        "message": denial.message,
        "type": denial.type,
        "param": denial.param,
        "code": denial.code,
    }
    found: dict[str, object] = {
        "type": "error",
        "event_id": f"event_{event_id}",
        "status": denial.status,
        "error": error,
    }
    return found | ({"headers": sent} if (sent := headers(denial)) else {})
