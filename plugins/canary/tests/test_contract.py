from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite, deployment
from pointsman_canary.plugin import plugin

ROLLOUT = {"name": "chat-v2", "model": "chat", "stable": "old", "canary": "new", "steps": [50]}


class TestContract(ContractSuite):
    info = plugin
    config: ClassVar = {"experiments": [ROLLOUT]}
    bad_configs: ClassVar = [
        ({"experiments": [{**ROLLOUT, "steps": [5, 1]}]}, "must increase"),
        ({"experiments": [{**ROLLOUT, "steps": [float("nan")]}]}, "steps"),
        ({"experiments": [{**ROLLOUT, "stable": "new"}]}, "different targets"),
        ({"experiments": [ROLLOUT, {**ROLLOUT, "name": "other"}]}, "same model and filter"),
        ({"tick_s": 0}, "tick_s"),
    ]
    deployments = (deployment("old-1", "old"), deployment("new-1", "new"))
    model = "chat"
    #: The tick brings what was observed to the mailbox.
    background_s = 1.0
