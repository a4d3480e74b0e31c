"""What an unknown name may have meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel

#: As alike as the host's own hints are.
_NEAR_RATIO: Final = 0.5


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty text."""
    match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_NEAR_RATIO)
    return f" (did you mean {match[0]!r}?)" if match else ""


def fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the names of the fields that may stand at a place in a section."""
    at = [model]
    for part in path:
        fields = [each.model_fields[part] for each in at if isinstance(part, str) and part in each.model_fields]
        # Everything else is an index or a key, within what has been found already.
        if fields:
            at = [found for field in fields for found in _models(field.annotation)]
    return sorted({name for each in at for name in each.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation holds, in whatever containers and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]
