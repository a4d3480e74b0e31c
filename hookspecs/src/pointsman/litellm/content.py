"""Whether a whole answer has content. Total: what is not recognised as an empty answer is not called one.

Content is text, a call of a tool, reasoning, a refusal, the verdict of a content filter, an image, audio, a vector. A role, a
finish reason or white space is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from ..types import AttemptError, ErrorClass
from .answers import finish_reason

EMPTY: Final = AttemptError(kind=ErrorClass.EMPTY, status=200, message="the answer has no content")
_FILTERED: Final = "content_filter"
#: Fields of a chat message that hold content besides its text.
_OF_MESSAGE: Final = (
    "refusal",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "function_call",
    "audio",
    "images",
)
#: Responses whose answer comes later.
_NOT_ENDED: Final = frozenset({"queued", "in_progress"})


def is_empty(response: Any) -> bool:
    """Return whether a chat, completions, messages, responses or embeddings answer has no content."""
    if response is None:
        return False
    kind = _get(response, "object")
    if kind == "response":
        return _is_empty_response(response)
    choices = _get(response, "choices")
    if isinstance(choices, list):
        return not any(map(_has_choice_content, choices)) and not _reasoned(response)
    if kind in {"chat.completion", "text_completion"}:
        return not choices
    content, type_ = _get(response, "content"), _get(response, "type")
    if type_ == "error" or response == {}:
        # LiteLLM passes on whatever an API of messages answers with status 200.
        return True
    if type_ == "message" and (content is None or isinstance(content, list)):
        filtered = finish_reason(_get(response, "stop_reason")) == _FILTERED
        return not filtered and not any(map(_has_block_content, content or ()))
    vectors = _get(response, "data")
    # Lists of files or batches have the same type and no usage.
    if kind == "list" and _get(response, "usage") is not None and (vectors is None or isinstance(vectors, list)):
        return not any(_present(_get(entry, "embedding")) for entry in vectors or ())
    return False


def _has_choice_content(choice: Any) -> bool:
    message = _get(choice, "message")
    return (
        _present(_get(message, "content"))
        or finish_reason(_get(choice, "finish_reason")) == _FILTERED
        or _present(_get(choice, "text"))
        or any(_present(_get(message, name)) for name in _OF_MESSAGE)
        or any(map(_has_block_content, _get(message, "thinking_blocks") or ()))
    )


def _has_block_content(block: Any) -> bool:
    """Return whether a block of a messages answer is content: all are but a text or a thought without text."""
    match _get(block, "type"):
        case "text":
            return _present(_get(block, "text"))
        case "thinking":
            return _present(_get(block, "thinking")) or _present(_get(block, "signature"))
    return True


def _is_empty_response(response: Any) -> bool:
    if _get(response, "status") in _NOT_ENDED:
        return False
    if _get(_get(response, "incomplete_details"), "reason") == _FILTERED:
        return False
    output = _get(response, "output")
    return not any(map(_has_item_content, output if isinstance(output, list) else ())) and not _reasoned(response)


def _has_item_content(item: Any) -> bool:
    match _get(item, "type"):
        case "message":
            parts = _get(item, "content")
            return any(
                _present(_get(part, "text")) or _present(_get(part, "refusal"))
                for part in (parts if isinstance(parts, list) else ())
            )
        case "reasoning":
            return any(_present(_get(item, name)) for name in ("summary", "content", "encrypted_content"))
    return True


def _reasoned(response: Any) -> bool:
    """Return whether the provider has counted reasoning, which it may charge for without showing it."""
    usage = _get(response, "usage")
    for name in ("completion_tokens_details", "output_tokens_details"):
        count = _get(_get(usage, name), "reasoning_tokens")
        if isinstance(count, int) and count > 0:
            return True
    return False


def _present(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _get(source: Any, name: str) -> Any:
    # LiteLLM's objects are asked first: whether one is a mapping takes longer than all the rest.
    if not isinstance(source, BaseModel) and isinstance(source, Mapping):
        return source.get(name)
    return getattr(source, name, None)
