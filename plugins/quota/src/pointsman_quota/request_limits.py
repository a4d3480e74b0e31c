"""Limits that a request sets itself: which models, how many answers, how many tokens. Pure, and safe with any body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from .ledger import MAX_REQUEST_TOKENS

if TYPE_CHECKING:
    from pointsman.types import RequestContext

MAX_MODELS: Final = 32
MAX_CHOICES: Final = 128

#: The fields in which the supported APIs limit the output, and those in which they ask for several answers.
_OUTPUT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample")
_CHOICE_FIELDS: Final = ("n", "best_of")
_FALLBACK_FIELDS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


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
    """Return every model that could answer the request: those asked for, and those the client names as fallbacks.

    Args:
        model: The model asked for, empty when it is missing.
        body: The request.

    Raises:
        InvalidRequest: more than ``MAX_MODELS`` models, or fallbacks that are not names.
    """
    names = list(primary_models(model))
    override = body.get("router_settings_override")
    for source in (body, override if isinstance(override, Mapping) else {}):
        for field in _FALLBACK_FIELDS:
            if source.get(field) is not None:
                names.extend(_fallbacks(source[field], field, depth=0))
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > MAX_MODELS:
        raise InvalidRequest(f"The request names {len(distinct)} models; name at most {MAX_MODELS}.", "model")
    return distinct


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
    limits = [_whole(body[field], field, MAX_REQUEST_TOKENS) for field in _OUTPUT_FIELDS if body.get(field) is not None]
    return max(limits, default=None)


def choices(body: Mapping[str, object]) -> int:
    """Return how many answers the request asks for.

    Raises:
        InvalidRequest: it is not a whole number from 1 to 128.
    """
    return max(
        [_whole(body[field], field, MAX_CHOICES) for field in _CHOICE_FIELDS if body.get(field) is not None] or [1]
    )


def chooses_retries(ctx: RequestContext) -> bool:
    """Return whether the client has chosen how often the gateway tries again."""
    named = (ctx.body.get("num_retries"), ctx.body.get("max_retries"), ctx.headers.get("x-litellm-num-retries"))
    return any(value is not None for value in named)


def _whole(value: object, field: str, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequest(f"'{field}' must be a whole number from 1 to {most}.", field)
    return value
