"""A proxy whose plugins change, answer and refuse, as the requests' headers say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rig import SUPPORT, Rig, deployment
from units import DOORS, model_list

from pointsman.testing.distribution import fake_distribution
from pointsman.testing.provider import Behaviour

TEXT = "the answer, word by word"


def models(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "gpt", "gpt-4o-mini", id_="gpt-1"),
        deployment(upstream, "spare", "gpt-4o", id_="spare-1"),
        deployment(upstream, "failing", "gpt-failing", id_="failing-1"),
        deployment(upstream, "claude", "claude-haiku-4-5", id_="claude-1", provider="anthropic"),
        deployment(upstream, "vectors", "text-embedding-3-small", id_="vectors-1"),
        deployment(upstream, "slow-gpt", "slow-gpt", id_="slow-gpt-1"),
        deployment(upstream, "slow-claude", "slow-claude", id_="slow-claude-1", provider="anthropic"),
        deployment(upstream, "slow-vectors", "slow-vectors", id_="slow-vectors-1"),
        *(entry for entry in model_list(upstream) if entry["model_name"] in DOORS),
    ]


def install(library: Path) -> None:
    """Make the plugins of ``changer.py`` look installed in a directory."""
    shutil.copy(SUPPORT / "changer.py", library / "changer.py")
    points = {name: f"changer:{name}" for name in ("changer", "guardian", "policy", "sealer")}
    fake_distribution(library, "pointsman-changer", points)


def start(directory: Path, *plugins: Any, config: Mapping[str, Any] | None = None) -> Rig:
    """Return a rig, not started, with plugins of ``changer.py``."""
    library = directory / "lib"
    library.mkdir(parents=True)
    install(library)
    rig = Rig(
        directory, models, plugins=list(plugins), config={"router_settings": {"num_retries": 0}, **(config or {})}
    )
    for model in ("gpt-4o-mini", "gpt-4o", "claude-haiku-4-5"):
        rig.upstream.behave(model, Behaviour(text=TEXT))
    rig.upstream.behave("gpt-failing", Behaviour(error_ratios={500: 1.0}))
    return rig


def headers(rig: Rig, case: str, **more: str) -> dict[str, str]:
    return {**rig.proxy.headers, "x-test-case": case, **{f"x-test-{name}": value for name, value in more.items()}}
