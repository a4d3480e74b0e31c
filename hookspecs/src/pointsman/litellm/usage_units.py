"""What an answer used on endpoints that count in other units than tokens, or in a provider's own words.

Total: malformed input gives None, never an error. ``usage_blocks.read`` reads the common formats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import litellm

from ..frozen import replace
from ..types import Endpoint, Usage
from . import request_values
from .charges import TOOLS, tools, unknown_uses
from .reported_counts import decimal, mapping

_MOST: Final = 10**15
#: A longer answer of a pass-through is not read: it would hold up other requests.
_MOST_CHARS: Final = 4_000_000
_MS: Final = 1000


def answer_usage(endpoint: Endpoint, response: Any, body: Mapping[str, object]) -> Usage | None:
    """Return what a whole answer used; None when it is not known.

    Args:
        endpoint: The kind of API.
        response: LiteLLM's answer.
        body: The request: what was asked for is what is charged where the answer does not say it.
    """
    tokens = request_values.response_usage(response)
    if tokens is not None and not tokens.total_tokens and endpoint in _NOT_TOKENS:
        # LiteLLM's objects begin with zeros.
        tokens = None
    read = _READERS.get(endpoint)
    return tokens if read is None else read(response, body, tokens)


class Translated:
    """What an answer used as LiteLLM has translated it: read when it is asked for, since the provider says it as well.

    Args:
        endpoint: The kind of API.
        response: LiteLLM's answer.
        body: The request.
    """

    __slots__ = ("_asked", "_usage")

    def __init__(self, endpoint: Endpoint, response: Any, body: Mapping[str, object]) -> None:
        self._asked: tuple[Endpoint, Any, Mapping[str, object]] | None = (endpoint, response, body)
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """All of it; None when it is not known."""
        if self._asked is not None:
            self._usage = answer_usage(*self._asked)
            self._asked = None
        return self._usage

    @property
    def tools(self) -> Mapping[str, int]:
        """How often the provider's own tools were used, by the names in ``Usage``."""
        if self._asked is None:
            return used_tools(self._usage)
        return tools(mapping(request_values.response_block(self._asked[1])))


def used_tools(usage: Usage | None) -> Mapping[str, int]:
    """Return how often the provider's own tools were used according to a usage; without those that were not."""
    return {} if usage is None else {name: count for name in TOOLS if (count := getattr(usage, name))}


def _image(response: Any, body: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    if tokens is not None:
        # Models that report tokens charge for them: the images would be charged twice.
        usage = _get(response, "usage")
        went_in, came_out = _get(usage, "input_tokens_details"), _get(usage, "output_tokens_details")
        drawn = _count(_get(came_out, "image_tokens"))
        return replace(
            tokens,
            image_prompt_tokens=_count(_get(went_in, "image_tokens")) or 0,
            image_completion_tokens=tokens.completion_tokens if drawn is None else min(drawn, tokens.completion_tokens),
        )
    data = _get(response, "data")
    if not isinstance(data, list) or not data:
        return None
    return Usage(
        images=len(data),
        image_size=_text(_get(response, "size")) or _text(body.get("size")),
        image_quality=_text(_get(response, "quality")) or _text(body.get("quality")),
    )


def _speech(_: Any, body: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    spoken = body.get("input")
    return replace(tokens or Usage(), characters=len(spoken)) if isinstance(spoken, str) else tokens


def _transcription(response: Any, _: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    usage = _get(response, "usage")
    if tokens is not None:
        details = _get(usage, "input_token_details") or _get(usage, "input_tokens_details")
        return replace(tokens, audio_prompt_tokens=_count(_get(details, "audio_tokens")) or 0)
    seconds = (
        _number(_get(usage, "seconds"))
        or _number(_get(response, "duration"))
        or _number(request_values.hidden_params(response).get("audio_transcription_duration"))
    )
    return None if seconds is None else Usage(audio_ms=round(seconds * _MS))


#: What a reranker charges that may have a price.
_BILLED: Final = frozenset({"search_units", "total_tokens", "input_tokens", "output_tokens"})


def _rerank(response: Any, _: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    meta = _get(response, "meta")
    billed, counted = _get(meta, "billed_units"), _get(meta, "tokens")
    units = _count(_get(billed, "search_units"))
    prompt, completion = _count(_get(counted, "input_tokens")), _count(_get(counted, "output_tokens"))
    if prompt is None and (total := _count(_get(billed, "total_tokens"))) is not None:
        prompt = total
    others = unknown_uses(mapping(billed), _BILLED) or None
    if units is None and prompt is None and completion is None and others is None:
        return tokens
    return replace(
        tokens or Usage(),
        prompt_tokens=prompt or 0,
        completion_tokens=completion or 0,
        search_units=units,
        other_tools=others,
    )


def _search(_: Any, __: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    return replace(tokens or Usage(), searches=1)


def _ocr(response: Any, _: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    info = _get(response, "usage_info")
    pages, annotated = _count(_get(info, "pages_processed")), _count(_get(info, "pages_processed_annotation"))
    if pages is None and annotated is None:
        return tokens
    return replace(tokens or Usage(), pages=pages, annotated_pages=annotated)


def _video(response: Any, body: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    usage = _get(response, "usage")
    seconds = (
        _number(_get(usage, "duration_seconds")) or _number(_get(response, "seconds")) or _number(body.get("seconds"))
    )
    if seconds is None:
        return tokens
    size = _text(_get(usage, "video_resolution")) or _text(_get(response, "size")) or _text(body.get("size"))
    return replace(tokens or Usage(), video_ms=round(seconds * _MS), video_resolution=size)


def _generated_content(response: Any, _: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    metadata = _get(response, "usageMetadata") or _get(response, "usage_metadata")
    return gemini_usage(metadata) or tokens


def gemini_usage(metadata: Any) -> Usage | None:
    """Return Gemini's ``usageMetadata``: thoughts and the prompts of its tools stand beside the counts that they are part of."""
    prompt, answer = (
        _count(_gemini(metadata, "prompt_token_count")),
        _count(_gemini(metadata, "candidates_token_count")),
    )
    if answer is None:
        answer = _count(_gemini(metadata, "response_token_count"))
    total = _count(_gemini(metadata, "total_token_count"))
    if prompt is None and answer is None and total is None:
        return None
    thoughts = _count(_gemini(metadata, "thoughts_token_count")) or 0
    tools = _count(_gemini(metadata, "tool_use_prompt_token_count")) or 0
    prompt_tokens = (prompt or 0) + tools
    completion_tokens = max((answer or 0) + thoughts, (total or 0) - prompt_tokens)
    went_in = _modalities(_gemini(metadata, "prompt_tokens_details"))
    came_out = _modalities(_gemini(metadata, "candidates_tokens_details"))
    cached = _modalities(_gemini(metadata, "cache_tokens_details"))
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=_count(_gemini(metadata, "cached_content_token_count")) or 0,
        reasoning_tokens=thoughts,
        audio_prompt_tokens=went_in.get("AUDIO", 0),
        audio_completion_tokens=came_out.get("AUDIO", 0),
        image_prompt_tokens=went_in.get("IMAGE", 0),
        image_completion_tokens=came_out.get("IMAGE", 0),
        video_prompt_tokens=went_in.get("VIDEO", 0),
        video_completion_tokens=came_out.get("VIDEO", 0),
        cached_audio_tokens=cached.get("AUDIO", 0),
        cached_image_tokens=cached.get("IMAGE", 0),
    )


def _gemini(source: Any, name: str) -> Any:
    """Read a field of Gemini, which its REST API spells in camelCase and its SDK in snake_case."""
    found = _get(source, name)
    if found is None:
        first, *rest = name.split("_")
        found = _get(source, first + "".join(part.title() for part in rest))
    return found


def _modalities(details: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in details if isinstance(details, list) else ():
        modality = _get(item, "modality")
        count = _count(_gemini(item, "token_count"))
        name = str(getattr(modality, "value", modality)).upper()
        found[name] = found.get(name, 0) + (count or 0)
    return found


def _batch(_: Any, __: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    return None if tokens is None else replace(tokens, service_tier="batch")


def _interaction(response: Any, _: Mapping[str, object], tokens: Usage | None) -> Usage | None:
    return interaction_usage(_get(response, "usage")) or tokens


def interaction_usage(usage: Any) -> Usage | None:
    """Return the usage of an interaction: thoughts stand beside the output, tools beside the input."""
    went_in, came_out = _count(_get(usage, "total_input_tokens")), _count(_get(usage, "total_output_tokens"))
    if went_in is None and came_out is None:
        return None
    thoughts = _count(_get(usage, "total_reasoning_tokens")) or _count(_get(usage, "total_thought_tokens")) or 0
    prompt_tokens = (went_in or 0) + (_count(_get(usage, "total_tool_use_tokens")) or 0)
    total = _count(_get(usage, "total_tokens")) or 0
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=max((came_out or 0) + thoughts, total - prompt_tokens),
        cached_tokens=_count(_get(usage, "total_cached_tokens")) or 0,
        reasoning_tokens=thoughts,
    )


_READERS: Final = {
    Endpoint.IMAGES: _image,
    Endpoint.SPEECH: _speech,
    Endpoint.TRANSCRIPTIONS: _transcription,
    Endpoint.RERANK: _rerank,
    Endpoint.SEARCH: _search,
    Endpoint.OCR: _ocr,
    Endpoint.VIDEOS: _video,
    Endpoint.GENERATE_CONTENT: _generated_content,
    Endpoint.INTERACTIONS: _interaction,
    Endpoint.BATCHES: _batch,
}
_NOT_TOKENS: Final = frozenset({*_READERS, Endpoint.MODERATIONS})


def logged_cost_usd(logged: Mapping[str, Any]) -> Decimal | None:
    """Return the cost in LiteLLM's ``standard_logging_object``; None where LiteLLM could not compute it.

    LiteLLM adds up binary fractions, in which 0.1 + 0.2 is 0.30000000000000004; see ``counts.decimal``.
    """
    cost = logged.get("response_cost")
    if logged.get("response_cost_failure_debug_info") or isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return decimal(cost) if 0 <= cost < _MOST else None


#: What LiteLLM adds to the price of what was used, and takes off, in its ``cost_breakdown``.
_ADDED: Final = ("margin_total_amount", "guardrail_cost")
_TAKEN_OFF: Final = "discount_amount"


def logged_base_usd(logged: Mapping[str, Any]) -> Decimal | None:
    """Return LiteLLM's logged cost without its own margins, discounts and other additions; None where there are none."""
    breakdown, cost = logged.get("cost_breakdown"), logged_cost_usd(logged)
    if not isinstance(breakdown, Mapping) or cost is None:
        return None
    others = mapping(breakdown.get("additional_costs")).values()
    added = sum(_amount(value) for value in (*(breakdown.get(name) for name in _ADDED), *others))
    own = added - _amount(breakdown.get(_TAKEN_OFF))
    return cost - decimal(own) if own else None


def _amount(value: Any) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
    return float(value) if known else 0.0


def logged_usage(logged: Mapping[str, Any]) -> Usage | None:
    """Return the tokens in LiteLLM's ``standard_logging_object``; None where it has none."""
    found = request_values.usage(_get(logged.get("metadata"), "usage_object"))
    return found if found is not None and found.total_tokens else None


def logged_counts(logged: Mapping[str, Any], used: Usage | None) -> Usage | None:
    """Return LiteLLM's usage with the tokens as LiteLLM itself counts them, whether they fit the total or not.

    Args:
        logged: LiteLLM's ``standard_logging_object``.
        used: What ``logged_usage`` has read.
    """
    prompt, completion = _count(logged.get("prompt_tokens")), _count(logged.get("completion_tokens"))
    if prompt is None or completion is None:
        return used
    if not prompt + completion and (logged.get("response_cost") or logged.get("status") != "success"):
        # It has counted otherwise, or not at all.
        return used
    if used is not None and (used.prompt_tokens, used.completion_tokens) == (prompt, completion):
        return used
    return replace(used or Usage(), prompt_tokens=prompt, completion_tokens=completion)


def spoken_counts(body: Mapping[str, object], counted: Usage | None) -> Usage | None:
    """Return LiteLLM's usage with the characters of a spoken text as LiteLLM itself counts them: without white space.

    Args:
        body: The request.
        counted: What ``logged_counts`` has returned.
    """
    spoken = body.get("input")
    if not isinstance(spoken, str):
        return counted
    return replace(counted or Usage(), characters=litellm.utils.count_characters(spoken))


def passed_usage(response: Any) -> Usage | None:
    """Return the usage in what a pass-through has answered, where LiteLLM does not read it.

    Args:
        response: LiteLLM's object with the answer's text: JSON, or server-sent events of which the last has the usage.
    """
    text = _get(response, "response")
    if not isinstance(text, str) or len(text) > _MOST_CHARS:
        return None
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")] or [text]
    for line in reversed(lines):
        if "sage" not in line:
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found = request_values.response_usage(data) or gemini_usage(_get(data, "usageMetadata"))
        if found is not None and found.total_tokens:
            return found
    return None


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return int(min(value, _MOST))


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value[:32])
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
        return None
    return float(value)
