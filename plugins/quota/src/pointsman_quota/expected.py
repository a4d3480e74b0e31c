"""What a request is expected to use, in the units that its kind of API is charged by. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pointsman.types import Endpoint, Usage

from .hosted_tools import uses_of
from .request_limits import settings_with

if TYPE_CHECKING:
    from pointsman.counting import Prompt
    from pointsman.types import RequestContext

#: Their answers are not text, or are not charged by their length.
WITHOUT_OUTPUT_TOKENS: Final = frozenset(
    {
        Endpoint.BATCHES,
        Endpoint.COUNT_TOKENS,
        Endpoint.EMBEDDINGS,
        Endpoint.FILES,
        Endpoint.MODERATIONS,
        Endpoint.OCR,
        Endpoint.RERANK,
        Endpoint.SEARCH,
        Endpoint.SPEECH,
        Endpoint.VIDEOS,
    }
)
#: Of a large image of high quality, where a model is charged by tokens.
_IMAGE_TOKENS: Final = 6_300
#: Slow speech: 750 characters a minute.
_MS_A_CHARACTER: Final = 80
#: Where a request does not say how long a video is to be.
_VIDEO_S: Final = 10
_MOST_VIDEO_S: Final = 3_600
#: A recording of unknown length.
_RECORDING_MS: Final = 60_000
#: Service tiers that cost less than none: whether one serves is not known before the answer.
_CHEAPER_TIERS: Final = frozenset({"balanced", "flex"})
#: A reranker charges this many documents as one search.
_DOCUMENTS: Final = 100
#: Where a request says what kinds of answers it wants.
_MODALITIES: Final = frozenset({"modalities", "responseModalities", "response_modalities"})


def usage_of(
    ctx: RequestContext, prompt: Prompt, prompt_tokens: int, output_tokens: int, *, choices: int, tool_uses: int
) -> Usage:
    """Return what one model is expected to use for a request.

    Args:
        ctx: The request.
        prompt: What it gives the model to read.
        prompt_tokens: Its tokens.
        output_tokens: The estimated tokens of all answers together.
        choices: How many answers it asks for.
        tool_uses: How often one of the provider's tools is used whose uses the request does not limit.
    """
    body = ctx.body
    tier = body.get("service_tier")
    tokens = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=output_tokens,
        service_tier=tier if isinstance(tier, str) and tier.lower() not in _CHEAPER_TIERS else None,
    )
    match ctx.endpoint:
        case Endpoint.IMAGES:
            made = choices * _IMAGE_TOKENS
            return Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=made,
                image_completion_tokens=made,
                image_prompt_tokens=min(prompt_tokens, prompt.media_tokens),
                images=choices,
                image_size=_text(body, "size"),
                image_quality=_text(body, "quality"),
            )
        case Endpoint.REALTIME if body.get("output_modalities") != ["text"]:
            # Sound is dearer than text, and either may come.
            return replace(tokens, audio_prompt_tokens=prompt_tokens, audio_completion_tokens=output_tokens)
        case Endpoint.SPEECH:
            characters = len(prompt.text)
            return replace(tokens, characters=characters, audio_out_ms=characters * _MS_A_CHARACTER)
        case Endpoint.TRANSCRIPTIONS:
            return replace(tokens, audio_ms=prompt.audio_ms or _RECORDING_MS)
        case Endpoint.RERANK:
            documents = body.get("documents")
            count = len(documents) if isinstance(documents, list) else 1
            return replace(tokens, search_units=max(1, -(-count // _DOCUMENTS)))
        case Endpoint.OCR:
            return Usage(pages=_named_pages(body) or max(1, prompt.pages))
        case Endpoint.VIDEOS:
            return Usage(video_ms=_video_s(body) * 1000, video_resolution=_text(body, "resolution"))
        case Endpoint.SEARCH:
            return Usage(searches=1, requests=1)
        case Endpoint.BATCHES | Endpoint.FILES | Endpoint.COUNT_TOKENS:
            # What a batch costs is known when its usage is.
            return Usage()
    return _with_tools(_with_media(tokens, prompt, body), body, choices, tool_uses)


def _named_pages(body: Mapping[str, object]) -> int:
    """Return how many pages of a document are to be read; 0 where the request does not name them."""
    named = body.get("pages")
    return len(named) if isinstance(named, list) and all(type(page) is int for page in named) else 0


def _with_tools(tokens: Usage, body: Mapping[str, object], choices: int, tool_uses: int) -> Usage:
    """Return the usage of a text model with the provider's tools that it may use for each answer."""
    uses, size = uses_of(body, tool_uses)
    if not uses:
        return tokens
    counts: dict[str, Any] = {name: count * choices for name, count in uses.items()}
    return replace(tokens, search_context=size, **counts)


def _with_media(tokens: Usage, prompt: Prompt, body: Mapping[str, object]) -> Usage:
    """Return the usage of a text model with the parts of it that are no text, which may be dearer."""
    heard, seen = prompt.audio_tokens, prompt.image_tokens
    wanted = _modalities(body)
    spoken, drawn = "audio" in wanted, "image" in wanted
    if not (heard or seen or spoken or drawn):
        return tokens
    return replace(
        tokens,
        audio_prompt_tokens=min(heard, tokens.prompt_tokens),
        image_prompt_tokens=min(seen, max(0, tokens.prompt_tokens - heard)),
        audio_completion_tokens=tokens.completion_tokens if spoken else 0,
        image_completion_tokens=tokens.completion_tokens if drawn and not spoken else 0,
    )


def _modalities(body: Mapping[str, object]) -> set[str]:
    """Return what kinds of answers a request asks for, in lower case: sound or pictures may come in place of text."""
    named = [settings.get(name) for _, settings in settings_with(_MODALITIES, body) for name in _MODALITIES]
    return {one.lower() for wanted in named if isinstance(wanted, list) for one in wanted if isinstance(one, str)}


def _text(body: Mapping[str, object], field: str) -> str | None:
    value = body.get(field)
    return value[:64] if isinstance(value, str) else None


def _video_s(body: Mapping[str, object]) -> int:
    value = body.get("seconds", body.get("duration"))
    try:
        return min(_MOST_VIDEO_S, max(1, int(str(value))))
    except ValueError:
        return _VIDEO_S
