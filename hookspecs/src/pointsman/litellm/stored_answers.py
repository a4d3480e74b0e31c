"""Answers that providers keep: which of them show later what they used, and when they show it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from ..types import Endpoint, RequestContext

#: The endpoints whose answers may be complete later, or show what was used earlier.
STORED: Final = frozenset({Endpoint.BATCHES, Endpoint.RESPONSES})
_WORKING: Final = frozenset({"queued", "in_progress"})
_BATCH_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_LONGEST_ID: Final = 4_096
#: What LiteLLM puts around a provider's id, to know which deployment has the answer.
_WRAPPED: Final = re.compile(rb"(?:response_id|llm_batch_id):([^;,]+)")


def later(ctx: RequestContext, response: Any) -> str | None:
    """Return the provider's id of an answer that is not complete when its request is answered; None for others.

    Args:
        ctx: The request.
        response: LiteLLM's answer.
    """
    if not ctx.generates:
        return None
    if ctx.endpoint is Endpoint.RESPONSES and getattr(response, "status", None) in _WORKING:
        return _id(response)
    return _id(response) if ctx.endpoint is Endpoint.BATCHES else None


def is_working(response: Any) -> bool:
    """Return whether a model still works for a stored response."""
    return getattr(response, "status", None) in _WORKING


def complete(ctx: RequestContext, response: Any) -> str | None:
    """Return the provider's id of an answer that a request has read and that shows what was used; None for others.

    Args:
        ctx: The request.
        response: LiteLLM's answer.
    """
    if ctx.generates:
        return None
    if ctx.endpoint is Endpoint.RESPONSES:
        return _id(response) if getattr(response, "usage", None) is not None else None
    if ctx.endpoint is Endpoint.BATCHES and getattr(response, "status", None) in _BATCH_ENDED:
        return _id(response)
    return None


def _id(response: Any) -> str | None:
    found = getattr(response, "id", None)
    if not isinstance(found, str) or not found or len(found) > _LONGEST_ID:
        return None
    return unwrapped(found)


def unwrapped(wrapped: str) -> str:
    """Return the provider's id of a response or a batch, without what LiteLLM has put around it."""
    coded = wrapped.partition("_")[2].encode()
    try:
        inside = _WRAPPED.search(base64.b64decode(coded + b"=" * (-len(coded) % 4)))
    except (binascii.Error, ValueError):
        return wrapped
    return wrapped if inside is None else inside[1].decode("utf-8", "replace")
