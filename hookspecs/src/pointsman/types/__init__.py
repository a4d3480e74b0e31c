"""The frozen values that travel between the host and the plugins.

Plugins meet only through these. All of them are immutable, all of them can be written as JSON (``Settlement`` is, into
the journal), and units are in the names: ``_ms``, ``_s``, ``_at`` (Unix seconds), ``_tokens``, ``_usd_micros``
(millionths of a US dollar, an integer), ``_ratio`` (0 to 1).
"""

from __future__ import annotations

from .attempts import Answer, Attempt, AttemptError, Settlement, ToolCall
from .events import Event, OwnCallEnded, StoreEmptied
from .kinds import CALLERS_FAULT, OWN_CALLS, AttemptKind, Endpoint, ErrorClass, Outcome
from .requests import Credential, Identity, RequestContext
from .reserved import (
    CREDENTIAL_FIELDS,
    CREDENTIAL_HEADERS,
    FIXED_FIELDS,
    FRAMING_HEADERS,
    HOST_HEADERS,
    WITHHELD,
    is_credential_header,
    without_credentials,
)
from .routing import Candidate, Denial, Deployment, Refusal, Reply, Reservation, Route
from .signals import Limit, Quantiles, Signal, SignalStatus, Status
from .upstream import Chunk, Execution, UpstreamRequest, UpstreamResponse
from .usage import TOKEN_PRICES, Price, Usage

__all__ = [
    "CALLERS_FAULT",
    "CREDENTIAL_FIELDS",
    "CREDENTIAL_HEADERS",
    "FIXED_FIELDS",
    "FRAMING_HEADERS",
    "HOST_HEADERS",
    "OWN_CALLS",
    "TOKEN_PRICES",
    "WITHHELD",
    "Answer",
    "Attempt",
    "AttemptError",
    "AttemptKind",
    "Candidate",
    "Chunk",
    "Credential",
    "Denial",
    "Deployment",
    "Endpoint",
    "ErrorClass",
    "Event",
    "Execution",
    "Identity",
    "Limit",
    "Outcome",
    "OwnCallEnded",
    "Price",
    "Quantiles",
    "Refusal",
    "Reply",
    "RequestContext",
    "Reservation",
    "Route",
    "Settlement",
    "Signal",
    "SignalStatus",
    "Status",
    "StoreEmptied",
    "ToolCall",
    "UpstreamRequest",
    "UpstreamResponse",
    "Usage",
    "is_credential_header",
    "without_credentials",
]
