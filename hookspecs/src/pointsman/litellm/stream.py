"""Reads the pieces of a stream as they pass: first content, usage, model, what was said. Total, as ``values`` is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..types import Answer, ToolCall, Usage
from .answers import chats_word, response_answer
from .values import hidden_params, response_model, response_usage, usage

#: A line of an event stream that is longer is not understood.
_LONGEST_LINE: Final = 16_000_000


class StreamReader:
    """Reads one stream. Pieces are chat chunks, responses events, or bytes of server-sent events of messages.

    Attributes:
        usage: Tokens, when the provider has told them.
        model: The model name in the answer.
        text: The visible text of the first choice, in pieces.
        hidden: What is generated and paid for beside it: reasoning, tool calls, other choices.
        failed: The kind of an event that says that the answer has failed.
    """

    __slots__ = ("_calls", "_final", "_finish", "_input", "_rest", "failed", "hidden", "model", "text", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model: str | None = None
        self.text: list[str] = []
        self.hidden: list[str] = []
        self.failed: str | None = None
        self._input: dict[str, Any] = {}
        self._calls: list[tuple[Any, str | None, str]] = []
        self._finish: Any = None
        self._final: Any = None
        self._rest = b""

    def read(self, piece: Any) -> bool:
        """Read one piece; say whether it carries content."""
        if isinstance(piece, bytes | str):
            return self._read_sse(piece if isinstance(piece, bytes) else piece.encode("utf-8", "replace"))
        choices = getattr(piece, "choices", None)
        if choices is not None:
            return self._read_chat(piece, choices)
        return self._read_event(piece)

    def _read_chat(self, piece: Any, choices: Any) -> bool:
        # Where the client has not asked for usage, LiteLLM takes it off the chunk and hides it there.
        found = getattr(piece, "usage", None) or hidden_params(piece).get("usage")
        if found is not None and (told := usage(found)) is not None and told.total_tokens:
            self.usage = told
        if self.model is None:
            self.model = getattr(piece, "model", None)
        content = False
        for choice in choices:
            first = not getattr(choice, "index", 0)
            if first and (reason := getattr(choice, "finish_reason", None)):
                self._finish = reason
            delta = getattr(choice, "delta", None)
            if text := getattr(delta, "content", None) or getattr(delta, "refusal", None):
                (self.text if first else self.hidden).append(text)
                content = True
            elif text := getattr(delta, "reasoning_content", None):
                self.hidden.append(text)
                content = True
            elif calls := getattr(delta, "tool_calls", None):
                if first:
                    self._read_calls(calls)
                content = True
            elif call := getattr(delta, "function_call", None):
                self._call(0, getattr(call, "name", None), getattr(call, "arguments", None))
                content = True
        return content

    def _read_calls(self, calls: Iterable[Any]) -> None:
        for call in calls:
            function = getattr(call, "function", None)
            self._call(getattr(call, "index", 0), getattr(function, "name", None), getattr(function, "arguments", None))

    def _call(self, index: Any, name: Any, arguments: Any) -> None:
        text = arguments if isinstance(arguments, str) else ""
        self._calls.append((index if isinstance(index, int) else 0, name if isinstance(name, str) else None, text))
        if text:
            self.hidden.append(text)

    def _read_event(self, piece: Any) -> bool:
        get: Any = piece.get if isinstance(piece, Mapping) else lambda name: getattr(piece, name, None)
        kind = get("type")
        kind = str(getattr(kind, "value", kind))
        if kind.endswith(".delta"):
            delta = get("delta")
            if isinstance(delta, str):
                visible = kind in {"response.output_text.delta", "response.refusal.delta"}
                (self.text if visible else self.hidden).append(delta)
            return True
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            self._final = response = get("response")
            self.usage = response_usage(response) or self.usage
            self.model = response_model(response) or self.model
        if kind in {"response.failed", "error"}:
            self.failed = kind
        return False

    def _read_sse(self, piece: bytes) -> bool:
        # A piece is what the network brought: it may end within an event.
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()[:_LONGEST_LINE]
        content = False
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if b'"content_block_delta"' in line:
                content = True
            try:
                data = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(data, dict):
                self._read_anthropic(data)
        return content

    def _read_anthropic(self, data: dict[str, Any]) -> None:
        kind = data.get("type")
        if kind == "content_block_delta":
            self._read_block_delta(data.get("index"), data.get("delta"))
        elif kind == "content_block_start":
            block = data.get("content_block")
            if isinstance(block, dict) and block.get("type") == "tool_use":
                self._call(data.get("index"), block.get("name"), None)
        elif kind == "message_start":
            message = _object(data.get("message"))
            self._input = dict(_object(message.get("usage")))
            self.model = response_model(message) or self.model
        elif kind == "message_delta":
            delta = data.get("delta")
            self._finish = (delta.get("stop_reason") if isinstance(delta, dict) else None) or self._finish
            if told := _object(data.get("usage")):
                # The last delta has the final counts; providers differ in whether it repeats the input's.
                merged = {**self._input, **{k: v for k, v in told.items() if v is not None}}
                self._input = merged
                self.usage = usage(merged)
        elif kind == "error":
            self.failed = "error"

    def _read_block_delta(self, index: Any, delta: Any) -> None:
        if not isinstance(delta, dict):
            return
        if isinstance(text := delta.get("text"), str) and text:
            self.text.append(text)
        if isinstance(text := delta.get("thinking"), str) and text:
            self.hidden.append(text)
        if isinstance(text := delta.get("partial_json"), str) and text:
            self._call(index, None, text)

    @property
    def generated(self) -> str:
        """Everything that was generated so far, for an estimate of its tokens."""
        return "".join((*self.text, *self.hidden))

    def answer(self) -> Answer | None:
        """Return what was said, at the end of the stream."""
        if self._final is not None and (whole := response_answer(self._final)) is not None:
            return whole
        names: dict[Any, str] = {}
        arguments: dict[Any, list[str]] = {}
        for index, name, text in self._calls:
            if name:
                names[index] = name
            arguments.setdefault(index, []).append(text)
        tools = tuple(ToolCall(name=name, arguments="".join(arguments[index])) for index, name in names.items())
        return Answer(text="".join(self.text), tool_calls=tools, finish_reason=chats_word(self._finish))

    def partial_usage(self) -> Usage | None:
        """Return what an interrupted messages stream said about its input, as an estimate of the output so far."""
        return usage(self._input) if self._input else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
