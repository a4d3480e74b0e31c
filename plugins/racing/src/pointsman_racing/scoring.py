"""The quality of an answer, as far as it can be measured without another model: a number from 0 to 1. Pure.

::

    quality = ending * format * tools

    ending   1 for an answer that ended by itself or with tool calls, 0.5 for one truncated at its maximum length, 0.1
             for one cut by a content filter, 0 for one without text and tool calls
    format   where JSON was requested: 1 when the text is JSON (with a schema, the share of its required names that are
             present), else 0.2
    tools    where a tool call was required: 1 when there is one, else 0.2

Only the beginning of a stream is known when the race is decided: its quality is 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pointsman.types import Answer

_MISSED: Final = 0.2
# Tuples, because a client may send a value that cannot be hashed.
_JSON: Final = ("json_object", "json_schema")
_REQUIRING: Final = ("function", "tool", "any")
_ENDINGS: Final[Mapping[str | None, float]] = {"length": 0.5, "content_filter": 0.1}


def quality(answer: Answer, request: Mapping[str, object]) -> float:
    """Return the quality of a whole answer.

    Args:
        answer: The model's answer.
        request: The client's request, as chat, messages or responses.
    """
    if not answer.text.strip() and not answer.tool_calls:
        return 0.0
    score = _ENDINGS.get(answer.finish_reason, 1.0)
    if answer.tool_calls:
        return score
    wanted, schema = _wanted_format(request)
    if wanted:
        score *= _format(answer.text, schema)
    return score * _MISSED if _requires_tool(request) else score


def _format(text: str, schema: Mapping[str, Any] | None) -> float:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # JSON that is nested too deeply for this parser is so for the client's too.
        return _MISSED
    required = schema.get("required") if schema is not None else None
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    if not names:
        return 1.0
    found = sum(name in value for name in names) if isinstance(value, Mapping) else 0
    return max(_MISSED, found / len(names))


def _wanted_format(request: Mapping[str, object]) -> tuple[bool, Mapping[str, Any] | None]:
    """Return whether JSON is requested, and its schema: ``response_format`` of chat, ``text.format`` of responses."""
    text = request.get("text")
    wanted = request.get("response_format") or (text.get("format") if isinstance(text, Mapping) else None)
    if not isinstance(wanted, Mapping) or wanted.get("type") not in _JSON:
        return False, None
    inner = wanted.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else wanted.get("schema")
    return True, schema if isinstance(schema, Mapping) else None


def _requires_tool(request: Mapping[str, object]) -> bool:
    choice = request.get("tool_choice")
    if isinstance(choice, Mapping):
        return choice.get("type") in _REQUIRING
    return choice == "required"
