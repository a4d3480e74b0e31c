"""The bundled upstream's tokenizer, and the text it answers with.

One token is up to four characters that are not white space, together with the white space before them; white space at
the end of a text is one more. So ``"the weather"`` is ``"the"``, ``" weat"``, ``"her"``: three tokens. It counts about
as real tokenizers do, a reader can recompute it, and the pieces of a text joined again are the text.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TOKEN = re.compile(r"\s*\S{1,4}|\s+")
_FILL = _TOKEN.findall(" This line is here to be read, and it says not much but it has as many words as one asks.")
_PROMPT_KEYS = ("system", "instructions", "messages", "input")
_TEXT_KEYS = ("content", "text", "output", "arguments", "refusal", "tool_calls", "function")


def split_tokens(text: str) -> list[str]:
    """Return the tokens of a text; joined they are the text again."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """Return how many tokens a text has."""
    return sum(1 for _ in _TOKEN.finditer(text))


@lru_cache(maxsize=256)
def filler(tokens: int) -> str:
    """Return a text of exactly so many tokens."""
    return "".join(islice(cycle(_FILL), tokens)).lstrip()


@lru_cache(maxsize=256)
def encoded_tokens(text: str) -> tuple[bytes, ...]:
    """Return the tokens of a text as JSON strings, ready to be put into an event."""
    return tuple(json.dumps(token).encode() for token in split_tokens(text))


def prompt_tokens(body: Mapping[str, object]) -> int:
    """Count a request's prompt: the text of messages, input, system prompt and tool calls, and the tools' JSON."""
    count = sum(count_tokens(text) for key in _PROMPT_KEYS for text in _texts(body.get(key)))
    tools = body.get("tools")
    return count + count_tokens(json.dumps(tools)) if tools else count


def last_text(body: Mapping[str, object]) -> str:
    """Return the text of the last message, input item or input."""
    value = body.get("messages", body.get("input"))
    if isinstance(value, list):
        value = value[-1:]
    return "".join(_texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key in _TEXT_KEYS:
            yield from _texts(value.get(key))
