"""Which objects that a provider keeps a request names: files, batches, videos, containers, vector stores, responses. Pure.

They stand in the path, and in the body in places that differ between APIs: parts of messages, tools, settings. So a place
is recognised by the name of its field. What is looked up needlessly does no harm, since it belongs to no tenant.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import unquote

from ..types import Endpoint

#: The parts of paths after which the id of an object stands.
_IN_PATH: Final = frozenset(
    {
        "batches",
        "characters",
        "containers",
        "file_batches",
        "files",
        "interactions",
        "jobs",
        "responses",
        "skills",
        "vector_stores",
        "videos",
    }
)
#: Fields that hold an object, and those that hold ids or addresses of some, without underscores and in lower case.
_FIELD: Final = re.compile(
    r"(?:container|file|vectorstore|video)s?(?:\[\])?$"
    r"|(?:batch|character|container|file|interaction|response|skill|store|video)(?:id|uri)"
)
_IDS: Final = re.compile(r"(?:id|uri)s?(?:\[\])?$")
_MOST_FIELD_CHARS: Final = 64
#: What a field holds: nothing of interest; an object or its id; an id.
_OTHER, _OBJECT, _ID = 1, 2, 3
#: The kinds of fields that have been seen.
_KINDS: Final[dict[str, int]] = {}
_MOST_KINDS: Final = 2_048
#: Fields with what an answer of a model has made, and in which part of a request they may stand besides the request itself.
_MADE: Final = frozenset({"container", "previous_interaction_id", "cachedContent", "cached_content"})
_PARTS: Final = ("extra_body", "config", "response")
#: By API, where these are the provider's. Elsewhere a conversation is a name of the client's own, and LiteLLM guards
#: responses, under ids of its own.
_MADE_BY_API: Final = {
    Endpoint.RESPONSES: _MADE | {"conversation"},
    Endpoint.COUNT_TOKENS: _MADE | {"conversation"},
    Endpoint.PASS_THROUGH: _MADE | {"conversation", "previous_response_id"},
}
_REFERENCE: Final = frozenset({"id", "type"})
#: How the types of Anthropic's blocks end that may name files which code has written.
_RAN: Final = "code_execution_tool_result"
#: The parts of an answer that may say what it has made.
_SAYING: Final = ("response", "message", "interaction", "delta")
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


def of_answers(endpoint: Endpoint, body: Mapping[str, Any]) -> Iterator[str]:
    """Return the ids in a body of what only answers of models make: what a request of someone has said is in it.

    Containers, conversations, single items of responses, interactions, cached contents, spoken answers.

    Args:
        endpoint: The API.
        body: The request's body, or a client's event on a websocket.
    """
    if endpoint is Endpoint.REALTIME:
        return  # its items and conversations end with the connection
    fields = _MADE_BY_API.get(endpoint, _MADE)
    for part in (body, *(body[name] for name in _PARTS if name in body)):
        if not isinstance(part, Mapping):
            continue
        # Most requests have none of this: only what may be one is looked at.
        if not fields.isdisjoint(part):
            yield from filter(None, (_id_of(part[name]) for name in fields if name in part))
        yield from _of_parts(part)


def _of_parts(part: Mapping[str, Any]) -> Iterator[str]:
    """Return those ids in the tools, items and messages of a request."""
    for tool in _entries(part, "tools"):
        if "container" in tool and (id_ := _id_of(tool["container"])):
            yield id_
    for item in _entries(part, "input"):
        if "id" in item and _is_reference(item):
            yield item["id"]
    for message in _entries(part, "messages"):
        if "audio" in message and (id_ := _object_id(message["audio"])):
            yield id_


def _entries(part: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """Return the objects in a list of a request."""
    found = part.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list | tuple) else ()


def in_answer(message: Mapping[str, Any]) -> Iterator[str]:
    """Return the ids of what a provider's answer, or an event of one, says that it has made.

    Items of responses are left out: each answer has some, and clients send them as a whole, or the id of the response.
    """
    for part in (message, *filter(None, map(message.get, _SAYING))):
        if type(part) is not dict and not isinstance(part, Mapping):  # the second is slow
            continue
        if part.get("object") == "interaction" and (made := _id_of(part.get("id"))):
            yield made
        if "container" in part and (made := _object_id(part["container"])):
            yield made
        if "output" in part:
            yield from filter(None, (_id_of(item.get("container_id")) for item in _objects(part["output"])))
        if "content_block" in part:
            yield from _written(part["content_block"])
        for block in _objects(part["content"]) if "content" in part else ():
            yield from _written(block)
        for choice in _objects(part["choices"]) if "choices" in part else ():
            answer = choice.get("message")
            if isinstance(answer, Mapping) and "audio" in answer and (made := _object_id(answer["audio"])):
                yield made


def _written(block: Any) -> Iterator[str]:
    """Return the ids of the files that code has written, by a block of Anthropic's answers."""
    if isinstance(block, Mapping) and str(block.get("type")).endswith(_RAN):
        result = block.get("content")
        files = result.get("content") if isinstance(result, Mapping) else None
        yield from (id_ for file in _objects(files) if isinstance(id_ := file.get("file_id"), str) and id_)


def _is_reference(item: Mapping[str, Any]) -> bool:
    """Return whether an item of a response's input stands for one that the provider has kept."""
    if not isinstance(item.get("id"), str):
        return False
    return item.get("type") == "item_reference" or item.keys() <= _REFERENCE


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in value if isinstance(entry, Mapping)) if isinstance(value, list | tuple) else iter(())


def _id_of(value: Any) -> str:
    return value if isinstance(value, str) else _object_id(value)


def _object_id(value: Any) -> str:
    found = value.get("id") if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else ""


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
