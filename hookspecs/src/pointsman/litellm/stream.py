"""Reads the pieces of a stream as they pass: first content, usage, model, answer. Total, as ``request_values`` is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from ..types import Answer, Endpoint, ToolCall, Usage
from .answers import finish_reason, finish_reasons, response_answer, response_id
from .content import is_empty
from .request_values import hidden_params, response_model, response_usage, usage
from .usage import Account
from .usage_units import gemini_usage

#: A line of an event stream that is longer is left out.
_LONGEST_LINE: Final = 16_000_000
#: Endpoints whose streams this reads wholly: others may have content that it does not see.
_READ_WHOLLY: Final = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.MESSAGES, Endpoint.RESPONSES})
#: Blocks of messages whose content comes in pieces; all others have it from their start.
_IN_PIECES: Final = frozenset({"text", "thinking", "tool_use"})


class StreamReader:
    """Reads one stream. Pieces are chat chunks, responses events, or bytes of server-sent events of messages.

    Attributes:
        usage: Tokens as the provider reports them; None until then.
        model: The model name in the answer.
        id: What the provider calls the answer; None until it says so.
        text: The visible text of the first choice, in pieces.
        hidden: What else is generated and billed: reasoning, tool calls, other choices.
        failed: The type of the event that reports that the answer has failed.
        begun: Whether there was content: text other than white space, reasoning, a tool call, or another block.
    """

    __slots__ = (
        "_account",
        "_calls",
        "_final",
        "_finish",
        "_line",
        "_line_bytes",
        "_other",
        "begun",
        "failed",
        "hidden",
        "id",
        "model",
        "text",
        "usage",
    )

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.text: list[str] = []
        self.hidden: list[str] = []
        self.failed: str | None = None
        self.begun = False
        self._other = False
        self._account = Account()
        self._calls: list[tuple[Any, str | None, str]] = []
        self._finish: Any = None
        self._final: Any = None
        #: The pieces of a line that has not ended.
        self._line: list[bytes] = []
        self._line_bytes = 0

    def read(self, piece: Any) -> bool:
        """Read one piece and return whether it carries content; white space before any other content is none."""
        if (choices := getattr(piece, "choices", None)) is not None:
            content = self._read_chat(piece, choices)
        elif isinstance(piece, bytes | str):
            content = self._read_sse(piece if isinstance(piece, bytes) else piece.encode("utf-8", "replace"))
        else:
            content = self._read_event(piece)
        if self.begun:
            return content
        self.begun = self._other or bool(self._calls) or any(text.strip() for text in (*self.text, *self.hidden))
        return self.begun

    def _read_chat(self, piece: Any, choices: Any) -> bool:
        # As ``_getter``, written out here and below: this is done for each piece.
        get = _getter(piece) if getattr(piece, "__pydantic_extra__", True) else piece.__dict__.get
        found = get("usage")
        if not found:
            # Where the client has not asked for usage, LiteLLM takes it off the chunk and hides it there.
            private = getattr(piece, "__pydantic_private__", None)
            hidden = None if private is None else private.get("_hidden_params")
            found = (hidden if type(hidden) is dict else hidden_params(piece)).get("usage")
        if found is not None and (counted := usage(found)) is not None and counted.total_tokens:
            self.usage = counted
        if self.model is None:
            self.model = get("model")
            self.id = response_id(piece)
        content = False
        for choice in choices:
            content = self._read_choice(choice) or content
        return content

    def _read_choice(self, source: Any) -> bool:
        extra = getattr(source, "__pydantic_extra__", True)
        choice = _getter(source) if extra is True else ({**source.__dict__, **extra} if extra else source.__dict__).get
        first = not choice("index")
        if first and (reason := choice("finish_reason")):
            self._finish = reason
        changed = choice("delta")
        extra = getattr(changed, "__pydantic_extra__", True)
        delta = (
            _getter(changed) if extra is True else ({**changed.__dict__, **extra} if extra else changed.__dict__).get
        )
        self._other = self._other or bool(delta("audio") or delta("images"))
        content = False
        # A completion's choices have no delta.
        for text in (choice("text"), delta("content"), delta("refusal")):
            if isinstance(text, str) and text:
                (self.text if first else self.hidden).append(text)
                content = True
        if text := delta("reasoning_content"):
            self.hidden.append(text)
            content = True
        if calls := delta("tool_calls"):
            self._read_calls(calls, answered=first)
            self._other = content = True
        if call := delta("function_call"):
            called = _getter(call)
            self._call(0, called("name"), called("arguments"))
            content = True
        return content

    def _read_calls(self, calls: Iterable[Any], *, answered: bool) -> None:
        for call in calls:
            part = _getter(call)
            function = _getter(part("function"))
            self._call(part("index"), function("name"), function("arguments"), answered=answered)

    def _call(self, index: Any, name: Any, arguments: Any, *, answered: bool = True) -> None:
        text = arguments if isinstance(arguments, str) else ""
        name = name if isinstance(name, str) else None
        if answered:
            self._calls.append((index if isinstance(index, int) else 0, name, text))
        self.hidden.extend(part for part in (name, text) if part)

    def _read_event(self, piece: Any) -> bool:
        get: Any = piece.get if isinstance(piece, Mapping) else _getter(piece)
        kind = get("type")
        kind = str(getattr(kind, "value", kind))
        if kind.endswith(".delta"):
            delta = get("delta")
            if isinstance(delta, str):
                visible = kind in {"response.output_text.delta", "response.refusal.delta"}
                (self.text if visible else self.hidden).append(delta)
            return True
        if kind == "response.output_item.added":
            item = get("item")
            name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
            self.hidden.extend([name] if isinstance(name, str) else [])
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            self._final = response = get("response")
            self.usage = response_usage(response) or self.usage
            self.model = response_model(response) or self.model
            self.id = response_id(response) or self.id
        if kind in {"response.failed", "error"}:
            self.failed = kind
        return False

    def _read_sse(self, piece: bytes) -> bool:
        # A piece is what the network brought: it may end within an event.
        content = False
        for line in self._ended(piece):
            if not line.startswith(b"data:"):
                continue
            if b'"content_block_delta"' in line:
                content = True
            try:
                data = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(data, dict):
                if "candidates" in data or "usageMetadata" in data:
                    content = self._read_gemini(data) or content
                else:
                    self._read_anthropic(data)
        return content

    def read_inner(self, stream: Any) -> None:
        """Read the usage that LiteLLM keeps on the stream that a completion is translated from, at its end.

        Args:
            stream: LiteLLM's stream.
        """
        chunks = getattr(getattr(stream, "completion_stream", None), "chunks", None)
        for chunk in reversed(chunks) if self.usage is None and isinstance(chunks, list) else ():
            found = getattr(chunk, "usage", None) or hidden_params(chunk).get("usage")
            if found is not None and (counted := usage(found)) is not None and counted.total_tokens:
                self.usage = counted
                return

    def _ended(self, piece: bytes) -> list[bytes]:
        """Return the lines that end within a piece, without those that are too long."""
        *lines, rest = piece.split(b"\n")
        if lines and self._line_bytes:
            whole = self._line_bytes + len(lines[0]) <= _LONGEST_LINE
            lines[0] = b"".join((*self._line, lines[0])) if whole else b""
            self._other = self._other or not whole
            self._line, self._line_bytes = [], 0
        if len(piece) > _LONGEST_LINE:
            short = [line for line in lines if len(line) <= _LONGEST_LINE]
            self._other = self._other or len(short) < len(lines)
            lines = short
        self._line_bytes += len(rest)
        if rest and self._line_bytes <= _LONGEST_LINE:
            self._line.append(rest)
        return lines

    def _read_gemini(self, data: dict[str, Any]) -> bool:
        self.usage = gemini_usage(data.get("usageMetadata")) or self.usage
        model = data.get("modelVersion")
        self.model = model if isinstance(model, str) else self.model
        named = data.get("responseId")
        self.id = named if isinstance(named, str) else self.id
        candidates = data.get("candidates")
        content = False
        for candidate in candidates if isinstance(candidates, list) else ():
            if not isinstance(candidate, dict):
                continue
            first = not candidate.get("index", 0)
            if first and isinstance(reason := candidate.get("finishReason"), str):
                self._finish = reason.lower()
            parts = _object(candidate.get("content")).get("parts")
            for part in parts if isinstance(parts, list) else ():
                content = True
                text = _object(part).get("text")
                if isinstance(text, str):
                    visible = first and not _object(part).get("thought")
                    (self.text if visible else self.hidden).append(text)
                elif called := _object(_object(part).get("functionCall")):
                    self._call(len(self._calls), called.get("name"), json.dumps(called.get("args"), default=str))
                else:
                    self._other = True
        return content

    def _read_anthropic(self, data: dict[str, Any]) -> None:
        kind = data.get("type")
        if kind == "content_block_delta":
            self._read_block_delta(data.get("index"), data.get("delta"))
        elif kind == "content_block_start":
            block = data.get("content_block")
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(block, dict) and kind == "tool_use":
                self._call(data.get("index"), block.get("name"), None)
            # Most begin without text; of a thought that is not shown, all that comes is its signature.
            self._read_block_delta(data.get("index"), block)
            self._other = self._other or kind not in _IN_PIECES
        elif kind == "message_start":
            self._account.add(data)
            self.model = response_model(_object(data.get("message"))) or self.model
            self.id = response_id(_object(data.get("message"))) or self.id
        elif kind == "message_delta":
            delta = data.get("delta")
            self._finish = (delta.get("stop_reason") if isinstance(delta, dict) else None) or self._finish
            if _object(data.get("usage")):
                # The last delta has the final counts; providers differ in whether it repeats the input's.
                self._account.add(data)
                self.usage = self.partial_usage()
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
        self._other = self._other or bool(delta.get("signature"))

    def empty(self, endpoint: Endpoint) -> bool:
        """Return whether a stream that has ended regularly had no content; False where it is not known."""
        if self.begun or self.failed is not None or finish_reason(self._finish) == "content_filter":
            return False
        if self.usage is not None and self.usage.reasoning_tokens:
            return False
        return is_empty(self._final) if self._final is not None else endpoint in _READ_WHOLLY

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the first choice ended, as OpenAI's chat API names it; empty when it is not known."""
        if self._final is not None:
            return finish_reasons(self._final)
        reason = finish_reason(self._finish)
        return () if reason is None else (reason,)

    @property
    def generated(self) -> str:
        """Everything that was generated so far, for an estimate of its tokens."""
        return "".join((*self.text, *self.hidden))

    def answer(self) -> Answer | None:
        """Return the answer, at the end of the stream."""
        if self._final is not None and (whole := response_answer(self._final)) is not None:
            return whole
        names: dict[Any, str] = {}
        arguments: dict[Any, list[str]] = {}
        for index, name, text in self._calls:
            if name:
                names[index] = name
            arguments.setdefault(index, []).append(text)
        tools = tuple(ToolCall(name=name, arguments="".join(arguments[index])) for index, name in names.items())
        return Answer(text="".join(self.text), tool_calls=tools, finish_reason=finish_reason(self._finish))

    def partial_usage(self) -> Usage | None:
        """Return what an interrupted messages stream reported about its input, as an estimate of the output so far."""
        reading = self._account.reading()
        return None if reading is None else reading.usage


def _getter(value: Any) -> Callable[[str], Any]:
    """Return what gets an attribute by its name, or None."""
    if isinstance(value, BaseModel):
        # Pydantic takes more than a microsecond to say that an attribute is absent; a chunk has some ten of these.
        extra = value.__pydantic_extra__
        return ({**value.__dict__, **extra} if extra else value.__dict__).get
    return lambda name: getattr(value, name, None)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
