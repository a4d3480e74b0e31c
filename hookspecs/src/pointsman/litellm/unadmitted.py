"""Requests that are never admitted: a refused key, a body that cannot be read, a route that no plugin is asked about. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from ..host.recent import NotAdmitted
from ..text import printable
from ..types import Outcome

if TYPE_CHECKING:
    from .call import ClientCall

#: HTTP's first error status.
_FIRST_ERROR: Final = 400
_REFUSED: Final = frozenset({401, 403})
_MOST_PATH_CHARS: Final = 200
#: Errors are short; what is longer is not read.
_MOST_BODY_BYTES: Final = 100_000
#: LiteLLM's types of errors, such as ``token_not_found_in_db``: no key looks like one.
_TYPE: Final = re.compile(r"[a-z]+(?:_[a-z]+)*")
_MOST_TYPE_CHARS: Final = 64


def outcome(call: ClientCall) -> Outcome:
    """Return how a request ended that was not admitted."""
    if call.denial is not None or call.status in _REFUSED:
        return Outcome.DENIED
    if call.gone:
        return Outcome.DISCONNECTED
    return Outcome.OK if 0 < call.status < _FIRST_ERROR else Outcome.ERROR


def error_type(body: bytes) -> str:
    """Return the type of an error that LiteLLM answers with; empty when it has none.

    Its message is not for keeping: of a refused key, it shows a part.
    """
    if len(body) > _MOST_BODY_BYTES:
        return ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = document.get("error") if isinstance(document, dict) else None
    found = error.get("type") if isinstance(error, dict) else None
    return found if isinstance(found, str) and len(found) <= _MOST_TYPE_CHARS and _TYPE.fullmatch(found) else ""


def remembered(call: ClientCall, now: float) -> NotAdmitted:
    """Return what to remember of a request that was not admitted.

    Args:
        call: The request, at its end.
        now: Unix seconds.
    """
    return NotAdmitted(
        request_id=call.request_id,
        trace_id=call.trace_id,
        method=str(call.scope.get("method") or "GET"),
        path=printable(call.path, _MOST_PATH_CHARS),
        at=now,
        outcome=outcome(call),
        status=call.status,
        tenant=None if call.identity is None else call.identity.tenant,
        denial=call.denial,
        error_type=call.error_type,
    )
