"""What goes back over the wire, whatever the provider: status, headers, and a body or a stream of events."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .content import Content

Dialect = Literal["openai", "azure", "anthropic"]
Header = tuple[bytes, bytes]

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
SLOT = "\x00"
"""Stands in an event for the token that ``fill`` puts there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A streamed answer in pieces of one event each.

    Attributes:
        opening: Events before the first token; sent without delay.
        tokens: One event per token.
        closing: Events after the last token; sent without delay.
        failure: Returns the events that end the stream instead when the provider fails.
    """

    opening: Sequence[bytes] = ()
    tokens: Iterable[bytes] = ()
    closing: Iterable[bytes] = ()
    failure: Callable[[], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer ready to be sent.

    Attributes:
        status: HTTP status.
        headers: Response headers, names in lower case; a content length is added to a plain body.
        body: The plain body; not used with a stream.
        stream: The events, or None for a plain answer.
        tokens: How many tokens a plain answer took the model.
    """

    status: int = 200
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""
    stream: Stream | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a dialect needs to write an answer.

    Attributes:
        body: The request.
        content: The answer.
        created_at: When it was made, in Unix seconds.
        dialect: Whose API was called.
        empty_role_chunk: See ``Behaviour``.
    """

    body: dict[str, object]
    content: Content
    created_at: int
    dialect: Dialect
    empty_role_chunk: bool


def new_id(prefix: str) -> str:
    """Return a new unique id that begins with ``prefix``."""
    return prefix + uuid.uuid4().hex


def dumps(value: object) -> bytes:
    """Return a value as compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def data_event(value: object) -> bytes:
    """Return a nameless server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


def named_event(value: dict[str, object]) -> bytes:
    """Return a server-sent event named after the value's ``type``."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + dumps(value) + b"\n\n"


def fill(event: bytes, tokens: Iterable[bytes]) -> Iterator[bytes]:
    """Return the event once per token, with the encoded token in the place of ``SLOT``.

    Long streams are the common case in a benchmark: this costs two concatenations a token instead of writing JSON.
    """
    head, _, tail = event.partition(dumps(SLOT))
    return (head + token + tail for token in tokens)
