"""Names in the configuration that the gateway does not have, and which ones may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .field import members

if TYPE_CHECKING:
    from pointsman.plugin import Catalog

    from .config import CandidateConfig, RacingConfig


def unknown(config: RacingConfig, catalog: Catalog, section: str) -> list[str]:
    """Return what nobody can serve, each with its key and the nearest name that there is.

    Empty as long as the gateway has no deployment at all: some know them only after the plugins have started.

    Args:
        config: The plugin's section.
        catalog: What the gateway can serve.
        section: The section's own key.
    """
    if not catalog.deployments():
        return []
    found = [
        f"{section}.models[{number}].candidates[{place}].{why}"
        for number, model in enumerate(config.models)
        for place, candidate in enumerate(model.candidates)
        if (why := _of_candidate(candidate, catalog)) is not None
    ]
    found += [
        f"{section}.groups.{name}: {_no_such(name, catalog)}" for name in config.groups if not catalog.deployments(name)
    ]
    return found


def _of_candidate(candidate: CandidateConfig, catalog: Catalog) -> str | None:
    if members(candidate, catalog):
        return None
    if not (others := catalog.deployments(candidate.target)):
        return f"target: {_no_such(candidate.target, catalog)}"
    near = _nearest(candidate.model or "", {each.model for each in others})
    return f"model: no deployment of {candidate.target!r} has the model {candidate.model!r}{near}"


def _no_such(target: str, catalog: Catalog) -> str:
    known = {name for each in catalog.deployments() for name in (each.group, each.id)}
    return f"the gateway has no model group or deployment {target!r}{_nearest(target, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
