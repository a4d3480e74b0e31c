from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite, deployment
from pointsman_registry.plugin import plugin

VERSION = {"id": "chat-1", "name": "assistant", "version": "1", "path": "chat", "active": True}


class TestContract(ContractSuite):
    info = plugin
    config: ClassVar = {"versions": [VERSION]}
    bad_configs: ClassVar = [
        ({"versions": [{**VERSION, "id": ""}]}, "id"),
        ({"versions": [VERSION, VERSION]}, "chat-1"),
        ({"versions": {}}, "versions"),
    ]
    deployments = (deployment("chat-a", "chat"), deployment("chat-b", "chat"))
    model = "assistant"
