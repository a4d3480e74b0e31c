"""What a request gives a model to read: the one counter of prompts, for admission and for estimates afterwards.

Pure, and safe with any body: linear in its size, without recursion. Nothing is left out because it is not known: text
in a field of any name counts, except in the fields listed here, which no provider shows a model. Media are not text:
an image, a clip or a page counts what providers charge for one of its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

#: No tokenizer in use makes fewer tokens of ordinary text; some make far fewer of repeated characters.
MOST_CHARS_A_TOKEN: Final = 8
#: What a chat format adds to each message, and to the prompt as a whole.
_TURN_TOKENS: Final = 4
_FRAME_TOKENS: Final = 3
#: An image of a megapixel or more at Anthropic; OpenAI's and Google's take 1 500 or fewer.
IMAGE_TOKENS: Final = 1_600
#: A page of a PDF, its text and its image.
PAGE_TOKENS: Final = 3_000
#: Pages of a document of which only the address or the id is known.
UNSEEN_PAGES: Final = 10
#: Google's rate; OpenAI takes 10.
AUDIO_TOKENS_A_S: Final = 32
#: Google's rate: a frame a second, and its sound.
VIDEO_TOKENS_A_S: Final = 300
_BYTES_A_PAGE: Final = 20_000
#: The lowest usual rates: 8 kHz of 16-bit samples; 32 kbit/s of compressed sound; 300 kbit/s of video.
_SAMPLED_BYTES_A_S: Final = 16_000
_AUDIO_BYTES_A_S: Final = 4_000
_VIDEO_BYTES_A_S: Final = 40_000
#: A clip of unknown length.
_CLIP_S: Final = 60

#: Fields of the request itself that no model reads.
_SETTINGS: Final = frozenset(
    {
        "api_base", "api_key", "api_version", "background", "base_url", "cache", "conversation", "encoding_format",
        "extra_headers", "extra_query", "guardrails", "headers", "include", "input_type", "language", "logit_bias",
        "metadata", "modalities", "model", "moderation", "num_retries", "output_format", "previous_response_id",
        "prompt_cache_key", "proxy_server_request", "quality", "reasoning_effort", "response_format", "role",
        "safety_identifier", "secret_fields", "service_tier", "size", "stream", "stream_options", "style", "tags",
        "timeout", "tool_choice", "truncation", "user", "verbosity", "voice",
    }
)  # fmt: skip
#: Of these, the ones that may hold a schema, which a model reads.
_SCHEMAS: Final = frozenset({"output_format", "response_format"})
_SKIPPED: Final = _SETTINGS - _SCHEMAS
_OWN_PREFIXES: Final = ("litellm_", "user_api_key")
#: Fields whose names and values, at any depth, a model reads as JSON: definitions and arguments of tools, schemas.
_JSON: Final = frozenset(
    {
        "args", "arguments", "functionDeclarations", "functions", "function_declarations", "generationConfig",
        "generation_config", "input_schema", "json_schema", "output_config", "output_format", "parameters", "response",
        "responseSchema", "response_format", "response_schema", "schema", "tools",
    }
)  # fmt: skip
#: Fields that say how a part is to be read. Their values are words; what is longer than a word is counted.
_MARKS: Final = frozenset(
    {
        "cache_control", "call_id", "detail", "encrypted_content", "format", "id", "index", "media_type", "mimeType",
        "mime_type", "role", "status", "strict", "tool_call_id", "tool_use_id", "ttl", "type",
    }
)  # fmt: skip
_WORD_CHARS: Final = 64
#: Proofs of earlier thinking, which the provider checks and no model reads.
_UNREAD: Final = frozenset({"signature", "thoughtSignature", "thought_signature"})
#: Types of parts whose ``input`` is the arguments of a tool.
_CALLS: Final = frozenset({"custom_tool_call", "mcp_tool_use", "server_tool_use", "tool_use"})
#: Fields that may hold media: a data URL, an address, plain base64.
_MEDIA: Final = frozenset(
    {
        "audio_url", "b64_json", "bytesBase64Encoded", "data", "document_url", "file", "file_data", "image", "image_url",
        "uri", "url", "video_url",
    }
)  # fmt: skip
#: Fields that name a file which the provider has or fetches.
_FILES: Final = frozenset({"fileUri", "file_id", "file_uri", "file_url"})
_KEYS: Final = _MARKS | _MEDIA | _FILES | _UNREAD
_TYPES: Final = ("media_type", "mimeType", "mime_type", "format", "type", "filename")
_DATA_URL: Final = re.compile(r"data:([\w.+-]{1,64}/[\w.+-]{1,64})?(?:;[\w=.+-]{1,64}){0,4}?(;base64)?,", re.ASCII)
_ADDRESS: Final = re.compile(r"(?:https?|gs|s3|file)://", re.IGNORECASE)
#: A longer one would be a way to hide text.
_LONGEST_ADDRESS: Final = 2_000
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
#: As much of a value as decides whether it is base64.
_SAMPLE_CHARS: Final = 256
#: Kinds of media by the words that name them in types, formats and fields, in the order in which they decide.
_KINDS: Final = (
    ("sampled", ("wav", "pcm", "g711", "l16")),
    ("audio", ("audio", "mp3", "mpga", "ogg", "opus", "flac", "aac", "m4a")),
    ("video", ("video", "mp4", "mov", "webm")),
    ("image", ("image", "png", "jpeg", "jpg", "webp", "gif", "screenshot")),
    ("text", ("text/", "json", "xml", "csv", "markdown")),
    ("document", ("document", "file", "pdf", "application/")),
)
_OBJECTS: Final = (dict, list, tuple)
_TEXTS: Final = (str, bytes, bytearray)
#: How many of the parts around a value say what kind of media it is.
_NEIGHBOURS: Final = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request gives a model to read.

    Attributes:
        text: All of its text, in no particular order.
        token_ids: Tokens that the client has made itself.
        turns: Messages.
        images: Images.
        pages: Pages of documents, by their size, or those assumed of one that is not in the request.
        audio_ms: Length of its sound, by its size.
        video_ms: Length of its moving pictures, by their size.
        file_bytes: Text within encoded files.
    """

    text: str = ""
    token_ids: int = 0
    turns: int = 0
    images: int = 0
    pages: int = 0
    audio_ms: int = 0
    video_ms: int = 0
    file_bytes: int = 0

    @property
    def least_tokens(self) -> int:
        """The fewest tokens that the text can be, by its length."""
        return len(self.text) // MOST_CHARS_A_TOKEN

    @property
    def image_tokens(self) -> int:
        """The tokens of the images."""
        return self.images * IMAGE_TOKENS

    @property
    def audio_tokens(self) -> int:
        """The tokens of the sound."""
        return -(-self.audio_ms * AUDIO_TOKENS_A_S // 1000)

    @property
    def media_tokens(self) -> int:
        """The tokens of everything but the text, in the units of the provider that takes most."""
        return (
            self.token_ids
            + self.image_tokens
            + self.pages * PAGE_TOKENS
            + self.audio_tokens
            + -(-self.video_ms * VIDEO_TOKENS_A_S // 1000)
            + -(-self.file_bytes // 3)
        )

    def tokens(self, count: Callable[[str], int]) -> int:
        """Return the tokens of the whole prompt.

        Args:
            count: Counts the tokens of a text.
        """
        counted = max(count(self.text), self.least_tokens) if self.text else 0
        return counted + self.media_tokens + (self.turns * _TURN_TOKENS + _FRAME_TOKENS if self.turns else 0)


def read_prompt(body: Mapping[str, object], unseen_pages: int = UNSEEN_PAGES) -> Prompt:
    """Return what a request gives a model to read, whichever API it is for.

    Args:
        body: The request.
        unseen_pages: Pages of a document of which only the address or the id is known.
    """
    reader = _Reader(unseen_pages)
    for name in body:
        if name in _SKIPPED or name.startswith(_OWN_PREFIXES):
            continue
        value = body[name]
        if isinstance(value, _OBJECTS):
            reader.read(name, value)
        elif isinstance(value, _TEXTS) and name not in _SCHEMAS:
            reader.leaf(_Place(name, {}, None), value)
    return reader.prompt()


class _Reader:
    """Collects the parts of a prompt."""

    def __init__(self, unseen_pages: int) -> None:
        self._unseen_pages = unseen_pages
        self._texts: list[str] = []
        self._token_ids = 0
        self._turns = 0
        self._media = dict.fromkeys(("image", "pages", "audio_ms", "video_ms", "file_bytes"), 0)

    def prompt(self) -> Prompt:
        media = self._media
        return Prompt(
            text=" ".join(self._texts),
            token_ids=self._token_ids,
            turns=self._turns,
            images=media["image"],
            pages=media["pages"],
            audio_ms=media["audio_ms"],
            video_ms=media["video_ms"],
            file_bytes=media["file_bytes"],
        )

    def read(self, name: str, value: object) -> None:
        """Read a field of the request."""
        ids = name in {"input", "prompt"}
        waiting: list[tuple[_Place, object, bool]] = [(_Place(name, {}, None), value, name in _JSON)]
        while waiting:
            place, part, as_json = waiting.pop()
            if isinstance(part, str):
                if as_json or place.field not in _KEYS:
                    self._texts.append(part)
                else:
                    self.leaf(place, part)
            elif isinstance(part, dict):
                self._turns += "role" in part and not as_json
                waiting += self._parts(place, part, as_json=as_json)
            elif isinstance(part, (list, tuple)):
                if ids:
                    self._token_ids += sum(type(item) is int for item in part)
                waiting.extend((place, item, as_json) for item in part)
            else:
                self.leaf(place, part, as_json=as_json)

    def _parts(self, place: _Place, part: Mapping[str, object], *, as_json: bool) -> list[tuple[_Place, object, bool]]:
        """Return what is to be read of an object: values, where they stand, and whether a model reads them as JSON."""
        found: list[tuple[_Place, object, bool]] = []
        for name, item in part.items():
            key = str(name)
            within = as_json or key in _JSON or (key == "input" and str(part.get("type")) in _CALLS)
            if (within and key not in _MARKS) or (len(key) > _WORD_CHARS and key not in _KEYS):
                self._texts.append(key)
            if not isinstance(item, str):
                found.append((_Place(key, part, place), item, within))
            elif within or key not in _KEYS:
                # It is text wherever it stands.
                found.append((place, item, True))
            elif key not in _MARKS or len(item) > _WORD_CHARS:
                found.append((_Place(key, part, place), item, False))
        return found

    def leaf(self, place: _Place, value: object, *, as_json: bool = False) -> None:
        """Read a value that has no parts."""
        field = place.field
        if isinstance(value, (bytes, bytearray)):
            self._add(place.kind() or "document", len(value))
        elif isinstance(value, str):
            if as_json or not (
                field in _UNREAD
                or (field in _MARKS and len(value) <= _WORD_CHARS)
                or (field in _FILES and self._is_file(place, value))
                or (field in _MEDIA and self._is_media(place, value))
            ):
                self._texts.append(value)
        elif as_json and isinstance(value, int | float) and not isinstance(value, bool):
            self._texts.append(repr(value))

    def _is_file(self, place: _Place, value: str) -> bool:
        """Add a file of unknown size; return False if the value is too long to name one."""
        if len(value) > _LONGEST_ADDRESS:
            return False
        self._add(place.kind() or "document", None)
        return True

    def _is_media(self, place: _Place, value: str) -> bool:
        """Add what a field of media holds; return False if it is text after all."""
        if (url := _DATA_URL.match(value)) is not None:
            encoded = len(value) - url.end()
            self._add(_kind_of(url[1] or "") or place.kind() or "document", encoded * 3 // 4 if url[2] else encoded)
            return True
        kind = place.kind()
        if kind is None:
            return False
        if _ADDRESS.match(value):
            return self._is_file(place, value)
        if kind == "text" and place.part.get("type") != "base64":
            return False
        if _BASE64.fullmatch(value[:_SAMPLE_CHARS].replace("\r", "").replace("\n", "")) is None:
            return False
        self._add(kind, len(value) * 3 // 4)
        return True

    def _add(self, kind: str, size: int | None) -> None:
        """Add one piece of media of this many bytes; None where only its address is known."""
        media = self._media
        match kind:
            case "image":
                media["image"] += 1
            case "sampled":
                media["audio_ms"] += _length_ms(size, _SAMPLED_BYTES_A_S)
            case "audio":
                media["audio_ms"] += _length_ms(size, _AUDIO_BYTES_A_S)
            case "video":
                media["video_ms"] += _length_ms(size, _VIDEO_BYTES_A_S)
            case "text" if size is not None:
                media["file_bytes"] += size
            case _:
                media["pages"] += self._unseen_pages if size is None else -(-size // _BYTES_A_PAGE)


class _Place(NamedTuple):
    """Where in the request a value stands.

    Attributes:
        field: The field that it is in.
        part: What the field belongs to.
        around: Where that stands; None at the top.
    """

    field: str
    part: Mapping[str, object]
    around: _Place | None

    def kind(self) -> str | None:
        """Return the kind of media that the nearest neighbours speak of, or None."""
        place: _Place | None = self
        for _ in range(_NEIGHBOURS):
            if place is None:
                break
            for hint in (*(place.part.get(name) for name in _TYPES), place.field):
                if isinstance(hint, str) and (kind := _kind_of(hint)) is not None:
                    return kind
            place = place.around
        return None


def _kind_of(hint: str) -> str | None:
    word = hint[-_WORD_CHARS:].lower()
    return next((kind for kind, words in _KINDS if any(part in word for part in words)), None)


def _length_ms(size: int | None, bytes_a_s: int) -> int:
    return _CLIP_S * 1000 if size is None else -(-size * 1000 // bytes_a_s)
