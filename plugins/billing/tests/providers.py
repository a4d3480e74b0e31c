"""A server that answers in the words of each kind of provider, plain and streamed."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ASK = [{"role": "user", "content": "How is the weather in Turin?"}]
BODIES: Mapping[str, dict[str, Any]] = {
    CHAT: {"messages": ASK, "max_tokens": 99},
    MESSAGES: {"messages": ASK, "max_tokens": 99},
    RESPONSES: {"input": "How is the weather in Turin?"},
}
TEXT = "It is warm."
COUNTS = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
CLAUDE = {"input_tokens": 1000, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 0, "output_tokens": 50}
GOOGLES = {"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050}
SERVED = {"input_tokens": 1000, "output_tokens": 50, "total_tokens": 1050}
EVENTS, LINES, FRAMES, JSON = (
    "text/event-stream",
    "application/x-ndjson",
    "application/vnd.amazon.eventstream",
    "application/json",
)

Answer = tuple[str, bytes]
#: The content type of an error, which is JSON.
FAILED = "application/json; failed"
#: The content type of a stream that breaks off.
BROKEN = "text/event-stream; broken"


def as_json(message: Mapping[str, Any]) -> Answer:
    return JSON, json.dumps(message).encode()


def as_events(messages: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> Answer:
    names = [f"event: {message['type']}\n" if named else "" for message in messages]
    text = "".join(f"{name}data: {json.dumps(message)}\n\n" for name, message in zip(names, messages, strict=True))
    return EVENTS, (text + "data: [DONE]\n\n" * done).encode()


def chat(model: str, usage: Mapping[str, Any], *, stream: bool, together: bool = False, **more: Any) -> Answer:
    """Return an answer in OpenAI's words; its usage comes after the last piece of the stream, or together with it."""
    head = {"id": "chatcmpl-1", "created": 1, "model": model, **more}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return as_json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    head["object"] = "chat.completion.chunk"
    first = {"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    end = {**head, "choices": [last]}
    ends = [{**end, "usage": usage}] if together else [end, {**head, "choices": [], "usage": usage}]
    return as_events([{**head, "choices": [first]}, *ends], done=True)


def claude(usage: Mapping[str, Any] = CLAUDE, *, stream: bool, model: str = "claude-sonnet-4-5-20250929") -> Answer:
    """Return an answer in Anthropic's words; its stream counts the input at the beginning, and all at the end."""
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
    if not stream:
        content = [{"type": "text", "text": TEXT}]
        return as_json({**head, "content": content, "stop_reason": "end_turn", "usage": usage})
    start = {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    messages = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    return as_events(messages, named=True)


def responses(
    usage: Mapping[str, Any] = SERVED,
    *,
    stream: bool,
    model: str = "gpt-4o-mini-2024-07-18",
    calls: Iterable[Any] = (),
    **more: Any,
) -> Answer:
    content = [{"type": "output_text", "text": TEXT, "annotations": []}]
    item = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}
    whole: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": [*calls, item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
        **more,
    }
    if not stream:
        return as_json(whole)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    messages = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": TEXT, **place},
        {"type": "response.completed", "response": whole},
    ]
    return as_events([{**message, "sequence_number": n} for n, message in enumerate(messages)], named=True)


def gemini(usage: Mapping[str, Any] = GOOGLES, *, stream: bool, **more: Any) -> Answer:
    content = {"role": "model", "parts": [{"text": TEXT}]}
    answer = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0, **more}],
        "usageMetadata": usage,
        "modelVersion": "gemini-2.5-flash-001",
        "responseId": "r-1",
    }
    return as_events([answer]) if stream else as_json(answer)


def ollama(*, stream: bool) -> Answer:
    head = {"model": "llama3:8b-instruct", "created_at": "2025-06-15T00:00:00Z"}
    counts = {"prompt_eval_count": 1000, "eval_count": 50, "total_duration": 1, "eval_duration": 1}
    end = {**head, "done": True, "done_reason": "stop", **counts}
    message = {"role": "assistant", "content": TEXT}
    if not stream:
        return as_json({**end, "message": message})
    pieces = [{**head, "message": message, "done": False}, {**end, "message": {**message, "content": ""}}]
    return LINES, "".join(json.dumps(piece) + "\n" for piece in pieces).encode()


def frame(kind: str, payload: Mapping[str, Any]) -> bytes:
    named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in named.items()
    )
    body = json.dumps(payload).encode()
    begin = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    whole = begin + struct.pack(">I", zlib.crc32(begin)) + headers + body
    return whole + struct.pack(">I", zlib.crc32(whole))


def bedrock(*, stream: bool) -> Answer:
    usage = {"inputTokens": 1000, "outputTokens": 50, "totalTokens": 1050}
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    end = {"usage": usage, "metrics": {"latencyMs": 1}}
    if not stream:
        return as_json({"output": {"message": message}, "stopReason": "end_turn", **end})
    frames = (
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": TEXT}}),
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", end),
    )
    return FRAMES, b"".join(frames)


class Server:
    """Runs during the ``with`` block; ``over`` is set at its end, for what waits."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """Answer one request, which has this body."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Provider(Server):
    """Answers under ``/<name>/...`` as that name's function says.

    Args:
        answers: What to answer: functions with the argument ``stream``.
        silent: Names that get no answer.
    """

    def __init__(self, answers: Mapping[str, Callable[..., Answer]], silent: Iterable[str] = ()) -> None:
        super().__init__()
        self._answers = answers
        self._silent = frozenset(silent)

    def answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        place = request.path.lower()
        name = place.split("/")[1]
        if name in self._silent:
            self.over.wait()
            return
        content_type, answer = self._answers[name](stream=bool(body.get("stream")) or "stream" in place)
        request.send_response(500 if content_type == FAILED else 200)
        request.send_header("content-type", content_type)
        broken = content_type == BROKEN
        request.send_header("content-length", str(len(answer) + broken))
        request.end_headers()
        request.wfile.write(answer)
        request.close_connection = broken
