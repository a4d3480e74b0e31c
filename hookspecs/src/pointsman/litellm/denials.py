"""Denials as HTTP answers. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..types import Denial


def headers(denial: Denial) -> dict[str, str]:
    """Return the headers of the answer; every 429 has ``retry-after``."""
    found = dict(denial.headers)
    if denial.retry_after_s is not None or denial.status == 429:  # noqa: PLR2004  # HTTP
        found["retry-after"] = str(max(1, math.ceil(denial.retry_after_s or 0.0)))
    return found


def body(denial: Denial) -> dict[str, object]:
    """Return the answer in OpenAI's shape."""
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
