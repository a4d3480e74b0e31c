"""What a request asks, and what else decides its answer. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pointsman.types import FIXED_FIELDS, Endpoint, RequestContext

ENDPOINTS: Final = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS)

#: Fields that decide neither what is asked nor how it is answered; LiteLLM writes its own facts into some of them.
_IRRELEVANT: Final = FIXED_FIELDS | {"stream_options", "user"}
#: Requests with one of these want more than one text, or one that cannot be kept.
_UNFIT: Final = (
    "background",
    "conversation",
    "functions",
    "logprobs",
    "previous_response_id",
    "response_format",
    "tools",
)


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks.

    Attributes:
        owner: For whom an answer may be used again: a digest of the caller.
        setting: Everything but the question itself: model, instructions, earlier turns, parameters; a digest. Only answers in
            the same setting are compared.
        text: The last thing that the user says.
    """

    owner: str
    setting: str
    text: str


def question_of(ctx: RequestContext, most_chars: int) -> Question | None:
    """Return what a request asks; None where its answer must not or cannot be used again.

    A caller that is not known shares its answers with no other, and neither do end users of one key.

    Args:
        ctx: The request.
        most_chars: Longer questions are not asked twice.
    """
    body = ctx.body
    if ctx.endpoint not in ENDPOINTS or not ctx.generates or any(body.get(name) for name in _UNFIT):
        return None
    if body.get("n", 1) != 1 or not (caller := ctx.identity.tenant or ctx.identity.key_hash):
        return None
    field, text, rest = _last(ctx.endpoint, body)
    if not text.strip() or len(text) > most_chars:
        return None
    others = {name: value for name, value in body.items() if name != field and name not in _IRRELEVANT}
    try:
        setting = _digest(json.dumps([ctx.endpoint, ctx.model, others, rest], sort_keys=True, default=_plain))
    except (TypeError, ValueError, RecursionError):
        return None
    return Question(_digest(json.dumps([caller, ctx.identity.end_user])), setting, text)


def _last(endpoint: Endpoint, body: Mapping[str, Any]) -> tuple[str, str, object]:
    """Return the field with the question, the question, and what stands before it there; no question where it is not text."""
    field = {Endpoint.RESPONSES: "input", Endpoint.COMPLETIONS: "prompt"}.get(endpoint, "messages")
    value = body.get(field)
    if isinstance(value, str):
        return field, value, None
    if (
        not isinstance(value, list)
        or not value
        or not isinstance(value[-1], Mapping)
        or value[-1].get("role") != "user"
    ):
        return field, "", None
    content = value[-1].get("content")
    return field, content if isinstance(content, str) else "", value[:-1]


def _plain(value: object) -> object:
    """Return a frozen mapping or list as JSON has it.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
