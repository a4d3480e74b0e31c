"""Limits that a request sets itself: which models, how many answers, how many tokens. Pure, and safe with any body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from pointsman.types import Endpoint

from .ledger import MAX_REQUEST_TOKENS

if TYPE_CHECKING:
    from pointsman.types import RequestContext

MAX_MODELS: Final = 32
MAX_CHOICES: Final = 128

#: The fields in which the supported APIs limit the output, and those in which they ask for several answers: OpenAI's,
#: Anthropic's, Google's, Amazon's. Sets in this order, so that of several invalid fields always the same is named.
_OUTPUT_FIELDS: Final = dict.fromkeys(
    (
        "max_completion_tokens",
        "max_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "maxOutputTokens",
        "maxTokens",
        "maxTokenCount",
        "max_gen_len",
        "max_new_tokens",
    )
).keys()
_CHOICE_FIELDS: Final = dict.fromkeys(
    ("n", "best_of", "candidateCount", "candidate_count", "sampleCount", "numberOfImages")
).keys()
#: Objects of a request that may hold them.
_SETTINGS: Final = (
    "generationConfig",
    "generation_config",
    "imageGenerationConfig",
    "inferenceConfig",
    "parameters",
    "textGenerationConfig",
)
#: Objects whose fields LiteLLM, or the SDK underneath, writes over those of the request.
_OVERRIDES: Final = ("config", "extra_body")
_HOLDERS: Final = frozenset({*_SETTINGS, *_OVERRIDES})
#: How much a model may think, which is output as well: objects and their fields.
_BUDGETS: Final = {
    "thinking": "budget_tokens",
    "reasoning": "max_tokens",
    "thinkingConfig": "thinkingBudget",
    "thinking_config": "thinking_budget",
}
_FALLBACK_FIELDS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
#: Fields of a request that name models in addition to the one asked for.
_NAMING: Final = frozenset({*_FALLBACK_FIELDS, "models", "router_settings_override", "tools"})


class InvalidRequest(ValueError):
    """The request has an invalid field.

    Args:
        message: For the client.
        param: The field.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def primary_models(model: str) -> tuple[str, ...]:
    """Return the models that will answer: LiteLLM asks several when their names are joined by commas."""
    return tuple(dict.fromkeys(part.strip() for part in model.split(","))) if "," in model else (model,)


def models_named(model: str, body: Mapping[str, object]) -> tuple[str, ...]:
    """Return every model that could work for the request: those asked for, and those named as fallbacks and for tools.

    Args:
        model: The model asked for, empty when it is missing.
        body: The request.

    Raises:
        InvalidRequest: more than ``MAX_MODELS`` models, or fallbacks that are not names.
    """
    names = list(primary_models(model))
    if not _NAMING.isdisjoint(body):
        names.extend(_further_models(body))
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > MAX_MODELS:
        raise InvalidRequest(f"The request names {len(distinct)} models; name at most {MAX_MODELS}.", "model")
    return distinct


def _further_models(body: Mapping[str, object]) -> Iterator[str]:
    """Yield the models that a request names as fallbacks and for tools."""
    override = body.get("router_settings_override")
    for source in (body, override if isinstance(override, Mapping) else {}):
        for field in _FALLBACK_FIELDS:
            if source.get(field) is not None:
                yield from _fallbacks(source[field], field, depth=0)
    if body.get("models") is not None:
        # Some providers fall back by themselves.
        yield from _fallbacks(body["models"], "models", depth=0)
    yield from _of_tools(body.get("tools"))


def transcribers_named(body: Mapping[str, object]) -> tuple[str, ...]:
    """Return the models that transcribe what is said on a websocket."""
    named = body.get("input_audio_transcription")
    parts = [part for part in named if isinstance(part, Mapping)] if isinstance(named, list | tuple) else ()
    return tuple(model for part in parts if isinstance(model := part.get("model"), str))


def _of_tools(tools: object) -> Iterator[str]:
    """Yield the models of tools that draw, or advise, with one of their own."""
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and isinstance(model := tool.get("model"), str):
            yield model


def _fallbacks(value: object, field: str, depth: int) -> Iterator[str]:
    """Yield the names in a fallback list: texts, ``{"model": name, ...}`` or ``{name: [names]}``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < 4:  # noqa: PLR2004  # deeper than any form that has a meaning
        for item in value:
            yield from _fallbacks(item, field, depth + 1)
    elif isinstance(value, Mapping) and depth < 4:  # noqa: PLR2004  # as above
        if "model" in value:
            yield from _fallbacks(value["model"], field, depth + 1)
            for nested in _FALLBACK_FIELDS:
                if value.get(nested) is not None:
                    yield from _fallbacks(value[nested], field, depth + 1)
        else:
            for item in value.values():
                yield from _fallbacks(item, field, depth + 1)
    else:
        raise InvalidRequest(f"'{field}' must contain model names.", field)


def output_limit(body: Mapping[str, object]) -> int | None:
    """Return the most output tokens of one answer that the request allows, or None if it sets no maximum.

    Raises:
        InvalidRequest: it is not a whole number from 1 to 10^9: a value that lowers the reservation below the real usage is refused.
    """
    return max(_numbers(body, _OUTPUT_FIELDS, MAX_REQUEST_TOKENS), default=None)


def thinking_budget(body: Mapping[str, object]) -> int:
    """Return how many tokens a model may think for one answer; 0 where the request does not say it.

    Raises:
        InvalidRequest: it is larger than 10^9.
    """
    found = 0
    for _, settings in settings_with(_BUDGETS.keys(), body):
        for name, field in _BUDGETS.items():
            within = settings.get(name)
            budget = within.get(field) if isinstance(within, Mapping) else None
            # Some providers let -1 stand for as much as the model likes.
            if isinstance(budget, int | float) and budget > 0:
                found = max(found, _whole(budget, f"{name}.{field}", MAX_REQUEST_TOKENS))
    return found


def choices(body: Mapping[str, object], endpoint: Endpoint | None = None) -> int:
    """Return how many answers the request asks for.

    Args:
        body: The request.
        endpoint: Its API; a request for completions may hold several prompts, each of which is answered.

    Raises:
        InvalidRequest: it is not a whole number from 1 to 128.
    """
    prompts = body.get("prompt") if endpoint is Endpoint.COMPLETIONS else None
    several = isinstance(prompts, list) and not all(type(token) is int for token in prompts)
    answers = len(prompts) if several and isinstance(prompts, list) else 1
    return answers * max(_numbers(body, _CHOICE_FIELDS, MAX_CHOICES), default=1)


def chooses_retries(ctx: RequestContext) -> bool:
    """Return whether the client has chosen how often the gateway tries again."""
    named = (ctx.body.get("num_retries"), ctx.body.get("max_retries"), ctx.headers.get("x-litellm-num-retries"))
    return named != (None, None, None)


def settings_with(fields: AbstractSet[str], body: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """Return the request and the objects of it that hold settings, where they have one of these fields.

    Args:
        fields: The names of the fields.
        body: The request.

    Returns:
        Each with what to put before its fields' names.
    """
    if _HOLDERS.isdisjoint(body):
        return [] if fields.isdisjoint(body) else [("", body)]
    return [part for part in _settings_of(body) if not fields.isdisjoint(part[1])]


def _settings_of(body: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for outer in ("", *_OVERRIDES):
        source = body.get(outer) if outer else body
        if isinstance(source, Mapping):
            before = f"{outer}." if outer else ""
            yield before, source
            for name in _SETTINGS:
                if isinstance(found := source.get(name), Mapping):
                    yield f"{before}{name}.", found


def _numbers(body: Mapping[str, object], fields: AbstractSet[str], most: int) -> Iterator[int]:
    for before, settings in settings_with(fields, body):
        for field in fields:
            if (value := settings.get(field)) is not None:
                yield _whole(value, f"{before}{field}", most)


def _whole(value: object, field: str, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequest(f"'{field}' must be a whole number from 1 to {most}.", field)
    return value
