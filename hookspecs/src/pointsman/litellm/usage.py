"""Reads what a provider says about what an answer used, in whichever of the common formats. Pure and total.

``Account`` collects the usage blocks of one answer: the single one of a plain answer, or those of a stream. A later block
never erases what an earlier one has said, so that plain and streamed answers are read the same way. What is missing,
malformed or contradictory is never taken for zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from ..frozen import replace
from .charges import charged, search_size
from .grounding import Grounding
from .reported_counts import is_object, kind_of, milliseconds, name_of, number, object_of
from .usage_blocks import BILLED, OLLAMA, Draft, Reading, read_block

_MOST_RAW_CHARS: Final = 4_000
_MOST_DEPTH: Final = 4
#: The counts of the input, which providers correct together.
_INPUT: Final = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
_WRITTEN: Final = "cache_creation_input_tokens"
#: How many tokens were written to the cache for how long.
_LIFETIMES: Final = "cache_creation"
_BLOCKS: Final = ("usage", "usageMetadata")
#: Where some providers say it instead.
_OTHER_PLACES: Final = frozenset({"meta", "usage_info", "x_groq", *OLLAMA})
_AS_TEXT: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Account:
    """What one answer's provider has said so far about what it used.

    Attributes:
        block: The usage block, merged from all that came.
        model: The model that answered.
        id: What the provider calls the answer.
        service_tier: The tier that served it.
    """

    __slots__ = (
        "_counts",
        "_embeds",
        "_facts",
        "_final",
        "_grounding",
        "_speaks",
        "_tool_calls",
        "block",
        "id",
        "model",
        "service_tier",
    )

    def __init__(self) -> None:
        self.block: dict[str, Any] = {}
        self.model: str | None = None
        self.id: str | None = None
        self.service_tier: str | None = None
        self._counts: dict[str, int] = {}
        self._facts: dict[str, Any] = {}
        self._grounding: Grounding | None = None
        #: How often its output names a tool of the provider's, charged or not.
        self._tool_calls = 0
        #: Whether a block has counted the answer, not only its beginning.
        self._final = False
        self._embeds = self._speaks = False

    def add(self, message: Mapping[str, Any]) -> None:
        """Take up a whole answer, or one message of a stream.

        Args:
            message: The provider's JSON.
        """
        kind = message.get("type")
        outer = message
        if kind == "message_start":
            message = object_of(message.get("message"))
        elif (inner := message.get("response")) is not None and is_object(inner):
            message = inner
        elif kind == "message-end":
            message = object_of(message.get("delta")) or message
        self._name(message)
        self._speaks = self._speaks or kind == _SPOKEN
        for source in (message, outer) if message is not outer else (message,):
            for name in _BLOCKS:
                if (block := source.get(name)) is not None and is_object(block):
                    self.add_block(block, final=kind != "message_start" and not _goes_on(message, block))
        if not _OTHER_PLACES.isdisjoint(message):
            self._add_others(message)
        self._read_output(message)
        if isinstance(content := message.get("content"), list):
            self._read_blocks(content)
        elif (begun := message.get("content_block")) is not None:
            self._read_blocks([begun], before=self._counts)

    def _add_others(self, message: Mapping[str, Any]) -> None:
        groq = object_of(object_of(message.get("x_groq")).get("usage"))
        meta = object_of(message.get("meta"))
        billed = {name: meta[name] for name in BILLED if is_object(meta.get(name))}
        ollama = {name: message[name] for name in OLLAMA if name in message}
        for block in (groq, billed, object_of(message.get("usage_info")), ollama):
            if block:
                self.add_block(block)

    def _name(self, message: Mapping[str, Any]) -> None:
        model = name_of(message.get("model")) or name_of(message.get("modelVersion"))
        self.model = model or self.model
        self.id = self.id or name_of(message.get("id")) or name_of(message.get("responseId"))
        if "performanceConfig" in message and object_of(message["performanceConfig"]).get("latency") == "optimized":
            # Bedrock charges it at prices of its own.
            self.service_tier = "optimized"
            return
        tier = message.get("service_tier", message.get("serviceTier"))
        if tier is None:
            return
        # Bedrock's is an object.
        tier = name_of(object_of(tier).get("type") if is_object(tier) else tier)
        if tier and tier != "auto":
            self.service_tier = tier

    def add_block(self, block: Mapping[str, Any], *, final: bool = True) -> None:
        """Take up a usage block.

        Args:
            block: The block.
            final: Whether it counts the whole answer, or all of it so far.
        """
        self._final = self._final or final
        if _WRITTEN in block and _LIFETIMES in self.block and _LIFETIMES not in block:
            self._forget_lifetimes(block)
        _merge(self.block, block)

    def _forget_lifetimes(self, block: Mapping[str, Any]) -> None:
        """Forget that there were no cache writes of any life time, where the end of a stream counts the first of them."""
        said = object_of(self.block[_LIFETIMES]).values()
        if number(block[_WRITTEN]) and not number(self.block.get(_WRITTEN)) and not any(said):
            del self.block[_LIFETIMES]

    def _read_output(self, message: Mapping[str, Any]) -> None:
        """Count what is charged besides tokens, in the output of the answer."""
        output = message.get("output")
        if isinstance(output, list):
            self._count("searches", sum(_is_search(item) for item in output))
            self._count("file_searches", sum(kind_of(item) == "file_search_call" for item in output))
            sandboxes = {_sandbox(item) or n for n, item in enumerate(output) if _is_hosted(item)}
            self._count("code_sessions", len(sandboxes))
            calls = [
                kind for item in output if (kind := str(kind_of(item))).endswith(_CALL) and kind not in _OF_CLIENTS
            ]
            self._count("other_tools", sum(kind not in _OF_PROVIDERS for kind in calls))
            self._tool_calls = max(self._tool_calls, len(calls))
            self._read_tools(message.get("tools"))
            self._read_tool_usage(object_of(message.get("tool_usage")))
        choices = message.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if (block := object_of(choice).get("usage")) is not None and is_object(block):
                # Moonshot's streams count there.
                self.add_block(block)
            said = object_of(object_of(choice).get("message")) or object_of(object_of(choice).get("delta"))
            annotations = said.get("annotations")
            if isinstance(annotations, list) and any(kind_of(item) == "url_citation" for item in annotations):
                # A chat answer says only that it has searched.
                self._count("searches", 1)
        candidates = message.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            if grounding := object_of(object_of(candidate).get("groundingMetadata")):
                self._grounding = self._grounding or Grounding()
                self._grounding.add(object_of(candidate).get("index"), grounding)
        if isinstance(data := message.get("data"), list):
            self._read_data(message, data)
        if "text" in message:
            duration = object_of(message.get("usage")).get("seconds", message.get("duration"))
            if (ms := milliseconds(duration)) is not None:
                self._facts["audio_ms"] = ms

    def _read_blocks(self, blocks: list[Any], before: Mapping[str, int] = MappingProxyType({})) -> None:
        """Count the uses of Anthropic's own tools, which its usage counts in part.

        Args:
            blocks: Blocks of the answer.
            before: What was counted in the blocks before them.
        """
        names = [str(object_of(block).get("name")) for block in blocks if kind_of(block) == _SERVER_TOOL]
        if not names:
            return
        self._count("searches", before.get("searches", 0) + names.count(_SEARCH))
        # All of an answer run in one sandbox.
        self._count("code_sessions", int(any(name.endswith(_CODE) for name in names)))
        others = [name for name in names if name not in _BY_TOKENS and not name.endswith(_CODE)]
        self._count("other_tools", before.get("other_tools", 0) + len(others))

    def _read_data(self, message: Mapping[str, Any], data: list[Any]) -> None:
        """Read what the answer consists of, where that is vectors or images."""
        self._embeds = self._embeds or any("embedding" in object_of(item) for item in data)
        if any("b64_json" in object_of(item) or "url" in object_of(item) for item in data):
            self._facts["images"] = len(data)
            for name, key in (("image_size", "size"), ("image_quality", "quality")):
                if (value := name_of(message.get(key))) and value != "auto":
                    self._facts[name] = value

    def _read_tools(self, tools: Any) -> None:
        for tool in tools if isinstance(tools, list) else ():
            size = search_size(object_of(tool).get("search_context_size"))
            if size is not None and str(kind_of(tool)).startswith("web_search"):
                self._facts["search_context"] = size

    def _read_tool_usage(self, said: Mapping[str, Any]) -> None:
        """Count what OpenAI says about its tools besides their calls, which are in the output unless they are left out."""
        for name, counts in said.items():
            if not any(map(number, object_of(counts).values())):
                continue
            if name != "web_search":
                self._count("other_tools", 1)
            elif "searches" not in self._counts:
                self._count("searches", number(object_of(counts).get("num_requests")) or 0)

    def _count(self, name: str, count: int) -> None:
        if count:
            self._counts[name] = max(count, self._counts.get(name, 0))

    def reading(self) -> Reading | None:
        """Return what the provider has said; None when it has said nothing."""
        found = read_block(self.block) if self.block else None
        counts: Mapping[str, int] = self._counts
        if self._grounding is not None:
            counts = {**counts, **self._grounding.uses()}
        if number(object_of(self.block.get(_SERVER_TOOL)).get(_SEARCHES)) is not None:
            # Its searches that found nothing are not charged.
            counts = {name: count for name, count in counts.items() if name != "searches"}
        if found is not None:
            facts, tokens = found.facts, found.tokens("prompt_tokens") + found.tokens("completion_tokens")
            facts |= charged(self.block, tokens, self._tool_calls)
        elif self._facts or any(counts.values()):
            # Images and sounds have no token count of ours; text has.
            made = "images" in self._facts or "audio_ms" in self._facts
            found = Draft({}, prompt_known=made, completion_known=made)
            facts = found.facts
        else:
            return None
        facts |= self._facts
        facts |= {name: count for name, count in counts.items() if facts.get(name) is None}
        if self._embeds:
            # An embedding has no answer: its total is its prompt.
            facts["prompt_tokens"] = found.tokens("prompt_tokens") + found.tokens("completion_tokens")
            facts["completion_tokens"] = 0
            facts["contradictory"] = facts.get("contradictory", False) and not self.block.keys() <= _TOTAL_ONLY
        if (
            facts.get("images")
            and not facts.get("image_completion_tokens")
            and "output_tokens_details" not in self.block
        ):
            # A model that answers with images alone reports their tokens as those of the answer.
            facts["image_completion_tokens"] = found.tokens("completion_tokens")
        if self._speaks:
            facts["audio_completion_tokens"] = found.tokens("completion_tokens")
        facts["service_tier"] = facts.get("service_tier") or self.service_tier
        facts["raw"] = _raw(self.block)
        found.made_by(self.model)
        reading = found.reading()
        # No answer uses nothing: zeros alone are what a server says that does not count.
        said = not reading.usage.is_empty
        if said and (self._final or not self.block):
            return reading
        return replace(reading, prompt_known=found.prompt_known and said, completion_known=False)


#: Anthropic's name of a use of its own tools, in an answer and in its usage, and of the searches there.
_SERVER_TOOL: Final = "server_tool_use"
_SEARCHES: Final = "web_search_requests"
_SEARCH: Final = "web_search"
#: How the names of those of its tools end that run code in a sandbox.
_CODE: Final = "code_execution"
#: Those that cost only tokens, or are counted.
_BY_TOKENS: Final = frozenset({_SEARCH, "web_fetch", "tool_search_tool_regex", "tool_search_tool_bm25", "advisor"})
#: The end of a spoken stream of OpenAI's, whose tokens are all sound.
_SPOKEN: Final = "speech.audio.done"
_SCALARS: Final = frozenset({bool, float, int, str, type(None)})
_TOTAL_ONLY: Final = frozenset({"total_tokens"})
#: How the names of items of an output end that are uses of tools.
_CALL: Final = "_call"
#: Those of tools that the client runs itself.
_OF_CLIENTS: Final = frozenset(
    {"apply_patch_call", "computer_call", "custom_tool_call", "function_call", "local_shell_call"}
)
#: Those of the provider's tools whose price is known, or that cost only tokens.
_OF_PROVIDERS: Final = frozenset(
    {"code_interpreter_call", "file_search_call", "mcp_call", "shell_call", "tool_search_call", "web_search_call"}
)


def _goes_on(message: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
    """Return whether a message does not count the whole answer, or all of it so far."""
    kind = message.get("type")
    if kind == "message_delta":
        return number(block.get("output_tokens")) is None
    candidates = message.get("candidates")
    return isinstance(candidates, list) and not any(object_of(item).get("finishReason") for item in candidates)


def _is_hosted(item: Any) -> bool:
    """Return whether an item is code that the provider has run in a sandbox of its own."""
    kind = kind_of(item)
    return kind == "code_interpreter_call" or (kind == "shell_call" and _sandbox(item) is not None)


def _sandbox(item: Any) -> str | None:
    said = object_of(item)
    return name_of(said.get("container_id")) or name_of(object_of(said.get("environment")).get("container_id"))


def _is_search(item: Any) -> bool:
    # Opening a page that was found is not a search.
    action = object_of(object_of(item).get("action")).get("type", "search")
    return bool(kind_of(item) == "web_search_call" and action == "search")


def _merge(known: dict[str, Any], block: Mapping[str, Any], depth: int = 0) -> None:
    """Add a later usage block to an earlier one, which it corrects and never erases."""
    # The same input, divided in another way.
    whole = depth == 0 and bool(known) and _total(block, _INPUT) == _total(known, _INPUT)
    for key, value in block.items():
        old = known.get(key)
        if old is None and type(value) in _SCALARS:  # as nearly always
            known[key] = value
        elif is_object(value):
            if depth < _MOST_DEPTH:
                inner = dict(old) if is_object(old) else {}
                _merge(inner, value, depth + 1)
                known[key] = inner
        elif old is None or (key in _INPUT and whole and number(value) is not None):
            known[key] = value
        elif key == "output_tokens" and number(old) is not None and number(value) is not None:
            known[key] = max(number(old) or 0, number(value) or 0)
        elif (_says(value) and not _spoils(old, value)) or not _says(old):
            known[key] = value


def _total(block: Mapping[str, Any], keys: Iterable[str]) -> int:
    return sum(number(block.get(key)) or 0 for key in keys)


def _spoils(old: Any, value: Any) -> bool:
    """Return whether a value is of a kind that cannot correct the earlier one."""
    if is_object(old) or isinstance(old, list):
        return not isinstance(value, list)
    return number(old) is not None and number(value) is None and not isinstance(value, list)


def _says(value: Any) -> bool:
    """Return whether a value is one that an earlier one may give way to."""
    if isinstance(value, int | float | list):
        return bool(value) and (isinstance(value, list) or number(value) is not None)
    return bool(value)


def _raw(block: Mapping[str, Any]) -> str | None:
    if not block:
        return None
    try:
        text = _AS_TEXT(block)
    except RecursionError:  # lists in lists
        return None
    return text if len(text) <= _MOST_RAW_CHARS else text[: _MOST_RAW_CHARS - 1] + "~"
