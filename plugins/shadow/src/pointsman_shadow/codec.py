"""States as JSON for the store, and back."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import StoreCorrupt
from pointsman.store.base import JSON

from .evidence import Evidence

_EVIDENCE: Final = TypeAdapter(Evidence)


def encode(evidence: Evidence) -> Any:
    """Return a state as JSON."""
    return _EVIDENCE.dump_python(evidence, mode="json")


def decode(raw: JSON) -> Evidence:
    """Return the state of a JSON value.

    Raises:
        StoreCorrupt: it is none.
    """
    try:
        return _EVIDENCE.validate_python(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(f"a mirror's state in the store cannot be read: {where}: {first['msg']}") from err
