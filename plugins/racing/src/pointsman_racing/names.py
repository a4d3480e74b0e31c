"""Names in the configuration that the gateway does not have, and which ones may have been meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman.errors import nearest
from pointsman.plugin import unknown_target

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
        f"{section}.groups.{name}: {why}"
        for name in config.groups
        if (why := unknown_target(name, catalog)) is not None
    ]
    return found


def _of_candidate(candidate: CandidateConfig, catalog: Catalog) -> str | None:
    if members(candidate, catalog):
        return None
    if (why := unknown_target(candidate.target, catalog)) is not None:
        return f"target: {why}"
    near = nearest(candidate.model or "", {each.model for each in catalog.deployments(candidate.target)})
    return f"model: no deployment of {candidate.target!r} has the model {candidate.model!r}{near}"
