"""Which objects that a provider keeps a request names: files, batches, videos, containers, vector stores, responses. Pure.

They stand in the path, and in the body in places that differ between APIs: parts of messages, tools, settings. So a place
is recognised by the name of its field. What is looked up needlessly does no harm, since it belongs to no tenant.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final
from urllib.parse import unquote

#: The parts of paths after which the id of an object stands.
_IN_PATH: Final = frozenset(
    {"batches", "characters", "containers", "file_batches", "files", "responses", "vector_stores", "videos"}
)
#: Fields that hold an object, and those that hold ids or addresses of some, without underscores and in lower case.
_FIELD: Final = re.compile(
    r"(?:container|file|vectorstore|video)s?(?:\[\])?$|(?:batch|character|container|file|response|store|video)(?:id|uri)"
)
_IDS: Final = re.compile(r"(?:id|uri)s?(?:\[\])?$")
_MOST_FIELD_CHARS: Final = 64
#: What a field holds: nothing of interest; an object or its id; an id.
_OTHER, _OBJECT, _ID = 1, 2, 3
#: The kinds of fields that have been seen.
_KINDS: Final[dict[str, int]] = {}
_MOST_KINDS: Final = 2_048
#: The client's own notes, which no provider resolves.
_NOTES: Final = frozenset({"litellm_metadata", "metadata"})
LONGEST_ID: Final = 4_096
#: LiteLLM joins an id to fields of its own, and encodes them: this is how it names the id there.
_WRAPPED: Final = re.compile(
    r"(?:character_id|container_id|generic_response_id|llm_batch_id|response_id|video_id):([^;]+)"
    r"|llm_output_file_id,([^;,]+)|^litellm:([^;]+);model,"
)
_WRAPPER: Final = "litellm"
#: What it removes from an id before and after it decodes it, wherever that stands.
_PREFIXES: Final = re.compile(r"resp_|video_|cntr_|character_|file-|batch_")
_NAMES: Final = re.compile(r"(?:litellm:custom_llm_provider|(?:character|container|model|response|video)_id):")
#: The address of a file at a provider that has one.
_FILE: Final = "files/"


def in_path(path: str) -> Iterator[str]:
    """Return the ids in a path, which may contain slashes and colons themselves."""
    parts = path.split("/")
    for index, (before, part) in enumerate(pairwise(parts), start=1):
        if before in _IN_PATH and part:
            rest = "/".join(parts[index:])
            yield from {part.partition("?")[0].partition(":")[0], part, rest, rest.rpartition("/")[0] or part}


def in_body(body: Mapping[str, Any]) -> Iterator[str]:
    """Return the ids in a body; linear in its size, without recursion."""
    waiting: list[tuple[Any, int]] = [({name: value for name, value in body.items() if name not in _NOTES}, _OTHER)]
    while waiting:
        part, around = waiting.pop()
        if isinstance(part, dict):
            for name, value in part.items():
                kind = _KINDS.get(name) or _kind(name)
                if isinstance(value, str):
                    if (kind != _OTHER or around != _OTHER) and value and (kind == _ID or len(value) <= LONGEST_ID):
                        yield value
                elif isinstance(value, dict | list | tuple):
                    waiting.append((value, around if kind == _OTHER else kind))
        else:
            for value in part:
                if isinstance(value, dict | list | tuple):
                    waiting.append((value, around))
                elif (
                    around != _OTHER
                    and isinstance(value, str)
                    and value
                    and (around == _ID or len(value) <= LONGEST_ID)
                ):
                    yield value


def _kind(name: object) -> int:
    """Return what a field holds."""
    field = str(name)[:_MOST_FIELD_CHARS].lower().replace("_", "").replace("-", "")
    kind = _OTHER
    if _FIELD.search(field) is not None:
        kind = _ID if _IDS.search(field) is not None else _OBJECT
    if isinstance(name, str) and len(name) <= _MOST_FIELD_CHARS and len(_KINDS) < _MOST_KINDS:
        _KINDS[name] = kind
    return kind


def plain(id_: str) -> str:
    """Return the provider's own id, without what LiteLLM has put around it."""
    text = unquote(id_.strip())
    wrapper = next((found for found in _decoded(text) if found.startswith(_WRAPPER)), "")
    if (wrapped := _WRAPPED.search(wrapper)) is not None:
        text = wrapped[1] or wrapped[2] or wrapped[3]
    return text.rpartition(_FILE)[2] or text


def possible(id_: str) -> set[str]:
    """Return everything that LiteLLM or a provider may take for the object's id: a client may encode fields of its own."""
    fields = [field for text in _decoded(unquote(id_.strip())) for field in text.split(";")]
    inner = {part for field in fields for mark in ":," for part in (field, field.partition(mark)[2])}
    return {id_, plain(id_)} | {plain(part) for part in inner | {_NAMES.sub("", field) for field in fields} if part}


def _decoded(text: str) -> Iterator[str]:
    """Return what an id may be decoded to."""
    for coded in dict.fromkeys((text, re.split("[-_]", text, maxsplit=1)[-1], _PREFIXES.sub("", text))):
        for decode in (base64.b64decode, base64.urlsafe_b64decode):
            try:
                decoded = decode(coded + "=" * (-len(coded) % 4)).decode()
            except (binascii.Error, ValueError):
                continue
            if ";" in decoded:
                yield decoded
