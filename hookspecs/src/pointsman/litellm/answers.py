"""Reads whole answers of models. Total: malformed input gives None or an empty value, never an error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..types import Answer, ToolCall

_FINISH_REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
}


#: The fields of answers that hold what was generated, or lead to it.
_GENERATED: Final = (
    "message",
    "content",
    "parts",
    "text",
    "refusal",
    "reasoning_content",
    "thinking",
    "summary",
    "tool_calls",
    "function",
    "function_call",
    "functionCall",
    "name",
    "arguments",
    "args",
    "input",
)
#: Of these, arguments that are not text: they were generated as JSON.
_ARGUMENTS: Final = frozenset({"args", "input"})


def finish_reason(reason: Any) -> str | None:
    """Return why an answer ended, as OpenAI's chat API names it, or the provider's own name."""
    return _FINISH_REASONS.get(reason, reason) if isinstance(reason, str) and reason else None


def response_answer(response: Any) -> Answer | None:
    """Return the content of a whole chat, messages or responses answer; None for anything else."""
    if choices := _list(response, "choices"):
        return _of_chat(choices[0])
    if _get(response, "object") == "response" or _list(response, "output"):
        return _of_responses(response)
    if isinstance(_get(response, "content"), list):
        return _of_messages(response)
    return None


def response_id(response: Any) -> str | None:
    """Return what the provider calls a whole answer; None when it does not say."""
    found = _get(response, "id")
    return found if isinstance(found, str) and found else None


def finish_reasons(response: Any) -> tuple[str, ...]:
    """Return why each choice of a whole answer ended, as OpenAI's chat API names it; empty when it does not say."""
    if choices := _list(response, "choices"):
        found = [finish_reason(_get(choice, "finish_reason")) for choice in choices]
    elif reason := finish_reason(_get(response, "stop_reason")):
        found = [reason]
    else:
        incomplete = _get(_get(response, "incomplete_details"), "reason")
        status = _get(response, "status")
        found = [finish_reason(incomplete) or ("stop" if status == "completed" else None)]
    return tuple(reason for reason in found if reason is not None)


def generated_text(response: Any) -> str:
    """Return everything that was generated for an answer, for an estimate of its tokens."""
    found: list[str] = []
    for name in ("choices", "content", "output", "candidates"):
        for item in _list(response, name):
            _collect(item, found)
    return "".join(found)


def _collect(item: Any, found: list[str]) -> None:
    for name in _GENERATED:
        value = _get(item, name)
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            for inner in value:
                _collect(inner, found)
        elif isinstance(value, Mapping) and name in _ARGUMENTS:
            found.append(json.dumps(value, default=str))
        elif value is not None:
            _collect(value, found)


def _of_chat(choice: Any) -> Answer | None:
    message = _get(choice, "message")
    if message is None:
        return None
    calls = [_get(call, "function") for call in _list(message, "tool_calls")]
    if (old := _get(message, "function_call")) is not None:
        calls.append(old)
    return Answer(
        text=_text(_get(message, "content")) or _text(_get(message, "refusal")),
        tool_calls=_tools((_get(call, "name"), _get(call, "arguments")) for call in calls),
        finish_reason=finish_reason(_get(choice, "finish_reason")),
    )


def _of_messages(message: Any) -> Answer:
    blocks = _list(message, "content")
    return Answer(
        text="".join(_text(_get(b, "text")) for b in blocks if _get(b, "type") == "text"),
        tool_calls=_tools((_get(b, "name"), _get(b, "input")) for b in blocks if _get(b, "type") == "tool_use"),
        finish_reason=finish_reason(_get(message, "stop_reason")),
    )


def _of_responses(response: Any) -> Answer:
    items = _list(response, "output")
    parts = [part for item in items if _get(item, "type") == "message" for part in _list(item, "content")]
    tools = _tools((_get(i, "name"), _get(i, "arguments")) for i in items if _get(i, "type") == "function_call")
    status = _get(response, "status")
    match status:
        case "completed":
            reason = "tool_calls" if tools else "stop"
        case "incomplete":
            reason = _text(_get(_get(response, "incomplete_details"), "reason")) or "incomplete"
        case _:
            reason = status
    text = "".join(_text(_get(part, "text")) or _text(_get(part, "refusal")) for part in parts)
    return Answer(text=text, tool_calls=tools, finish_reason=finish_reason(reason))


def _tools(pairs: Iterable[tuple[Any, Any]]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(name=name, arguments=arguments if isinstance(arguments, str) else json.dumps(arguments, default=str))
        for name, arguments in pairs
        if isinstance(name, str) and name
    )


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _list(source: Any, name: str) -> list[Any]:
    found = _get(source, name)
    return found if isinstance(found, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
