"""What a model answers to a request, before any provider's wire format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .samples import example
from .tokens import count_tokens, filler, last_text, prompt_tokens, split_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .behaviour import Behaviour

Body = dict[str, object]
Finish = Literal["stop", "length", "tools"]

_MAX_TOKEN_KEYS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_DEMANDS = ("required", "any", "tool", "function")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of an offered tool.

    Attributes:
        name: The tool.
        arguments: Its arguments as JSON text.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An answer.

    Attributes:
        model: The model that answers, as the request named it.
        text: The text; empty when tools are called.
        tool_calls: The tools called.
        finish: Why it ends.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that came from the cache.
        reasoning_tokens: Output tokens that are not shown.
        visible_tokens: Output tokens of the text or the tool calls' arguments.
    """

    model: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    visible_tokens: int

    @property
    def output_tokens(self) -> int:
        """All output tokens, as they are charged."""
        return self.visible_tokens + self.reasoning_tokens


def compose(model: str, body: Body, behaviour: Behaviour) -> Content:
    """Answer a chat, responses or messages request. The same request always gets the same answer."""
    prompt = prompt_tokens(body)
    calls = _tool_calls(body, behaviour.call_tools)
    finish: Finish = "tools" if calls else "stop"
    text = "" if calls else _text(body, behaviour)
    maximum = next((n for key in _MAX_TOKEN_KEYS if isinstance(n := body.get(key), int)), None)
    visible = sum(count_tokens(call.arguments) for call in calls) if calls else count_tokens(text)
    if maximum is not None and not calls and visible > maximum:
        text = "".join(split_tokens(text)[:maximum])
        visible, finish = maximum, "length"
    return Content(
        model=model,
        text=text,
        tool_calls=calls,
        finish=finish,
        prompt_tokens=prompt,
        cached_tokens=min(prompt, behaviour.cached_prompt_tokens),
        reasoning_tokens=behaviour.reasoning_tokens,
        visible_tokens=visible,
    )


def _text(body: Body, behaviour: Behaviour) -> str:
    if behaviour.text is not None:
        return behaviour.text
    wanted = _json_format(body)
    if wanted is None:
        return filler(behaviour.tokens)
    schema = wanted.get("schema")
    return json.dumps(example(schema) if isinstance(schema, dict) else {"echo": last_text(body)})


def _json_format(body: Body) -> Mapping[str, object] | None:
    """Return the request's JSON answer format with its schema, if it has one, under ``schema``; None for free text."""
    found = body.get("response_format") or body.get("output_format")
    for outer in ("text", "output_config"):
        holder = body.get(outer)
        if not found and isinstance(holder, dict):
            found = holder.get("format")
    if not isinstance(found, dict) or found.get("type") not in ("json_object", "json_schema"):
        return None
    inner = found.get("json_schema")
    return inner if isinstance(inner, dict) else found


def _tool_calls(body: Body, when_free: int) -> tuple[ToolCall, ...]:
    tools = _offered(body)
    choice = body.get("tool_choice")
    kind, name = _choice(choice)
    if not tools or kind == "none":
        return ()
    if name is not None:
        tools = {name: tools[name]} if name in tools else {}
    wanted = max(1, when_free) if kind in _DEMANDS else 0 if _answers_tool(body) else when_free
    return tuple(ToolCall(tool, json.dumps(example(schema) or {})) for tool, schema in list(tools.items())[:wanted])


def _choice(choice: object) -> tuple[object, str | None]:
    if not isinstance(choice, dict):
        return choice, None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return choice.get("type"), name


def _offered(body: Body) -> dict[str, dict[str, object]]:
    """Return the parameters' schemas of the request's function tools by name."""
    tools = body.get("tools")
    found: dict[str, dict[str, object]] = {}
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found[function["name"]] = function.get("parameters") or function.get("input_schema") or {"type": "object"}
    return found


def _answers_tool(body: Body) -> bool:
    """Say whether the conversation ends with the result of a tool call."""
    items = body.get("messages", body.get("input"))
    last = items[-1] if isinstance(items, list) and items else None
    if not isinstance(last, dict):
        return False
    parts = last.get("content")
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return last.get("role") == "tool" or last.get("type") == "function_call_output" or "tool_result" in kinds
