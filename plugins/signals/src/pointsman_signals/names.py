"""Whether the names in the configuration are those of the gateway, and what an unknown one may have meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman.types import Deployment

    from .config import SignalsConfig

#: As alike as the host's own hints are.
_NEAR_RATIO: Final = 0.5


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty text."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR_RATIO)
    return f" (did you mean {match[0]!r}?)" if match else ""


def unknown_targets(config: SignalsConfig, deployments: Iterable[Deployment]) -> list[str]:
    """Return which names of the configuration mean nothing to the gateway, each with its key path.

    Args:
        config: The plugin's configuration.
        deployments: All that the gateway has; none at all say nothing, it may learn them later.
    """
    known = {name for one in deployments for name in (one.id, one.group, one.provider)}
    places = [(f"checks.{name}", name) for name in config.checks]
    places += [(f"dialects.{name}", name) for name in config.dialects]
    for account, names in config.accounts.items():
        places += [(f"accounts.{account}[{index}]", name) for index, name in enumerate(names)]
    return [
        f"signals.{place}: the gateway's configuration has no deployment id, model group or provider {name!r}"
        f"{nearest(name, known)}"
        for place, name in places
        if known and name not in known
    ]
