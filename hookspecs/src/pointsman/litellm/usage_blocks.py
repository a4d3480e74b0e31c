"""Reads one usage block of a provider, in whichever of the common formats it is. Pure and total.

What is missing, malformed or contradictory is never taken for zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..frozen import quick, replace
from ..types import Usage
from .charges import charged, unknown_uses
from .reported_counts import (
    MOST_PARTS,
    MOST_TOKENS,
    first_count,
    malformed_in,
    mapping,
    milliseconds,
    modalities,
    name_of,
    number,
    object_of,
)


@quick
@dataclass(frozen=True, slots=True)
class Reading:
    """What a provider has said.

    Attributes:
        usage: The usage; a count that is unknown is 0 in it.
        prompt_known: Whether the tokens of the prompt are known.
        completion_known: Whether the tokens of the whole answer are known.
        undivided: Only the sum of both is known, and stands in ``usage`` as the prompt.
    """

    usage: Usage
    prompt_known: bool = True
    completion_known: bool = True
    undivided: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing has to be estimated."""
        return self.prompt_known and self.completion_known


class Draft:
    """What the counts of a block say, until the rest is known.

    Attributes:
        facts: Values of ``Usage`` by their names; those that are missing have their defaults.
        prompt_known: As in ``Reading``, like the others.
        completion_known: As in ``Reading``.
        undivided: As in ``Reading``.
    """

    __slots__ = ("completion_known", "facts", "prompt_known", "undivided")

    def __init__(
        self,
        facts: dict[str, Any],
        *,
        prompt_known: bool = True,
        completion_known: bool = True,
        undivided: bool = False,
    ) -> None:
        self.facts = facts
        self.prompt_known = prompt_known
        self.completion_known = completion_known
        self.undivided = undivided

    @property
    def complete(self) -> bool:
        """Whether nothing has to be estimated."""
        return self.prompt_known and self.completion_known

    def tokens(self, name: str) -> int:
        """Return one of the counts of tokens."""
        count: int = self.facts.get(name, 0)
        return count

    def made_by(self, model: str | None) -> None:
        """Note that it is the usage of this model, and of those that its parts name."""
        self.facts["model"] = model
        if named := self.facts.get("parts"):
            parts = tuple(replace(part, model=part.model or model) for part in named)
            self.facts["parts"] = () if all(part.model == model for part in parts) else parts

    def reading(self) -> Reading:
        """Return what is known now."""
        return Reading(
            Usage(**self.facts),
            prompt_known=self.prompt_known,
            completion_known=self.completion_known,
            undivided=self.undivided,
        )


#: Ollama counts in the answer itself, without a block of its own.
OLLAMA: Final = ("prompt_eval_count", "eval_count")
#: What Cohere charges, and what its models have processed.
BILLED: Final = ("billed_units", "tokens")
#: The service tiers behind what Gemini calls kinds of traffic.
_TRAFFIC: Final[Mapping[str, str | None]] = {
    "ON_DEMAND": "default",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
    "FLEX": "flex",
    # LiteLLM's map has the same prices for both.
    "BATCH": "flex",
    "TRAFFIC_TYPE_UNSPECIFIED": None,
}


def read(block: Any, model: str | None = None) -> Reading | None:
    """Return what a usage block says; None when it is none.

    Args:
        block: The provider's block, or LiteLLM's object for it.
        model: The model that answered.
    """
    get = mapping(block)
    if get is not block and not get.get("total_tokens", True):
        # LiteLLM's objects have a total of zero until it is known.
        get = {key: value for key, value in get.items() if key != "total_tokens"}
    found = read_block(get) if get else None
    if found is None:
        return None
    found.facts |= charged(get, found.tokens("prompt_tokens") + found.tokens("completion_tokens"))
    found.made_by(model)
    return found.reading()


def read_block(get: Mapping[str, Any]) -> Draft | None:
    """Return the counts of a block by the first of the formats that it has."""
    for reader in _READERS:
        if (found := reader(get)) is not None:
            return found
    return None


_CHAT_COUNTS: Final = ("prompt_tokens", "completion_tokens")


def _read_chat(get: Mapping[str, Any]) -> Draft | None:
    if "prompt_tokens" not in get and "completion_tokens" not in get and "total_tokens" not in get:
        return None
    if ("input_tokens" in get or "output_tokens" in get) and not any(number(get.get(key)) for key in _CHAT_COUNTS):
        # Servers that speak both ways may leave one of them at zero.
        return None
    asked, said = mapping(get.get("prompt_tokens_details")), mapping(get.get("completion_tokens_details"))
    parts = _parts(get, asked, said)
    if "prompt_audio_seconds" in get and (ms := milliseconds(get["prompt_audio_seconds"])):
        return _with_audio(get, parts, ms)
    bad = bool(parts) and _bad_parts(get, (asked, get.get("prompt_tokens")), (said, get.get("completion_tokens")))
    return _resolved(get, "prompt_tokens", "completion_tokens", "total_tokens", parts, malformed=bad)


def _with_audio(get: Mapping[str, Any], parts: Mapping[str, int], ms: int) -> Draft:
    """Read a prompt with sound as Mistral counts it: its seconds, and its tokens in the total alone."""
    prompt, completion, total = (number(get.get(key)) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    spoken = max(0, (total or 0) - (prompt or 0) - (completion or 0))
    if spoken and prompt is not None and completion is not None:
        get = {**get, "prompt_tokens": prompt + spoken}
        parts = {**parts, "audio_prompt_tokens": spoken}
    found = _resolved(get, "prompt_tokens", "completion_tokens", "total_tokens", parts)
    found.facts["audio_ms"] = ms
    return found


#: How fast Anthropic answers without a price of its own.
_USUAL_SPEEDS: Final = frozenset({None, "standard"})


def _read_input_output(get: Mapping[str, Any]) -> Draft | None:
    """Anthropic counts cached tokens in addition to ``input_tokens``, OpenAI's responses as part of it."""
    if "input_tokens" not in get and "output_tokens" not in get:
        return None
    if "tokens" in get and isinstance(get["tokens"], Mapping):
        return None
    input_details = mapping(get.get("input_tokens_details")) or mapping(get.get("input_token_details"))
    output_details = mapping(get.get("output_tokens_details")) or mapping(get.get("output_token_details"))
    inside = bool(input_details) and "cache_read_input_tokens" not in get
    parts = _parts(get, input_details, output_details)
    outside = 0 if inside else parts.get("cached_tokens", 0) + parts.get("cache_write_tokens", 0)
    bad = bool(parts) and _bad_parts(
        get, (input_details, get.get("input_tokens")), (output_details, get.get("output_tokens"))
    )
    found = _resolved(get, "input_tokens", "output_tokens", "total_tokens", parts, outside=outside, malformed=bad)
    speed = name_of(get.get("speed"))
    found.facts["service_tier"] = name_of(get.get("service_tier")) if speed in _USUAL_SPEEDS else speed
    found.facts["region"] = name_of(get.get("inference_geo"))
    return _with_iterations(found, get["iterations"]) if "iterations" in get else found


def _with_iterations(found: Draft, iterations: Any) -> Draft:
    """Take up an answer that several models have worked on: its block counts the last of them."""
    if not isinstance(iterations, list) or not iterations:
        return found
    tier, region = found.facts["service_tier"], found.facts["region"]
    parts = []
    for item in iterations:
        part = _read_input_output({k: v for k, v in object_of(item).items() if k != "iterations"})
        if part is None or not part.complete or len(iterations) > MOST_PARTS:
            found.facts["contradictory"] = True
            return found
        model = name_of(object_of(item).get("model"))
        parts.append(Usage(**{**part.facts, "model": model, "service_tier": tier, "region": region, "is_part": True}))
    sums = {name: sum(getattr(part, name) for part in parts) for name in _COUNTS}
    if any(sums[name] < found.tokens(name) for name in ("prompt_tokens", "completion_tokens")):
        found.facts["contradictory"] = True
        return found
    found.facts |= sums
    if any(part.model for part in parts):
        found.facts["parts"] = tuple(parts)
    return found


_GEMINI_COUNTS: Final = (
    "promptTokenCount",
    "candidatesTokenCount",
    "responseTokenCount",
    "totalTokenCount",
    "thoughtsTokenCount",
    "toolUsePromptTokenCount",
    "cachedContentTokenCount",
)


def _read_gemini(get: Mapping[str, Any]) -> Draft | None:
    if not {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "responseTokenCount"} & set(get):
        return None
    prompt = modalities(get.get("promptTokensDetails"), get.get("toolUsePromptTokensDetails"))
    cached = modalities(get.get("cacheTokensDetails"))
    answer = modalities(get.get("candidatesTokensDetails") or get.get("responseTokensDetails"))
    thoughts = number(get.get("thoughtsTokenCount")) or 0
    tools = number(get.get("toolUsePromptTokenCount")) or 0
    parts = {
        "cached_tokens": number(get.get("cachedContentTokenCount")) or 0,
        "cached_audio_tokens": cached.get("AUDIO", 0),
        "cached_image_tokens": cached.get("IMAGE", 0),
        "reasoning_tokens": thoughts,
        "audio_prompt_tokens": prompt.get("AUDIO", 0),
        "image_prompt_tokens": prompt.get("IMAGE", 0),
        "video_prompt_tokens": prompt.get("VIDEO", 0),
        "audio_completion_tokens": answer.get("AUDIO", 0),
        "image_completion_tokens": answer.get("IMAGE", 0),
        "video_completion_tokens": answer.get("VIDEO", 0),
    }
    total = number(get.get("totalTokenCount"))
    asked = number(get.get("promptTokenCount"))
    said = number(get.get("candidatesTokenCount", get.get("responseTokenCount")))
    if said is None and "candidatesTokenCount" not in get and "responseTokenCount" not in get:
        # Gemini leaves out what is zero.
        said = 0 if thoughts or total is None or total == asked else None
    completion = None if said is None else said + thoughts
    if said is not None and asked is not None and total == asked + tools + said:
        completion = said
    prompt_tokens = None if asked is None else asked + tools
    counts = {"prompt": prompt_tokens, "completion": completion, "total": total}
    made_of = ((prompt, prompt_tokens), (cached, parts["cached_tokens"]), (answer, said))
    bad = malformed_in(get, *_GEMINI_COUNTS) or any(
        whole is not None and sum(kinds.values()) > whole for kinds, whole in made_of
    )
    found = _resolved(counts, "prompt", "completion", "total", parts, malformed=bad)
    traffic = name_of(get.get("trafficType"))
    tier = None if traffic is None else _TRAFFIC.get(traffic, traffic.lower())
    if tier is not None:
        found.facts["service_tier"] = tier
    return found


_LIFETIMES: Final = frozenset({"5m", "1h"})


def _read_bedrock(get: Mapping[str, Any]) -> Draft | None:
    if not {"inputTokens", "outputTokens"} & set(get):
        return None
    read = first_count(get.get("cacheReadInputTokens"), get.get("cacheReadInputTokenCount"))
    written = first_count(get.get("cacheWriteInputTokens"), get.get("cacheWriteInputTokenCount"))
    details = get.get("cacheDetails")
    lifetimes = [object_of(item) for item in details[:MOST_PARTS]] if isinstance(details, list) else []
    hour = sum(number(item.get("inputTokens")) or 0 for item in lifetimes if item.get("ttl") == "1h")
    named = sum(number(item.get("inputTokens")) or 0 for item in lifetimes)
    parts = {"cached_tokens": read, "cache_write_tokens": max(written, named), "cache_write_1h_tokens": hour}
    bad = bool(lifetimes) and (named != written or any(item.get("ttl") not in _LIFETIMES for item in lifetimes))
    outside = read + max(written, named)
    return _resolved(get, "inputTokens", "outputTokens", "totalTokens", parts, outside=outside, malformed=bad)


#: The units that have a price.
_UNITS: Final = frozenset({"input_tokens", "output_tokens", "image_tokens", "total_tokens", "search_units"})


def _read_billed(get: Mapping[str, Any]) -> Draft | None:
    """Read the units that Cohere charges: tokens, or searches.

    ``tokens``, in addition to them, is what its models have processed, with tokens that Cohere adds itself and does not charge
    (docs.cohere.com, "How Does Cohere's Pricing Work?"). Images, classifications and other units have no price in LiteLLM's map.
    """
    billed, processed = mapping(get.get("billed_units")), mapping(get.get("tokens"))
    if not billed and not processed:
        return None
    units = number(billed.get("search_units"))
    prompt, completion = number(billed.get("input_tokens")), number(billed.get("output_tokens"))
    uncharged = False
    if prompt is None and (not billed or "input_tokens" in billed):
        prompt = number(processed.get("input_tokens"))
        uncharged = prompt is not None
    if completion is None and (not billed or "output_tokens" in billed):
        completion = number(processed.get("output_tokens"))
        uncharged = uncharged or completion is not None
    images = number(billed.get("image_tokens")) or 0
    others = unknown_uses(billed, _UNITS)
    facts = {
        "prompt_tokens": (prompt or 0) + images,
        "completion_tokens": completion or 0,
        "image_prompt_tokens": images,
        # Those of a model that answers with text are charged in addition.
        "searches" if completion else "search_units": units,
        "other_tools": others or None,
        # More than what is charged, but all that is known.
        "contradictory": uncharged,
    }
    alone = units is not None or (completion is None and "output_tokens" not in billed)
    known = prompt is not None or ("input_tokens" not in billed and (units is not None or images > 0 or others > 0))
    return Draft(facts, prompt_known=known, completion_known=alone or bool(completion))


def _read_ollama(get: Mapping[str, Any]) -> Draft | None:
    if not set(OLLAMA) & set(get):
        return None
    return _resolved(get, "prompt_eval_count", "eval_count", "total_tokens", {})


def _read_other(get: Mapping[str, Any]) -> Draft | None:
    """Read usage that is not tokens: seconds of audio or video, pages."""
    facts: dict[str, Any] = {}
    if (ms := milliseconds(get.get("seconds", get.get("prompt_audio_seconds")))) is not None:
        facts["audio_ms"] = ms
    if (ms := milliseconds(get.get("duration_seconds"))) is not None:
        facts["video_ms"] = ms
        facts["video_resolution"] = name_of(get.get("video_resolution")) or name_of(get.get("resolution"))
    if (pages := number(get.get("pages_processed"))) is not None:
        facts["pages"] = pages
    return Draft(facts) if facts else None


#: In the order in which they decide.
_READERS: Final = (
    _read_chat,
    _read_gemini,
    _read_bedrock,
    _read_billed,
    _read_input_output,
    _read_ollama,
    _read_other,
)


def _parts(get: Mapping[str, Any], asked: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, int]:
    """Return the parts of the prompt and of the answer, as far as there are any.

    Args:
        get: The block.
        asked: What it says about the prompt.
        said: What it says about the answer.
    """
    # Most blocks have zeros there, or nothing.
    parts: dict[str, int] = {}
    if any(asked.values()) or not _CACHES.isdisjoint(get):
        parts |= _prompt_parts(get, asked)
    if any(said.values()) or "reasoning_tokens" in get:
        parts |= _completion_parts(get, said)
    return parts


#: What blocks say about caches outside of their details.
_CACHES: Final = frozenset(
    {
        "cache_creation",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cached_tokens",
        "num_cached_tokens",
        "prompt_cache_hit_tokens",
        "prompt_cache_miss_tokens",
    }
)


_Whole = tuple[Mapping[str, Any], Any]
#: What tokens are made of. A token is one of these.
_CONTENTS: Final = ("text_tokens", "audio_tokens", "image_tokens", "video_tokens")


def _bad_parts(get: Mapping[str, Any], asked: _Whole, said: _Whole) -> bool:
    """Return whether a part that a block names is no count, or parts that make up a whole do not.

    Args:
        get: The block.
        asked: What it says about the prompt, and its count.
        said: The same of the answer.
    """
    lifetimes = _lifetimes(get, asked[0])
    for source in (get, asked[0], said[0], lifetimes, mapping(asked[0].get("cached_tokens_details"))):
        for name, value in source.items():
            if value is None or (type(value) is int and 0 <= value <= MOST_TOKENS):  # as nearly all are
                continue
            if name.endswith("_tokens") and number(value) is None:
                return True
    return (
        ("text_tokens" in asked[0] and _overfull(asked))
        or ("text_tokens" in said[0] and _overfull(said))
        or ("prompt_cache_miss_tokens" in get and _split_wrongly(get, asked))
        or (bool(lifetimes) and _unlike(get, asked[0], lifetimes))
    )


def _overfull(whole: _Whole) -> bool:
    """Return whether text, sound and images are together more than the tokens that consist of them."""
    details, count = whole
    tokens = number(count)
    return tokens is not None and sum(number(details.get(name)) or 0 for name in _CONTENTS) > tokens


def _split_wrongly(get: Mapping[str, Any], asked: _Whole) -> bool:
    """Return whether what was read from the cache and what was not are together not the prompt, as DeepSeek counts them."""
    missed, tokens = number(get.get("prompt_cache_miss_tokens")), number(asked[1])
    hit = number(get.get("prompt_cache_hit_tokens")) or 0
    return missed is not None and tokens is not None and hit + missed != tokens


def _unlike(get: Mapping[str, Any], details: Mapping[str, Any], lifetimes: Mapping[str, Any]) -> bool:
    """Return whether the cache writes by their life times are not all that there were."""
    if all(value is None for value in lifetimes.values()):
        return False
    if _of_unknown_lifetime(lifetimes):
        return True
    written = _written(get, details)
    counted = "cache_creation_input_tokens" in get or "cache_creation_input_tokens" in details
    return sum(_by_lifetime(lifetimes)) != written and (written > 0 or counted)


def _lifetimes(get: Mapping[str, Any], details: Mapping[str, Any]) -> Mapping[str, Any]:
    return (
        mapping(get.get("cache_creation"))
        or mapping(details.get("cache_creation_token_details"))
        or mapping(details.get("cache_creation"))
    )


def _by_lifetime(lifetimes: Mapping[str, Any]) -> tuple[int, int]:
    """Return the cache writes of an hour and of five minutes."""
    hour, minutes = lifetimes.get("ephemeral_1h_input_tokens"), lifetimes.get("ephemeral_5m_input_tokens")
    return number(hour) or 0, number(minutes) or 0


def _of_unknown_lifetime(lifetimes: Mapping[str, Any]) -> int:
    """Return the cache writes of other life times, whose price is not known."""
    return sum(number(value) or 0 for name, value in lifetimes.items() if name not in _KNOWN_LIFETIMES)


_KNOWN_LIFETIMES: Final = frozenset({"ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens"})


def _written(get: Mapping[str, Any], details: Mapping[str, Any]) -> int:
    return first_count(
        details.get("cache_write_tokens"),
        details.get("cache_creation_tokens"),
        details.get("cache_creation_input_tokens"),
        get.get("cache_creation_input_tokens"),
    )


def _prompt_parts(get: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, int]:
    lifetimes = _lifetimes(get, details)
    hour, minutes = _by_lifetime(lifetimes)
    written = _written(get, details)
    cached = mapping(details.get("cached_tokens_details"))
    read = first_count(
        details.get("cached_tokens"),
        get.get("cache_read_input_tokens"),
        get.get("prompt_cache_hit_tokens"),
        get.get("num_cached_tokens"),
        get.get("cached_tokens"),
    )
    return {
        "cached_tokens": read,
        # Alibaba's, of which some are read from a cache that nothing was said about.
        "explicit_cached_tokens": read if details.get("cache_type") == "ephemeral" else 0,
        "cache_write_tokens": max(written, hour + minutes + _of_unknown_lifetime(lifetimes)),
        "cache_write_1h_tokens": hour,
        "cached_audio_tokens": number(cached.get("audio_tokens")) or 0,
        "cached_image_tokens": number(cached.get("image_tokens")) or 0,
        "audio_prompt_tokens": number(details.get("audio_tokens")) or 0,
        "image_prompt_tokens": number(details.get("image_tokens")) or 0,
        "video_prompt_tokens": number(details.get("video_tokens")) or 0,
    }


def _completion_parts(get: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, int]:
    return {
        "reasoning_tokens": first_count(details.get("reasoning_tokens"), get.get("reasoning_tokens")),
        "audio_completion_tokens": number(details.get("audio_tokens")) or 0,
        "image_completion_tokens": number(details.get("image_tokens")) or 0,
        "video_completion_tokens": number(details.get("video_tokens")) or 0,
        "accepted_prediction_tokens": number(details.get("accepted_prediction_tokens")) or 0,
        "rejected_prediction_tokens": number(details.get("rejected_prediction_tokens")) or 0,
    }


def _resolved(
    get: Mapping[str, Any],
    prompt_key: str,
    completion_key: str,
    total_key: str,
    parts: Mapping[str, int],
    *,
    outside: int = 0,
    malformed: bool = False,
) -> Draft:
    """Return the counts of a block, made to fit its total where they do not.

    Args:
        get: The block.
        prompt_key: Its key for the prompt.
        completion_key: Its key for the answer.
        total_key: Its key for both.
        parts: The parts of the prompt and of the answer.
        outside: Cached tokens that the prompt's count does not contain.
        malformed: Whether a value of the block is known to be wrong.
    """
    asked, said, whole = get.get(prompt_key), get.get(completion_key), get.get(total_key)
    if (
        type(asked) is type(said) is type(whole) is int
        and asked > 0 <= said
        and asked + said == whole <= MOST_TOKENS
        and not (malformed or outside)
        and parts.get("reasoning_tokens", 0) <= said
    ):
        # As most blocks are: there is nothing to resolve.
        wrong = _oversized(parts, asked, said, 0)
        return Draft({**parts, "prompt_tokens": asked, "completion_tokens": said, "contradictory": wrong})
    prompt, completion, total = number(asked), number(said), number(whole)
    wrong = (
        malformed
        or (prompt is None and prompt_key in get)
        or (completion is None and completion_key in get)
        or (total is None and total_key in get)
        # Nothing at all beside something.
        or (total == 0 and bool(prompt or completion))
    )
    total = total or None
    reasoning = parts.get("reasoning_tokens", 0)
    inside = parts.get("cached_tokens", 0) + parts.get("cache_write_tokens", 0) - outside
    if prompt is None and total is not None and completion is not None and total >= completion:
        prompt, wrong = max(0, total - completion - outside), True
    elif completion is None and total is not None and prompt is not None and total >= prompt:
        # An embedding has no answer to count.
        wrong = wrong or completion_key in get or total > prompt
        completion = max(0, total - prompt - outside)
    elif completion is None and total is not None and prompt is not None:
        prompt, wrong = total, True
    elif prompt is not None and completion is not None:
        fitted = _fit(prompt, completion, total, reasoning=reasoning, inside=inside, outside=outside)
        wrong = wrong or fitted != (prompt, completion)
        prompt, completion = fitted
        wrong = wrong or _misfit(prompt, completion, total, inside=inside, outside=outside)
    undivided = prompt is None and completion is None and total is not None
    if undivided:
        # What cannot be divided was at least not free.
        prompt, completion, wrong = max(0, (total or 0) - outside), 0, True
    if reasoning > (completion or 0) and completion is not None and "citation_tokens" in get:
        # Perplexity counts it in addition to the answer, and not in the total.
        completion += reasoning
    # What answers has read something.
    wrong = wrong or _oversized(parts, prompt, completion, outside) or (prompt == outside == 0 and bool(completion))
    return Draft(
        {
            **parts,
            "prompt_tokens": (prompt or 0) + outside,
            "completion_tokens": completion or 0,
            "contradictory": wrong,
        },
        prompt_known=prompt is not None,
        completion_known=completion is not None,
        undivided=undivided,
    )


def _oversized(parts: Mapping[str, int], prompt: int | None, completion: int | None, outside: int) -> bool:
    """Return whether a part, or all of one kind, is more than the whole that it is a part of."""
    if not parts:
        return False
    # No token is two of one kind. Written out: most answers have some parts.
    get = parts.get
    if prompt is not None:
        written, whole = get("cache_write_tokens", 0), prompt + outside
        media = get("audio_prompt_tokens", 0) + get("image_prompt_tokens", 0) + get("video_prompt_tokens", 0)
        if get("cached_tokens", 0) + written > whole or media > whole or get("cache_write_1h_tokens", 0) > written:
            return True
    if completion is None:
        return False
    media = get("audio_completion_tokens", 0) + get("image_completion_tokens", 0) + get("video_completion_tokens", 0)
    return get("reasoning_tokens", 0) > completion or media > completion


def _fit(
    prompt: int, completion: int, total: int | None, *, reasoning: int, inside: int, outside: int
) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer that the total asks for."""
    known = prompt + completion
    if total is None or total in {known, known + outside}:
        return (prompt, completion + reasoning) if reasoning > completion and total is None else (prompt, completion)
    if total == known + reasoning:
        return prompt, completion + reasoning
    if inside and total == known + inside:
        return prompt + inside, completion
    if inside and total == known - inside:
        return prompt, completion
    if total > known + outside:
        return (total - completion, completion) if not prompt else (prompt, total - prompt - outside)
    if total >= prompt:
        return prompt, total - prompt
    return (total - completion, completion) if total >= completion else (prompt, completion)


def _misfit(prompt: int, completion: int, total: int | None, *, inside: int, outside: int) -> bool:
    known = prompt + completion
    return total is not None and total not in {known, known + outside, known - inside}


_COUNTS: Final = tuple(name for name in Usage.__slots__ if name.endswith("_tokens"))
