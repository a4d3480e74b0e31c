"""Which names may stand where in a section. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel


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
