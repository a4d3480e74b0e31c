"""What is said of a name that the gateway does not have, and which one may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman.plugin import Catalog


def unknown(target: str, catalog: Catalog) -> str | None:
    """Return what is wrong with a target, or None when the gateway has it."""
    if catalog.deployments(target):
        return None
    known = {name for each in catalog.deployments() for name in (each.group, each.id)}
    return f"the gateway has no model group or deployment {target!r}{nearest(target, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
