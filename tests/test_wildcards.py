"""A wildcard group is no target of any plugin; a model that it serves is a target of each."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.errors import PointsmanError
from pointsman.testing import Harness, deployment
from pointsman_canary.plugin import plugin as canary
from pointsman_racing.plugin import plugin as racing
from pointsman_registry.plugin import plugin as registry
from pointsman_shadow.plugin import plugin as shadow

FLEET = [deployment("chat-1", "chat"), deployment("any-1", "openai/*", model="*")]


def sections(target: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    version = {"id": "v1", "name": "assistant", "version": "1", "path": target, "active": True}
    race = {"name": "swift", "candidates": [{"target": "chat"}, {"target": target}]}
    mirror = {"name": "try", "model": "chat", "sample_rate": 1}
    return {
        "version": (registry, {"versions": [version]}),
        "candidate": (racing, {"models": [race]}),
        "raced group": (racing, {"groups": {target: {}}}),
        "challenger": (shadow, {"mirrors": [{**mirror, "challenger": target}]}),
        "judge": (shadow, {"mirrors": [{**mirror, "challenger": "chat-1", "judge": {"model": target}}]}),
        "canary": (canary, {"experiments": [{"name": "new", "model": "chat", "canary": target}]}),
        "stable": (canary, {"experiments": [{"name": "new", "model": "mine", "stable": target, "canary": "chat"}]}),
    }


@pytest.mark.parametrize("role", sections(""))
async def test_a_wildcard_is_refused_at_the_start_with_the_reason(role: str) -> None:
    harness = Harness([sections("openai/*")[role]], deployments=FLEET)
    with pytest.raises(PointsmanError, match=r"'openai/\*' stands for many models"):
        await harness.start()


@pytest.mark.parametrize("role", sections(""))
async def test_a_model_that_a_wildcard_serves_is_a_target(role: str) -> None:
    async with Harness([sections("openai/gpt-4o-mini")[role]], deployments=FLEET) as h:
        assert h.faults == {}
