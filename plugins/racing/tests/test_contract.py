"""What every plugin must pass, once for a virtual model and once for a raced model group."""

from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite, Harness
from pointsman_racing.plugin import plugin

ALL = {"name": "smart", "candidates": ["chat", "backup", "tiny"], "strategy": "first_wins", "budget_ratio": 2}
BAD = [
    ({"models": [{"name": "smart", "candidates": []}]}, "candidates"),
    ({"models": [{"name": "", "candidates": ["chat"]}]}, "name"),
    ({"models": [{"name": "smart", "candidates": ["chat"], "strategy": "fastest"}]}, "strategy"),
    ({"models": [{"name": "smart", "candidates": ["chat", "backup"], "strategy": "first_wins"}]}, "budget_ratio"),
    ({"models": [{"name": "smart", "candidates": ["chat"], "max_attempts": 6}]}, "max_attempts"),
    ({"models": [{"name": "a", "candidates": ["chat"]}, {"name": "a", "candidates": ["chat"]}]}, "named twice"),
    ({"models": [{"name": "a", "candidates": ["b"]}, {"name": "b", "candidates": ["chat"]}]}, "itself"),
    ({"models": [{"name": "a", "candidates": ["chat"]}], "default_model": "b"}, "default_model"),
    ({"defaults": {"grace": 5}}, "grace"),
    ({"defaults": {"delay": {"quantile_ratio": 2}}}, "quantile_ratio"),
    ({"groups": {"chat": {"timeout_ms": 0}}}, "timeout_ms"),
    ({"groups": {"chat": {"strategy": "weighted"}}}, "budget_ratio"),
    ({"virtual_models": []}, "virtual_models"),
    ({"models": [{**ALL, "budget_ratio": 0}]}, "budget_ratio"),
    ({"groups": {"chat": {"strategy": "first_wins", "budget_ratio": 0}}}, "budget_ratio"),
    ({"models": [{"name": "smart", "candidates": ["chat"], "strategy": "weighted"}]}, "budget_ratio"),
    ({"models": [{**ALL, "budget_burst": 1}]}, "budget_burst allows 1"),
    ({"models": [ALL], "budget": {"burst": 1}}, "budget.burst"),
    ({"models": [ALL], "budget": {"ratio": 0.05}}, "budget.ratio"),
    ({"groups": {"chat": {"strategy": "first_wins", "budget_ratio": 1}}, "budget": {"ratio": 0.5}}, "budget.ratio"),
    ({"groups": [{"chat": {}}]}, "names only"),
    ({"groups": {"chat": False}}, "remove the group"),
    ({"groups": {"chat": 0}}, "remove the group"),
]


class TestVirtualModel(ContractSuite):
    info = plugin
    config: ClassVar = {
        "models": [{"name": "smart", "candidates": ["chat", {"target": "backup", "priority": 1}]}],
        "default_model": "smart",
    }
    bad_configs: ClassVar = BAD
    model = "smart"


class TestRacedGroup(ContractSuite):
    info = plugin
    config: ClassVar = {"groups": {"chat": {}}}
    bad_configs: ClassVar = BAD


class TestAllAtOnce(ContractSuite):
    info = plugin
    config: ClassVar = {
        "models": [{"name": "smart", "candidates": ["chat", "backup"], "strategy": "quality", "budget_ratio": 1}]
    }
    bad_configs: ClassVar = BAD
    model = "smart"

    async def prepare(self, h: Harness) -> None:
        """Let the times of its latest cancellations be there: it keeps a thousand."""
        times = h.plugin("racing")._coordinator.cancelling_ms
        times.extend(map(float, range(times.maxlen)))
