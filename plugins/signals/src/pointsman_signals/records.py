"""A deployment's knowledge as one JSON record of the store, and back. Pure.

The record's key is a digest of the deployment's id, so an id from outside never becomes part of a path or a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pointsman.types import ErrorClass

from .quota import Quota
from .state import Check, Facts
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman.store.base import JSON

    from .state import Rules

VERSION: Final = 1
PREFIX: Final = "deployment/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the store holds about one deployment.

    Attributes:
        deployment_id: Its id.
        revision: Changes with every writing.
        written_at: Unix seconds.
        facts: The latest of everything.
        quota: What is left.
        window: Statistics.
        recent_ms: Latest latencies of the worker that wrote.
    """

    deployment_id: str
    revision: str
    written_at: float
    facts: Facts
    quota: Quota
    window: Window
    recent_ms: Sequence[float] = ()

    def useful(self, now: float, ttl_s: float) -> bool:
        """Say whether it still says something: it is not older than ``ttl_s``, or an exhaustion in it has not ended."""
        return now - self.written_at <= ttl_s or self.quota.ends_at(now) > now


def key_of(deployment_id: str, prefix: str = PREFIX) -> str:
    """Return the store's key for a deployment."""
    return prefix + sha256(deployment_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def to_json(record: Record) -> JSON:
    """Return a record as JSON."""
    facts = record.facts
    check = facts.check
    return {
        "version": VERSION,
        "id": record.deployment_id,
        "revision": record.revision,
        "written_at": record.written_at,
        "used_at": facts.used_at,
        "success_at": facts.success_at,
        "error_at": facts.error_at,
        "error_kind": facts.error_kind,
        "error": facts.error,
        "check": None if check is None else [check.at, check.ok, check.message],
        "quota": record.quota.to_json(),
        "slice_s": record.window.slice_s,
        "window": record.window.to_json(),
        "recent_ms": [round(value, 3) for value in record.recent_ms],
    }


def from_json(value: Any, slice_s: float, rules: Rules) -> Record | None:
    """Rebuild a record; None when it is not one of this version.

    Args:
        value: JSON from the store.
        slice_s: Length of a slice of statistics; those of another length are left out.
        rules: How quotas are judged.
    """
    try:
        if value["version"] != VERSION:
            return None
        facts = Facts()
        facts.used_at, facts.success_at = float(value["used_at"]), float(value["success_at"])
        facts.error_at, facts.error = float(value["error_at"]), str(value["error"])
        facts.error_kind = ErrorClass(value["error_kind"]) if value["error_kind"] is not None else None
        if value["check"] is not None:
            at, ok, message = value["check"]
            facts.check = Check(float(at), ok is True, str(message))
        same = value["slice_s"] == slice_s
        return Record(
            deployment_id=str(value["id"]),
            revision=str(value["revision"]),
            written_at=float(value["written_at"]),
            facts=facts,
            quota=Quota.from_json(value["quota"], rules),
            window=Window.from_json(value["window"], slice_s) if same else Window(slice_s),
            recent_ms=[float(item) for item in value["recent_ms"]] if same else (),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
