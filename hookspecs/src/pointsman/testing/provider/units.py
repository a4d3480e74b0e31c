"""The wire formats of endpoints that answer in other units than chat tokens, and of completions and ``generateContent``.

OpenAI's completions, images, speech, transcriptions, moderations, videos, files and batches; Cohere's rerank; Mistral's OCR;
Gemini's ``generateContent``, plain and streamed. Source: the providers' API references.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from .failures import SERVER_ERROR
from .tokens import encoded_tokens, prompt_tokens
from .wire import DONE, JSON_TYPE, SLOT, Stream, Turn, data_event, dumps, fill, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .content import Content

    Body = Mapping[str, Any]

#: A picture of one pixel.
_PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_SPEECH: Final = b"ID3\x04" + bytes(96)
_FINISH: Final = {"stop": "stop", "length": "length", "tools": "stop"}
_GEMINI_FINISH: Final = {"stop": "STOP", "length": "MAX_TOKENS", "tools": "STOP"}
_IMAGE_TOKENS: Final = 1056
_SECONDS: Final = 12.5
_PAGES: Final = 2

#: The required fields of the requests, by the API.
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "completions": ("model", "prompt"),
    "images/generations": ("model", "prompt"),
    "images/edits": ("model", "prompt"),
    "audio/speech": ("model", "input", "voice"),
    "audio/transcriptions": ("model",),
    "moderations": ("input",),
    "rerank": ("model", "query", "documents"),
    "ocr": ("model", "document"),
    "videos": ("model", "prompt"),
    "generateContent": ("contents",),
    "streamGenerateContent": ("contents",),
}
#: The APIs whose requests are counted as text and answered with text.
TEXTS: Final = frozenset({"completions", "generateContent", "streamGenerateContent"})


def answer(api: str, body: Body, now: float) -> tuple[bytes, bytes]:
    """Return the body of a whole answer and its type."""
    created = int(now)
    match api:
        case "images/generations" | "images/edits":
            return dumps(_images(body, created)), JSON_TYPE
        case "audio/speech":
            return _SPEECH, b"audio/mpeg"
        case "audio/transcriptions":
            usage = {"type": "duration", "seconds": _SECONDS}
            return dumps({"text": "What was said.", "duration": _SECONDS, "usage": usage}), JSON_TYPE
        case "moderations":
            result = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
            return dumps({"id": new_id("modr-"), "model": body.get("model"), "results": [result]}), JSON_TYPE
        case "rerank":
            results = [{"index": i, "relevance_score": 0.5} for i, _ in enumerate(body["documents"])]
            meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
            return dumps({"id": new_id(""), "results": results, "meta": meta}), JSON_TYPE
        case "ocr":
            pages: list[dict[str, Any]] = [
                {"index": i, "markdown": "A page.", "images": [], "dimensions": None} for i in range(_PAGES)
            ]
            usage_info = {"pages_processed": _PAGES, "doc_size_bytes": 1000}
            return dumps({"pages": pages, "model": body["model"], "usage_info": usage_info}), JSON_TYPE
    video = {"object": "video", "status": "queued", "progress": 0, "created_at": created}
    asked = {"model": body["model"], "seconds": str(body.get("seconds", 4)), "size": body.get("size", "720x1280")}
    return dumps({"id": new_id("video_"), **video, **asked}), JSON_TYPE


def _images(body: Body, created: int) -> dict[str, Any]:
    made = int(body.get("n") or 1)
    found: dict[str, Any] = {"created": created, "data": [{"b64_json": _PNG}] * made}
    if str(body["model"]).startswith("gpt-image"):
        went_in = prompt_tokens({"input": body["prompt"]})
        came_out = _IMAGE_TOKENS * made
        details = {"text_tokens": went_in, "image_tokens": 0}
        counts = {"input_tokens": went_in, "output_tokens": came_out, "total_tokens": went_in + came_out}
        found["usage"] = {**counts, "input_tokens_details": details}
    return found


def text_of(body: Body) -> dict[str, object]:
    """Return a request for a text as one that ``compose`` understands."""
    contents = body.get("contents", body.get("prompt"))
    parts = [part for turn in contents for part in turn.get("parts", ())] if isinstance(contents, list) else contents
    config = body.get("generationConfig") or body.get("config") or {}
    found: dict[str, object] = {
        "input": parts if isinstance(parts, str) else [part.get("text", "") for part in parts or ()]
    }
    maximum = body.get("max_tokens") or config.get("maxOutputTokens")
    return {**found, "max_tokens": maximum} if maximum else found


def plain(api: str, turn: Turn) -> bytes:
    """Return the body of a whole text."""
    if api == "completions":
        choice = {
            "index": 0,
            "text": turn.content.text,
            "logprobs": None,
            "finish_reason": _FINISH[turn.content.finish],
        }
        return dumps({**_completion(turn), "choices": [choice], "usage": _usage(turn.content)})
    return dumps(_candidate(turn, turn.content.text, last=True))


def stream(api: str, turn: Turn) -> Stream:
    """Return a streamed text: an event per token, and usage in the last one."""
    pieces = encoded_tokens(turn.content.text)

    def failure() -> list[bytes]:
        return [data_event({"error": SERVER_ERROR})]

    if api != "completions":
        tokens = fill(data_event(_candidate(turn, SLOT, last=False)), pieces)
        return Stream(tokens=tokens, closing=[data_event(_candidate(turn, "", last=True))], failure=failure)
    base = _completion(turn)

    def chunk(text: str, finish: str | None = None) -> bytes:
        return data_event({**base, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})

    options = turn.body.get("stream_options")
    counted = [data_event({**base, "choices": [], "usage": _usage(turn.content)})]
    with_usage = counted if isinstance(options, dict) and options.get("include_usage") else []
    closing = chain([chunk("", _FINISH[turn.content.finish])], with_usage, [DONE])
    return Stream(tokens=fill(chunk(SLOT), pieces), closing=closing, failure=failure)


def _completion(turn: Turn) -> dict[str, Any]:
    kind = {"object": "text_completion", "created": turn.created_at}
    return {"id": new_id("cmpl-"), **kind, "model": turn.content.model}


def _usage(content: Content) -> dict[str, int]:
    went_in, came_out = content.prompt_tokens, content.output_tokens
    return {"prompt_tokens": went_in, "completion_tokens": came_out, "total_tokens": went_in + came_out}


def _candidate(turn: Turn, text: str, *, last: bool) -> dict[str, Any]:
    content = turn.content
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    event: dict[str, Any] = {"candidates": [candidate], "modelVersion": content.model}
    if last:
        candidate["finishReason"] = _GEMINI_FINISH[content.finish]
        event["usageMetadata"] = {
            "promptTokenCount": content.prompt_tokens,
            "candidatesTokenCount": content.visible_tokens,
            "thoughtsTokenCount": content.reasoning_tokens,
            "totalTokenCount": content.prompt_tokens + content.output_tokens,
        }
    return event
