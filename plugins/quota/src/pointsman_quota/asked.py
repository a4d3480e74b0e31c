"""What a request asks for: which models, and how many tokens at most. Pure, and safe with any body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .ledger import MAX_REQUEST_TOKENS

MAX_MODELS: Final = 32
MAX_CHOICES: Final = 128

#: The fields in which the supported APIs limit the output, and those in which they ask for several answers.
_OUTPUT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample")
_CHOICE_FIELDS: Final = ("n", "best_of")
_FALLBACK_FIELDS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


class OddRequest(ValueError):
    """The request has a field that cannot be what it says.

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
        OddRequest: more models than anybody needs, or fallbacks that are no names.
    """
    names = list(primary_models(model))
    override = body.get("router_settings_override")
    for source in (body, override if isinstance(override, Mapping) else {}):
        for field in _FALLBACK_FIELDS:
            if source.get(field) is not None:
                names.extend(_fallbacks(source[field], field, depth=0))
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > MAX_MODELS:
        raise OddRequest(f"The request names {len(distinct)} models; name at most {MAX_MODELS}.", "model")
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
        raise OddRequest(f"'{field}' must hold names of models.", field)


def output_limit(body: Mapping[str, object]) -> int | None:
    """Return the most output tokens of one answer that the request allows, or None if it sets no maximum.

    Raises:
        OddRequest: it is not a whole number from 1 to 10^9: nothing that lowers a reservation below the truth passes.
    """
    limits = [_whole(body[field], field, MAX_REQUEST_TOKENS) for field in _OUTPUT_FIELDS if body.get(field) is not None]
    return max(limits, default=None)


def choices(body: Mapping[str, object]) -> int:
    """Return how many answers the request asks for.

    Raises:
        OddRequest: it is not a whole number from 1 to 128.
    """
    return max(
        [_whole(body[field], field, MAX_CHOICES) for field in _CHOICE_FIELDS if body.get(field) is not None] or [1]
    )


def _whole(value: object, field: str, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise OddRequest(f"'{field}' must be a whole number from 1 to {most}.", field)
    return value


def text_chars(value: object) -> int:
    """Return roughly how many characters of text a part of a request has; data URLs are not text."""
    chars = 0
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            chars += 0 if part.startswith("data:") else len(part)
        elif isinstance(part, list | tuple):
            parts.extend(part)
        elif isinstance(part, dict) or (part is value and isinstance(part, Mapping)):
            parts.extend(part.values())
    return chars
