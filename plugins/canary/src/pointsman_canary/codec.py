"""States and changes as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import StoreCorrupt
from pointsman.store.base import JSON

from .analysis import Finding
from .observations import Mail
from .rollout import Change, Rollout

T = TypeVar("T")

_ROLLOUT: Final = TypeAdapter(Rollout)
_CHANGE: Final = TypeAdapter(Change)
_MAIL: Final = TypeAdapter(Mail)
_FINDINGS: Final = TypeAdapter(Mapping[str, Sequence[Finding]])


def encode_rollout(rollout: Rollout) -> Any:
    """Return a state as JSON."""
    return _ROLLOUT.dump_python(rollout, mode="json")


def decode_rollout(raw: JSON) -> Rollout:
    """Return the state of a JSON value.

    Raises:
        StoreCorrupt: it is none.
    """
    return _decoded(_ROLLOUT, raw, "state of an experiment")


def encode_change(change: Change) -> Any:
    """Return an entry of the audit trail as JSON."""
    return _CHANGE.dump_python(change, mode="json")


def encode_findings(findings: Mapping[str, Sequence[Finding]]) -> Any:
    """Return the findings of each arm as JSON."""
    return _FINDINGS.dump_python(findings, mode="json")


def decode_mail(raw: JSON) -> Mail:
    """Return the observations of a JSON value; None is none at all.

    Raises:
        StoreCorrupt: it is something else.
    """
    return _decoded(_MAIL, raw or {}, "mailbox")


def _decoded(adapter: TypeAdapter[T], raw: JSON, what: str) -> T:
    try:
        return adapter.validate_python(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(f"the canary's {what} in the store cannot be read: {where}: {first['msg']}") from err
