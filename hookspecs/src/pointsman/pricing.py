"""What an answer costs: exact amounts from what was used and from unit prices. Pure.

Nothing is computed in binary floating point. An amount is exact as long as it has at most 60 digits; it is rounded once,
where it is shown to people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from decimal import ROUND_HALF_EVEN, Context, Decimal
from operator import attrgetter
from typing import Final

from .frozen import replace
from .types import Price, Usage

CONTEXT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[])
"""Explicit, so that neither another library nor the thread affects the result. It never raises: a caller checks that the
result is a number."""

_ZERO: Final = Decimal(0)
_MS: Final = Decimal(1000)

#: Parts of a prompt or an answer that may have prices of their own. Most answers have none of them, and no tools.
_special_tokens = attrgetter(
    "cached_tokens",
    "cache_write_tokens",
    "audio_prompt_tokens",
    "image_prompt_tokens",
    "video_prompt_tokens",
    "reasoning_tokens",
    "audio_completion_tokens",
    "image_completion_tokens",
    "video_completion_tokens",
)
_tools = attrgetter("searches", "maps_queries", "file_searches", "code_sessions", "citation_tokens", "other_tools")

#: The modes, as LiteLLM's cost map calls them, of models whose answers have no tokens, or are charged otherwise.
WITHOUT_ANSWER_TOKENS: Final = frozenset(
    {"embedding", "rerank", "moderation", "image_generation", "image_edit", "audio_transcription", "audio_speech"}
)
_PRICES: Final = tuple(field.name for field in fields(Price) if field.name.endswith("_usd"))

PriceOf = Callable[[Usage], Price]


def is_priced(price: Price, mode: object = None) -> bool:
    """Return whether what a model usually uses has a price.

    A price for the prompt alone, or for the answer alone, is none: what the other costs is not known.

    Args:
        price: Its unit prices.
        mode: What it is for, ``info["mode"]`` of its deployment; None: not known.
    """
    if (price.input_usd is None) != (price.output_usd is None) and mode not in WITHOUT_ANSWER_TOKENS:
        return False
    return any(getattr(price, name) is not None for name in _PRICES)


def total_usd(usage: Usage, price_of: PriceOf) -> Decimal | None:
    """Return what an answer cost, in US dollars; None when a price that it needs is unknown.

    What the provider itself says that it charges comes first, unless the operator has configured prices. Where several
    models worked on the answer, each of them is charged at its own prices, and what is not tokens at the prices of the
    whole.

    Args:
        usage: What was used.
        price_of: Returns the prices of an answer, or of one of its parts.
    """
    price = price_of(usage)
    if usage.provider_cost_usd is not None and not price.configured:
        return usage.provider_cost_usd
    if not usage.parts:
        return cost_usd(usage, price)
    return parts_usd(usage, price, list(map(price_of, usage.parts)))


def parts_usd(usage: Usage, price: Price, parts: Sequence[Price]) -> Decimal | None:
    """Return what an answer cost that several models have made, or that several tries came to, in US dollars.

    Args:
        usage: What was used.
        price: The prices of the whole.
        parts: The prices of each of ``usage.parts``, in their order.
    """
    if not any(part.is_part for part in usage.parts):
        # Each is a whole answer.
        return _sum(list(map(cost_usd, usage.parts, parts)))
    return _sum([*map(token_usd, usage.parts, parts), tool_usd(usage, price)])


def cost_usd(usage: Usage, price: Price) -> Decimal | None:
    """Return what one model's answer cost at these prices, in US dollars; None when one that it needs is unknown.

    Tokens are charged where the model has prices for them. What else the answer was made of (images, characters, seconds,
    pages, searches of a reranker) is charged where it has none, where they are zero, or where no tokens were reported: then
    the cost is unknown when the price of that is, and when nothing says how much of it there was. Sound whose seconds are
    reported in addition to its tokens is charged by the second where its tokens have no price of their own. Searches and other tools are added.
    """
    work = token_usd(usage, price) if usage.total_tokens else _ZERO
    if work and usage.audio_ms and usage.audio_prompt_tokens:
        work = _with_seconds(work, usage, price)
    if not work and (work is None or not _nothing_made(usage) or (usage.total_tokens and _by_unit(price))):
        work = _unit_usd(usage, price)
    return _sum([work, tool_usd(usage, price)])


def _with_seconds(work: Decimal, usage: Usage, price: Price) -> Decimal | None:
    """Return the cost of tokens with their sound charged by the second; None when a second has no price either."""
    at = price.at(usage.prompt_tokens, usage.service_tier)
    if at.audio_input_usd is not None:
        return work
    text = token_usd(usage, replace(at, audio_input_usd=_ZERO, cached_audio_usd=_ZERO, above=(), tiers={}))
    return _sum([text, _times(_seconds(usage.audio_ms) or 0, price.audio_second_usd)])


def token_usd(usage: Usage, price: Price) -> Decimal | None:
    """Return what the tokens cost, in US dollars; None when a price that they need is unknown.

    Cached, written, audio, image and video tokens are parts of the prompt; reasoning, audio, image and video tokens are
    parts of the answer. Each part is charged once, at its own price where there is one, else at the price of the whole.
    Parts that are larger than the whole are charged as the whole.
    """
    price = price.at(usage.prompt_tokens, usage.service_tier)
    if not any(_special_tokens(usage)):
        # Written out: these are most answers.
        total = _ZERO
        for tokens, usd in (
            (usage.prompt_tokens, price.input_usd),
            (usage.completion_tokens, price.output_usd),
        ):
            if tokens > 0:
                if usd is None:
                    return None
                total = CONTEXT.fma(Decimal(tokens), usd, total)
        return total
    prompt = _Tokens(usage.prompt_tokens, price.input_usd)
    read = price.cache_read_usd
    cached_audio = min(usage.cached_audio_tokens, usage.cached_tokens)
    cached_image = min(usage.cached_image_tokens, usage.cached_tokens - cached_audio)
    prompt.take(cached_audio, read if price.cached_audio_usd is None else price.cached_audio_usd)
    prompt.take(cached_image, read if price.cached_image_usd is None else price.cached_image_usd)
    cached_text = usage.cached_tokens - cached_audio - cached_image
    explicit = min(usage.explicit_cached_tokens, cached_text)
    prompt.take(explicit, read if price.explicit_cache_read_usd is None else price.explicit_cache_read_usd)
    prompt.take(cached_text - explicit, read)
    write = price.cache_write_usd
    for_an_hour = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    prompt.take(for_an_hour, write if price.cache_write_1h_usd is None else price.cache_write_1h_usd)
    prompt.take(usage.cache_write_tokens - for_an_hour, write)
    prompt.take(max(0, usage.audio_prompt_tokens - cached_audio), price.audio_input_usd)
    prompt.take(max(0, usage.image_prompt_tokens - cached_image), price.image_input_usd)
    prompt.take(usage.video_prompt_tokens, price.video_input_usd)
    answer = _Tokens(usage.completion_tokens, price.output_usd)
    answer.take(usage.reasoning_tokens, price.reasoning_usd)
    answer.take(usage.audio_completion_tokens, price.audio_output_usd)
    answer.take(usage.image_completion_tokens, price.image_output_usd)
    answer.take(usage.video_completion_tokens, price.video_output_usd)
    return _sum([prompt.total(), answer.total()])


def tool_usd(usage: Usage, price: Price) -> Decimal | None:
    """Return what searches, other tools and the request itself cost, in US dollars; None when a price is unknown."""
    if price.request_usd is None and not uses_tools(usage):
        return _ZERO
    search = {"low": price.search_low_usd, "high": price.search_high_usd}.get(
        usage.search_context or "", price.search_medium_usd
    )
    costs = [
        _tool(usage.searches, search, price.search_request_usd),
        _tool(usage.maps_queries, price.maps_query_usd, price.maps_request_usd),
        _tool(usage.file_searches, price.file_search_usd),
        _tool(usage.code_sessions, price.code_session_usd),
        _tool(usage.citation_tokens, price.citation_usd),
        _tool(usage.other_tools, None),
    ]
    if price.request_usd is not None:
        costs.append(_times(1 if usage.requests is None else usage.requests, price.request_usd))
    return _sum(costs)


def uses_tools(usage: Usage) -> bool:
    """Return whether searches or other tools of the provider were used, which are charged in addition to tokens."""
    return any(_tools(usage))


class _Tokens:
    """A prompt or an answer, from which parts are taken that have prices of their own."""

    __slots__ = ("_cost", "_left", "_usd")

    def __init__(self, tokens: int, usd: Decimal | None) -> None:
        self._left = tokens
        self._usd = usd
        self._cost: Decimal | None = _ZERO

    def take(self, tokens: int, usd: Decimal | None) -> None:
        """Charge a part; at the price of the whole when it has none of its own."""
        tokens = min(tokens, self._left)
        if tokens > 0:
            self._left -= tokens
            self._cost = _sum([self._cost, _times(tokens, self._usd if usd is None else usd)])

    def total(self) -> Decimal | None:
        """Return the cost of all parts and of what is left of the whole."""
        self.take(self._left, self._usd)
        return self._cost


def _unit_usd(usage: Usage, price: Price) -> Decimal | None:
    """Return what the answer cost by other units than tokens; None when it has none of them or no price is known."""
    units = (
        (usage.images, price.image_usd),
        (usage.characters, price.character_usd),
        (_seconds(usage.audio_ms), price.audio_second_usd),
        (_seconds(usage.audio_out_ms), price.audio_out_second_usd),
        (_seconds(usage.video_ms), price.video_second_usd),
        (usage.pages, price.page_usd),
        (usage.search_units, price.search_unit_usd),
    )
    known = [_times(count, usd) for count, usd in units if count and usd is not None]
    if usage.annotated_pages:
        known.append(_times(usage.annotated_pages, price.annotated_page_usd))
    return _sum(known) if known else None


def _nothing_made(usage: Usage) -> bool:
    return not any(
        (
            usage.images,
            usage.characters,
            usage.audio_ms,
            usage.audio_out_ms,
            usage.video_ms,
            usage.pages,
            usage.annotated_pages,
            usage.search_units,
        )
    )


def _by_unit(price: Price) -> bool:
    """Return whether a model whose tokens cost nothing is charged by something else."""
    tokens = (price.input_usd, price.output_usd)
    units = (
        price.image_usd,
        price.character_usd,
        price.audio_second_usd,
        price.audio_out_second_usd,
        price.video_second_usd,
        price.page_usd,
        price.search_unit_usd,
    )
    return not any(tokens) and any(units)


def _tool(count: int | None, each_usd: Decimal | None, once_usd: Decimal | None = None) -> Decimal | None:
    if not count:
        return _ZERO
    return once_usd if once_usd is not None else _times(count, each_usd)


def _seconds(ms: int | None) -> Decimal | None:
    return None if ms is None else CONTEXT.divide(Decimal(ms), _MS)


def _times(count: int | Decimal, usd: Decimal | None) -> Decimal | None:
    return None if usd is None else CONTEXT.multiply(Decimal(count), usd)


def _sum(amounts: list[Decimal | None]) -> Decimal | None:
    total = _ZERO
    for amount in amounts:
        if amount is None:
            return None
        total = CONTEXT.add(total, amount)
    return total
