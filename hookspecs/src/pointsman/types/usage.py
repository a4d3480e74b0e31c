"""What an answer has used, and what a unit of each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from ..frozen import quick, replace

#: How providers call the service tier that costs what is usual.
_USUAL_TIERS: Final = frozenset({"auto", "default", "standard", "standard_only", "on_demand"})


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one answer used: tokens, and what a provider charges that is not tokens.

    A part of ``prompt_tokens`` or ``completion_tokens`` is 0 when the provider does not name it. A quantity that is not
    a token count is None when it is unknown.

    Attributes:
        prompt_tokens: Everything that went in, cached tokens included.
        completion_tokens: Everything that came out, reasoning tokens included.
        cached_tokens: The part of ``prompt_tokens`` read from the provider's prompt cache.
        explicit_cached_tokens: The part of ``cached_tokens`` that the request itself has had cached before, where a provider
            charges less for it.
        cache_write_tokens: The part of ``prompt_tokens`` written to the provider's prompt cache, whatever its lifetime.
        cache_write_1h_tokens: The part of ``cache_write_tokens`` with a lifetime of an hour.
        reasoning_tokens: The part of ``completion_tokens`` spent on reasoning.
        audio_prompt_tokens: The part of ``prompt_tokens`` that is audio.
        audio_completion_tokens: The part of ``completion_tokens`` that is audio.
        image_prompt_tokens: The part of ``prompt_tokens`` that is images.
        image_completion_tokens: The part of ``completion_tokens`` that is images.
        video_prompt_tokens: The part of ``prompt_tokens`` that is video.
        video_completion_tokens: The part of ``completion_tokens`` that is video.
        cached_audio_tokens: The part of ``cached_tokens`` and of ``audio_prompt_tokens`` that is cached audio.
        cached_image_tokens: The part of ``cached_tokens`` and of ``image_prompt_tokens`` that is cached images.
        accepted_prediction_tokens: The part of ``completion_tokens`` that the client had predicted.
        rejected_prediction_tokens: The part of ``completion_tokens`` that was predicted and not used.
        citation_tokens: Tokens of sources that the provider has read and charges in addition to the prompt.
        searches: Web searches that the provider made.
        search_context: Their size: ``low``, ``medium`` or ``high``; None when the request names none.
        maps_queries: Map searches that the provider made.
        file_searches: Searches of files that the provider made.
        code_sessions: Sandboxes in which the provider ran code.
        other_tools: Uses of other tools that the provider charges for and that have no unit price, such as images that a
            text model had drawn: what they cost is unknown.
        images: Images in the answer.
        image_size: Their size, for example ``1024x1024``.
        image_quality: Their quality, for example ``high``.
        characters: Characters of a text that was spoken.
        audio_ms: Length of the audio that went in, in milliseconds.
        audio_out_ms: Length of the audio that came out, in milliseconds.
        video_ms: Length of the video that came out, in milliseconds.
        video_resolution: Its resolution, for example ``720p``.
        pages: Pages of documents that were read.
        annotated_pages: Pages of them that were annotated.
        search_units: Searches of a reranker.
        requests: Requests, where a provider charges for each of them.
        service_tier: The tier that served the answer, as the provider says, for example ``flex``; None when it says none.
        region: Where it was processed, as the provider says, for example ``us``; None when it says none.
        model: The model that answered, as the provider says.
        provider_cost_usd: What the provider itself says that it charges, in US dollars.
        parts: Where several models worked on one answer, what each of them used; or what each try of an attempt used, where
            the provider's SDK has tried again by itself. All counts here are their sums.
        is_part: Whether this is what one of several models used for one answer: its price is that of the model that it
            names alone.
        raw: The provider's own account of the usage, as JSON text of bounded length.
        estimated: False when the provider reported the numbers, True when some of them were counted here.
        contradictory: Whether the provider's numbers do not fit together; they have then been resolved by its total.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_prompt_tokens: int = 0
    audio_completion_tokens: int = 0
    image_prompt_tokens: int = 0
    image_completion_tokens: int = 0
    video_prompt_tokens: int = 0
    video_completion_tokens: int = 0
    cached_audio_tokens: int = 0
    cached_image_tokens: int = 0
    explicit_cached_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    citation_tokens: int = 0
    searches: int | None = None
    search_context: str | None = None
    maps_queries: int | None = None
    file_searches: int | None = None
    code_sessions: int | None = None
    other_tools: int | None = None
    images: int | None = None
    image_size: str | None = None
    image_quality: str | None = None
    characters: int | None = None
    audio_ms: int | None = None
    audio_out_ms: int | None = None
    video_ms: int | None = None
    video_resolution: str | None = None
    pages: int | None = None
    annotated_pages: int | None = None
    search_units: int | None = None
    requests: int | None = None
    service_tier: str | None = None
    region: str | None = None
    model: str | None = None
    provider_cost_usd: Decimal | None = None
    parts: tuple[Usage, ...] = ()
    is_part: bool = False
    raw: str | None = field(default=None, repr=False)
    estimated: bool = False
    contradictory: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def is_empty(self) -> bool:
        """Whether nothing was used that a provider may charge."""
        return not (
            self.prompt_tokens
            or self.completion_tokens
            or self.provider_cost_usd
            or any(
                (
                    self.citation_tokens,
                    self.searches,
                    self.maps_queries,
                    self.file_searches,
                    self.code_sessions,
                    self.other_tools,
                    self.images,
                    self.characters,
                    self.audio_ms,
                    self.audio_out_ms,
                    self.video_ms,
                    self.pages,
                    self.annotated_pages,
                    self.search_units,
                    self.requests,
                )
            )
        )


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Unit prices of a model from the gateway's cost map, in US dollars.

    None means that the map does not know. For a part of the prompt or of the answer that is then the price of the whole;
    for anything else the price is unknown, never free.

    Attributes:
        input_usd: A token of the prompt.
        output_usd: A token of the answer.
        cache_read_usd: A token read from the provider's prompt cache.
        explicit_cache_read_usd: A token read from it that the request itself has had cached; None: as ``cache_read_usd``.
        cache_write_usd: A token written to it.
        cache_write_1h_usd: A token written to it for an hour; None: as ``cache_write_usd``.
        audio_input_usd: An audio token of the prompt.
        audio_output_usd: An audio token of the answer.
        image_input_usd: An image token of the prompt.
        image_output_usd: An image token of the answer.
        video_input_usd: A video token of the prompt.
        video_output_usd: A video token of the answer.
        cached_audio_usd: An audio token read from the cache; None: as ``cache_read_usd``.
        cached_image_usd: An image token read from the cache; None: as ``cache_read_usd``.
        reasoning_usd: A reasoning token.
        citation_usd: A token of a source that the provider has read in addition to the prompt.
        search_low_usd: A web search with little context.
        search_medium_usd: A web search with the usual context, also where the request names no size.
        search_high_usd: A web search with much context.
        search_request_usd: All web searches of one request together, where the provider charges them so.
        maps_query_usd: A map search.
        maps_request_usd: All map searches of one request together, where the provider charges them so.
        file_search_usd: A search of files.
        code_session_usd: A sandbox for code.
        image_usd: An image in the answer; of the size and quality that the prices were asked for.
        character_usd: A character of a spoken text.
        audio_second_usd: A second of audio that went in.
        audio_out_second_usd: A second of audio that came out.
        video_second_usd: A second of video that came out; of the resolution that the prices were asked for.
        page_usd: A page that was read.
        annotated_page_usd: A page that was annotated.
        search_unit_usd: A search of a reranker.
        request_usd: A request.
        above: Other prices for the whole request when its prompt has more tokens than the number, in ascending order.
        tiers: Other prices for the whole request by service tier, in lower case.
        configured: Whether the operator has set these prices for the deployment; the provider's own figure does not
            replace them.
        for_all_tiers: Whether service tiers that ``tiers`` does not name have the same prices; if not, what a token costs
            there is unknown.
    """

    input_usd: Decimal | None = None
    output_usd: Decimal | None = None
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None
    cache_write_1h_usd: Decimal | None = None
    audio_input_usd: Decimal | None = None
    audio_output_usd: Decimal | None = None
    image_input_usd: Decimal | None = None
    image_output_usd: Decimal | None = None
    video_input_usd: Decimal | None = None
    video_output_usd: Decimal | None = None
    cached_audio_usd: Decimal | None = None
    cached_image_usd: Decimal | None = None
    explicit_cache_read_usd: Decimal | None = None
    reasoning_usd: Decimal | None = None
    citation_usd: Decimal | None = None
    search_low_usd: Decimal | None = None
    search_medium_usd: Decimal | None = None
    search_high_usd: Decimal | None = None
    search_request_usd: Decimal | None = None
    maps_query_usd: Decimal | None = None
    maps_request_usd: Decimal | None = None
    file_search_usd: Decimal | None = None
    code_session_usd: Decimal | None = None
    image_usd: Decimal | None = None
    character_usd: Decimal | None = None
    audio_second_usd: Decimal | None = None
    audio_out_second_usd: Decimal | None = None
    video_second_usd: Decimal | None = None
    page_usd: Decimal | None = None
    annotated_page_usd: Decimal | None = None
    search_unit_usd: Decimal | None = None
    request_usd: Decimal | None = None
    above: tuple[tuple[int, Price], ...] = ()
    tiers: Mapping[str, Price] = field(default_factory=dict)
    configured: bool = False
    for_all_tiers: bool = True

    def at(self, prompt_tokens: int, service_tier: str | None = None) -> Price:
        """Return the prices of a request with a prompt of this size, served by this tier."""
        tier = (service_tier or "").lower()
        price = self.tiers.get(tier, self)
        if price is self and tier and not self.for_all_tiers and tier not in _USUAL_TIERS:
            unknown: dict[str, Any] = dict.fromkeys(TOKEN_PRICES)
            return replace(self, above=(), tiers={}, **unknown)
        for least, above in reversed(price.above):
            if prompt_tokens > least:
                return above
        return price


TOKEN_PRICES: Final = (
    "input_usd",
    "output_usd",
    "cache_read_usd",
    "cache_write_usd",
    "cache_write_1h_usd",
    "audio_input_usd",
    "audio_output_usd",
    "image_input_usd",
    "image_output_usd",
    "video_input_usd",
    "video_output_usd",
    "cached_audio_usd",
    "cached_image_usd",
    "explicit_cache_read_usd",
    "reasoning_usd",
)
"""The fields of a ``Price`` that are prices of tokens, which depend on the service tier."""
