"""Listens to providers' answers on their way to LiteLLM: what they say about what was used, in their own words.

LiteLLM translates answers, and on the way null becomes zero, a stream's first message loses the counts of its input, and
some facts are dropped. A listener passes every byte on untouched and at once.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import httpx
import orjson

from ..types import Usage
from . import named_objects
from .raw_texts import texts
from .usage import Account
from .usage_blocks import Reading

_EVENTS: Final = "text/event-stream"
_FRAMES: Final = "application/vnd.amazon.eventstream"
_LINES: Final = ("application/x-ndjson", "application/stream+json", "application/jsonl")
#: What is longer is left out: a line of a stream, or a plain answer that is read as a stream.
_LONGEST: Final = 16_000_000
#: What the lines have that matter. Most lines of a stream have none of it, many say that there is no usage yet.
_MARK: Final = re.compile(
    rb'"usage(?!": ?null)|"url_citation"|"groundingMetadata"|"billed_units"|"tokens"|"server_tool_use"|"file_id"'
)
#: The same, or a line that is JSON by itself.
_MARK_OR_JSON: Final = re.compile(_MARK.pattern + rb"|^\s*\{")
_ANSWERED: Final = 200
#: The beginning of one of AWS's frames: its length, that of its headers, and a checksum; another one is its end.
_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM_BYTES: Final = 4


class Listener:
    """What one answer of a provider says about what was used.

    Attributes:
        account: What has been said so far.
        refused: Whether it is an error, although its status says success.
        broken: Whether it ends with an error, or before its end.
        streams: Whether it comes in messages.

    Args:
        content_type: Of the answer.
        keeps_text: Whether the text is kept as well: of a pass-through nothing else reads it.
    """

    __slots__ = (
        "_begun",
        "_by_line",
        "_first",
        "_frames",
        "_made",
        "_parts",
        "_size",
        "_text",
        "_text_chars",
        "account",
        "broken",
        "refused",
        "streams",
    )

    def __init__(self, content_type: str, *, keeps_text: bool = False) -> None:
        self.account = Account()
        self.refused = self.broken = False
        self._text: list[str] | None = [] if keeps_text else None
        self._text_chars = 0
        self._made: list[str] = []
        self._begun = False
        self._by_line = content_type.startswith((_EVENTS, *_LINES))
        #: What there is of the next frames; None where the answer is text, or its frames cannot be read.
        self._frames = bytearray() if content_type.startswith(_FRAMES) else None
        self.streams = self._by_line or self._frames is not None
        self._first = True
        self._parts: list[bytes] = []
        self._size = 0

    def hear(self, piece: bytes) -> None:
        """Take up a piece of an answer, as the network brought it."""
        if self._frames is not None:
            self._frames += piece
            self._end_frames(self._frames)
            return
        if not self._by_line:
            self._keep(piece)
            return
        *lines, rest = piece.split(b"\n")
        if lines and self._size:
            self._keep(lines.pop(0))
            self._end()
        for line in lines:
            # Nearly all lines say nothing of interest.
            if self._first or self._text is not None or _MARK_OR_JSON.search(line) is not None:
                self._keep(line)
                self._end()
        if rest:
            self._keep(rest)

    def _end_frames(self, frames: bytearray) -> None:
        """Read the frames that have ended."""
        while len(frames) >= _PRELUDE.size:
            size, headers, _ = _PRELUDE.unpack_from(frames)
            begin, end = _PRELUDE.size + headers, size - _CHECKSUM_BYTES
            if begin > end or size > _LONGEST:
                self._frames = None
                return
            if len(frames) < size:
                return
            self._read(bytes(frames[begin:end]))
            del frames[:size]

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= _LONGEST:
            self._parts.append(part)

    def _end(self) -> None:
        """Read the line, or the whole answer, that has ended."""
        text = b"".join(self._parts).strip() if self._size <= _LONGEST else b""
        self._parts, self._size = [], 0
        if not self._by_line or text.startswith(b"{"):
            self._read(text)
        elif text.startswith(b"data:") and self._matters(text):
            self._read(text[5:])

    def _matters(self, line: bytes) -> bool:
        if self._first or self._text is not None:
            self._first = False
            return True
        return _MARK.search(line) is not None

    def _read(self, text: bytes) -> None:
        try:
            said = _decoded(text)
        except (ValueError, RecursionError):
            return
        for message in said if isinstance(said, list) else (said,):
            if isinstance(message, dict):
                if self._frames is not None and (framed := _framed(message)) is not None:
                    self._read(framed)
                    continue
                if not self._begun:
                    self._begun, self.refused = True, bool(message.get("error"))
                self.account.add(message)
                self._made.extend(named_objects.in_answer(message))
                if self._text is not None:
                    self._read_text(self._text, message)

    def _read_text(self, kept: list[str], message: Mapping[str, Any]) -> None:
        self.broken = self.broken or bool(message.get("error"))
        if self._text_chars <= _LONGEST:
            found = list(texts(message))
            self._text_chars += sum(map(len, found))
            kept += found

    @property
    def text(self) -> str:
        """What has been generated so far, as far as it is kept, for an estimate of its tokens."""
        return "".join(self._text or ())

    def reading(self) -> Reading | None:
        """Return what the answer has said so far; None when it has said nothing."""
        self.read_rest()
        return self.account.reading()

    def objects(self) -> list[str]:
        """Return the provider's ids of what the answer has made so far."""
        self.read_rest()
        return self._made

    def read_rest(self) -> None:
        """Read what has come without the end of its line."""
        if self._parts:
            self._end()


def _decoded(text: bytes) -> Any:
    """Return what JSON says, also what is no JSON but is written by some providers, such as NaN."""
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)


def _framed(message: Mapping[str, Any]) -> bytes | None:
    """Return what the model's maker says, where AWS passes it on as base64; None where AWS speaks itself."""
    try:
        return base64.b64decode(message["bytes"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None


def heard_objects(listeners: Iterable[Any], *, kept: bool) -> Iterator[str]:
    """Return the ids of what the answers of an attempt have made.

    Args:
        listeners: As for ``provider_reading``.
        kept: Whether the provider keeps the answers themselves.
    """
    for one in listeners:
        if isinstance(one, Listener):
            yield from one.objects()
            if kept and one.account.id is not None:
                yield one.account.id


def is_refused(listeners: Sequence[Any]) -> bool:
    """Return whether a provider's last answer is an error from its beginning, although its status says success.

    Args:
        listeners: As for ``provider_reading``, which has been called before.
    """
    last = listeners[-1] if listeners else None
    return isinstance(last, Listener) and last.refused


def heard_text(listeners: Iterable[Any], *, streamed: bool = False) -> str:
    """Return the text of the last answer of an attempt, where it is kept.

    Args:
        listeners: As for ``provider_reading``, which has been called before.
        streamed: Only where it comes in messages.
    """
    last = next((one for one in reversed(list(listeners)) if isinstance(one, Listener)), None)
    return last.text if last is not None and (last.streams or not streamed) else ""


def is_broken(listeners: Sequence[Any]) -> bool:
    """Return whether a provider's last answer has broken off, or has ended with an error.

    Args:
        listeners: As for ``provider_reading``.
    """
    last = listeners[-1] if listeners else None
    if not isinstance(last, Listener):
        return False
    last.read_rest()
    return last.broken


def listen(response: httpx.Response, *, keeps_text: bool = False) -> Listener | None:
    """Listen to a provider's answer or error; None for what is neither, or only tells what is stored.

    Args:
        response: The answer. When its body is still to come, its pieces are heard as LiteLLM reads them.
        keeps_text: As for ``Listener``.
    """
    content_type = response.headers.get("content-type", "")
    if response.request.method != "POST" or (response.status_code != _ANSWERED and not response.is_error):
        return None
    if not content_type.startswith(("application/json", _EVENTS, _FRAMES, *_LINES)):
        return None
    listener = Listener(content_type, keeps_text=keeps_text)
    # Google AI Studio says it nowhere else.
    listener.account.service_tier = response.headers.get("x-gemini-service-tier") or None
    if response.is_stream_consumed or response.is_closed:
        listener.hear(response.content)
        return listener
    pieces = response.aiter_bytes

    async def heard(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        source = pieces(chunk_size)
        try:
            async for piece in source:
                listener.hear(piece)
                yield piece
        except httpx.HTTPError:
            listener.broken = True
            raise
        finally:
            # The answer must not keep what has listened: httpx's answers wait for the garbage collector.
            vars(response).pop("aiter_bytes", None)
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    response.aiter_bytes = heard  # type: ignore[method-assign]  # of this answer alone
    return listener


def provider_reading(listeners: Iterable[Any], translated: Callable[[], Usage | None] = lambda: None) -> Reading | None:
    """Return what the provider of an attempt has said; None when it has said nothing that is understood.

    Args:
        listeners: What has listened to the answers during the attempt. There are several when LiteLLM asked for
            something else meanwhile.
        translated: Returns the usage of the answer as LiteLLM has translated it; only called where several were heard.
    """
    found = [
        reading
        for listener in listeners
        if isinstance(listener, Listener) and (reading := listener.reading()) is not None
    ]
    if len(found) > 1 and (theirs := translated()) is not None:
        found = [reading for reading in found if _agrees(reading.usage, theirs)] or found
    return found[-1] if found else None


def heard_model(listeners: Iterable[Any]) -> str | None:
    """Return the model that has answered as the provider names it, also where it has counted nothing; None if it does not."""
    named = [one.account.model for one in listeners if isinstance(one, Listener) and one.account.model is not None]
    return named[-1] if named else None


def heard_id(listeners: Iterable[Any], theirs: str | None) -> str | None:
    """Return what the provider calls its answer; LiteLLM's id where the provider has not said one.

    Args:
        listeners: As for ``provider_reading``, which has been called before.
        theirs: The id that LiteLLM has given to the answer: the provider's, or one of its own.
    """
    said = [one.account.id for one in listeners if isinstance(one, Listener) and one.account.id is not None]
    return theirs if theirs in said or not said else said[-1]


def _agrees(said: Usage, translated: Usage) -> bool:
    return said.prompt_tokens == translated.prompt_tokens or said.completion_tokens == translated.completion_tokens
