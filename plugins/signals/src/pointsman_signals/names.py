"""Whether the names in the configuration are those of the gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pointsman.errors import nearest

if TYPE_CHECKING:
    from pointsman.types import Deployment

    from .config import SignalsConfig


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
